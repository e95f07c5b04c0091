"""The ways of computing a model's network on a card, and how each is cut.

The cuts compile without spills for the capabilities that they are given to (tests/unit/engines/test_triton_compile.py);
which way is the fastest, and whether one is faster than torch, is measured on first use (see `check`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qinco.config import ModelConfig
from qinco.engines.triton.launches import (
    Plan,
    decode_by_layers,
    decode_fused,
    evaluate_by_layers,
    evaluate_resident,
    evaluate_streamed,
)
from qinco.engines.triton.packed import LARGEST_CHUNK, LARGEST_PIECE, padded, unit

HOPPER = 90
RESIDENT_BYTES = 192 << 10  # of weights that fit into the shared memory of a multiprocessor beside a tile


@dataclass(frozen=True)
class Way:
    """A way of evaluating candidates, and one of decoding."""

    name: str
    evaluate: Callable  # (step, plan, pairs, parts, residual) -> distances, streams
    plan: Plan
    decode: Callable  # (steps, stacked, plan, codes, start) -> reconstructions
    decode_plan: Plan


def ways_for(config: ModelConfig, dtype: torch.dtype, capability: int) -> list[Way]:
    """The ways to try for a model on a card of compute capability `capability` (80, 90), the likeliest first."""
    piece, chunk = unit(config.embed_dim, LARGEST_PIECE), unit(config.hidden_dim, LARGEST_CHUNK)
    cut = {"piece": piece, "chunk": chunk, "capability": capability}
    if dtype is torch.bfloat16:
        return _ways_in_bf16(config, **cut)
    layers = Plan(64, min(piece, 64), min(chunk, 32), num_warps=4, num_stages=3)
    by_layers = Way("layers", evaluate_by_layers, layers, decode_by_layers, layers)
    small = Plan(64, min(piece, 64), min(chunk, 16), THROUGH=True, num_warps=4, num_stages=1)
    if config.num_blocks == 0:
        return [Way("streamed", evaluate_streamed, small, decode_by_layers, layers)]
    if not _is_narrow(config) or capability < HOPPER:
        return [by_layers]
    decoding = Plan(64, min(piece, 32), min(chunk, 32), THROUGH=True, num_stages=1)
    return [Way("streamed", evaluate_streamed, small, decode_fused, decoding), by_layers]


def _ways_in_bf16(config: ModelConfig, piece: int, chunk: int, capability: int) -> list[Way]:
    layers = Plan(128, piece, chunk, num_stages=3)
    by_layers = Way("layers", evaluate_by_layers, layers, decode_by_layers, layers)
    streamed = Plan(128, piece, chunk)
    if config.num_blocks == 0:
        return [Way("streamed", evaluate_streamed, Plan(64, piece, chunk, num_warps=4), decode_by_layers, layers)]
    if not _is_narrow(config):
        return [by_layers]
    chunk = min(chunk, 32)
    decoding = Plan(128, piece, chunk) if capability >= HOPPER else Plan(64, piece, chunk, THROUGH=True)
    ways = [Way("streamed", evaluate_streamed, streamed, decode_fused, decoding)]
    width, hidden = padded(config.embed_dim, LARGEST_PIECE), padded(config.hidden_dim, LARGEST_CHUNK)
    if capability >= HOPPER and 2 * (2 * config.num_blocks - 1) * width * hidden <= RESIDENT_BYTES:
        resident = Plan(128, piece, streamed.CHUNK, min(64, piece), num_stages=1)
        return [Way("resident", evaluate_resident, resident, decode_fused, decoding), *ways]
    return ways if capability >= HOPPER else [*ways, by_layers]


def _is_narrow(config: ModelConfig) -> bool:
    """Whether a tile's stream fits into registers from the first block to the last."""
    return padded(config.embed_dim, LARGEST_PIECE) <= LARGEST_PIECE
