"""Triton kernels of the scan of inverted lists: the tables of queries, and the nearest vectors of their lists.

A float32 sum is the same wherever its parts are added in the same order. A table's entry adds up the products of the
dimensions one by one with fused multiply-adds, as the compiled engine does, and a vector's value its entries in the
order of the codes: values are those of the processor, bit for bit where that has such instructions, and so are ties.

Shape suffixes: Q queries, D dimension, M codes of a vector, P lists visited, S segments, V lists.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count"])
def tables_kernel(
    queries, rows, tables, count, D, entries, factor, QUERIES: tl.constexpr, ENTRIES: tl.constexpr
):  # fmt: skip
    """queries (Q, D), rows (D, entries), a column for each table entry -> tables (Q, entries), factor <q, row>."""
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    entry = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    is_query, is_entry = query < count, entry < entries
    total = tl.zeros((QUERIES, ENTRIES), tl.float32)
    for d in range(0, D):
        q = tl.load(queries + query * D + d, mask=is_query, other=0.0)
        row = tl.load(rows + d * entries + entry, mask=is_entry, other=0.0)
        total = tl.fma(q[:, None], row[None, :], total)
    to = tables + query.to(tl.int64)[:, None] * entries + entry[None, :]
    tl.store(to, total * factor, mask=is_query[:, None] & is_entry[None, :])


@triton.jit
def keep_smallest(values, rows, count, short, CAPACITY: tl.constexpr):
    """Move the `short` smallest of `count` values to the front, of equal ones the first, in the order they had.

    Returns the largest of them. Their number is found by bisection on the bits of floats, ordered as integers.
    """
    place = tl.arange(0, CAPACITY)
    there = place < count
    tl.debug_barrier()  # other threads have stored what is read here
    value = tl.load(values + place, mask=there, other=float("inf"))
    row = tl.load(rows + place, mask=there, other=0)
    bits = value.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    low = tl.min(key)
    high = tl.max(tl.where(there, key, low))
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)
        number = tl.sum((there & (key <= middle)).to(tl.int32))
        high = tl.where(number >= short, middle, high)
        low = tl.where(number < short, middle + 1, tl.where(number == short, middle, low))
    below = there & (key < high)
    equal = there & (key == high)
    missing = short - tl.sum(below.to(tl.int32))
    ranks = tl.cumsum(below.to(tl.int32) + (equal.to(tl.int32) << 16))
    equal_rank = ranks >> 16
    is_kept = below | (equal & (equal_rank <= missing))
    to = (ranks & 0xFFFF) + tl.minimum(equal_rank, missing) - 1
    tl.debug_barrier()  # all have read what is overwritten here
    tl.store(values + to, value, mask=is_kept)
    tl.store(rows + to, row, mask=is_kept)
    tl.debug_barrier()
    return tl.max(tl.where(is_kept, value, float("-inf")))


@triton.jit(do_not_specialize=["num_probes", "per_part", "nprobe", "num_segments", "num_starts", "short"])
def scan_kernel(
    tables, levels, probes, bases, starts, codes, values, rows, counts, scanned, num_probes, per_part, nprobe,
    num_segments, num_starts, short, M: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program for `per_part` lists of one query: the `short` nearest vectors in the order of their visit.

    tables (Q, M, 256), levels (256,), probes and bases (Q, P), starts (S, V + 1) int64, rows of all segments together,
    codes as InvertedLists lays them out -> values float32 and rows int32 (Q, parts, CAPACITY), counts and scanned
    (Q, parts) int32. Further lists than `nprobe` are visited while fewer than `short` are found: by one part alone.
    """
    query = tl.program_id(0).to(tl.int64)
    part = query * tl.num_programs(1) + tl.program_id(1)
    values += part * CAPACITY
    rows += part * CAPACITY
    tables += query * (M * 256)
    entry = tl.arange(0, 256)
    lane = tl.arange(0, BLOCK)
    count = tl.full((), 0, tl.int32)
    visited = tl.full((), 0, tl.int32)
    limit = tl.full((), float("inf"), tl.float32)
    first = tl.program_id(1) * per_part
    for j in range(first, min(first + per_part, num_probes)):
        number = tl.load(probes + query * num_probes + j)
        if (number >= 0) & ((j < nprobe) | (count < short)):
            base = tl.load(bases + query * num_probes + j)
            for s in range(0, num_segments):
                begin = tl.load(starts + s * num_starts + number)
                length = (tl.load(starts + s * num_starts + number + 1) - begin).to(tl.int32)
                visited += length
                for inside in range(0, length, BLOCK):
                    place = inside + lane
                    is_there = place < length
                    block = place // 64 * 64
                    width = tl.minimum(length - block, 64)
                    at = (begin + block) * (M + 1) + (place - block)
                    value = tl.zeros((BLOCK,), tl.float32) + base
                    for m in tl.static_range(M):
                        code = tl.load(codes + at, mask=is_there, other=0).to(tl.int32)
                        value += tl.gather(tl.load(tables + m * 256 + entry), code, 0)
                        at += width
                    code = tl.load(codes + at, mask=is_there, other=0).to(tl.int32)
                    value += tl.gather(tl.load(levels + entry), code, 0)
                    value = tl.where(value == 0, 0.0, value)  # zeros have one sign
                    is_near = is_there & (value < limit) & (value > float("-inf"))
                    found = tl.sum(is_near.to(tl.int32))
                    if found > 0:
                        to = count + tl.cumsum(is_near.to(tl.int32)) - 1
                        tl.store(values + to, value, mask=is_near)
                        tl.store(rows + to, (begin + place).to(tl.int32), mask=is_near)
                        count += found
                        if count > CAPACITY - BLOCK:
                            limit = keep_smallest(values, rows, count, short, CAPACITY)
                            count = tl.minimum(count, short)
    if count > short:
        keep_smallest(values, rows, count, short, CAPACITY)
    tl.store(counts + part, tl.minimum(count, short))
    tl.store(scanned + part, visited)
