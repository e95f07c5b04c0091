"""Models packed for torch: what training and GPUs use, of whatever engine."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qinco.config import EncodeOptions
from qinco.engines.engine import choose_engine
from qinco.maths.devices import to_device
from qinco.model.qinco import Qinco
from qinco.packing import code_dtype


class TensorModel(ABC):
    """A `Packed` model of an engine that works on torch tensors: normalisation and transfers around the kernels.

    An engine subclasses it and defines `encode_tensors` and `decode_tensors`, which training uses directly. The model's
    weights must not change meanwhile.
    """

    def __init__(self, model: Qinco):
        self.model = model

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

    def prefixes(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Iterator[np.ndarray]:
        start_ND = self._start(len(codes_NM), lists_N)
        for reached_ND in self.model.reconstructions(self._send_integers(codes_NM), start_ND):
            yield self.model.denormalize(reached_ND).cpu().numpy()

    def reconstruct(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Tensor:
        """`decode` to a tensor on the model's device."""
        start_ND = self._start(len(codes_NM), lists_N)
        return self.model.denormalize(self.decode_tensors(self._send_integers(codes_NM), start_ND))

    def _start(self, num_vectors: int, lists_N: np.ndarray | None) -> Tensor:
        return self.model.initial_reconstruction(num_vectors, None if lists_N is None else self._send_integers(lists_N))

    def _send_integers(self, integers: np.ndarray) -> Tensor:
        sent = integers if integers.dtype == np.uint8 else np.asarray(integers, np.int64)
        return to_device(sent, self.model.device).long()


class _ArrayModel(TensorModel):
    """A model of an engine that works on arrays (see `NativeCoder`), for training."""

    def __init__(self, model: Qinco, coder: Any):
        super().__init__(model)
        self.coder = coder

    def encode_tensors(self, x_ND, start_ND, options: EncodeOptions, num_steps: int | None = None):
        codes_NM, reached_ND = self.coder.search(x_ND.numpy(), start_ND.numpy(), options, num_steps)
        return torch.from_numpy(codes_NM.astype(np.int64)), torch.from_numpy(reached_ND)

    def decode_tensors(self, codes_NM, start_ND):
        return torch.from_numpy(self.coder.reconstruct(codes_NM.numpy(), start_ND.numpy()))


def pack(model: Qinco, engine: str, precision: str, is_for_one_batch: bool = False) -> TensorModel:
    """A model with its current weights, packed for training by the engine that is chosen for it."""
    chosen = choose_engine(engine, model.config, str(model.device))
    names = ("pack_tensors_quickly", "pack_tensors") if is_for_one_batch else ("pack_tensors",)
    for of_tensors in (getattr(chosen, name, None) for name in names):
        if of_tensors is not None:
            return of_tensors(model, precision)
    if is_for_one_batch and (quickly := getattr(chosen, "pack_quickly", None)):
        return _ArrayModel(model, quickly(model.weights(), precision))
    return _ArrayModel(model, chosen.pack(model.weights(), precision, str(model.device)))
