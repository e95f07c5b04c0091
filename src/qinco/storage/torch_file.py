"""PyTorch's zip files (`.pt`), read without torch and without executing anything.

The pickle inside is interpreted by an unpickler that knows containers, numbers, tensors and the authors' first classes,
and refuses every other name. Tensors are numpy's, read from the file when they are asked for.
"""

import io
import math
import mmap
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from qinco.errors import DataError

_STORAGE_TYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
_MODULES = {
    "model_qinco": ("QINCo", "IVFQINCo", "QINCoLR", "PQ_QINCo", "QINCoStep"),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.sparse": ("Embedding",),
    "torch.nn.modules.container": ("Sequential", "ModuleList"),
    "torch.nn.modules.activation": ("ReLU",),
}
# What `torch.save` emits; calls go to the functions that `find_class` admits.
_OPCODES = frozenset(
    """
    PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE
    SHORT_BINBYTES BINBYTES FRAME MEMOIZE EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT
    SETITEM SETITEMS EMPTY_SET ADDITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
    BINPERSID
    """.split()  # noqa: SIM905
)
_MAX_PICKLE_BYTES = 1 << 24
_MAX_ENTRIES = 1 << 20


class _Sealed(type):
    """Classes that a pickle cannot change."""

    def __setattr__(cls, name, value):
        raise pickle.UnpicklingError("a change of a class")


class Module(metaclass=_Sealed):
    """A pickled module of the authors' first code or of torch: its class's name and its attributes, nothing more."""

    name = ""

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"{self.name} without attributes")
        self.state = state

    def __getattr__(self, attribute):  # reached only where __setstate__ was never called
        if attribute == "state":
            raise pickle.UnpicklingError(f"{self.name} without attributes")
        raise AttributeError(attribute)


class StoredTensor:
    """A tensor of a file: `shape`, `dtype` and, when it is asked for, its values."""

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a change of a tensor")

    def __init__(self, storage: np.ndarray, is_bf16: bool, offset: int, shape: tuple, strides: tuple):
        sizes = (offset, *shape, *strides)
        if not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes) or len(shape) != len(strides):
            raise pickle.UnpicklingError("a tensor of impossible shape")
        count = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        # A tensor that repeats its elements (stride 0) could claim any size: the models contain none.
        if count and (last >= len(storage) or count > len(storage)):
            raise pickle.UnpicklingError("a tensor beyond its storage")
        self._storage, self._is_bf16, self._offset, self._strides = storage, is_bf16, offset, strides
        self.shape = tuple(shape)
        self.dtype = np.dtype(np.float32) if is_bf16 else storage.dtype

    def read(self) -> np.ndarray:
        """The values: a new array, C-contiguous; bfloat16 comes as float32."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        strides = [stride * self._storage.itemsize for stride in self._strides]
        stored = np.lib.stride_tricks.as_strided(self._storage[self._offset :], self.shape, strides, writeable=False)
        if self._is_bf16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return np.array(stored, order="C")


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether a file is a zip archive with PyTorch's pickle inside; False for anything that cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist()[:16])
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def read_torch_file(path: str | os.PathLike):
    """The object that `torch.save` wrote: containers, numbers, strings, StoredTensor and Module.

    Raises DataError where the file is missing, damaged, of PyTorch's format before 1.6, or refers to any other class
    or function; nothing that a file names is ever imported or called.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist" if not path.exists() else f"{path} is not a file")
    try:
        return _Archive(path).load()
    except _ForeignName as error:
        raise DataError(
            f"{path} refers to {error}, which no checkpoint of QINCo contains: it is refused and nothing was executed"
        ) from None
    except zipfile.BadZipFile:
        raise DataError(
            f"{path} is not a checkpoint in PyTorch's zip format: it is damaged, of another kind, or was written by "
            "PyTorch before 1.6 (load and save it once with a newer one)"
        ) from None
    # Damage can make the unpickler raise nearly anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is a damaged checkpoint: {reason}") from None


class _ForeignName(Exception):
    pass


