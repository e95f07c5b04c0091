"""A sweep: recall and time of many settings of a search, of which only those worth it are measured."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from qinco.atomic import check_output, exclusive, user_path, write_atomically
from qinco.codec.given import CodecLike, as_codec
from qinco.config import DECODERS, RANKINGS, require_choice, require_int
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError, differences
from qinco.machine import num_threads, processor_name, using_threads
from qinco.maths.devices import device_type
from qinco.progress import Progress, ProgressOption, reporting, silent
from qinco.search.fit import open_pairwise
from qinco.search.index import Index
from qinco.search.measure.explore import Measurement, Setting, combinations, explore, pareto_front
from qinco.search.measure.plot import check_plot_path, plot_fronts
from qinco.search.measure.timing import TIMING, measure, measure_recall
from qinco.search.measure.truth import open_queries_of
from qinco.search.metric import choose_metric
from qinco.search.options import SearchOptions
from qinco.store.code_files import is_directory
from qinco.store.manifest import read_manifest
from qinco.store.tensors import find_content
from qinco.vectors.formats import input_files
from qinco.vectors.rows import spread_rows

log = logging.getLogger(__name__)
_FINGERPRINT_BLOCKS, _FINGERPRINT_BYTES = 256, 1 << 12
MAX_RESULT_BYTES = 1 << 28
# The stages of a search, and the names of their times in the authors' results.
_STAGES = {"search": "t_search", "pairwise": "t_mid_rerank", "decode": "t_decode", "rerank": "t_rerank",
           "total": "t_total"}  # fmt: skip
_DAMAGE = OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has measured so far."""

    requested: list[Setting]  # all combinations of the sweep's values
    measured: dict[Setting, Measurement]  # of them or, in resumed results, of other values, too
    skipped: list[Setting]  # those that cannot be Pareto-optimal
    conditions: dict  # "threads", "machine" (the processor's name), and "fingerprint" of each input by its name
    calibrated: dict[Setting, dict[int, float]] = field(default_factory=dict)  # recall of the front by that ranking

    @property
    def front(self) -> list[Setting]:
        """The Pareto-optimal settings by recall@1, from the fastest to the one that finds most."""
        return [list(self.measured)[i] for i in pareto_front(self.points())]

    def points(self) -> list[tuple[float, float]]:
        """(microseconds a query, recall@1) of every measured setting."""
        return [(found.microseconds, found.recall[1]) for found in self.measured.values()]

    def front_table(self) -> tuple[list[list], list[str]]:
        """The front as rows and their headers."""
        rows, ranks = [], []
        for setting in self.front:
            found = self.measured[setting]
            ranks, speed = sorted(found.recall), found.num_queries / found.seconds
            others = self.calibrated.get(setting, {})
            rows.append([*(found.recall[rank] for rank in ranks), found.microseconds, speed, *setting])
            rows[-1] += [others[rank] for rank in ranks] if self.calibrated else []
        names = [f"calibrated@{rank}" for rank in ranks] if self.calibrated else []
        return rows, [*(f"recall@{rank}" for rank in ranks), "us/query", "queries/s", *Setting._fields, *names]

    def settings(self) -> list[dict]:
        """Every measured setting as JSON values, by the values' order."""
        front = set(self.front)
        return [
            {"parameters": setting._asdict(), **asdict(found), "pareto": setting in front,
             "queries_per_second": found.num_queries / found.seconds,
             **({"recall_calibrated": self.calibrated[setting]} if setting in self.calibrated else {})}
            for setting, found in sorted(self.measured.items())
        ]  # fmt: skip

    def save(self, path: str | os.PathLike) -> None:
        """Write the results file, whole or not at all: the authors' list `ivf_real_res`, and ours beside it."""
        columns = [sorted(set(column)) for column in zip(*self.requested, *self.measured, strict=True)]
        theirs = []
        for setting, found in sorted(self.measured.items()):
            key = [column.index(value) for column, value in zip(columns, setting, strict=True)]
            result = {"parameters": setting._asdict(), "cno": int(np.ravel_multi_index(key, list(map(len, columns))))}
            result |= {name: found.seconds_by_stage.get(stage, 0) for stage, name in _STAGES.items()}
            theirs.append(result | {"recalls": found.recall, "recalls_orig": found.shortlist_recall, "key": key})
        content = {"ivf_real_res": theirs, "settings": self.settings(), "timing": TIMING, **self.conditions}
        content["skipped"] = [setting._asdict() for setting in self.skipped]
        content["num_queries"] = next((found.num_queries for found in self.measured.values()), 0)
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", "utf-8")


