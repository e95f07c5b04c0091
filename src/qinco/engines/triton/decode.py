"""All steps of decoding in one kernel: codes in, reconstructions out.

The factored first up-projection pays for many candidates of a hypothesis; here each row has its own reconstruction, so
the network is the plain one but for the concatenation, whose codeword's part is a table. The reconstructions of a tile
lie in its rows of `reached`, which only its program touches.

Shape suffixes: N vectors, M steps, D dimension, K codewords, E stream width, H hidden width, L blocks.
"""

import triton
import triton.language as tl

from qinco.engines.triton.network import add_down, keep, kept, narrowed, relu, up_chunk


@triton.jit
def stream_of(
    reached, tables, from_reached, step, code, at, live, D, K: tl.constexpr, E: tl.constexpr, PIECE: tl.constexpr,
    COLUMNS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The stream before the blocks: the codeword's part, and that of the reconstruction so far."""
    e = ()
    for p in tl.static_range(E // PIECE):
        piece = p * PIECE + tl.arange(0, PIECE)
        part = tl.load(tables + (step * K + code)[:, None] * E + piece[None, :]).to(tl.float32)
        for first in range(0, D, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            inside = live[:, None] & (columns[None, :] < D)
            x = tl.load(reached + at[:, None] * D + columns[None, :], mask=inside, other=0.0)
            place = (step * E + piece)[None, :] * D + columns[:, None]
            weights = tl.load(from_reached + place, mask=columns[:, None] < D, other=0.0)
            part = tl.dot(x.to(DOT), weights, part, input_precision=PRECISION)
        e = e + (part,)
    return e


@triton.jit
def add_codeword(
    reached, streams, codebooks, project_out, step, code, at, live, D, K: tl.constexpr, E: tl.constexpr,
    TILE: tl.constexpr, PIECE: tl.constexpr, COLUMNS: tl.constexpr, SKIP: tl.constexpr, PROJECTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the implicit codeword, of the stream as `keep` has left it, to the reconstruction."""
    if PROJECTS:
        e = kept(at, live, streams, E, PIECE)
    for first in range(0, D, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = live[:, None] & (columns[None, :] < D)
        if PROJECTS:
            f = tl.zeros((TILE, COLUMNS), tl.float32)
            for p in tl.static_range(E // PIECE):
                place = (step * D + columns)[None, :] * E + (p * PIECE + tl.arange(0, PIECE))[:, None]
                weights = tl.load(project_out + place, mask=columns[None, :] < D, other=0.0)
                f = tl.dot(e[p], weights, f, input_precision=PRECISION)
        else:
            f = tl.load(streams + at[:, None] * E + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        if SKIP:
            codeword = codebooks + (step * K + code)[:, None] * D + columns[None, :]
            f += tl.load(codeword, mask=inside, other=0.0)
        to = reached + at[:, None] * D + columns[None, :]
        tl.store(to, tl.load(to, mask=inside, other=0.0) + f, mask=inside)


@triton.jit(do_not_specialize=["count", "M"])
def decode_kernel(
    codes, start, first_codebook, codebooks, tables, from_reached, up, down, project_out, reached, streams, count, D, M,
    K: tl.constexpr, E: tl.constexpr, H: tl.constexpr, BLOCKS: tl.constexpr, BARE: tl.constexpr, SKIP: tl.constexpr,
    PROJECTS: tl.constexpr, THROUGH: tl.constexpr, TILE: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """codes (N, M) int32, start (N, D) -> reached (N, D) float32; streams (N, E) is scratch.

    Of the steps with a network, stacked: codebooks (K, D), tables (K, E), from_reached (E, D), up (L, H, E),
    down (L, E, H), project_out (D, E). BARE: the first step is first_codebook (K, D) alone.
    """
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    live = at < count
    for first in range(0, D, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)[None, :]
        inside = live[:, None] & (columns < D)
        x = tl.load(start + at[:, None] * D + columns, mask=inside, other=0.0)
        if BARE:
            code_of_first = tl.load(codes + at * M, mask=live, other=0)
            x += tl.load(first_codebook + code_of_first[:, None] * D + columns, mask=inside, other=0.0)
        tl.store(reached + at[:, None] * D + columns, x, mask=inside)
    for m in range(1 if BARE else 0, M):
        tl.debug_barrier()
        step = m - (1 if BARE else 0)
        code = tl.load(codes + at * M + m, mask=live, other=0)
        e = stream_of(reached, tables, from_reached, step, code, at, live, D, K, E, PIECE, COLUMNS, DOT, PRECISION)
        for block in range(BLOCKS):
            if THROUGH:
                keep(e, at, live, streams, E, PIECE, DOT)
                narrow_e = kept(at, live, streams, E, PIECE)
            else:
                narrow_e = narrowed(e, E // PIECE, DOT)
            layer = (step * BLOCKS + block) * H * E
            for first in range(0, H, CHUNK):
                h = relu(up_chunk(narrow_e, up + layer, first, TILE, E, PIECE, CHUNK, PRECISION))
                e = add_down(e, h.to(DOT), down + layer, first, E, H, PIECE, CHUNK, PRECISION)
        keep(e, at, live, streams, E, PIECE, DOT)
        code = tl.load(codes + at * M + m, mask=live, other=0)  # again: registers are dear in between
        add_codeword(reached, streams, codebooks, project_out, step, code, at, live, D, K, E, TILE, PIECE, COLUMNS,
                     SKIP, PROJECTS, PRECISION)  # fmt: skip
