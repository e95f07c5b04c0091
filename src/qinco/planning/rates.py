"""What one core of a machine does in a microsecond, measured in a minute.

Weights, codes and vectors are random: times do not depend on what vectors mean.
"""

import os
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.evaluate import benchmark
from qinco.comparison.scaling import random_index
from qinco.config import DEFAULT_ENCODE_OPTIONS, EncodeOptions, ModelConfig, require_int, require_number
from qinco.machine import using_threads
from qinco.maths.assignment import NearestCentroids
from qinco.model.weights import random_weights
from qinco.progress import ProgressOption, reporting
from qinco.search.fill import fill_lists
from qinco.store.codes import Codes

_ROWS, _LISTS, _QUERIES, _ASSIGNED = 200_000, 4096, 64, 2000
_FILE_BYTES, _PIECE_BYTES = 256 << 20, 1 << 24


@dataclass(frozen=True)
class Rates:
    """What a core takes, in microseconds or nanoseconds, and what a disk reads.

    Attributes:
        encode_us, decode_us: of a vector, by the codec.
        fill_us: of putting a vector's codes into a list, its correction included.
        compare_ns: of comparing a vector with a centroid, for one dimension.
        scan_ns: of a vector in a list that a query scans.
        rank_us: of a vector that a query decodes and ranks.
        query_us: of a query besides.
        read_mb: megabytes that a machine reads in a second.
    """

    encode_us: float
    decode_us: float
    fill_us: float
    compare_ns: float
    scan_ns: float
    rank_us: float
    query_us: float
    read_mb: float

    def __post_init__(self):
        for field in fields(self):
            require_number(field.name, getattr(self, field.name), minimum=0)


def measure_rates(
    config: ModelConfig, options: EncodeOptions = DEFAULT_ENCODE_OPTIONS, *, folder: str | os.PathLike = ".",
    rows: int = _ROWS, progress: ProgressOption = None,
) -> Rates:  # fmt: skip
    """Measure the rates of this machine on one core, for a codec of some architecture.

    Args:
        config: of the codec.
        options: of encoding.
        folder: on the disk from which vectors are read: a file of 256 MB is written there and removed.
        rows: vectors of the index that is searched.
        progress: see `qinco.progress`.

    Example:
        >>> measure_rates(ModelConfig(dim=768, num_steps=16)).encode_us
    """
    require_int("rows", rows, _ASSIGNED)
    codec = Codec(random_weights(config), options)
    with reporting(progress) as report, using_threads(1):
        report("measuring", 0, 4)
        given = {"threads": [1], "precisions": ["auto"], "options": [codec.encode_options]}
        speed = benchmark(codec, **given, max_vectors=4096, progress=False)[0]
        report("measuring", 1, 4)
        index = random_index(codec, rows)
        searched = _search_rates(index)
        report("measuring", 2, 4)
        found = {"fill_us": _fill_us(index), "compare_ns": _compare_ns(config.dim)}
        report("measuring", 3, 4)
        found["read_mb"] = _read_mb(Path(folder))
        report("measuring", 4, 4)
    return Rates(speed.encode_us, speed.decode_us, **found, **searched)


def _search_rates(index) -> dict:
    """By the least times of searches that scan more or decode more."""
    queries_QD = np.random.default_rng(1).standard_normal((_QUERIES, index.dim), np.float32)

    def seconds(nprobe: int, num_short: int) -> float:
        taken = []
        for _ in range(3):
            begun = time.perf_counter()
            index.search(queries_QD, 10, nprobe, num_short, ranking="decoded")
            taken.append(time.perf_counter() - begun)
        return min(taken) / _QUERIES

    few, many = 4, min(64, index.num_lists)
    scanned = (many - few) * len(index) / index.num_lists
    least, most = seconds(few, 0), seconds(many, 0)
    decoded = seconds(few, 200) - least
    scan = max(0.0, most - least) / scanned
    return {
        "scan_ns": scan * 1e9, "rank_us": max(0.0, decoded) / 200 * 1e6,
        "query_us": max(0.0, least - scan * few * len(index) / index.num_lists) * 1e6,
    }  # fmt: skip


def _fill_us(index) -> float:
    codes_NM, _, lists_N, _ = next(index.segments[0].blocks())
    begun = time.perf_counter()
    lookup_ND = index.tables.lookup.decode(codes_NM[:_ASSIGNED], lists_N[:_ASSIGNED])  # of the corrections
    np.einsum("nd,nd->n", lookup_ND.astype(np.float64), lookup_ND)
    corrections = (time.perf_counter() - begun) / _ASSIGNED
    begun = time.perf_counter()
    fill_lists(index.tables, Codes(codes_NM, lists_N), range(len(codes_NM)))
    return ((time.perf_counter() - begun) / len(codes_NM) + corrections) * 1e6


def _compare_ns(dim: int) -> float:
    generator = np.random.default_rng(2)
    centroids = NearestCentroids(generator.standard_normal((_LISTS, dim), np.float32))
    x_ND = generator.standard_normal((_ASSIGNED, dim), np.float32)
    centroids.search(x_ND[:10], 1)
    begun = time.perf_counter()
    centroids.search(x_ND, 1)
    return (time.perf_counter() - begun) / (_ASSIGNED * _LISTS * dim) * 1e9


def _read_mb(folder: Path) -> float:
    """Of a file that is not in memory any more, where the system can be told so."""
    piece = np.random.default_rng(3).bytes(_PIECE_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_FILE_BYTES // _PIECE_BYTES):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.perf_counter()
        while file.read(_PIECE_BYTES):
            pass
        return _FILE_BYTES / (time.perf_counter() - begun) / 1e6
