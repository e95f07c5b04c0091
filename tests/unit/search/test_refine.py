"""Results ranked by the original vectors: what comparing the originals of a plain search gives."""

import re
import threading
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from small_indexes import DIM, KINDS, NUM_LISTS, NUM_VECTORS, built, copied, exact, trained, vectors

import qinco
from qinco.errors import ConfigError, DataError
from qinco.search import refine as stage
from qinco.search.index import Index
from qinco.search.metric import METRICS
from qinco.vectors.formats import write_vectors
from qinco.vectors.rows import VectorSource, as_source

QUERIES_QD = vectors(40, 1)


def by_definition(index, queries_QD, originals_ND, k, num_refine, **options):
    """A plain search for `num_refine` results, and the k nearest of these by the originals in float64."""
    _, ids_QS = index.search(queries_QD, num_refine, refine=False, **options)
    sign = 1 if index.metric == "l2" else -1
    values_QN = sign * exact(index.metric, queries_QD, originals_ND)
    values_QS = np.where(ids_QS >= 0, np.take_along_axis(values_QN, np.maximum(ids_QS, 0), 1), np.inf)
    order_QR = np.argsort(values_QS, 1, kind="stable")[:, :k]
    return sign * np.take_along_axis(values_QS, order_QR, 1), np.take_along_axis(ids_QS, order_QR, 1)


def check(found, wanted) -> None:
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[1] < 0, wanted[1] < 0)
    assert (found[1] != wanted[1]).sum() <= 0.01 * wanted[1].size  # others are as near, but for rounding
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_comparing_the_originals(kind, metric):
    index = built(kind, metric)
    for k, num_refine, options in (
        (10, 100, {"nprobe": 4}),
        (10, 30, {"nprobe": 4, "num_short": 200}),
        (7, 7, {"num_short": 0}),
        (20, 60, {"num_short": 10, "filter": range(0, NUM_VECTORS, 9)}),
    ):
        found = index.search(QUERIES_QD, k, refine=vectors(), num_refine=num_refine, **options)
        check(found, by_definition(index, QUERIES_QD, vectors(), k, num_refine, **options))


def test_the_default_refines_a_hundred_results_or_k():
    index = built()
    check(index.search(QUERIES_QD, refine=vectors()), by_definition(index, QUERIES_QD, vectors(), 10, 100))
    check(index.search(QUERIES_QD, 150, refine=vectors()), by_definition(index, QUERIES_QD, vectors(), 150, 150))
    everything = index.search(QUERIES_QD, refine=vectors(), num_refine=2**31 - 1)
    check(everything, by_definition(index, QUERIES_QD, vectors(), 10, NUM_VECTORS))


def test_everything_refined_is_exact_search():
    index = built("ivf")
    found = index.search(QUERIES_QD, nprobe=NUM_LISTS, refine=vectors(), num_refine=NUM_VECTORS)
    wanted = qinco.exhaustive_search(QUERIES_QD, vectors())
    check(found, wanted)
    one = index.search(QUERIES_QD[3], nprobe=NUM_LISTS, refine=vectors(), num_refine=NUM_VECTORS)
    check(one, (wanted[0][3], wanted[1][3]))


def test_with_the_pairwise_stage():
    index = built(pairwise=True)
    for options in ({"num_short": 20, "num_mid": 300}, {"num_short": 60, "num_mid": 300}, {"num_mid": 0}):
        found = index.search(QUERIES_QD, 5, refine=vectors(), num_refine=40, **options)
        check(found, by_definition(index, QUERIES_QD, vectors(), 5, 40, **options))


def test_the_network_decodes_only_to_choose(monkeypatch):
    """The order of what it would only order is the originals' anyway."""
    index = built()
    assert [
        s.keep for s in index.pipeline(index.options, 10, refined=(stage.Originals(vectors(), DIM), 99)).stages
    ] == [99]
    monkeypatch.setattr(qinco.Codec, "packings", None)
    index.search(QUERIES_QD, num_short=50, refine=vectors())
    with pytest.raises(TypeError):
        index.search(QUERIES_QD, num_short=150, refine=vectors())


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.float16, np.float64])
def test_vectors_of_any_type_and_format(tmp_path, dtype):
    index, x_ND = built(), np.round(np.abs(vectors())).astype(dtype)
    wanted = by_definition(index, QUERIES_QD, x_ND, 10, 50)
    search = partial(index.search, QUERIES_QD, num_refine=50)
    np.save(tmp_path / "x.npy", x_ND)
    np.save(tmp_path / "part-1.npy", x_ND[:700])
    np.save(tmp_path / "part-2.npy", x_ND[700:])
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("train", data=x_ND, chunks=(100, DIM), compression="gzip")
    write_vectors(tmp_path / "x.fvecs", x_ND)
    sources = [tmp_path / "x.npy", str(tmp_path / "x.fvecs"), str(tmp_path / "part-*.npy"), tmp_path / "x.hdf5"]
    sources += [[tmp_path / "part-1.npy", as_source(x_ND[700:])], np.load(tmp_path / "x.npy", mmap_mode="r"), x_ND]
    sources += [qinco.open_vectors(tmp_path / "x.npy"), torch.from_numpy(x_ND)]
    for source in sources:
        check(search(refine=source), wanted)


