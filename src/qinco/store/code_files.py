"""Codes of many vectors in every form that is read and written: folders, .npy, .ivecs, .raw and the authors' .npz.

Shape suffixes: N vectors, M codes of a vector.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import write_atomically
from qinco.compat.encoded_sets import open_npz, write_npz
from qinco.errors import ConfigError, DataError
from qinco.packing import code_dtype, pack_codes, packed_size, unpack_codes
from qinco.store.code_store import CodeStore
from qinco.vectors.concat_rows import ConcatRows
from qinco.vectors.formats import VectorWriter, open_array
from qinco.vectors.mapped import file_size, map_file

FILE_SUFFIXES = (".npy", ".ivecs", ".npz", ".raw")
BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class EncodedSet:
    """Codes in a file or folder, read when they are asked for.

    codes: rows (N, M) of integers: `shape`, `dtype`, and `[slice]`
    lists: rows (N, 1) of integers, or None
    name:  what messages call them: the path, where they have one
    """

    codes: np.ndarray | ConcatRows
    lists: np.ndarray | ConcatRows | None = None
    name: str = "codes"

    def __len__(self) -> int:
        return self.codes.shape[0]

    def blocks(self, size: int = BLOCK_ROWS, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield (codes (n, M), lists (n,) or None) of consecutive vectors, from the vector `first` on."""
        for start in range(first, len(self), size):
            part = slice(start, start + size)
            yield np.asarray(self.codes[part]), None if self.lists is None else np.asarray(self.lists[part])[:, 0]


def is_folder(path: str | os.PathLike) -> bool:
    """Whether an output of this name is a folder of shards: it has no suffix, ends in a slash or exists as one."""
    return os.fspath(path).endswith(os.sep) or not Path(path).suffix or is_directory(path)


def is_directory(path) -> bool:
    """Whether a path is an existing folder; a name that is too long for one is none."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def lists_beside(path: str | os.PathLike) -> Path:
    """Where the list numbers of a file of codes lie: NAME.lists.npy."""
    return Path(f"{Path(path).with_suffix('')}.lists.npy")


def open_encoded_set(path, code_size: int, codebook_size: int, is_ivf: bool, lists=None) -> EncodedSet:
    """The codes in a file or folder, with the list numbers that belong to them.

    code_size, codebook_size, is_ivf: what the codec makes; a .raw file cannot be read without them
    lists: path of the list numbers; beside the codes, where the codec has lists and they are not within

    Raises DataError where the file is missing, damaged, or of a codec of other sizes.
    """
    path = Path(path)
    within = None
    if is_directory(path):
        store = CodeStore.open(path)
        codes, within = store.codes, store.lists
        for name, wanted in (("codebook_size", codebook_size), ("code_size", code_size)):
            found = getattr(store.manifest, name)
            if found != wanted:
                raise DataError(f"{path} holds codes of another codec: {name} is {found} there, {wanted} in the model")
    elif path.suffix.lower() == ".npz":
        codes, within = open_npz(path, code_size, codebook_size)
    elif path.suffix.lower() == ".raw":
        codes = _RawRows(path, code_size, codebook_size.bit_length() - 1)
    else:
        codes = open_array(path)
    if within is not None and lists is not None:
        raise ConfigError(f"{path} holds its list numbers: leave out lists={lists}")
    if within is None and is_ivf:
        within = _open_lists(lists_beside(path) if lists is None else lists, codes.shape[0])
    elif lists is not None:
        raise DataError(f"lists={lists} was given, but the codec has none: it was trained without coarse centroids")
    return EncodedSet(codes, within, str(path))


def write_encoded_set(path, codes: EncodedSet, codebook_size: int, dim: int) -> list[Path]:
    """Write codes to a file in the form of its suffix, in bounded memory; the files that were written.

    Lists go beside the codes as `lists_beside` says, but into the first column of .npz.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return write_npz(path, codes.codes, codes.lists, codebook_size, dim)
    written = []
    if codes.lists is not None:
        Path(os.path.realpath(path)).unlink(missing_ok=True)  # a kill must not leave old codes beside new lists
        written.append(lists_beside(path))
        with VectorWriter(written[0], 1, np.dtype(np.int32), len(codes)) as writer:
            for _, lists_N in codes.blocks():
                writer.append(lists_N[:, None])
    written.append(path)
    if path.suffix.lower() == ".raw":
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            for codes_NM, _ in codes.blocks():
                file.write(pack_codes(codes_NM, codebook_size.bit_length() - 1).tobytes())
        return written
    dtype = np.dtype("<i4") if path.suffix.lower() == ".ivecs" else code_dtype(codebook_size)
    with VectorWriter(path, codes.codes.shape[1], dtype, len(codes)) as writer:
        for codes_NM, _ in codes.blocks():
            writer.append(codes_NM.astype(dtype))
    return written


def _open_lists(path, num_vectors: int):
    if not os.access(path, os.F_OK):
        raise DataError(f"No such file: {path}. Codes of an IVF codec need their list numbers: give lists=FILE")
    try:
        lists = open_array(path)
    except DataError as error:
        lists = _open_column(path, error)
    if lists.shape != (num_vectors, 1) or lists.dtype.kind not in "iu":
        raise DataError(f"{path} is {lists.dtype} {lists.shape}: list numbers are integers ({num_vectors}, 1)")
    return lists


def _open_column(path, refusal: DataError) -> np.ndarray:
    """An array of one axis, as `encode` returns list numbers and numpy saves them, as (N, 1)."""
    try:
        lists = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # the file has been refused with a reason already
        raise refusal from None
    if not isinstance(lists, np.ndarray) or lists.ndim != 1:
        raise refusal
    return lists[:, None]


class _RawRows:
    """Packed codes without a header, unpacked when they are read."""

    def __init__(self, path: Path, code_size: int, bits: int):
        size, row = file_size(path), packed_size(code_size, bits)
        if size % row:
            raise DataError(
                f"{path} has {size} bytes, which are no whole number of codes of {row} bytes ({code_size} codes of "
                f"{bits} bits): it is truncated or of another codec"
            )
        self.shape, self.dtype = (size // row, code_size), code_dtype(1 << bits)
        self._bits = bits
        self._packed = map_file(path, np.dtype(np.uint8), (size // row, row)) if size else np.empty((0, row), np.uint8)

    def __getitem__(self, key) -> np.ndarray:
        return unpack_codes(self._packed[key], self.shape[1], self._bits)
