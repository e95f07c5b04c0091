"""Which settings of a search to measure: those that may be Pareto-optimal, by the bounds of those that are measured.

A setting is Pareto-optimal if no other finds more in less time. Time is assumed not to fall where a value rises, nor
recall where nprobe, efSearch or nshort rise: so every measured setting bounds those above and below it, and what cannot
be optimal within these bounds is left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import product
from typing import NamedTuple

import numpy as np

from qinco.config import require_int
from qinco.errors import ConfigError
from qinco.search.options import SearchOptions

MAX_SETTINGS = 10_000
# Timings are noisy. Unless one setting has no value above the other's, call it faster only if it is 10 % faster.
TIME_TOLERANCE = 0.1
# The stages of a search, and the names of their times in the authors' results.
STAGES = {
    "search": "t_search",
    "pairwise": "t_mid_rerank",
    "decode": "t_decode",
    "rerank": "t_rerank",
    "total": "t_total",
}


class Setting(NamedTuple):
    """One combination of a sweep's values, in the order and with the names of the authors' results."""

    nprobe: int
    quantizer_efSearch: int
    nshort: int
    nmid_short: int

    @property
    def options(self) -> SearchOptions:
        return SearchOptions.from_multiples(*self)


@dataclass(frozen=True)
class Measurement:
    """Recall and time of a search with one setting.

    Attributes:
        recall: for each rank the share of queries whose nearest neighbour is among so many results.
        shortlist_recall: the same in the shortlist's order, before the network re-ranks it.
        seconds_by_stage: seconds of all queries together for each of the STAGES; "total" is the whole call's.
        num_queries: Q.
    """

    recall: dict[int, float]
    shortlist_recall: dict[int, float]
    seconds_by_stage: dict[str, float]
    num_queries: int

    @property
    def seconds(self) -> float:
        return self.seconds_by_stage["total"]

    @property
    def microseconds(self) -> float:
        """Microseconds a query."""
        return self.seconds / self.num_queries * 1e6

    @property
    def queries_per_second(self) -> float:
        return self.num_queries / self.seconds


def combinations(values: Mapping[str, Sequence[int]]) -> list[Setting]:
    """All combinations of the values, each list in ascending order; raises ConfigError for an empty or wrong list."""
    for name in Setting._fields:
        if len(values[name]) == 0:
            raise ConfigError(f"search.{name} is an empty list: give at least one value")
        for value in values[name]:
            require_int(f"search.{name}", value, 1 if name in ("nprobe", "quantizer_efSearch") else 0)
    columns = [sorted({int(value) for value in values[name]}) for name in Setting._fields]
    count = math.prod(map(len, columns))
    if count > MAX_SETTINGS:
        raise ConfigError(f"the lists of search.* values give {count} combinations: give at most {MAX_SETTINGS}")
    return [Setting(*combination) for combination in product(*columns)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, recall) points that no other beats, in ascending order of cost and of recall.

    Of equal points the first is kept.
    """
    front, best = [], -math.inf
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            front.append(i)
            best = points[i][1]
    return front


def explore(
    settings: list[Setting],
    measure: Callable[[SearchOptions], Measurement],
    *,
    objective: Callable[[Measurement], float] = lambda found: found.recall[1],
    known: Mapping[Setting, Measurement] | None = None,
    on_measured: Callable[[dict[Setting, Measurement], list[Setting]], None] = lambda measured, skipped: None,
) -> dict[Setting, Measurement]:
    """Measure the settings that may be Pareto-optimal, from the extremes inwards.

    Args:
        settings: of `combinations`.
        measure: searches with some options.
        objective: the recall of a measurement that is to be high; recall@1 unless given.
        known: measurements that are there already, of these settings or others.
        on_measured: called before the first and after every measurement with all there are, and the settings that are
            skipped because they cannot be optimal.

    Returns:
        The measurements, `known` ones included.
    """
    measured = dict(known or {})
    exploration = Exploration(settings, objective)
    for setting, found in measured.items():
        exploration.add(setting, found)
    while True:
        on_measured(measured, [setting for setting in exploration.finished() if setting not in measured])
        setting = exploration.choose()
        if setting is None:
            return measured
        measured[setting] = measure(setting.options)
        exploration.add(setting, measured[setting])


class Exploration:
    """Bounds of each setting's recall and time, by those that are measured.

    Args:
        settings: that may be measured.
        objective: the recall of a measurement that is to be high.
    """

    def __init__(self, settings: list[Setting], objective: Callable[[Measurement], float]):
        self._settings, self._objective = settings, objective
        self._values = np.array([_stage_sizes(setting) for setting in settings])
        self._columns = [np.unique(column) for column in self._values.T]
        self._ranks = self._ranks_of(self._values)
        self._most = np.ones(len(settings))  # recall at most
        self._least = np.zeros(len(settings))  # recall at least
        self._time = np.zeros(len(settings))  # a query at least, in microseconds
        self._distance = np.full(len(settings), np.inf)  # to the nearest measured setting
        self._points = []

    def add(self, setting: Setting, found: Measurement) -> None:
        """Derive the bounds that follow from a measurement, of one of the settings or another."""
        values, recall, time = np.array(_stage_sizes(setting)), self._objective(found), found.microseconds
        below, above = (self._values <= values).all(1), (self._values >= values).all(1)
        # A pairwise decoder may lower recall: settings with and without it do not bound each other's recall.
        alike = (self._values[:, _PAIRWISE] > 0) == (values[_PAIRWISE] > 0)
        self._most[below & alike] = np.minimum(self._most[below & alike], recall)
        self._least[above & alike] = np.maximum(self._least[above & alike], recall)
        self._time[above] = np.maximum(self._time[above], time)
        self._distance = np.minimum(self._distance, np.abs(self._ranks - self._ranks_of(values)).sum(1))
        self._points = sorted([*self._points, (time, recall)])

    def finished(self) -> list[Setting]:
        """The settings that are measured or cannot be optimal."""
        return [self._settings[i] for i in np.flatnonzero(~self._can_gain())]

    def choose(self) -> Setting | None:
        """Of the settings that may be optimal, the one farthest from all measured; None if there is none.

        That is the cheapest, the most expensive, and then what lies between, coarsely first.
        """
        open_settings = np.flatnonzero(self._can_gain())
        return self._settings[open_settings[self._distance[open_settings].argmax()]] if len(open_settings) else None

    def _can_gain(self) -> np.ndarray:
        """Whether a setting may find more than every measured one that is no slower.

        That one is no slower is known by the order of values, which has no noise, or by the clock.
        """
        times = np.array([time for time, _ in self._points])
        best = np.maximum.accumulate([0.0, *(recall for _, recall in self._points)])
        reached = best[np.searchsorted(times, self._time * (1 - TIME_TOLERANCE), side="right")]
        return self._most > np.maximum(self._least, reached)

    def _ranks_of(self, values: np.ndarray) -> np.ndarray:
        """Where values stand in their lists, from 0 to 1."""
        scales = [np.linspace(0, 1, len(column)) for column in self._columns]
        return np.stack([np.interp(values[..., i], self._columns[i], scale) for i, scale in enumerate(scales)], -1)


def _stage_sizes(setting: Setting) -> tuple[int, ...]:
    """What decides recall and time; equal for settings that mean the same search."""
    return astuple(setting.options)


_PAIRWISE = [field.name for field in fields(SearchOptions)].index("num_mid")
