"""Which settings of a search are worth it: a sweep over lists of values that measures only what can be.

A setting is worth it (Pareto-optimal) if no other finds more in less time. The sweep assumes that time does not fall
where a value rises, nor recall where nprobe, efSearch or nshort do: so every measured setting bounds those above and
below it, and what cannot gain within these bounds is left out.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qinco.atomic import write_atomically
from qinco.config import require_int
from qinco.errors import ConfigError, DataError
from qinco.search.options import SearchOptions

MAX_SETTINGS = 10_000
# Clocks are noisy: of two settings neither of which has all values at most the other's, one is held to be the faster
# only if it took a tenth less than the other must take.
TIME_TOLERANCE = 0.1
# Of the timed runs the one of median total is reported.
MIN_REPEATS, MAX_REPEATS, MIN_SECONDS = 3, 100, 1.0
TIMING = (
    f"the median of at least {MIN_REPEATS} runs and {MIN_SECONDS:g} s ({MAX_REPEATS} runs at most) after one warm-up"
)
# The stages of a search, and what the authors' code calls their times.
STAGES = {
    "search": "t_search",
    "pairwise": "t_mid_rerank",
    "decode": "t_decode",
    "rerank": "t_rerank",
    "total": "t_total",
}


class Setting(NamedTuple):
    """One combination of the command line's values, in the order and with the names of the authors' results."""

    nprobe: int
    quantizer_efSearch: int
    nshort: int
    nmid_short: int

    @property
    def options(self) -> SearchOptions:
        return SearchOptions.from_multiples(*self)


@dataclass(frozen=True)
class Measurement:
    """What a search with one setting found, and in what time.

    recall:           share of the queries whose nearest neighbour is among the first results, for each rank
    shortlist_recall: the same for the shortlist's order, before the network has seen it
    seconds_by_stage: seconds of all queries together for the STAGES that there were; "total" is the whole call's
    num_queries:      Q
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


@dataclass(frozen=True)
class Conditions:
    """What a measurement depends on beside the setting; measurements under other conditions are not compared.

    fingerprint: of each input, by its name: {"index": ..., "model": ..., "queries": ..., "decoder": ...}
    threads:     that searched
    machine:     in words
    """

    fingerprint: dict[str, str]
    threads: int
    machine: str

    def differences(self, there: "Conditions") -> list[str]:
        """In words, what differs between these conditions here and those `there`."""
        names = sorted(self.fingerprint.keys() | there.fingerprint.keys())
        found = [f"another {name}" for name in names if self.fingerprint.get(name) != there.fingerprint.get(name)]
        pairs = [(name, getattr(there, name), getattr(self, name)) for name in ("threads", "machine")]
        return found + [f"{name}={theirs} there, {ours} here" for name, theirs, ours in pairs if theirs != ours]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has measured so far.

    asked:    all combinations of the sweep's values
    measured: of them or, in resumed results, of other values too
    skipped:  those left out
    """

    asked: list[Setting]
    measured: dict[Setting, Measurement]
    skipped: list[Setting]
    conditions: Conditions

    @property
    def front(self) -> list[Setting]:
        """The Pareto-optimal settings by recall@1, from the fastest to the one that finds most."""
        settings = list(self.measured)
        return [settings[i] for i in pareto_front(self.points())]

    def points(self) -> list[tuple[float, float]]:
        """(microseconds a query, recall@1) of every measured setting."""
        return [(measurement.microseconds, measurement.recall[1]) for measurement in self.measured.values()]

    def front_table(self) -> tuple[list[list], list[str]]:
        """The front as rows and their headers, for `Console.print_table`."""
        rows, ranks = [], []
        for setting in self.front:
            found = self.measured[setting]
            ranks = sorted(found.recall)
            rows.append([found.recall[r] for r in ranks] + [found.microseconds, found.queries_per_second, *setting])
        return rows, [*(f"recall@{rank}" for rank in ranks), "us/query", "queries/s", *Setting._fields]

    def settings(self) -> list[dict]:
        """Every measured setting as JSON values, by the values' order."""
        front = set(self.front)
        return [
            {
                "parameters": setting._asdict(),
                "recall": dict(found.recall),
                "shortlist_recall": dict(found.shortlist_recall),
                "queries_per_second": found.queries_per_second,
                "seconds_by_stage": dict(found.seconds_by_stage),
                "pareto": setting in front,
            }
            for setting, found in sorted(self.measured.items())
        ]

    def to_dict(self) -> dict:
        """What `json.dumps` makes the results file of: the authors' list `ivf_real_res`, and ours beside it."""
        return {
            "ivf_real_res": self._upstream_results(),
            "settings": self.settings(),
            "skipped": [setting._asdict() for setting in self.skipped],
            "threads": self.conditions.threads,
            "machine": self.conditions.machine,
            "num_queries": next((found.num_queries for found in self.measured.values()), 0),
            "timing": TIMING,
            "fingerprint": dict(self.conditions.fingerprint),
        }

    def _upstream_results(self) -> list[dict]:
        values = [sorted(set(column)) for column in zip(*self.asked, *self.measured, strict=True)]
        shape = [len(column) for column in values]
        results = []
        for setting, found in sorted(self.measured.items()):
            key = [column.index(value) for column, value in zip(values, setting, strict=True)]
            results.append(
                {
                    "parameters": setting._asdict(),
                    "cno": int(np.ravel_multi_index(key, shape)),
                    **{theirs: found.seconds_by_stage.get(ours, 0) for ours, theirs in STAGES.items()},
                    "recalls": dict(found.recall),
                    "recalls_orig": dict(found.shortlist_recall),
                    "key": key,
                }
            )
        return results


