"""`qinco ivf_centroids` replaces nothing that it reads, on a cluster or here."""

import numpy as np
import pytest

from qinco.cli import main
from qinco.cli.tasks import centroids
from qinco.executors import in_this_process

X = np.random.default_rng(0).standard_normal((400, 4), np.float32)


@pytest.fixture(params=[None, in_this_process])
def run(request, tmp_path, monkeypatch, capsys):
    """Runs the task with keys, here or as on a cluster: exit code and what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(centroids, "executor_of", lambda settings: request.param)
    np.save("tr.npy", X)

    def call(*keys: str) -> tuple[int, str]:
        code = main(["ivf_centroids", "ivf_K=4", "trainset=tr.npy", *keys])
        return code, capsys.readouterr().err

    return call


def test_training_vectors_stay(run):
    code, said = run("output=tr.npy", "overwrite=true")
    assert code == 2 and "tr.npy" in said
    np.testing.assert_array_equal(np.load("tr.npy"), X)


def test_centroids_are_replaced(run):
    assert run("output=c.npy")[0] == 0
    assert run("output=c.npy")[0] == 2
    assert run("output=c.npy", "overwrite=true")[0] == 0
    assert np.load("c.npy").shape == (4, 4)


def test_addresses_are_refused(run, tmp_path):
    code, said = run("output=s3://bucket/c.npy")
    assert code == 2 and "s3://bucket/c.npy" in said
    assert [path.name for path in tmp_path.iterdir()] == ["tr.npy"]
