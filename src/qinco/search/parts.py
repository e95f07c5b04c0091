"""`IndexParts`: what an index consists of besides its codec. Building, loading and importing all end in one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qinco.decoders.pairwise import PairwiseDecoder
from qinco.search.ids import are_among
from qinco.search.lists import InvertedLists
from qinco.search.names import Names
from qinco.search.options import SearchOptions
from qinco.search.tables import SearchTables
from qinco.vectors.rows import VectorSource

# So many times as many vectors as they were fitted to are too many. Among few vectors a query visits most of the lists,
# which may be of some of them alone; of many it misses those that were not fitted to what came later.
_FITTED = {"tables": 2, "lists": 4, "pairwise": 4}
_MANY, _MANY_LISTS = 40_000, 1.5
MIN_RANKED = 2000  # vectors that a ranking is fitted to at least, once there are so many


@dataclass(frozen=True)
class Fitted:
    """How many vectors each part of an index was fitted to; a part of None was given, and stays as it is.

    `num_lists` is what was asked for (None: it follows the number of vectors), `seed` that of the samples.
    """

    tables: int | None = None
    lists: int | None = None
    pairwise: int | None = None
    num_lists: int | None = None
    seed: int = 0

    def outgrown(self, num_vectors: int) -> set[str]:
        """The parts that were fitted to too small a part of so many vectors."""
        growth = _FITTED | ({"lists": _MANY_LISTS} if num_vectors > _MANY else {})
        counts = {name: getattr(self, name) for name in _FITTED}
        return {name for name, count in counts.items() if count is not None and num_vectors > growth[name] * count}

    def without(self, removed: int) -> "Fitted":
        """After the removal of vectors, which may have been any."""
        return self._changed({name: max(0, (getattr(self, name) or 0) - removed) for name in _FITTED})

    def merged(self, other: "Fitted") -> "Fitted":
        """With the vectors of an index of the same parts."""
        return self._changed({name: (getattr(self, name) or 0) + (getattr(other, name) or 0) for name in _FITTED})

    def _changed(self, counts: dict[str, int]) -> "Fitted":
        return replace(self, **{name: count for name, count in counts.items() if getattr(self, name) is not None})


@dataclass(frozen=True, eq=False)
class IndexParts:
    """One state of an index; `add` and `remove` make another one, so that a search sees the state of one moment.

    Recently added vectors are in segments of their own. `options` are used by a search unless it is given others,
    `next_id` by a vector added without id: by default it is above all ids. `codec_fingerprint` is None if unknown.
    `fitted` counts the vectors that are still there.
    `generations` are the tokens of what it comes from, by folders, the last one loaded or saved at the end.
    `recent` are ids and vectors, as they are encoded, that the ranking is fitted to next; they are not saved.
    `zeros` are the ids of zero vectors under "cosine": they have no direction, though their codes have one.
    `names` are strings of the ids, which are row numbers then.
    """

    tables: SearchTables
    segments: Sequence[InvertedLists] = ()
    pairwise: PairwiseDecoder | None = None
    options: SearchOptions = field(default_factory=SearchOptions)
    next_id: int = -1
    codec_fingerprint: str | None = None
    fitted: Fitted = Fitted()
    generations: dict[str, str] = field(default_factory=dict)
    zeros: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    recent: tuple[np.ndarray, np.ndarray] | None = None
    names: Names | None = None

    def __post_init__(self):
        empty = InvertedLists.empty(self.tables.num_lists, self.tables.lookup.num_codes)
        segments = tuple(self.segments) or (empty,)
        object.__setattr__(self, "segments", segments)
        if self.next_id < 0:
            largest = max((int(segment.ids.max()) for segment in segments if len(segment)), default=-1)
            object.__setattr__(self, "next_id", max(0, largest + 1))

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    ids = property(lambda self: [segment.ids for segment in self.segments])

    def with_zeros(self, ids: np.ndarray) -> "IndexParts":
        return replace(self, zeros=np.concatenate([self.zeros, ids]))

    def with_recent(self, ids: np.ndarray, source: VectorSource) -> "IndexParts":
        """With further vectors that the ranking may be fitted to, while it is fitted to few."""
        ranking = self.tables.ranking
        if ranking is None or ranking.num_vectors >= MIN_RANKED:
            return self if self.recent is None else replace(self, recent=None)
        own_N, own_ND = self.recent or (np.empty(0, np.int64), np.empty((0, source.dim), np.float32))
        count = max(0, min(MIN_RANKED - len(own_N), len(source)))
        return replace(self, recent=(np.concatenate([own_N, ids[:count]]), np.concatenate([own_ND, source[:count]])))

    def given(self, name: str, value) -> "IndexParts":
        """With another value of a field; what is fitted to vectors is not fitted again then."""
        kept, ranking = {"tables": ("tables", "lists"), "pairwise": ("pairwise",)}.get(name, ()), self.tables.ranking
        if name == "pairwise" and value is not None and value.num_lists:  # it knows these lists
            kept = ("pairwise", "lists")
        changed = {name: value, "fitted": replace(self.fitted, **dict.fromkeys(kept))}
        if name == "pairwise" and ranking is not None:  # its margin was fitted to the one before
            changed["tables"] = replace(self.tables, ranking=replace(ranking, pairwise_margin=None))
        return replace(self, **changed)

    def stored(self, folder: str, token: str) -> "IndexParts":
        others = {path: other for path, other in self.generations.items() if path != folder}
        return replace(self, generations=others | {folder: token})

    def emptied(self) -> "IndexParts":
        return replace(self, segments=(), next_id=0, fitted=self.fitted.without(len(self)), zeros=self.zeros[:0],
                       recent=None, names=None)  # fmt: skip

    def without(self, removed: np.ndarray | range) -> "IndexParts":
        masks = [are_among(ids, removed) for ids in self.ids]
        left = [s.without(mask) if mask.any() else s for s, mask in zip(self.segments, masks, strict=True)]
        segments, zeros = merge_small((left[0], *filter(len, left[1:]))), self.zeros[~are_among(self.zeros, removed)]
        fitted = self.fitted.without(len(self) - sum(map(len, segments)))
        recent = self.recent
        if recent is not None:
            is_left_N = ~are_among(recent[0], removed)
            recent = recent[0][is_left_N], recent[1][is_left_N]
        return replace(self, segments=segments, fitted=fitted, zeros=zeros, recent=recent)


def merge_small(segments: tuple[InvertedLists, ...]) -> tuple[InvertedLists, ...]:
    """Merge the last segments until each is less than half as large as the one before: few, and rarely moved."""
    while len(segments) > 1 and 2 * len(segments[-1]) >= len(segments[-2]):
        segments = (*segments[:-2], InvertedLists.merged(segments[-2:]))
    return segments
