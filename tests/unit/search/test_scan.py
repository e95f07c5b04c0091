"""Shortlists of vectors whose reconstructions are known, by the native kernels and plainly."""

import numpy as np
import pytest
from native_levels import needs_native
from small_lists import lists_of

from qinco.search import scan as module
from qinco.search.lists import InvertedLists
from qinco.search.scan import Scanner
from qinco.search.selection import Selection

ENGINES = pytest.mark.parametrize(
    "native", [False, pytest.param(True, marks=needs_native)], ids=["plain", "native"]
)  # fmt: skip
M, D, V, COUNT = 4, 6, 5, 900


class World:
    """Vectors in lists with exact scalars: 256 different codes in each list at most, so that a level is one's own."""

    def __init__(self, native: bool, *, scale=1.0, offset=0.0, inner_product=False, entries=16, copies=1, seed=0):
        random = np.random.default_rng(seed)
        self.centroids_VD = (random.normal(0, scale, (V, D)) + offset).astype(np.float32)
        self.tables_MKD = random.normal(0, scale / 3, (M, entries, D)).astype(np.float32)
        kinds_KM = random.integers(0, entries, (256, M), np.uint8)
        lists_K, self.kinds_N = np.arange(256) % V, np.repeat(random.integers(0, 256, COUNT // copies), copies)
        codes_NM, lists_N = kinds_KM[self.kinds_N], lists_K[self.kinds_N]
        self.ids_N = random.permutation(COUNT) + 1000
        parts = self.centroids_VD, self.tables_MKD
        first = Scanner(*parts, np.zeros(256, np.float32), inner_product=inner_product, native=native)
        levels = first.norms(kinds_KM, lists_K)
        self.scanner = Scanner(*parts, levels, inner_product=inner_product, native=native)
        scalars_N = self.kinds_N.astype(np.uint8)
        self.lists = lists_of(codes_NM, scalars_N, lists_N, self.ids_N, V)
        self.queries_QD = (random.normal(0, scale, (20, D)) + offset).astype(np.float32)
        self.x_ND = self.centroids_VD[lists_N].astype(np.float64)
        for table_KD, codes_N in zip(self.tables_MKD, codes_NM.T, strict=True):
            self.x_ND += table_KD[codes_N]
        self.lists_N, self.codes_NM = lists_N, codes_NM

    def search(self, num_short, probes=V, segments=None, **rules):
        visited = self.scanner.probe(self.queries_QD, probes)
        return self.scanner.scan(self.queries_QD, *visited, segments or [self.lists], num_short, **rules)

    def distances(self) -> np.ndarray:
        return np.square(self.queries_QD[:, None] - self.x_ND).sum(2)

    def rows(self, ids) -> np.ndarray:
        return np.argsort(self.ids_N)[ids - 1000]


def counts(found):
    """Vectors of each query's shortlist."""
    return (found.lists >= 0).sum(1)


@ENGINES
@pytest.mark.parametrize("num_short", [1, 10, 300, COUNT + 5])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 1e4), (1e-15, 0), (1e18, 0), (1e15, 3e17)])
def test_values_are_squared_distances_to_the_reconstructions(native, num_short, scale, offset):
    """An offset of all vectors costs no more than the rounding of the vectors themselves."""
    world = World(native, scale=scale, offset=offset)
    found, wanted_QN = world.search(num_short), world.distances()
    filled, limit = min(num_short, COUNT), 1e-5 * wanted_QN.max() + 10 * (6e-8 * offset) * np.sqrt(wanted_QN.max())
    rows_QS = world.rows(found.ids[:, :filled])
    assert (counts(found) == filled).all() and (found.scanned == COUNT).all()
    assert all(len(set(rows)) == filled for rows in rows_QS.tolist())
    for values_QS in (found.values[:, :filled], np.take_along_axis(wanted_QN, rows_QS, 1)):
        np.testing.assert_allclose(values_QS, np.sort(wanted_QN)[:, :filled], rtol=0, atol=limit)
    assert np.array_equal(found.lists[:, :filled], world.lists_N[rows_QS])
    assert np.array_equal(found.codes[:, :filled], world.codes_NM[rows_QS])
    for array, filling in zip((found.values, found.ids, found.lists, found.codes), (np.inf, -1, -1, 0), strict=True):
        assert (array[:, filled:] == filling).all()
    assert found.values.dtype == np.float32 and found.ids.dtype == np.int64
    assert found.lists.dtype == np.int32 and found.codes.dtype == np.uint8


@ENGINES
def test_values_are_negative_inner_products(native):
    world = World(native, inner_product=True)
    found, wanted_QN = world.search(30), -(World(native).queries_QD @ world.x_ND.T)
    for values_QS in (found.values, np.take_along_axis(wanted_QN, world.rows(found.ids), 1)):
        np.testing.assert_allclose(values_QS, np.sort(wanted_QN)[:, :30], rtol=1e-5, atol=1e-5)
    assert not world.scanner.norms(world.codes_NM, world.lists_N).any()


