"""The state of a training run, from which it continues exactly: `X.last` beside the codec `X`."""

import os
from pathlib import Path

from torch import Tensor

from qinco.errors import DataError
from qinco.store.tensors import read_tensors, write_tensors

KIND = "training state"
_PARTS = {
    "model": dict, "encode": dict, "train": dict, "progress": dict, "best": dict, "num_vectors": int, "fingerprint": str
}  # fmt: skip


def state_path(output: str | os.PathLike) -> Path:
    """Path of the state of the run that writes `output`."""
    return Path(f"{output}.last")


def save_state(output, header: dict, tensors: dict[str, Tensor]) -> None:
    """Write the state of the run of `output`; docs/formats.md names the fields of the header and the tensors."""
    assert set(header) == set(_PARTS)
    write_tensors(state_path(output), KIND, header, tensors)


def load_state(output: str | os.PathLike) -> tuple[dict, dict[str, Tensor]] | None:
    """Header and tensors that `save_state` wrote, on the CPU; None without a file. Raises DataError if damaged."""
    path = state_path(output)
    if not path.exists():
        return None
    header, tensors = read_tensors(path, KIND)
    for name, kind in _PARTS.items():
        if not isinstance(header.get(name), kind):
            raise DataError(f"{path} has a damaged qinco header: {name} is missing")
    return header, tensors
