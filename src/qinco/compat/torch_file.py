"""PyTorch's zip files (`.pt`), read without torch and without executing anything.

The pickle inside is not unpickled: a machine of our own runs the opcodes that `torch.save` writes, knows containers,
numbers, tensors and the authors' first classes, and refuses every other name. Tensors are numpy's, read from the file
when they are asked for.
"""

import io
import math
import mmap
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qinco.errors import DataError
from qinco.vectors.mapped import file_size

_STORAGE_TYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "BoolStorage": "?",
}  # fmt: skip
_SCALAR_TYPES = {"f2": "<f2", "f4": "<f4", "f8": "<f8", "i4": "<i4", "i8": "<i8"}
_MODULES = {
    "model_qinco": ("QINCo", "IVFQINCo", "QINCoLR", "PQ_QINCo", "QINCoStep"),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.sparse": ("Embedding",),
    "torch.nn.modules.container": ("Sequential", "ModuleList"),
    "torch.nn.modules.activation": ("ReLU",),
}
# Twenty thousand tensors and more; what a hostile file may cost grows with these.
_MAX_DIRECTORY_BYTES = 1 << 22
_MAX_PICKLE_BYTES = 1 << 22
_MAX_OPCODES = 400_000
_MAX_AXES = 8
_MAX_KEY_LENGTH = 256


@dataclass(slots=True)
class Module:
    """A pickled module of the authors' first code or of torch: its class's name and its attributes, nothing more."""

    name: str
    state: dict = field(default_factory=dict)


class StoredTensor:
    """A tensor of a file: `shape`, `dtype` and, when it is asked for, its values."""

    __slots__ = ("_is_bf16", "_values", "dtype", "shape")

    def __init__(self, values: np.ndarray, is_bf16: bool):
        self._values, self._is_bf16 = values, is_bf16
        self.shape = values.shape
        self.dtype = np.dtype(np.float32) if is_bf16 else values.dtype

    @property
    def nbytes(self) -> int:
        """Size of the values in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The values: a new array, C-contiguous; bfloat16 comes as float32."""
        if self._is_bf16:
            return (self._values.astype(np.uint32, order="C") << 16).view(np.float32)
        return np.array(self._values, order="C")


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether a file begins as `torch.save` begins one; False for anything that cannot be read."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            head = file.read(1024)
    except (OSError, ValueError):
        return False
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and name.endswith(b"/data.pkl")


