"""The JSON header of our safetensors files, read without torch.

It is the string under the key "qinco" of the file's metadata: an object with `kind`, `format_version` and what the kind
defines (docs/formats.md).
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qinco.errors import DataError
from qinco.vectors.mapped import file_size

FORMAT_VERSION = 1
KEY = "qinco"


def read_header(path: str | os.PathLike) -> dict:
    """The header of a file of ours; the tensors are not read. Raises DataError for anything else."""
    with open_tensors(path, "numpy") as (header, _):
        return header


@contextmanager
def open_tensors(path: str | os.PathLike, framework: str) -> Iterator[tuple[dict, safe_open]]:
    """The header of a file of ours, and the file, whose tensors come as those of `framework` ("numpy", "pt").

    Raises DataError where the file is missing, damaged, foreign or of a newer format.
    """
    path = Path(path)
    if file_size(path) == 0:
        raise DataError(f"{path} is empty")
    try:
        with safe_open(path, framework=framework) as file:
            yield _parse(path, file.metadata()), file
    except (SafetensorError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise DataError(f"{path} is not a readable safetensors file, as codecs are: {reason}") from None


def _parse(path: Path, metadata: dict | None) -> dict:
    if not metadata or KEY not in metadata:
        raise DataError(f"{path} is a safetensors file, but not one of qinco's")
    try:
        header = json.loads(metadata[KEY])
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
