"""The native scan of inverted lists on random shapes and values: the plain one's bits where tables are exact, within
rounding of float64 elsewhere, and the same bits however it is called."""

import os
from functools import partial
from unittest import mock

import numpy as np
import pytest
from drawn import drawn
from hypothesis import strategies as st
from native_levels import LEVELS, needs_native
from small_lists import lists_of

from qinco.search.lists import InvertedLists
from qinco.search.scan import Scanner, Shortlist
from qinco.search.selection import Selection

pytestmark = needs_native
LIST_SIZES = (0, 0, 1, 2, 63, 64, 65, 128, 200)


class Problem:
    """Tables, centroids and queries, and segments of inverted lists.

    Numbers are whole and small, so that products and sums of them are exact, or normal with the `spread` that is given.
    Shapes come from the seed, too: drawn one by one they would mostly be the smallest.
    """

    def __init__(self, seed: int, spread: float | None = None, offset: float = 0):
        self.random, self.spread = np.random.default_rng(seed), spread
        self.steps = self.pick([1, 2, 3, 8, 9, 16, 31, 32, 255, 256, 257, 300])
        self.dim = int(self.random.integers(1, self.pick([3, 20, 300 if self.steps < 10 else 20]), endpoint=True))
        self.entries = self.pick([2, 3, 16, 200, 256])
        self.num_lists = self.pick([1, 2, 3, 8, 40, 40])
        self.count = self.pick([0, 1, 5, 12, 13, 30])
        self.inner_product = self.pick([False, True])
        half_VD, middle_VD = self.numbers(self.num_lists // 2, self.dim), np.zeros((self.num_lists % 2, self.dim))
        centroids_VD = np.concatenate([half_VD, -half_VD, middle_VD])  # a mean of zero is exact
        self.centroids_VD = (centroids_VD + offset).astype(np.float32)
        self.queries_QD = (self.numbers(self.count, self.dim) + offset).astype(np.float32)
        self.tables_MKD = self.numbers(self.steps, self.entries, self.dim)
        self.levels = np.sort(self.numbers(256) * np.float32(self.pick([0, 1, 30]) * (spread or 1)))
        self.segments = self.make_segments()
        self.admitted_N = self.pick_ids()

    def pick(self, choices):
        return choices[self.random.integers(len(choices))]

    def numbers(self, *shape) -> np.ndarray:
        if self.spread is None:
            return self.random.integers(-3, 4, shape).astype(np.float32)
        return self.random.normal(0, self.spread, shape).astype(np.float32)

    def make_segments(self) -> list[InvertedLists]:
        largest = self.pick([200, 200, 128, 65, 2])
        sizes_SV = self.random.choice(
            [size for size in LIST_SIZES if size <= largest], (self.pick([0, 1, 1, 2, 3]), self.num_lists)
        )
        count = int(sizes_SV.sum())
        self.lists_N = np.concatenate(
            [np.repeat(np.arange(self.num_lists), sizes) for sizes in sizes_SV] or [[]]
        ).astype(int)
        self.ids_N = self.random.permutation(count) * self.pick([1, 7, 10_000, 2**45]) + 99
        kinds = self.pick([max(1, count), 100, 10, 1])  # so many different vectors: the others are equal
        kinds_N = self.random.integers(0, kinds, count)
        self.codes_NM = self.random.integers(0, self.entries, (kinds, self.steps), np.uint8)[kinds_N]
        self.scalars_N = self.random.integers(0, 256, kinds, np.uint8)[kinds_N]
        columns = self.codes_NM, self.scalars_N, self.lists_N, self.ids_N
        ends = np.cumsum(sizes_SV.sum(1))[:-1]
        parts = zip(*(np.split(column, ends) for column in columns), strict=True)
        return [lists_of(*part, self.num_lists) for part in parts][: len(sizes_SV)]

    def scanner(self, level: str | None) -> Scanner:
        """At one native level, or the plain one."""
        parts, is_native = (self.centroids_VD, self.tables_MKD, self.levels), level is not None
        with mock.patch.dict(os.environ, QINCO_NATIVE_LEVEL=level or ""):
            return Scanner(*parts, inner_product=self.inner_product, native=is_native)

    def filter(self, segments=None):
        """Bits of the positions in segments; with the same ids at every call."""
        segments = self.segments if segments is None else segments
        if self.admitted_N is None:
            return None
        return Selection.of_ids(segments, self.admitted_N).words if segments else []

    def pick_ids(self):
        kind = self.pick(["none", "none", "half", "some", "few", "all", "others", "empty"])
        share = {"half": 0.5, "some": 0.1, "few": 0.02, "all": 1}.get(kind, 0)
        admitted_N = np.sort(self.ids_N[self.random.random(len(self.ids_N)) < share])
        if kind == "others":
            admitted_N = np.setdiff1d(np.arange(0, 3000, self.pick([1, 500])), self.ids_N)
        return None if kind == "none" else admitted_N.astype(np.int64)

    def num_short(self) -> int:
        """Mostly so few that there is a limit early, which is when tables of bytes are made."""
        return self.pick([10, 1, 2, 5, 33, 64, 150, len(self.ids_N) + 3])

    def true_values(self) -> list[np.ndarray]:
        """In float64: values of lists (Q, V) and what their rounding in float32 may be, and both of vectors (Q, N)."""
        shift_D = 0 if self.inner_product else self.centroids_VD.mean(0, np.float64).astype(np.float32)
        queries_QD, centroids_VD = self.queries_QD - np.float64(shift_D), self.centroids_VD - np.float64(shift_D)
        tables_MKD, levels = self.tables_MKD.astype(np.float64), self.levels.astype(np.float64)
        bases_QV = -np.einsum("qd,vd->qv", queries_QD, centroids_VD)
        if not self.inner_product:
            bases_QV = np.square(queries_QD[:, None] - centroids_VD).sum(2)
        values_QN = bases_QV[:, self.lists_N] + levels[self.scalars_N]
        reach_QV = np.linalg.norm(queries_QD, axis=1)[:, None] + np.linalg.norm(centroids_VD, axis=1)
        reach_QN = reach_QV[:, self.lists_N] + np.sqrt(np.abs(levels))[self.scalars_N]
        for table_KD, codes_N in zip(tables_MKD, self.codes_NM.T, strict=True):
            products_QK = np.einsum("qd,kd->qk", queries_QD, table_KD)
            values_QN += ((-1 if self.inner_product else -2) * products_QK)[:, codes_N]
            reach_QN += np.linalg.norm(table_KD, axis=1)[codes_N]
        unit = 6e-8 * (self.steps + 20)
        return [bases_QV, unit * reach_QV**2, values_QN, unit * reach_QN**2]


seeds = st.integers(0, 2**40)
checked = partial(drawn, 25, 160)
everywhere = pytest.mark.parametrize("level", LEVELS[:3])  # of the fourth the scan makes no use
SCALES = [(1e-18,), (1e-3,), (1,), (1e9,), (1e16,), (1e-3, 10), (1, 1e4), (1e9, 1e13)]  # of numbers, and offsets


def bits(found: Shortlist, rows=slice(None)) -> list[bytes]:
    return [array[rows].tobytes() for array in vars(found).values()]


def visits(problem: Problem, probes_QP, bases_QP) -> tuple[np.ndarray, np.ndarray]:
    """What another coarse quantizer might have found: other values, any order, rows that end early."""
    change_QP = problem.random.normal(0, problem.pick([0, 0, 1, 1e3, 1e6, 3e9]), bases_QP.shape)
    bases_QP = (bases_QP + change_QP).astype(np.float32)
    if problem.pick([False, True]):
        order_QP = problem.random.random(probes_QP.shape).argsort(1)
        probes_QP, bases_QP = (np.take_along_axis(array, order_QP, 1) for array in (probes_QP, bases_QP))
    if problem.pick([False, True]):
        left_Q1 = problem.random.integers(0, probes_QP.shape[1] + 1, (len(probes_QP), 1))
        is_there_QP = np.arange(probes_QP.shape[1]) < left_Q1
        filling = np.float32(problem.pick([np.inf, -np.inf, np.nan, np.finfo(np.float32).max]))
        probes_QP, bases_QP = np.where(is_there_QP, probes_QP, -1), np.where(is_there_QP, bases_QP, filling)
    return probes_QP, bases_QP


@everywhere
@checked(seed=seeds)
def test_exact_tables_give_the_bits_of_the_plain_scan(level, seed):
    """With ties, which whole numbers have many of, and with bases that sums are rounded to."""
    problem = Problem(seed)
    native, plain = problem.scanner(level), problem.scanner(None)
    probed = problem.pick(range(1, problem.num_lists + 2))
    found, wanted = (scanner.probe(problem.queries_QD, probed) for scanner in (native, plain))
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype
    visited = visits(problem, *wanted)
    rules = {"nprobe": problem.pick([None, None, 1, 1 + probed // 3]), "admitted": problem.filter()}
    given_ = problem.queries_QD, *visited, problem.segments, problem.num_short()
    ours, theirs = (scanner.scan(*given_, **rules) for scanner in (native, plain))
    for name, array in vars(theirs).items():
        assert np.array_equal(getattr(ours, name), array) and getattr(ours, name).dtype == array.dtype, name


@everywhere
@checked(seed=seeds)
def test_exact_scalars_are_those_of_the_plain_scan(level, seed):
    problem = Problem(seed)
    codes_NM = problem.random.integers(0, problem.entries, (77, problem.steps), np.uint8)
    lists_N = problem.random.integers(0, problem.num_lists, 77, np.int32)
    for count in (0, 1, 77):
        ours, theirs = (problem.scanner(one).norms(codes_NM[:count], lists_N[:count]) for one in (level, None))
        assert np.array_equal(ours, theirs) and ours.dtype == theirs.dtype == np.float32
    decoded_ND = problem.numbers(77, problem.dim)
    for count in (0, 1, 77):
        given_ = codes_NM[:count], lists_N[:count], decoded_ND[:count]
        ours, theirs = (problem.scanner(one).compare(*given_, threads=2) for one in (level, None))
        for our_N, their_N in zip(ours, theirs, strict=True):
            assert np.array_equal(our_N, their_N) and our_N.dtype == their_N.dtype == np.float32


def check_found(problem: Problem, found: Shortlist, values_QN, limits_QN) -> None:
    """Every vector that was found is there, once, and its value is true."""
    order_N = np.argsort(problem.ids_N)
    for query in range(problem.count):
        count = int((found.lists[query] >= 0).sum())
        rows = order_N[np.searchsorted(problem.ids_N[order_N], found.ids[query, :count])]
        assert len(np.unique(rows)) == count and np.array_equal(problem.ids_N[rows], found.ids[query, :count])
        assert np.array_equal(problem.codes_NM[rows], found.codes[query, :count])
        assert np.array_equal(problem.lists_N[rows], found.lists[query, :count])
        values_S = found.values[query]
        assert np.isfinite(values_S[:count]).all() and (values_S[:count][1:] >= values_S[:count][:-1]).all()
        assert (np.abs(values_S[:count] - values_QN[query, rows]) <= limits_QN[query, rows]).all()
        assert np.isposinf(values_S[count:]).all() and (found.ids[query, count:] == -1).all()


@everywhere
@checked(seed=seeds, scale=st.sampled_from(SCALES))
def test_the_nearest_of_all_within_rounding(level, seed, scale):
    problem = Problem(seed, *scale)
    bases_QV, base_limits_QV, values_QN, limits_QN = problem.true_values()
    scanner, num_short = problem.scanner(level), problem.num_short()
    probes_QV, found_QV = scanner.probe(problem.queries_QD, problem.num_lists)
    bases_QV, base_limits_QV = (np.take_along_axis(array, probes_QV, 1) for array in (bases_QV, base_limits_QV))
    assert (np.abs(found_QV - bases_QV) <= base_limits_QV).all()
    assert (found_QV[:, 1:] >= found_QV[:, :-1]).all() and (np.sort(probes_QV) == np.arange(problem.num_lists)).all()
    found = scanner.scan(problem.queries_QD, probes_QV, found_QV, problem.segments, num_short)
    check_found(problem, found, values_QN, limits_QN)
    filled = min(num_short, len(problem.ids_N))
    assert ((found.lists >= 0).sum(1) == filled).all() and (found.scanned == len(problem.ids_N)).all()
    limits_Q1 = limits_QN.max(1, initial=0, keepdims=True)  # sorted numbers change by no more than the numbers do
    assert (np.abs(found.values[:, :filled] - np.sort(values_QN)[:, :filled]) <= limits_Q1).all()


@everywhere
@checked(seed=seeds, scale=st.sampled_from([(), (1,), (1, 1e4)]))
def test_threads_batches_the_order_of_queries_and_segments_change_no_bit(level, seed, scale):
    problem = Problem(seed, *scale)
    scanner, probed = problem.scanner(level), problem.pick(range(1, problem.num_lists + 1))
    num_short = problem.num_short()

    def search(rows=slice(None), threads=1, segments=problem.segments):
        queries_QD = problem.queries_QD[rows]
        visited = scanner.probe(queries_QD, probed, threads)
        found = scanner.scan(
            queries_QD, *visited, segments, num_short, nprobe=(probed + 1) // 2, admitted=problem.filter(segments),
            threads=threads,
        )  # fmt: skip
        return visited, found

    visited, whole = search()
    for threads in (2, 3, 7):
        assert bits(search(threads=threads)[1]) == bits(whole)
    size = problem.pick([1, 2, 5, 11, 12, 13])
    order_Q = problem.random.permutation(problem.count)
    for rows in [order_Q, *(slice(first, first + size) for first in range(0, problem.count, size))]:
        some, found = search(rows)
        assert bits(found) == bits(whole, rows)
        assert all(ours.tobytes() == theirs[rows].tobytes() for ours, theirs in zip(some, visited, strict=True))
    if problem.segments:
        assert bits(search(segments=[InvertedLists.merged(problem.segments)])[1]) == bits(whole)


NUMBERS = (0.0, -0.0, 1e-42, 1e-30, 1e15, 1e19, -1e25, 3e38, -3e38, np.inf, -np.inf, np.nan)


@everywhere
@checked(seed=seeds)
def test_what_overflows_is_not_found_and_does_not_reach_its_neighbours(level, seed):
    problem = Problem(seed, 1.0)
    calm_QD, num_short = problem.queries_QD.copy(), problem.num_short()
    wild = problem.random.permutation(problem.count)[:3].tolist()
    for row in wild:
        problem.queries_QD[row, problem.pick(range(problem.dim)) :: 2] = problem.pick(NUMBERS)
    for name in problem.pick([[], ["centroids_VD"], ["tables_MKD"], ["levels"], ["levels", "tables_MKD"]]):
        flat = getattr(problem, name).reshape(-1)
        flat[problem.pick(range(len(flat))) :: problem.pick([1, 2, 50, 2000])] = problem.pick(NUMBERS)
    with np.errstate(all="ignore"):
        scanner = problem.scanner(level)
        *_, values_QN, limits_QN = problem.true_values()
        queries_QD = problem.queries_QD
        found = scanner.scan(queries_QD, *scanner.probe(queries_QD, problem.num_lists), problem.segments, num_short)
        check_found(problem, found, values_QN, limits_QN)
    others = sorted(set(range(problem.count)) - set(wild))
    again = scanner.scan(calm_QD, *scanner.probe(calm_QD, problem.num_lists), problem.segments, num_short)
    assert bits(again, others) == bits(found, others)
