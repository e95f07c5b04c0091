"""The network of one step for many candidates in one kernel: tables in, distances (and streams) out.

The stream of a tile of candidates stays in registers as float32 from the first block to the distance; what enters a
product is narrowed to DOT on the way. Weights come from the L2 cache, software-pipelined (`network_kernel`), or lie in
shared memory for as long as the program lives (`resident_kernel`: small networks, one program a multiprocessor).

Shape suffixes: P candidates (a hypothesis and a codeword each), R hypotheses (rows), D dimension, K codewords,
E stream width, H hidden width, L blocks. E and H are padded with zeros to multiples of PIECE and CHUNK; without blocks,
H is 0.
"""

import triton
import triton.language as tl


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def narrowed(pieces, COUNT: tl.constexpr, DOT: tl.constexpr):
    narrow_pieces = ()
    for p in tl.static_range(COUNT):
        narrow_pieces = narrow_pieces + (pieces[p].to(DOT),)
    return narrow_pieces


@triton.jit
def add_down(
    e, h, down, first, E: tl.constexpr, H: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The stream's pieces, each with the part that hidden columns `first` .. `first` + CHUNK add to it."""
    columns = first + tl.arange(0, CHUNK)
    sums = ()
    for p in tl.static_range(E // PIECE):
        weights = tl.load(down + (p * PIECE + tl.arange(0, PIECE))[None, :] * H + columns[:, None])
        sums = sums + (tl.dot(h, weights, e[p], input_precision=PRECISION),)
    return sums


@triton.jit
def up_chunk(
    narrow_e, up, first, TILE: tl.constexpr, E: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Hidden columns `first` .. `first` + CHUNK, before the relu: float32 (TILE, CHUNK)."""
    columns = first + tl.arange(0, CHUNK)
    h = tl.zeros((TILE, CHUNK), tl.float32)
    for p in tl.static_range(E // PIECE):
        weights = tl.load(up + columns[None, :] * E + (p * PIECE + tl.arange(0, PIECE))[:, None])
        h = tl.dot(narrow_e[p], weights, h, input_precision=PRECISION)
    return h


@triton.jit
def first_stream(tables, parts, code, row, E: tl.constexpr, H: tl.constexpr, PIECE: tl.constexpr):
    """The stream before the blocks: the codeword's part and the hypothesis's."""
    e = ()
    for p in tl.static_range(E // PIECE):
        columns = p * PIECE + tl.arange(0, PIECE)[None, :]
        of_code = tl.load(tables + code[:, None] * (E + H) + columns).to(tl.float32)
        e = e + (of_code + tl.load(parts + row[:, None] * (E + H) + columns).to(tl.float32),)
    return e


@triton.jit
def first_hidden(tables, parts, code, row, first, E: tl.constexpr, H: tl.constexpr, CHUNK: tl.constexpr):
    """Hidden columns of the first block, whose up-projection is in the tables: float32 (TILE, CHUNK)."""
    columns = E + first + tl.arange(0, CHUNK)[None, :]
    of_code = tl.load(tables + code[:, None] * (E + H) + columns).to(tl.float32)
    return relu(of_code + tl.load(parts + row[:, None] * (E + H) + columns).to(tl.float32))


@triton.jit
def keep(e, at, live, streams, E: tl.constexpr, PIECE: tl.constexpr, DOT: tl.constexpr):
    """Write the stream, narrowed, to the tile's rows of `streams`, where the whole program can read it."""
    tl.debug_barrier()
    for p in tl.static_range(E // PIECE):
        columns = p * PIECE + tl.arange(0, PIECE)[None, :]
        tl.store(streams + at[:, None] * E + columns, e[p].to(DOT), mask=live[:, None])
    tl.debug_barrier()


@triton.jit
def kept(at, live, streams, E: tl.constexpr, PIECE: tl.constexpr):
    e = ()
    for p in tl.static_range(E // PIECE):
        columns = p * PIECE + tl.arange(0, PIECE)[None, :]
        e = e + (tl.load(streams + at[:, None] * E + columns, mask=live[:, None], other=0.0),)
    return e


@triton.jit
def distance(
    at, live, pairs, residual, codebook, back, back_codewords, gram, streams, D, K: tl.constexpr, E: tl.constexpr,
    TILE: tl.constexpr, COLUMNS: tl.constexpr, SKIP: tl.constexpr, PROJECTS: tl.constexpr,
):  # fmt: skip
    """|r - f|^2 of each candidate, of the stream as `keep` has left it: float32 (TILE,).

    With PROJECTS, f = c + P e with orthogonal columns of P: |r - c|^2 + sum of e (g e - 2 (P'r - P'c)).
    """
    pair = tl.load(pairs + at, mask=live, other=0)  # again: registers are dear while the network runs
    row, code = pair // K, pair % K
    total = tl.zeros((TILE,), tl.float32)
    for first in range(0, D, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)[None, :]
        inside = live[:, None] & (columns < D)
        error = tl.load(residual + row[:, None] * D + columns, mask=inside, other=0.0)
        if SKIP:
            error -= tl.load(codebook + code[:, None] * D + columns, mask=inside, other=0.0)
        if not PROJECTS:
            error -= tl.load(streams + at[:, None] * E + columns, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(error * error, 1)
    if PROJECTS:
        for first in range(0, E, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)[None, :]
            e = tl.load(streams + at[:, None] * E + columns, mask=live[:, None], other=0.0).to(tl.float32)
            q = tl.load(back + row[:, None] * E + columns, mask=live[:, None], other=0.0)
            if SKIP:
                q -= tl.load(back_codewords + code[:, None] * E + columns, mask=live[:, None], other=0.0)
            total += tl.sum(e * (tl.load(gram + columns) * e - 2 * q), 1)
        total = tl.where(total < 0, 0.0, total)
    return total


@triton.jit(do_not_specialize=["count"])
def network_kernel(
    pairs, tables, parts, up, down, residual, codebook, back, back_codewords, gram, distances, streams, count, D,
    K: tl.constexpr, E: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr, SKIP: tl.constexpr, PROJECTS: tl.constexpr,
    THROUGH: tl.constexpr, TILE: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program a tile of candidates. up (L, H, E), down (L, E, H) row-major: both are K-major as wgmma wants."""
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = at < count
    pair = tl.load(pairs + at, mask=live, other=0)
    row, code = pair // K, pair % K
    e = first_stream(tables, parts, code, row, E, H, PIECE)
    for first in range(0, H, CHUNK):
        h = first_hidden(tables, parts, code, row, first, E, H, CHUNK)
        e = add_down(e, h.to(DOT), down, first, E, H, PIECE, CHUNK, PRECISION)
    for block in range(1, BLOCKS):
        if THROUGH:
            keep(e, at, live, streams, E, PIECE, DOT)
            narrow_e = kept(at, live, streams, E, PIECE)
        else:
            narrow_e = narrowed(e, E // PIECE, DOT)
        for first in range(0, H, CHUNK):
            h = relu(up_chunk(narrow_e, up + block * H * E, first, TILE, E, PIECE, CHUNK, PRECISION))
            e = add_down(e, h.to(DOT), down + block * H * E, first, E, H, PIECE, CHUNK, PRECISION)
    keep(e, at, live, streams, E, PIECE, DOT)
    found = distance(
        at, live, pairs, residual, codebook, back, back_codewords, gram, streams, D, K, E, TILE, COLUMNS, SKIP, PROJECTS
    )
    tl.store(distances + at, found, mask=live)


@triton.jit(do_not_specialize=["count"])
def resident_kernel(
    pairs, tables, parts, up, down, residual, codebook, back, back_codewords, gram, distances, streams, count, D,
    K: tl.constexpr, E: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr, SKIP: tl.constexpr, PROJECTS: tl.constexpr,
    TILE: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The same with all weights in shared memory: as many programs as multiprocessors, each with every n-th tile."""
    ups, downs = (), ()
    for block in tl.static_range(BLOCKS):
        for c in tl.static_range(H // CHUNK):
            hidden = (block * H + c * CHUNK + tl.arange(0, CHUNK)) * E
            if block > 0:
                for p in tl.static_range(E // PIECE):
                    ups = ups + (tl.load(up + hidden[None, :] + (p * PIECE + tl.arange(0, PIECE))[:, None]),)
            for p in tl.static_range(E // PIECE):
                stream = (block * E + p * PIECE + tl.arange(0, PIECE)) * H
                downs = downs + (tl.load(down + stream[None, :] + (c * CHUNK + tl.arange(0, CHUNK))[:, None]),)
    for tile in range(tl.program_id(0), tl.cdiv(count, TILE), tl.num_programs(0)):
        at = tile * TILE + tl.arange(0, TILE)
        live = at < count
        pair = tl.load(pairs + at, mask=live, other=0)
        row, code = pair // K, pair % K
        e = first_stream(tables, parts, code, row, E, H, PIECE)
        for block in tl.static_range(BLOCKS):
            narrow_e = narrowed(e, E // PIECE, DOT)
            for c in tl.static_range(H // CHUNK):
                if block == 0:
                    h = first_hidden(tables, parts, code, row, c * CHUNK, E, H, CHUNK)
                else:
                    h = tl.zeros((TILE, CHUNK), tl.float32)
                    for p in tl.static_range(E // PIECE):
                        weights = ups[((block - 1) * (H // CHUNK) + c) * (E // PIECE) + p]
                        h = tl.dot(narrow_e[p], weights, h, input_precision=PRECISION)
                    h = relu(h)
                narrow_h = h.to(DOT)
                sums = ()
                for p in tl.static_range(E // PIECE):
                    weights = downs[(block * (H // CHUNK) + c) * (E // PIECE) + p]
                    sums = sums + (tl.dot(narrow_h, weights, e[p], input_precision=PRECISION),)
                e = sums
        keep(e, at, live, streams, E, PIECE, DOT)
        found = distance(
            at,
            live,
            pairs,
            residual,
            codebook,
            back,
            back_codewords,
            gram,
            streams,
            D,
            K,
            E,
            TILE,
            COLUMNS,
            SKIP,
            PROJECTS,
        )
        tl.store(distances + at, found, mask=live)
