"""The actor that holds some shards of an index, and what it is asked."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qinco.errors import DataError
from qinco.machine import set_num_threads, usable_cores
from qinco.search.index import Index
from qinco.search.index_file import load_parts
from qinco.search.parts import IndexParts
from qinco.search.refine import choosing_stages
from qinco.search.scan import Shortlist
from qinco.search.selection import FEW, Selection, select

Columns = tuple[np.ndarray, ...]  # the fields of a Shortlist


class ShardServer:
    """Some shards of an index in memory-mapped files, as an actor of Ray.

    Args:
        folder: of the index.
        numbers: of the shards.
        threads: of a scan, no more than this process may use.
        generation: see `generation_of`. The folder must hold no other: an actor that is started again must not answer
            from another index than the rest.
    """

    def __init__(self, folder: str, numbers: list[int], threads: int, generation: str):
        threads = min(threads, usable_cores())
        set_num_threads(threads)
        codec, parts = load_parts(Path(folder), True, None, "cpu")
        if generation_of(parts) != generation:
            raise DataError(f"{folder} has been replaced since the index was opened: reload() it")
        self._tables, self._threads, self._next_id = parts.tables, threads, parts.next_id
        self._index = Index(codec, replace(parts, segments=()))
        self._segments = tuple(parts.segments[number] for number in numbers)

    def sizes(self) -> np.ndarray:
        """How many vectors each list holds, int64 (V,)."""
        return np.sum([np.diff(segment.starts) for segment in self._segments], axis=0)

    def scan(
        self, queries_QD: np.ndarray, probes_QL: np.ndarray, bases_QL: np.ndarray, num_short: int, chosen=None
    ) -> Columns:
        """The best of the vectors in lists, −1 for no more of them; `chosen` are ids that are admitted and excluded."""
        selection = None if chosen is None else self._selection(chosen)
        found = self._tables.scanner.scan(
            queries_QD, probes_QL, bases_QL, self._segments, num_short, threads=self._threads,
            admitted=None if selection is None else selection.words,
        )  # fmt: skip
        return tuple(vars(found).values())

    def rank(self, queries_QD: np.ndarray, columns: Columns, asked: tuple) -> Columns:
        """What the stages of a search make of shortlists: `asked` are the arguments of `ListsElsewhere.ranker`."""
        options, k, ranking, precision, is_refined = asked
        pipeline = self._index.pipeline(options, k, ranking=ranking, precision=precision)
        if is_refined:
            pipeline.stages = choosing_stages(columns[0].shape[1], list(pipeline.stages))
        return tuple(vars(pipeline.ranked(queries_QD, Shortlist(*columns))).values())

    def count(self, chosen) -> tuple[np.ndarray, list[Columns] | None]:
        """How many of each list's vectors are chosen, int64 (V,); and these themselves, if they are few."""
        selection = self._selection(chosen)
        counts_V = np.zeros(self._tables.num_lists, np.int64)
        for number, segment in enumerate(self._segments):
            counts_V += np.bincount(segment.lists_of(selection.positions(number)), minlength=len(counts_V))
        if selection.count > FEW:
            return counts_V, None
        blocks = (s.blocks(places=selection.positions(number)) for number, s in enumerate(self._segments))
        return counts_V, [block for some in blocks for block in some]

    def _selection(self, chosen: tuple[Any, Any]) -> Selection:
        found = select(self._segments, *chosen, self._next_id)
        assert found is not None
        return found


def generation_of(parts: IndexParts) -> str:
    """The token of what the folder held that an index was loaded from."""
    return next(reversed(parts.generations.values()))
