from pathlib import Path

from qinco.memory import free_memory


def test_free_memory_is_what_the_machine_can_have():
    assert 1 << 20 < free_memory() < 1 << 60


def test_free_memory_where_the_kernel_does_not_tell(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\n")
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda self: opened(tmp_path / "meminfo"))
    assert 1 << 20 < free_memory() < 1 << 60
