"""The README's commands run as they are printed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from qinco.cli import main
from qinco.vectors.formats import write_vectors

README = (Path(__file__).parents[2] / "README.md").read_text()
SMALLER = {"train": ["epochs=1", "K=4", "L=1", "dh=8"]}


@pytest.fixture
def vectors(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name, count in (("train", 200), ("base", 50), ("query", 5)):
        write_vectors(f"{name}.fvecs", generator.standard_normal((count, 8)).astype(np.float32))
    write_vectors("gt.ivecs", generator.integers(0, 50, (5, 10)).astype(np.int32))
    return tmp_path


def test_shell_commands_run(vectors, capsys):
    section = re.search(r"## Shell\n(.*?)\n##", README, re.DOTALL)[1]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert len(blocks) == 2 and len(commands) >= 16
    for command in commands:
        smaller = SMALLER.get(command[0], [])
        kept = [word for word in command if not any(word.startswith(f"{s.split('=')[0]}=") for s in smaller)]
        assert main([*kept, *smaller]) == 0, (command, capsys.readouterr().err)


def test_python_example_runs(vectors):
    section = re.search(r"## Python\n(.*?)\n## ", README, re.DOTALL)[1]
    block = "".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    smaller = block.replace("epochs=10", "epochs=1, codebook_size=4, hidden_dim=8")
    assert smaller != block
    names = {}
    exec(compile(smaller, "README.md", "exec"), names)
    assert names["codes"].shape == (50, 8)
    assert names["y_4"].shape == names["y_hat"].shape == (50, 8)
    assert len(names["index"]) == 60 and names["ids"].shape == (5,) and names["vector"].shape == (8,)


def test_file_tree_names_what_exists():
    tree = re.search(r"## Files\n(.*?)\n## ", README, re.DOTALL)[1]
    paths = re.findall(r"^\| (`.*?`) \|", tree, re.MULTILINE)
    assert len(paths) > 10
    root = Path(__file__).parents[2]
    for first in paths:
        for path in re.findall(r"`(.*?)`", first):
            assert (root / path).exists() or (root / "src/qinco" / path).exists(), path
