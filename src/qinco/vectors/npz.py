"""npz, as numpy writes it, compressed or not: a zip archive of npy files, read a block at a time."""

import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.binary import NPY_HEADER_BYTES, parse_npy_header
from qinco.vectors.block_rows import BLOCK_BYTES, BlockRows, choose_part, library, list_names
from qinco.vectors.mapped import Format, check_size


class NpzRows(BlockRows):
    """The rows of an array of an npz file. It is unpacked from its start: going back unpacks it again."""

    def __init__(self, name: str, file, shape: tuple[int, int], is_fortran: bool, dtype: np.dtype, offset: int):
        super().__init__(shape, dtype)
        self._name, self._file, self._offset, self._is_fortran = name, file, offset, is_fortran
        self._row_bytes = shape[1] * self.dtype.itemsize
        self._block_rows = max(1, shape[0] if is_fortran else BLOCK_BYTES // self._row_bytes)

    def __del__(self):
        self._file.close()

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
        archive, matrices = zipfile.ZipFile(path if isinstance(path, Path) else path.open()), []

        def header(member: str) -> tuple:
            with archive.open(f"{member}.npy") as file:
                return parse_npy_header(file.read(NPY_HEADER_BYTES), f"{path}:{member}")

        members = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
        for member in members if name is None else ():
            with suppress(DataError):  # others than matrices of numbers
                header(member)
                matrices.append(member)
        name = choose_part(path, matrices, part, "matrix of numbers") if name is None else name
        if name not in members:
            raise DataError(f"{path} holds no array {name!r}, but {list_names(members) or 'none'}")
        shape, is_fortran, dtype, offset = header(name)
        expected = offset + shape[0] * shape[1] * dtype.itemsize
        check_size(path, archive.getinfo(f"{name}.npy").file_size, expected, f"{shape}, {dtype}")
        return NpzRows(f"{path}:{name}", archive.open(f"{name}.npy"), shape, is_fortran, dtype, offset)


FORMATS = (Format((".npz",), open_npz, has_parts=True),)
