"""Estimates of many candidates' errors from the network's first hidden layer (see `qinco.model.step.Ranker`).

Shape suffixes: P candidates, R hypotheses, K codewords, H hidden width.
"""

import triton
import triton.language as tl

from qinco.engines.triton.network import relu


@triton.jit(do_not_specialize=["count"])
def estimate_kernel(
    pairs, tables, parts, products, own, offset, slopes, squares, estimates, count, width, hidden, K: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """own[row] + offset[code] - 2 products[row, code] + sum of h (slopes[row] + squares h), h the hidden layer.

    pairs (P,), tables (K, width), parts (R, width), whose last H = hidden columns are the hidden layer's, products
    (R, K), own (R,), offset (K,), slopes (R, H), squares (H,) -> estimates (P,). H is an argument: a loop of constant
    length would be unrolled, and its loads take all registers.
    """
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = at < count
    pair = tl.load(pairs + at, mask=live, other=0)
    row, code = pair // K, pair % K
    total = tl.load(own + row, mask=live, other=0.0) + tl.load(offset + code, mask=live, other=0.0)
    total -= 2 * tl.load(products + pair, mask=live, other=0.0)
    for first in range(0, hidden, CHUNK):
        columns = first + tl.arange(0, CHUNK)[None, :]
        of_code = tl.load(tables + code[:, None] * width + width - hidden + columns).to(tl.float32)
        h = relu(of_code + tl.load(parts + row[:, None] * width + width - hidden + columns).to(tl.float32))
        slope = tl.load(slopes + row[:, None] * hidden + columns) + tl.load(squares + columns) * h
        total += tl.sum(h * slope, 1)
    tl.store(estimates + at, total, mask=live)
