"""Inverted lists: the codes and ids of many vectors, those of one list together, laid out for the scan.

List v holds the positions starts[v] to starts[v + 1], and its bytes begin at starts[v] · (M + 1). They are blocks of 64
vectors. A block is a matrix (M + 1, 64) of bytes, row-major: a row for each code, then the row of scalars, which are
what the scan adds to a vector's distance. The last block of a list has as many columns as there are vectors left, so
that nothing is padded: a vector takes M + 1 bytes and its id.

Shape suffixes: N vectors, M codes of a vector, V lists.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qinco.errors import DataError

WIDTH = 64  # vectors of a block
_ROWS = 1 << 20  # vectors that are moved at once
_TILE = 1 << 14  # vectors whose columns are moved one after the other, while their blocks stay in cache
_ID_TYPES = (np.dtype(np.uint32), np.dtype(np.int64))


@dataclass(frozen=True, eq=False)
class InvertedLists:
    """The vectors of all lists. Nothing in it changes, so that threads may read it while another one is made.

    starts:    int64 (V + 1,), the position of each list's first vector, and N
    codes:     uint8 (N · (M + 1),), the blocks of codes and scalars
    ids:       uint32 (N,), int64 where they do not fit
    code_size: M

    The arrays may be memory maps. Those of a file are given to `from_stored`, which does not trust them.
    """

    starts: np.ndarray
    codes: np.ndarray
    ids: np.ndarray
    code_size: int

    def __post_init__(self):
        assert self.starts.dtype == np.int64 and self.starts.ndim == 1 and len(self.starts) > 1
        assert self.ids.dtype in _ID_TYPES and self.ids.shape == (self.starts[-1],)
        assert self.codes.dtype == np.uint8 and self.codes.shape == (len(self.ids) * (self.code_size + 1),)
        for name in ("starts", "codes", "ids"):
            view = np.asarray(getattr(self, name)).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def from_arrays(cls, codes_NM, scalars_N, lists_N, ids_N, num_lists: int) -> "InvertedLists":
        """Sort vectors into lists; within a list they keep their order.

        codes_NM: uint8     scalars_N: uint8     lists_N: integers below num_lists     ids_N: integers that int64 holds
        """
        builder = ListsBuilder(num_lists, codes_NM.shape[1])
        builder.add_counts(lists_N)
        builder.allocate(id_dtype(ids_N))
        for rows in _spans(len(ids_N), _ROWS):
            builder.fill(codes_NM[rows], scalars_N[rows], lists_N[rows], ids_N[rows])
        return builder.finish()

    @classmethod
    def from_stored(cls, starts, codes, ids, num_lists: int, code_size: int, name: str) -> "InvertedLists":
        """Lists from the arrays of a file called `name`; raises DataError where they do not fit together."""
        num_vectors = ids.size
        expected = [("starts", starts, (num_lists + 1,), (np.int64,)), ("ids", ids, (num_vectors,), _ID_TYPES)]
        expected += [("codes", codes, (num_vectors * (code_size + 1),), (np.uint8,))]
        for part, array, shape, dtypes in expected:
            if array.shape != shape or array.dtype not in dtypes:
                raise DataError(
                    f"{name} is damaged: its {part} are {array.dtype} {array.shape} where {num_vectors} vectors of "
                    f"{code_size} codes in {num_lists} lists need {np.dtype(dtypes[-1])} {shape}"
                )
        if starts[0] != 0 or starts[-1] != num_vectors or (starts[1:] < starts[:-1]).any():
            raise DataError(f"{name} is damaged: its starts of lists do not rise from 0 to its {num_vectors} vectors")
        return cls(starts, codes, ids, code_size)

    @classmethod
    def merged(cls, several: Sequence["InvertedLists"]) -> "InvertedLists":
        """The vectors of `several` with equal numbers of lists and codes; in a list, those of the first come first."""
        builder = ListsBuilder(several[0].num_lists, several[0].code_size)
        for lists in several:
            assert (lists.num_lists, lists.code_size) == (builder.num_lists, builder.code_size)
            builder.counts += np.diff(lists.starts)
        builder.allocate(np.result_type(*(lists.ids for lists in several)))
        for lists in several:
            for block in lists.blocks():
                builder.fill(*block)
        return builder.finish()

    def without(self, removed) -> "InvertedLists":
        """All vectors but those at `removed`, an array of positions or a mask bool (N,)."""
        kept = np.ones(len(self), bool)
        kept[removed] = False
        builder = ListsBuilder(self.num_lists, self.code_size)
        for span in _spans(len(self), _ROWS):
            builder.add_counts(self.lists_of(span.start + np.flatnonzero(kept[span])))
        builder.allocate(self.ids.dtype if self.ids.dtype == np.uint32 else id_dtype(self.ids[kept]))
        for span, block in zip(_spans(len(self), _ROWS), self.blocks(_ROWS), strict=True):
            builder.fill(*(array[kept[span]] for array in block))
        return builder.finish()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_lists(self) -> int:
        return len(self.starts) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scalars, ids and starts."""
        return self.starts.nbytes + self.codes.nbytes + self.ids.nbytes

    def lists_of(self, positions) -> np.ndarray:
        """The list of each of n positions, int32 (n,)."""
        return (np.searchsorted(self.starts, positions, side="right") - 1).astype(np.int32)

    def rows(self, positions) -> tuple[np.ndarray, np.ndarray]:
        """Codes uint8 (n, M) and scalars uint8 (n,) of n positions, in any order."""
        positions = np.asarray(positions, np.int64)
        return self._gather(positions, self.lists_of(positions))

    def blocks(self, size: int = _ROWS) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """All vectors in the order of positions, `size` at a time: codes (n, M), scalars (n,), lists (n,), ids (n,)."""
        for span in _spans(len(self), size):
            positions = np.arange(span.start, span.stop)
            lists = self.lists_of(positions)
            yield *self._gather(positions, lists), lists, self.ids[span]

    def _gather(self, positions, lists) -> tuple[np.ndarray, np.ndarray]:
        codes = np.empty((len(positions), self.code_size), np.uint8)
        scalars = np.empty(len(positions), np.uint8)
        for tile in _spans(len(positions), _TILE):
            places, widths = _places(self.starts, lists[tile], positions[tile], self.code_size)
            for step in range(self.code_size):
                codes[tile, step] = self.codes[places]
                places += widths
            scalars[tile] = self.codes[places]
        return codes, scalars


