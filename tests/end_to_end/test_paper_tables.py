"""`benchmarks/paper.py` on small files that lie where the papers' data sets do."""

import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from published_server import http_server
from small_models import random_vectors

import qinco
from qinco.codec.codec import Codec
from qinco.datasets.catalogue import DATASETS, find_files
from qinco.vectors.formats import write_vectors

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DIM = 16


@pytest.fixture(scope="module")
def paper():
    sys.path.insert(0, str(BENCHMARKS))  # as when it is run
    yield importlib.import_module("paper")
    sys.path.remove(str(BENCHMARKS))
    for name in ("paper", "paper_tables"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return random_vectors(1400, DIM)


@pytest.fixture(scope="module")
def codec(vectors) -> Codec:
    return Codec.fit(
        vectors,
        None,
        num_steps=8,
        codebook_size=16,
        num_blocks=1,
        hidden_dim=8,
        epochs=1,
        num_candidates=4,
        beam_width=4,
    )


def lay(folder: Path, data_set: str, vectors: np.ndarray) -> None:
    """Files of a data set: 1,000 training vectors, 380 to search, 20 queries, and which are nearest."""
    files = DATASETS[data_set]
    train, base, queries = vectors[:1000], vectors[1000:1380], vectors[1380:]
    _, nearest = qinco.exhaustive_search(queries, base, 10, metric="l2")
    parts = {files.trainset: train, files.database: base, files.queries: queries, files.ground_truth: nearest}
    for name, array in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ids = array.astype(np.int32) if array is nearest else array
        write_vectors(folder / name, ids)


def lay_model(folder: Path, name: str, codec: Codec) -> None:
    target = folder / find_files([name])[0].target
    target.parent.mkdir(parents=True, exist_ok=True)
    codec.save(target)


@pytest.fixture
def folder(tmp_path, vectors, codec) -> Path:
    lay(tmp_path, "deep1M", vectors)
    lay_model(tmp_path, "deep_8x8_L16", codec)
    return tmp_path


def test_ours_stand_beside_the_papers_figures(paper, folder, vectors, codec, capsys):
    assert paper.main(["table=1", f"folder={folder}", "datasets=deep1M", "bytes=8", "device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[word.strip(" *") for word in line.split("|")[1:-1]] for line in lines if line.startswith("| Deep")]
    assert [row[2] for row in rows] == ["OPQ", "RQ", "LSQ", "UNQ", "QINCo, their checkpoint"]
    assert rows[0][3:7] == ["0.26", "", "15.9", ""] and rows[-1][3:7:2] == ["0.12", "36.3"]
    base, queries = vectors[1000:1380], vectors[1380:]
    found = json.loads((folder / "paper" / "1.json").read_text())["deep1M 8 bytes published"]
    assert found["model"] == "deep_8x8_L16" and found["vectors"] == 380 and found["queries"] == 20
    assert rows[-1][4] == f"{found['mse']:.4g}" and rows[-1][7] == "380"
    codes = qinco.Codes.load(
        folder / "paper" / "codes-1-deep_8x8_L16", Codec.load(folder / "models" / "deep_8x8_L16.pt")
    )
    decoded = codec.decode(codes[:])
    assert found["mse"] == pytest.approx(np.square(decoded - base).sum(1).mean(), rel=1e-5)
    nearest = [np.square(decoded - query).sum(1).argmin() for query in queries]
    exact = [np.square(base - query).sum(1).argmin() for query in queries]
    assert found["recall"]["1"] == np.mean(np.equal(nearest, exact))


def test_errors_have_the_units_of_the_paper(paper, tmp_path, vectors, codec):
    shifted = np.clip(vectors * 8 + 100, 0, 255).round().astype(np.uint8)
    lay(tmp_path, "bigann1M", shifted)
    lay_model(tmp_path, "bigann_8x8_L16", codec)
    cells = paper.measure_all(
        paper.read(["table=1", f"folder={tmp_path}", "datasets=bigann1M", "bytes=8", "device=cpu"])
    )
    codes = qinco.Codes.load(tmp_path / "paper" / "codes-1-bigann_8x8_L16")
    error = np.square(codec.decode(codes[:]) - shifted[1000:1380].astype(np.float32)).sum(1).mean()
    assert cells["bigann1M 8 bytes published"]["mse"] == pytest.approx(error * 1e-4, rel=1e-5)


def test_the_same_command_measures_nothing_twice(paper, folder, codec):
    words = ["table=qinco2", f"folder={folder}", "datasets=deep1M", "bytes=8", "device=cpu"]
    lay_model(folder, "qinco2_L-deep1M-8x8", codec)
    run = paper.read(words)
    first = paper.measure_all(run)
    assert (first["deep1M 8 bytes published"]["A"], first["deep1M 8 bytes published"]["B"]) == (16, 64)
    (folder / "models" / "qinco2_L-deep1M-8x8.pt").unlink()  # would be missed
    assert paper.measure_all(run) == first
    assert "34 % lower" in paper.report(run, first)


def test_a_codec_is_trained_where_that_is_asked_for(paper, folder):
    words = ["table=1", f"folder={folder}", "datasets=deep1M", "bytes=8", "models=train", "device=cpu"]
    words += ["preset=qinco2-XS", "epochs=1"]
    cells = paper.measure_all(paper.read(words))
    found = cells["deep1M 8 bytes trained-preset=qinco2-XS-epochs=1"]
    codec = Codec.load(folder / "paper" / f"{found['model']}.safetensors")
    assert codec.num_codes == 8 and codec.config.hidden_dim == 128
    assert "trained here" in paper.report(paper.read(words), cells)


def test_what_is_missing_is_downloaded(paper, tmp_path, vectors, codec, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    lay(there, "bigann1M", np.clip(vectors * 8 + 100, 0, 255).round().astype(np.uint8))
    lay_model(there, "bigann_8x8_L16", codec)
    with http_server() as server:
        for name in ("bigann1M", "bigann_8x8_L16"):
            for file in find_files([name], mirror=server.address):
                content = (there / file.target).read_bytes()
                packed = gzip.compress(content) if file.packing == "gzip" else content
                server.files[file.address.removeprefix(server.address)] = packed
        words = ["table=1", f"folder={here}", "datasets=bigann1M", "bytes=8", "device=cpu", f"mirror={server.address}"]
        assert paper.measure_all(paper.read(words))["bigann1M 8 bytes published"]["vectors"] == 380
    assert (here / "models" / "bigann_8x8_L16.pt").exists()


@pytest.mark.parametrize(
    "words", [[], ["table=7"], ["table=1", "bytes=12"], ["table=1", "minutes=3"], ["table=1", "k"]]
)
def test_a_wrong_setting_is_one_sentence(words, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "paper.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
