"""Tensors and one JSON header in a safetensors file, written whole or not at all, read without executing anything."""

import json
import os

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from qinco.atomic import write_atomically
from qinco.errors import DataError, ResourceError
from qinco.store.header import FORMAT_VERSION, KEY, open_tensors


def write_tensors(path: str | os.PathLike, kind: str, header: dict, tensors: dict[str, Tensor]) -> None:
    """Write tensors and a header of JSON values to `path`, which is replaced only when all is on disk."""
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **header}, sort_keys=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with write_atomically(path) as temporary:
        try:
            save_file(plain, temporary, metadata={KEY: text})
        except SafetensorError as error:  # of a full disk, say, it has the text only
            raise ResourceError(f"cannot write {path}: {error}") from error


def read_tensors(path: str | os.PathLike, kind: str) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a file of ours that holds a `kind`, on the CPU.

    Raises DataError where the file is missing, damaged, foreign, of another kind or of a newer format.
    """
    with open_tensors(path, "pt") as (header, file):
        if header["kind"] != kind:
            raise DataError(f"{path} holds a {header['kind']}, not a {kind}")
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
