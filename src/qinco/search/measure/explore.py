"""Which settings of a search to measure: those that may be Pareto-optimal, by the bounds of those that are measured.

A setting is Pareto-optimal if no other finds more in less time. Time is assumed not to fall where a value rises, nor
recall where nprobe, efSearch or nshort rise: so every measured setting bounds those above and below it, and what cannot
be optimal within these bounds is left out.

Shape suffixes: S settings, C values of a setting.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from qinco.config import require_int
from qinco.errors import ConfigError
from qinco.search.options import SearchOptions

MAX_SETTINGS = 10_000
# Timings are noisy. Unless one setting has no value above the other's, call it faster only if it is 10 % faster.
TIME_TOLERANCE = 0.1
_NUM_MID = list(SearchOptions.__dataclass_fields__).index("num_mid")


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
    """Recall and time of a search with one setting."""

    recall: dict[int, float]  # for each rank the share of queries whose nearest neighbour is among so many results
    shortlist_recall: dict[int, float]  # the same in the shortlist's order, before the network re-ranks it
    seconds_by_stage: dict[str, float]  # of all queries: "search", "pairwise", "decode", "rerank" and "total"
    num_queries: int

    @property
    def seconds(self) -> float:
        return self.seconds_by_stage["total"]

    @property
    def microseconds(self) -> float:
        """Microseconds a query."""
        return self.seconds / self.num_queries * 1e6


def combinations(values: Mapping[str, Sequence[int]]) -> list[Setting]:
    """All combinations of the values, each list in ascending order; raises ConfigError for an empty or wrong list."""
    for name, least in zip(Setting._fields, (1, 1, 0, 0), strict=True):
        if len(values[name]) == 0:
            raise ConfigError(f"search.{name} is an empty list: give at least one value")
        for value in values[name]:
            require_int(f"search.{name}", value, least)
    columns = [sorted({int(value) for value in values[name]}) for name in Setting._fields]
    count = math.prod(map(len, columns))
    if count > MAX_SETTINGS:
        raise ConfigError(f"the lists of search.* values give {count} combinations: give at most {MAX_SETTINGS}")
    return [Setting(*combination) for combination in product(*columns)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, recall) points that no other beats, by cost; of equal points the first is kept."""
    front = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def explore(
    settings: list[Setting], measure: Callable[[SearchOptions], Measurement],
    on_measured: Callable[[dict[Setting, Measurement], list[Setting]], None], *,
    known: Mapping[Setting, Measurement] | None = None, rank: int = 1,
) -> dict[Setting, Measurement]:  # fmt: skip
    """Measure the settings that may be Pareto-optimal by recall@rank, from the extremes inwards.

    `on_measured` hears before the first and after every measurement what is measured, with what is `known` of these
    settings and others, and which settings are skipped because they cannot be optimal.
    """
    measured, bounds = dict(known or {}), _Bounds(settings)
    for setting, found in measured.items():
        bounds.add(setting, found.recall[rank], found.microseconds)
    while True:
        can_gain_S = bounds.can_gain()
        finished = [settings[i] for i in np.flatnonzero(~can_gain_S)]
        on_measured(measured, [setting for setting in finished if setting not in measured])
        if not can_gain_S.any():
            return measured
        # The one farthest from all measured: the cheapest, the most expensive, and then what lies between.
        setting = settings[np.where(can_gain_S, bounds.distance_S, -1).argmax()]
        try:
            found = measured[setting] = measure(setting.options)
        except KeyboardInterrupt as stop:
            vars(stop)["measured"] = measured
            raise
        bounds.add(setting, found.recall[rank], found.microseconds)


class _Bounds:
    """Bounds of each setting's recall and time, by those that are measured."""

    def __init__(self, settings: list[Setting]):
        self._values_SC = np.array([astuple(setting.options) for setting in settings])
        self._columns = [np.unique(column) for column in self._values_SC.T]
        self._ranks_SC = self._ranks_of(self._values_SC)
        self._most_S, self._least_S = np.ones(len(settings)), np.zeros(len(settings))  # recall
        self._time_S = np.zeros(len(settings))  # a query at least, in microseconds
        self.distance_S = np.full(len(settings), np.inf)  # to the nearest measured setting
        self._points = []

    def add(self, setting: Setting, recall: float, time: float) -> None:
        values_C = np.array(astuple(setting.options))
        below_S, above_S = (self._values_SC <= values_C).all(1), (self._values_SC >= values_C).all(1)
        # A pairwise decoder may lower recall: settings with and without it do not bound each other's recall.
        alike_S = (self._values_SC[:, _NUM_MID] > 0) == (values_C[_NUM_MID] > 0)
        self._most_S[below_S & alike_S] = np.minimum(self._most_S[below_S & alike_S], recall)
        self._least_S[above_S & alike_S] = np.maximum(self._least_S[above_S & alike_S], recall)
        self._time_S[above_S] = np.maximum(self._time_S[above_S], time)
        self.distance_S = np.minimum(self.distance_S, np.abs(self._ranks_SC - self._ranks_of(values_C)).sum(1))
        self._points = sorted([*self._points, (time, recall)])

    def can_gain(self) -> np.ndarray:
        """Whether a setting may find more than every measured one that is no slower; bool (S,).

        That one is no slower is known by the order of values, which has no noise, or by the clock.
        """
        times = np.array([time for time, _ in self._points])
        best = np.maximum.accumulate([0.0, *(recall for _, recall in self._points)])
        reached_S = best[np.searchsorted(times, self._time_S * (1 - TIME_TOLERANCE), side="right")]
        return self._most_S > np.maximum(self._least_S, reached_S)

    def _ranks_of(self, values: np.ndarray) -> np.ndarray:
        """Where values stand in their lists, from 0 to 1."""
        ranks = [np.interp(v, c, np.linspace(0, 1, len(c))) for v, c in zip(values.T, self._columns, strict=True)]
        return np.stack(ranks, -1)
