"""Searching inverted lists with the compiled engine on arrays made by hand, against a few lines of numpy."""

import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Timer, main_thread
from types import SimpleNamespace

import numpy as np
import pytest
from native_levels import needs_native, normal
from small_lists import lists_of

from qinco.errors import ResourceError
from qinco.native import scanner as module
from qinco.native.bits import packed
from qinco.native.scanner import NativeScanner, Segment
from qinco.search.lists import InvertedLists

pytestmark = [needs_native, pytest.mark.usefixtures("level")]
NO_LEVELS = np.zeros(256, np.float32)


def make_lists(count, steps, num_lists, seed=0) -> InvertedLists:
    random = np.random.default_rng(seed)
    codes_NM, norms_N = (random.integers(0, 256, shape, np.uint8) for shape in ((count, steps), count))
    return lists_of(codes_NM, norms_N, random.integers(0, num_lists, count), np.arange(count), num_lists)


def make_scanner(steps=3, dim=5, num_lists=4, levels=NO_LEVELS, inner_product=False) -> NativeScanner:
    return NativeScanner(*arrays_of(steps, dim, num_lists), levels, inner_product)


def arrays_of(steps, dim, num_lists) -> tuple[np.ndarray, np.ndarray]:
    return normal(num_lists, dim), normal(steps, 256, dim, seed=1)


def one_list(codes_NM, norms_N=None) -> InvertedLists:
    count = len(codes_NM)
    norms_N = np.zeros(count, np.uint8) if norms_N is None else norms_N
    return lists_of(codes_NM.astype(np.uint8), norms_N, np.zeros(count, int), np.arange(count), 1)


def search(scanner, queries_QD, segments, num_short=10, nprobe=None, probes=None, admitted=None, threads=1):
    probes_QP, bases_QP = scanner.probe(queries_QD, probes or scanner.num_lists, threads)
    return scanner.scan(
        queries_QD, probes_QP, bases_QP, segments, num_short, nprobe=nprobe or probes_QP.shape[1], admitted=admitted,
        threads=threads,
    )  # fmt: skip


def test_a_few_vectors_by_hand():
    """In one dimension, with the second code and the scalar counting."""
    tables_MKD = np.zeros((2, 256, 1), np.float32)
    tables_MKD[0, :3, 0], tables_MKD[1, :2, 0] = [0, 1, 2], [0, 10]
    levels = np.arange(256, dtype=np.float32)
    lists = lists_of(
        np.array([[2, 0], [1, 1], [0, 0]], np.uint8), np.array([4, 100, 7], np.uint8), np.array([0, 1, 1]),
        np.array([70, 80, 2**40]), 2,
    )  # fmt: skip
    scanner = NativeScanner(np.array([[0], [5]], np.float32), tables_MKD, levels, False)
    values, ids, numbers, codes, norm_codes, scanned = search(scanner, np.array([[3]], np.float32), [lists], 4)
    # 9 - 2·3·2 + 4,  4 - 0 + 7,  4 - 2·3·11 + 100
    assert values.tolist() == [[1, 11, 38, np.inf]] and ids.tolist() == [[70, 2**40, 80, -1]]
    assert numbers.tolist() == [[0, 1, 1, -1]] and scanned.tolist() == [3]
    assert norm_codes.tolist() == [[4, 7, 100, 0]]
    assert codes.tolist() == [[[2, 0], [0, 0], [1, 1], [0, 0]]]


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize(("num_lists", "dim"), [(1, 1), (3, 300), (17, 5), (1000, 8)])
def test_the_nearest_centroids_in_order(num_lists, dim, inner_product):
    scanner = make_scanner(1, dim, num_lists, inner_product=inner_product)
    queries_QD, centroids_VD = normal(20, dim, seed=2), normal(num_lists, dim).astype(np.float64)
    values_QV = -queries_QD @ centroids_VD.T
    if not inner_product:
        values_QV = np.square(queries_QD[:, None] - centroids_VD).sum(2)
    for nprobe in {1, min(7, num_lists), num_lists}:
        probes_QP, bases_QP = scanner.probe(queries_QD, nprobe, 1)
        assert (probes_QP.dtype, bases_QP.dtype) == (np.int32, np.float32)
        assert all(len(set(probes)) == nprobe for probes in probes_QP.tolist())
        for found_QP in (bases_QP, np.take_along_axis(values_QV, probes_QP, 1)):
            np.testing.assert_allclose(found_QP, np.sort(values_QV)[:, :nprobe], rtol=1e-5, atol=1e-5)


