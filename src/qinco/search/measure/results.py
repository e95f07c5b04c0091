"""Results of a sweep, in memory and in a JSON file."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import write_atomically
from qinco.config import require_int
from qinco.errors import ConfigError, DataError, differences
from qinco.progress import Progress, silent
from qinco.search.measure.explore import Measurement, Setting, combinations, explore, pareto_front
from qinco.search.measure.timing import TIMING
from qinco.search.options import SearchOptions

MAX_RESULT_BYTES = 1 << 28
# The stages of a search, and the names of their times in the authors' results.
_STAGES = {"search": "t_search", "pairwise": "t_mid_rerank", "decode": "t_decode", "rerank": "t_rerank",
           "total": "t_total"}  # fmt: skip
_DAMAGE = OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError


@dataclass(frozen=True)
class Conditions:
    """What a measurement depends on besides the setting; measurements under other conditions are not compared.

    Attributes:
        fingerprint: of each input, by its name: {"index": ..., "model": ..., "queries": ..., "decoder": ...}.
        threads: that search.
        machine: name of the processor.
    """

    fingerprint: dict[str, str]
    threads: int
    machine: str

    def differences(self, there: "Conditions") -> list[str]:
        """What differs between these conditions here and those `there`, in words."""
        facts = [{**one.fingerprint, "threads": one.threads, "machine": one.machine} for one in (there, self)]
        return differences(*facts, {name: f"another {name}" for one in (there, self) for name in one.fingerprint})


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has measured so far.

    Attributes:
        requested: all combinations of the sweep's values.
        measured: of them or, in resumed results, of other values, too.
        skipped: those that cannot be Pareto-optimal.
        conditions: under which they were measured.
    """

    requested: list[Setting]
    measured: dict[Setting, Measurement]
    skipped: list[Setting]
    conditions: Conditions

    @property
    def num_queries(self) -> int:
        return next((found.num_queries for found in self.measured.values()), 0)

    @property
    def front(self) -> list[Setting]:
        """The Pareto-optimal settings by recall@1, from the fastest to the one that finds most."""
        settings = list(self.measured)
        return [settings[i] for i in pareto_front(self.points())]

    def points(self) -> list[tuple[float, float]]:
        """(microseconds a query, recall@1) of every measured setting."""
        return [(measurement.microseconds, measurement.recall[1]) for measurement in self.measured.values()]

    def front_table(self) -> tuple[list[list], list[str]]:
        """The front as rows and their headers."""
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
            {"parameters": setting._asdict(), **asdict(found), "queries_per_second": found.queries_per_second,
             "pareto": setting in front}
            for setting, found in sorted(self.measured.items())
        ]  # fmt: skip

    def save(self, path: str | os.PathLike) -> None:
        """Write the results file, whole or not at all: the authors' list `ivf_real_res`, and ours beside it."""
        content = {
            "ivf_real_res": self._upstream_results(),
            "settings": self.settings(),
            "skipped": [setting._asdict() for setting in self.skipped],
            "num_queries": self.num_queries,
            "timing": TIMING,
            **asdict(self.conditions),
        }
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")

    def _upstream_results(self) -> list[dict]:
        columns = [sorted(set(column)) for column in zip(*self.requested, *self.measured, strict=True)]
        results = []
        for setting, found in sorted(self.measured.items()):
            key = [column.index(value) for column, value in zip(columns, setting, strict=True)]
            results.append(
                {
                    "parameters": setting._asdict(),
                    "cno": int(np.ravel_multi_index(key, [len(column) for column in columns])),
                    **{theirs: found.seconds_by_stage.get(ours, 0) for ours, theirs in _STAGES.items()},
                    "recalls": found.recall,
                    "recalls_orig": found.shortlist_recall,
                    "key": key,
                }
            )
        return results


def record_sweep(
    values: Mapping[str, Sequence[int]],
    measure: Callable[[SearchOptions], Measurement],
    conditions: Conditions,
    output: str | os.PathLike | None = None,
    resume: bool = False,
    report: Progress = silent,
) -> SweepResult:
    """Measure the combinations of values that may be Pareto-optimal, and write the results after each of them.

    Args:
        values: for each field of `Setting` a list.
        measure: searches with some options.
        conditions: of the measurements.
        output, resume: as for `sweep`; results of other values are kept.
        report: of progress.
    """
    settings, path = combinations(values), None if output is None else Path(output)
    known = read_measurements(path, conditions) if resume and path is not None and path.exists() else {}
    result = SweepResult(settings, known, [], conditions)

    def record(measured: dict[Setting, Measurement], skipped: list[Setting]) -> None:
        nonlocal result
        result = SweepResult(settings, dict(measured), skipped, conditions)
        if path is not None and measured:
            result.save(path)
        done = len(skipped) + sum(setting in measured for setting in settings)
        report("measuring", done, len(settings), "setting")

    try:
        explore(settings, measure, known=known, on_measured=record)
    except KeyboardInterrupt:
        if path is None or not result.measured:
            raise
        raise KeyboardInterrupt(f"what is measured is in {path}; the same with resume=true continues") from None
    return result


def read_measurements(path: Path, conditions: Conditions) -> dict[Setting, Measurement]:
    """The measurements of a results file; raises ConfigError if they were made under other conditions."""
    remedy = "give another output, or overwrite=true without resume"
    try:
        content = json.loads(path.read_text())
        there = Conditions(dict(content["fingerprint"]), content["threads"], content["machine"])
        measured = dict(_read_setting(entry, content["num_queries"]) for entry in content["settings"])
    except _DAMAGE as error:
        raise DataError(f"{path} does not hold results of a sweep, or is damaged: {remedy}") from error
    if found := conditions.differences(there):
        raise ConfigError(
            f"{path} was measured under other conditions ({'; '.join(found)}): resume under the same, or {remedy}"
        )
    return measured


def _read_setting(entry: dict, num_queries: int) -> tuple[Setting, Measurement]:
    setting = Setting(**entry["parameters"])
    _ = setting.options  # checks the values
    require_int("num_queries", num_queries)
    recalls = [{int(rank): share for rank, share in entry[name].items()} for name in ("recall", "shortlist_recall")]
    found = Measurement(*recalls, dict(entry["seconds_by_stage"]), num_queries)
    shares = [recalls[0][1], *recalls[0].values(), *recalls[1].values()]
    times = [1 / found.seconds, *found.seconds_by_stage.values()]
    if not all(0 <= share <= 1 for share in shares) or not all(0 <= seconds < math.inf for seconds in times):
        raise ValueError("no such recall or time")
    return setting, found


def describe_results(path: str | os.PathLike) -> dict:
    """What a file of results holds, of the authors' code or ours, as JSON values; raises DataError."""
    if (size := Path(path).stat().st_size) > MAX_RESULT_BYTES:
        raise DataError(f"{path} has {size} bytes, too many for the results of a search")
    try:
        content = json.loads(Path(path).read_text())
        recalls = [float(result["recalls"]["1"]) for result in content["ivf_real_res"]]
        best = max(recalls, default=None)
        fields = {"kind": "search results", "num_settings": len(recalls), "best_recall_at_1": best}
        if "settings" in content:  # those of ours
            fields["pareto"] = sum(setting["pareto"] for setting in content["settings"])
    except _DAMAGE as error:
        raise DataError(f"{path} holds no search results in a list 'ivf_real_res', or is damaged") from error
    return fields | {name: content[name] for name in ("num_queries", "threads", "machine") if name in content}
