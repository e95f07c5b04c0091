"""Training codecs of several parts (PQ-QINCo)."""

import numpy as np
import pytest
from small_models import random_vectors

from qinco.codec.fit import fit
from qinco.errors import ConfigError, DataError
from qinco.store.codec import load_models

SMALL = {
    "num_steps": 2, "codebook_size": 8, "num_blocks": 1, "embed_dim": 4, "hidden_dim": 6, "num_pairs": 8,
    "beam_width": 2, "epochs": 2, "batch_size": 64, "precision": "float32", "device": "cpu", "num_parts": 2,
}  # fmt: skip


def error(provenance: dict, x_ND: np.ndarray) -> float:
    """Mean squared error of the validation vectors, all parts together."""
    return provenance["valid_mse"] / x_ND.var(0).sum()


@pytest.mark.parametrize("rotate", [False, True])
def test_every_part_has_a_model(tmp_path, rotate):
    x_ND = random_vectors(400, 6)
    models, rotation_DD, options, provenance = fit(
        x_ND, output=tmp_path / "x.safetensors", **SMALL | {"num_parts": 3, "rotate": rotate}
    )
    assert [model.config.dim for model in models] == [2, 2, 2]
    assert error(provenance, x_ND) < 0.3
    assert (rotation_DD is not None) == rotate
    saved = load_models(tmp_path / "x.safetensors")
    assert len(saved[0]) == 3 and saved[2:] == (options, provenance)
    assert not rotate or np.array_equal(saved[1], rotation_DD)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_rotation_helps_where_the_parts_depend_on_each_other():
    """All variance lies in the first part: rotated, both parts share it."""
    x_ND = random_vectors(400, 6) * np.array([9, 9, 9, 0.01, 0.01, 0.01], np.float32)
    assert error(fit(x_ND, rotate=True, **SMALL)[3], x_ND) < error(fit(x_ND, **SMALL)[3], x_ND)


def test_a_finished_codec_is_not_trained_again_by_resume(tmp_path):
    x_ND, reports = random_vectors(200, 6), []
    fitted = fit(x_ND, output=tmp_path / "x.safetensors", **SMALL)
    before = (tmp_path / "x.safetensors").read_bytes()
    resumed = fit(x_ND, output=tmp_path / "x.safetensors", resume=True, on_report=reports.append, **SMALL)
    assert reports == [] and resumed[3] == fitted[3] and len(resumed[0]) == 2
    assert (tmp_path / "x.safetensors").read_bytes() == before
    with pytest.raises(ConfigError, match="3"):
        fit(x_ND, output=tmp_path / "x.safetensors", resume=True, **SMALL | {"num_parts": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_parts": 4}, "dimension 6, not 4"),
        ({"num_parts": 0}, "num_parts"),
        ({"num_parts": 2.0}, r"num_parts.* not 2\.0"),
        ({"num_parts": 1}, "rotate"),
        ({"recipe": "best"}, "recipe"),
        ({"coarse_centroids": np.zeros((2, 6))}, "coarse_centroids"),
        ({"initial": "x.safetensors"}, "initial"),
        ({"output": "x.pt"}, r"x\.pt"),
        ({"epoch": 3}, "epochs"),
        ({"codebook_size": 3}, "codebook_size"),
        ({"num_valid": 150}, "num_valid"),
        ({"seed": None}, "seed"),
        ({"output": "/nowhere/x"}, "/nowhere"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    stages = []
    with pytest.raises(ConfigError, match=message):
        fit(
            random_vectors(200, 6), progress=lambda stage, *_, **__: stages.append(stage),
            **SMALL | {"rotate": True, "output": "x.safetensors"} | settings,
        )  # fmt: skip
    assert stages == [] and list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_found_before_the_rotation():
    x_ND = random_vectors(200, 6)
    x_ND[33, 4] = np.nan
    with pytest.raises(DataError, match="row 33 "):
        fit(x_ND, rotate=True, **SMALL)
