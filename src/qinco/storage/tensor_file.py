"""Tensors and one JSON header in a safetensors file, written whole or not at all, read without executing anything.

The header is the string under the key "qinco" of the file's metadata: an object with `kind`, `format_version` and
what the kind defines (docs/formats.md).
"""

import json
import os
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qinco.errors import DataError
from qinco.files import write_atomically

FORMAT_VERSION = 1
_KEY = "qinco"


def write_tensors(path: str | os.PathLike, kind: str, header: dict, tensors: dict[str, Tensor]) -> None:
    """Write tensors and a header of JSON values to `path`, which is replaced only when all is on disk."""
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **header}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        save_file(plain, temporary, metadata={_KEY: text})


def read_header(path: str | os.PathLike) -> dict:
    """The header of a file of ours; the tensors are not read. Raises DataError for anything else."""
    return _read(path, None)[0]


def read_tensors(path: str | os.PathLike, kind: str, device: str = "cpu") -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a file of ours that holds a `kind`.

    Raises DataError where the file is missing, damaged, foreign, of another kind or of a newer format.
    """
    header, tensors = _read(path, device)
    if header["kind"] != kind:
        raise DataError(f"{path} holds a {header['kind']}, not a {kind}")
    return header, tensors


def _read(path, device: str | None) -> tuple[dict, dict[str, Tensor]]:
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    try:
        with safe_open(path, framework="pt", device=device or "cpu") as file:
            header = _parse(path, file.metadata())
            names = file.keys() if device is not None else ()
            return header, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{path} is not a readable safetensors file: {reason}") from None


def _parse(path: Path, metadata: dict | None) -> dict:
    if not metadata or _KEY not in metadata:
        raise DataError(f"{path} is a safetensors file, but not one of qinco's")
    try:
        header = json.loads(metadata[_KEY])
        version, kind = header["format_version"], header["kind"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path} has a damaged qinco header") from None
    if not isinstance(version, int) or not isinstance(kind, str):
        raise DataError(f"{path} has a damaged qinco header")
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} is of format version {version}, this qinco reads up to {FORMAT_VERSION}: install a newer qinco"
        )
    return header
