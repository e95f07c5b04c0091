"""Tensors and one JSON header in a safetensors file, written whole or not at all, read without executing anything.

The header, under the key "qinco" of the file's metadata, is described in docs/formats.md. Reading it needs no torch.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from qinco.atomic import write_atomically
from qinco.errors import DataError
from qinco.vectors.mapped import file_size, read_start

FORMAT_VERSION = 1
KEY = "qinco"
_HELD = {"codec": "a codec (model=)", "pairwise": "a pairwise decoder (pairwise_decoder=)"}  # by kind


def write_tensors(path: str | os.PathLike, kind: str, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays and a header of JSON values to `path`, which is replaced when all is on disk."""
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **header}, sort_keys=True)
    # Not by save_file, whose own temporary file would stay where a process is killed.
    content = save({name: np.require(array, requirements="C") for name, array in arrays.items()}, {KEY: text})
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: str | os.PathLike, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Header and arrays of a file of ours that holds a `kind`; raises DataError for any other file."""
    wanted = _held(kind).partition(" (")[0]
    with open_tensors(path, f"{wanted} file") as (header, file):
        if header["kind"] != kind:
            remedy = f": give {str(path).removesuffix('.last')}" if str(path).endswith(".last") else ""
            raise DataError(f"{path} holds {_held(header['kind'])}, not {wanted}{remedy}")
        return header, {name: _array(path, name, file) for name in file.keys()}  # noqa: SIM118


def _array(path, name: str, file) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (TypeError, ValueError, AttributeError, KeyError):  # bfloat16 and shorter floats, which numpy has not
        kind = file.get_slice(name).get_dtype()
        raise DataError(f"{path} does not fit its configuration: tensor {name} is {kind:.20}, not float32") from None


def read_header(path: str | os.PathLike) -> dict:
    """The header of a file of ours, without its tensors; raises DataError for any other file."""
    with open_tensors(path) as (header, _):
        return header


def find_content(path: str | os.PathLike) -> str | None:
    """What a file of ours holds, in words with the key that takes it; None for any other file."""
    with suppress(DataError):
        return _held(read_header(path)["kind"])
    return None


@contextmanager
def open_tensors(path, wanted: str = "a file that qinco knows") -> Iterator[tuple[dict, safe_open]]:
    """The header of a file of ours, and the open file."""
    file_size(Path(path), wanted)
    if read_start(Path(path), 9)[8:] != b"{":
        raise DataError(f"{path} is not a readable safetensors file: give {wanted}")
    try:
        with safe_open(path, framework="numpy") as file:
            yield _parse(path, file.metadata() or {}), file
    except (SafetensorError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{path} is not a readable safetensors file: {reason}") from None


def _held(kind: str) -> str:
    return _HELD.get(kind, f"a {kind:.50}")


def _parse(path: str | os.PathLike, metadata: dict) -> dict:
    if KEY not in metadata:
        raise DataError(f"{path} is a safetensors file that qinco did not write: it has no qinco header")
    try:
        header = json.loads(metadata[KEY])
        version, is_sound = header["format_version"], isinstance(header["kind"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        version, is_sound = None, False
    if not is_sound or not isinstance(version, int):
        raise DataError(f"{path} has a damaged qinco header")
    if version > FORMAT_VERSION:
        raise DataError(f"{path} has format version {version}, newer than {FORMAT_VERSION}: update qinco")
    return header
