import os
import resource
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from small_models import random_vectors

from qinco.compat.faiss_files import FaissIndex, describe_faiss_file, selected_ids, write_faiss
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.codes import Codes

DIM, QUERIES = 8, random_vectors(40, 8, seed=9)


class Made:
    """Random codes, lists and ids, centroids and tables: what an index is made of."""

    def __init__(self, num_lists=12, code_size=4, codebook_size=256, count=3000, seed=0):
        generator = np.random.default_rng(seed)
        self.centroids = random_vectors(num_lists, DIM, seed)
        self.tables = generator.standard_normal((code_size, codebook_size, DIM)).astype(np.float32)
        self.codes = generator.integers(codebook_size, size=(count, code_size))
        self.codes = self.codes.astype(np.uint8 if codebook_size <= 256 else np.uint16)
        self.lists = generator.integers(num_lists, size=count)
        self.ids = np.arange(count)

    @property
    def residuals(self):
        return self.tables[np.arange(len(self.tables)), self.codes].sum(1)

    @property
    def decoded(self):
        return self.centroids[self.lists] + self.residuals

    def write(self, path, key, **settings):
        lookup, codes = LookupDecoder(self.tables, self.centroids), Codes(self.codes, self.lists)
        write_faiss(path, key, lookup, codes, **settings)
        return path


def best(made, k, inner_product=False):
    """Values and ids of the k nearest decoded vectors."""
    values = -(QUERIES @ made.decoded.T) if inner_product else np.square(QUERIES[:, None] - made.decoded).sum(2)
    order = np.argsort(values, axis=1)[:, :k]
    return np.take_along_axis(values, order, 1), made.ids[order]


@pytest.mark.parametrize("inner_product", [False, True])
@pytest.mark.parametrize(
    ("key", "num_lists", "code_size", "codebook_size"),
    [
        ("IVF12_HNSW32,RQ4x8_Nfloat", 12, 4, 256), ("IVF12,LSQ4x8_Nfloat", 12, 4, 256), ("IVF7,RQ30x1", 7, 30, 2),
        ("IVF1_HNSW,RQ5x6_Nfloat", 1, 5, 64), ("IVF40_HNSW16,RQ6x5_Nfloat", 40, 6, 32),
        ("IVF7,RQ3x10_Nfloat", 7, 3, 1024),
    ],
)  # fmt: skip
def test_plain_faiss_finds_what_the_tables_say(tmp_path, key, num_lists, code_size, codebook_size, inner_product):
    made = Made(num_lists, code_size, codebook_size)
    path = made.write(tmp_path / "x.faissindex", key, inner_product=inner_product)
    index = faiss.read_index(str(path))
    index.nprobe = num_lists
    distances, ids = index.search(QUERIES, 10)
    values, expected = best(made, 10, inner_product)
    np.testing.assert_allclose(-distances if inner_product else distances, values, rtol=1e-4, atol=1e-3)
    assert (ids == expected).mean() > 0.98
    opened = FaissIndex(path)
    values, found, _, _, scanned = opened.shortlist(QUERIES, 10, num_lists, ef_search=num_lists)
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(-values if inner_product else values, distances)
    assert opened.inner_product == inner_product and (scanned == len(made.codes)).all()


