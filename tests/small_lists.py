"""Inverted lists of arrays, for tests."""

from qinco.search.lists import BLOCK_ROWS, TILE, InvertedLists, ListsBuilder, id_dtype


def lists_of(codes_NM, norm_codes_N, lists_N, ids_N, num_lists, block_rows=BLOCK_ROWS, tile=TILE) -> InvertedLists:
    """Vectors (codes and norm codes uint8, lists and ids integers) in lists, in which they keep their order."""
    builder = ListsBuilder(num_lists, codes_NM.shape[1], tile)
    builder.add_counts(lists_N)
    builder.allocate(id_dtype(ids_N))
    for start in range(0, len(ids_N), block_rows):
        rows = slice(start, start + block_rows)
        builder.fill(codes_NM[rows], norm_codes_N[rows], lists_N[rows], ids_N[rows])
    return builder.finish()