def test_equally_near_centroids_come_in_their_order():
    scanner = NativeScanner(np.ones((100, 3), np.float32), normal(1, 256, 3), NO_LEVELS, False)
    for nprobe in (1, 40, 100):
        assert np.array_equal(scanner.probe(normal(2, 3), nprobe, 1)[0], [np.arange(nprobe)] * 2)


def test_a_long_centroid_does_not_blur_the_inner_products_of_others():
    centroids_VD = normal(50, 4)
    centroids_VD[7] = -1e7
    scanner = NativeScanner(centroids_VD, normal(1, 256, 4), NO_LEVELS, True)
    queries_QD = np.abs(normal(9, 4, seed=3))
    probes_QP, bases_QP = scanner.probe(queries_QD, 50, 1)
    wanted_QV = -queries_QD.astype(np.float64) @ centroids_VD.T
    np.testing.assert_allclose(bases_QP, np.sort(wanted_QV), rtol=1e-5, atol=1e-5)
    assert np.array_equal(probes_QP, np.argsort(wanted_QV))


@pytest.mark.parametrize("steps", [1, 8, 32, 256, 257])
@pytest.mark.parametrize("num_short", [1, 20, 200])
def test_the_shortlist_of_a_long_list(steps, num_short):
    """A limit is there after the first blocks: the rest is looked up in bytes where the processor can."""
    lists, levels = make_lists(3000, steps, 1), np.linspace(-3, 30, 256).astype(np.float32)
    scanner, queries_QD = make_scanner(steps, 6, 1, levels), normal(13, 6, seed=5) * 3
    values, ids, *_ = search(scanner, queries_QD, [lists], num_short)
    codes_NM, norms_N = lists.rows(np.arange(3000))
    wanted_QN = np.square(queries_QD[:, None] - normal(1, 6)).sum(2) + levels[norms_N]
    for table_KD, codes_N in zip(normal(steps, 256, 6, seed=1).astype(np.float64), codes_NM.T, strict=True):
        wanted_QN = wanted_QN - 2 * (queries_QD @ table_KD.T)[:, codes_N]
    limit = 1e-5 * np.abs(wanted_QN).max()
    np.testing.assert_allclose(values, np.sort(wanted_QN)[:, :num_short], rtol=0, atol=limit)
    np.testing.assert_allclose(values, np.take_along_axis(wanted_QN, ids, 1), rtol=0, atol=limit)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("base", "size", "lift"), [(1e6, 9, 0), (1e8, 9, 0), (-3e9, 9, 0), (1e10, 1000, 0), (0, 9, 5e7), (-1e8, 30, 2e8)]
)
def test_sums_that_are_rounded_a_lot_lose_no_vector(base, size, lift, seed):
    """Where a list is far away or entries are large, vectors differ by as little as the rounding of their sums."""
    random = np.random.default_rng(seed)
    tables_MKD = random.integers(-size, size, (8, 256, 1)).astype(np.float32)
    tables_MKD[[0, -1]] += np.array([[[lift]], [[-lift]]], np.float32)
    codes_NM = random.integers(0, 256, (5000, 8), np.uint8)
    scanner = NativeScanner(np.zeros((1, 1), np.float32), tables_MKD, NO_LEVELS, False)
    values, ids, *_ = scanner.scan(
        np.ones((1, 1), np.float32), np.zeros((1, 1), int), np.full((1, 1), base), [one_list(codes_NM)], 20, nprobe=1,
        admitted=None, threads=1,
    )  # fmt: skip
    wanted_N = np.full(5000, base, np.float32)
    for table_KD, codes_N in zip(tables_MKD, codes_NM.T, strict=True):
        wanted_N += -2 * table_KD[codes_N, 0]
    assert np.array_equal(ids[0], np.argsort(wanted_N, kind="stable")[:20])
    assert np.array_equal(values[0], np.sort(wanted_N)[:20])


