"""What an engine is, which there are, and which of them and which precision a call uses.

A new engine is a module that satisfies `Engine`, and a line in `qinco.config.ENGINE_MODULES`.

Shape suffixes: N vectors, D dimension, M steps.
"""

from functools import cache
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import torch

from qinco.config import ENGINE_MODULES, EncodeOptions, ModelConfig
from qinco.engines.packed import Encoder
from qinco.errors import ConfigError
from qinco.maths.devices import multiplies_bf16_fast
from qinco.model.qinco import Qinco

# Where layers have fewer weights, bf16 gains little (one core, measured: 24 x 48, 25 us a vector for float32's 27;
# 32 x 64, 131 for 151; 64 x 64, 161 for 358).
_SMALL_MATRIX = 4096


class Packed(Protocol):
    """A model that an engine has made ready to compute. Vectors are float32, in data space."""

    def send(self, x_ND: np.ndarray) -> Any:
        """Begin to move vectors (N, D) to where `encode` takes them from; a thread that reads ahead calls it."""

    def encode(
        self, x_ND: Any, lists_N: np.ndarray | None, options: EncodeOptions, num_steps: int | None = None
    ) -> np.ndarray:
        """Codes, uint8 or uint16 (N, num_steps), of what `send` gave, with their list numbers for an IVF model."""

    def decode(
        self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None, out_ND: np.ndarray | None = None
    ) -> np.ndarray:
        """Reconstructions (N, D) of codes of any integer type, written to `out_ND` if it is given."""


class Engine(Protocol):
    """A way to encode and decode with a model.

    One that computes on torch tensors packs models as `qinco.engines.packed.TensorModel`: training needs that.
    """

    name: str

    def supports(self, config: ModelConfig, device: torch.device) -> str | None:
        """Why the engine cannot compute a model on a device; None where it can."""

    def pack(self, model: Qinco, dtype: torch.dtype) -> Packed:
        """Make a model ready, with its weights as they are now and candidates in `dtype` (float32 or bfloat16)."""


@cache
def engines() -> dict[str, Engine]:
    """All engines by name; "auto" is the first that supports a model on a device."""
    return {name: import_module(module) for name, module in ENGINE_MODULES.items()}


def choose_engine(name: str, config: ModelConfig, device: torch.device) -> Engine:
    """The engine called `name`, or for "auto" the first that supports a model on a device.

    Raises:
        ConfigError: the engine cannot compute the model there.
    """
    if name == "auto":
        return next(engine for engine in engines().values() if engine.supports(config, device) is None)
    reason = engines()[name].supports(config, device)
    if reason is not None:
        raise ConfigError(f"engine={name} cannot be used: {reason}; engine=auto takes what can")
    return engines()[name]


def make_encoder(model: Qinco, options: EncodeOptions, dtype: torch.dtype) -> Encoder:
    """What encodes normalised tensors with a model as it is now, with candidates in `dtype`."""
    return Encoder(choose_engine(options.engine, model.config, model.device).pack(model, dtype), options)


def candidate_dtype(precision: str, device: torch.device, config: ModelConfig) -> torch.dtype:
    """The dtype that a model's candidates are evaluated in: "auto" is bf16 where that is fast."""
    is_small = config.embed_dim * config.hidden_dim < _SMALL_MATRIX
    if precision == "bf16" or (precision == "auto" and not is_small and multiplies_bf16_fast(device)):
        return torch.bfloat16
    return torch.float32