def sweep(
    values: Mapping[str, Sequence[int]],
    measure: Callable[[SearchOptions], Measurement],
    conditions: Conditions,
    output: str | os.PathLike | None = None,
    resume: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> SweepResult:
    """Measure the combinations of `values` that can be Pareto-optimal, from the extremes inwards.

    values:      a list for each field of `Setting`
    measure:     searches with the given options; see `measure_stages` for its times
    output:      results file (JSON), written anew after every setting, so that nothing measured is lost
    resume:      go on with the results of `output` where it exists; those of values not asked for are kept
    on_progress: hears how many combinations are measured or left out, of `len(combinations(values))`

    Raises ConfigError for wrong values and for results of other conditions, DataError for a damaged results file.
    """
    asked = combinations(values)
    exploration = _Exploration(asked)
    resumes = resume and output is not None and Path(output).exists()
    measured = _read_results(Path(output), conditions) if resumes else {}
    for setting, found in measured.items():
        exploration.add(setting, found)
    while True:
        settled = exploration.settled()
        skipped = [setting for setting in settled if setting not in measured]
        result = SweepResult(asked, dict(measured), skipped, conditions)
        if output is not None and measured:
            with write_atomically(output) as temporary:
                temporary.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n")
        on_progress(len(settled))
        setting = exploration.choose()
        if setting is None:
            return result
        measured[setting] = measure(setting.options)
        exploration.add(setting, measured[setting])


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


def measure_stages(run: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Seconds by stage, as TIMING says.

    run: does all the work once and returns its seconds by stage, "total" among them
    """
    run()
    runs = [run() for _ in range(MIN_REPEATS)]
    while sum(stages["total"] for stages in runs) < MIN_SECONDS and len(runs) < MAX_REPEATS:
        runs.append(run())
    return dict(sorted(runs, key=lambda stages: stages["total"])[(len(runs) - 1) // 2])


class _Exploration:
    """Bounds on what each setting can do, drawn from those that are measured."""

    def __init__(self, settings: list[Setting]):
        self._settings = settings
        self._values = np.array([_stage_sizes(setting) for setting in settings])
        self._columns = [np.unique(column) for column in self._values.T]
        self._places = self._places_of(self._values)
        self._most = np.ones(len(settings))  # recall at most
        self._least = np.zeros(len(settings))  # recall at least
        self._time = np.zeros(len(settings))  # a query at least, in microseconds
        self._distance = np.full(len(settings), np.inf)  # to the nearest measured setting
        self._points = []

    def add(self, setting: Setting, found: Measurement) -> None:
        """Draw the bounds that follow from a measurement, of the settings' own or another."""
        values, recall, time = np.array(_stage_sizes(setting)), found.recall[1], found.microseconds
        below, above = (self._values <= values).all(1), (self._values >= values).all(1)
        # A pairwise decoder may be one that loses recall: settings with it and without it do not bound each other's.
        alike = (self._values[:, 3] > 0) == (values[3] > 0)
        self._most[below & alike] = np.minimum(self._most[below & alike], recall)
        self._least[above & alike] = np.maximum(self._least[above & alike], recall)
        self._time[above] = np.maximum(self._time[above], time)
        self._distance = np.minimum(self._distance, np.abs(self._places - self._places_of(values)).sum(1))
        self._points = sorted([*self._points, (time, recall)])

    def settled(self) -> list[Setting]:
        """The settings that are measured or cannot gain."""
        return [self._settings[i] for i in np.flatnonzero(~self._can_gain())]

    def choose(self) -> Setting | None:
        """Of the settings that can gain, the one farthest from all measured; None where none can.

        That is the cheapest, the dearest, and then what lies between, coarsely first.
        """
        open_settings = np.flatnonzero(self._can_gain())
        return self._settings[open_settings[self._distance[open_settings].argmax()]] if len(open_settings) else None

    def _can_gain(self) -> np.ndarray:
        """Whether a setting may find more than every measured one that is no slower.

        Which those are is known by the order of values, which no noise touches, or by the clock.
        """
        times = np.array([time for time, _ in self._points])
        best = np.maximum.accumulate([0.0, *(recall for _, recall in self._points)])
        reached = best[np.searchsorted(times, self._time * (1 - TIME_TOLERANCE), side="right")]
        return self._most > np.maximum(self._least, reached)

    def _places_of(self, values: np.ndarray) -> np.ndarray:
        """Where values stand in their lists, from 0 to 1."""
        scales = [np.linspace(0, 1, len(column)) for column in self._columns]
        return np.stack([np.interp(values[..., i], self._columns[i], scale) for i, scale in enumerate(scales)], -1)


def _stage_sizes(setting: Setting) -> tuple[int, ...]:
    """What decides recall and time; equal for settings that come to the same search."""
    options = setting.options
    return options.nprobe, options.ef_search, options.num_short, options.num_mid


def _read_results(path: Path, conditions: Conditions) -> dict[Setting, Measurement]:
    remedy = "give another output, or overwrite=true without resume"
    try:
        content = json.loads(path.read_text())
        there = Conditions(dict(content["fingerprint"]), content["threads"], content["machine"])
        measured = dict(_read_setting(entry, content["num_queries"]) for entry in content["settings"])
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{path} holds no results of a sweep of ours, or is damaged: {remedy}") from error
    differences = conditions.differences(there)
    if differences:
        raise ConfigError(
            f"{path} was measured under other conditions ({'; '.join(differences)}): resume under the same, or {remedy}"
        )
    return measured


def _read_setting(entry: dict, num_queries: int) -> tuple[Setting, Measurement]:
    """A setting of the results file; raises ValueError and others where it is damaged."""
    setting = Setting(**entry["parameters"])
    _checked = setting.options
    require_int("num_queries", num_queries)
    recalls = [{int(rank): share for rank, share in entry[name].items()} for name in ("recall", "shortlist_recall")]
    found = Measurement(*recalls, dict(entry["seconds_by_stage"]), num_queries)
    shares = [recalls[0][1], *recalls[0].values(), *recalls[1].values()]
    times = [1 / found.seconds, *found.seconds_by_stage.values()]
    if not all(0 <= share <= 1 for share in shares) or not all(0 <= seconds < math.inf for seconds in times):
        raise ValueError("no such recall or time")
    return setting, found
