"""Inverted lists that lie in other processes or on a GPU: what the search of an index asks of them."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from qinco.codec.codec import Codec
from qinco.errors import DataError
from qinco.maths.devices import CPU
from qinco.progress import counted
from qinco.search.options import SearchOptions
from qinco.search.parts import IndexParts
from qinco.search.pipeline import Pipeline
from qinco.search.refine import Originals
from qinco.search.scan import Shortlist
from qinco.search.selection import Selection
from qinco.search.tables import SearchTables


class ListsElsewhere(Protocol):
    """Inverted lists in other processes, by the tables of an index here."""

    def __len__(self) -> int: ...

    def scan(
        self, queries_QD, probes_QL, bases_QL, segments, num_short: int, *, nprobe: int, admitted, threads: int
    ) -> Shortlist | None:
        """What `Scanner.scan` finds in these lists; `segments` and `admitted` stand for them. None: time is over."""
        ...

    def ranker(
        self, options: SearchOptions, k: int, ranking: str, precision: str, is_refined: bool
    ) -> Callable[[Pipeline, np.ndarray, Shortlist], Shortlist] | None:
        """What ranks shortlists there, as the pipeline of such a search would; None: they are ranked here."""
        ...

    def select(self, parts: IndexParts, ids, exclude) -> "tuple[ListsElsewhere | None, IndexParts, Selection | None]":
        """Where to search for what is chosen, and the selection: of few vectors, copies are searched here."""
        ...


def scan_of(
    parts: IndexParts, codec: Codec | None, elsewhere: ListsElsewhere | None
) -> Callable[..., Shortlist | None] | None:
    """What scans the lists of a search: elsewhere, on the GPU that the codec is on, or (None) on the processor."""
    if elsewhere is not None:
        return elsewhere.scan
    if codec is None or codec.device == CPU or not isinstance(parts.tables, SearchTables):  # of a file of faiss
        return None
    from qinco.search.device_scan import device_scan

    return device_scan(parts, codec.device)


def check_rows(originals: Originals | None, next_id: int) -> None:
    """Raise DataError where the ids of lists that lie elsewhere, all below `next_id`, may be no rows of originals."""
    if originals is not None and len(originals.source) < next_id:
        raise DataError(f"{originals.source.name} has {counted(len(originals.source), 'row')}, and the index ids up to "
                        f"{next_id - 1}: give refine= the vectors that were indexed, or refine=False")  # fmt: skip
