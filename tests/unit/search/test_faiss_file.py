import os
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from small_models import random_vectors

from qinco.errors import ConfigError, DataError, QincoError, ResourceError
from qinco.search import faiss_file
from qinco.search.faiss_file import FaissIndex, admitted_ids, write_faiss

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
        self.ids = generator.permutation(count) * 5 + 10**12

    @property
    def residuals(self):
        return self.tables[np.arange(len(self.tables)), self.codes].sum(1)

    @property
    def decoded(self):
        return self.centroids[self.lists] + self.residuals

    def blocks(self, size=700):
        for first in range(0, len(self.codes), size):
            part = slice(first, first + size)
            yield self.codes[part], self.lists[part], self.ids[part]

    def write(self, path, key, **settings):
        write_faiss(path, key, self.centroids, self.tables, self.blocks, len(self.codes), **settings)
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
        ("IVF12_HNSW32,RQ4x8_Nfloat", 12, 4, 256),
        ("IVF12,LSQ4x8_Nfloat", 12, 4, 256),
        ("IVF1_HNSW,RQ5x6_Nfloat", 1, 5, 64),
        ("IVF40_HNSW16,RQ6x5_Nfloat", 40, 6, 32),
        ("IVF7,RQ3x10_Nfloat", 7, 3, 1024),
        ("IVF7,RQ30x1", 7, 30, 2),
    ],
)
def test_plain_faiss_finds_what_the_tables_say(tmp_path, key, num_lists, code_size, codebook_size, inner_product):
    made = Made(num_lists, code_size, codebook_size)
    path = made.write(tmp_path / "x.faissindex", key, inner_product=inner_product)
    index = faiss.read_index(str(path))
    index.nprobe = num_lists
    distances, ids = index.search(QUERIES, 10)
    values, expected = best(made, 10, inner_product)
    np.testing.assert_allclose(-distances if inner_product else distances, values, rtol=1e-4, atol=1e-3)
    assert (ids == expected).mean() > 0.98
    opened = FaissIndex.open(path)
    found = opened.shortlist(QUERIES, 10, num_lists, ef_search=num_lists)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_array_equal(-found.values if inner_product else found.values, distances)
    assert opened.inner_product == inner_product and (found.scanned == len(made.codes)).all()


