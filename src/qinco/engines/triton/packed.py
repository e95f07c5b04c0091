"""A model's weights on their device, as the kernels read them.

Shape suffixes: D dimension, K codewords, E stream width, H hidden width, both padded with zeros.
"""

import numpy as np
import torch
from torch import Tensor

from qinco.engines.arrays import step_arrays
from qinco.model.weights import StepWeights, Weights

LARGEST_PIECE, LARGEST_CHUNK = 128, 64  # columns of the stream and of the hidden layer that a product takes at a time
_LEAST = 32  # columns of either that the kernels read at a time


def power_above(number: int) -> int:
    """The least power of two that is not below a number."""
    return 1 << max(0, number - 1).bit_length()


def unit(width: int, largest: int) -> int:
    """Columns that a width is padded to a multiple of: a power of two."""
    return min(largest, max(_LEAST, power_above(width)))


def padded(width: int, largest: int) -> int:
    return -(-width // unit(width, largest)) * unit(width, largest)


class PackedStep:
    """One step: tables and layers in the products' `dtype`, all else in float32."""

    def __init__(self, weights: StepWeights, skip: bool, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device, self.skip, self.conditioned = dtype, device, skip, weights.conditioned
        arrays = step_arrays(weights)
        self.codebook = self._wide(arrays.codebook)
        self.proposals = self.codebook if arrays.preselector is None else self._wide(arrays.preselector)
        self.norms = self.proposals.square().sum(1)
        self.halves = self._halves(self.proposals)
        self.ranks = arrays.rank_offset is not None
        if weights.conditioned:
            self._pack_network(arrays)
        if self.ranks:
            self._pack_ranker(arrays)

    def _pack_network(self, arrays) -> None:
        (K, D), embed_dim = self.codebook.shape, arrays.stream_table.shape[1]
        self.num_blocks, self.embed_dim = len(arrays.up), embed_dim
        self.E = padded(embed_dim, LARGEST_PIECE)
        self.H = padded(len(arrays.up[0]), LARGEST_CHUNK) if arrays.up else 0
        self.tables = self._narrow(arrays.stream_table, K, self.E)
        self.from_reached = self._narrow(arrays.stream_x, self.E, D)
        self.up = self.down = self.tables  # not read without blocks
        if arrays.up:
            hidden_x = arrays.hidden_x if embed_dim >= D else arrays.hidden_x @ arrays.stream_x
            self.tables = torch.cat([self.tables, self._narrow(arrays.hidden_table, K, self.H)], 1)
            self.from_reached = torch.cat([self.from_reached, self._narrow(hidden_x, self.H, D)])
            self.up = torch.stack([self._narrow(values, self.H, self.E) for values in arrays.up])
            self.down = torch.stack([self._narrow(values, self.E, self.H) for values in arrays.down])
        self.projects = arrays.project_out is not None
        self.gram = self.back_codewords = self.codebook  # not read without projections
        if self.projects:
            self.project_out = self._wide(arrays.project_out, D, self.E)
            self.narrow_out = self.project_out.to(self.dtype)
            self.gram = self._wide(arrays.gram, self.E)
            self.back_codewords = self._wide(arrays.codeword_back, K, self.E)

    def _pack_ranker(self, arrays) -> None:
        D = self.codebook.shape[1]
        self.rank_codebook, self.rank_offset = self._wide(arrays.rank_codebook), self._wide(arrays.rank_offset)
        self.rank_map, self.rank_slope = self._wide(arrays.rank_map, self.E, D), self._wide(arrays.rank_slope)
        self.rank_hidden_map = self._wide(arrays.rank_hidden_map, self.E, self.H)
        self.rank_hidden_slope = self._wide(arrays.rank_hidden_slope, self.H)
        self.rank_hidden_square = self._wide(arrays.rank_hidden_square, self.H)

    def _wide(self, values: np.ndarray, *shape: int) -> Tensor:
        """Values as float32 on the device, padded with zeros to a shape if one is given."""
        found = torch.zeros(shape or values.shape)
        found[tuple(slice(size) for size in values.shape)] = torch.from_numpy(np.require(values, requirements=["W"]))
        return found.to(self.device)

    def _narrow(self, values: np.ndarray, *shape: int) -> Tensor:
        return self._wide(values, *shape).to(self.dtype)

    def _halves(self, values: Tensor) -> Tensor | None:
        """What the high, the high and the low half of another side are multiplied with, bf16 (K, 3 D)."""
        if self.dtype is torch.float32:
            return None
        high, low = split(values)
        return torch.cat([high, low, high], 1)


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """float32 values as the sum of two of bf16, but for 2^-16 of them."""
    high = values.bfloat16()
    return high, (values - high.float()).bfloat16()


def products(x_ND: Tensor, step: PackedStep) -> Tensor:
    """Products with the codewords that propose candidates, float32 (N, K).

    With candidates in bf16 these are three products of halves, a fifth of the work of float32's on matrix cores, and
    2^-16 from it. No switch of torch's is touched.
    """
    if step.halves is None:
        return x_ND @ step.proposals.T
    high, low = split(x_ND)
    sides = torch.cat([high, high, low], 1)
    if x_ND.is_cuda:
        return torch.mm(sides, step.halves.T, out_dtype=torch.float32)
    return sides.float() @ step.halves.float().T  # the processor's product would be rounded to bf16


def pack_steps(weights: Weights, dtype: torch.dtype, device: torch.device) -> list[PackedStep]:
    """All steps of a model."""
    config = weights.config
    return [PackedStep(weights.step(m), config.codeword_skip, dtype, device) for m in range(config.num_steps)]
