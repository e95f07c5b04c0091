"""The work of one job: train, encode, and measure. It runs in a process of its own.

Shape suffixes: N vectors, D dimension, E dimensions of what is coded, Q queries, R results.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qinco.codec.evaluate import median_us
from qinco.comparison.coders import CODERS, Coder, ResidualCoder
from qinco.comparison.inputs import Sources, Truth, scaled_like, usual_length
from qinco.comparison.installed import using_faiss
from qinco.comparison.linear import Space, make_space
from qinco.comparison.measures import Errors, judge
from qinco.comparison.ours import RESULTS, Ours, run_ours
from qinco.comparison.resources import one_thread, peak_memory
from qinco.comparison.rivals import Rival
from qinco.machine import num_openmp_threads
from qinco.progress import Progress
from qinco.search.exhaustive import nearest_in_blocks
from qinco.search.metric import Metric
from qinco.vectors.rows import VectorSource

_PRODUCT = Metric("inner_product")
_TIMED_ROWS, _PASS_US, _BLOCK_ROWS = 10_000, 200_000, 1 << 14


def run(job: Rival | Ours, sources: Sources, truths: list[Truth], folder: Path, report: Progress) -> Iterator[dict]:
    """Do a job, and yield its cells."""
    if isinstance(job, Ours):
        yield from run_ours(job, sources, truths, folder, report)
    else:
        with using_faiss(num_openmp_threads()):
            yield from _run_rival(job, sources, truths, report)


def _run_rival(job: Rival, sources: Sources, truths: list[Truth], report: Progress) -> Iterator[dict]:
    report("training", 0, 1, "rival")
    x_ND = sources.train[:]
    begun = time.monotonic()
    space, coder = make_space(job.space, job.dims, x_ND), CODERS[job.kind](job.number)
    coder.fit(np.ascontiguousarray(space.apply(x_ND)))
    seconds, length = time.monotonic() - begun, usual_length(x_ND)
    base = {
        "family": job.family, "ours": False, "trained_on": coder.settings.get("trained_on", len(x_ND)),
        "train_seconds": seconds,
    }  # fmt: skip
    some_ND = x_ND[:_TIMED_ROWS].copy()
    del x_ND
    for size in (*job.prefixes, job.size):
        own, is_whole = coder, size == job.size
        if not is_whole:
            assert isinstance(coder, ResidualCoder)  # jobs of no other kind have prefixes
            own = coder.prefix(size)
        named = {"id": job.id, "method": job.method, "prefix_of": None}
        if not is_whole:
            named = {"id": f"{job.id}-first-{size}", "method": f"first {size} codebooks of {job.method}"}
            named["prefix_of"] = job.id
        yield (
            base
            | named
            | _measured(space, own, some_ND)
            | {"results": _results(space, own, sources.db, truths, length, report)}
        )


def _measured(space: Space, coder: Coder, some_ND: np.ndarray) -> dict:
    """Sizes and times."""
    codes = coder.encode(space.apply(some_ND))

    def encode(count: int) -> None:
        coder.encode(space.apply(some_ND[:count]))

    def decode(count: int) -> None:
        space.reverse(coder.decode(codes[:count]))

    with one_thread():
        encode_us = median_us(encode, len(some_ND), _PASS_US)
        decode_us = median_us(decode, len(some_ND), _PASS_US) if coder.decodes else None
    return {
        "bytes": coder.code_bytes + coder.scalar_bytes, "code_bytes": coder.code_bytes,
        "scalar_bytes": coder.scalar_bytes, "settings": coder.settings, "encode_us": encode_us,
        "decode_us": decode_us, "model_bytes": space.nbytes + coder.nbytes(), "peak_memory_bytes": peak_memory(),
    }  # fmt: skip


def _results(space: Space, coder: Coder, db: VectorSource, truths: list[Truth], length: float, report) -> list[dict]:
    encoded: dict[str, tuple[np.ndarray, dict]] = {}
    found = []
    for truth in truths:
        kind = truth.metric if truth.metric == "cosine" or coder.by_metric else "l2"
        measure = scaled_like(truth.metric, length)
        if kind not in encoded:
            encoded[kind] = _encode(space, coder, db, measure, report)
        codes, errors = encoded[kind]
        asked_QD = measure.prepare(truth.queries_QD)
        is_product = truth.metric == "inner_product"
        # What is subtracted before the coder changes no distance, and is the same for all products with a query.
        asked_QE = asked_QD @ _axes(space) if is_product else space.apply(asked_QD)
        count = min(RESULTS, len(db))
        blocks = _scored(coder, codes, truth.metric, report)
        _, ids_QR = nearest_in_blocks(np.ascontiguousarray(asked_QE), blocks, count, metric=_PRODUCT, adds=True)
        result = {"metric": truth.metric, "queries": truth.queries, "num_queries": len(ids_QR)}
        found.append(result | errors | judge(ids_QR, truth.nearest_QR))
    return found


def _axes(space: Space) -> np.ndarray:
    axes_DE = getattr(space, "axes_DE", None)
    return np.eye(len(space.mean_D), dtype=np.float32) if axes_DE is None else axes_DE


def _encode(space: Space, coder: Coder, db: VectorSource, measure: Metric, report) -> tuple[np.ndarray, dict]:
    """The codes of a database, and their error where they are decoded to vectors."""
    codes, errors = [], Errors()
    has_error = coder.decodes and not (coder.by_metric and measure.name == "inner_product")
    for first, block_ND in db.blocks(_BLOCK_ROWS):
        x_ND = measure.prepare(block_ND)
        codes.append(coder.encode(np.ascontiguousarray(space.apply(x_ND)), measure.name))
        if has_error:
            errors.add(x_ND, space.reverse(coder.decode(codes[-1])))
        report("encoding", first + len(x_ND), len(db))
    return np.concatenate(codes), errors.summary() if has_error else {"mse": None, "mse_se": None}


def _scored(coder: Coder, codes: np.ndarray, metric: str, report: Progress) -> Iterator[tuple]:
    for first in range(0, len(codes), _BLOCK_ROWS):
        block = np.ascontiguousarray(codes[first : first + _BLOCK_ROWS])
        v_NE, added_N = coder.score(block, metric)
        yield first, np.ascontiguousarray(v_NE, np.float32), added_N.astype(np.float32)
        report("searching", first + len(block), len(codes))
