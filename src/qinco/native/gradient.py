"""ctypes binding of the compiled training loss: its gradients, for codes that are given, on several threads.

Shape suffixes: N vectors, D dimension, M steps, K codewords, E stream width, H hidden width.
"""

from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from dataclasses import dataclass, fields

import numpy as np

from qinco.errors import ResourceError
from qinco.native.library import LEVELS, Sizes, address, check_memory, compiled, level, run


@dataclass(frozen=True)
class Layers:
    """The weights of a step as they are trained, or their gradients: contiguous float32 arrays."""

    codebook: np.ndarray  # (K, D)
    preselector: np.ndarray | None = None  # (K, D)
    project_in: np.ndarray | None = None  # (E, D)
    concat: np.ndarray | None = None  # (E, E + D)
    bias: np.ndarray | None = None  # (E,)
    up: tuple[np.ndarray, ...] = ()  # (H, E) each
    down: tuple[np.ndarray, ...] = ()  # (E, H) each
    project_out: np.ndarray | None = None  # (D, E)


class _Layers(Structure):
    _fields_ = [(f.name, POINTER(c_void_p) if f.name in ("up", "down") else c_void_p) for f in fields(Layers)]


class _Batch(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("x", "start", "codes")), ("count", c_int64), ("scale", c_float),
        *((name, c_void_p) for name in ("losses", "counts", "sums", "squares")),
    ]  # fmt: skip


class GradientKernel:
    """Adds gradients of the loss of batches; its memory is kept from one to the next."""

    def __init__(self, sizes: Sizes):
        size, dim, stream, hidden = sizes.codewords, sizes.dim, sizes.stream, sizes.hidden
        self.sizes, self._shapes = sizes, {
            "codebook": (size, dim), "preselector": (size, dim), "project_in": (stream, dim),
            "concat": (stream, stream + dim), "bias": (stream,), "up": (hidden, stream), "down": (stream, hidden),
            "project_out": (dim, stream),
        }  # fmt: skip
        self._kernel = compiled().qinco_create_gradient(byref(sizes), LEVELS.index(level()))
        if not self._kernel:
            raise ResourceError("out of memory: there is no room for gradients")

    def __reduce__(self):
        raise TypeError("what computes gradients cannot be copied")  # it would be freed twice

    def __del__(self):
        if self._kernel:
            compiled().qinco_destroy_gradient(self._kernel)

    def add(
        self, weights: list[Layers], gradients: list[Layers], x_ND: np.ndarray, start_ND: np.ndarray,
        codes_NM: np.ndarray, *, scale: float, counts_MK: np.ndarray, sums_MD: np.ndarray, squares_MD: np.ndarray,
        threads: int,
    ) -> np.ndarray:  # fmt: skip
        """Add to `gradients`, and return the loss of each step, float64 (M,).

        Args:
            x_ND: float32.
            start_ND: the reconstructions before the first step, float32.
            codes_NM: int32, below K.
            scale: the factor of the squared errors in the loss.
            counts_MK: how often codewords are used, float64, which is added to.
            sums_MD: the sums of what each step has to approximate, float64, which is added to.
            squares_MD: the same of its squares.
        """
        sizes = self.sizes
        count, (steps, size, dim) = len(x_ND), (sizes.steps, sizes.codewords, sizes.dim)
        losses_M = np.zeros(steps)
        for array, dtype, shape in (
            (x_ND, np.float32, (count, dim)), (start_ND, np.float32, (count, dim)),
            (codes_NM, np.int32, (count, steps)), (counts_MK, np.float64, (steps, size)),
            (sums_MD, np.float64, (steps, dim)), (squares_MD, np.float64, (steps, dim)),
        ):  # fmt: skip
            assert array.dtype == dtype and array.shape == shape and array.flags.c_contiguous
        batch = _Batch(
            address(x_ND), address(start_ND), address(codes_NM), count, scale,
            *map(address, (losses_M, counts_MK, sums_MD, squares_MD)),
        )  # fmt: skip
        given, wanted = self._structures(weights), self._structures(gradients)
        matrices = 2 * sizes.blocks * sizes.stream * sizes.hidden + 2 * sizes.stream * dim
        failed = run(
            lambda: compiled().qinco_add_gradient(self._kernel, byref(batch), given, wanted, threads),
            6.0 * count * steps * matrices,
        )
        check_memory(failed, "a smaller batch_size (batch) or fewer threads")
        return losses_M

    def _structures(self, steps: list[Layers]):
        structures = (_Layers * len(steps))()
        for structure, layers in zip(structures, steps, strict=True):
            for name in ("codebook", "preselector", "project_in", "concat", "bias", "project_out"):
                setattr(structure, name, self._address(name, getattr(layers, name)))
            for name in ("up", "down"):
                pointers = [self._address(name, array) for array in getattr(layers, name)]
                setattr(structure, name, (c_void_p * len(pointers))(*pointers))
        return structures

    def _address(self, name: str, array: np.ndarray | None) -> int | None:
        if array is not None:
            assert array.shape == self._shapes[name] and array.dtype == np.float32 and array.flags.c_contiguous, name
        return address(array)