class ListsBuilder:
    """Makes inverted lists of vectors that come block by block, twice: to be counted, then to be stored.

        builder = ListsBuilder(num_lists, code_size)
        for ...: builder.add_counts(lists)
        builder.allocate(id_dtype(ids))
        for ...: builder.fill(codes, scalars, lists, ids)
        lists = builder.finish()

    Vectors of a list keep the order in which they are filled in. A block costs about 50 bytes a vector while it is
    filled in; a million vectors is a good size.
    """

    def __init__(self, num_lists: int, code_size: int):
        self.num_lists, self.code_size = num_lists, code_size
        self.counts = np.zeros(num_lists, np.int64)

    def add_counts(self, lists) -> None:
        """Count n vectors. lists: integers (n,) below num_lists."""
        np.add.at(self.counts, np.asarray(lists).astype(np.int64, copy=False), 1)

    def allocate(self, ids: np.dtype, create: Callable[[str, np.dtype, tuple], np.ndarray] | None = None) -> None:
        """Make room for what has been counted.

        ids:    dtype of the ids, by `id_dtype`
        create: gives an array that can be written, from its name ("codes", "ids"), dtype and shape; in memory if None
        """
        create = create or (lambda name, dtype, shape: np.empty(shape, dtype))
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._next = self.starts[:-1].copy()
        num_vectors = int(self.starts[-1])
        self.codes = create("codes", np.dtype(np.uint8), (num_vectors * (self.code_size + 1),))
        self.ids = create("ids", np.dtype(ids), (num_vectors,))

    def fill(self, codes, scalars, lists, ids) -> None:
        """Store n vectors: codes uint8 (n, M), scalars uint8 (n,), lists and ids integers (n,)."""
        assert codes.dtype == scalars.dtype == np.uint8 and codes.shape == (len(ids), self.code_size)
        assert scalars.shape == lists.shape == ids.shape == (len(ids),)
        assert np.can_cast(id_dtype(ids), self.ids.dtype), "an id does not fit into the chosen type"
        order = _stable_order(lists, self.num_lists)
        lists = lists[order].astype(np.int64)
        positions = self._take_positions(lists)
        for tile in _spans(len(order), _TILE):
            rows = order[tile]
            columns = np.ascontiguousarray(codes[rows].T)
            places, widths = _places(self.starts, lists[tile], positions[tile], self.code_size)
            for column in columns:
                self.codes[places] = column
                places += widths
            self.codes[places] = scalars[rows]
            self.ids[positions[tile]] = ids[rows]

    def finish(self) -> InvertedLists:
        """The lists, when all that was counted has been filled in."""
        assert np.array_equal(self._next, self.starts[1:]), "fewer vectors than were counted"
        return InvertedLists(self.starts, self.codes, self.ids, self.code_size)

    def _take_positions(self, lists) -> np.ndarray:
        """The next free positions of sorted list numbers."""
        first = np.flatnonzero(np.diff(lists, prepend=-1))
        runs, lengths = lists[first], np.diff(first, append=len(lists))
        positions = np.arange(len(lists)) + np.repeat(self._next[runs] - first, lengths)
        self._next[runs] += lengths
        assert (self._next[runs] <= self.starts[runs + 1]).all(), "more vectors than were counted"
        return positions


def id_dtype(ids) -> np.dtype:
    """The type that ids are stored in: uint32 where it holds all of them, else int64."""
    fits = len(ids) == 0 or (ids.min() >= 0 and ids.max() < 1 << 32)
    return np.dtype(np.uint32 if fits else np.int64)


def _spans(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _places(starts, lists, positions, code_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the first code of each position lies, and how far it is to the next code; both int64 (n,)."""
    begin = starts[lists]
    inside = positions - begin
    block = inside // WIDTH * WIDTH
    widths = np.minimum(starts[lists + 1] - begin - block, WIDTH)
    return (begin + block) * (code_size + 1) + inside - block, widths


def _stable_order(lists, num_lists: int) -> np.ndarray:
    """`lists.argsort(kind="stable")`, by numpy's radix sort, which it has for 16 bits."""
    order = np.argsort(lists.astype(np.uint16), kind="stable")
    if num_lists <= 1 << 16:
        return order
    return order[np.argsort((lists >> 16).astype(np.uint16)[order], kind="stable")]
