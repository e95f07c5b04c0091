"""Inverted lists: the codes and ids of many vectors, those of one list together, laid out for the scan.

List v holds the positions starts[v] to starts[v + 1], and its bytes begin at starts[v] · (M + 1). They are blocks of 64
vectors. A block is a matrix (M + 1, 64) of bytes, row-major: a row for each code, then the row of norm codes, which
quantize what the scan adds to a vector's distance. The last block of a list has as many columns as there are vectors
left, so that nothing is padded: a vector takes M + 1 bytes and its id.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qinco.errors import DataError
from qinco.native.bits import packed, unpacked
from qinco.native.scanner import Segment
from qinco.vectors.mapped import release_pages

WIDTH = 64  # vectors of a block
BLOCK_ROWS = 1 << 20  # vectors that are copied at once
MERGE_ROWS = 1 << 18  # vectors that are merged at a time
TILE = 1 << 14  # vectors whose columns are copied one after the other, while their blocks stay in cache
_ID_TYPES = (np.dtype(np.uint32), np.dtype(np.int64))


@dataclass(frozen=True, eq=False)
class InvertedLists:
    """The vectors of all lists; it never changes. Arrays, also memory maps, that were read go through `from_stored`.

    Attributes:
        starts: int64 (V + 1,), the position of each list's first vector, and N.
        codes: uint8 (N · (M + 1),), the blocks of codes and norm codes.
        ids: uint32 (N,), or int64 if they do not fit.
    """

    starts: np.ndarray
    codes: np.ndarray
    ids: np.ndarray
    num_codes: int

    def __post_init__(self):
        assert self.starts.dtype == np.int64 and self.starts.ndim == 1 and len(self.starts) > 1
        assert self.ids.dtype in _ID_TYPES and self.ids.shape == (self.starts[-1],)
        assert self.codes.dtype == np.uint8 and self.codes.shape == (len(self.ids) * (self.num_codes + 1),)
        for name in ("starts", "codes", "ids"):
            view = np.asarray(getattr(self, name)).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def empty(cls, num_lists: int, num_codes: int) -> "InvertedLists":
        return cls(np.zeros(num_lists + 1, np.int64), np.empty(0, np.uint8), np.empty(0, np.uint32), num_codes)

    @classmethod
    def from_stored(cls, starts, codes, ids, num_lists: int, num_codes: int, name: str) -> "InvertedLists":
        """Lists from the arrays of a file called `name`; raises DataError where they do not fit together."""
        num_vectors = ids.size
        for part, array, shape, dtypes in (
            ("starts", starts, (num_lists + 1,), (np.int64,)),
            ("ids", ids, (num_vectors,), _ID_TYPES),
            ("codes", codes, (num_vectors * (num_codes + 1),), (np.uint8,)),
        ):
            if array.shape != shape or array.dtype not in dtypes:
                wanted = f"{np.dtype(dtypes[-1])} {shape}"
                raise DataError(f"{name} is damaged: its {part} are {array.dtype} {array.shape}, not {wanted}")
        if starts[0] != 0 or starts[-1] != num_vectors or (starts[1:] < starts[:-1]).any():
            raise DataError(f"{name} is damaged: its list starts do not ascend from 0 to its {num_vectors} vectors")
        return cls(starts, codes, ids, num_codes)

    @classmethod
    def merged(
        cls, several: Sequence["InvertedLists"], kept: Sequence[np.ndarray | None] | None = None
    ) -> "InvertedLists":
        """The vectors of `several` with equal numbers of lists and codes; in a list, those of the first come first.

        `kept` are the bits of each one's positions that stay, or None for all of them.
        """
        merge = Merge(several, kept)
        codes, ids, end = np.empty(merge.code_bytes, np.uint8), np.empty(merge.num_vectors, merge.id_dtype), 0
        for some_codes, some_ids in merge.blocks():
            begin, end = end, end + len(some_ids)
            ids[begin:end] = some_ids
            codes[begin * (merge.num_codes + 1) : end * (merge.num_codes + 1)] = some_codes
        return cls(merge.starts, codes, ids, merge.num_codes)

    def without(self, removed) -> "InvertedLists":
        """All vectors but those at `removed`, an array of positions or a mask bool (N,)."""
        kept = np.ones(len(self), bool)
        kept[removed] = False
        return InvertedLists.merged([self], [packed(kept)])

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def native(self) -> Segment:
        """The arrays for the compiled scan."""
        return Segment.of(self.starts, self.codes, self.ids)

    num_lists = property(lambda self: len(self.starts) - 1)
    nbytes = property(lambda self: self.starts.nbytes + self.codes.nbytes + self.ids.nbytes)

    def lists_of(self, positions) -> np.ndarray:
        """The list of each of n positions, int32 (n,)."""
        return (np.searchsorted(self.starts, positions, side="right") - 1).astype(np.int32)

    def rows(self, positions, lists=None) -> tuple[np.ndarray, np.ndarray]:
        """Codes uint8 (n, M) and norm codes uint8 (n,) of n positions, in any order."""
        positions = np.asarray(positions, np.int64)
        lists = self.lists_of(positions) if lists is None else lists
        codes, norm_codes = np.empty((len(positions), self.num_codes), np.uint8), np.empty(len(positions), np.uint8)
        for tile in _spans(len(positions), TILE):
            offsets, widths = _offsets(self.starts, lists[tile], positions[tile], self.num_codes)
            for step in range(self.num_codes):
                codes[tile, step] = self.codes[offsets]
                offsets += widths
            norm_codes[tile] = self.codes[offsets]
        return codes, norm_codes

    def blocks(
        self, size: int = BLOCK_ROWS, places: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Vectors at ascending positions (None: all), `size` at a time: codes (n, M), norm codes, lists, ids (n,)."""
        for span in _spans(len(self) if places is None else len(places), size):
            positions = np.arange(span.start, span.stop) if places is None else places[span]
            lists = self.lists_of(positions)
            yield *self.rows(positions, lists), lists, self.ids[span if places is None else positions]


