"""The native engine: packs a model's rearranged weights for the compiled kernels, and runs them.

Shape suffixes: N vectors, D dimension, M steps, K codewords.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines.arrays import step_arrays
from qinco.errors import ConfigError
from qinco.machine import num_threads
from qinco.maths.devices import CPU
from qinco.model.weights import Weights
from qinco.native.library import NativeModel, Sizes, is_available
from qinco.packing import code_dtype

name = "native"

MAX_TABLE_BYTES = 1 << 30
_MAX_PAIRS = 1 << 31  # hypotheses times codewords
_MAX_CROSSED = 1024  # codewords, up to which products of all pairs of two codebooks are kept


def supports(config: ModelConfig, device: str) -> str | None:
    if device != CPU:
        return f"it runs on the CPU, not on {device}"
    if not is_available():
        return "this installation has no compiled kernels"
    dim, stream, hidden = (-(-width // 64) * 64 for width in (config.dim, config.embed_dim, config.hidden_dim))
    tables = 4 * config.num_steps * config.codebook_size * (2 * dim + 2 * stream + hidden)
    if tables > MAX_TABLE_BYTES:
        return f"the model's tables take {tables:,} bytes, more than {MAX_TABLE_BYTES:,}"
    return None


def sizes_of(config: ModelConfig, precision: str) -> Sizes:
    return Sizes(
        config.dim, config.embed_dim, config.hidden_dim, config.num_blocks, config.codebook_size, config.num_steps,
        config.codeword_skip, not config.starts_from_coarse, precision == "bf16",
    )  # fmt: skip


class NativeCoder:
    """A model packed for the compiled kernels."""

    def __init__(self, weights: Weights, packed: NativeModel):
        self.weights, self.packed = weights, packed

    def send(self, x_ND: np.ndarray) -> np.ndarray:
        return x_ND

    def encode(self, x_ND: np.ndarray, lists_N, options: EncodeOptions, num_steps: int | None = None) -> np.ndarray:
        codes_NM, _ = self.search(self.weights.normalize(x_ND), self.weights.start(lists_N), options, num_steps)
        return codes_NM.astype(code_dtype(self.packed.sizes.codewords))

    def decode(self, codes_NM: np.ndarray, lists_N=None, out_ND: np.ndarray | None = None) -> np.ndarray:
        decoded_ND = self.reconstruct(codes_NM, self.weights.start(lists_N))
        return self.weights.denormalize(decoded_ND, decoded_ND if out_ND is None else out_ND)

    def prefixes(self, codes_NM: np.ndarray, lists_N: np.ndarray | None = None) -> Iterator[np.ndarray]:
        start_ND = self.weights.start(lists_N)
        for step_ND in self.packed.decode_each(codes_NM, start_ND, threads=num_threads()):
            yield self.weights.denormalize(step_ND)

    def search(
        self, x_ND: np.ndarray, start_ND: np.ndarray | None, options: EncodeOptions, num_steps: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes of normalised vectors, uint16 (N, num_steps), and their reconstructions, float32 (N, D)."""
        size, beam = self.packed.sizes.codewords, options.beam_width
        if beam * size >= _MAX_PAIRS:
            raise ConfigError(f"B={beam} (beam_width) is too wide for K={size}: give less than {_MAX_PAIRS // size}")
        wanted = {"num_candidates": options.num_candidates, "num_pairs": options.num_pairs, "beam_width": beam}
        wanted |= {"num_steps": num_steps or self.packed.sizes.steps, "threads": num_threads()}
        return self.packed.encode(x_ND, start_ND, **wanted)

    def reconstruct(self, codes_NM: np.ndarray, start_ND: np.ndarray | None) -> np.ndarray:
        """Normalised reconstructions, float32 (N, D)."""
        return self.packed.decode(codes_NM, start_ND, threads=num_threads())


def pack(weights: Weights, precision: str, device: str = CPU) -> NativeCoder:
    """Copy and rearrange the weights."""
    # In double precision: float32 products depend on the processor and on threads.
    return _pack(weights, precision, np.float64, map)


def pack_quickly(weights: Weights, precision: str) -> NativeCoder:
    """As `pack`, for weights that change after every batch: with products in float32, and several steps at once."""
    if num_threads() == 1:
        return _pack(weights, precision, np.float32, map)
    with ThreadPoolExecutor(min(num_threads(), weights.config.num_steps), "pack") as pool:
        return _pack(weights, precision, np.float32, pool.map)


@np.errstate(over="ignore", invalid="ignore")  # of diverged training
def _pack(weights: Weights, precision: str, dtype: type, over_steps: Callable) -> NativeCoder:
    config = weights.config
    steps = [weights.step(number) for number in range(config.num_steps)]
    arrays = list(over_steps(partial(step_arrays, dtype=dtype), steps))
    if not steps[0].conditioned and config.codebook_size <= _MAX_CROSSED:
        for proposals_KD in [step.preselector_KD for step in steps[1:2] if step.preselector_KD is not None]:
            cross_KK = steps[0].codebook_KD.astype(dtype) @ proposals_KD.astype(dtype).T
            arrays[1] = replace(arrays[1], first_cross=cross_KK.astype(np.float32, copy=False))
    return NativeCoder(weights, NativeModel(sizes_of(config, precision), arrays))
