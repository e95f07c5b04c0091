"""Training of several models, one for each part of the columns."""

import numpy as np
import pytest
from small_models import random_vectors

from qinco.codec import Codec
from qinco.codec.fit_parts import fit_rotation
from qinco.errors import ConfigError
from qinco.vectors.rows import as_source

SMALL = {
    "num_steps": 2, "codebook_size": 8, "num_blocks": 1, "embed_dim": 4, "hidden_dim": 6, "num_pairs": 8,
    "beam_width": 2, "epochs": 2, "batch_size": 64, "precision": "float32", "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize("rotate", [False, True])
def test_fit_trains_every_part(tmp_path, rotate):
    x = random_vectors(400, 6)
    codec = Codec.fit(x, num_parts=3, rotate=rotate, output=tmp_path / "x", **SMALL)
    assert (len(codec.models), codec.dim, codec.num_codes) == (3, 6, 6)
    error = np.square(codec.decode(codec.encode(x)) - x).sum(1).mean()
    assert error < 0.3 * x.var(0).sum()
    loaded = Codec.load(tmp_path / "x")
    np.testing.assert_allclose(loaded.decode(codec.encode(x)), codec.decode(codec.encode(x)))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (codec.rotation_DD is not None) == rotate


@pytest.mark.parametrize("count", [9, 100, 400])
def test_the_rotation_is_one(capfd, count):
    rotation = fit_rotation(as_source(random_vectors(count, 6)), 2, 0)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(6), atol=1e-5)
    assert capfd.readouterr().err == ""  # faiss warns there about few vectors


def test_the_rotation_helps_where_the_parts_depend_on_each_other():
    """All variance lies in the first part: rotated, both parts share it."""
    x = random_vectors(400, 6) * np.array([9, 9, 9, 0.01, 0.01, 0.01], np.float32)
    errors = []
    for rotate in (False, True):
        codec = Codec.fit(x, num_parts=2, rotate=rotate, **SMALL)
        errors.append(np.square(codec.decode(codec.encode(x)) - x).sum(1).mean())
    assert errors[1] < errors[0]


def test_a_finished_codec_is_not_trained_again_by_resume(tmp_path):
    x = random_vectors(200, 6)
    Codec.fit(x, num_parts=2, output=tmp_path / "x", **SMALL)
    before = (tmp_path / "x").read_bytes()
    resumed = Codec.fit(x, num_parts=2, output=tmp_path / "x", resume=True, **SMALL)
    assert (resumed.encode(x) == Codec.load(tmp_path / "x").encode(x)).all()
    assert (tmp_path / "x").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_parts": 4}, "must divide the dimension 6, not 4"),
        ({"num_parts": 1}, "must be at least 2"),
        ({"num_parts": 2.0}, "must be an integer, not 2.0"),
        ({"recipe": "best"}, "recipe must be one of"),
        ({"coarse_centroids": np.zeros((2, 6))}, "cannot be trained with coarse_centroids"),
        ({"epoch": 3}, "unknown setting 'epoch': did you mean epochs"),
        ({"codebook_size": 3}, "power of two"),
        ({"num_valid": 150}, "more than half"),
        ({"seed": None}, "seed must be an integer"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, monkeypatch, settings, message):
    def never(*args):
        raise AssertionError("work began")

    monkeypatch.setattr("qinco.codec.fit_parts.fit_rotation", never)
    with pytest.raises(ConfigError, match=message):
        Codec.fit(random_vectors(200, 6), output=tmp_path / "x", **SMALL | {"num_parts": 2, "rotate": True} | settings)
    assert list(tmp_path.iterdir()) == []