class ListsBuilder:
    """Builds inverted lists from blocks of vectors, given twice: to `add_counts`, then, once `allocate`d, to `fill`."""

    def __init__(self, num_lists: int, num_codes: int, tile: int = TILE):
        self.num_lists, self.num_codes, self._tile = num_lists, num_codes, tile
        self.counts = np.zeros(num_lists, np.int64)

    def add_counts(self, lists) -> None:
        np.add.at(self.counts, np.asarray(lists).astype(np.int64, copy=False), 1)

    def allocate(self, ids: np.dtype, create: Callable[[str, np.dtype, tuple], np.ndarray] | None = None) -> None:
        """Allocate the arrays for what was counted; `create` makes "codes" and "ids" elsewhere than in memory."""
        create = create or (lambda name, dtype, shape: np.empty(shape, dtype))
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._next = self.starts[:-1].copy()
        num_vectors = int(self.starts[-1])
        self.codes = create("codes", np.dtype(np.uint8), (num_vectors * (self.num_codes + 1),))
        self.ids = create("ids", np.dtype(ids), (num_vectors,))

    def fill(self, codes, norm_codes, lists, ids) -> None:
        """Store n vectors: codes uint8 (n, M), norm_codes uint8 (n,), lists and ids integers (n,)."""
        assert codes.dtype == norm_codes.dtype == np.uint8 and codes.shape == (len(ids), self.num_codes)
        assert norm_codes.shape == lists.shape == ids.shape == (len(ids),)
        assert np.can_cast(id_dtype(ids), self.ids.dtype), "an id does not fit into the chosen type"
        order = _stable_order(lists, self.num_lists)
        lists = lists[order].astype(np.int64)
        positions = self._take_positions(lists)
        for tile in _spans(len(order), self._tile):
            rows = order[tile]
            columns = np.ascontiguousarray(codes[rows].T)
            offsets, widths = _offsets(self.starts, lists[tile], positions[tile], self.num_codes)
            for column in columns:
                self.codes[offsets] = column
                offsets += widths
            self.codes[offsets] = norm_codes[rows]
            self.ids[positions[tile]] = ids[rows]

    def finish(self) -> InvertedLists:
        """The lists, when all vectors that were counted have been stored."""
        assert np.array_equal(self._next, self.starts[1:]), "fewer vectors than were counted"
        return InvertedLists(self.starts, self.codes, self.ids, self.num_codes)

    def _take_positions(self, lists) -> np.ndarray:
        """The next free positions of sorted list numbers."""
        first = np.flatnonzero(np.diff(lists, prepend=-1))
        runs, lengths = lists[first], np.diff(first, append=len(lists))
        positions = np.arange(len(lists)) + np.repeat(self._next[runs] - first, lengths)
        self._next[runs] += lengths
        assert (self._next[runs] <= self.starts[runs + 1]).all(), "more vectors than were counted"
        return positions