@pytest.mark.parametrize("entry", [1e38, -1e38, np.nan])
def test_an_entry_that_overflows_hides_no_other(entry):
    """A table may hold what cannot be rounded to bytes: vectors whose codes are other ones do not feel it."""
    codes_NM = np.random.default_rng(0).integers(4, 256, (3000, 4))
    tables_MKD, queries_QD = normal(4, 256, 3), 100 * np.abs(normal(5, 3, seed=1))
    tables_MKD[2, 19] = 5  # the least in the register that the entry is looked at in
    wanted = search(
        NativeScanner(np.zeros((1, 3), np.float32), tables_MKD, NO_LEVELS, False), queries_QD, [one_list(codes_NM)]
    )
    tables_MKD[2, 3] = entry
    found = search(
        NativeScanner(np.zeros((1, 3), np.float32), tables_MKD, NO_LEVELS, False), queries_QD, [one_list(codes_NM)]
    )
    assert all(map(np.array_equal, found, wanted))


@pytest.mark.parametrize("num_short", [1, 63, 64, 100, 700])
def test_of_equal_vectors_the_first_are_found(num_short):
    codes_NM = np.full((900, 4), 3)
    codes_NM[::9] = 5
    lists = one_list(codes_NM)
    tables_MKD = np.zeros((4, 256, 2), np.float32)
    for value, first in ((0, np.arange(900)), (-1, np.flatnonzero(np.arange(900) % 9)), (1, np.arange(0, 900, 9))):
        tables_MKD[:, 5] = value
        scanner = NativeScanner(np.zeros((1, 2), np.float32), tables_MKD, NO_LEVELS, False)
        _, ids, *_ = search(scanner, np.ones((1, 2), np.float32), [lists], num_short)
        assert np.array_equal(ids[0], np.concatenate([first, np.setdiff1d(np.arange(900), first)])[:num_short])


def test_both_zeros_are_one_value():
    """-0.0 is less than 0.0 as bits."""
    scanner = NativeScanner(np.zeros((1, 1), np.float32), np.zeros((1, 256, 1), np.float32), -NO_LEVELS, False)
    bases_QP = np.array([[0.0, -0.0, 0.0]], np.float32)
    lists = one_list(np.zeros((3, 1)))
    given = np.zeros((1, 1), np.float32), np.zeros((1, 3), int), bases_QP, [lists], 4
    _, ids, *_ = scanner.scan(*given, nprobe=3, admitted=None, threads=1)
    assert ids.tolist() == [[0, 1, 2, 0]]


def test_further_lists_are_visited_until_a_shortlist_is_full():
    lists = make_lists(400, 3, 4)
    sizes_V, scanner, queries_QD = np.diff(lists.starts), make_scanner(), normal(6, 5, seed=4)
    probes_QP, _ = scanner.probe(queries_QD, 4, 1)
    for num_short, nprobe in ((1, 1), (150, 1), (150, 3), (1000, 2)):
        *_, scanned = search(scanner, queries_QD, [lists], num_short, nprobe)
        for query, probes in enumerate(probes_QP):
            ends = np.cumsum(sizes_V[probes])
            wanted = max(nprobe, 1 + np.searchsorted(ends, num_short))
            assert scanned[query] == ends[min(wanted, 4) - 1]


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.3, 0.9, 1])
@pytest.mark.parametrize(("count", "num_lists"), [(700, 4), (3000, 1), (333, 100)])
def test_vectors_whose_bits_are_not_set_are_as_if_they_were_not_there(count, num_lists, share):
    """However many of a block are: few are summed one by one, many by the tables of bytes or of floats."""
    lists, queries_QD = make_lists(count, 3, num_lists), normal(6, 5, seed=4)
    scanner, mask_N = make_scanner(num_lists=num_lists), np.random.default_rng(3).random(count) < share
    words, left = packed(mask_N), lists.without(~mask_N)
    for num_short in (1, 30, count):
        found = search(scanner, queries_QD, [lists, lists], num_short, admitted=[words, None])[:-1]
        wanted = search(scanner, queries_QD, [left, lists], num_short)[:-1]
        assert all(map(np.array_equal, found, wanted))
        *found, scanned = search(scanner, queries_QD, [lists], num_short, admitted=[words])
        assert all(map(np.array_equal, found, search(scanner, queries_QD, [left], num_short)))
        assert (scanned == count).all()