def test_norms_are_quantized_over_the_range_of_those_that_are_stored(tmp_path):
    made = Made()
    path = made.write(tmp_path / "x.faissindex", "IVF12_HNSW32,RQ4x8_Nqint8")
    norms = np.square(made.residuals).sum(1)
    step = np.ptp(norms) / 256
    index = faiss.read_index(str(path))
    index.nprobe = 12
    distances, ids = index.search(QUERIES, len(made.codes))
    exact = np.square(QUERIES[:, None] - made.decoded).sum(2)
    position = np.empty(len(made.codes), int)
    position[(made.ids - 10**12) // 5] = np.arange(len(made.codes))
    errors = distances - np.take_along_axis(exact, position[(ids - 10**12) // 5], 1)
    assert np.abs(errors).max() <= step / 2 * 1.01 + 1e-3
    assert np.mean(ids[:, :10] == best(made, 10)[1]) > 0.5


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("IVF12_HNSW32,RQ4x8_Nqint8", Made()),
        ("IVF300,RQ3x3_Nqint4", Made(300, 3, 8, 100)),
        ("IVF1,RQ2x9_Nqint8", Made(1, 2, 512, 50)),
        ("IVF2_HNSW32,LSQ1x1_Nqint8", Made(2, 1, 2, 1)),
        ("IVF2_HNSW32,RQ1x1_Nqint8", Made(2, 1, 2, 0)),
    ],
)
def test_the_contents_come_back(tmp_path, key, made):
    index = FaissIndex.open(made.write(tmp_path / "x.faissindex", key))
    np.testing.assert_array_equal(index.centroids, made.centroids)
    np.testing.assert_array_equal(index.tables, made.tables)
    assert (len(index), index.dim) == (len(made.codes), DIM)
    assert (index.num_lists, index.code_size, index.codebook_size) == (len(made.centroids), *made.tables.shape[:2])
    parts = list(index.blocks(70))
    assert all(len(codes) <= 70 for codes, _, _ in parts)
    if parts:
        codes, lists, ids = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        assert (codes.dtype, lists.dtype, ids.dtype) == (made.codes.dtype, np.int32, np.int64)
        mine, theirs = np.argsort(ids), np.argsort(made.ids)
        for found, expected in ((codes, made.codes), (lists, made.lists), (ids, made.ids)):
            np.testing.assert_array_equal(found[mine], expected[theirs])


def test_shortlists_say_codes_and_lists_and_are_filled_up(tmp_path):
    made = Made(count=60)
    index = FaissIndex.open(made.write(tmp_path / "x.faissindex", "IVF12_HNSW32,RQ4x8_Nqint8"))
    found = index.shortlist(QUERIES, 20, 2)
    is_there = found.ids >= 0
    rows = np.argsort(made.ids)[np.searchsorted(np.sort(made.ids), found.ids[is_there])]
    np.testing.assert_array_equal(found.codes[is_there], made.codes[rows])
    np.testing.assert_array_equal(found.lists[is_there], made.lists[rows])
    assert (found.codes.dtype, found.lists.dtype) == (np.uint8, np.int32)
    assert 0 < is_there.sum() < is_there.size and (is_there[:, :-1] >= is_there[:, 1:]).all()
    assert (found.values[~is_there] == np.inf).all() and (found.lists[~is_there] == -1).all()
    assert (found.codes[~is_there] == 0).all() and (np.diff(found.values[is_there.all(1)]) >= 0).all()
    np.testing.assert_array_equal(found.scanned, is_there.sum(1))
    assert index.shortlist(QUERIES, 0, 2).ids.shape == (len(QUERIES), 0)
    assert index.shortlist(QUERIES[:0], 3, 2).codes.shape == (0, 3, 4)
    assert (index.shortlist(QUERIES, 100, 99).ids >= 0).sum(1).tolist() == [60] * len(QUERIES)


def test_threads_with_different_efforts_and_probes_do_not_disturb_each_other(tmp_path):
    path = Made(400, 4, 256).write(tmp_path / "x.faissindex", "IVF400_HNSW4,RQ4x8_Nqint8")
    settings = [(1, 1), (1, 400), (8, 8), (8, 400)] * 4
    alone = {setting: FaissIndex.open(path).shortlist(QUERIES, 5, *setting).ids for setting in set(settings)}
    assert (alone[1, 1] != alone[1, 400]).any()
    index = FaissIndex.open(path)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda setting: index.shortlist(QUERIES, 5, *setting).ids, settings))
    for setting, ids in zip(settings, together, strict=True):
        np.testing.assert_array_equal(ids, alone[setting])


def test_progress_ends_at_the_number_of_vectors(tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr(faiss_file, "_PIECE_FLOATS", 100 * DIM)
    Made().write(tmp_path / "x.faissindex", "IVF12,RQ4x8_Nqint8", on_progress=heard.append)
    assert heard == sorted(heard) and heard[-1] == 3000 and len(heard) == 2 * (4 * 7 + 2)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("IVF13_HNSW32,RQ4x8_Nqint8", "is for 13 lists, there are 12: give IVF12_HNSW32,RQ4x8_Nqint8"),
        ("IVF12_HNSW32,RQ5x8_Nqint8", "is for 5 codes, there are 4"),
        ("IVF12_HNSW32,RQ4x7_Nqint8", "is for 7 bits a code, there are 8"),
        ("IVF12_HNSW1,RQ4x8", "HNSW takes 2 to 512 links"),
        ("IVF12_HNSW32,PQ4x8", "no key of an IVF additive quantizer"),
        ("IVF12_HNSW32,RQ4x8_Ncqint8", "no key of an IVF additive quantizer"),
        ("OPQ4,IVF12,RQ4x8", "no key of an IVF additive quantizer"),
        ("IVF99999999999999999999,RQ4x8", "no key of an IVF additive quantizer"),
        ("", "no key of an IVF additive quantizer"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tmp_path, key, reason):
    with pytest.raises(ConfigError, match=f"^search.index_key={key}.*{reason}"):
        Made().write(tmp_path / "x.faissindex", key)
    assert not list(tmp_path.iterdir())


def _with(**changes):
    made = Made()
    for name, change in changes.items():
        setattr(made, name, change(getattr(made, name)))
    return made


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (_with(codes=lambda codes: codes.astype(int) + 1), "codes are out of range"),
        (_with(codes=lambda codes: codes[:, :3]), "3 columns, the tables are for 4"),
        (_with(lists=lambda lists: lists + 1), "lists are out of range"),
        (_with(lists=lambda lists: lists[:-1]), "lists must be"),
        (_with(ids=lambda ids: ids / 2), "ids must be 700 integers.*float64"),
    ],
)
def test_codes_that_do_not_fit_are_refused_and_what_was_there_stays(tmp_path, made, reason):
    path = tmp_path / "x.faissindex"
    path.write_bytes(b"before")
    with pytest.raises(DataError, match=reason):
        made.write(path, "IVF12,RQ4x8_Nqint8")
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_another_number_of_vectors_is_refused(tmp_path):
    made = Made()
    with pytest.raises(DataError, match="there are 3000 codes where 3001 were expected"):
        write_faiss(tmp_path / "x", "IVF12,RQ4x8", made.centroids, made.tables, made.blocks, 3001)


