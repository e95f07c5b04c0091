"""What a comparison says besides its cells: times of indexes, exact search, HNSW, where they break even, and scaling.

Each part is a file of its own, written when it is measured, so that an interrupted comparison goes on where it was.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from qinco.atomic import user_path
from qinco.codec.given import as_codec
from qinco.comparison.break_even import GIGABYTES_PER_CORE, break_even
from qinco.comparison.exact import time_exact
from qinco.comparison.hnsw import installed, time_hnsw
from qinco.comparison.index_time import check_targets, time_index
from qinco.comparison.kept import Kept
from qinco.comparison.options import PARTS
from qinco.comparison.problem import TARGETS, Problem
from qinco.comparison.rival_index import FAMILIES, time_rival
from qinco.comparison.scaling import PARTS as SCALING
from qinco.comparison.scaling import scaling
from qinco.config import require_choice, require_number
from qinco.errors import ConfigError
from qinco.progress import ProgressOption, reporting
from qinco.vectors.rows import as_source, fingerprint

FOLDER = "parts"
_SMALLER, _LEAST_ROWS = 8, 1000  # an eighth of the vectors, but no fewer than these


def add(
    report: dict, sources, folder: str | os.PathLike, *, codecs: Mapping[str, Any] | None = None,
    parts: Collection[str] = PARTS, targets: Sequence[float] = TARGETS, max_vectors: int = 200_000,
    limit_seconds: float = 300.0, seconds: float = 1.0, gigabytes_per_core: float = GIGABYTES_PER_CORE,
    scales: Mapping[str, Sequence[int]] | None = None, progress: ProgressOption = None,
) -> dict:  # fmt: skip
    """Measure what `parts` name, and add it to a report: `cells[].index`, "exact", "hnsw", "break_even", "scaling".

    All times are of one thread. What a file in the folder holds of the same vectors, codecs, settings and machine is
    not measured again.

    Args:
        report: a dict with "cells" and "metrics", of which the first one is measured; it is changed. Of a cell "id",
            "family", "ours", "bytes", "status" and "codec" (its path in the folder) are read.
        sources: has `train`, `db` and `queries`, as for `Problem.of`; of a dict of queries the first is taken.
        folder: of the comparison; the parts are written to `parts` in it.
        codecs: ours by the id of their cell: a Codec, or the path of one. If None, of each size that with the least
            error on vectors that were held out in training.
        parts: some of PARTS; the break-even is computed of what is there.
        targets: shares of R@10 that indexes are to reach.
        max_vectors: so many of the database are searched at most.
        limit_seconds: for each measurement of each part.
        seconds: about so long each time is measured.
        gigabytes_per_core: a core costs as much as so many gigabytes of memory.
        scales: values for parts of `scaling`, by their names.
        progress: see `qinco.progress`.

    Returns:
        The report.

    Raises:
        ConfigError: a part or cell that is unknown, or wrong numbers.

    Example:
        >>> cell = {"id": "S8", "family": "qinco2-S", "ours": True, "bytes": 8, "status": "done"}
        >>> report = add({"cells": [cell], "metrics": ["l2"]}, sources, "report", codecs={"S8": "codec.safetensors"})
        >>> report["exact"]["query_us"]
    """
    check_targets(targets)
    require_number("limit_seconds", limit_seconds, above=0)
    for part in parts:
        require_choice("each of parts", part, PARTS)
    for part in scales or ():
        require_choice("each of scales", part, tuple(SCALING))
    folder, cells = Path(user_path(folder)), {cell["id"]: cell for cell in report["cells"]}
    codecs = best_codecs(report["cells"], folder) if codecs is None else dict(codecs)
    if unknown := sorted(set(codecs) - set(cells)):
        raise ConfigError(f"codecs has {unknown[0]!r}, which is no cell of the report: give the id of one of its cells")
    times = {"limit_seconds": limit_seconds, "seconds": seconds}
    with reporting(progress) as tell:
        if set(parts) & {"exact", "index", "hnsw"}:
            queries = next(iter(sources.queries.values())) if isinstance(sources.queries, Mapping) else sources.queries
            metric = report["metrics"][0]
            problem = Problem.of(sources.train, sources.db, queries, metric, max_vectors=max_vectors, progress=tell)
            kept = Kept(folder / FOLDER, {"vectors": _fingerprint(problem), "metric": metric}, tell)
            _add_searches(report, cells, codecs, sources.train, problem, kept, parts, targets, times)
        if "scaling" in parts:
            kept, scales = Kept(folder / FOLDER, {}, tell), scales or {}
            report["scaling"] = {name: _scaling(name, scales.get(name), kept, limit_seconds) for name in SCALING}
    ours = {id: cell.get("index", []) + cell.get("index_of_fewer", []) for id, cell in cells.items() if cell["ours"]}
    names = {id: f"{cell['family']} of {cell['bytes']:g} bytes" for id, cell in cells.items() if cell["ours"]}
    given = {"memory_bytes": report.get("machine", {}).get("memory_bytes"), "gigabytes_per_core": gigabytes_per_core}
    report["break_even"] = break_even(ours, report.get("exact"), report.get("hnsw", ()), names=names, **given)
    return report


def best_codecs(cells: Sequence[dict], folder: Path) -> dict[str, Path]:
    """Paths of our codecs by their cells: of each size that with the least error on vectors held out in training.

    An index calibrates its ranking, so of a codec's cells that with the calibration's byte stands for it.

    Example:
        >>> best_codecs(report["cells"], Path("report"))
        {'qinco2-S-8-calibrated-9': PosixPath('report/codecs/qinco2-S-8.safetensors')}
    """
    best: dict[float, dict] = {}
    for cell in cells:
        if cell["ours"] and cell["status"] == "done" and cell.get("codec") and not cell.get("prefix_of"):
            error = cell["settings"]["valid_mse"]
            if cell["bytes"] not in best or error < best[cell["bytes"]]["settings"]["valid_mse"]:
                best[cell["bytes"]] = cell
    once = {best[size]["codec"]: best[size]["id"] for size in sorted(best)}
    return {id: folder / codec for codec, id in once.items()}


def _fingerprint(problem: Problem) -> str:
    parts = (problem.vectors_ND, problem.queries_QD, problem.tuning_TD)
    return sha256("".join(fingerprint(as_source(x)) + str(x.shape) for x in parts).encode()).hexdigest()


def _add_searches(
    report: dict, cells: dict, codecs: dict, train, problem: Problem, kept: Kept, parts: Collection[str],
    targets: Sequence[float], times: dict,
) -> None:  # fmt: skip
    aims: dict[str, Any] = {"targets": list(targets), **times}
    if "exact" in parts:
        one = {"seconds": times["seconds"]}
        report["exact"] = kept.part("exact", one, partial(time_exact, problem, **one))
    if "hnsw" in parts:
        report["hnsw"] = []
        for name in installed():
            report["hnsw"] += kept.part(f"hnsw-{name}", aims, partial(time_hnsw, problem, library=name, **aims))
    if "index" not in parts:
        return
    fewer = problem.limited(max(_LEAST_ROWS, len(problem) // _SMALLER))
    for id, given in codecs.items():
        codec = as_codec(given)
        for key, some in (("index_of_fewer", fewer), ("index", problem)):
            conditions = {**aims, "codec": codec.fingerprint(), "rows": len(some)}
            cells[id][key] = kept.part(f"{key}-{id}", conditions, partial(time_index, codec, some, **aims))
    for cell in cells.values():
        family, size = cell["family"], cell["bytes"]
        if not cell["ours"] and cell["status"] == "done" and family in FAMILIES and size == int(size):
            measure = partial(time_rival, family, int(size), train, problem, **aims)
            cell["index"] = kept.part(f"index-{family}-{size:g}", aims, measure)


def _scaling(name: str, values: Sequence[int] | None, kept: Kept, limit_seconds: float) -> list[dict]:
    conditions = {"values": list(values or SCALING[name]), "limit_seconds": limit_seconds}
    part = f"scaling-{name}"
    known = {"known": kept.begun(part, conditions) or [], "on_point": kept.saver(part, conditions)}
    return kept.part(part, conditions, partial(scaling, name, values, limit_seconds=limit_seconds, **known))