def test_norms_are_quantized_over_the_range_of_those_that_are_stored(tmp_path):
    made = Made()
    path = made.write(tmp_path / "x.faissindex", "IVF12_HNSW32,RQ4x8_Nqint8")
    norms = np.square(made.residuals).sum(1)
    step = np.ptp(norms) / 256
    index = faiss.read_index(str(path))
    index.nprobe = 12
    distances, ids = index.search(QUERIES, len(made.codes))
    exact = np.square(QUERIES[:, None] - made.decoded).sum(2)
    errors = distances - np.take_along_axis(exact, ids, 1)
    assert np.abs(errors).max() <= step / 2 * 1.01 + 1e-3
    assert np.mean(ids[:, :10] == best(made, 10)[1]) > 0.5


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("IVF12_HNSW32,RQ4x8_Nqint8", Made()), ("IVF300,RQ3x3_Nqint4", Made(300, 3, 8, 100)),
        ("IVF1,RQ2x9_Nqint8", Made(1, 2, 512, 50)), ("IVF2_HNSW32,LSQ1x1_Nqint8", Made(2, 1, 2, 1)),
        ("IVF2_HNSW32,RQ1x1_Nqint8", Made(2, 1, 2, 0)),
    ],
)  # fmt: skip
def test_the_contents_come_back(tmp_path, key, made):
    index = FaissIndex(made.write(tmp_path / "x.faissindex", key))
    np.testing.assert_array_equal(index.centroids, made.centroids)
    np.testing.assert_array_equal(index.tables, made.tables)
    assert (len(index), index.dim) == (len(made.codes), DIM)
    assert (index.num_lists, index.num_codes, index.codebook_size) == (len(made.centroids), *made.tables.shape[:2])
    parts = list(index.blocks(70))
    assert all(len(codes) <= 70 for codes, _, _ in parts)
    if parts:
        codes, lists, ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        assert (codes.dtype, lists.dtype, ids.dtype) == (made.codes.dtype, np.int32, np.int64)
        order = np.argsort(ids)
        for found, expected in ((codes, made.codes), (lists, made.lists), (ids, made.ids)):
            np.testing.assert_array_equal(found[order], expected)


def test_shortlists_say_codes_and_lists_and_are_filled_up(tmp_path):
    made = Made(count=60)
    index = FaissIndex(made.write(tmp_path / "x.faissindex", "IVF12_HNSW32,RQ4x8_Nqint8"))
    values, ids, lists, codes, scanned = index.shortlist(QUERIES, 20, 2)
    is_there = ids >= 0
    np.testing.assert_array_equal(codes[is_there], made.codes[ids[is_there]])
    np.testing.assert_array_equal(lists[is_there], made.lists[ids[is_there]])
    assert (codes.dtype, lists.dtype) == (np.uint8, np.int32)
    assert 0 < is_there.sum() < is_there.size and (is_there[:, :-1] >= is_there[:, 1:]).all()
    assert (values[~is_there] == np.inf).all() and (lists[~is_there] == -1).all()
    assert (codes[~is_there] == 0).all() and (np.diff(values[is_there.all(1)]) >= 0).all()
    np.testing.assert_array_equal(scanned, is_there.sum(1))
    assert index.shortlist(QUERIES, 0, 2)[1].shape == (len(QUERIES), 0)
    assert index.shortlist(QUERIES[:0], 3, 2)[3].shape == (0, 3, 4)
    assert (index.shortlist(QUERIES, 100, 99)[1] >= 0).sum(1).tolist() == [60] * len(QUERIES)


def test_threads_with_different_efforts_and_probes_do_not_disturb_each_other(tmp_path):
    path = Made(400, 4, 256).write(tmp_path / "x.faissindex", "IVF400_HNSW4,RQ4x8_Nqint8")
    settings = [(1, 1), (1, 400), (8, 8), (8, 400)] * 4
    alone = {setting: FaissIndex(path).shortlist(QUERIES, 5, *setting)[1] for setting in set(settings)}
    assert (alone[1, 1] != alone[1, 400]).any()
    index = FaissIndex(path)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda setting: index.shortlist(QUERIES, 5, *setting)[1], settings))
    for setting, ids in zip(settings, together, strict=True):
        np.testing.assert_array_equal(ids, alone[setting])


def test_progress_ends_at_the_number_of_vectors(tmp_path):
    heard = []
    report = lambda stage, done, total, unit="vector": heard.append(done)  # noqa: E731
    Made().write(tmp_path / "x.faissindex", "IVF12,RQ4x8_Nqint8", progress=report, block_rows=100)
    assert heard == sorted(heard) and heard[-1] == 3000 and len(heard) == 60


