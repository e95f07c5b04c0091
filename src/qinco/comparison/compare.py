"""`compare`: which codec, how many bytes, and is it worth it, for a user's own vectors."""

import json
import logging
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from qinco.atomic import check_output, exclusive, make_folder, user_path, write_atomically
from qinco.comparison.child import run_in_child
from qinco.comparison.inputs import Sources, find_truths
from qinco.comparison.machine import describe_machine, find_commit
from qinco.comparison.measures import crossings
from qinco.comparison.more import FOLDER, PARTS, add
from qinco.comparison.options import LIMIT_MINUTES, SIZES
from qinco.comparison.page import check_page, write
from qinco.comparison.request import Request, listed
from qinco.config import METRICS, require_bool, require_choice, require_number
from qinco.errors import ConfigError, DataError, differences
from qinco.interrupts import held_back
from qinco.progress import Progress, ProgressOption, reporting
from qinco.search.metric import choose_metric
from qinco.vectors.formats import input_files
from qinco.vectors.rows import fingerprint
from qinco.version import __version__

_FORMAT = 1
_MANIFEST, _REPORT, _CELLS, _CODECS = "comparison.json", "report.json", "cells", "codecs"
_LOG = logging.getLogger(__name__)


def compare(
    trainset, db, queries=None, *, output: str | Path, bytes: int | Iterable[int] = SIZES,
    minutes: float | None = None, epochs: int | None = None, other_queries=None,
    metrics: str | Iterable[str] | None = None, presets: str | Iterable[str] | None = None,
    rivals: str | Iterable[str] | None = None, parts: str | Iterable[str] | None = None,
    limit_minutes: float = LIMIT_MINUTES, price: float | None = None, seed: int = 0,
    resume: bool = False, overwrite: bool = False,
    command: str | None = None, inputs: Iterable = (), progress: ProgressOption = None,
) -> dict:  # fmt: skip
    """Compare codecs of this package and their rivals on your vectors at equal bytes; docs/compare.md explains it.

    Everything is trained on `trainset` alone, and searched exhaustively in `db`. Each training and what is measured of
    it is a job in a process of its own: its result is kept in `output`, and an error or its time limit ends no other.

    Args:
        trainset: (N, D) vectors to train on: array, tensor, path or VectorSource; 256 at least.
        db: (N, D) vectors that are compressed and searched; 256 at least.
        queries: (Q, D); if None some vectors of `db` are taken out of it to be queries, 2,000 or a twentieth.
        output: folder for report.html, report.md, report.csv and report.json, with what has been measured (`cells`,
            `parts`) and our codecs (`codecs`).
        bytes: sizes of a vector's code, scalars included. Rivals that only have sizes near them are measured at these.
        minutes: that each of our trainings may take, on all threads; 10 if None.
        epochs: instead of minutes, epochs of each of our trainings.
        other_queries: (Q, D) of another distribution than the database, which are reported apart.
        metrics: "l2", "inner_product", "cosine", or several of them; if None all of them, but only "cosine" for vectors
            of length 1, among which all three find the same.
        presets: our architectures; if None all of PRESETS. Those that cannot see each training vector once in the time
            are skipped.
        rivals: families ("PQ", "OPQ", "RQ", "LSQ", "PRQ", "SQ", "signs", "RaBitQ", "TurboQuant"); if None all.
        parts: what is measured besides codecs: "exact" and "hnsw", searches of floats, and when these are the better
            choice; "index", time a query at equal recall; "scaling", costs by dimension, size and steps. All if None.
        limit_minutes: after which a job is ended.
        price: of a GB of memory and month, in which the report says what vectors cost; if None at some prices. With
            `resume` it may be another one.
        seed: of our trainings.
        resume: go on with `output`: what is done stays, what failed is tried again. More bytes, presets and rivals may
            be asked for.
        overwrite: replace `output`, if it is a comparison.
        command: how it was called, for the report.
        inputs: files that are read, in which `output` must not lie.
        progress: see `qinco.progress`.

    Returns:
        The content of report.json.

    Raises:
        ConfigError, DataError: before any work begins.
        KeyboardInterrupt: finished jobs are kept, and `resume=True` goes on.

    Example:
        >>> settings = {"rivals": ["signs"], "presets": [], "parts": []}
        >>> report = qinco.compare("train.fvecs", "base.fvecs", bytes=8, output="report", **settings)
        >>> report["cells"][0]["results"][0]["recall"]["10"]
        [0.9375, 0.0612]
    """
    request = Request.of(bytes, minutes, epochs, metrics, presets, rivals, limit_minutes, seed)
    chosen_parts = PARTS if parts is None else listed("parts", parts, str, may_be_empty=True)
    for part in chosen_parts:
        require_choice("parts", part, PARTS)
    check_page()
    if price is not None:
        require_number("price", price, minimum=0)
    require_bool("resume", resume)
    require_bool("overwrite", overwrite)
    sources = Sources.open(trainset, db, queries, other_queries)
    chosen = request.metrics or _metrics_of(sources)
    folder = _open_folder(output, resume, overwrite, [*inputs, *input_files(trainset, db, queries, other_queries)])
    with (
        reporting(progress) as report,
        exclusive(folder / ".lock", f"another process writes {folder}: wait for it, or give another output"),
    ):
        _check_manifest(folder, _manifest(request, sources, chosen), resume)
        try:
            cells = _Jobs(request, sources, chosen, folder, report).run()
            result = _assemble(request, sources, chosen, cells, command) | {"price": price}
            _write_json(folder / _REPORT, result)
            add(result, sources, folder, parts=chosen_parts, progress=report)
        except KeyboardInterrupt as stop:
            stop.args = stop.args or (f"what was measured is in {folder}: give resume=true to go on",)
            raise
        _write_json(folder / _REPORT, result)
        write(result, folder)
    return result