def record_sweep(
    values: Mapping[str, Sequence[int]], measure: Callable[[SearchOptions], Measurement], conditions: dict,
    output: str | os.PathLike | None = None, resume: bool = False, report: Progress = silent,
) -> SweepResult:  # fmt: skip
    """Measure the combinations of values (a list for each field of `Setting`), as `sweep` does."""
    settings, path = combinations(values), None if output is None else Path(output)
    known = read_measurements(path, conditions) if resume and path is not None and path.exists() else {}
    result, continues = SweepResult(settings, known, [], conditions), resume

    def record(measured: dict[Setting, Measurement], skipped: list[Setting]) -> None:
        nonlocal result, continues
        result = SweepResult(settings, dict(measured), skipped, conditions)
        if path is not None and measured:
            with exclusive(path.with_name(f".{path.name}.lock")):
                if continues and path.exists():  # another process may have measured other settings meanwhile
                    result = SweepResult(settings, read_measurements(path, conditions) | measured, skipped, conditions)
                result.save(path)
            continues = True
        done = len(skipped) + sum(setting in measured for setting in settings)
        report("measuring", done, len(settings), "setting")

    try:
        explore(settings, measure, record, known=known)
    except KeyboardInterrupt:
        if path is None or not result.measured:
            raise
        raise KeyboardInterrupt(f"what is measured is in {path}; the same with resume=true continues") from None
    return result


def read_measurements(path: Path, conditions: dict) -> dict[Setting, Measurement]:
    """The measurements of a results file; raises ConfigError if they were made under other conditions."""
    remedy = "give another output, or overwrite=true without resume"
    try:
        content = json.loads(path.read_text("utf-8"))
        there = {**content["fingerprint"], "threads": content["threads"], "machine": content["machine"]}
        measured = dict(_read_setting(entry, content["num_queries"]) for entry in content["settings"])
    except _DAMAGE as error:
        raise DataError(f"{path} does not hold results of a sweep, or is damaged: {remedy}") from error
    here = {**conditions["fingerprint"], "threads": conditions["threads"], "machine": conditions["machine"]}
    words = {name: f"another {name}" for name in there | here if name not in ("threads", "machine")}
    if found := "; ".join(differences(there, here, words)):
        raise ConfigError(f"{path} was measured under other conditions ({found}): resume under the same, or {remedy}")
    return measured


def _read_setting(entry: dict, num_queries: int) -> tuple[Setting, Measurement]:
    setting = Setting(**entry["parameters"])
    _ = setting.options  # checks the values
    require_int("num_queries", num_queries)
    final, first = ({int(rank): share for rank, share in entry[f"{name}recall"].items()} for name in ("", "shortlist_"))
    found = Measurement(final, first, dict(entry["seconds_by_stage"]), num_queries)
    shares = [final[1], *final.values(), *first.values()]
    times = [1 / found.seconds, *found.seconds_by_stage.values()]
    if not all(0 <= share <= 1 for share in shares) or not all(0 <= seconds < math.inf for seconds in times):
        raise ValueError("no such recall or time")
    return setting, found


def describe_results(path: str | os.PathLike) -> dict:
    """What a file of results holds, of the authors' code or ours, as JSON values; raises DataError."""
    if (size := Path(path).stat().st_size) > MAX_RESULT_BYTES:
        raise DataError(f"{path} has {size} bytes, too many for the results of a search")
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        recalls = [float(result["recalls"]["1"]) for result in content["ivf_real_res"]]
        best = max(recalls, default=None)
        fields = {"kind": "search results", "num_settings": len(recalls), "best_recall_at_1": best}
        if "settings" in content:  # those of ours
            fields["pareto"] = sum(setting["pareto"] for setting in content["settings"])
    except _DAMAGE as error:
        raise DataError(f"{path} holds no search results in a list 'ivf_real_res', or is damaged") from error
    return fields | {name: content[name] for name in ("num_queries", "threads", "machine") if name in content}


