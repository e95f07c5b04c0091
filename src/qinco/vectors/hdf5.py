"""HDF5, as ann-benchmarks writes it, read by h5py; contiguous data sets are memory-mapped."""

import math
import os
import sys
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.block_rows import BLOCK_BYTES, SlicedRows, choose_part, library, list_names
from qinco.vectors.mapped import MAX_DIM, Format, check_matrix, map_file

_METRIC_WORDS = "distance", "metric", "distance_metric", "metric_type"
_MAX_CHUNKS = 1 << 24  # counting more, as a damaged header may promise, takes minutes


class Hdf5Rows(SlicedRows):
    """The rows of an open h5py data set."""

    def __init__(self, name: str, data, block_bytes: int):
        super().__init__(data, block_bytes, data.chunks[0] if data.chunks else 1)
        self._name = name

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        with library("h5py", "hdf5", self._name):
            return super()._read_block(row)


def open_hdf5(path: Path, size: int, name: str | None, part: str, block_bytes: int = BLOCK_BYTES):
    """A data set of an HDF5 file of `size` bytes: a memory map (N, D) or Hdf5Rows, read `block_bytes` at a time.

    `name` may lie in groups (`group/train`); without one it is `part`, or else the only matrix of the file's groups.
    """
    with library("h5py", "hdf5", path):
        import h5py

        file = _open_file(path, rdcc_nbytes=block_bytes)
        found = {}
        file.visititems(lambda child, data: found.update({child: data}) if isinstance(data, h5py.Dataset) else None)
        found = dict(sorted(found.items(), key=lambda item: "/" in item[0]))
        if name is None:
            matrices = [child for child, data in found.items() if data.ndim == 2 and data.dtype.kind in "fiu"]
            outer = [child for child in matrices if "/" not in child]
            name = part if part in found else choose_part(path, outer or matrices, part, "matrix")
        data = _find(file, name)
        if data is None:
            raise DataError(f"{path} holds no data set {name!r}" + (f", but {list_names(found)}" if found else ""))
        name = f"{path}:{name}"
        check_matrix(data.shape or (), data.dtype, name)
        if data.shape[1] > MAX_DIM:
            raise DataError(f"{name} is damaged: its shape is {data.shape}")
        if data.is_virtual or data.external:
            raise DataError(f"{name} refers to other files, which are never opened: store its values in the file")
        dtype, offset = np.dtype(data.dtype.str), data.id.get_offset()
        if data.shape[0] == 0:
            return np.empty(data.shape, dtype)
        if data.chunks is not None:
            chunks = math.prod(-(-length // chunk) for length, chunk in zip(data.shape, data.chunks, strict=True))
            if chunks > _MAX_CHUNKS or data.id.get_num_chunks() != chunks:
                raise DataError(f"{name} is damaged: not all of the {chunks} chunks of shape {data.shape} are stored")
            return Hdf5Rows(name, data, block_bytes)
        expected = math.prod(data.shape) * dtype.itemsize
        if data.id.get_storage_size() < expected or (offset or 0) + expected > size:
            raise DataError(f"{name} is truncated: its shape {data.shape} needs {expected} bytes")
        if offset is not None and isinstance(path, Path) and data.id.get_type().equal(h5py.h5t.py_create(dtype)):
            return map_file(path, dtype, data.shape, offset)
        return Hdf5Rows(name, data, block_bytes)


def _open_file(path: Path, **options):
    import h5py

    if not isinstance(path, Path):
        return h5py.File(path.open(), "r", **options)
    try:
        return h5py.File(path, "r", locking=False, **options)
    except OSError:  # HDF5 opens no file twice in a process with different locking
        return h5py.File(path, "r", **options)


def _find(group, name: str):
    """The data set of a name, or None. Only hard links are followed: others may lead into other files."""
    import h5py

    for step in name.strip("/").split("/"):
        if not isinstance(group, h5py.Group) or not isinstance(group.get(step, getlink=True), h5py.HardLink):
            return None
        group = group[step]
    return group if isinstance(group, h5py.Dataset) else None


def read_metric(path: Path, name: str | None) -> str | None:
    """What a data set, a group that it is in, or the file says of distances, as ann-benchmarks writes it, or None."""
    with library("h5py", "hdf5", path), _open_file(path) as file:
        holders: list = [_find(file, name or "train") or file]
        while holders[-1].name != "/":
            holders.append(holders[-1].parent)
        for attributes in (holder.attrs for holder in holders):
            names = {str(key).lower(): key for key in attributes}
            for key in (names[word] for word in _METRIC_WORDS if word in names):
                for text in np.asarray(attributes[key], object).ravel()[:1]:
                    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return None


def name_on_disk(data) -> str | None:
    """FILE:NAME of an open data set of h5py; None for anything else, and where there is no file."""
    h5py = sys.modules.get("h5py")
    is_stored = h5py and isinstance(data, h5py.Dataset) and data.name and os.path.isfile(data.file.filename)  # noqa: PTH113
    return f"{os.path.abspath(data.file.filename)}:{data.name}" if is_stored else None  # noqa: PTH100


FORMATS = (Format((".hdf5", ".h5"), open_hdf5, has_parts=True, read_metric=read_metric),)