@pytest.mark.parametrize(
    "key",
    [
        "IVF13_HNSW32,RQ4x8_Nqint8", "IVF12_HNSW32,RQ5x8_Nqint8", "IVF12_HNSW32,RQ4x7_Nqint8", "IVF12_HNSW1,RQ4x8",
        "IVF12_HNSW32,PQ4x8", "IVF12_HNSW32,RQ4x8_Ncqint8", "OPQ4,IVF12,RQ4x8", "IVF99999999999999999999,RQ4x8", "",
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_refused(tmp_path, key):
    with pytest.raises(ConfigError, match=f"^search.index_key={key}"):
        Made().write(tmp_path / "x.faissindex", key)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("Error in FileIOWriter at io.cpp:12: Error: 'n'"), MemoryError(), None])
def test_what_faiss_cannot_write_is_a_lack_of_resources(tmp_path, monkeypatch, error):
    def fail(index, path, write=faiss.write_index):
        if error:
            raise error
        write(index, path)
        os.truncate(path, 5000)  # faiss does not notice a full disk

    monkeypatch.setattr(faiss, "write_index", fail)
    with pytest.raises(ResourceError, match=r"x\.faissindex"):
        Made().write(tmp_path / "x.faissindex", "IVF12,RQ4x8_Nqint8")
    assert not list(tmp_path.iterdir())


def test_selectors_admit_what_they_admit():
    ids = np.random.default_rng(0).permutation(5000) * 3
    some = np.array([3, 6, 7, 10**15, 6])
    for selector in (
        faiss.IDSelectorBatch(some), faiss.IDSelectorArray(some), faiss.IDSelectorRange(100, 200),
        faiss.IDSelectorNot(faiss.IDSelectorRange(100, 12000)), faiss.IDSelectorAll(),
        faiss.IDSelectorBitmap(np.array([0x55, 0xFF], np.uint8)),
    ):  # fmt: skip
        expected = sorted(int(i) for i in ids if selector.is_member(int(i)))
        found = selected_ids(selector, ids.astype(np.uint32), block=700)
        assert found.dtype == np.int64 and found.tolist() == expected and expected
    assert selected_ids(faiss.IDSelectorAll(), np.array([4, 4, 2])).tolist() == [2, 4]
    assert selected_ids(faiss.IDSelectorAll(), ids[:0]).tolist() == []


# Reading what faiss made, and what is damaged


X = random_vectors(400, DIM)


def trained(key, metric=faiss.METRIC_L2, add=X):
    index = faiss.index_factory(DIM, key, metric)
    index.train(X)
    index.add(add)
    return index


@pytest.mark.parametrize(
    "key",
    ["IVF3,RQ2x3_Nqint8", "IVF3_HNSW32,RQ3x2", "IVF1,RQ2x3_Nfloat", "IVF5,RQ2x3_Nqint4", "IVF9_HNSW4,LSQ3x3_Nqint8"],
)
@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
def test_indexes_that_faiss_trained_itself_are_read(tmp_path, key, metric):
    index, path = trained(key, metric), tmp_path / "x.faissindex"
    faiss.write_index(index, str(path))
    opened = FaissIndex(path)
    assert (len(opened), opened.has_graph, opened.inner_product) == (400, "HNSW" in key, metric == 0)
    codes, lists, ids = (np.concatenate(columns) for columns in zip(*opened.blocks(70), strict=True))
    decoded = opened.centroids[lists] + opened.tables[np.arange(codes.shape[1]), codes].sum(1)
    index.make_direct_map()
    np.testing.assert_allclose(index.reconstruct_batch(ids), decoded, rtol=1e-5, atol=1e-5)
    assert sorted(ids) == list(range(400))
    index.nprobe = 2
    np.testing.assert_array_equal(opened.shortlist(QUERIES, 5, 2, ef_search=16)[1], index.search(QUERIES, 5)[1])
    described = describe_faiss_file(path)
    assert (described["num_vectors"], described["num_codes"]) == (400, opened.num_codes)
    assert described["bytes_per_vector"] == index.code_size + 8


