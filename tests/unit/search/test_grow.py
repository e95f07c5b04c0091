"""Indexes that begin with few vectors find what those find that are built at once; interrupted work goes on."""

import numpy as np
import pytest
from small_indexes import KINDS, NUM_LISTS, NUM_VECTORS, built, copied, trained, vectors

import qinco
from qinco.errors import DataError
from qinco.search.index import Index
from qinco.search.metric import METRICS
from qinco.search.parts import Fitted
from qinco.store.folder import read_folder, write_folder

QUERIES_QD = vectors(200, 1)
SORTED = vectors()[np.argsort(vectors()[:, 0])]


def grown(index: Index, x_ND: np.ndarray, *sizes: int) -> Index:
    """With vectors in batches of these sizes, of which the last takes the rest."""
    for part in np.split(x_ND, np.cumsum(sizes)):
        index.add(part)
    return index


def same_results(one: Index, other: Index) -> bool:
    # An index does not keep its vectors: what it knows of them besides their codes differs in the last digits, and so
    # does the order of vectors of equal codes.
    distances = [index.search(QUERIES_QD, 20, 3, NUM_VECTORS, ranking="decoded")[0] for index in (one, other)]
    return one.num_lists == other.num_lists and np.array_equal(*distances)


def recall(index: Index, x_ND: np.ndarray) -> float:
    nearest_Q = np.square(QUERIES_QD[:, None] - x_ND).sum(2).argmin(1)
    return float((index.search(QUERIES_QD, 10, 4, 20)[1] == nearest_Q[:, None]).any(1).mean())


@pytest.mark.parametrize(("kind", "metric"), [*zip(KINDS, METRICS, strict=True)])
def test_an_index_that_began_with_few_vectors_is_as_if_built_at_once(kind, metric):
    whole = Index.build(trained(kind), SORTED, metric=metric)
    assert same_results(grown(Index.build(trained(kind), SORTED[:1], metric=metric), SORTED[1:], 200), whole)


@pytest.mark.parametrize(
    ("kind", "sizes"), [("plain", (30,) * 49), ("plain", (5, 745)), ("ivf", (600, 301, 299)), ("product", (1, 99, 650))]
)
def test_recall_does_not_depend_on_what_came_first(kind, sizes):
    index = grown(Index.build(trained(kind), SORTED[: sizes[0]]), SORTED[sizes[0] :], *sizes[1:])
    assert recall(index, SORTED) >= 0.97 * recall(Index.build(trained(kind), SORTED), SORTED)
    assert len(index) == NUM_VECTORS and np.array_equal(index.ids, np.arange(NUM_VECTORS))


@pytest.mark.parametrize(("first", "step"), [(1, 7), (200, 100)])
def test_rankings_are_fitted_anew_though_vectors_come_one_by_one(first, step):
    nearest_Q1 = (QUERIES_QD @ SORTED.T).argmax(1)[:, None]

    def share_found(index: Index) -> float:
        return float((index.search(QUERIES_QD, 1, 100, 50)[1] == nearest_Q1).mean())

    index = Index.build(trained("plain"), SORTED[:first], metric="inner_product")
    for start in range(first, NUM_VECTORS, step):
        index.add(SORTED[start : start + step])
    assert share_found(index) > 0.85 * share_found(Index.build(trained("plain"), SORTED, metric="inner_product"))
    assert index.tables.ranking.num_vectors > NUM_VECTORS / 2 and len(index.parts.recent[0]) == NUM_VECTORS
    index.upsert(SORTED[:50], np.arange(50))
    index.remove(np.arange(40, 90))
    index.add(SORTED[:3], [70, 80, 2**40])
    recent_N, recent_ND = index.parts.recent
    assert sorted(recent_N) == index.ids.tolist()
    rows_N = [{70: 0, 80: 1, 2**40: 2}.get(int(id), id) for id in recent_N]
    np.testing.assert_array_equal(recent_ND, SORTED[rows_N])
    index.reset()
    assert index.parts.recent is None


def test_pairwise_decoders_grow_with_the_index():
    whole = Index.build(trained("plain"), SORTED[:400], pairwise=True)
    index = grown(Index.build(trained("plain"), SORTED[:9], pairwise=True), SORTED[9:400])
    assert same_results(index, whole)
    np.testing.assert_array_equal(index.pairwise.tables_PJD, whole.pairwise.tables_PJD)


