"""`Codes`: the codes of many vectors, with their list numbers where an IVF codec made them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from qinco.atomic import check_output, user_path
from qinco.config import MAX_LISTS, require_int
from qinco.errors import ConfigError, DataError
from qinco.packing import check_codes, check_lists, pack_codes, packed_size, unpack_codes
from qinco.store.code_files import FILE_SUFFIXES, files_of, is_folder, open_codes_file, plan_of_codes, write_codes_file
from qinco.store.code_folder import CodePlan, default_shard_rows, save_codes
from qinco.vectors.arrays import as_rows
from qinco.vectors.block_rows import ConcatRows, Parts
from qinco.vectors.mapped import Rows, StoredRows, by_name

BLOCK_ROWS = 1 << 16


class Codes(NDArrayOperatorsMixin):
    """Codes of N vectors: uint8 or uint16 (N, M), and int32 list numbers (N,) for an IVF codec.

    They lie in memory, or in a file or folder that is read when rows are asked for. Operators, numpy and an array's
    methods treat them as the array (N, M), and so does `torch.as_tensor`; `torch.from_numpy` takes `codes.codes`. Those
    in memory are changed in place. `codes, lists = codec.encode(x)` unpacks the codes of an IVF codec.

    Args:
        codes: (N, M) integers: an array, or rows on disk that have `shape`, `dtype` and `[slice or int array]`; or a
            pair of them and of lists.
        lists: (N,) or (N, 1) integers, or None.
        name: what error messages call them, such as the path.

    Example:
        >>> codes = Codes(np.zeros((3, 8), np.uint8))
        >>> codes[:2].shape
        (2, 8)
    """

    __hash__ = None
    ndim = 2

    def __init__(self, codes, lists=None, name: str = "codes"):
        if lists is None and isinstance(codes, tuple | list) and len(codes) == 2 and np.ndim(codes[0]) == 2:
            codes, lists = codes
        if isinstance(codes, str | os.PathLike):
            raise DataError(f"{codes} is a path: open it with Codes.load")
        self._codes: Rows = _as_rows(codes, name)
        self._lists: Any = None if lists is None else _as_rows(lists, f"lists of {name}")
        self.name = name
        if len(self._codes.shape) != 2:
            raise DataError(f"{name} must be a 2-D integer array (N, M), not {self.dtype} of shape {self._codes.shape}")
        if self._lists is not None and self._lists.shape not in ((len(self),), (len(self), 1)):
            shape = tuple(self._lists.shape)
            raise DataError(f"{name}: lists must be {len(self)} integers, one for each code, not an array of {shape}")

    def __getstate__(self) -> dict:
        """What is pickled of files are their paths, not their codes."""
        return self.__dict__ | {"_codes": by_name(self._codes), "_lists": by_name(self._lists)}

    @classmethod
    def of(cls, codes, lists=None) -> "Codes":
        """Codes from what users have of them: Codes, (codes, lists), arrays, tensors, tables, columns, nested lists."""
        if isinstance(codes, Codes):
            return codes if lists is None else codes.with_lists(lists)
        return cls(codes, lists)

    @property
    def codes(self) -> np.ndarray:
        """All codes in memory, uint8 or uint16 (N, M)."""
        return np.asarray(self._codes if isinstance(self._codes, np.ndarray) else self._codes[:])

    @property
    def lists(self) -> np.ndarray | None:
        """All list numbers in memory, (N,); None without lists."""
        return self._lists_at(slice(None))

    @property
    def has_lists(self) -> bool:
        """Whether there are list numbers."""
        return self._lists is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self._codes.shape[0], self._codes.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Type of the codes, uint8 or uint16."""
        return self._codes.dtype

    def __len__(self) -> int:
        return self._codes.shape[0]

    def __repr__(self) -> str:
        return f"Codes({self.name}, shape={self.shape}, dtype={self.dtype}{', with lists' if self.has_lists else ''})"

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.codes, dtype=dtype, copy=copy)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The array of codes and that of list numbers where there are some, else the rows of an array."""
        return iter(self.codes if self._lists is None else (self.codes, np.asarray(self.lists)))

    def __array_ufunc__(self, function, method, *inputs, **options):
        """Operators, comparisons among them, and numpy's functions are those of the array (N, M)."""
        inputs = [value.codes if isinstance(value, Codes) else value for value in inputs]
        if outputs := options.get("out", ()):
            options["out"] = tuple(value._in_place() if isinstance(value, Codes) else value for value in outputs)
        result = getattr(function, method)(*inputs, **options)
        return outputs[0] if len(outputs) == 1 else result

    def __dlpack__(self, **options):
        """What `torch.as_tensor(codes)` takes; a read-only file is copied."""
        codes_NM = self.codes
        return (codes_NM if codes_NM.flags.writeable else codes_NM.copy()).__dlpack__(**options)

    def __dlpack_device__(self):
        return 1, 0  # main memory

    def __getattr__(self, name: str):
        """The array's methods: `codes.max()`, `codes.astype(...)`, `codes.tolist()`."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.codes, name)

    @overload
    def __getitem__(self, key: slice) -> "Codes": ...
    @overload
    def __getitem__(self, key) -> Any: ...
    def __getitem__(self, key):
        """Rows, as Codes in memory, by a slice or an array of row numbers or truth values; `codes[:, :m]` cuts columns.

        Anything else gives what the array (N, M) gives: one row, by an integer, is an array (M,).
        """
        rows, columns = key if isinstance(key, tuple) and len(key) == 2 else (key, slice(None))
        if isinstance(rows, tuple):
            return self.codes[key]
        if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
            return np.asarray(self._codes[np.array([range(len(self))[rows]])])[0, columns]
        if not isinstance(rows, slice):
            rows = np.asarray(rows if np.size(rows) else np.empty(0, np.int64))
            if rows.dtype == bool and rows.shape == (len(self),):
                rows = np.flatnonzero(rows)
            if rows.ndim != 1 or rows.dtype.kind not in "iu" or not isinstance(columns, slice):
                return self.codes[key]
        picked = np.asarray(self._codes[rows])[:, columns]
        return Codes(picked, self._lists_at(rows), self.name) if picked.ndim == 2 else picked

    def __setitem__(self, key, value) -> None:
        self._in_place()[key] = value

    def blocks(self, size: int = BLOCK_ROWS, first: int = 0) -> Iterator[tuple[int, "Codes"]]:
        """Yield (first row, Codes in memory) for consecutive blocks of `size` vectors, from row `first` on."""
        is_whole = first == 0 < len(self) <= size and isinstance(self._codes, np.ndarray)
        for start in range(first, len(self), size):
            yield start, self if is_whole else self[start : start + size]

    def limit(self, count: int) -> "Codes":
        """The first `count` codes, not read yet; all where there are fewer."""
        if count >= len(self):
            return self
        lists = None if self._lists is None else _first_rows(self._lists, count)
        return Codes(_first_rows(self._codes, count), lists, self.name)

    def with_lists(self, lists) -> "Codes":
        """The same codes with other list numbers, or None."""
        return Codes(self._codes, lists, self.name)

    def pack(self, bits: int = 8) -> np.ndarray:
        """The codes in `bits` bits each, uint8 (N, bytes): the first in the lowest bits, as faiss packs them."""
        require_int("bits", bits, 1, 16)
        return pack_codes(check_codes(self.codes, self.shape[1], 1 << bits, self.name), bits)

    @classmethod
    def unpack(cls, packed: np.ndarray, num_codes: int, bits: int = 8, lists=None) -> "Codes":
        """Codes (N, num_codes) from what `pack` made, uint8 (N, bytes)."""
        if packed.shape[1:] != (packed_size(num_codes, bits),):
            raise DataError(f"packed codes of shape {packed.shape} do not hold {num_codes} of {bits} bits each")
        return cls(unpack_codes(packed, num_codes, bits), lists)

    @classmethod
    def concatenate(cls, parts: Sequence["Codes"]) -> "Codes":
        """The codes of all parts in memory, one after the other; all of them have lists, or none has."""
        if len({part.has_lists for part in parts}) > 1:
            raise DataError("some of the codes have list numbers and others have none: they are of different codecs")
        lists = np.concatenate([np.asarray(part.lists) for part in parts]) if parts[0].has_lists else None
        return cls(np.concatenate([part.codes for part in parts]), lists, parts[0].name)

    @classmethod
    def load(
        cls, path: str | os.PathLike, codec=None, *, num_codes: int | None = None, codebook_size: int | None = None,
        lists: str | os.PathLike | None = None,
    ) -> "Codes":  # fmt: skip
        """Open codes in any form that `save` writes; rows are read when they are asked for.

        Args:
            path: folder, .npy, .ivecs, .raw or .npz file, or another file of integers.
            codec: the Codec that made them, which they are checked against.
            num_codes, codebook_size: M and K, instead of `codec`; a .raw file needs them.
            lists: file of list numbers, if they are neither within nor beside the codes (NAME.lists.npy).

        Example:
            >>> codes = Codes.load("codes.npy", codec)
        """
        has_lists = None
        if codec is not None:
            _check_kind(codec)
            num_codes, codebook_size, has_lists = codec.num_codes, codec.config.codebook_size, codec.is_ivf
            plan = plan_of_codes(path)
            if plan is not None and plan.codec != codec.fingerprint():
                raise DataError(f"{path} holds codes of another codec: give the model that they were encoded with")
        return cls(*open_codes_file(path, num_codes, codebook_size, has_lists, lists), name=str(path))

    def save(
        self, path: str | os.PathLike, codec=None, *, codebook_size: int | None = None, dim: int | None = None,
        overwrite: bool = False,
    ) -> list[Path]:  # fmt: skip
        """Write the codes, whole or not at all, and return the files, or the folder.

        Args:
            path: .npy, .ivecs, .raw (packed bits) or .npz (the authors' form) file, with list numbers in NAME.lists.npy
                (in .npz in the first column); or a folder of shards (a name without suffix).
            codec: the Codec that made them, which a folder records.
            codebook_size, dim: K and D, instead of `codec`: .raw needs K, .npz both.
            overwrite: replace what exists.

        Example:
            >>> Codes(np.zeros((3, 8), np.uint8)).save("zeros.npy")
        """
        if codec is not None:
            _check_kind(codec)
            codebook_size, dim = codec.config.codebook_size, codec.dim
        path = Path(user_path(path))
        suffix = path.suffix.lower()
        is_shards = is_folder(path)
        if is_shards and codec is None:
            raise ConfigError(f"{path}: a folder of codes records its codec: give codec")
        self._check(codec, codebook_size)
        if codec is not None and self.shape[1] != codec.num_codes and suffix not in (".npy", ".ivecs"):
            raise DataError(
                f"{self.name} are {self.shape[1]} of {codec.num_codes} columns: save them as .npy or .ivecs"
            )
        if is_shards and codec is not None:
            rows, config = default_shard_rows(len(self)), codec.config
            sizes = config.codebook_size, config.num_lists, codec.dim
            plan = CodePlan(*self.shape, *sizes, rows, codec.fingerprint(), source="", encode={})
            save_codes(path, plan, self._codes, self._lists, overwrite)
            return [path]
        if suffix not in FILE_SUFFIXES:
            raise ConfigError(f"{path}: codes are saved to {', '.join(FILE_SUFFIXES)} files, or to a folder")
        if (suffix in (".raw", ".npz") and codebook_size is None) or (suffix == ".npz" and dim is None):
            raise ConfigError(f"{path} depends on the codec: give codec, or codebook_size and dim")
        for file in files_of(path, self.has_lists):
            check_output(file, overwrite=overwrite)
        return write_codes_file(path, self._codes, self._lists, codebook_size, dim)

    def _check(self, codec, codebook_size: int | None) -> None:
        """Raise an error unless these are codes of this codec, or of so many codewords."""
        if codec is not None:
            return codec.check_codes(self)
        size = 1 << 16 if codebook_size is None else codebook_size
        if not 2 <= size <= 1 << 16 or size & (size - 1):
            raise ConfigError(f"codebook_size (K) must be a power of two up to 65536, not {size}")
        check_range(self, self.shape[1], size, MAX_LISTS)

    def _in_place(self) -> np.ndarray:
        """The array that is changed by assignments."""
        if not isinstance(self._codes, np.ndarray):
            raise ValueError(f"{self.name} is on disk and is not changed: change Codes(codes.codes, codes.lists)")
        return self._codes

    def _lists_at(self, rows) -> np.ndarray | None:
        return None if self._lists is None else np.asarray(self._lists[rows]).reshape(-1)


def _check_kind(codec) -> None:
    if not hasattr(codec, "fingerprint"):  # Codec is of a module above this one
        raise ConfigError(f"codec must be a Codec, not {codec!r:.80}: see Codec.load")


def check_range(codes: Codes, num_codes: int, codebook_size: int, num_lists: int) -> None:
    """Raise DataError for codes or list numbers that are out of range, and for more columns than `num_codes`."""
    for first, block in codes.blocks() if len(codes) else [(0, codes)]:
        check_codes(block.codes, num_codes, codebook_size, codes.name, first)
        if block.has_lists:
            check_lists(block.lists, len(block), num_lists, first_row=first)


def _as_rows(values, name: str) -> Any:
    """Integers of any kind as a numpy array, or rows on disk as they are."""
    if hasattr(values, "cpu"):  # a torch tensor
        return values.detach().cpu().numpy()
    is_rows = hasattr(values, "shape") and hasattr(values, "dtype") and not hasattr(values, "__array__")
    return values if is_rows or isinstance(values, StoredRows) else as_rows(values, name)


def _first_rows(rows, count: int) -> Rows:
    is_array = isinstance(rows, np.ndarray)
    return rows[:count] if is_array else ConcatRows(Parts([rows]), [0, count], rows.shape[1], rows.dtype)
