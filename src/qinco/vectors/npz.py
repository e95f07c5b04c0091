"""npz, as numpy writes it, compressed or not: a zip archive of npy files, read a block at a time."""

import zipfile
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.binary import NPY_HEADER_BYTES, parse_npy_header
from qinco.vectors.block_rows import BLOCK_BYTES, BlockRows, choose_part, library, list_names
from qinco.vectors.mapped import Format, check_size


class NpzRows(BlockRows):
    """The rows of an array of an npz file. It is unpacked from its start: going back unpacks it again."""

    def __init__(self, name: str, file, shape: tuple[int, int], dtype: np.dtype, offset: int, is_fortran: bool):
        super().__init__(shape, dtype)
        self._name, self._file, self._offset, self._is_fortran = name, file, offset, is_fortran
        self._row_bytes = shape[1] * dtype.itemsize
        self._block_rows = max(1, shape[0] if is_fortran else BLOCK_BYTES // self._row_bytes)

    def _read_block(self, row: int) -> tuple[int, np.ndarray]:
        start = row - row % self._block_rows
        count = min(self._block_rows, len(self) - start)
        with library("zipfile", "", self._name):
            self._file.seek(self._offset + start * self._row_bytes)
            values = np.frombuffer(self._file.read(count * self._row_bytes), self.dtype)
        return start, values.reshape((count, self.shape[1]), order="F" if self._is_fortran else "C")


def open_npz(path: Path, size: int, name: str | None, part: str) -> NpzRows:
    """An array of an npz file: `name`, or else `part`, or else the only matrix of numbers."""
    with library("zipfile", "", path):
        archive = zipfile.ZipFile(path)
        matrices, members = {}, [member for member in archive.namelist() if member.endswith(".npy")]
        reasons = {}
        for member in members:
            try:
                with archive.open(member) as file:
                    matrices[member[:-4]] = parse_npy_header(file.read(NPY_HEADER_BYTES), f"{path}:{member[:-4]}")
            except DataError as error:
                reasons[member[:-4]] = error
        if name is None:
            name = choose_part(path, matrices, part, "matrix of numbers")
        elif name not in matrices:
            raise reasons.get(name) or DataError(
                f"{path} holds no array {name!r}, but {list_names(matrices) or 'none'}"
            )
        (shape, is_fortran, dtype, offset), where = matrices[name], f"{path}:{name}"
        expected = offset + shape[0] * shape[1] * dtype.itemsize
        check_size(path, archive.getinfo(f"{name}.npy").file_size, expected, f"{shape}, {dtype}")
        return NpzRows(where, archive.open(f"{name}.npy"), shape, dtype, offset, is_fortran)


FORMATS = (Format((".npz",), open_npz, has_parts=True),)