class _Archive:
    """One file: its entries, checked against its size before anything is read, and mapped into memory."""

    def __init__(self, path: Path):
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise pickle.UnpicklingError(f"{len(entries)} entries")
        # Entries are stored as they are: a compressed or overlapping one could unfold to any size.
        if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
            raise pickle.UnpicklingError("compressed entries, which torch.save does not write")
        if sum(entry.file_size for entry in entries) > size:
            raise pickle.UnpicklingError("entries that overlap")
        names = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(names) != 1:
            raise pickle.UnpicklingError("no data.pkl inside")
        self._root = names[0].removesuffix("data.pkl")
        self._entries = {entry.filename: entry for entry in entries}
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._storages: dict[str, tuple[np.ndarray, bool]] = {}

    def load(self):
        byteorder = self._root + "byteorder"
        if byteorder in self._entries and bytes(self._entry(byteorder)) != b"little":
            raise pickle.UnpicklingError("a byte order other than little-endian")
        data = self._entry(self._root + "data.pkl")
        if len(data) > _MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError(f"a pickle of {len(data)} bytes")
        data = bytes(data)
        _check_opcodes(data)
        return _Unpickler(data, self).load()

    def storage(self, key: str, type_name: str, count: int) -> tuple[np.ndarray, bool]:
        """Elements of a storage, and whether they are bfloat16."""
        dtype = np.dtype(_STORAGE_TYPES[type_name])
        if key not in self._storages:
            self._storages[key] = np.frombuffer(self._entry(f"{self._root}data/{key}"), np.uint8)
        stored = self._storages[key]
        if type(count) is not int or count * dtype.itemsize != len(stored):
            raise pickle.UnpicklingError(f"{count} values of {dtype} in {len(stored)} bytes")
        return stored.view(dtype), type_name == "BFloat16Storage"

    def _entry(self, name: str) -> memoryview:
        entry = self._entries[name]
        # The local header repeats the name and has extra bytes of its own.
        start = entry.header_offset
        signature, name_size, extra_size = struct.unpack_from("<4s22xHH", self._bytes, start)
        begin = start + 30 + name_size + extra_size
        if signature != b"PK\3\4" or begin + entry.file_size > len(self._bytes):
            raise pickle.UnpicklingError(f"the entry {name} is damaged")
        return memoryview(self._bytes)[begin : begin + entry.file_size]


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: _Archive):
        super().__init__(io.BytesIO(data))
        self._archive = archive

    def find_class(self, module, name):
        found = _ADMITTED.get((module, name))
        if found is None:
            raise _ForeignName(f"{module}.{name}"[:100])
        return found

    def persistent_load(self, pid):
        kind, type_name, key, _, count = pid
        if kind != "storage" or type_name not in _STORAGE_TYPES:
            raise pickle.UnpicklingError("an unknown kind of storage")
        return self._archive.storage(key, type_name, count)


def _check_opcodes(data: bytes) -> None:
    """Refuse opcodes that a checkpoint has no use for, and memo numbers that would make the unpickler allocate."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"opcode {opcode.name}")
        if opcode.name in ("BINPUT", "LONG_BINPUT") and argument > count:
            raise pickle.UnpicklingError("a damaged memo")


class _Function:
    """What a pickle may call, and not change."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("a change of a function")


def _rebuild_tensor(storage, offset, shape, strides, *_) -> StoredTensor:
    return StoredTensor(*storage, offset, shape, strides)


def _rebuild_parameter(tensor, *_) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise pickle.UnpicklingError("a parameter that is no tensor")
    return tensor


class _ScalarType:
    """Stands for numpy.dtype, whose own state could harm the interpreter."""

    def __init__(self, code, *_):
        if code not in ("f2", "f4", "f8", "i4", "i8"):
            raise pickle.UnpicklingError(f"a number of type {code}")
        self.dtype = np.dtype(f"<{code}")

    def __setstate__(self, state):
        if state[1] not in ("<", "|"):
            raise pickle.UnpicklingError("a number of another byte order")


def _rebuild_scalar(kind: _ScalarType, content: bytes):
    return np.frombuffer(content, kind.dtype, 1)[0].item()


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _rebuild_set(elements=()) -> set:
    return set(elements)


def _module_class(name: str) -> type[Module]:
    return type(name, (Module,), {"name": name})


_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("__builtin__", "set"): _Function(_rebuild_set),
    ("builtins", "set"): _Function(_rebuild_set),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("numpy", "dtype"): _Function(_ScalarType),
    ("numpy.core.multiarray", "scalar"): _Function(_rebuild_scalar),
    ("numpy._core.multiarray", "scalar"): _Function(_rebuild_scalar),
    ("_codecs", "encode"): _Function(_encode),
    **{("torch", name): name for name in _STORAGE_TYPES},
    **{(module, name): _module_class(name) for module, names in _MODULES.items() for name in names},
}
