"""Launching the kernels of one step.

Shape suffixes: N vectors, B hypotheses, C candidates, P = N C candidates of a tile, R = N B hypotheses of it,
D dimension, K codewords, E stream width, H hidden width. A candidate is one int32: hypothesis * K + codeword.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from qinco.engines.triton.decode import decode_kernel
from qinco.engines.triton.layers import distance_kernel, layer_kernel
from qinco.engines.triton.network import network_kernel, resident_kernel
from qinco.engines.triton.packed import PackedStep, power_above, products
from qinco.engines.triton.ranking import estimate_kernel
from qinco.engines.triton.selection import (
    LONGEST,
    MOST_CHOSEN_OF,
    choose_kernel,
    propose_kernel,
    shorten_kernel,
)
from qinco.maths.distances import smallest

SPILLED: set[str] = set()  # kernels that did not get all the registers that they need: they are slow


@dataclass(frozen=True)
class Plan:
    """How a kernel is cut. THROUGH: the narrowed stream reaches the products through memory, not registers."""

    TILE: int
    PIECE: int
    CHUNK: int
    COLUMNS: int = 32
    THROUGH: bool = False
    num_warps: int = 8
    num_stages: int = 2

    def of(self, kernel) -> dict:
        names = {*kernel.arg_names, "num_warps", "num_stages"}
        return {name: value for name, value in vars(self).items() if name in names}


def launch(kernel, grid: tuple[int, ...], *arguments, **constants) -> None:
    compiled = kernel[grid](*arguments, **constants)
    if getattr(compiled, "n_spills", 0):
        SPILLED.add(kernel.__name__)


def arithmetic(dtype: torch.dtype) -> dict:
    """The kernels' constants for a dtype: a float32 product is three of tf32 parts."""
    return {"DOT": tl.bfloat16 if dtype is torch.bfloat16 else tl.float32, "PRECISION": "tf32x3"}


# Proposing and choosing


