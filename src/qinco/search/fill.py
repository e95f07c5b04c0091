"""Filling inverted lists with codes."""

from collections.abc import Callable

import numpy as np

from qinco.codec.codec import Codec
from qinco.machine import num_threads
from qinco.progress import Progress, silent
from qinco.search.calibrate import corrections_of
from qinco.search.code_file import CodeFile
from qinco.search.lists import InvertedLists, ListsBuilder, id_dtype
from qinco.search.tables import SearchTables
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource


def fill_lists(
    tables: SearchTables, codes: Codes | CodeFile, ids: np.ndarray | range, report: Progress = silent, create=None,
    block_rows: int = 1 << 17, corrections: Callable[[int, Codes], np.ndarray] | None = None,
) -> InvertedLists:  # fmt: skip
    """Inverted lists of codes that have list numbers, read twice in blocks; `create` as in `ListsBuilder.allocate`.

    `corrections` gives those of a block, by the number of its first vector and its codes.
    """
    builder = ListsBuilder(tables.num_lists, tables.lookup.num_codes)
    for _, block in codes.blocks(block_rows):
        builder.add_counts(block.lists)
    edges = np.array([ids[0], ids[-1]], np.int64) if isinstance(ids, range) and len(ids) else np.asarray(ids, np.int64)
    builder.allocate(id_dtype(edges), create)
    for first, block in codes.blocks(block_rows):
        codes_NM, lists_N = np.ascontiguousarray(block.codes, np.uint8), np.asarray(block.lists)
        own_N = None if corrections is None else corrections(first, block)
        norm_codes_N = tables.norm_codes(codes_NM, lists_N, num_threads(), own_N)
        builder.fill(codes_NM, norm_codes_N, lists_N, np.asarray(ids[first : first + len(block)], np.int64))
        report("filling lists", first + len(block), len(codes))
    return builder.finish()


def corrections_by(tables: SearchTables, codec: Codec | None, base: VectorSource | None):
    """Gives the corrections of a block of codes, for `fill_lists`; None without vectors."""
    if codec is None or base is None or tables.ranking is None:
        return None
    given, mean_D = (codec, tables.lookup), tables.ranking.mean_D
    return lambda first, codes: corrections_of(*given, codes, base.window(first, first + len(codes)), mean_D)