class Reading:
    """Rows that note which of them are read."""

    def __init__(self, x_ND):
        self.x_ND, self.shape, self.dtype, self.read = x_ND, x_ND.shape, x_ND.dtype, []

    def __getitem__(self, key):
        self.read.append(key if isinstance(key, np.ndarray) else np.arange(len(self.x_ND))[key])
        return self.x_ND[key]


def test_each_vector_is_read_once_and_in_order(monkeypatch):
    index, rows = copied(built()), Reading(vectors())
    wanted = index.search(QUERIES_QD[:3], num_refine=20, refine=vectors())
    index.refine = VectorSource(rows)
    rows.read.clear()
    found = index.search(QUERIES_QD[:3], num_refine=20)
    check(found, wanted)
    plain_QS = index.search(QUERIES_QD[:3], 20, refine=False)[1]
    np.testing.assert_array_equal(np.concatenate(rows.read), np.unique(plain_QS))
    assert len(rows.read) == 1
    monkeypatch.setattr(stage, "_READ_VALUES", 7 * DIM)
    monkeypatch.setattr(stage, "_COMPARED_VALUES", 3 * DIM)
    rows.read.clear()
    check(index.search(QUERIES_QD[:3], num_refine=20), wanted)
    assert len(rows.read) > 3 and (np.diff(np.concatenate(rows.read)) > 0).all()
    rows.read.clear()  # of vectors that lie together all are read at once
    index.search(QUERIES_QD[:3], num_refine=20, filter=range(100, 120))
    assert all((np.diff(read) == 1).all() for read in rows.read)


def test_what_was_not_found_stays_missing():
    index = built("plain", "inner_product")
    distances_QR, ids_QR = index.search(QUERIES_QD, 8, filter=[5, 3, 900], refine=vectors())
    assert (ids_QR[:, 3:] == -1).all() and (distances_QR[:, 3:] == -np.inf).all()
    assert (np.sort(ids_QR[:, :3]) == [3, 5, 900]).all()
    check(index.search(QUERIES_QD[:0], refine=vectors()), (np.empty((0, 10)), np.empty((0, 10))))
    empty = index.emptied().search(QUERIES_QD, 4, refine=vectors())
    assert (empty[1] == -1).all() and (empty[0] == -np.inf).all()
    few = Index.build(trained("plain"), vectors()[:5], 1)
    distances_QR, ids_QR = few.search(QUERIES_QD, 7, refine=vectors())
    assert (ids_QR[:, 5:] == -1).all() and (distances_QR[:, 5:] == np.inf).all() and (ids_QR[:, :5] >= 0).all()


@pytest.mark.filterwarnings("error")
def test_zero_and_long_vectors():
    x_ND = vectors().copy()
    x_ND[::50] = 0
    index = Index.build(trained("plain"), x_ND, NUM_LISTS, metric="cosine")
    queries_QD = np.concatenate([QUERIES_QD, np.zeros((1, DIM), np.float32), QUERIES_QD[:1] * 1e30])
    distances_QR, ids_QR = index.search(queries_QD, 5, NUM_LISTS, refine=x_ND * 100, num_refine=NUM_VECTORS)
    wanted_QR, _ = qinco.exhaustive_search(queries_QD, x_ND, 5, metric="cosine")
    np.testing.assert_allclose(distances_QR, wanted_QR, atol=1e-6)
    assert (distances_QR[40] == 0).all() and (ids_QR[40] >= 0).all()
    plain = built("plain", "inner_product")
    long_QD = QUERIES_QD * np.float32(1e30)
    distances_QR, ids_QR = plain.search(long_QD, 5, NUM_LISTS, refine=vectors(), num_refine=NUM_VECTORS)
    wanted = qinco.exhaustive_search(long_QD, vectors(), 5, metric="inner_product")
    np.testing.assert_allclose(distances_QR, wanted[0], rtol=1e-5)
    assert (ids_QR == wanted[1]).mean() > 0.98


def test_the_originals_stay_with_an_index(tmp_path):
    index = copied(built())
    index.save(tmp_path / "index")
    np.save(tmp_path / "x.npy", vectors())
    wanted, plain = by_definition(index, QUERIES_QD, vectors(), 10, 100), index.search(QUERIES_QD)
    loaded = Index.load(tmp_path / "index", refine=tmp_path / "x.npy")
    assert isinstance(loaded.refine, VectorSource) and loaded.refine.name == str(tmp_path / "x.npy")
    check(loaded.search(QUERIES_QD), wanted)
    np.testing.assert_array_equal(loaded.search(QUERIES_QD, refine=False), plain)
    check(loaded.search_and_reconstruct(QUERIES_QD)[:2], wanted)
    check(loaded.with_pairwise(None).search(QUERIES_QD), wanted)
    assert Index.load(tmp_path / "index").refine is None and loaded.emptied().refine is None
    check(Index.load(index.to_bytes(), refine=vectors()).search(QUERIES_QD), wanted)
    index.refine = vectors()
    check(index.search(QUERIES_QD), wanted)
    index.refine = None
    np.testing.assert_array_equal(index.search(QUERIES_QD), plain)
    found = qinco.find_neighbors(tmp_path / "index", QUERIES_QD, refine=tmp_path / "x.npy", num_refine=100)
    check((found.distances, found.ids), wanted)


