"""Files of `torch.save`, read and written by PyTorch; nothing in them is executed.

Of modules that the authors' first code pickled, only the attributes and tensors are read.
"""

import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from qinco.atomic import write_atomically
from qinco.errors import ConfigError, DataError, ResourceError, needs_extra
from qinco.forking import new_lock
from qinco.vectors.mapped import file_size, read_start

_MODULES = {  # the only classes that a file may name
    "model_qinco": ("QINCo", "IVFQINCo", "QINCoLR", "PQ_QINCo", "QINCoStep"),
    "torch.nn.modules.linear": ("Linear",),
    "torch.nn.modules.sparse": ("Embedding",),
    "torch.nn.modules.container": ("Sequential", "ModuleList"),
    "torch.nn.modules.activation": ("ReLU",),
}
_LOADING = new_lock()  # torch's list of safe classes and Python's filters of warnings are those of the process


class Module:
    """A pickled module: `state` holds its attributes, its subclass has the name of the original class."""

    state: dict

    def __setstate__(self, state):
        if type(state) is not dict:
            raise ValueError(f"a module has a {type(state).__name__} for its attributes")
        self.state = state


@contextmanager
def errors_as_damage(path) -> Iterator[None]:
    """Raise DataError for any exception that unexpected content causes."""
    try:
        yield
    except DataError:
        raise
    except (ConfigError, LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, LookupError) else str(error)
        raise DataError(f"{path} is damaged: {reason:.200}") from None


def is_torch_file(path: str | os.PathLike) -> bool:
    """Whether a file begins as those of `torch.save` do; False if it cannot be read."""
    try:
        file_size(Path(path))
        head = read_start(Path(path), 1024)
    except DataError:
        return False
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and name.endswith(b"/data.pkl")


def read_torch_file(path: str | os.PathLike):
    """The object that `torch.save` wrote: containers, numbers, memory-mapped tensors and `Module`; else DataError."""
    path = Path(path)
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # a damaged directory of entries can raise nearly anything
        raise DataError(
            f"{path} is not a PyTorch file, or damaged; one of PyTorch before 1.6 must be loaded and saved again"
        ) from None
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > size:
        raise DataError(f"{path} is damaged: its entries are compressed or overlap, as those of torch.save never do")
    torch = _torch(path)
    misnamed = path.suffix.lower() == ".safetensors"  # torch would not look into the file, and maps no open files
    try:
        with _LOADING, warnings.catch_warnings(), torch.serialization.safe_globals(_safe_globals()):
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                return torch.load(file if misnamed else path, "cpu", weights_only=True, mmap=not misnamed)
    except Exception as error:  # damage can raise nearly anything
        foreign = re.search(r"GLOBAL (\S{1,100})", str(error))
        if foreign and foreign[1].isprintable():
            raise DataError(f"{path} refers to {foreign[1]}, as no QINCo file does: nothing was executed") from None
        raise DataError(f"{path} is damaged: PyTorch cannot read it ({type(error).__name__})") from None


def check_tensors(path: str | os.PathLike, tensors: dict) -> None:
    """Raise DataError unless all values are plain tensors that fit in memory twice the size of the file."""
    torch = _torch(path)
    for name, tensor in tensors.items():
        if type(name) is not str or not name.isprintable() or len(name) > 256:
            raise DataError(f"{path} is damaged: it has a tensor without a proper name")
        is_plain = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not is_plain or tensor.is_quantized or tensor.is_nested or tensor.is_complex():
            raise DataError(f"{path} is damaged: {name} is not a tensor")
    # Tensors that share their values could make a small file fill the memory.
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * Path(path).stat().st_size:
        raise DataError(f"{path} is damaged: its tensors share their values")


def write_torch_file(path: str | os.PathLike, content: dict) -> None:
    """Write `content` with `torch.save`, whole or not at all."""
    torch = _torch(path)
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise ResourceError(f"cannot write {path}: {error.__context__ or error}") from error


def as_tensor(array):
    """A tensor for `write_torch_file`."""
    return _torch().from_numpy(np.array(array, order="C"))


def _torch(path=None):
    what = "a file of PyTorch" if path is None else f"{path}, a file of PyTorch,"
    with needs_extra(what, "torch", "train"):
        import torch
    return torch


class _DType:  # stands for numpy.dtype
    def __init__(self, code: str, *_):
        self.dtype = np.dtype({"f2": "<f2", "f4": "<f4", "f8": "<f8", "i4": "<i4", "i8": "<i8"}[code])

    def __setstate__(self, state):
        if state[1] not in ("<", "|"):
            raise ValueError("a number has another byte order")


def _scalar(dtype: _DType, content: bytes) -> int | float:  # stands for numpy's function that makes a scalar
    return np.frombuffer(content, dtype.dtype, 1)[0].item()


@cache
def _safe_globals() -> list:
    modules = [(type(name, (Module,), {}), f"{home}.{name}") for home, names in _MODULES.items() for name in names]
    scalars = [(_scalar, f"numpy.{home}.multiarray.scalar") for home in ("core", "_core")]
    return [*modules, *scalars, (_DType, "numpy.dtype")]
