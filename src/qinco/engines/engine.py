"""The interface of engines, their registry, and the choice of engine and precision.

To add an engine, write a module that satisfies `Engine` and add it to `qinco.config.ENGINE_MODULES`.

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

# With fewer weights in a layer, bf16 gains little (measured on one core, us a vector, bf16 and float32: 24 x 48,
# 25 and 27; 32 x 64, 131 and 151; 64 x 64, 161 and 358).
_SMALL_MATRIX = 4096


class Packed(Protocol):
    """A model packed by an engine. Vectors are float32 in data space."""

    def send(self, x_ND: np.ndarray) -> Any:
        """Vectors (N, D), as an array or tensor, on their way to the engine's device. Called when reading ahead."""

    def encode(
        self, x_ND: Any, lists_N: np.ndarray | None, options: EncodeOptions, num_steps: int | None = None
    ) -> np.ndarray:
        """Encode what `send` returned, with list numbers (N,) for an IVF model: uint8 or uint16 (N, num_steps)."""

    def decode(
        self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None, out_ND: np.ndarray | None = None
    ) -> np.ndarray:
        """Decode codes of any integer type (a prefix of the columns too) to (N, D), into `out_ND` if it is given."""


class Engine(Protocol):
    """Encodes and decodes with models. For training, and on a GPU, it packs them as a `TensorModel`."""

    name: str

    def supports(self, config: ModelConfig, device: torch.device) -> str | None:
        """None if the engine can run a model on a device, else the reason why not."""

    def pack(self, model: Qinco, dtype: torch.dtype) -> Packed:
        """Prepare a model with its current weights, and candidates in `dtype` (float32 or bfloat16)."""


@cache
def engines() -> dict[str, Engine]:
    """All engines by name, in the order in which "auto" tries them."""
    return {name: import_module(module) for name, module in ENGINE_MODULES.items()}


def choose_engine(name: str, config: ModelConfig, device: torch.device) -> Engine:
    """The engine called `name`, or for "auto" the first that supports a model on a device.

    Raises:
        ConfigError: the engine does not support the model on the device.
    """
    if name == "auto":
        return next(engine for engine in engines().values() if engine.supports(config, device) is None)
    reason = engines()[name].supports(config, device)
    if reason is not None:
        raise ConfigError(f"engine={name} cannot be used: {reason}; engine=auto chooses one that can")
    return engines()[name]


def make_encoder(model: Qinco, options: EncodeOptions, dtype: torch.dtype) -> Encoder:
    """An encoder of normalised tensors with the current weights of a model, and candidates in `dtype`."""
    return Encoder(choose_engine(options.engine, model.config, model.device).pack(model, dtype), options)


def candidate_dtype(precision: str, device: torch.device, config: ModelConfig) -> torch.dtype:
    """The dtype that a model's candidates are evaluated in: "auto" is bf16 where that is fast."""
    is_small = config.embed_dim * config.hidden_dim < _SMALL_MATRIX
    if precision == "bf16" or (precision == "auto" and not is_small and multiplies_bf16_fast(device)):
        return torch.bfloat16
    return torch.float32
