"""Shared by the engines that compute on torch tensors: normalisation and transfers around the kernels.

Shape suffixes: N vectors, D dimension, M steps.
"""

import numpy as np
import torch
from torch import Tensor

from qinco.config import EncodeOptions
from qinco.maths.devices import to_device
from qinco.model.qinco import Qinco
from qinco.packing import code_dtype


class TensorModel:
    """A `Packed` model of an engine that works on torch tensors on the model's device.

    An engine subclasses it and defines `encode_tensors` and `decode_tensors`, which training uses directly.

    Args:
        model: whose weights must not change while this is in use.
        dtype: torch.float32 or torch.bfloat16, of candidates in encoding and of products in decoding.
    """

    def __init__(self, model: Qinco, dtype: torch.dtype):
        self.model, self.dtype = model, dtype
        self._code_dtype = code_dtype(model.config.codebook_size)

    def encode_tensors(
        self, x_ND: Tensor, start_ND: Tensor, options: EncodeOptions, num_steps: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode normalised vectors, given the reconstructions before the first step (see `Qinco.start`).

        Returns:
            Codes, int64 (N, num_steps), and their reconstructions, float32 (N, D).
        """
        raise NotImplementedError

    def decode_tensors(self, codes_NM: Tensor, start_ND: Tensor) -> Tensor:
        """Normalised reconstructions, float32 (N, D), of codes (int64); a prefix of the columns is a shorter code."""
        raise NotImplementedError

    # Arrays in data space

    def send(self, x_ND: np.ndarray) -> Tensor:
        """See `Packed`."""
        return to_device(x_ND, self.model.device)

    def encode(
        self, x_ND: Tensor, lists_N: np.ndarray | None, options: EncodeOptions, num_steps: int | None = None
    ) -> np.ndarray:
        """See `Packed`."""
        start_ND = self.model.start(len(x_ND), None if lists_N is None else self._send_integers(lists_N))
        codes_NM, _ = self.encode_tensors(self.model.normalize(x_ND), start_ND, options, num_steps)
        return codes_NM.cpu().numpy().astype(self._code_dtype)

    def decode(
        self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None, out_ND: np.ndarray | None = None
    ) -> np.ndarray:
        """See `Packed`."""
        decoded_ND = self.reconstruct(codes_NM, lists_N)
        if out_ND is None:
            return decoded_ND.cpu().numpy()
        torch.from_numpy(out_ND).copy_(decoded_ND)
        return out_ND

    def reconstruct(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Tensor:
        """`decode` to a tensor on the model's device."""
        start_ND = self.model.start(len(codes_NM), None if lists_N is None else self._send_integers(lists_N))
        return self.model.denormalize(self.decode_tensors(self._send_integers(codes_NM), start_ND))

    def _send_integers(self, integers: np.ndarray) -> Tensor:
        sent = integers if integers.dtype == np.uint8 else np.asarray(integers, np.int64)
        return to_device(sent, self.model.device).long()


class Encoder:
    """Encodes normalised tensors with a packed model and some options: `encode(x_ND, start_ND, num_steps)`."""

    def __init__(self, packed: TensorModel, options: EncodeOptions):
        options.check_model(packed.model.config)
        self.packed, self.options = packed, options

    def encode(self, x_ND: Tensor, start_ND: Tensor, num_steps: int | None = None) -> tuple[Tensor, Tensor]:
        """See `TensorModel.encode_tensors`."""
        return self.packed.encode_tensors(x_ND, start_ND, self.options, num_steps)
