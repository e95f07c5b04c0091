"""Centroids of very many lists, by k-means in two levels that workers share.

About √V groups are fitted first, then the lists of each group to its vectors, all groups at the same time. No step
holds all vectors, or compares them with all centroids.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinco.atomic import (
    check_apart,
    check_output,
    make_folder,
    remove_temporaries,
    require_local,
    user_path,
    write_atomically,
)
from qinco.config import require_int
from qinco.distributed.pool import WorkerPool
from qinco.errors import ConfigError, DataError
from qinco.executors import Executor, run_parts
from qinco.maths.assignment import assigner
from qinco.maths.clustering import coarse_kmeans
from qinco.progress import ProgressOption, reporting
from qinco.vectors.formats import input_files, write_vectors
from qinco.vectors.rows import (
    VectorSource,
    as_source,
    check_finite,
    fingerprint,
    read_rows,
    sample,
    stratified_rows,
)

MAX_POINTS_PER_CENTROID = 64
_FACTS, _FACT_NAMES = "facts.json", {"vectors", "num_vectors", "num_centroids", "seed"}
_AGAIN = "repeat the call to go on"
_PART_BYTES, _GROUP_ROWS = 1 << 28, 256  # of vectors that are split at once; vectors of a group, to fit the groups to


def kmeans(
    x, num_centroids: int, output: str | os.PathLike, *, cluster: str = "auto", workers: int | None = None,
    threads: int | None = None, max_points_per_centroid: int = MAX_POINTS_PER_CENTROID, seed: int = 0,
    part_rows: int | None = None, overwrite: bool = False, inputs: Iterable = (), executor: Executor | None = None,
    progress: ProgressOption = None,
) -> np.ndarray:  # fmt: skip
    """Fit so many centroids that one machine would take days: as many as 2^20 and more.

    Args:
        x: (N, D) vectors, as of `qinco.kmeans`. All machines must see their files, and the folder of `output`.
        num_centroids: V, at most N.
        output: .npy file to write. Vectors are sorted in a folder beside it, NAME.parts, which is as large as the
            sample in float32, and removed in the end. A repeated call goes on with what is there.
        cluster, workers, threads: see `qinco.distributed.encode`.
        max_points_per_centroid: size of the sample, in vectors for each centroid.
        seed: of the sample and of the first centroids.
        part_rows: vectors that a worker sorts at once; 256 MB of them if None.
        overwrite, inputs: replace `output`; files that are read, which it must not replace.
        executor: instead of a cluster, see `qinco.encode_file`.
        progress: see `qinco.progress`.

    Returns:
        float32 (V, D), those of a group together.

    Example:
        >>> qinco.distributed.kmeans("emb/*.parquet", 1 << 20, "centroids.npy", cluster="auto")
    """
    require_local(output)
    source, path = as_source(x, "training vectors"), Path(user_path(output)).absolute()
    require_int("num_centroids", num_centroids)
    require_int("max_points_per_centroid", max_points_per_centroid)
    require_int("seed", seed, 0)
    if part_rows is not None:
        require_int("part_rows", part_rows)
    read, folder = [*inputs, *input_files(x)], path.with_name(f"{path.name}.parts")
    check_output(path, suffixes=(".npy",), overwrite=overwrite, inputs=read)
    check_apart(folder, read)
    if len(source) < num_centroids:
        raise DataError(f"{source.name} must hold at least {num_centroids} vectors, one a centroid, not {len(source)}")
    execute = executor or WorkerPool(cluster, workers, threads)
    num_groups = max(1, round(num_centroids**0.5))
    rows_S = stratified_rows(len(source), max_points_per_centroid * num_centroids, seed)
    facts = {
        "vectors": fingerprint(source), "num_vectors": len(source), "num_centroids": num_centroids, "seed": seed,
        "max_points_per_centroid": max_points_per_centroid, "part_rows": part_rows,
    }  # fmt: skip
    _begin(folder, facts)
    with reporting(progress) as report:
        report("fitting groups", 0, num_groups, "group")
        some_ND = sample(source, min(len(source), _GROUP_ROWS * num_groups), seed)
        groups_GD = coarse_kmeans(some_ND, num_groups, seed=seed)
        size = part_rows or max(1, _PART_BYTES // (4 * source.dim))
        parts = [range(start, min(start + size, len(rows_S))) for start in range(0, len(rows_S), size)]
        split = _Split(folder, source, rows_S, groups_GD, tuple(parts))
        run_parts(execute, split, [number for number in range(len(parts)) if not split.has(number)], parts,
                  "splitting into groups", report, _AGAIN)  # fmt: skip
        counts_PG = np.stack([np.load(split.counts_file(number)) for number in range(len(parts))])
        lists_G = shared_out(counts_PG.sum(0), num_centroids)
        ends = np.cumsum([0, *counts_PG.sum(0)]).tolist()
        fit = _Fit(folder, counts_PG, lists_G, seed)
        run_parts(
            execute, fit, [number for number in range(num_groups) if lists_G[number] and not fit.file(number).exists()],
            [range(*ends[number : number + 2]) for number in range(num_groups)], "fitting lists", report, _AGAIN,
        )  # fmt: skip
    found_VD = np.concatenate([np.load(fit.file(number)) for number in range(num_groups) if lists_G[number]])
    write_vectors(path, found_VD)
    shutil.rmtree(folder, ignore_errors=True)
    return found_VD


def _begin(folder: Path, facts: dict) -> None:
    """Make the folder of parts, without those of another call; ConfigError if it is none of ours."""
    if folder.is_dir():
        remove_temporaries(folder / _FACTS)  # of a call that was killed as it began
        there = _facts_of(folder)
        if there is None and any(folder.iterdir()):
            raise ConfigError(
                f"{folder} is for parts of the work, and holds other files: move it, or give another output"
            )
        if there != facts:
            shutil.rmtree(folder)
    make_folder(folder)
    with write_atomically(folder / _FACTS) as temporary:
        temporary.write_text(json.dumps(facts), "utf-8")


def _facts_of(folder: Path) -> dict | None:
    """What a call that has begun in a folder was given, or None."""
    try:
        found = json.loads((folder / _FACTS).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _FACT_NAMES else None


def shared_out(counts_G: np.ndarray, total: int) -> np.ndarray:
    """How many lists each group gets, int64 (G,): in proportion to its vectors, not more than these, `total` in all."""
    wanted_G = counts_G * (total / counts_G.sum())
    lists_G = np.minimum(np.maximum(np.floor(wanted_G), counts_G > 0), counts_G).astype(np.int64)
    while (left := total - int(lists_G.sum())) != 0:
        can_G = lists_G < counts_G if left > 0 else lists_G > 1
        order_G = np.argsort(np.where(can_G, (lists_G - wanted_G) * np.sign(left), np.inf), kind="stable")
        changed = order_G[: min(abs(left), int(can_G.sum()))]
        lists_G[changed] += np.sign(left)
    return lists_G


@dataclass(frozen=True)
class _Split:
    """Sorts the vectors of a part by their groups, into a file."""

    folder: Path
    source: VectorSource
    rows_S: np.ndarray
    groups_GD: np.ndarray
    parts: tuple[range, ...]

    def counts_file(self, number: int) -> Path:
        return self.folder / f"counts-{number:05}.npy"

    def has(self, number: int) -> bool:
        return self.counts_file(number).exists()

    def __call__(self, number: int) -> None:
        rows_n = self.rows_S[self.parts[number].start : self.parts[number].stop]
        x_nD = read_rows(self.source, rows_n)
        check_finite(x_nD, lambda row: self.source.row_number(int(rows_n[row])), self.source.name)
        groups_n = assigner(self.groups_GD)(x_nD)
        _save(_part_file(self.folder, number), x_nD[np.argsort(groups_n, kind="stable")])
        _save(self.counts_file(number), np.bincount(groups_n, minlength=len(self.groups_GD)))


@dataclass(frozen=True)
class _Fit:
    """Fits the lists of a group to its vectors."""

    folder: Path
    counts_PG: np.ndarray
    lists_G: np.ndarray
    seed: int

    def file(self, group: int) -> Path:
        return self.folder / f"lists-{group:05}.npy"

    def __call__(self, group: int) -> None:
        begins_P = np.cumsum(self.counts_PG, axis=1)[:, group] - self.counts_PG[:, group]
        x_nD = np.concatenate([
            np.load(_part_file(self.folder, number), mmap_mode="r")[begin : begin + count]
            for number, (begin, count) in enumerate(zip(begins_P, self.counts_PG[:, group], strict=True))
        ])  # fmt: skip
        count = int(self.lists_G[group])
        found = x_nD.mean(0, keepdims=True) if count == 1 else coarse_kmeans(x_nD, count, seed=self.seed + group)
        _save(self.file(group), found)


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    with write_atomically(path) as temporary, temporary.open("wb") as file:
        np.save(file, array)
