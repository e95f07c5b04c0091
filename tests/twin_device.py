"""A device that is not the processor, made of the processor: it finds what would fail on a GPU, where there is none.

Tensors on "twin" lie in ordinary memory behind a wrapper that names another device. As with a GPU's, an operation on
tensors of both devices is refused, and so is looking at their memory from numpy. (A tensor of no dimension may come
from the processor; indices may not, though CUDA copies them.) Results are the processor's, bit for bit.
"""

import torch
from torch.nn import functional
from torch.utils import _pytree as trees
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "twin"
_CPU = torch.device("cpu")
_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class _Backend:
    """What torch asks of a device's module."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    synchronize = staticmethod(lambda device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)  # it draws with the processor's generators


class _Tensor(torch.Tensor):
    """A tensor on the twin of what `memory` holds on the processor."""

    @staticmethod
    def __new__(cls, memory: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, memory.size(), strides=memory.stride(), storage_offset=memory.storage_offset(), dtype=memory.dtype,
            device=f"{NAME}:0",
        )  # fmt: skip

    def __init__(self, memory: torch.Tensor):
        self.memory = memory

    def tolist(self):
        return self.memory.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), named=None):
        return _run(operation, arguments, named or {})


def _run(operation, arguments, named):
    """Run an operation on the processor and give what it makes its device back."""
    values, shape = trees.tree_flatten((arguments, named))
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    device = named.get("device") or (_CPU if tensors and not isinstance(tensors[0], _Tensor) else torch.device(NAME))
    strangers = [t for t in tensors if not isinstance(t, _Tensor) and t.dim()]
    if strangers and operation not in _COPIES:
        raise RuntimeError(f"{operation}: tensors on {NAME} and on cpu, all must be on one device")
    owners = {id(value.memory): value for value in values if isinstance(value, _Tensor)}

    def enter(value):
        if isinstance(value, torch.device):
            return _CPU
        return value.memory if isinstance(value, _Tensor) else value

    def leave(value):
        if device.type == "cpu":
            return value
        return owners[id(value)] if id(value) in owners else _Tensor(value)

    arguments, named = trees.tree_unflatten([enter(value) for value in values], shape)
    if operation is torch.ops.aten._to_copy.default:  # to the processor, too, it is a copy
        named["memory_format"] = named.get("memory_format") or torch.preserve_format
    return trees.tree_map_only(torch.Tensor, leave, operation(*arguments, **named))


def _autocast_linear(x, weight, bias=None):
    """Autocast's one rule that the models meet: products in its dtype."""
    dtype = torch.get_autocast_dtype(NAME)
    with torch.autocast(NAME, enabled=False):
        return functional.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def register() -> torch.device:
    """Make torch know the device, which can be done once in a process."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
        _ALL.fallback(lambda operation, *arguments, **named: _run(operation, arguments, named), "PrivateUse1")
        _ALL.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        _ATEN.impl("linear", _autocast_linear, "AutocastPrivateUse1")
    return torch.device(NAME)


_ALL, _ATEN = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