def _full_disk(index, path):
    raise RuntimeError("Error in faiss::FileIOWriter at io.cpp:12: Error: 'n' failed: No space left on device")


def _full_disk_unnoticed(index, path, write=faiss.write_index):
    write(index, path)
    os.truncate(path, 5000)


def _no_memory(index, path):
    raise MemoryError


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_full_disk, "cannot write .*x.faissindex: 'n' failed: No space left on device$"),
        (_full_disk_unnoticed, "cannot write .*x.faissindex: .*is the disk full"),
        (_no_memory, "not enough memory for the index .*x.faissindex of 3000 vectors"),
    ],
)
def test_what_faiss_cannot_write_is_a_lack_of_resources(tmp_path, monkeypatch, write, reason):
    monkeypatch.setattr(faiss, "write_index", write)
    with pytest.raises(ResourceError, match=reason):
        Made().write(tmp_path / "x.faissindex", "IVF12,RQ4x8_Nqint8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [RuntimeError("Error: unknown kind"), MemoryError()])
def test_what_faiss_cannot_read_is_an_error_of_ours(tmp_path, monkeypatch, failure):
    index = FaissIndex.open(Made().write(tmp_path / "x.faissindex", "IVF12,RQ4x8_Nqint8"))

    def read(*_):
        raise failure

    monkeypatch.setattr(faiss, "read_index", read)
    with pytest.raises(QincoError, match="faissindex"):
        index.shortlist(QUERIES, 3, 1)


def test_selectors_admit_what_they_admit():
    ids = np.random.default_rng(0).permutation(5000) * 3
    some = np.array([3, 6, 7, 10**15, 6])
    for selector in (
        faiss.IDSelectorBatch(some),
        faiss.IDSelectorArray(some),
        faiss.IDSelectorRange(100, 200),
        faiss.IDSelectorNot(faiss.IDSelectorRange(100, 12000)),
        faiss.IDSelectorAll(),
        faiss.IDSelectorBitmap(np.array([0x55, 0xFF], np.uint8)),
    ):
        expected = sorted(int(i) for i in ids if selector.is_member(int(i)))
        found = admitted_ids(selector, ids.astype(np.uint32))
        assert found.dtype == np.int64 and found.tolist() == expected and expected
    assert admitted_ids(faiss.IDSelectorAll(), np.array([4, 4, 2])).tolist() == [2, 4]
    assert admitted_ids(faiss.IDSelectorAll(), ids[:0]).tolist() == []


def test_selectors_are_asked_in_pieces(monkeypatch):
    monkeypatch.setattr(faiss_file, "_SELECTED_AT_ONCE", 7)
    ids = np.arange(40)[::-1]
    assert admitted_ids(faiss.IDSelectorRange(5, 30), ids).tolist() == list(range(5, 30))
