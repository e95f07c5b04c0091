"""`Selection`: which vectors of an index a search may find, as bits over their positions in its segments.

Shape suffixes: N vectors of a segment, V lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qinco.errors import ConfigError
from qinco.native.bits import WORD_BITS, count_bits, mark_ids, num_words, packed, positions, unpacked
from qinco.search.ids import are_among, chosen_ids
from qinco.search.lists import InvertedLists, ListsBuilder

FEW = 2000  # selected vectors whose lists alone are scanned


@dataclass(frozen=True, eq=False)
class Selection:
    """Vectors of one state of an index: `filter` and `exclude` of its searches. It never changes, and can be kept.

    Made by `Index.select`, or of masks by `from_masks`. A search with it reads no ids of vectors that are not selected.

    Attributes:
        words: of each segment the bits of its positions, uint64 (⌈N / 64⌉,), the lowest bit first; None for all.
        counts: selected vectors of each segment.
        segments: those that it is of.

    Example:
        >>> index = Index.build(codec, vectors)
        >>> recent = index.select(range(500, 1000))
        >>> distances, ids = index.search(queries, k=10, filter=recent)
        >>> recent.count
        500
    """

    words: tuple[np.ndarray | None, ...]
    counts: tuple[int, ...]
    segments: tuple[InvertedLists, ...]

    def __post_init__(self):
        assert len(self.words) == len(self.counts) == len(self.segments)
        for words, segment in zip(self.words, self.segments, strict=True):
            assert words is None or (words.dtype == np.uint64 and words.shape == (num_words(len(segment)),))

    @classmethod
    def from_masks(cls, masks: Sequence[np.ndarray | None], segments: Sequence[InvertedLists]) -> "Selection":
        """The vectors of segments where masks, bool (N,) each, are true; None for all of a segment."""
        given = [None if mask is None else np.asarray(mask) for mask in masks]
        fits = len(given) == len(segments) and all(
            mask is None or (mask.dtype == bool and mask.shape == (len(segment),))
            for mask, segment in zip(given, segments, strict=True)
        )
        if not fits:
            found = ", ".join("None" if mask is None else f"{mask.dtype} {mask.shape}" for mask in given)
            sizes = ", ".join(f"bool ({len(segment)},)" for segment in segments)
            raise ConfigError(f"masks are one of each segment, {sizes}, or None, not {found}")
        words = tuple(None if mask is None else packed(mask) for mask in given)
        counts = [
            len(segment) if mask is None else int(np.count_nonzero(mask))
            for mask, segment in zip(given, segments, strict=True)
        ]
        return cls(words, tuple(counts), tuple(segments))

    @classmethod
    def of_ids(cls, segments: Sequence[InvertedLists], chosen, next_id: int | None = None) -> "Selection":
        """The vectors that have one of some ids, given in any of the ways that `filter` of `Index.search` takes."""
        ids = [segment.ids for segment in segments]
        found = chosen_ids(chosen, ids, next_id)
        if isinstance(found, range):
            return cls.from_masks([are_among(some, found) for some in ids], segments)
        marked = mark_ids(found, ids)
        words, counts = tuple(words for words, _ in marked), tuple(count for _, count in marked)
        return cls(words, counts, tuple(segments))

    def __repr__(self) -> str:
        return f"Selection({self.count:,} of {sum(map(len, self.segments)):,} vectors)"

    @cached_property
    def count(self) -> int:
        """Number of selected vectors."""
        return sum(self.counts)

    @property
    def is_small(self) -> bool:
        """Whether so few are selected that looking at each is faster than scanning lists for them."""
        return self.count <= FEW

    @cached_property
    def lists(self) -> np.ndarray:
        """The lists that hold selected vectors, int32, ascending."""
        is_holding_V = np.zeros(self.segments[0].num_lists, bool)
        for number, segment in enumerate(self.segments):
            is_holding_V[segment.lists_of(self.positions(number))] = True
        return np.flatnonzero(is_holding_V).astype(np.int32)

    @property
    def is_scanned_again(self) -> bool:
        """Whether its lists were scanned before, and copies of what is selected will pay."""
        return "lists" in vars(self) or "gathered" in vars(self)

    @cached_property
    def gathered(self) -> tuple[InvertedLists, np.ndarray, np.ndarray]:
        """Copies of all selected vectors in one list, whose ids are 0 to n - 1; their lists and their ids, (n,)."""
        parts = []
        for number, segment in enumerate(self.segments):
            parts += segment.blocks(max(1, self.count), self.positions(number))
        empty = np.empty((0, self.segments[0].num_codes), np.uint8), *(np.empty(0, t) for t in (np.uint8, int, int))
        codes, norm_codes, lists, ids = (np.concatenate(columns) for columns in zip(empty, *parts, strict=True))
        order = np.argsort(lists, kind="stable")  # as a scan of the lists finds them
        builder = ListsBuilder(self.segments[0].num_lists, codes.shape[1])
        builder.add_counts(np.zeros(len(ids), np.int64))
        builder.allocate(np.dtype(np.uint32))
        builder.fill(
            codes[order], norm_codes[order], np.zeros(len(ids), np.int64), np.arange(len(ids), dtype=np.uint32)
        )
        return builder.finish(), lists[order].astype(np.int32), ids[order].astype(np.int64)

    @cached_property
    def inverse(self) -> "Selection":
        """The vectors that are not selected."""
        words = []
        for own, segment in zip(self.words, self.segments, strict=True):
            left = np.zeros(num_words(len(segment)), np.uint64) if own is None else ~own
            if own is not None and len(segment) % WORD_BITS:
                left[-1] &= np.uint64((1 << len(segment) % WORD_BITS) - 1)
            words.append(left)
        counts = (len(segment) - count for segment, count in zip(self.segments, self.counts, strict=True))
        return Selection(tuple(words), tuple(counts), self.segments)

    def without(self, other: "Selection") -> "Selection":
        """Those of these vectors that the other, of the same segments, does not select."""
        pairs = zip(self.words, other.inverse.words, strict=True)
        words = [left if own is None else own if left is None else own & left for own, left in pairs]
        counts = [len(s) if left is None else count_bits(left) for left, s in zip(words, self.segments, strict=True)]
        return Selection(tuple(words), tuple(counts), self.segments)

    def positions(self, number: int) -> np.ndarray:
        """The selected positions of a segment, int64, ascending."""
        words = self.words[number]
        return np.arange(len(self.segments[number])) if words is None else positions(words)

    def mask(self, number: int, start: int, stop: int) -> np.ndarray:
        """Which positions of a segment from `start` to `stop` are selected, bool."""
        words = self.words[number]
        return np.ones(stop - start, bool) if words is None else unpacked(words, start, stop)


def select(segments: Sequence[InvertedLists], ids, exclude, next_id: int | None = None) -> Selection | None:
    """The vectors that `ids` admit and `exclude` does not, each ids or a Selection; None where neither is given."""
    if ids is None and exclude is None:
        return None
    if ids is None:
        return selection_of(segments, exclude, next_id).inverse
    admitted = selection_of(segments, ids, next_id)
    return admitted if exclude is None else admitted.without(selection_of(segments, exclude, next_id))


def selection_of(segments: Sequence[InvertedLists], chosen, next_id: int | None) -> Selection:
    """A Selection that is given, if it is of these segments, or that of ids."""
    if isinstance(chosen, Selection):
        own = chosen.segments
        if len(own) != len(segments) or any(one is not other for one, other in zip(own, segments, strict=True)):
            raise ConfigError(f"{chosen!r} is of another index, or of this one before vectors were added or removed: "
                              "make it again by index.select")  # fmt: skip
        return chosen
    return Selection.of_ids(segments, chosen, next_id)
