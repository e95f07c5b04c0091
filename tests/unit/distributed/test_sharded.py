"""A search of shards by other processes, here stood in for by calls, finds what one index finds."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_indexes import NUM_LISTS, NUM_VECTORS, trained, vectors

import qinco
from qinco.distributed.shard import ShardServer, generation_of
from qinco.distributed.sharded import Asked, Found, Version
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.search.index import Index

QUERIES_QD = vectors(40, 21)


class Calls:
    """What `Servers` is to a search, without processes, whose arrays are read-only.

    Those of `down` do not answer; `late` gives for the number of a call those that do not answer it.
    """

    def __init__(self, folder, groups):
        self.groups, self.down = groups, set()
        self.late, self.count = lambda number: set(), 0
        generation = generation_of(Index.load(folder).parts)
        self.servers = [ShardServer(str(folder), numbers, 1, generation) for numbers in groups]

    def ask(self, method, *arguments, timeout=None):
        return self.ask_each(method, [arguments] * len(self.servers))

    def ask_each(self, method, arguments, timeout=None):
        late = self.late(self.count) | self.down
        self.count += 1
        return [
            None if number in late else frozen(getattr(server, method)(*given))
            for number, (server, given) in enumerate(zip(self.servers, arguments, strict=True))
        ]

    def lost_for_good(self, number):
        return None


def frozen(answer):
    """Arrays as Ray gives them."""
    for one in answer if isinstance(answer, tuple | list) else [answer]:
        if isinstance(one, np.ndarray):
            one.flags.writeable = False
        elif one is not None:
            frozen(one)
    return answer


@contextmanager
def late(version, when):
    """No shard of those that `when` gives for the number of a call answers it."""
    calls = version.servers
    calls.late, calls.count = when, 0
    try:
        yield
    finally:
        calls.late = lambda number: set()


@pytest.fixture(scope="module", params=[("plain", "l2"), ("ivf", "cosine"), ("product", "inner_product")])
def both(request, tmp_path_factory):
    return in_shards(tmp_path_factory.mktemp("sharded") / "index", *request.param)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """A version of an index whose vectors are in many lists."""
    return in_shards(tmp_path_factory.mktemp("sharded") / "index", "plain", "l2")[1]


def in_shards(folder, kind, metric):
    """An index, and a version of it in shards."""
    codec = trained(kind)
    x_ND = vectors().copy()
    x_ND[1::2] = x_ND[::2]  # equal ones lie in different shards, too
    x_ND = np.roll(x_ND, 1, axis=0)
    if metric == "cosine":
        x_ND = x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
    lists = None if kind == "ivf" else NUM_LISTS
    given = {"vectors": x_ND, "train_vectors": x_ND, "num_lists": lists, "metric": metric}
    qinco.build_index(codec.encode(x_ND), folder, codec=codec, num_shards=5, **given)
    index = Index.load(folder)
    empty = Index(index.codec, replace(index.parts, segments=()))
    sizes_V = np.sum([np.diff(segment.starts) for segment in index.segments], axis=0)
    return index, Version(empty, Calls(folder, [[0], [1, 2], [3, 4]]), sizes_V)


@pytest.fixture(scope="module", params=[2000, 10])
def few(request):
    """How many chosen vectors are few: of these, copies are searched here, and of more the actors scan their lists."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("qinco.search.selection", "qinco.distributed.shard", "qinco.distributed.sharded"):
            patch.setattr(f"{module}.FEW", request.param)
        yield request.param


def found_in(version, queries, k=10, filter=None, exclude=None, refine=None, **options):
    asked = Asked(version, None)
    given = dict.fromkeys(("nprobe", "num_short", "num_mid", "ef_search")) | options
    return asked, version.index.search_lists(
        asked, queries, k, given, (filter, exclude), (refine, None), {"ranking": "calibrated", "precision": "auto"}
    )


ids = st.one_of(
    st.none(), st.builds(range, st.integers(0, NUM_VECTORS), st.integers(0, NUM_VECTORS + 50)),
    st.lists(st.integers(0, NUM_VECTORS), max_size=30, unique=True),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 60), nprobe=st.integers(1, NUM_LISTS), num_short=st.sampled_from([0, 1, 20, 100, 2000]),
    chosen=ids, excluded=ids,
)  # fmt: skip
def test_shards_find_what_one_index_finds(both, few, k, nprobe, num_short, chosen, excluded):
    index, version = both
    options = {"nprobe": nprobe, "num_short": num_short}
    expected = index.search(QUERIES_QD, k, filter=chosen, exclude=excluded, **options)
    asked, found = found_in(version, QUERIES_QD, k, chosen, excluded, **options)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert not asked.missing


def test_shards_that_do_not_answer_are_missing(both):
    _, version = both
    version.servers.down = {1}
    try:
        asked, (_, ids_QR) = found_in(version, QUERIES_QD)
        assert asked.missing == {1}
        assert not ((ids_QR >= 300) & (ids_QR < 900)).any() and (ids_QR >= 0).all()
        asked, (_, ids_QR) = found_in(version, QUERIES_QD, filter=range(250, 350))
        assert asked.missing == {1} and ids_QR.max() < 300
        version.servers.down = {0, 1, 2}
        with pytest.raises(ResourceError, match="no shard"):
            found_in(version, QUERIES_QD)
    finally:
        version.servers.down = set()


