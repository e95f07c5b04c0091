"""The interface of engines, their registry, and the choice of engine and precision.

To add an engine, write a module that satisfies `Engine` and add it to `qinco.config.ENGINE_MODULES`.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np

from qinco.config import ENGINE_MODULES, PRECISIONS, EncodeOptions, ModelConfig, require_choice
from qinco.errors import ConfigError, needs_extra
from qinco.maths.devices import multiplies_bf16_fast
from qinco.model.weights import Weights

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
        ...

    def decode(
        self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None, out_ND: np.ndarray | None = None
    ) -> np.ndarray:
        """Decode codes of any integer type (a prefix of the columns too) to (N, D), into `out_ND` if it is given."""
        ...

    def prefixes(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """What the first 1, 2, ... steps of codes decode to, (N, D) each."""
        ...


class Engine(Protocol):
    """Encodes and decodes with models. For training, and on a GPU, it packs them as a `TensorModel`, too."""

    name: str

    def supports(self, config: ModelConfig, device: str) -> str | None:
        """None if the engine can run a model on a device, else the reason why not."""

    def pack(self, weights: Weights, precision: str, device: str) -> Packed:
        """Prepare a model with its current weights, and candidates in `precision` ("float32" or "bf16")."""
        ...


@cache
def find_engine(name: str) -> Engine:
    """The engine called `name`; raises ConfigError where its package is not installed."""
    with needs_extra(f"engine={name}", "torch", "train"):
        return cast(Engine, import_module(ENGINE_MODULES[name]))


def choose_engine(name: str, config: ModelConfig, device: str) -> Engine:
    """The engine called `name`, or for "auto" the first that supports a model on a device; ConfigError if it cannot."""
    if name != "auto":
        if reason := find_engine(name).supports(config, device):
            raise ConfigError(f"engine={name} cannot be used: {reason}; engine=auto chooses one that can")
        return find_engine(name)
    reasons = []
    for each in ENGINE_MODULES:
        try:
            if (reason := find_engine(each).supports(config, device)) is None:
                return find_engine(each)
        except ConfigError as error:
            reason = str(error)
        reasons.append(f"{each} ({reason})")
    raise ConfigError(f"no engine can be used: {', '.join(reasons)}")


def candidate_precision(precision: str, device: str, config: ModelConfig) -> str:
    """What a model's candidates are evaluated in, "float32" or "bf16": "auto" is bf16 where that is fast."""
    require_choice("precision", precision, PRECISIONS)
    is_small = config.embed_dim * config.hidden_dim < _SMALL_MATRIX
    is_fast = precision == "auto" and not is_small and multiplies_bf16_fast(device)
    return "bf16" if precision == "bf16" or is_fast else "float32"
