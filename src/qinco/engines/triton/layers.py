"""One layer for many rows, with what surrounds it: the way for networks that are too wide for the fused kernel.

Shape suffixes: P rows, K codewords, R hypotheses, I inputs, O outputs.
"""

import triton
import triton.language as tl

from qinco.engines.triton.network import distance, relu


@triton.jit(do_not_specialize=["count"])
def layer_kernel(
    x, weights, added, out, pairs, tables, parts, count, width, inputs, outputs, first_input, K: tl.constexpr,
    GATHERS: tl.constexpr, ADDS: tl.constexpr, RELU: tl.constexpr, TILE: tl.constexpr, PIECE: tl.constexpr,
    CHUNK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (P, O) = x (P, I) weights (O, I)', and more as the constants say; RELU at the end.

    GATHERS: x is not read but is relu(tables[codeword] + parts[hypothesis]) of columns from `first_input` on.
    ADDS: 1 adds the rows of `added` (P, O), 2 tables[codeword] + parts[hypothesis], 3 tables[codeword]; tables are
    (K, width), parts (R, width), pairs (P,) = hypothesis * K + codeword.
    """
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    live = at < count
    pair = tl.load(pairs + at, mask=live, other=0)
    row, code = pair // K, pair % K
    column = tl.program_id(0) * PIECE + tl.arange(0, PIECE)  # neighbours share rows, which lie in the L2 cache
    sums = tl.zeros((TILE, PIECE), tl.float32)
    inside_out = live[:, None] & (column < outputs)[None, :]
    if ADDS == 1:
        sums += tl.load(added + at[:, None] * outputs + column[None, :], mask=inside_out, other=0.0).to(tl.float32)
    if ADDS >= 2:
        sums += tl.load(tables + code[:, None] * width + column[None, :], mask=inside_out, other=0.0).to(tl.float32)
    if ADDS == 2:
        sums += tl.load(parts + row[:, None] * width + column[None, :], mask=inside_out, other=0.0).to(tl.float32)
    for first in range(0, inputs, CHUNK):
        i = first + tl.arange(0, CHUNK)
        inside = live[:, None] & (i < inputs)[None, :]
        if GATHERS:
            of_code = tl.load(tables + code[:, None] * width + first_input + i[None, :], mask=inside, other=0.0)
            of_row = tl.load(parts + row[:, None] * width + first_input + i[None, :], mask=inside, other=0.0)
            values = relu(of_code.to(tl.float32) + of_row.to(tl.float32))
        else:
            values = tl.load(x + at[:, None] * inputs + i[None, :], mask=inside, other=0.0)
        inside_weights = (i < inputs)[:, None] & (column < outputs)[None, :]
        weights_part = tl.load(weights + column[None, :] * inputs + i[:, None], mask=inside_weights, other=0.0)
        sums = tl.dot(values.to(DOT), weights_part, sums, input_precision=PRECISION)
    if RELU:
        sums = relu(sums)
    tl.store(out + at[:, None] * outputs + column[None, :], sums.to(out.dtype.element_ty), mask=inside_out)


@triton.jit(do_not_specialize=["count"])
def distance_kernel(
    pairs, residual, codebook, back, back_codewords, gram, distances, streams, count, D, K: tl.constexpr,
    E: tl.constexpr, SKIP: tl.constexpr, PROJECTS: tl.constexpr, TILE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = at < count
    tl.store(distances + at, distance(at, live, pairs, residual, codebook, back, back_codewords, gram, streams, D, K, E,
                                      TILE, COLUMNS, SKIP, PROJECTS), mask=live)  # fmt: skip
