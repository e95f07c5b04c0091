"""`IndexParts`: what an index consists of besides its codec. Building, loading and importing all end in one."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qinco.decoders.pairwise import PairwiseDecoder
from qinco.search.ids import are_among
from qinco.search.lists import InvertedLists
from qinco.search.options import SearchOptions
from qinco.search.tables import SearchTables


@dataclass(frozen=True, eq=False)
class IndexParts:
    """One state of an index; `add` and `remove` make another one, so that a search sees the state of one moment.

    Recently added vectors are in segments of their own. `options` are used by a search unless it is given others,
    `next_id` by a vector added without id: by default it is above all ids. `codec_fingerprint` is None if unknown.
    `generations` are the tokens of what it comes from, by folders, the last one loaded or saved at the end.
    """

    tables: SearchTables
    segments: Sequence[InvertedLists] = ()
    pairwise: PairwiseDecoder | None = None
    options: SearchOptions = field(default_factory=SearchOptions)
    next_id: int = -1
    codec_fingerprint: str | None = None
    generations: dict[str, str] = field(default_factory=dict)

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

    def with_vectors(self, added: InvertedLists, next_id: int) -> "IndexParts":
        return replace(self, segments=merge_small((*self.segments, added)), next_id=next_id)

    def stored(self, folder: str, token: str) -> "IndexParts":
        others = {path: other for path, other in self.generations.items() if path != folder}
        return replace(self, generations=others | {folder: token})

    def emptied(self) -> "IndexParts":
        return replace(self, segments=(), next_id=0)

    def without(self, removed: np.ndarray | range) -> "IndexParts":
        masks = [are_among(ids, removed) for ids in self.ids]
        left = [s.without(mask) if mask.any() else s for s, mask in zip(self.segments, masks, strict=True)]
        return replace(self, segments=merge_small((left[0], *filter(len, left[1:]))))


def merge_small(segments: tuple[InvertedLists, ...]) -> tuple[InvertedLists, ...]:
    """Merge the last segments until each is less than half as large as the one before: few, and rarely moved."""
    while len(segments) > 1 and 2 * len(segments[-1]) >= len(segments[-2]):
        segments = (*segments[:-2], InvertedLists.merged(segments[-2:]))
    return segments
