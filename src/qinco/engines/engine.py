"""The interface of engines, their registry, the choice of engine and precision, and what engines on torch share.

To add an engine, write a module that satisfies `Engine` and add it to `qinco.config.ENGINE_MODULES`.
"""

from abc import ABC, abstractmethod
from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from qinco.config import ENGINE_MODULES, PRECISIONS, EncodeOptions, ModelConfig, require_choice
from qinco.errors import ConfigError
from qinco.maths.devices import multiplies_bf16_fast, to_device
from qinco.model.qinco import Qinco
from qinco.packing import code_dtype

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


class Engine(Protocol):
    """Encodes and decodes with models. For training, and on a GPU, it packs them as a `TensorModel`."""

    name: str

    def supports(self, config: ModelConfig, device: torch.device) -> str | None:
        """None if the engine can run a model on a device, else the reason why not."""

    def pack(self, model: Qinco, dtype: torch.dtype) -> Packed:
        """Prepare a model with its current weights, and candidates in `dtype` (float32 or bfloat16)."""
        ...


@cache
def engines() -> dict[str, Engine]:
    """All engines by name, in the order in which "auto" tries them."""
    return {name: cast(Engine, import_module(module)) for name, module in ENGINE_MODULES.items()}


def choose_engine(name: str, config: ModelConfig, device: torch.device) -> Engine:
    """The engine called `name`, or for "auto" the first that supports a model on a device; ConfigError if it cannot."""
    if name == "auto":
        return next(engine for engine in engines().values() if engine.supports(config, device) is None)
    reason = engines()[name].supports(config, device)
    if reason is not None:
        raise ConfigError(f"engine={name} cannot be used: {reason}; engine=auto chooses one that can")
    return engines()[name]


def pack(model: Qinco, engine: str, dtype: torch.dtype) -> "TensorModel":
    """A model with its current weights, packed for training by the engine that is chosen for it."""
    packed = choose_engine(engine, model.config, model.device).pack(model, dtype)
    assert isinstance(packed, TensorModel)
    return packed


def candidate_dtype(precision: str, device: torch.device, config: ModelConfig) -> torch.dtype:
    """The dtype that a model's candidates are evaluated in: "auto" is bf16 where that is fast; raises ConfigError."""
    require_choice("precision", precision, PRECISIONS)
    is_small = config.embed_dim * config.hidden_dim < _SMALL_MATRIX
    if precision == "bf16" or (precision == "auto" and not is_small and multiplies_bf16_fast(device)):
        return torch.bfloat16
    return torch.float32


class TensorModel(ABC):
    """A `Packed` model of an engine that works on torch tensors: normalisation and transfers around the kernels.

    An engine subclasses it and defines `encode_tensors` and `decode_tensors`, which training uses directly. The model's
    weights must not change meanwhile. `dtype` is that of candidates in encoding and of products in decoding.
    """

    def __init__(self, model: Qinco, dtype: torch.dtype):
        self.model, self.dtype = model, dtype

    @abstractmethod
    def encode_tensors(
        self, x_ND: Tensor, start_ND: Tensor, options: EncodeOptions, num_steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode normalised vectors, given their `Qinco.initial_reconstruction`.

        Returns codes, int64 (N, num_steps), and their reconstructions, float32 (N, D).
        """

    @abstractmethod
    def decode_tensors(self, codes_NM: Tensor, start_ND: Tensor) -> Tensor:
        """Normalised reconstructions, float32 (N, D), of codes (int64); a prefix of the columns is a shorter code."""

    def send(self, x_ND: np.ndarray) -> Tensor:
        return to_device(x_ND, self.model.device)

    def encode(self, x_ND: Tensor, lists_N, options: EncodeOptions, num_steps: int | None = None) -> np.ndarray:
        start_ND = self._start(len(x_ND), lists_N)
        codes_NM, _ = self.encode_tensors(self.model.normalize(x_ND), start_ND, options, num_steps)
        return codes_NM.cpu().numpy().astype(code_dtype(self.model.config.codebook_size))

    def decode(self, codes_NM: np.ndarray, lists_N=None, out_ND: np.ndarray | None = None) -> np.ndarray:
        decoded_ND = self.reconstruct(codes_NM, lists_N)
        if out_ND is None:
            return decoded_ND.cpu().numpy()
        torch.from_numpy(out_ND).copy_(decoded_ND)
        return out_ND

    def reconstruct(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Tensor:
        """`decode` to a tensor on the model's device."""
        start_ND = self._start(len(codes_NM), lists_N)
        return self.model.denormalize(self.decode_tensors(self._send_integers(codes_NM), start_ND))

    def _start(self, num_vectors: int, lists_N: np.ndarray | None) -> Tensor:
        return self.model.initial_reconstruction(num_vectors, None if lists_N is None else self._send_integers(lists_N))

    def _send_integers(self, integers: np.ndarray) -> Tensor:
        sent = integers if integers.dtype == np.uint8 else np.asarray(integers, np.int64)
        return to_device(sent, self.model.device).long()