class Merge:
    """The vectors of several inverted lists, or those of them that are kept, as one, in bounded memory."""

    def __init__(self, several: Sequence[InvertedLists], kept: Sequence[np.ndarray | None] | None = None):
        self._several, self._kept = several, [None] * len(several) if kept is None else kept
        self.num_lists, self.num_codes = several[0].num_lists, several[0].num_codes
        assert all((s.num_lists, s.num_codes) == (self.num_lists, self.num_codes) for s in several)
        counts, is_wide = np.zeros(self.num_lists, np.int64), False
        for lists, words in zip(several, self._kept, strict=True):
            if words is None:
                counts += np.diff(lists.starts)
                is_wide = is_wide or lists.ids.dtype == np.int64
                continue
            for span in _spans(len(lists), BLOCK_ROWS):
                places = span.start + np.flatnonzero(unpacked(words, span.start, span.stop))
                counts += np.bincount(lists.lists_of(places), minlength=self.num_lists)
                is_wide = is_wide or (lists.ids.dtype == np.int64 and id_dtype(lists.ids[places]) == np.int64)
        self.starts, self.id_dtype = np.concatenate([[0], np.cumsum(counts)]), np.dtype((np.uint32, np.int64)[is_wide])

    num_vectors = property(lambda self: int(self.starts[-1]))
    code_bytes = property(lambda self: self.num_vectors * (self.num_codes + 1))

    def blocks(self, size: int = MERGE_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Codes and ids, as they are stored, of about `size` vectors at a time: of lists, or of part of a long one."""
        total_V = np.sum([np.diff(lists.starts) for lists in self._several], axis=0)
        first = 0
        while first < self.num_lists:
            sizes = np.cumsum(total_V[first : first + size])
            last = first + max(1, int(np.searchsorted(sizes, size, side="right")))
            if last == first + 1:
                yield from self._long_list(first, size)
            elif sizes[last - first - 1]:
                yield self._stored(
                    first, last, [self._rows(number, first, last) for number in range(len(self._several))]
                )
            first = last

    def _long_list(self, number: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A single list in pieces of whole blocks."""
        left = []
        for place, lists in enumerate(self._several):
            begin, end = lists.starts[number : number + 2].tolist()
            for span in _spans(end - begin, size):
                left.append(self._rows(place, number, number + 1, begin + span.start, begin + span.stop))
                whole = sum(len(rows[-1]) for rows in left) // WIDTH * WIDTH
                if whole >= size:
                    columns = [np.concatenate(parts) for parts in zip(*left, strict=True)]
                    yield self._stored(number, number + 1, [tuple(column[:whole] for column in columns)])
                    left = [tuple(column[whole:] for column in columns)]
        if any(len(rows[-1]) for rows in left):
            yield self._stored(number, number + 1, left)

    def _rows(self, place: int, first: int, last: int, begin: int | None = None, end: int | None = None) -> tuple:
        """Codes, norm codes, list numbers and ids of what is kept in lists `first` to `last`, or in a part of them."""
        lists, words = self._several[place], self._kept[place]
        begin = int(lists.starts[first]) if begin is None else begin
        end = int(lists.starts[last]) if end is None else end
        places = np.arange(begin, end)
        if words is not None:
            places = places[unpacked(words, begin, end)]
        numbers = lists.lists_of(places)
        codes, norm_codes = lists.rows(places, numbers)
        release_pages(lists.codes[begin * (self.num_codes + 1) : end * (self.num_codes + 1)])
        ids = lists.ids[places].astype(self.id_dtype)
        release_pages(lists.ids[begin:end])
        return codes, norm_codes, numbers, ids

    def _stored(self, first: int, last: int, parts: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
        builder = ListsBuilder(last - first, self.num_codes)
        for _, _, numbers, _ in parts:
            builder.add_counts(numbers - first)
        builder.allocate(self.id_dtype)
        for codes, norm_codes, numbers, ids in parts:
            builder.fill(codes, norm_codes, numbers - first, ids)
        return builder.codes, builder.ids


def id_dtype(ids) -> np.dtype:
    """The type that ids are stored in: uint32 if it holds all of them, else int64."""
    fits = len(ids) == 0 or (ids.min() >= 0 and ids.max() < 1 << 32)
    return np.dtype(np.uint32 if fits else np.int64)


def _spans(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _offsets(starts, lists, positions, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """The offset of each position's first code, and the distance to its next code; both int64 (n,)."""
    begin = starts[lists]
    inside = positions - begin
    block = inside // WIDTH * WIDTH
    widths = np.minimum(starts[lists + 1] - begin - block, WIDTH)
    return (begin + block) * (num_codes + 1) + inside - block, widths


def _stable_order(lists, num_lists: int) -> np.ndarray:
    """`lists.argsort(kind="stable")`, by numpy's radix sort, which it has for 16 bits."""
    order = np.argsort(lists.astype(np.uint16), kind="stable")
    return order if num_lists <= 1 << 16 else order[np.argsort((lists >> 16).astype(np.uint16)[order], kind="stable")]
