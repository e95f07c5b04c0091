"""What codecs and indexes cost by the dimension of vectors, their number, and the steps of a codec.

Weights, codes and queries are random: times and sizes do not depend on what vectors mean, and recall is not measured.
Shape suffixes: N vectors, V lists, Q queries, D dimension, M codes of a vector, K codewords.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.evaluate import benchmark
from qinco.config import (
    DEFAULT_ENCODE_OPTIONS,
    EncodeOptions,
    ModelConfig,
    find_preset,
    require_choice,
    require_int,
    require_number,
)
from qinco.decoders.lookup import LookupDecoder
from qinco.machine import free_memory, using_threads
from qinco.model.weights import random_weights
from qinco.progress import ProgressOption, reporting
from qinco.search.build import choose_num_lists
from qinco.search.fill import fill_lists
from qinco.search.index import Index
from qinco.search.metric import L2
from qinco.search.parts import IndexParts
from qinco.search.tables import SearchTables
from qinco.store.codes import Codes

DIMENSIONS, SIZES, STEPS = (96, 192, 384, 768, 1536), (10**4, 10**5, 10**6, 10**7), (2, 4, 8, 16, 32, 64)
PARTS = {"dimension": DIMENSIONS, "size": SIZES, "steps": STEPS}
NPROBE, NUM_SHORT = 32, 100
_DIM, _STEPS, _ROWS = 128, 8, 100_000  # of the parts where they do not vary
_QUERIES, _LEVEL_ROWS, _PASS_US, _SHARE = 200, 20_000, 200_000, 0.5
_BYTES_OF_BUILDING = 40  # of a vector, besides three copies of its codes


def scaling(
    part: str, values: Sequence[int] | None = None, *, preset: str = "qinco2-S", dim: int = _DIM,
    num_steps: int = _STEPS, rows: int = _ROWS, model: Mapping[str, Any] | None = None,
    options: EncodeOptions = DEFAULT_ENCODE_OPTIONS, limit_seconds: float = 300.0, trains: bool = True,
    known: Iterable[dict] = (), on_point: Callable[[list[dict]], object] | None = None, progress: ProgressOption = None,
) -> list[dict]:  # fmt: skip
    """Measure what codecs and indexes cost on one thread while one quantity grows, from the smallest value on.

    Args:
        part: "dimension" of the vectors, "size" (number of vectors), or "steps" (M, codes of a vector).
        values: of it; 96 to 1,536, 10⁴ to 10⁷ and 2 to 64 if None.
        preset: of the codec.
        dim, num_steps, rows: of the codec and the index where they do not vary.
        model: fields of ModelConfig instead of the preset's.
        options: of encoding.
        limit_seconds: no value is begun after so long, or if it would last longer by what the one before took.
        trains: measure a step of training, too, which needs torch.
        known: points that were measured before under the same conditions, which are not measured again.
        on_point: hears all points after each one.
        progress: see `qinco.progress`.

    Returns:
        JSON values for each value: its "dim", "steps" and "rows", "encode_us", "decode_us" and "train_us" a vector,
        "search_us" a query among `rows` vectors ("nprobe" lists, "num_short" decoded vectors), "code_bytes", "bytes" a
        vector in the index, "model_bytes", "memory_bytes" of model, tables and index together, "seconds" that the
        point took, and "status": "done", "time limit" or "memory", with the "reason". "encode_us" to "train_us" are
        None where `size` varies but for the first point, for they do not depend on it.

    Raises:
        ConfigError: another part, or wrong numbers.

    Example:
        >>> for point in scaling("steps", (4, 8, 16), limit_seconds=60):
        ...     print(point["steps"], point["encode_us"], point["search_us"])
    """
    require_choice("part", part, tuple(PARTS))
    values = sorted(set(PARTS[part] if values is None else values))
    name = {"dimension": "dim", "size": "rows", "steps": "steps"}[part]
    for number in (*values, dim, num_steps, rows):
        require_int(f"each {name}", number)
    require_number("limit_seconds", limit_seconds, above=0)
    fields = {**find_preset(preset), **(model or {})}
    done = {point[name]: point for point in known if point["status"] == "done"}
    points, limit = [], _Limit(limit_seconds)
    with reporting(progress) as report, using_threads(1):
        for value in values:
            sizes = {"dim": dim, "steps": num_steps, "rows": rows, name: value}
            config = ModelConfig(dim=sizes["dim"], num_steps=sizes["steps"], **fields)
            point = {**sizes, "preset": preset, **dict.fromkeys(_MEASURED), "status": "done", "reason": None}
            if value in done:
                point = done[value]
            elif reason := limit.exceeded_by(value):
                point |= {"status": "time limit", "reason": reason}
            elif reason := _too_large(config, sizes["rows"]):
                point |= {"status": "memory", "reason": reason}
            else:
                codec, begun = Codec(random_weights(config), options), time.monotonic()
                if part != "size" or value == values[0]:
                    point |= _codec_costs(codec, trains)
                started = time.monotonic() if part == "size" else begun
                point |= _index_costs(codec, sizes["rows"])
                point["seconds"] = time.monotonic() - begun
                limit.last = value, time.monotonic() - started
            points.append(point)
            report(f"cost by {part}", len(points), len(values), "value")
            if on_point is not None:
                on_point(points)
    return points


_MEASURED = ("encode_us", "decode_us", "train_us", "search_us", "nprobe", "num_short", "lists", "code_bytes", "bytes",
             "model_bytes", "memory_bytes", "seconds")  # fmt: skip


class _Limit:
    """When no further value is begun; `last` are the last one and the seconds that it took."""

    def __init__(self, seconds: float):
        self._seconds, self._end = seconds, time.monotonic() + seconds
        self.last: tuple[int, float] | None = None

    def exceeded_by(self, value: int) -> str | None:
        """Why a value is not measured: it would last too long by the last one, in proportion."""
        left = self._end - time.monotonic()
        needed = 0.0 if self.last is None else self.last[1] * value / self.last[0]
        if left <= 0:
            return f"the limit of {self._seconds:g} s is over"
        return f"it takes about {needed:.0f} s, and {left:.0f} s are left" if needed > left else None


def _too_large(config: ModelConfig, rows: int) -> str | None:
    needed, free = rows * (3 * config.num_steps + _BYTES_OF_BUILDING), free_memory()
    if needed <= _SHARE * free:
        return None
    return f"about {needed / 1e9:.2g} GB of memory, and {free / 1e9:.2g} GB are free"


def _codec_costs(codec: Codec, trains: bool) -> dict:
    given = {"threads": [1], "precisions": ["auto"], "options": [codec.encode_options], "pass_us": _PASS_US}
    speed = benchmark(codec, **given, max_vectors=4096, progress=False)[0]
    found = {"encode_us": speed.encode_us, "decode_us": speed.decode_us}
    if trains:
        from qinco.comparison.step_time import time_training

        found["train_us"] = time_training(codec.config, options=codec.encode_options)
    return found


def _index_costs(codec: Codec, rows: int) -> dict:
    index = random_index(codec, rows)
    size, model_bytes = sum(segment.nbytes for segment in index.segments), len(codec.to_bytes())
    tables = index.tables.centroids_VD.nbytes + index.tables.lookup.tables_MKD.nbytes
    return {
        "nprobe": min(NPROBE, index.num_lists), "num_short": min(NUM_SHORT, rows), "lists": index.num_lists,
        "search_us": _search_us(index), "code_bytes": codec.bytes_per_vector, "bytes": size / rows,
        "model_bytes": model_bytes, "memory_bytes": size + tables + model_bytes,
    }  # fmt: skip


def _search_us(index: Index) -> float:
    """Median microseconds of a query, one at a time."""
    queries_QD = np.random.default_rng(1).standard_normal((_QUERIES, index.dim), np.float32)
    nprobe, num_short, taken = min(NPROBE, index.num_lists), min(NUM_SHORT, len(index)), []
    for i in range(_QUERIES):
        begun = time.perf_counter()
        index.search(queries_QD[i : i + 1], 10, nprobe, num_short)
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken[len(taken) // 4 :])) * 1e6  # the first ones prepare what the others use


def random_index(codec: Codec, count: int, seed: int = 0) -> Index:
    """An index of so many random codes in as many lists as usual, which searches as fast as one of vectors.

    Args:
        codec: whose codes they are.
        count: number of vectors.
        seed: of all that is drawn.

    Example:
        >>> random_index(codec, 1_000_000).search(queries, 10)
    """
    require_int("count", count)
    generator, size = np.random.default_rng(seed), codec.config.codebook_size
    lists = choose_num_lists(None, count)
    tables_MKD = generator.standard_normal((codec.num_codes, size, codec.dim), np.float32)
    centroids_VD = generator.standard_normal((lists, codec.dim), np.float32)
    codes_NM = generator.integers(0, size, (count, codec.num_codes), np.uint8 if size <= 256 else np.uint16)
    lists_N = generator.integers(0, lists, count, np.int32)
    lookup = LookupDecoder(tables_MKD / np.float32(np.sqrt(codec.num_codes)))
    tables = SearchTables.fit(lookup, codes_NM[:_LEVEL_ROWS], lists_N[:_LEVEL_ROWS], L2, centroids_VD)
    segment = fill_lists(tables, Codes(codes_NM, lists_N), range(count))
    return Index(codec, IndexParts(tables=tables, segments=[segment]))