def propose(step: PackedStep, residual_RD: Tensor, own_R: Tensor, beam: int, wanted: int) -> Tensor:
    """The `wanted` candidates of least cheap distance of every `beam` hypotheses: int32 (R / beam, wanted)."""
    cross_RK = products(residual_RD, step)
    groups, K = len(residual_RD) // beam, len(step.codebook)
    rows = power_above(beam)
    if rows * K > LONGEST:
        distances = (own_R[:, None] + step.norms).sub_(cross_RK, alpha=2).clamp_(min=0).view(groups, -1)
        first = torch.arange(groups, device=own_R.device)[:, None] * beam * K
        return (smallest(distances, wanted)[1] + first).int()
    pairs = torch.empty((groups, wanted), dtype=torch.int32, device=own_R.device)
    launch(
        propose_kernel, (groups,), cross_RK, own_R, step.norms, pairs, BEAM=beam, K=K, WANTED=wanted, ROWS=rows,
        PART=max(1, min(rows, 2048 // K)), num_warps=power_above(min(16, -(-rows * K // 1024))),
    )  # fmt: skip
    return pairs


def shorten(step: PackedStep, pairs_NC: Tensor, reached_RD, residual_RD, own_R, parts, groups: int, wanted: int):
    """The `wanted` candidates of least estimated error of each of `groups` of a vector's candidates, (N, C')."""
    back = residual_RD @ step.project_out if step.projects else residual_RD
    own = own_R + reached_RD @ step.rank_slope
    own -= 2 * (back * (reached_RD @ step.rank_map[: back.shape[1]].T)).sum(1)
    slopes_RH = step.rank_hidden_slope - 2 * back @ step.rank_hidden_map[: back.shape[1]]
    estimates = torch.empty(pairs_NC.shape, device=own.device)
    launch(
        estimate_kernel, (triton.cdiv(pairs_NC.numel(), 64),), pairs_NC, step.tables, parts,
        residual_RD @ step.rank_codebook.T, own, step.rank_offset, slopes_RH, step.rank_hidden_square, estimates,
        pairs_NC.numel(), step.E + step.H, step.H, K=len(step.codebook), TILE=64, CHUNK=min(32, step.H), num_warps=4,
    )  # fmt: skip
    estimates, pairs = (values.view(len(pairs_NC) * groups, -1) for values in (estimates, pairs_NC))
    each = pairs.shape[1]
    if wanted >= each:
        return pairs_NC
    if power_above(each) > LONGEST:
        found = pairs.gather(1, smallest(estimates, wanted)[1])
    else:
        found = torch.empty((len(pairs), wanted), dtype=torch.int32, device=own.device)
        warps = power_above(min(16, -(-each // 1024)))
        sizes = {"C": each, "WANTED": wanted, "PADDED": max(16, power_above(each))}
        launch(shorten_kernel, (len(pairs),), estimates, pairs, found, **sizes, num_warps=warps)
    return found.view(len(pairs_NC), -1)


def choose(step: PackedStep, pairs_NC, distances_P, streams_PE, x_ND, reached_RD, wanted: int):
    """The winners' pairs (N, wanted), and their reconstructions, residuals (N wanted, D) and residuals' squares."""
    (N, C), (K, D), device = pairs_NC.shape, step.codebook.shape, x_ND.device
    if C > MOST_CHOSEN_OF:
        return _choose_by_torch(step, pairs_NC, distances_P, streams_PE, x_ND, reached_RD, wanted)
    chosen = torch.empty((N, wanted), dtype=torch.int32, device=device)
    after, residual = x_ND.new_empty((N * wanted, D)), x_ND.new_empty((N * wanted, D))
    own, kept = x_ND.new_empty((N * wanted,)), streams_PE.new_empty((N * wanted if step.projects else 1, step.E))
    launch(
        choose_kernel, (N,), distances_P, pairs_NC, streams_PE, x_ND, reached_RD, step.codebook, chosen, after,
        residual, own, kept, D, C=C, WANTED=wanted, K=K, E=step.E, SKIP=step.skip, PROJECTS=step.projects,
        PADDED=max(16, power_above(C)), COLUMNS=32 if C <= 128 else 16, num_warps=4 if C <= 128 else 8 if C <= 512
        else 16,
    )  # fmt: skip
    if not step.projects:
        return chosen, after, residual, own
    after += kept.float() @ step.project_out.T
    return chosen, after, *residuals(x_ND, after)


def _choose_by_torch(step: PackedStep, pairs_NC, distances_P, streams_PE, x_ND, reached_RD, wanted: int):
    N, C = pairs_NC.shape
    places = smallest(distances_P.view(N, C), wanted)[1]
    chosen = pairs_NC.gather(1, places)
    row, code = chosen.flatten().long() // len(step.codebook), chosen.flatten().long() % len(step.codebook)
    at = (places + torch.arange(N, device=places.device)[:, None] * C).flatten()
    e = streams_PE[at].float()
    after = reached_RD[row] + (e @ step.project_out.T if step.projects else e[:, : x_ND.shape[1]])
    if step.skip:
        after += step.codebook[code]
    return chosen, after, *residuals(x_ND, after)


def residuals(x_ND: Tensor, reached_RD: Tensor) -> tuple[Tensor, Tensor]:
    """What the hypotheses of each vector leave, and its squared length."""
    residual = x_ND.repeat_interleave(len(reached_RD) // len(x_ND), 0) - reached_RD
    return residual, residual.square().sum(1)


# The network


def parts_of(step: PackedStep, reached_RD: Tensor) -> Tensor:
    """What each hypothesis adds to the stream and to the first hidden layer, (R, E + H)."""
    return reached_RD.to(step.dtype) @ step.from_reached.T


def _fused(kernel, programs: Callable[[Tensor, int], int]) -> Callable:
    def evaluate(step: PackedStep, plan: Plan, pairs: Tensor, parts: Tensor, residual_RD: Tensor):
        distances, streams, ends, shape = _ends(step, pairs, residual_RD)
        grid = (programs(pairs, triton.cdiv(pairs.numel(), plan.TILE)),)
        launch(
            kernel, grid, pairs, step.tables, parts, step.up, step.down, *ends, H=step.H, BLOCKS=step.num_blocks,
            **shape, **plan.of(kernel), **arithmetic(step.dtype),
        )  # fmt: skip
        return distances, streams

    return evaluate


def _multiprocessors(pairs: Tensor, tiles: int) -> int:
    count = torch.cuda.get_device_properties(pairs.device).multi_processor_count if pairs.is_cuda else 3
    return min(count, tiles)


# Each gives distances (P,) and streams (P, E) of candidates.
evaluate_streamed = _fused(network_kernel, lambda pairs, tiles: tiles)
evaluate_resident = _fused(resident_kernel, _multiprocessors)


def evaluate_by_layers(step: PackedStep, plan: Plan, pairs: Tensor, parts: Tensor, residual_RD: Tensor):
    distances, streams, ends, shape = _ends(step, pairs, residual_RD)
    hidden = streams.new_empty((len(streams), step.H))
    layer(step, plan, None, step.down[0], streams, pairs, parts=parts, first=step.E, adds=2)
    for up, down in zip(step.up[1:], step.down[1:], strict=True):
        layer(step, plan, streams, up, hidden, pairs, relu=True)
        layer(step, plan, hidden, down, streams, pairs, added=streams, adds=1)
    grid = (triton.cdiv(len(distances), plan.TILE),)
    launch(distance_kernel, grid, pairs, *ends, **shape, **plan.of(distance_kernel))
    return distances, streams


def _ends(step: PackedStep, pairs: Tensor, residual_RD: Tensor):
    """Distances and streams to be filled, and the arguments and constants that all kernels of the network share."""
    count, (K, D) = pairs.numel(), step.codebook.shape
    back = residual_RD @ step.project_out if step.projects else residual_RD
    distances = residual_RD.new_empty((count,))
    streams = step.tables.new_empty((count, step.E))
    ends = residual_RD, step.codebook, back, step.back_codewords, step.gram, distances, streams, count, D
    return distances, streams, ends, {"K": K, "E": step.E, "SKIP": step.skip, "PROJECTS": step.projects}


def layer(step: PackedStep, plan: Plan, x, weights, out, pairs, added=None, parts=None, first=None, adds=0, relu=False):
    """One layer of many rows into `out`; with `first`, x is the hidden columns that start there in tables and parts."""
    outputs, inputs = weights.shape
    launch(
        layer_kernel, (triton.cdiv(outputs, plan.PIECE), triton.cdiv(len(out), plan.TILE)),
        x if x is not None else out, weights, added if added is not None else out, out, pairs, step.tables,
        parts if parts is not None else step.tables, len(out), step.E + step.H, inputs, outputs, first or 0,
        K=len(step.codebook), GATHERS=first is not None, ADDS=adds, RELU=relu, **plan.of(layer_kernel),
        **arithmetic(step.dtype),
    )  # fmt: skip


# Decoding


def decode_fused(steps: list[PackedStep], stacked: dict[str, Tensor], plan: Plan, codes_NM: Tensor, start_ND: Tensor):
    """Reconstructions (N, D) of codes, all steps in one launch."""
    (N, M), first, last, (K, D) = codes_NM.shape, steps[0], steps[-1], steps[0].codebook.shape
    reached, streams = torch.empty_like(start_ND), last.tables.new_empty((N, last.E))
    project_out = stacked["narrow_out"] if last.projects else stacked["from_reached"]
    launch(
        decode_kernel, (triton.cdiv(N, plan.TILE),), codes_NM.int().contiguous(), start_ND, first.codebook,
        *(stacked[name] for name in ("codebook", "tables", "from_reached", "up", "down")), project_out, reached,
        streams, N, D, M, K=K, E=last.E, H=last.H, BLOCKS=last.num_blocks, BARE=not first.conditioned,
        SKIP=last.skip, PROJECTS=last.projects, **plan.of(decode_kernel), **arithmetic(last.dtype),
    )  # fmt: skip
    return reached


def stacked_steps(steps: list[PackedStep]) -> dict[str, Tensor]:
    """The weights of all steps with a network, as `decode_fused` reads them."""
    conditioned = [step for step in steps if step.conditioned]
    names = ["codebook", "up", "down", *(["narrow_out"] if conditioned[0].projects else [])]
    stacked = {name: torch.stack([getattr(step, name) for step in conditioned]) for name in names}
    stacked["tables"] = torch.stack([step.tables[:, : step.E] for step in conditioned]).contiguous()
    stacked["from_reached"] = torch.stack([step.from_reached[: step.E] for step in conditioned]).contiguous()
    return stacked


def decode_by_layers(steps: list[PackedStep], stacked, plan: Plan, codes_NM: Tensor, start_ND: Tensor):
    """The same, a launch a layer: for widths whose fused kernel would spill."""
    reached = start_ND
    for m, step in enumerate(steps[: codes_NM.shape[1]]):
        code = codes_NM[:, m].int()
        if step.conditioned:
            e = step.tables.new_empty((len(code), step.E))
            h = step.tables.new_empty((len(code), step.H))
            layer(step, plan, reached.to(step.dtype), step.from_reached[: step.E], e, code, adds=3)
            for up, down in zip(step.up[: step.num_blocks], step.down[: step.num_blocks], strict=True):
                layer(step, plan, e, up, h, code, relu=True)
                layer(step, plan, h, down, e, code, added=e, adds=1)
            reached = reached + (e.float() @ step.project_out.T if step.projects else e[:, : start_ND.shape[1]].float())
        if step.skip or not step.conditioned:
            reached = reached + step.codebook[code.long()]
    return reached