def sweep(
    index, queries, ground_truth, *, nprobe: Sequence[int] = (4, 16, 64), ef_search: Sequence[int] = (64,),
    num_short: Sequence[int] = (10, 100), mid_factors: Sequence[int] = (1, 4), codec: CodecLike | None = None,
    pairwise: PairwiseDecoder | str | os.PathLike | None = None, decoder: str = "neural", precision: str = "auto",
    ranking: str = "calibrated", batch_size: int = 12_288, threads: int | None = None,
    output: str | os.PathLike | None = None, plot: str | os.PathLike | None = None, name: str | None = None,
    resume: bool = False, overwrite: bool = False, inputs: Iterable = (), conditions: dict[str, str] | None = None,
    metric: str | None = None, progress: ProgressOption = None,
) -> SweepResult:  # fmt: skip
    """Measure the combinations of options that may be Pareto-optimal: no other finds more in less time.

    Args:
        index: Index, or the path of an index folder or .faissindex file, which faiss scans.
        queries: (Q, D) array, tensor, path or VectorSource.
        ground_truth: (Q,) or (Q, any): ids of the true neighbours, the nearest first; or the path of a file of them, or
            a pair of distances and ids.
        nprobe: numbers of lists that are scanned.
        ef_search: efforts of the graph search for lists; without effect where there is no graph.
        num_short: numbers of vectors that the network decodes.
        mid_factors: length of the pairwise stage's shortlist in multiples of num_short; 0 or 1: no such stage.
        codec: a Codec, or the path of one, for a path of an index without codec.
        pairwise: decoder of the pairwise stage, instead of the index's own.
        decoder: last stage of the pipeline: "neural", "pairwise" or "lookup".
        precision, ranking: as in `Index.search`. With ranking="decoded", that of the papers, the calibrated recall of
            the front is measured, too.
        batch_size: queries searched at a time, at most.
        threads: processor threads; those of `qinco.set_num_threads` if None.
        output: results file (.json), written after every setting.
        plot, name: picture of the front (.png, .svg), and what it calls the index.
        resume, overwrite: continue the results of `output` if it exists; replace it.
        inputs: more files that are read, which must not be replaced.
        conditions: more of what results depend on, compared when they are resumed.
        metric: of the ground truth, which must be that of the index; a file that states another one is warned about.
        progress: see `qinco.progress`.

    Returns:
        SweepResult: `front` has the Pareto-optimal settings, `measured` (of a KeyboardInterrupt, too) all Measurements.

    Example:
        >>> result = qinco.sweep("index", "query.fvecs", "groundtruth.ivecs", nprobe=[4, 16, 64], num_short=[10, 100])
        >>> for setting in result.front:
        ...     print(setting, result.measured[setting].recall[1], result.measured[setting].microseconds)
    """
    given = (index, queries, ground_truth, pairwise)
    read = [*inputs, *input_files(*given)]
    output = user_path(output)
    if output is not None:
        check_output(output, suffixes=(".json",), overwrite=overwrite, resume=resume, inputs=read)
    if plot is not None:
        check_plot_path(plot, overwrite or resume, read)
    name = name or (Path(index).name if isinstance(index, str | os.PathLike) else "index")
    index, files = open_searcher(index, codec, pairwise)
    for value in (batch_size, 1 if threads is None else threads, *nprobe):
        require_int("each of nprobe, batch_size and threads", value)
    require_choice("decoder", decoder, DECODERS)
    require_choice("ranking", ranking, RANKINGS)
    if decoder == "neural" and index.codec is None:
        raise ConfigError("the index holds no codec to decode with: give the codec (model=), or decoder=lookup")
    if decoder == "pairwise" and index.pairwise is None:
        raise ConfigError("decoder=pairwise needs a pairwise decoder: see fit_pairwise_decoder (pairwise_decoder=)")
    choose_metric(metric, queries, ground_truth, own=index.metric)
    queries_QD, nearest_Q = open_queries_of(index, queries, ground_truth)
    if not index.has_graph and len(set(ef_search)) > 1:
        log.info("all %s centroids are compared: ef_search has no effect", f"{index.num_lists:,}")
    values = {
        "nprobe": [min(value, index.num_lists) for value in nprobe],
        "quantizer_efSearch": ef_search if index.has_graph else sorted(ef_search)[:1],
        "nshort": [0] if decoder == "lookup" else num_short,  # the tables' order is final, whatever its length
        "nmid_short": [0] if decoder == "lookup" or index.pairwise is None else mid_factors,
    }
    facts = {"decoder": decoder, "batch size": str(batch_size)} | files | (conditions or {})
    facts["queries"] = sha256(queries_QD.tobytes() + nearest_Q.tobytes()).hexdigest()
    if "index" not in facts:
        facts["index"] = _fingerprint_of(index)
    if decoder == "neural" and index.codec is not None:
        facts["model"] = index.codec.fingerprint()
        engine, device = index.codec.encode_options.engine, device_type(index.codec.device)
        facts["precision, engine or device"] = f"{precision} {engine} {device}"
    is_ranked = index.tables.ranking is not None
    if is_ranked:
        facts["ranking"] = ranking
    with using_threads(threads), reporting(progress) as report:
        found = {"fingerprint": facts, "threads": num_threads(), "machine": processor_name()}
        result = record_sweep(
            values, lambda options: measure(
                index, queries_QD, nearest_Q, options, batch_size, precision=precision, decoder=decoder, ranking=ranking
            ), found, output, resume, report,
        )  # fmt: skip
        if is_ranked and ranking == "decoded":
            stages = {"precision": precision, "decoder": decoder}
            others = {one: measure_recall(index, queries_QD, nearest_Q, one.options, **stages) for one in result.front}
            result = replace(result, calibrated=others)
    if plot is not None:
        plot_fronts(plot, {name: result.points()}, f"{len(queries_QD):,} queries, threads: {found['threads']}")
    return result


