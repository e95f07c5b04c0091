"""A search of shards by other processes, here stood in for by calls, finds what one index finds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_indexes import NUM_LISTS, NUM_VECTORS, trained, vectors

import qinco
from qinco.distributed.shard import ShardServer
from qinco.distributed.sharded import Asked, Version
from qinco.errors import ConfigError, ResourceError
from qinco.search.index import Index

QUERIES_QD = vectors(40, 21)


class Calls:
    """What `Servers` is to a search, without processes; those of `down` do not answer."""

    def __init__(self, folder, groups):
        self.groups, self.down = groups, set()
        self.servers = [ShardServer(str(folder), numbers, 1) for numbers in groups]

    def ask(self, method, *arguments, timeout=None):
        return self.ask_each(method, [arguments] * len(self.servers))

    def ask_each(self, method, arguments, timeout=None):
        return [
            None if number in self.down else getattr(server, method)(*given)
            for number, (server, given) in enumerate(zip(self.servers, arguments, strict=True))
        ]


@pytest.fixture(scope="module", params=[("plain", "l2"), ("ivf", "cosine"), ("product", "inner_product")])
def both(request, tmp_path_factory):
    """An index, and a version of it in shards."""
    kind, metric = request.param
    folder, codec = tmp_path_factory.mktemp("sharded") / "index", trained(kind)
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


def found_in(version, queries, k=10, filter=None, exclude=None, **options):
    asked = Asked(version, None)
    given = dict.fromkeys(("nprobe", "num_short", "num_mid", "ef_search")) | options
    return asked, version.index.search_lists(
        asked, queries, k, given, (filter, exclude), (None, None), {"ranking": "calibrated", "precision": "auto"}
    )


ids = st.one_of(
    st.none(), st.builds(range, st.integers(0, NUM_VECTORS), st.integers(0, NUM_VECTORS + 50)),
    st.lists(st.integers(0, NUM_VECTORS), max_size=30),
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