@pytest.mark.parametrize("threads", [0, 2, 3, 7, 40])
def test_any_number_of_threads_gives_the_same_bits(threads):
    lists, scanner, queries_QD = make_lists(900, 3, 4), make_scanner(), normal(200, 5, seed=4)
    wanted = search(scanner, queries_QD, [lists], 15, 2, probes=3)
    assert all(map(np.array_equal, search(scanner, queries_QD, [lists], 15, 2, probes=3, threads=threads), wanted))
    codes_NM, _ = lists.rows(np.arange(900))
    given = codes_NM, lists.lists_of(np.arange(900))
    assert np.array_equal(scanner.norms(*given, threads), scanner.norms(*given, 1))


def test_threads_of_the_caller_share_a_scanner():
    lists, scanner, queries_QD = make_lists(900, 3, 4), make_scanner(), normal(100, 5, seed=4)
    wanted = search(scanner, queries_QD, [lists])
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(search, scanner, queries_QD, [lists], threads=2) for _ in range(12)]
    for call in calls:
        assert all(map(np.array_equal, call.result(), wanted))


def test_scalars_are_what_the_query_does_not_change():
    centroids_VD, tables_MKD = normal(4, 5), normal(3, 256, 5, seed=1)
    codes_NM, lists_N = np.random.default_rng(2).integers(0, 256, (50, 3)), np.arange(50) % 4
    r_ND = tables_MKD[np.arange(3), codes_NM].sum(1, dtype=np.float64)
    wanted_N = (2 * centroids_VD[lists_N] * r_ND).sum(1) + np.square(r_ND).sum(1)
    norms_N = make_scanner().norms(codes_NM, lists_N, 1)
    np.testing.assert_allclose(norms_N, wanted_N, rtol=1e-5, atol=1e-5)
    assert norms_N.dtype == np.float32 and make_scanner().norms(codes_NM[:0], lists_N[:0], 2).shape == (0,)


def test_arrays_of_any_layout_and_type_are_taken():
    lists, scanner, queries_QD = make_lists(300, 3, 4), make_scanner(), normal(20, 5, seed=4)
    probes_QP, bases_QP = scanner.probe(queries_QD, 3, 1)
    rules = {"nprobe": 3, "admitted": None, "threads": 1}
    wanted = scanner.scan(queries_QD, probes_QP, bases_QP, [lists], 9, **rules)
    for change in (np.asfortranarray, lambda array: np.repeat(array, 2, 0)[::2], lambda array: array.astype(float)):
        given = [change(array) for array in (queries_QD, probes_QP, bases_QP)]
        assert all(map(np.array_equal, scanner.scan(*given, [lists], 9, **rules), wanted))
        assert all(map(np.array_equal, scanner.probe(given[0], 3, 1), (probes_QP, bases_QP)))


def test_a_packed_scanner_keeps_its_own_copy():
    arrays = normal(4, 5), normal(3, 256, 5, seed=1), NO_LEVELS.copy()
    lists, scanner, queries_QD = make_lists(300, 3, 4), NativeScanner(*arrays, False), normal(20, 5, seed=4)
    before = search(scanner, queries_QD, [lists])
    for array in arrays:
        array[:] = 7
    assert all(map(np.array_equal, search(scanner, queries_QD, [lists]), before))


def test_no_queries_and_no_lists_are_nothing():
    scanner = make_scanner()
    for array in search(scanner, np.empty((0, 5), np.float32), [make_lists(300, 3, 4)], threads=3):
        assert len(array) == 0
    for segments in ([], [make_lists(0, 3, 4)]):
        values, ids, lists, codes, norm_codes, scanned = search(scanner, normal(2, 5), segments, 3)
        assert np.isposinf(values).all() and (ids == -1).all() and (lists == -1).all()
        assert codes.shape == (2, 3, 3) and not codes.any() and not scanned.any()
        assert norm_codes.shape == (2, 3) and not norm_codes.any()