@pytest.mark.parametrize("kind", [faiss.DirectMap.NoMap, faiss.DirectMap.Hashtable])
def test_maps_of_ids_and_sparse_lists_are_read(tmp_path, kind):
    index, path = trained("IVF40,RQ2x3_Nqint8", add=X[:0]), tmp_path / "x.faissindex"
    index.set_direct_map_type(kind)
    ids = np.array([0, 7, 10**12])
    index.add_with_ids(X[:3], ids)
    faiss.write_index(index, str(path))
    assert b"sprs" in path.read_bytes()
    assert (np.sort(FaissIndex(path).shortlist(QUERIES, 3, 40)[1], axis=1) == ids).all()


def changed(by_residual=True, search_type=faiss.AdditiveQuantizer.ST_norm_qint8):
    index = trained("IVF3,RQ2x3_Nqint8")
    index.by_residual, index.rq.search_type = by_residual, search_type
    return index


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (lambda: trained("IVF4,PQ2x3"), "IwPQ"),
        (lambda: trained("Flat"), "IxF2"),
        (lambda: trained("IVF4,PRQ2x2x3"), "IwPR"),
        (lambda: trained("IVF4,RQ1x4_1x2"), r"\[4, 2\]"),
        (lambda: changed(search_type=faiss.AdditiveQuantizer.ST_norm_from_LUT), ""),
        (lambda: faiss.index_factory(DIM, "IVF4,RQ2x2"), ""),
        (lambda: changed(by_residual=False), "by_residual"),
        (lambda: trained("IVF4(SQ8),RQ2x2_Nqint8"), "coarse"),
    ],
)
def test_other_indexes_are_refused(tmp_path, index, value):
    path = tmp_path / "other.faissindex"
    faiss.write_index(index(), str(path))
    with pytest.raises(DataError, match=f"other.faissindex.*{value}"):
        FaissIndex(path)


def of_level(hnsw, level):
    """Places in `neighbors` of the links on a level of a vector that has most levels."""
    vector, most = hnsw.entry_point, faiss.vector_to_array(hnsw.cum_nneighbor_per_level)
    begin = faiss.vector_to_array(hnsw.offsets).astype(int)[vector]
    return slice(begin + most[level], begin + most[level + 1])


def replaced(name, change):
    """What changes an array of a graph."""

    def damage(hnsw):
        array = faiss.vector_to_array(getattr(hnsw, name)).copy()
        change(hnsw, array)
        vector = type(getattr(hnsw, name))()
        vector.resize(len(array))
        setattr(hnsw, name, vector)
        faiss.copy_array_to_vector(array, getattr(hnsw, name))

    return damage


def lowest(hnsw):
    """The last vector that is on no level but the first."""
    return int(np.flatnonzero(faiss.vector_to_array(hnsw.levels) == 1)[-1])