def _metrics_of(sources: Sources) -> tuple[str, ...]:
    """All metrics, or one where vectors have length 1."""
    logger = logging.getLogger("qinco.search.metric")
    level, _ = logger.level, logger.setLevel(logging.WARNING)
    try:
        is_unit = choose_metric(None, compared=sources.db) == "cosine"
    finally:
        logger.setLevel(level)
    return ("cosine",) if is_unit else METRICS


class _Jobs:
    """All jobs, in order, each done or read from its file."""

    def __init__(self, request: Request, sources: Sources, metrics: tuple[str, ...], folder: Path, report: Progress):
        from qinco.comparison.ours import our_jobs
        from qinco.comparison.rivals import rivals

        self._request, self._sources, self._metrics, self._folder = request, sources, metrics, folder
        self._report, self._truths = report, None
        self.jobs = [
            *rivals(sources.train.dim, request.sizes, request.families),
            *our_jobs(request.sizes, request.presets, request.budget),
        ]

    def run(self) -> list[dict]:
        """The cells of all jobs."""
        cells = []
        for number, job in enumerate(self.jobs):
            self._report("comparing", number, len(self.jobs), "job")
            path = self._folder / _CELLS / f"{job.id}.json"
            kept = _read_json(path) if path.exists() else None
            if kept is None or not self._is_kept(kept, job):
                kept = self._do(job)
                with held_back():
                    _write_json(path, kept)
            cells += kept["cells"]
        self._report("comparing", len(self.jobs), len(self.jobs), "job")
        return cells

    def _is_kept(self, kept: dict, job) -> bool:
        """Whether what is kept of a job is what would be found again."""
        if kept["status"] == "time limit":
            return kept["job"] == _key(job) and kept["limit_seconds"] >= self._limit
        return kept["job"] == _key(job) and kept["status"] in ("done", "skipped")

    @property
    def _limit(self) -> float:
        return 60.0 * self._request.limit_minutes

    def _do(self, job) -> dict:
        if self._truths is None:
            self._truths = find_truths(self._sources, self._metrics, self._report)
        codecs = self._folder / _CODECS
        cells, status, reason = run_in_child(job, self._sources, self._truths, codecs, self._limit, self._report)
        cells = [_SHAPE | cell | {"limit_seconds": self._limit} for cell in cells]
        if status != "done":
            what = {"id": job.id, "family": job.family, "ours": job.is_ours, "method": job.method, "bytes": job.size}
            if cells:
                what["id"] += "-rest"
            cells.append(_SHAPE | what | {"status": status, "reason": reason, "limit_seconds": self._limit})
            if status != "skipped":
                _LOG.warning("%s: %s, %s", job.method, status, reason)
        return {"job": _key(job), "status": status, "reason": reason, "limit_seconds": self._limit, "cells": cells}