def test_a_selection_of_an_index_is_refused(both):
    index, version = both
    with pytest.raises(ConfigError, match="Selection"):
        found_in(version, QUERIES_QD, filter=index.select(range(10)))


@pytest.fixture
def single(both, tmp_path):
    """An index of one segment, whose only actor is asked as in a cluster."""
    index, _ = both
    index.save(tmp_path / "index")
    sizes_V = np.sum([np.diff(segment.starts) for segment in index.segments], axis=0)
    return index, Version(
        Index(index.codec, replace(index.parts, segments=())), Calls(tmp_path / "index", [[0]]), sizes_V
    )


@pytest.mark.parametrize("k", [10, 400])
def test_more_lists_of_a_single_actor_are_scanned(single, k):
    """The arrays that it gives are read-only, and the lists first scanned hold fewer than 400 vectors."""
    index, version = single
    expected = index.search(QUERIES_QD, k, nprobe=1)
    _, found = found_in(version, QUERIES_QD, k, nprobe=1)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])


def test_a_wider_scan_that_nobody_answers_leaves_what_was_found(spread):
    options = {"k": 1000, "nprobe": 1, "num_short": 0}  # of 1,500 vectors, 600 of them in the actor 1
    with late(spread, lambda number: {1} if number == 0 else {0, 1, 2}):
        asked, (_, ids_QR) = found_in(spread, QUERIES_QD, **options)
    found = ids_QR[ids_QR >= 0]
    assert len(found) and not ((found >= 300) & (found < 900)).any()
    assert asked.missing == {1} and spread.servers.count == 2
    with late(spread, lambda number: set() if number == 0 else {0, 1, 2}):
        asked, (_, ids_QR) = found_in(spread, QUERIES_QD, **options)
    assert asked.missing == {0, 1, 2} and (ids_QR >= 0).any()


def test_a_wider_scan_of_fewer_shards_takes_nothing_away(spread):
    options = {"k": 1000, "nprobe": 1, "num_short": 0}  # of 1,500 vectors, 600 of them in the actor 1
    with late(spread, lambda number: set() if number == 0 else {0, 1, 2}):
        _, first = found_in(spread, QUERIES_QD, **options)
    with late(spread, lambda number: set() if number == 0 else {1, 2}):
        asked, then = found_in(spread, QUERIES_QD, **options)
    assert asked.missing == {1, 2}
    assert ((then[1] >= 0).sum(1) >= (first[1] >= 0).sum(1)).all()


@pytest.mark.parametrize("num_short", [0, 50])
def test_queries_of_a_batch_that_nobody_answers_have_no_results(spread, num_short):
    spread.index.batch_bytes, before = 1, spread.index.batch_bytes  # a batch for each query
    try:
        with late(spread, lambda number: {0, 1, 2} if number else set()):
            asked, (distances_QR, ids_QR) = found_in(spread, QUERIES_QD[:3], 5, num_short=num_short)
        assert (ids_QR[0] >= 0).all() and (ids_QR[1:] == -1).all() and np.isinf(distances_QR[1:]).all()
        assert asked.missing == {0, 1, 2}
        with late(spread, lambda number: set() if number == 1 else {0, 1, 2}), pytest.raises(ResourceError):
            found_in(spread, QUERIES_QD[:3], 5)
    finally:
        spread.index.batch_bytes = before


def test_a_filter_that_nobody_answers_is_an_error(spread):
    with late(spread, lambda number: {0, 1, 2}), pytest.raises(ResourceError):
        found_in(spread, QUERIES_QD, filter=range(10))


def test_originals_of_too_few_rows_are_refused(both):
    index, version = both
    for chosen in (None, range(10)):
        for search in (index.search, lambda *given, **named: found_in(version, *given, **named)):
            with pytest.raises(DataError):
                search(QUERIES_QD, 10, filter=chosen, refine=vectors(NUM_VECTORS - 1, 3))
    found = found_in(version, QUERIES_QD, 10, refine=vectors(NUM_VECTORS, 3))[1]
    np.testing.assert_array_equal(found[1], index.search(QUERIES_QD, 10, refine=vectors(NUM_VECTORS, 3))[1])


def test_an_actor_serves_no_other_generation(both, tmp_path):
    index, _ = both
    index.save(tmp_path / "index")
    generation = generation_of(Index.load(tmp_path / "index").parts)
    assert ShardServer(str(tmp_path / "index"), [0], 1, generation).sizes().sum() == NUM_VECTORS
    index.save(tmp_path / "index", overwrite=True)
    with pytest.raises(DataError, match="reload"):
        ShardServer(str(tmp_path / "index"), [0], 1, generation)


def test_what_is_found_keeps_the_names_of_its_version():
    names = object()
    distances, ids = found = Found(([1.0], [2]), [range(3)], names)
    assert (distances, ids) == ([1.0], [2]) and found.names is names and found.is_partial
    assert Found(([], [])).names is None
