"""Beam search over the steps by the kernels, a tile of vectors at a time (QINCo2 paper, section 3.2).

Shape suffixes: N vectors of a tile, D dimension, M steps, B hypotheses, C candidates, R = N B, K codewords.
"""

import torch
from torch import Tensor

from qinco.config import EncodeOptions, ModelConfig
from qinco.engines.torch_engine import SHORTLISTED, num_candidates
from qinco.engines.triton.launches import choose, parts_of, propose, residuals, shorten
from qinco.engines.triton.packed import LARGEST_CHUNK, LARGEST_PIECE, PackedStep, padded
from qinco.engines.triton.ways import Way

TILE_BYTES = 1 << 30
_MOST_OFFSETS = (1 << 31) - 1  # the kernels' offsets are int32


def tile_size(config: ModelConfig, options: EncodeOptions, num_bytes: int) -> int:
    """Vectors of a tile, whose products take `num_bytes` a number."""
    K, D = config.codebook_size, config.dim
    E, H = padded(config.embed_dim, LARGEST_PIECE), padded(config.hidden_dim, LARGEST_CHUNK)
    beam = min(options.beam_width, K**config.num_steps)
    candidates = min(options.num_pairs or beam * (options.num_candidates or K), beam * K)
    shortlisted = candidates * SHORTLISTED if config.has_ranker else candidates
    of_candidates = candidates * (num_bytes * (E + H) + 8) + 8 * shortlisted
    of_hypotheses = beam * (12 * K + 2 * num_bytes * (E + H) + 4 * H + 24 * D)
    by_offsets = _MOST_OFFSETS // max(beam * max(K, E + H, D), candidates * max(E, H))
    return max(1, min(TILE_BYTES // (of_candidates + of_hypotheses), by_offsets))


def decoding_tile_size(config: ModelConfig) -> int:
    """Vectors that are decoded at a time."""
    E, H = padded(config.embed_dim, LARGEST_PIECE), padded(config.hidden_dim, LARGEST_CHUNK)
    return max(1, TILE_BYTES // (4 * (2 * config.dim + E + H)))


@torch.no_grad()
def encode(
    steps: list[PackedStep], way: Way, options: EncodeOptions, x_ND: Tensor, start_ND: Tensor
) -> tuple[Tensor, Tensor]:
    """Codes (N, M) int64 and reconstructions (N, D) of a tile, as the torch engine finds them."""
    reached_RD, beam, history = start_ND, 1, []
    residual_RD, own_R = residuals(x_ND, reached_RD)
    for m, step in enumerate(steps):
        K, is_last = len(step.codebook), m + 1 == len(steps)
        width = 1 if is_last else options.beam_width
        if not step.conditioned:
            chosen_NB = propose(step, residual_RD, own_R, 1, min(width, K))
            reached_RD = (reached_RD[:, None] + step.codebook[chosen_NB.long() % K]).flatten(0, 1)
            residual_RD, own_R = residuals(x_ND, reached_RD)
        else:
            parts = parts_of(step, reached_RD)
            pairs_NC = _candidates(step, options, reached_RD, residual_RD, own_R, parts, beam, is_last)
            distances_P, streams_PE = way.evaluate(step, way.plan, pairs_NC, parts, residual_RD)
            width = min(width, pairs_NC.shape[1])
            chosen_NB, reached_RD, residual_RD, own_R = choose(
                step, pairs_NC, distances_P, streams_PE, x_ND, reached_RD, width
            )
        history.append((chosen_NB, K))
        beam = chosen_NB.shape[1]
    return _codes(history), reached_RD


def _candidates(
    step: PackedStep, options: EncodeOptions, reached_RD, residual_RD, own_R, parts, beam: int, is_last: bool
) -> Tensor:
    """The candidates that the network evaluates, int32 (N, C)."""
    rows, K = len(residual_RD), len(step.codebook)
    if not options.preselects:
        return torch.arange(rows * K, dtype=torch.int32, device=own_R.device).view(rows // beam, -1)
    is_whole = options.num_pairs is not None
    count = num_candidates(options, beam, is_last and step.ranks)
    proposed = min(count * (SHORTLISTED if step.ranks else 1), beam * K if is_whole else K)
    pairs_NC = propose(step, residual_RD, own_R, beam if is_whole else 1, proposed).view(rows // beam, -1)
    if not step.ranks:
        return pairs_NC
    groups = 1 if is_whole else beam
    return shorten(step, pairs_NC, reached_RD, residual_RD, own_R, parts, groups, min(count, proposed))


def _codes(history: list[tuple[Tensor, int]]) -> Tensor:
    """The winners' codes: the last step has kept one hypothesis, and each knows its row in the step before."""
    last = history[-1][0]
    row, codes = torch.arange(len(last), device=last.device), []
    for chosen_NB, K in reversed(history):
        pair = chosen_NB.flatten().long()[row]
        row, code = pair // K, pair % K
        codes.insert(0, code)
    return torch.stack(codes, 1)
