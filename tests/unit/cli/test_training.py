"""`qinco train`: what it says, and settings that do nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import random_vectors

from qinco.cli import main

SMALL = ["M=2", "K=8", "L=1", "de=4", "dh=6", "C=8", "B=2", "epochs=2", "batch=64", "precision=float32", "cpu=true"]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", random_vectors(300, 4))
    return ["train", "trainset=x.npy", "output=y.safetensors", *SMALL]


@pytest.mark.parametrize(("more", "warned"), [
    (["ivf_K=1024"], True), (["ivf_K=null"], False), (["ivf_K=1024", "ivf_centroids=c.npy"], False),
    (["ivf_K=1024", "model=m.safetensors"], False),
])  # fmt: skip
def test_a_number_of_centroids_alone_does_nothing(more, warned, words, capsys):
    assert main([*words, "ds.valset=299", *more]) in (2, 3)  # ends before the run begins
    assert ("ivf_K=1024 has no effect" in capsys.readouterr().err) == warned


def test_a_run_is_told_in_lines_and_ends_in_a_result(words, capsys):
    assert main([*words, "mse_scale=1000", "json=true"]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert "vectors (30 for validation)" in lines[0] and "start: mse" in lines[1]
    assert [line.split(":")[0] for line in lines[2:4]] == ["epoch 1/2", "epoch 2/2"]
    result = json.loads(out)
    errors = [json.loads(line)["mse"] for line in Path("y.safetensors.jsonl").read_text().splitlines()]
    assert result["mse"] == pytest.approx(1000 * min(errors))
    assert result["num_vectors"] == 300 and result["bytes_per_vector"] == 0.75


def test_nothing_but_warnings_without_verbose(words, capsys):
    assert main([*words, "verbose=false", "lr=2"]) == 0
    assert all("warning" in line for line in capsys.readouterr().err.splitlines())


def test_parts_and_curves(words, capsys, tmp_path):
    assert main([*words, "pq=2", "opq=true", "tensorboard=board"]) == 0
    assert "part 2 of 2" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "board").iterdir()) == ["part_0", "part_1"]


@pytest.mark.parametrize(("more", "fact"), [
    (["opq=true"], "(pq)"), (["pq=2", "ivf_centroids=c.npy"], "(ivf_centroids)"),
    (["model=m.safetensors", "model_args=qinco2-S"], "model_args"), (["output=y.npy"], "y.npy"),
    (["output=x.npy"], "x.npy"), (["tensorboard=x.npy"], "tensorboard"),
])  # fmt: skip
def test_settings_that_exclude_each_other_are_refused(more, fact, words, capsys, tmp_path):
    kept = [word for word in words if not any(word.split("=")[0] == other.split("=")[0] for other in more)]
    assert main([*kept, *more]) == 2
    assert fact in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]
