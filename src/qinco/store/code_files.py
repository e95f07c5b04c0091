"""The forms in which codes lie on disk: folders, .npy, .ivecs, .raw and the authors' .npz."""

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np

from qinco.atomic import user_path, write_atomically
from qinco.compat.encoded_sets import npz_part, open_npz, read_npz_sizes, write_npz
from qinco.errors import ConfigError, DataError
from qinco.packing import code_dtype, pack_codes, packed_size, unpack_codes
from qinco.store.code_bucket import CodeBucket
from qinco.store.code_folder import CodeFolder, CodePlan
from qinco.vectors.formats import VectorWriter, open_array
from qinco.vectors.mapped import file_size, map_file
from qinco.vectors.remote import is_remote

FILE_SUFFIXES = (".npy", ".ivecs", ".npz", ".raw")


def is_folder(path: str | os.PathLike) -> bool:
    """Whether an output of this name is a folder of shards: it has no suffix, ends in a slash or exists as one."""
    return os.fspath(path).endswith(os.sep) or not Path(path).suffix or is_directory(path)


def is_directory(path) -> bool:
    """Whether a path is an existing folder; a name that is too long for one is not."""
    return os.path.isdir(path)  # noqa: PTH112


def lists_beside(path: str | os.PathLike) -> Path:
    """Where the list numbers of a file of codes lie: NAME.lists.npy."""
    return Path(f"{str(path := Path(path)).removesuffix(path.suffix)}.lists.npy")


def files_of(path: Path, has_lists: bool) -> list[Path]:
    """The files by which codes in a file are known; an .npz file may have more parts."""
    if path.suffix.lower() == ".npz":
        return [path, npz_part(path, 0)]
    return [path, lists_beside(path)] if has_lists else [path]


def plan_of_codes(path) -> CodePlan | None:
    """What a folder of codes says of them, on this machine or in a bucket; None for the path of a file."""
    if _is_bucket(path):
        return CodeBucket.open(str(path)).plan
    return CodeFolder.read(user_path(path)).plan if is_directory(user_path(path)) else None


def _folder_of_codes(path) -> CodeFolder | CodeBucket | None:
    """The complete codes in a folder."""
    if _is_bucket(path):
        return CodeBucket.open(str(path))
    return CodeFolder.open(user_path(path)) if is_directory(user_path(path)) else None


def _is_bucket(path) -> bool:
    return is_remote(path) and not PurePosixPath(str(path).partition("?")[0]).suffix


def open_codes_file(
    path: str | os.PathLike, num_codes: int | None, codebook_size: int | None, has_lists: bool | None, lists=None
):
    """Codes in a file or folder, rows (N, M), and their list numbers, rows (N, 1) or None; read when asked for.

    What is None of the codec's is taken from the file; `lists` is the path of list numbers that lie elsewhere.
    """
    given, folder = path, _folder_of_codes(path)
    path, within, may_lie_beside = Path(user_path(path)), None, folder is None
    suffix = path.suffix.lower()
    if folder is not None:
        codes, within = folder.codes, folder.lists
        for name, wanted in (("codebook_size", codebook_size), ("num_codes", num_codes)):
            found = getattr(folder.plan, name)
            if wanted not in (None, found):
                raise DataError(f"{path} holds codes of another codec: {name} is {found} there, {wanted} in the model")
    elif suffix == ".npz":
        if num_codes is None or codebook_size is None:
            num_codes, codebook_size = map(read_npz_sizes(path)[0].__getitem__, "MK")
        codes, within = open_npz(path, num_codes, codebook_size)
    elif suffix == ".raw":
        if num_codes is None or codebook_size is None:
            raise ConfigError(f"{path} does not say how long its codes are: give codec, or num_codes and codebook_size")
        codes = _RawRows(path, num_codes, codebook_size.bit_length() - 1)
    else:
        codes = open_array(given)
    if within is not None:
        if lists is not None:
            raise ConfigError(f"{path} holds its list numbers: leave out lists={lists}")
        return codes, within
    if has_lists is False and lists is not None:
        raise DataError(f"lists={lists} was given, but the codec has none: it was trained without coarse centroids")
    if lists is None and may_lie_beside and (has_lists or (has_lists is None and lists_beside(path).exists())):
        lists = lists_beside(path)
    if has_lists and lists is None:
        raise DataError(f"{path} holds codes without lists, but the codec has lists: give those that it made")
    return codes, None if lists is None else _open_lists(lists, codes.shape[0])


