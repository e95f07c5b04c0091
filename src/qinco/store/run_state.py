"""The state of a training run, from which it continues exactly: `X.last` beside the codec `X`."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.store.tensors import read_tensors, write_tensors

KIND = "training state"
_PARTS = {
    "model": dict, "encode": dict, "train": dict, "progress": dict, "best": dict, "num_vectors": int, "fingerprint": str
}  # fmt: skip


def state_path(output: str | os.PathLike) -> Path:
    """Path of the state of the run that writes `output`."""
    return Path(f"{output}.last")


def save_state(output, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write the state of the run of `output`; docs/formats.md names the fields of the header and the tensors."""
    assert set(header) == set(_PARTS)
    write_tensors(state_path(output), KIND, header, arrays)


def load_state(output: str | os.PathLike) -> tuple[dict, dict[str, np.ndarray]] | None:
    """Header and arrays that `save_state` wrote; None without a file. Raises DataError if damaged."""
    path = state_path(output)
    if not path.exists():
        return None
    header, arrays = read_tensors(path, KIND)
    for name, kind in _PARTS.items():
        if not isinstance(header.get(name), kind):
            raise DataError(f"{path} has a damaged qinco header: {name} is missing")
    return header, arrays


def describe_log(path: str | os.PathLike) -> dict:
    """What a training log, `X.jsonl` beside the codec `X`, says of its run, as JSON values; raises DataError."""
    epochs = []
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError, RecursionError):  # the last line of a killed run may be cut
                epochs.append(json.loads(line))
    try:
        best = min((epoch for epoch in epochs if _is_finite(epoch["mse"])), key=lambda epoch: epoch["mse"])
        last = epochs[-1]
        return {
            "kind": "training log",
            "epoch": last["epoch"],
            "epochs": last["epochs"],
            "best_epoch": best["epoch"],
            "best_mse": best["mse"],
            "seconds": last["seconds"],
        }
    except (KeyError, ValueError, IndexError, TypeError):
        raise DataError(f"{path} is no training log: its lines are not what training writes for an epoch") from None


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