def test_an_index_of_faiss_is_refined(tmp_path):
    codec, path = trained("ivf"), tmp_path / "index.faissindex"
    qinco.build_index(codec.encode(vectors()), path, codec=codec)
    for index in (Index.load(path, codec=codec), Index.load(path)):
        found = index.search(QUERIES_QD, 5, refine=vectors(), num_refine=30)
        check(found, by_definition(index, QUERIES_QD, vectors(), 5, 30))
    found = qinco.find_neighbors(path, QUERIES_QD, 5, refine=vectors(), num_refine=NUM_VECTORS, nprobe=NUM_LISTS)
    check((found.distances, found.ids), qinco.exhaustive_search(QUERIES_QD, vectors(), 5))


def test_what_cannot_refine_is_refused_before_a_search(tmp_path, monkeypatch):
    index = copied(built())
    monkeypatch.setattr(type(index.tables), "shortlist", None)
    with pytest.raises(DataError, match=r"id 1499 of the index is no row of refine \(1000 rows\)"):
        index.search(QUERIES_QD, refine=vectors()[:1000])
    with pytest.raises(DataError, match="must have dimension 6, that of the index, not 5"):
        index.search(QUERIES_QD, refine=vectors()[:, :5])
    with pytest.raises(ConfigError, match=r"num_refine must be between 10 and .*, not 9"):
        index.search(QUERIES_QD, refine=vectors(), num_refine=9)
    for refine in (None, False):
        with pytest.raises(ConfigError, match="refine="):
            index.search(QUERIES_QD, refine=refine, num_refine=50)
    np.save(tmp_path / "base.npy", vectors())
    with pytest.raises(DataError, match=re.escape(f"base.npz. Did you mean {tmp_path / 'base.npy'}")):
        index.search(QUERIES_QD, refine=tmp_path / "base.npz")
    with pytest.raises(DataError, match="No such file"):
        Index.load(tmp_path / "no index", refine=tmp_path / "none.npy")
    with pytest.raises(ConfigError, match="refine is for the search of an index"):
        qinco.find_neighbors((trained("plain"), vectors()), QUERIES_QD, refine=vectors())
    assert index.refine is None
    index.refine = vectors()
    index.add(vectors(3, 1))
    with pytest.raises(DataError, match="id 1502"):
        index.search(QUERIES_QD)
    index.remove([1500, 1501, 1502])  # the next id stays
    with pytest.raises(TypeError):
        index.search(QUERIES_QD)


def test_ids_that_are_no_rows_are_refused():
    index = Index.build(trained("plain"), vectors()[:100], 2, ids=np.arange(100) * 7 - 20)
    with pytest.raises(DataError, match=r"id -20 of the index is no row .* give refine= the vectors"):
        index.search(QUERIES_QD, refine=vectors())
    index.remove([-20, -13, -6])
    x_ND = vectors().copy()
    x_ND[index.ids] = index.reconstruct(index.ids)
    distances_QR, ids_QR = index.search(x_ND[index.ids[:5]], 1, 2, refine=x_ND)
    assert (distances_QR == 0).all() and np.isin(ids_QR, index.ids).all()


def test_originals_that_are_not_finite_are_named(tmp_path):
    x_ND = vectors().copy()
    x_ND[77, 3] = np.nan
    np.save(tmp_path / "x.npy", x_ND)
    index = built()
    index.search(QUERIES_QD, 3, filter=range(70), refine=tmp_path / "x.npy")
    with pytest.raises(DataError, match=r"row 77 of .*x.npy holds NaN in column 3"):
        index.search(QUERIES_QD, 3, filter=range(60, 90), refine=tmp_path / "x.npy")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_vectors_are_warned_of(kind, metric, caplog):
    index = copied(built(kind, metric))
    index.refine = vectors() * (3 if metric == "cosine" else 1)
    few = Index.build(trained("plain"), vectors()[:20], 1)
    few.refine = vectors()
    assert not caplog.text
    for others in (vectors()[::-1], vectors(seed=3), np.roll(vectors(), 1, axis=0)):
        caplog.clear()
        index.refine = others
        assert "refine seems to hold other vectors than the index" in caplog.text


def test_threads_search_at_the_same_time(tmp_path):
    np.save(tmp_path / "part-1.npy", vectors()[:800])
    np.save(tmp_path / "part-2.npy", vectors()[800:])
    index = copied(built())
    index.refine = str(tmp_path / "part-*.npy")
    wanted, found = index.search(QUERIES_QD), [None] * 4

    def search(number):
        for _ in range(5):
            found[number] = index.search(QUERIES_QD)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        np.testing.assert_array_equal(one, wanted)
