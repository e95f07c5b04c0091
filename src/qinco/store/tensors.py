"""Tensors and one JSON header in a safetensors file, written whole or not at all, read without executing anything.

The header, under the key "qinco" of the file's metadata, is described in docs/formats.md. Reading it needs no torch.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from qinco.atomic import write_atomically
from qinco.errors import DataError, ResourceError
from qinco.vectors.mapped import file_size

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
KEY = "qinco"


def write_tensors(path: str | os.PathLike, kind: str, header: dict, tensors: "dict[str, Tensor]") -> None:
    """Write torch tensors and a header of JSON values to `path`, which is replaced when all is on disk."""
    from safetensors.torch import save_file

    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **header}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        try:
            save_file(plain, temporary, metadata={KEY: text})
        except SafetensorError as error:  # a full disk comes as this, with its text only
            raise ResourceError(f"cannot write {path}: {error}") from error


def read_tensors(path: str | os.PathLike, kind: str) -> "tuple[dict, dict[str, Tensor]]":
    """Header and tensors, on the CPU, of a file of ours that holds a `kind`; raises DataError for any other file."""
    with open_tensors(path, "pt") as (header, file):
        if header["kind"] != kind:
            raise DataError(f"{path} holds a {header['kind']}, not a {kind}")
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_header(path: str | os.PathLike) -> dict:
    """The header of a file of ours, without its tensors; raises DataError for any other file."""
    with open_tensors(path, "numpy") as (header, _):
        return header


@contextmanager
def open_tensors(path: str | os.PathLike, framework: str) -> Iterator[tuple[dict, safe_open]]:
    """The header of a file of ours, and the open file, whose tensors come as those of `framework` ("numpy", "pt")."""
    file_size(Path(path))
    try:
        with safe_open(path, framework=framework) as file:
            yield _parse(path, file.metadata() or {}), file
    except (SafetensorError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{path} is not a readable safetensors file: {reason}") from None


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
