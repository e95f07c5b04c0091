import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import ARCHITECTURES, random_model

from qinco.config import EncodeOptions
from qinco.errors import DataError
from qinco.store.codec import load_models, save_models
from qinco.store.run_state import save_state

RULE = EncodeOptions(num_pairs=5, beam_width=3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_survives(tmp_path, name):
    model = random_model(ARCHITECTURES[name])
    rule = RULE if model.config.has_preselector else EncodeOptions(beam_width=2)
    save_models(tmp_path / "x", [model.weights()], None, rule, {"epoch": 3})
    (loaded,), rotation, options, provenance = load_models(tmp_path / "x")
    assert (loaded.config, rotation, options, provenance) == (model.config, None, rule, {"epoch": 3})
    assert loaded.arrays.keys() == model.state_dict().keys()
    assert all(np.array_equal(tensor, loaded.arrays[name]) for name, tensor in model.state_dict().items())


def test_parts_and_their_rotation_survive(tmp_path):
    models = [random_model(ARCHITECTURES["projected"], seed).weights() for seed in range(3)]
    rotation_DD = torch.linalg.qr(torch.randn(9, 9)).Q.numpy()
    save_models(tmp_path / "x", models, rotation_DD, RULE, {})
    loaded, rotation, _, _ = load_models(tmp_path / "x")
    assert len(loaded) == 3 and np.array_equal(rotation, rotation_DD)
    for a, b in zip(models, loaded, strict=True):
        assert np.array_equal(a.step(2).codebook_KD, b.step(2).codebook_KD)


@pytest.fixture
def path(tmp_path):
    save_models(tmp_path / "x", [random_model(ARCHITECTURES["projected"]).weights()], None, RULE, {})
    return tmp_path / "x"


def rewrite(path, change_header=lambda header: None, change_tensors=lambda tensors: None):
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["qinco"])
    tensors = load_file(path)
    change_header(header)
    change_tensors(tensors)
    save_file(tensors, path, metadata={"qinco": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mean"), "tensor mean is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "tensor extra is unexpected"),
        (lambda t: t.update(mean=torch.zeros(4)), r"tensor mean is \(4,\), not \(3,\)"),
        (lambda t: t.update(mean=torch.zeros(3).double()), "tensor mean is float64, not float32"),
        (lambda t: t.update(mean=torch.zeros(3).bfloat16()), "tensor mean is BF16, not float32"),
        (lambda t: t.update(mean=torch.full((3,), float("nan"))), "tensor mean holds values that are not finite"),
        (lambda t: t.update(rotation=torch.eye(3)), "tensor rotation is unexpected"),
        (lambda t: t.update(scale=torch.tensor(0.0)), "its scale is 0"),
        (lambda t: t.update(scale=torch.tensor(-1.0)), "its scale is -1"),
    ],
)
def test_tensors_that_do_not_fit_are_named(path, change, message):
    rewrite(path, change_tensors=change)
    with pytest.raises(DataError, match=message):
        load_models(path)


@pytest.mark.parametrize("rotation_DD", [np.full((6, 6), np.nan, np.float32), np.eye(6), np.eye(3, dtype=np.float32)])
def test_damaged_rotations_are_refused(tmp_path, rotation_DD):
    models = [random_model(ARCHITECTURES["projected"], seed).weights() for seed in range(2)]
    save_models(tmp_path / "x", models, rotation_DD, RULE, {})
    with pytest.raises(DataError, match="rotation"):
        load_models(tmp_path / "x")


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("model"),
        lambda h: h.update(model=[]),
        lambda h: h["model"].pop("dim"),
        lambda h: h["model"].update(dim=5),
        lambda h: h["model"].update(dim="3"),
        lambda h: h["model"].update(dim=2**70),
        lambda h: h["model"].update(hidden_dim=2**62),
        lambda h: h["model"].update(num_steps=10**9),
        lambda h: h["model"].update(num_blocks=10**12),
        lambda h: h["model"].update(codebook_size=3),
        lambda h: h["model"].update(unknown=1),
        lambda h: h["model"].update(embed_dim=None),
        lambda h: h.pop("encode"),
        lambda h: h["encode"].update(num_pairs=0),
        lambda h: h["encode"].update(num_candidates=3),
        lambda h: h.update(num_parts=0),
        lambda h: h.update(num_parts=2),
        lambda h: h.update(num_parts="1"),
        lambda h: h.update(num_parts=10**12),
        lambda h: h.update(provenance=[1]),
        lambda h: h["model"].update(has_preselector=False),
        lambda h: h["model"].update(has_preselector="yes"),
        lambda h: h["model"].update(dim="x" * 10**6),
        lambda h: h["model"].update(dim=[[[1]]] * 10**5),
    ],
)
def test_headers_that_do_not_fit_are_refused(path, change):
    rewrite(path, change_header=change)
    with pytest.raises(DataError, match=r"x (has a damaged|does not fit).{1,300}$"):
        load_models(path)


def test_promises_cost_nothing(path, monkeypatch):
    """A file that promises many steps is refused before they are built."""
    built = []
    monkeypatch.setattr("qinco.model.qinco.Step", lambda *arguments: built.append(1) or torch.nn.Identity())
    rewrite(
        path,
        lambda h: h["model"].update(num_steps=1000, num_blocks=0),
        lambda t: t.update({f"steps.{m}.codebook.weight": torch.zeros(4, 3) for m in range(3000)}),
    )
    with pytest.raises(DataError, match="does not fit its configuration: tensor"):
        load_models(path)
    assert len(built) <= 2


def test_a_training_state_is_not_a_codec(tmp_path):
    header = {"model": {}, "encode": {}, "train": {}, "progress": {}, "best": {}, "num_vectors": 1, "fingerprint": "a"}
    save_state(tmp_path / "x", header, {"a": np.zeros(1)})
    with pytest.raises(DataError, match="holds a training state, not a codec"):
        load_models(tmp_path / "x.last")
