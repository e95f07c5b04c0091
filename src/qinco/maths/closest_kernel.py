"""The Triton kernel of `split_products`: the best few centroids of each vector, without a matrix of all distances.

Shape suffixes: N vectors, K centroids, D dimension, S slices of the centroids.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "size"])  # else the last part of a file is compiled again
def closest_kernel(
    x_high, x_low, c_high, c_low, norms, values, numbers, count, size, D, per_slice,
    TILE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program for TILE vectors and one slice of `per_slice` centroids.

    x_high, x_low (N, D) and c_high, c_low (K, D) are the halves of float32 numbers in bf16, D a multiple of CHUNK;
    norms (K,) are |c|^2 -> values (N, S, 3) float32, the three smallest |c|^2 - 2 <x, c> of a slice in order, and
    numbers (N, S, 3) int32, of which the third is left alone.
    """
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_row = row < count
    of_row = row.to(tl.int64)[:, None] * D
    start = tl.program_id(1) * per_slice
    first = tl.full((TILE,), float("inf"), tl.float32)
    second = first
    third = first
    first_number = tl.zeros((TILE,), tl.int32)
    second_number = first_number
    place = tl.arange(0, BLOCK)
    for begin in range(start, min(start + per_slice, size), BLOCK):
        column = begin + place
        is_column = column < size
        of_column = column.to(tl.int64)[None, :] * D
        cross = tl.zeros((TILE, BLOCK), tl.float32)
        for begin_d in range(0, D, CHUNK):
            d = begin_d + tl.arange(0, CHUNK)
            xh = tl.load(x_high + of_row + d[None, :], mask=is_row[:, None], other=0.0)
            xl = tl.load(x_low + of_row + d[None, :], mask=is_row[:, None], other=0.0)
            ch = tl.load(c_high + of_column + d[:, None], mask=is_column[None, :], other=0.0)
            cl = tl.load(c_low + of_column + d[:, None], mask=is_column[None, :], other=0.0)
            cross = tl.dot(xh, cl, cross)
            cross = tl.dot(xl, ch, cross)
            cross = tl.dot(xh, ch, cross)
        norm = tl.load(norms + column, mask=is_column, other=float("inf"))
        value = norm[None, :] - 2 * cross
        # After the first blocks few hold anything near: the rest costs one comparison.
        if tl.max((tl.min(value, 1) < third).to(tl.int32), 0) > 0:
            for _ in tl.static_range(3):
                least, at = tl.min(value, 1, return_indices=True)
                is_first = least < first
                is_second = least < second
                third = tl.where(is_second, second, tl.minimum(third, least))
                second = tl.where(is_first, first, tl.where(is_second, least, second))
                second_number = tl.where(is_first, first_number, tl.where(is_second, begin + at, second_number))
                first = tl.where(is_first, least, first)
                first_number = tl.where(is_first, begin + at, first_number)
                value = tl.where(place[None, :] == at[:, None], float("inf"), value)
    to = (row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * 3
    tl.store(values + to, first, mask=is_row)
    tl.store(values + to + 1, second, mask=is_row)
    tl.store(values + to + 2, third, mask=is_row)
    tl.store(numbers + to, first_number, mask=is_row)
    tl.store(numbers + to + 1, second_number, mask=is_row)
