"""Exact selection of the smallest distances of each vector, by bisection on their bits.

Shape suffixes: N vectors, B hypotheses, C candidates, K codewords, W winners, D dimension, E stream width.
"""

import triton
import triton.language as tl

LONGEST = 16384  # values of one proposal: they lie in the registers of one program
MOST_CHOSEN_OF = 1024  # candidates of one choice, for whose rows the program has registers, too


@triton.jit
def keys_of(values, valid):
    """Distances as integers of the same order: below zero is zero, what is no number comes last, padding after it."""
    values = tl.where(values < 0, 0.0, values)
    keys = tl.where(values == values, values, float("inf")).to(tl.int32, bitcast=True)
    return tl.where(valid, keys, 0x7FFFFFFF)


@triton.jit
def signed_keys_of(values, valid):
    """The same of values that may be below zero."""
    bits = tl.where(values == values, values, float("inf")).to(tl.int32, bitcast=True)
    return tl.where(valid, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)


@triton.jit
def bound_of(keys, valid, wanted):
    """The `wanted`-th smallest key or one that leaves as many below it, and how many equal to it are wanted."""
    low = tl.min(keys)
    high = tl.max(tl.where(valid, keys, low))  # as many as are wanted are no larger
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        count = tl.sum((keys <= middle).to(tl.int32))
        high = tl.where(count >= wanted, middle, high)
        low = tl.where(count < wanted, middle + 1, tl.where(count == wanted, middle, low))
    return high, wanted - tl.sum((keys < high).to(tl.int32))


@triton.jit
def numbered(keys, bound, missing, before):
    """Which keys are chosen, of those equal to `bound` the first `missing`, and their numbers in the order of places.

    `before` counts the keys of parts before this one, below and equal in one number, as the third result does after it.
    """
    below = keys < bound
    equal = keys == bound
    counts = below.to(tl.int32) + (equal.to(tl.int32) << 16)
    ranks = before + tl.cumsum(counts)
    equal_rank = ranks >> 16
    is_chosen = below | (equal & (equal_rank <= missing))
    return is_chosen, (ranks & 0xFFFF) + tl.minimum(equal_rank, missing) - 1, before + tl.sum(counts)


@triton.jit
def pair_keys(cross, own, norms, row, there, K: tl.constexpr, COUNT: tl.constexpr):
    """Keys of |r - c|^2 = own + norm - 2 cross of all codewords, row by row: int32 (COUNT,)."""
    code = tl.arange(0, K)[None, :]
    distance = tl.load(own + row, mask=there, other=0.0)[:, None] + tl.load(norms + code)
    distance -= 2 * tl.load(cross + row[:, None] * K + code, mask=there[:, None], other=0.0)
    return keys_of(tl.reshape(distance, [COUNT]), tl.reshape(there[:, None] & (code >= 0), [COUNT]))


@triton.jit
def propose_kernel(
    cross, own, norms, pairs, BEAM: tl.constexpr, K: tl.constexpr, WANTED: tl.constexpr, ROWS: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """The WANTED pairs of least distance of BEAM hypotheses (1: of each hypothesis alone).

    cross (rows, K), own (rows,), norms (K,) -> pairs (programs, WANTED) int32: row * K + codeword. K is a power of two,
    ROWS the one that BEAM is padded to. The second pass, by PART rows, reads again what registers cannot hold twice.
    """
    start = tl.program_id(0) * BEAM
    row = tl.arange(0, ROWS)
    keys = pair_keys(cross, own, norms, start + row, row < BEAM, K, ROWS * K)
    bound, missing = bound_of(keys, tl.arange(0, ROWS * K) < BEAM * K, WANTED)
    before = 0
    for first in range(0, ROWS, PART):
        row_of_part = first + tl.arange(0, PART)
        keys_of_part = pair_keys(cross, own, norms, start + row_of_part, row_of_part < BEAM, K, PART * K)
        is_chosen, number, before = numbered(keys_of_part, bound, missing, before)
        place = first * K + tl.arange(0, PART * K)
        tl.store(pairs + tl.program_id(0) * WANTED + number, start * K + place, mask=is_chosen)


@triton.jit
def choose_kernel(
    distances, pairs, streams, x, reached, codebook, chosen, next_reached, residual, own, kept_streams, D,
    C: tl.constexpr, WANTED: tl.constexpr, K: tl.constexpr, E: tl.constexpr, SKIP: tl.constexpr, PROJECTS: tl.constexpr,
    PADDED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program a vector: its WANTED nearest candidates and their reconstructions.

    distances, pairs (N, C), streams (N * C, E), x (N, D), reached (rows, D), codebook (K, D)
    -> chosen (N, WANTED), pairs; next_reached, residual (N * WANTED, D), own (N * WANTED,), the residual's square.
    With PROJECTS the projection of kept_streams (N * WANTED, E) is still to be added, so there is no residual yet.
    """
    n = tl.program_id(0)
    place = tl.arange(0, PADDED)
    valid = place < C
    keys = keys_of(tl.load(distances + n * C + place, mask=valid, other=0.0), valid)
    bound, missing = bound_of(keys, valid, WANTED)
    is_chosen, number, _ = numbered(keys, bound, missing, 0)
    pair = tl.load(pairs + n * C + place, mask=is_chosen, other=0)
    row, code = pair // K, pair % K
    to = n * WANTED + number
    tl.store(chosen + to, pair, mask=is_chosen)
    square = tl.zeros((PADDED,), tl.float32)
    for first in range(0, D, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)[None, :]
        inside = is_chosen[:, None] & (columns < D)
        value = tl.load(reached + row[:, None] * D + columns, mask=inside, other=0.0)
        if SKIP:
            value += tl.load(codebook + code[:, None] * D + columns, mask=inside, other=0.0)
        if not PROJECTS:
            stream = streams + (n * C + place)[:, None] * E + columns
            value += tl.load(stream, mask=inside, other=0.0).to(tl.float32)
            rest = tl.where(inside, tl.load(x + n * D + columns, mask=columns < D, other=0.0) - value, 0.0)
            square += tl.sum(rest * rest, 1)
            tl.store(residual + to[:, None] * D + columns, rest, mask=inside)
        tl.store(next_reached + to[:, None] * D + columns, value, mask=inside)
    if PROJECTS:
        for first in range(0, E, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)[None, :]
            stream = tl.load(streams + (n * C + place)[:, None] * E + columns, mask=is_chosen[:, None])
            tl.store(kept_streams + to[:, None] * E + columns, stream, mask=is_chosen[:, None])
    else:
        tl.store(own + to, square, mask=is_chosen)


@triton.jit
def shorten_kernel(estimates, pairs, shortlist, C: tl.constexpr, WANTED: tl.constexpr, PADDED: tl.constexpr):
    """The WANTED pairs of least estimate of each group: estimates, pairs (groups, C) -> shortlist (groups, WANTED)."""
    group = tl.program_id(0)
    place = tl.arange(0, PADDED)
    valid = place < C
    keys = signed_keys_of(tl.load(estimates + group * C + place, mask=valid, other=0.0), valid)
    bound, missing = bound_of(keys, valid, WANTED)
    is_chosen, number, _ = numbered(keys, bound, missing, 0)
    pair = tl.load(pairs + group * C + place, mask=is_chosen, other=0)
    tl.store(shortlist + group * WANTED + number, pair, mask=is_chosen)