def test_arrays_that_do_not_fit_are_refused():
    """Rather than read beyond their ends."""
    scanner, lists, queries_QD = make_scanner(), make_lists(300, 3, 4), normal(2, 5)
    wrong_starts = SimpleNamespace(starts=lists.starts[:-1], codes=lists.codes, ids=lists.ids)
    short_codes = SimpleNamespace(starts=lists.starts, codes=lists.codes[:-1], ids=lists.ids)
    for segment in (wrong_starts, short_codes, make_lists(300, 2, 4), make_lists(300, 3, 5)):
        with pytest.raises(AssertionError):
            search(scanner, queries_QD, [segment])
    for name, array in (
        ("starts", lists.starts[:-1]), ("starts", lists.starts.astype(np.int32)), ("codes", lists.codes[::2]),
        ("codes", lists.codes.view(np.int8)), ("ids", lists.ids.astype(np.int32)), ("ids", lists.ids[:-1]),
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            Segment.of(**{"starts": lists.starts, "codes": lists.codes, "ids": lists.ids, name: array})
    rules = {"nprobe": 1, "admitted": None, "threads": 1}
    zeros_QP = np.zeros((2, 1))
    for given in (
        (queries_QD[:, :4], zeros_QP, zeros_QP, [lists], 3),
        (queries_QD, zeros_QP + 4, zeros_QP, [lists], 3),
        (queries_QD, zeros_QP[:1], zeros_QP[:1], [lists], 3),
        (queries_QD, zeros_QP, zeros_QP, [lists], 0),
    ):
        with pytest.raises(AssertionError):
            scanner.scan(*given, **rules)
    for codes_NM, lists_N in (((2, 2), [0, 0]), ((2, 3), [0, 4]), ((2, 3), [-1, 0]), ((3, 3), [0, 0])):
        with pytest.raises(AssertionError):
            scanner.norms(np.zeros(codes_NM, np.uint8), np.array(lists_N), 1)
    compares = NativeScanner(*arrays_of(3, 5, 4), NO_LEVELS, False, [np.zeros(5)] * 3)
    for scanned, decoded_ND in ((scanner, normal(2, 5)), (compares, normal(3, 5)), (compares, normal(2, 4))):
        with pytest.raises(AssertionError):
            scanned.compare(np.zeros((2, 3), np.uint8), np.zeros(2, int), decoded_ND, 1)
    with pytest.raises(AssertionError):
        NativeScanner(*arrays_of(3, 5, 4), NO_LEVELS, False, [np.zeros(4)] * 3)
    for words in (np.zeros(4, np.uint64), np.zeros(5, np.int64), np.zeros(10, np.uint64)[::2]):
        with pytest.raises(AssertionError):
            search(scanner, queries_QD, [lists], admitted=[words])
    for nprobe in (0, 5):
        with pytest.raises(AssertionError):
            scanner.probe(queries_QD, nprobe, 1)
    with pytest.raises(AssertionError):
        NativeScanner(normal(4, 5), normal(3, 255, 5), NO_LEVELS, False)


def test_exhausted_memory_is_a_resource_error(monkeypatch):
    scanner, lists, queries_QD = make_scanner(), make_lists(300, 3, 4), normal(2, 5)
    failing = dict.fromkeys(("qinco_probe", "qinco_scan_lists", "qinco_sum_codes"), lambda *_: 1)
    exhausted = SimpleNamespace(qinco_create_scanner=lambda *_: None, **failing)
    probed = scanner.probe(queries_QD, 2, 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "compiled", lambda: exhausted)
        with pytest.raises(ResourceError, match="packed"):
            make_scanner()
        with pytest.raises(ResourceError, match="fewer queries"):
            scanner.probe(queries_QD, 2, 1)
        with pytest.raises(ResourceError, match="fewer queries"):
            scanner.scan(queries_QD, *probed, [lists], 3, nprobe=2, admitted=None, threads=1)
        with pytest.raises(ResourceError, match="fewer queries"):
            scanner.norms(np.zeros((2, 3), np.uint8), np.zeros(2, int), 1)


def test_ctrl_c_ends_searches_that_would_take_hours():
    queries, segments = normal(20_000, 5), [make_lists(100_000, 3, 100)] * 1000
    search = partial(make_scanner(num_lists=100).scan, queries, nprobe=100, admitted=None, threads=1)
    probes, bases = np.tile(np.arange(100, dtype=np.int32), (20_000, 1)), np.zeros((20_000, 100), np.float32)
    # Late enough to come within the call: Python drops what is raised where it calls back, as in finalizers.
    Timer(0.5, signal.pthread_kill, (main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        search(probes, bases, segments, 1)
