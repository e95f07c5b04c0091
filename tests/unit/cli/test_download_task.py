"""`qinco download`: what a user types, sees and finds on the disk."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from published_server import http_server

from qinco.cli import main
from qinco.vectors.formats import open_array, write_vectors

ROWS = np.random.default_rng(5).integers(0, 256, (50, 128), np.uint8)
NEAREST = np.arange(100, dtype=np.int32).reshape(10, 10)


@pytest.fixture(autouse=True)
def _in_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def encoded(name: str, rows: np.ndarray) -> bytes:
    write_vectors(f"../{name}", rows)
    return Path(f"../{name}").read_bytes()


@pytest.fixture
def server():
    with http_server() as server:
        server.files |= {
            "/QINCo/datasets/bigann/bigann1M.bvecs": encoded("base.bvecs", ROWS),
            "/QINCo/datasets/bigann/bigann_learn_10M10k.bvecs": encoded("learn.bvecs", ROWS[:20]),
            "/QINCo/datasets/bigann/gnd/idx_1M.ivecs": encoded("nearest.ivecs", NEAREST),
            "/local/texmex/corpus/bigann_query.bvecs.gz": gzip.compress(encoded("query.bvecs", ROWS[:10])),
            "/QINCo/qinco2-models/qinco2_L-bigann1M-8x8.pt": b"weights",
        }
        yield server


SIZES = {
    "data/bigann/bigann_query.bvecs": 10 * 132,
    "data/bigann/gnd/idx_1M.ivecs": 10 * 44,
    "data/bigann/bigann_base.bvecs": 50 * 132,
    "data/bigann/bigann_learn.bvecs": 20 * 132,
}


def listing() -> set[str]:
    return {path.relative_to(".").as_posix() for path in Path().rglob("*") if path.is_file()}


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["download", *arguments])
    return code, *capsys.readouterr()


def test_a_data_set_and_a_model(server, capsys):
    code, out, err = run(capsys, "bigann1M", "qinco2_L-bigann1M-8x8", f"mirror={server.address}", "json=true")
    assert code == 0, err
    result = json.loads(out)
    expected = SIZES | {"models/qinco2_L-bigann1M-8x8.pt": 7}
    assert {file["path"]: file["bytes"] for file in result["files"]} == expected
    assert all(file["state"] == "downloaded" and file["seconds"] >= 0 for file in result["files"])
    assert (result["downloaded"], result["skipped"]) == (5, 0)
    assert listing() == set(expected)
    np.testing.assert_array_equal(open_array("data/bigann/bigann_base.bvecs")[:], ROWS)
    np.testing.assert_array_equal(open_array("data/bigann/bigann_query.bvecs")[:], ROWS[:10])
    assert Path("models/qinco2_L-bigann1M-8x8.pt").read_bytes() == b"weights"
    assert f"data/bigann/bigann_base.bvecs from {server.address}/QINCo/datasets/bigann/bigann1M.bvecs" in err


def test_what_is_there_is_skipped(server, capsys):
    _, out, _ = run(capsys, "bigann1M", f"mirror={server.address}")
    assert out.splitlines()[0].split() == ["path", "bytes", "seconds", "state"]
    Path("data/bigann/bigann_learn.bvecs").unlink()
    code, out, err = run(capsys, "bigann1B", "small=true", f"mirror={server.address}", "json=true", "resume=true")
    result = json.loads(out)
    assert code == 0 and (result["downloaded"], result["skipped"]) == (1, 3)
    assert {file["path"]: file["bytes"] for file in result["files"]} == SIZES
    assert err.count("exists: skipped") == 3


def test_a_set_of_a_billion_serves_for_its_first_million(server, capsys):
    Path("data/bigann").mkdir(parents=True)
    write_vectors("data/bigann/bigann_base.bvecs", np.concatenate([ROWS, ROWS]))
    code, out, _ = run(capsys, "bigann1M", f"mirror={server.address}", "json=true")
    states = {file["path"]: file["state"] for file in json.loads(out)["files"]}
    assert (code, states.pop("data/bigann/bigann_base.bvecs")) == (0, "skipped")
    assert set(states.values()) == {"downloaded"}


@pytest.mark.parametrize("arguments, code, message", [
    (["bigan1M"], 2, "Did you mean bigann1M?"), (["bigann1M", "mirror=x"], 2, "mirror=x"),
    (["bigann1M", "bigann1B"], 2, "data/bigann/bigann_base.bvecs"), ([], 2, "name"),
])  # fmt: skip
def test_mistakes_are_one_line_and_fetch_nothing(capsys, arguments, code, message):
    result, out, err = run(capsys, *arguments)
    assert (result, out) == (code, "") and message in err and err.count("\n") == 1
    assert listing() == set()
