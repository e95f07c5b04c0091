import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qinco.errors import DataError
from qinco.store.run_state import load_state, save_state, state_path

HEADER = {
    "model": {"dim": 2},
    "encode": {},
    "train": {"lr": 0.1},
    "progress": {"epoch": 1},
    "best": {"epoch": 1},
    "num_vectors": 9,
    "fingerprint": "a",
}


def test_a_state_survives(tmp_path):
    save_state(tmp_path / "x.safetensors", HEADER, {"a": np.arange(3)})
    assert state_path(tmp_path / "x.safetensors").name == "x.safetensors.last"
    header, arrays = load_state(tmp_path / "x.safetensors")
    assert {name: header[name] for name in HEADER} == HEADER
    assert arrays["a"].tolist() == [0, 1, 2]


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path / "x") is None


@pytest.mark.parametrize("name", HEADER)
def test_an_incomplete_state_is_refused(tmp_path, name):
    header = {"kind": "training state", "format_version": 1} | {k: v for k, v in HEADER.items() if k != name}
    save_file({"a": torch.zeros(1)}, tmp_path / "x.last", metadata={"qinco": json.dumps(header)})
    with pytest.raises(DataError, match=f"damaged qinco header: {name} is missing"):
        load_state(tmp_path / "x")


def test_a_truncated_state_is_refused(tmp_path):
    save_state(tmp_path / "x", HEADER, {"a": torch.arange(100)})
    path = state_path(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="not a readable safetensors file"):
        load_state(tmp_path / "x")