def write_codes_file(
    path: str | os.PathLike, codes, lists, codebook_size: int | None, dim: int | None, *, block_rows: int = 1 << 16
) -> list[Path]:
    """Write codes, rows (N, M), to a file in the form of its suffix, in bounded memory; returns the files written.

    Lists are rows (N, 1), an array (N,), or None. Without `codebook_size`, K, .npy keeps the dtype.
    """
    path, written = Path(path), []
    suffix, count = path.suffix.lower(), codes.shape[0]
    if lists is not None and len(lists.shape) == 1:
        lists = np.asarray(lists)[:, None]
    if suffix == ".npz":
        assert codebook_size is not None and dim is not None
        return write_npz(path, codes, lists, codebook_size, dim)
    blocks = [slice(start, start + block_rows) for start in range(0, count, block_rows)]
    if lists is not None:
        Path(os.path.realpath(path)).unlink(missing_ok=True)  # a kill must not leave old codes beside new lists
        written.append(lists_beside(path))
        with VectorWriter(written[0], 1, np.dtype(np.int32), count) as writer:
            for block in blocks:
                writer.append(np.asarray(lists[block]))
    if suffix == ".raw":
        assert codebook_size is not None
        with write_atomically(path) as temporary, temporary.open("wb") as file:
            for block in blocks:
                file.write(pack_codes(np.asarray(codes[block]), codebook_size.bit_length() - 1).tobytes())
    else:
        own = codes.dtype if codebook_size is None else code_dtype(codebook_size)
        dtype = np.dtype("<i4") if suffix == ".ivecs" else own
        with VectorWriter(path, codes.shape[1], dtype, count) as writer:
            for block in blocks:
                writer.append(np.asarray(codes[block]).astype(dtype))
    return [*written, path]


def _open_lists(path, num_vectors: int):
    """Rows of list numbers (N, 1), which numpy may have saved as (N,), as `encode` returns them."""
    if not os.access(path, os.F_OK):
        raise DataError(f"No such file: {path}. Codes of an IVF codec need their list numbers: give lists")
    try:
        lists = open_array(path)
    except DataError:
        lists = None
        with suppress(Exception):  # the file has been refused with a reason already
            lists = np.load(path, mmap_mode="r", allow_pickle=False)[:, None]
        if lists is None:
            raise
    if lists.shape != (num_vectors, 1) or lists.dtype.kind not in "iu":
        raise DataError(f"{path} is {lists.dtype} {lists.shape}: list numbers are integers ({num_vectors}, 1)")
    return lists


class _RawRows:
    """Packed codes without a header, unpacked when they are read."""

    def __init__(self, path: Path, num_codes: int, bits: int):
        size, row = file_size(path), packed_size(num_codes, bits)
        if size % row:
            wanted = f"a multiple of {row}, the size of a code (M={num_codes}, bits of each: {bits})"
            raise DataError(f"{path} has {size} bytes, not {wanted}: it is truncated or of another codec")
        self.shape, self.dtype = (size // row, num_codes), code_dtype(1 << bits)
        self._bits = bits
        self._packed = map_file(path, np.dtype(np.uint8), (size // row, row))

    def __getitem__(self, key) -> np.ndarray:
        return unpack_codes(self._packed[key], self.shape[1], self._bits)