@ENGINES
def test_only_what_the_lists_hold_is_found(native):
    world = World(native)
    probes_Q2, _ = world.scanner.probe(world.queries_QD, 2)
    found, sizes_V = world.search(COUNT, probes=2), np.bincount(world.lists_N, minlength=V)
    for query, probes in enumerate(probes_Q2):
        wanted = np.flatnonzero(np.isin(world.lists_N, probes))
        count = int(counts(found)[query])
        assert set(world.rows(found.ids[query, :count])) == set(wanted)
        assert found.scanned[query] == sizes_V[probes].sum() == count
    first = world.search(5, nprobe=1)
    assert np.array_equal(first.scanned, sizes_V[probes_Q2[:, 0]])
    assert np.array_equal(first.lists, np.repeat(probes_Q2[:, :1], 5, 1))


@ENGINES
def test_further_lists_are_visited_where_a_filter_admits_few(native):
    world = World(native)
    admitted_N = np.sort(world.ids_N)[::60]
    found = world.search(12, nprobe=1, admitted=Selection.of_ids([world.lists], admitted_N).words)
    probes_QV, _ = world.scanner.probe(world.queries_QD, V)
    sizes_V = np.bincount(world.lists_N, minlength=V)
    admitted_V = np.bincount(world.lists_N[world.rows(admitted_N)], minlength=V)
    for query, probes in enumerate(probes_QV):
        visited = 1 + np.searchsorted(np.cumsum(admitted_V[probes]), 12)
        assert found.scanned[query] == sizes_V[probes[:visited]].sum()
        assert counts(found)[query] == min(12, admitted_V[probes[:visited]].sum())
    assert np.isin(found.ids[found.lists >= 0], admitted_N).all()


@ENGINES
def test_several_segments_are_as_their_union(native):
    world = World(native)
    parts = [world.lists.without(np.arange(COUNT) % 3 != part) for part in range(3)]
    whole, empty = world.search(40), world.lists.without(np.arange(COUNT))
    one, several = (world.search(40, segments=some) for some in ([InvertedLists.merged(parts)], [*parts, empty]))
    for name, array in vars(several).items():
        assert np.array_equal(getattr(one, name), array)
    assert np.array_equal(whole.values, several.values)


@ENGINES
def test_of_equal_vectors_the_first_are_found(native):
    world = World(native, copies=COUNT)
    found = world.search(100)
    assert np.array_equal(found.ids, np.tile(world.ids_N[:100], (20, 1))) and len(np.unique(found.values[0])) == 1


@ENGINES
@pytest.mark.parametrize("inner_product", [False, True])
def test_what_no_float_holds_is_not_found(native, inner_product):
    """A query whose distances overflow finds nothing, rather than anything; others do not feel it."""
    world = World(native, inner_product=inner_product)
    calm = world.search(10)
    world.queries_QD[[3, 7, 11]] = np.array([[1e38], [np.inf], [np.nan]])
    found, others = world.search(10), np.delete(np.arange(20), [3, 7, 11])
    for name, array in vars(found).items():
        assert np.array_equal(array[others], getattr(calm, name)[others])
    missed = [7, 11] if inner_product else [3, 7, 11]
    assert (found.ids[missed] == -1).all() and np.isposinf(found.values[missed]).all()
    if inner_product:  # of which those are that are not too large
        products_N = -(world.queries_QD[3].astype(np.float64) @ world.x_ND.T)
        wanted_N = products_N[world.rows(found.ids[3, : counts(found)[3]])]
        np.testing.assert_allclose(found.values[3, : counts(found)[3]], wanted_N, rtol=1e-3)


def test_without_the_native_engine_the_scan_is_plain(monkeypatch):
    monkeypatch.setattr(module, "is_available", lambda: False)
    assert World(None).scanner.native is None


@needs_native
def test_the_native_engine_is_used_where_it_is():
    assert World(None).scanner.native is not None
    assert World(False).scanner.native is None


@ENGINES
@pytest.mark.parametrize("width", [np.uint32, np.int64])
def test_only_admitted_ids_are_found(native, width):
    world = World(native)
    shift = 2**40 if width == np.int64 else 0
    lists = InvertedLists(world.lists.starts, world.lists.codes, world.lists.ids.astype(width) + width(shift), M)
    for admitted_N in (np.arange(1100, 1900, 7), np.arange(0, 1000), np.empty(0, np.int64), np.arange(2000)):
        admitted_N = admitted_N + shift
        admitted = Selection.of_ids([lists], admitted_N).words
        found = world.search(COUNT, segments=[lists], admitted=admitted)
        wanted = set((world.ids_N + shift).tolist()) & set(admitted_N.tolist())
        assert (counts(found) == len(wanted)).all() and (found.scanned == COUNT).all()
        assert all(set(ids[: len(wanted)]) == wanted for ids in found.ids.tolist())