def test_what_a_user_has_given_is_kept(tmp_path):
    given = built(pairwise=True).pairwise
    assert Index.build(trained("plain"), SORTED[:20], 3).num_lists == 3
    index = grown(Index.build(trained("plain"), SORTED[:20], 3).with_pairwise(given), SORTED[20:])
    assert index.num_lists == 3 and index.pairwise is given
    codes, output = trained("plain").encode(SORTED[:20]), tmp_path / "index"
    qinco.build_index(codes, output, codec=trained("plain"), centroids=vectors(5, 4), pairwise=given)
    index = grown(Index.load(output), SORTED[20:])
    np.testing.assert_array_equal(index.tables.centroids_VD, vectors(5, 4))
    np.testing.assert_array_equal(index.pairwise.tables_PJD, given.tables_PJD)
    index = Index.build(trained("plain"), SORTED[:20])
    index.tables = index.tables
    assert grown(index, SORTED[20:]).parts.fitted == Fitted()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_index_on_disk_grows_as_one_in_memory(kind, tmp_path):
    whole, codes = Index.build(trained(kind), SORTED), trained(kind).encode(SORTED[:40])
    Index.build(trained(kind), SORTED[:40]).save(tmp_path / "saved")
    settings = {} if kind == "ivf" else {"num_lists": 1}
    qinco.build_index(codes, tmp_path / "built", codec=trained(kind), **settings)
    with write_folder(tmp_path / "older", "index", {}) as writer:
        opened = read_folder(tmp_path / "saved", "index")
        for name, array in opened.arrays.items():
            writer.put(name, array)
        for name, file in opened.files.items():
            writer.file(name).write_bytes(file.read_bytes())
        writer.settings = {name: value for name, value in opened.settings.items() if name != "fitted"}
    assert same_results(grown(Index.load(tmp_path / "saved"), SORTED[40:]), whole)
    for name in ("built", "older"):
        assert recall(grown(Index.load(tmp_path / name), SORTED[40:]), SORTED) >= 0.97 * recall(whole, SORTED)


@pytest.mark.parametrize("empty", [lambda index: index.remove(index.ids), Index.reset])
def test_an_index_that_was_emptied_is_fitted_to_what_comes(empty):
    others = vectors(700, 3) * np.float32(0.7)
    index, whole = Index.build(trained("plain"), SORTED), Index.build(trained("plain"), others)
    empty(index)
    index.next_id = 0
    assert same_results(grown(index, others), whole)
    index.remove(np.arange(500))
    index.add(SORTED[:1000])
    assert same_results(index, Index.build(trained("plain"), np.concatenate([others[500:], SORTED[:1000]]),
                                           ids=np.arange(500, 1700)))  # fmt: skip


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_index_stays_as_it_is_if_it_cannot_be_fitted_again(error, monkeypatch):
    index = Index.build(trained("plain"), SORTED[:100])
    before = index.parts
    with monkeypatch.context() as patch, pytest.raises(error) as stopped:
        patch.setattr("qinco.search.grow.fill_lists", lambda *arguments, **options: (_ for _ in ()).throw(error()))
        index.add(SORTED[100:])
    assert index.parts is before
    if error is KeyboardInterrupt:
        assert len(stopped.value.codes) == NUM_VECTORS - 100


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_interrupted_build_goes_on_where_it_was(kind):
    codec = copied_codec(kind)

    def stop(stage, done, total, *unit) -> None:
        if done >= 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="codes=codes") as stopped:
        Index.build(codec, SORTED, progress=stop)
    codes = stopped.value.codes
    assert len(codes) == 512
    np.testing.assert_array_equal(codes, codec.encode(SORTED[:512]))
    encoded = []
    index = Index.build(codec, SORTED, codes=codes, progress=lambda *told, **fields: encoded.append(told))
    assert max(total for stage, _, total, *_ in encoded if stage == "encoding") == NUM_VECTORS - 512
    assert same_results(index, Index.build(trained(kind), SORTED))
    with pytest.raises(DataError, match="99 or fewer, not 512"):
        Index.build(codec, SORTED[:99], codes=codes)


def copied_codec(kind: str) -> qinco.Codec:
    """One that encodes in small blocks."""
    codec = qinco.Codec(trained(kind).models, trained(kind).encode_options, None, trained(kind).rotation_DD)
    codec.block_rows = 256
    return codec


@pytest.mark.parametrize("metric", METRICS)
def test_as_many_results_come_as_there_are_vectors(metric):
    index = copied(built("plain", metric))
    for k in (NUM_VECTORS // 2, NUM_VECTORS, 2 * NUM_VECTORS):
        distances_QR, ids_QR = index.search(QUERIES_QD[:9], k, nprobe=1)
        found = min(k, NUM_VECTORS)
        assert all(len(set(row[:found].tolist()) - {-1}) == found for row in ids_QR) and (ids_QR[:, found:] == -1).all()
        assert np.isfinite(distances_QR[:, :found]).all()
    one = index.search(QUERIES_QD, 10, nprobe=1)
    other = index.search(QUERIES_QD, 10, nprobe=2)
    assert index.num_lists == NUM_LISTS and not np.array_equal(one[1], other[1])  # ordinary searches visit no more


def test_codes_to_go_on_with_are_whole():
    codec = trained("plain")
    codes = codec.encode(SORTED).codes
    for some in (codes[:5, :-1], codes[:, :-1]):
        with pytest.raises(DataError, match=f"{codec.num_codes}"):
            Index.build(codec, SORTED, codes=some)
