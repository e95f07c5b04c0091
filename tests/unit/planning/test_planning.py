"""Plans are arithmetic on rates, and rates are those of this machine."""

import json

import pytest

from qinco.cli.app import main
from qinco.config import ModelConfig
from qinco.errors import ConfigError
from qinco.planning import Rates, measure_rates, plan

RATES = Rates(encode_us=100, decode_us=5, fill_us=1, compare_ns=0.05, scan_ns=1, rank_us=4, query_us=100, read_mb=500)
SIZE = {"vectors": 1e9, "dim": 768, "bytes": 16, "machines": 20, "cores": 16, "rates": RATES}


def stages(**changes) -> dict:
    return {stage.name: stage for stage in plan(**SIZE | changes).stages}


def test_a_billion_vectors():
    found, planned = stages(), plan(**SIZE)
    assert list(found) == ["train", "encode", "centroids", "build", "search"]
    assert found["encode"].hours == pytest.approx(1e9 * 100e-6 / 320 / 3600) and found["encode"].limit == "cores"
    assert found["encode"].network_gb == pytest.approx(1e9 * 768 * 4 / 20 / 1e9)
    assert planned.settings["num_lists"] == 131_072 and planned.bytes_per_vector == 21
    assert found["search"].memory_gb == pytest.approx(21 * 1e9 / 20 / 1e9 + 4 * 768 * (131_072 + 16 * 256) / 1e9)
    assert planned.hours == pytest.approx(sum(stage.hours for stage in planned.stages if stage.hours is not None))
    scanned = 32 * 1e9 / 131_072
    assert planned.queries_per_second == pytest.approx(320e6 / (scanned * 1e-3 + 100 + 400))


def test_what_grows_with_what():
    one, twice = stages(), stages(vectors=2e9, num_lists=131_072)
    assert twice["encode"].hours == pytest.approx(2 * one["encode"].hours)
    assert stages(machines=40)["encode"].hours == pytest.approx(one["encode"].hours / 2)
    assert stages(replicas=2)["search"].memory_gb > 1.5 * one["search"].memory_gb
    assert plan(**SIZE | {"vectors": 1e10}).bytes_per_vector == 25  # ids of 8 bytes
    slow = stages(rates=Rates(**{**vars(RATES), "read_mb": 1.0}))
    assert slow["encode"].limit == "disk" and slow["encode"].hours == pytest.approx(153_600 / 3600)
    assert stages(value_bytes=2)["encode"].network_gb == one["encode"].network_gb / 2


@pytest.mark.parametrize(
    "changes", [{"vectors": 0}, {"dim": 0}, {"machines": 0}, {"cores": 0}, {"minutes": 0}, {"nprobe": 0},
                {"num_lists": 10**12}, {"preset": "qinco2-Z"}]
)  # fmt: skip
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ConfigError):
        plan(**SIZE | changes)


def test_rates_are_measured(tmp_path):
    config = ModelConfig(dim=16, num_steps=2, codebook_size=16, num_blocks=1, hidden_dim=16)
    rates = measure_rates(config, folder=tmp_path, rows=5000, progress=False)
    assert all(value >= 0 for value in vars(rates).values()) and rates.encode_us > rates.decode_us > 0
    assert rates.compare_ns > 0 and rates.fill_us > 0 and rates.read_mb > 0 and not list(tmp_path.iterdir())


def test_the_command_line_prints_a_table_and_json(tmp_path, capsys):
    (tmp_path / "rates.json").write_text(json.dumps(vars(RATES)))
    words = ["plan", "vectors=1e9", "dim=768", "bytes=16", "machines=20", "cores=16", f"rates={tmp_path}/rates.json"]
    assert main([*words, "json=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hours"] == plan(**SIZE).hours and found["rates"] == vars(RATES)
    (tmp_path / "plan.json").write_text(json.dumps(found))
    assert main([*words[:-1], f"rates={tmp_path}/plan.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:7]] == ["train", "encode", "centroids", "build", "search"]
    (tmp_path / "rates.json").write_text("{}")
    assert main(words) == 2
    assert "no file of rates" in capsys.readouterr().err