def open_searcher(index, codec=None, pairwise=None, device="cpu") -> tuple[Index, dict[str, str]]:
    """An index, or that of a folder or faiss file, with what is given, and its files' fingerprints: {"index": ...}."""
    files, index, pairwise = {}, user_path(index), user_path(pairwise)
    codec = None if codec is None else as_codec(codec)
    if not isinstance(index, Index) and is_directory(path := index):
        index = Index.load(path, codec=codec, device=device)
        checksums = {name: stored.crc32 for name, stored in read_manifest(path, "index").files.items()}
        files["index"] = sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()
    elif not isinstance(index, Index):
        if held := find_content(path):
            raise DataError(f"{path} holds {held}, not an index")
        from qinco.search.faiss_index import scanned_by_faiss

        index, files["index"] = Index(codec, scanned_by_faiss(path, codec)), _fingerprint_of_file(path)
    if pairwise is None:
        return index, files
    lookup, own = index.tables.lookup, index.codec
    # The centroids of the index may be moved from those of the codec.
    centroids_VD = own.coarse_centroids if own is not None and own.is_ivf else index.tables.centroids_VD
    decoder = open_pairwise(pairwise, lookup.num_codes, lookup.codebook_size, lookup.dim, centroids_VD)
    if isinstance(pairwise, str | os.PathLike):
        files["pairwise decoder"] = _fingerprint_of_file(pairwise)
    return index.with_pairwise(decoder), files


def _fingerprint_of_file(path: str | os.PathLike) -> str:
    """Of the file's size and of blocks spread over it."""
    size = Path(path).stat().st_size
    digest = sha256(str(size).encode())
    with Path(path).open("rb") as file:
        for start in np.linspace(0, max(0, size - _FINGERPRINT_BYTES), _FINGERPRINT_BLOCKS).astype(np.int64):
            file.seek(start)
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def _fingerprint_of(index: Index) -> str:
    digest = sha256(index.tables.lookup.tables_MKD.tobytes())
    for segment in index.parts.segments:
        rows = spread_rows(len(segment))
        digest.update(segment.starts.tobytes() + segment.rows(rows)[0].tobytes() + segment.ids[rows].tobytes())
    return digest.hexdigest()