# What every cell has, in order; None is "not measured".
_SHAPE = {
    "id": None, "family": None, "ours": False, "method": None, "bytes": None, "code_bytes": None, "scalar_bytes": None,
    "prefix_of": None, "status": "done", "reason": None, "limit_seconds": None, "trained_on": None, "settings": {},
    "train_seconds": None, "encode_us": None, "decode_us": None, "model_bytes": None, "peak_memory_bytes": None,
    "codec": None, "results": [], "index": [],
}  # fmt: skip


def _key(job) -> dict:
    """What the result of a job depends on, besides the comparison's manifest."""
    return json.loads(json.dumps({name: value for name, value in vars(job).items() if not callable(value)}))


def _open_folder(output, resume: bool, overwrite: bool, inputs: list) -> Path:
    path = Path(user_path(output))
    check_output(path / _MANIFEST if path.is_dir() else path, overwrite=True, inputs=inputs)
    if path.exists() and any(path.iterdir()):
        is_ours = (path / _MANIFEST).exists()
        if not is_ours:
            raise ConfigError(f"{path} exists and is no comparison: give another output")
        if not (resume or overwrite):
            raise ConfigError(f"{path} exists: give overwrite=true to replace it or resume=true to continue it")
        if overwrite and not resume:
            for name in (_CELLS, _CODECS, FOLDER):
                shutil.rmtree(path / name, ignore_errors=True)
            for name in (_MANIFEST, _REPORT, "report.html", "report.md", "report.csv"):
                (path / name).unlink(missing_ok=True)
    make_folder(path)
    for name in (_CELLS, _CODECS):
        make_folder(path / name)
    return path


def _manifest(request: Request, sources: Sources, metrics: tuple[str, ...]) -> dict:
    named = {"train": sources.train, "db": sources.db, **sources.queries}
    return {
        "format": _FORMAT, "metrics": list(metrics), **request.budget,
        "vectors": {name: fingerprint(source, str(source.shape).encode()) for name, source in named.items()},
    }  # fmt: skip


def _check_manifest(folder: Path, here: dict, resume: bool) -> None:
    """Write the manifest, or refuse to go on with other vectors or another budget."""
    path = folder / _MANIFEST
    if path.exists() and resume:
        there = _read_json(path)
        changed = differences(
            there.pop("vectors", {}), here["vectors"], {n: f"other vectors ({n})" for n in here["vectors"]}
        )
        changed += differences(there, {name: value for name, value in here.items() if name != "vectors"})
        if changed:
            raise ConfigError(f"{folder} cannot be resumed ({'; '.join(changed)}): give overwrite=true without resume, "
                              "or another output")  # fmt: skip
    _write_json(path, here)


def _assemble(request: Request, sources: Sources, metrics: tuple[str, ...], cells: list[dict], command) -> dict:
    return {
        "format": _FORMAT, "command": command or "qinco.compare(...)", "date": datetime.now(UTC).date().isoformat(),
        "qinco": __version__, "commit": find_commit(), "machine": describe_machine(), "data": sources.describe(),
        "metrics": list(metrics), "minutes": request.budget.get("minutes"), "epochs": request.budget.get("epochs"),
        "seed": request.budget["seed"], "bytes": list(request.sizes), "cells": cells,
        "targets": crossings(cells),
    }  # fmt: skip


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; give overwrite=true to begin again") from None


def _write_json(path: Path, value: dict) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", "utf-8")
