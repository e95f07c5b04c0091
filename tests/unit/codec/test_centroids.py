"""Coarse centroids of sources of any size."""

import logging

import numpy as np
import pytest
from small_models import random_vectors

import qinco
from qinco.codec.centroids import kmeans
from qinco.errors import ConfigError, DataError


def test_centroids_are_written_and_returned(tmp_path):
    np.save(tmp_path / "x.npy", random_vectors(500, 4))
    stages = []
    found = qinco.kmeans(
        tmp_path / "x.npy", 10, num_iterations=5, device="cpu", output=tmp_path / "c.npy",
        progress=lambda stage, done, total, unit, **fields: stages.append((stage, done, total, unit)),
    )  # fmt: skip
    assert found.shape == (10, 4) and found.dtype == np.float32
    assert np.array_equal(np.load(tmp_path / "c.npy"), found)
    assert stages[0] == ("checking vectors", 500, 500, "vector")
    assert stages[1:] == [("k-means", done, 5, "iteration") for done in range(1, 6)]


def test_centroids_depend_on_the_seed_alone():
    x = random_vectors(500, 4)
    one, two, other = (kmeans(x, 10, seed=seed, device="cpu") for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)


@pytest.mark.parametrize(("num_vectors", "points", "sample"), [(3000, 256, 2560), (3000, 1, 512), (200, 256, 200)])
def test_large_sources_are_sampled(num_vectors, points, sample, caplog):
    x = random_vectors(num_vectors, 4)
    with caplog.at_level(logging.INFO, "qinco"):
        found = kmeans(x, 10, max_points_per_centroid=points, device="cpu")
    assert len(np.unique(found, axis=0)) == 10
    taken = int(caplog.messages[-1].split()[2].replace(",", ""))
    assert sample - 255 <= taken <= sample  # whole runs of rows, of which the last may be short
    assert any("390" in message for message in caplog.messages) == (num_vectors < 390)


@pytest.mark.parametrize(
    ("settings", "error", "fact"),
    [
        ({"num_centroids": 21}, DataError, "21 vectors.* not 20"),
        ({"num_centroids": 0}, ConfigError, "ivf_K"),
        ({"num_iterations": 0}, ConfigError, "num_iterations"),
        ({"max_points_per_centroid": 0}, ConfigError, "max_points_per_centroid"),
        ({"device": "gpu"}, ConfigError, "gpu"),
        ({"output": "c.fvecs"}, ConfigError, r"c\.fvecs"),
        ({"output": "old.npy"}, ConfigError, r"old\.npy"),
        ({"x": np.full((20, 3), np.inf)}, DataError, "row 0 "),
    ],
)
def test_mistakes_are_found_before_any_work(tmp_path, monkeypatch, settings, error, fact):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.npy").write_text("precious")
    with pytest.raises(error, match=fact):
        kmeans(**{"x": random_vectors(20, 3), "num_centroids": 2, "device": "cpu"} | settings)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
