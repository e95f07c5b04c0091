"""The instruction sets that the native engine can be tested on here, and packing a model for one of them."""

import os
from unittest import mock

import numpy as np
import pytest

from qinco.engines.tensors import TensorModel, pack
from qinco.model.qinco import Qinco
from qinco.native import library

LEVELS = library.LEVELS[: library.LEVELS.index(library.level()) + 1] if library.is_available() else ()
needs_native = pytest.mark.skipif(not LEVELS, reason="the native engine is not compiled in this installation")
needs_bf16 = pytest.mark.skipif("avx512_bf16" not in LEVELS, reason="this processor does not multiply bf16")


def normal(*shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pack_at(level: str, model: Qinco, precision: str = "float32") -> TensorModel:
    with mock.patch.dict(os.environ, QINCO_NATIVE_LEVEL=level):
        return pack(model, "native", precision)
