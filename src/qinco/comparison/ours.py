"""Our codecs in a comparison: one training each, and the rows that are measured of it.

Shape suffixes: N vectors, D dimension, M codes of a vector, Q queries, R results.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qinco.codec.codec import Codec
from qinco.codec.evaluate import median_us
from qinco.comparison.inputs import Sources, Truth
from qinco.comparison.measures import Errors, judge
from qinco.comparison.resources import one_thread, peak_memory
from qinco.model.weights import Weights
from qinco.progress import Progress
from qinco.search.build import metric_of_codec, prepared
from qinco.search.exhaustive import exhaustive_search
from qinco.search.index import Index
from qinco.store.codes import Codes
from qinco.training.loop import EpochReport
from qinco.training.monitor import Estimate
from qinco.vectors.rows import VectorSource

RESULTS = 100
NORM_BYTES = 1  # that a calibrated ranking knows of a vector besides its codes
_PREFIXES = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # bytes at which prefixes of the longest code are measured
_TIMED_ROWS, _PASS_US, _BLOCK_ROWS = 10_000, 400_000, 1 << 15


@dataclass(frozen=True)
class Ours:
    """One training of ours.

    Attributes:
        id: unique, a file name.
        family: the preset.
        size: codes of a byte each.
        sizes: bytes at which prefixes are measured.
        budget: `minutes` or `epochs` of the training, and `seed`.
    """

    id: str
    family: str
    size: int
    sizes: tuple[int, ...]
    budget: dict

    is_ours = True

    @property
    def method(self) -> str:
        """For people."""
        return f"{self.family}, {self.size} codes"


def our_jobs(sizes: tuple[int, ...], presets: tuple[str, ...], budget: dict) -> Iterator[Ours]:
    """A codec of each size by each preset; the longest one is measured at the sizes of its prefixes, too."""
    for preset in presets:
        for size in sizes:
            longest = size == max(sizes)
            shorter = {one for one in {*_PREFIXES, *sizes} if one < size} if longest else ()
            yield Ours(f"{preset}-{size}", preset, size, tuple(sorted({*shorter, size})), budget)


class TooSlow(Exception):
    """The time is not enough to see each training vector once."""


def run_ours(job: Ours, sources: Sources, truths: list[Truth], folder: Path, report: Progress) -> Iterator[dict]:
    """Train, and yield cells; raises TooSlow where the preset does not fit the time."""
    begun, seen = time.monotonic(), {}

    def check(found) -> None:
        if isinstance(found, EpochReport):
            seen["epochs"] = found.epoch  # not those planned: the end moves with the time that they take
        elif isinstance(found, Estimate) and found.total_epochs is not None:
            seen.update(passes=found.passes, lr=found.lr, batch=found.batch_size)
            if "minutes" in job.budget and found.total_epochs * found.passes < 1:
                raise TooSlow(f"{job.budget['minutes']:g} minutes are too few to see each training vector once")

    settings = job.budget | {"preset": job.family, "num_steps": job.size}
    codec = Codec.fit(sources.train, **settings, device="cpu", progress=report, on_report=check)
    seconds, path = time.monotonic() - begun, folder / f"{job.id}.safetensors"
    codec.save(path)
    measured = _Measured(codec, sources, truths, report)
    base = {
        "family": job.family, "ours": True, "trained_on": len(sources.train), "train_seconds": seconds,
        "model_bytes": path.stat().st_size, "encode_us": measured.encode_us, "peak_memory_bytes": peak_memory(),
        "codec": f"{folder.name}/{path.name}",
    }  # fmt: skip
    own = job.budget | seen | {"encode": codec.encode_options.to_dict(), "valid_mse": codec.provenance["valid_mse"]}
    own["mse_per_step"] = measured.mse_per_step
    yield _cell(job, base, job.method, job.size, 0, own, measured, "decoded")
    yield _cell(job, base, f"{job.method}, calibrated", job.size, NORM_BYTES, own, measured, "calibrated")
    for size in (size for size in job.sizes if size > NORM_BYTES):
        steps = size - NORM_BYTES
        name = f"{job.family}, first {steps} of {job.size} codes, calibrated"
        yield _cell(job, base, name, steps, NORM_BYTES, own, measured, "calibrated")


def _cell(job: Ours, base: dict, method: str, steps: int, scalars: int, settings: dict, measured, ranking) -> dict:
    is_whole = steps == job.size
    end = "" if is_whole and not scalars else f"-calibrated-{steps + scalars}"
    settings = settings | {"ranking": ranking, "codes": steps}
    if not is_whole:
        settings.pop("mse_per_step")
    return base | {
        "id": job.id + end, "method": method, "bytes": steps + scalars, "code_bytes": steps, "scalar_bytes": scalars,
        "prefix_of": None if is_whole else job.id, "settings": settings, "decode_us": measured.decode_us(steps),
        "results": measured.results(steps, ranking),
    }  # fmt: skip


class _Measured:
    """A codec, the codes of the database for each metric that needs others, and what is measured of them."""

    def __init__(self, codec: Codec, sources: Sources, truths: list[Truth], report: Progress):
        self._codec, self._truths, self._report = codec, truths, report
        x_ND = sources.train[: min(_TIMED_ROWS, len(sources.train))]
        with one_thread():
            self.encode_us = median_us(lambda count: codec.encode(x_ND[:count]), len(x_ND), _PASS_US)
        self._databases: dict[str, tuple[VectorSource, Codes]] = {}
        for metric in dict.fromkeys(truth.metric for truth in truths):
            kind = "cosine" if metric == "cosine" else "l2"
            if kind not in self._databases:
                source = prepared(sources.db, metric_of_codec(kind, codec))
                self._databases[kind] = source, codec.encode(source, progress=report)
        self._errors = {kind: self._squared(*of) for kind, of in self._databases.items()}

    @property
    def mse_per_step(self) -> list[float]:
        """Of whole and shortened codes."""
        return [errors.summary()["mse"] for errors in next(iter(self._errors.values()))]

    def _squared(self, source: VectorSource, codes: Codes) -> list[Errors]:
        errors = [Errors() for _ in range(codes.shape[1])]
        for first, block in codes.blocks(self._codec.block_rows):
            x_ND = source[first : first + len(block)]
            for step, decoded_ND in enumerate(self._codec.decode_prefixes(block)):
                errors[step].add(x_ND, decoded_ND)
        return errors

    def decode_us(self, steps: int) -> float:
        """Microseconds a vector to decode so many codes."""
        codes = next(iter(self._databases.values()))[1][:_TIMED_ROWS]
        codes = Codes.of(self._codec.prefix(codes, steps))
        with one_thread():
            return median_us(lambda count: self._codec.decode(codes[:count]), len(codes), _PASS_US)

    def results(self, steps: int, ranking: str) -> list[dict]:
        """Of codes shortened to so many steps."""
        found, codec, indexes = [], first_steps(self._codec, steps), {}
        for truth in self._truths:
            kind = "cosine" if truth.metric == "cosine" else "l2"
            source, codes = self._databases[kind]
            codes, count = Codes.of(self._codec.prefix(codes, steps)), min(RESULTS, len(source))
            if ranking == "decoded":
                asked_QD = metric_of_codec(truth.metric, codec).prepare(truth.queries_QD)
                searched = "l2" if kind == "cosine" else truth.metric
                _, ids_QR = exhaustive_search(asked_QD, (codec, codes), count, metric=searched, progress=self._report)
            else:
                if truth.metric not in indexes:
                    indexes[truth.metric] = Index.build(codec, source, 1, metric=truth.metric, codes=codes)
                _, ids_QR = exhaustive_search(truth.queries_QD, indexes[truth.metric], count, progress=self._report)
            result = {"metric": truth.metric, "queries": truth.queries, "num_queries": len(ids_QR)}
            found.append(result | self._errors[kind][steps - 1].summary() | judge(ids_QR, truth.nearest_QR))
        return found


def first_steps(codec: Codec, count: int) -> Codec:
    """The codec of the first steps of another, to which codes are shortened by `Codec.prefix`."""
    if count == codec.config.num_steps:
        return codec
    (weights,) = codec.weights
    dropped = tuple(f"steps.{number}." for number in range(count, weights.config.num_steps))
    arrays = {name: array for name, array in weights.arrays.items() if not name.startswith(dropped)}
    shorter = Weights(replace(weights.config, num_steps=count), arrays)
    return Codec(shorter, codec.encode_options, codec.provenance)
