"""Samples of codes with the vectors that they stand for, which decoders, lists and levels are fitted to.

Shape suffixes: N vectors, n vectors of a block, T vectors of a sample, D dimension, V lists.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qinco.codec.codec import Codec
from qinco.codec.plan import check_values
from qinco.config import require_int
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError
from qinco.maths.assignment import assigner
from qinco.maths.devices import CPU, to_device
from qinco.progress import Progress, silent
from qinco.search.code_file import BLOCK_ROWS, CodeFile, list_centroids, training_vectors
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource

log = logging.getLogger(__name__)
_HELD_OUT = 20  # one in so many training vectors is held out for validation
_MIN_HELD_OUT = 50
_MANY, _ANY_CODES, _FEW = 50, 2, 5  # vectors for each row of the tables


@dataclass(frozen=True)
class FitSample:
    """Codes in memory, and `read`, which gives the vectors, float32 (n, D), of n positions in them.

    If it `holds_out`, nothing is fitted to one vector in 20, unless the rest would be too few. Messages call the
    vectors `name`. The last `num_added` codes are no vectors' (see `with_any_codes`).
    """

    codes: Codes
    read: Callable[[np.ndarray], np.ndarray]
    name: str
    dim: int
    holds_out: bool = True
    num_added: int = 0

    @cached_property
    def is_held_T(self) -> np.ndarray:
        """Which vectors are held out, bool (T,)."""
        numbers, count = np.arange(len(self.codes)), len(self.codes) - self.num_added
        holds_out = self.holds_out and count >= _MIN_HELD_OUT * _HELD_OUT
        return (numbers % _HELD_OUT == 0) & (numbers < count) & holds_out

    @classmethod
    def of_vectors(cls, codes: Codes, source: VectorSource, rows_T: np.ndarray, holds_out: bool = True) -> "FitSample":
        """Codes of the vectors `rows_T` of a source."""

        def read(positions_n: np.ndarray) -> np.ndarray:
            x_nD = source[rows_T[positions_n]]
            if not np.isfinite(x_nD).all():
                check_values(source)  # names the row
            return x_nD

        return cls(codes, read, source.name, source.dim, holds_out)

    @classmethod
    def decoded(cls, codec: Codec, codes: Codes, name: str, holds_out: bool = False) -> "FitSample":
        """Codes with their reconstructions: nothing is fitted to what the codec has lost, which codes cannot tell."""
        own = codes_of_codec(codec, codes)
        return cls(codes, lambda part: codec.decode(own[part], precision="auto"), name, codec.dim, holds_out)

    def with_any_codes(self, codec: Codec, centroids_VD: np.ndarray | None, seed: int) -> "FitSample":
        """With decoded random codes, where vectors are too few to show all that codes can be: tables suit others, too.

        Their lists are random in an IVF codec, else those of the nearest centroids (the first list if None).
        """
        size, steps = codec.config.codebook_size, codec.num_codes
        if (count := len(self.codes)) >= _MANY * size * steps:
            return self
        generator, more = np.random.default_rng(seed), _ANY_CODES * size * steps
        added = Codes(generator.integers(0, size, (more, steps)).astype(self.codes.dtype))
        if self.codes.has_lists:
            lists = np.zeros(more, np.int32)
            if codec.is_ivf:
                lists = generator.integers(0, codec.config.num_lists, more).astype(np.int32)
            elif centroids_VD is not None:
                lists = assign_decoded(codec, added, centroids_VD)
            added = added.with_lists(lists)

        def read(positions_n: np.ndarray) -> np.ndarray:
            is_own = positions_n < count
            x_nD = np.empty((len(positions_n), self.dim), np.float32)
            x_nD[is_own] = self.read(positions_n[is_own])
            some = codes_of_codec(codec, added[positions_n[~is_own] - count])
            x_nD[~is_own] = codec.decode(some, precision="auto")
            return x_nD

        return replace(self, codes=Codes.concatenate([self.codes, added]), read=read, num_added=more)

    def warn_of_few(self, codebook_size: int) -> None:
        count, rows = len(self.codes), self.codes.shape[1] * codebook_size
        if count < _FEW * rows:
            log.warning("%s: tables of %d rows are fitted to %d vectors, and suit few others: %d or more are better",
                        self.name, rows, count, _FEW * rows)  # fmt: skip

    def blocks(self, report: Progress = silent, held: bool | None = False) -> Iterator[tuple]:
        """Codes (n, M), lists (n,) or None, and vectors float32 (n, D): to fit to, held out, or all (None)."""
        positions = np.arange(len(self.codes)) if held is None else np.flatnonzero(self.is_held_T == held)
        for start in range(0, len(positions), BLOCK_ROWS):
            part = positions[start : start + BLOCK_ROWS]
            block = self.codes[part]
            yield block.codes, block.lists, self.read(part)
            report("fitting look-up tables", start + len(part), len(positions))

    def mse(self, decode: Callable) -> tuple[float, float]:
        """Mean squared error of a decoder, and that of the mean, on the held-out vectors; on all if there are none."""
        error, sum_D, squares, count = 0.0, 0.0, 0.0, 0
        for codes, lists, x_nD in self.blocks(held=bool(self.is_held_T.any())):
            error += np.square(decode(codes, lists) - x_nD, dtype=np.float64).sum()
            sum_D = sum_D + x_nD.sum(0, dtype=np.float64)
            squares += np.square(x_nD, dtype=np.float64).sum()
            count += len(x_nD)
        return error / count, (squares - (np.square(sum_D) / count).sum()) / count

    def validated_mse(self, lookup: LookupDecoder) -> float:
        """The error of look-up tables; warns where they explain nothing."""
        mse, variance = self.mse(lookup.decode)
        if mse >= variance > 0:
            hint = "are the codes of these vectors, in this order?"
            log.warning("the look-up tables explain nothing of %s (error %.4g): %s", self.name, mse, hint)
        return mse

    def mean(self) -> np.ndarray:
        """Mean of all vectors, float32 (1, D): the centroid of a single list."""
        sums = [x_nD.sum(0, dtype=np.float64) for *_, x_nD in self.blocks(held=None)]
        return (np.asarray(sum(sums)) / len(self.codes)).astype(np.float32)[None]


def draw_sample(
    file: CodeFile, vectors, codec: Codec | None, centroids, num_training: int | None, seed: int, report: Progress
) -> tuple[FitSample, np.ndarray | None]:
    """A sample of codes, in lists where there are centroids, with vectors (None: reconstructions); and centroids."""
    rows_T = sample_rows(len(file), 1_000_000 if num_training is None else num_training, seed)
    target = codec if vectors is None else training_vectors(file, vectors)
    if target is None:
        raise ConfigError("look-up tables are fitted to what a codec decodes, or to training vectors: give the codec "
                          "(model=), or codes and vectors to train on (encoded_trainset= and trainset=)")  # fmt: skip
    centroids_VD = list_centroids(file, codec, centroids, target.dim)
    codes = file.rows(rows_T, 0 if centroids_VD is None else len(centroids_VD))
    if not codes.has_lists and centroids_VD is not None:
        codes = codes.with_lists(assign_decoded(codec, codes, centroids_VD, report))
    if isinstance(target, Codec):
        return FitSample.decoded(target, codes, file.name, holds_out=True), centroids_VD
    return FitSample.of_vectors(codes, target, rows_T), centroids_VD


def codes_of_codec(codec: Codec, codes: Codes) -> Codes:
    """Codes as their codec decodes them: without the lists of a partition that the codec does not know."""
    return codes if codec.is_ivf else codes.with_lists(None)


def assign_decoded(
    codec: Codec | None, codes: Codes, centroids_VD, report: Progress = silent, find: Callable | None = None
) -> np.ndarray:
    """The nearest centroid of each code's reconstruction, int32 (N,); a single one needs no codec.

    `find` is the `assigner` of these centroids, where several calls share one.
    """
    lists_N = np.zeros(len(codes), np.int32)
    if len(centroids_VD) == 1:
        return lists_N
    assert codec is not None
    find = assigner(centroids_VD, codec.device) if find is None else find
    for first, block in codec.decode_blocks(codes, "auto"):
        lists_N[first : first + len(block)] = find(to_device(block, codec.device) if codec.device != CPU else block)
        report("assigning vectors to lists", first + len(block), len(codes))
    return lists_N


def sample_rows(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of `count` row numbers, drawn at random, in ascending order."""
    require_int("num_training (search.aq_training_samples)", most)
    require_int("seed", seed, 0)
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