@pytest.mark.parametrize(
    "damage",
    [
        replaced("neighbors", lambda hnsw, array: array.__setitem__(of_level(hnsw, 1), lowest(hnsw))),
        replaced("neighbors", lambda hnsw, array: array.__setitem__(of_level(hnsw, hnsw.max_level), lowest(hnsw))),
        replaced("neighbors", lambda hnsw, array: array.__setitem__(of_level(hnsw, 0), 200)),
        replaced("neighbors", lambda hnsw, array: array.__setitem__(of_level(hnsw, 0), -2)),
        replaced("levels", lambda hnsw, array: array.__setitem__(lowest(hnsw), 2)),
        replaced("levels", lambda hnsw, array: array.__setitem__(hnsw.entry_point, 1)),
        replaced("levels", lambda hnsw, array: array.__setitem__(lowest(hnsw), 0)),
        replaced("offsets", lambda hnsw, array: array.__setitem__(slice(20, 22), array[[21, 20]])),
        replaced("offsets", lambda hnsw, array: array.__setitem__(-1, array[-1] + 4)),
        replaced("cum_nneighbor_per_level", lambda hnsw, array: array.__setitem__(1, array[1] + 1)),
        replaced("cum_nneighbor_per_level", lambda hnsw, array: array.__setitem__(0, -4)),
        lambda hnsw: setattr(hnsw, "entry_point", 200),
        lambda hnsw: setattr(hnsw, "entry_point", -1),
        lambda hnsw: setattr(hnsw, "entry_point", lowest(hnsw)),
        lambda hnsw: setattr(hnsw, "max_level", hnsw.max_level + 1),
        lambda hnsw: setattr(hnsw, "max_level", 30),
    ],
)
def test_graphs_that_lead_out_of_their_arrays_are_refused(tmp_path, damage):
    path = Made(200, 2, 4, 30).write(tmp_path / "x.faissindex", "IVF200_HNSW4,RQ2x2_Nqint8")
    assert FaissIndex(path).has_graph
    index = faiss.read_index(str(path))
    hnsw = faiss.downcast_index(index.quantizer).hnsw
    assert hnsw.max_level > 1
    damage(hnsw)
    faiss.write_index(index, str(path))
    with pytest.raises(DataError, match=r"x\.faissindex"):
        FaissIndex(path)


@pytest.mark.parametrize(
    "coarse", [faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_8bit, 4), faiss.IndexHNSWFlatPanorama(DIM, 4, 2)]
)
def test_graphs_over_other_vectors_are_refused(tmp_path, coarse):
    index = faiss.IndexIVFResidualQuantizer(coarse, DIM, 9, 2, 3)
    index.train(X)
    index.add(X)
    faiss.write_index(index, str(tmp_path / "x.faissindex"))
    with pytest.raises(DataError, match="coarse"):
        FaissIndex(tmp_path / "x.faissindex")


@pytest.mark.parametrize("every", [19, pytest.param(7, marks=pytest.mark.slow)])
def test_other_and_truncated_files_are_refused_by_name(tmp_path, every):
    path = Made(5, 2, 4, 30).write(tmp_path / "x.faissindex", "IVF5_HNSW4,RQ2x2_Nqint8")
    content = path.read_bytes()
    truncated = [*(content[:size] for size in range(0, len(content), every)), content + b"\0"]
    for damaged in [*truncated, b"Iw", b"no index at all", b"IwRQ"]:
        path.write_bytes(damaged)
        for read in (FaissIndex, describe_faiss_file):
            with pytest.raises(DataError, match=r"x\.faissindex"):
                read(path)


def test_promised_sizes_take_no_memory(tmp_path):
    path = Made(5, 2, 4, 30).write(tmp_path / "x.faissindex", "IVF5,RQ2x2_Nqint8")
    content = path.read_bytes()
    size = (5 * DIM).to_bytes(8, "little")
    assert size in content
    path.write_bytes(content.replace(size, (1 << 34).to_bytes(8, "little"), 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"x\.faissindex"):
        FaissIndex(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (1 << 16)


@pytest.mark.parametrize(
    ("key", "sizes"),
    [("IVF5_HNSW4,RQ2x2_Nqint8", (5, 2, 4)), ("IVF60_HNSW2,LSQ2x2_Nfloat", (60, 2, 4)), ("IVF5,RQ3x3", (5, 3, 8))],
)
@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_harmless(tmp_path, key, sizes, count):
    path = Made(*sizes, 30).write(tmp_path / "x.faissindex", key)
    good, generator, refused = np.fromfile(path, np.uint8), np.random.default_rng(0), 0
    for place in generator.integers(len(good), size=count):
        bad = good.copy()
        bad[place] = generator.choice([0, 255, bad[place] ^ 1, bad[place] ^ 128])
        bad.tofile(path)
        try:
            index = FaissIndex(path)
            _, _, lists, codes, _ = index.shortlist(QUERIES, 10, 3, 3)
            list(index.blocks(7))
        except DataError:
            refused += 1
        else:
            assert lists.max() < index.num_lists and codes.max() < index.codebook_size
    assert 0 < refused < count