def read_torch_file(path: str | os.PathLike):
    """The object that `torch.save` wrote: dictionaries, lists, tuples, numbers, strings, StoredTensor and Module.

    Raises DataError where the file is missing, damaged, of PyTorch's format before 1.6, or refers to any other class
    or function; nothing that a file names is ever imported or called.
    """
    path = Path(path)
    if file_size(path) == 0:
        raise DataError(f"{path} is empty")
    try:
        with _CarefulFile(path) as file:
            archive = _Archive(file)
        return _run(archive.pickle(), archive)
    except _ForeignName as error:
        raise DataError(
            f"{path} refers to {error}, which no checkpoint of QINCo contains: it is refused and nothing was executed"
        ) from None
    except _Damage as error:
        raise DataError(f"{path} is a damaged checkpoint: {error}") from None
    except zipfile.BadZipFile:
        raise DataError(
            f"{path} is not a checkpoint in PyTorch's zip format: it is damaged, of another kind, or was written by "
            "PyTorch before 1.6 (a newer one can read it with weights_only=True and save it again)"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    # Damage can make the parsers of zip and pickle files raise nearly anything.
    except Exception as error:
        raise DataError(f"{path} is a damaged checkpoint: it makes no sense ({type(error).__name__})") from None


class _ForeignName(Exception):
    """A class or function that is not admitted."""


class _Damage(Exception):
    """What is wrong with a file, to be told."""


class _CarefulFile(io.FileIO):
    """A file that no claim of its own makes us read, or allocate memory for, more than a table of contents takes."""

    def read(self, size=-1):
        if size > _MAX_DIRECTORY_BYTES:
            raise _Damage(f"its table of contents takes {size} bytes")
        return super().read(size)


@dataclass(slots=True)
class _Storage:
    values: np.ndarray
    is_bf16: bool


class _Archive:
    """One file: its entries, checked against its size before anything is read, and mapped into memory."""

    def __init__(self, file: _CarefulFile):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._entries = {entry.filename: entry for entry in entries}
        self._storages: dict[tuple[str, str, int], _Storage] = {}
        # Entries are stored as they are: a compressed or overlapping one could unfold to any size.
        if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
            raise _Damage("it has compressed entries, which torch.save does not write")
        if len(self._entries) < len(entries) or sum(entry.file_size for entry in entries) > len(self._bytes):
            raise _Damage("it has entries that overlap")
        names = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise _Damage("it has no data.pkl inside")
        self._root = names[0].removesuffix("data.pkl")
        byteorder = self._root + "byteorder"
        if byteorder in self._entries and bytes(self._entry(byteorder)) != b"little":
            raise _Damage("its byte order is not little-endian")

    def pickle(self) -> bytes:
        data = self._entry(self._root + "data.pkl")
        if len(data) > _MAX_PICKLE_BYTES:
            raise _Damage(f"its pickle takes {len(data)} bytes")
        return bytes(data)

    def storage(self, identity) -> _Storage:
        """The storage that a persistent identity of a pickle names."""
        kind, type_name, key, _, count = identity
        dtype = _STORAGES.get(_only(type_name, str))
        if kind != "storage" or dtype is None or not _is_size(count):
            raise _Damage("it has an unknown kind of storage")
        known = (type_name, _only(key, str), count)
        if known not in self._storages:
            stored = self._entry(f"{self._root}data/{key}")
            if count * dtype.itemsize != len(stored):
                raise _Damage(f"it promises {count} values of {dtype} in {len(stored)} bytes")
            self._storages[known] = _Storage(np.frombuffer(stored, dtype), type_name == "torch BFloat16Storage")
        return self._storages[known]

    def _entry(self, name: str) -> memoryview:
        entry = self._entries.get(name)
        if entry is None:
            raise _Damage("one of its entries is missing")
        # The local header repeats the name and has extra bytes of its own.
        header = self._bytes[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or not header.startswith(b"PK\3\4"):
            raise _Damage("one of its entries is damaged")
        begin = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if begin + entry.file_size > len(self._bytes):
            raise _Damage("one of its entries is cut off")
        return memoryview(self._bytes)[begin : begin + entry.file_size]


def _run(data: bytes, archive: _Archive):
    """The object of a pickle: the opcodes that `torch.save` writes (protocol 2), each with its effect on the stack."""
    stack, marks, memo = [], [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count == _MAX_OPCODES:
            raise _Damage(f"its pickle takes more than {_MAX_OPCODES} steps")
        match opcode.name:
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[opcode.name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append(_CONTAINERS[opcode.name]())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(_popped(stack, marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_popped(stack, len(stack) - int(opcode.name[-1]))))
            case "SETITEM" | "SETITEMS":
                pairs = _popped(stack, len(stack) - 2 if opcode.name == "SETITEM" else marks.pop())
                _only(stack[-1], dict).update(zip(_keys(pairs[::2]), pairs[1::2], strict=True))
            case "APPEND" | "APPENDS":
                items = _popped(stack, len(stack) - 1 if opcode.name == "APPEND" else marks.pop())
                _only(stack[-1], list).extend(items)
            case "BINPERSID":
                stack.append(archive.storage(stack.pop()))
            case "GLOBAL":
                stack.append(_admitted(argument))
            case "REDUCE" | "NEWOBJ":
                name, arguments = _popped(stack, len(stack) - 2)
                calls = _CALLS if opcode.name == "REDUCE" else _CLASSES
                stack.append(calls[_only(name, str)](*_only(arguments, tuple)))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case _:
                raise _Damage(f"its pickle has the opcode {opcode.name}, which torch.save does not write")
    raise _Damage("its pickle has no end")


def _popped(stack: list, begin: int) -> list:
    """The items of a stack from `begin` on, taken off."""
    if not 0 <= begin <= len(stack):
        raise _Damage("its pickle takes more than it has")
    items = stack[begin:]
    del stack[begin:]
    return items


def _is_size(value) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _only(value, kind: type):
    if type(value) is not kind:
        raise _Damage(f"its pickle has a {type(value).__name__} in the place of a {kind.__name__}")
    return value


def _keys(keys: list) -> list:
    """Keys whose hashes cost nothing and that a message can name. Tuples could be nested or made to collide."""
    for key in keys:
        is_name = type(key) is str and len(key) <= _MAX_KEY_LENGTH and key.isprintable()
        if not (is_name or _is_size(key)):
            raise _Damage("its pickle has a key that is neither a number nor a name")
    return keys


def _admitted(name: str) -> str:
    if name not in _CALLS and name not in _CLASSES and name not in _STORAGES:
        name = name.replace(" ", ".")[:100]
        raise _ForeignName(name if name.isprintable() else ascii(name))
    return name


def _set_state(target, state) -> None:
    if type(target) is Module:
        target.state = _only(state, dict)
    elif isinstance(target, np.dtype):
        if state[1] not in ("<", "|"):
            raise _Damage("it has a number of another byte order")
    else:
        _only(target, dict)  # an OrderedDict's own attributes, which nothing here reads


def _new_tensor(storage, offset, shape, strides, *_) -> StoredTensor:
    values, axes = _only(storage, _Storage).values, len(_only(shape, tuple))
    if axes > _MAX_AXES or len(_only(strides, tuple)) != axes or not all(map(_is_size, (offset, *shape, *strides))):
        raise _Damage("it has a tensor of impossible shape")
    count = math.prod(shape)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    # A tensor that repeats its elements (stride 0) could claim any size: the models contain none.
    if count and (last >= len(values) or count > len(values)):
        raise _Damage("it has a tensor beyond its storage")
    if not count:
        return StoredTensor(np.zeros(shape, values.dtype), storage.is_bf16)
    size = values.itemsize
    view = np.ndarray(shape, values.dtype, values, offset * size, [stride * size for stride in strides])
    return StoredTensor(view, storage.is_bf16)


def _new_parameter(tensor, *_) -> StoredTensor:
    return _only(tensor, StoredTensor)


def _new_set(elements=()) -> set:
    if elements:
        raise _Damage("it has a set with elements, which no module of QINCo contains")
    return set()


def _module_class(name: str) -> Callable[[], Module]:
    return lambda: Module(name)


def _new_scalar(dtype, content):
    if not isinstance(dtype, np.dtype):
        raise _Damage("it has a number without a type")
    return np.frombuffer(_only(content, bytes), dtype, 1).item()


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONTAINERS = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_STORAGES = {f"torch {name}": np.dtype(code) for name, code in _STORAGE_TYPES.items()}
_CLASSES = {f"{module} {name}": _module_class(name) for module, names in _MODULES.items() for name in names}
_CALLS = {
    "collections OrderedDict": lambda: {},
    "__builtin__ set": _new_set,
    "builtins set": _new_set,
    "torch._utils _rebuild_tensor_v2": _new_tensor,
    "torch._utils _rebuild_parameter": _new_parameter,
    "numpy dtype": lambda code, *_: np.dtype(_SCALAR_TYPES[_only(code, str)]),
    "numpy.core.multiarray scalar": _new_scalar,
    "numpy._core.multiarray scalar": _new_scalar,
    "_codecs encode": lambda text, encoding: _only(text, str).encode("latin1"),
}
