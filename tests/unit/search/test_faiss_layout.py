import struct

import faiss
import numpy as np
import pytest
from small_models import random_vectors

from qinco.errors import DataError
from qinco.search.faiss_file import FaissIndex, write_faiss
from qinco.search.faiss_layout import read_layout

DIM, QUERIES = 4, random_vectors(5, 4, seed=2)
X = random_vectors(400, DIM)


def written(path, key="IVF5_HNSW4,RQ2x2_Nqint8", num_lists=5, shape=(2, 4), count=30):
    generator = np.random.default_rng(0)
    codes, lists = generator.integers(shape[1], size=(count, shape[0])), generator.integers(num_lists, size=count)
    tables = generator.standard_normal((*shape, DIM)).astype(np.float32)
    write_faiss(path, key, X[:num_lists], tables, lambda: [(codes, lists, np.arange(count))], count)
    return path


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
    index = trained(key, metric)
    path = tmp_path / "x.faissindex"
    faiss.write_index(index, str(path))
    layout = read_layout(path)
    assert (len(layout), layout.has_graph, layout.inner_product) == (400, "HNSW" in key, metric == 0)
    lists = np.repeat(np.arange(len(layout.centroids_VD)), np.diff(layout.starts))
    codes, ids = layout.rows(lists, np.arange(400) - layout.starts[lists])
    decoded = layout.centroids_VD[lists] + layout.tables_MKD[np.arange(codes.shape[1]), codes].sum(1)
    index.make_direct_map()
    np.testing.assert_allclose(index.reconstruct_batch(ids), decoded, rtol=1e-5, atol=1e-5)
    assert sorted(ids) == list(range(400))
    index.nprobe = 2
    found = FaissIndex.open(path).shortlist(QUERIES, 5, 2, ef_search=16)
    np.testing.assert_array_equal(found.ids, index.search(QUERIES, 5)[1])


def test_a_map_of_ids_is_passed_over_and_sparse_sizes_are_read(tmp_path):
    path = tmp_path / "x.faissindex"
    for kind in (faiss.DirectMap.Array, faiss.DirectMap.Hashtable):
        index = trained("IVF40,RQ2x3_Nqint8", add=X[:3])
        index.set_direct_map_type(kind)
        faiss.write_index(index, str(path))
        assert b"sprs" in path.read_bytes()
        found = FaissIndex.open(path).shortlist(QUERIES, 3, 40)
        assert (np.sort(found.ids, axis=1) == [0, 1, 2]).all()


def _not_by_residual():
    index = faiss.index_factory(DIM, "IVF3,RQ2x3_Nqint8")
    index.by_residual = False
    index.train(X)
    return index


def _with_search_type(search_type):
    index = trained("IVF3,RQ2x3_Nqint8")
    index.rq.search_type = search_type
    return index


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (lambda: trained("IVF4,PQ2x3"), "its first bytes are 'IwPQ'.*RQ, LSQ"),
        (lambda: trained("Flat"), "its first bytes are 'IxF2'"),
        (lambda: trained("IVF4,PRQ2x2x3"), "its first bytes are 'IwPR'"),
        (lambda: trained("IVF4,RQ1x4_1x2"), r"its codebooks have \[4, 2\] bits"),
        (lambda: _with_search_type(faiss.AdditiveQuantizer.ST_norm_from_LUT), "its way to store norms"),
        (lambda: faiss.index_factory(DIM, "IVF4,RQ2x2"), "trained False"),
        (_not_by_residual, "by_residual"),
        (lambda: trained("IVF4(SQ8),RQ2x2_Nqint8"), "its coarse quantizer is of the kind 'IxSQ'"),
    ],
)
def test_other_indexes_are_refused_for_what_they_are(tmp_path, index, reason):
    path = tmp_path / "other.faissindex"
    faiss.write_index(index(), str(path))
    with pytest.raises(DataError, match=f"other.faissindex .*{reason}"):
        read_layout(path)


def test_other_files_are_refused_by_name(tmp_path):
    for name, content in (("empty", b""), ("short", b"Iw"), ("text", b"no index at all"), ("cut", b"IwRQ")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_layout(path)
    with pytest.raises(DataError, match="is a folder"):
        read_layout(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        read_layout(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (struct.pack("<4sQQ4s", b"ilar", 5, 2, b"full"), struct.pack("<4sQQ4s", b"ilod", 5, 2, b"full"), "'ilod'"),
        (struct.pack("<4sQQ", b"ilar", 5, 2), struct.pack("<4sQQ", b"ilar", 1 << 40, 2), "another number"),
        (b"full", b"null", "the sizes of its lists are of the kind 'null'"),
        (struct.pack("<4sQ", b"full", 5), struct.pack("<4sQ", b"full", 1 << 60), "1152921504606846976 values"),
        (struct.pack("<iq", DIM, 30), struct.pack("<iq", DIM, 31), "30 vectors, its header says 31"),
        (struct.pack("<QQQ", DIM, 2, 2), struct.pack("<QQQ", DIM, 1 << 50, 2), "1125899906842624 steps"),
        (struct.pack("<QQQQ", 2, 2, 2, 2), struct.pack("<QQQQ", 2, 2, 60, 60), r"\[60, 60\] bits"),
    ],
)
def test_damage_is_told(tmp_path, old, new, reason):
    path = written(tmp_path / "x.faissindex")
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(DataError, match=f"x.faissindex is not a sound faiss index: .*{reason}"):
        read_layout(path)


def test_every_truncation_is_refused(tmp_path):
    path = written(tmp_path / "x.faissindex")
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"x\.faissindex"):
            read_layout(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DataError, match=r"x\.faissindex"):
        read_layout(path)


@pytest.mark.parametrize(
    "made",
    [{}, {"key": "IVF60_HNSW2,LSQ2x2_Nfloat", "num_lists": 60}, {"key": "IVF5,RQ3x3", "shape": (3, 8)}],
    ids=["HNSW, RQ", "HNSW, LSQ", "flat, RQ"],
)
def test_damaged_files_are_refused_or_harmless(tmp_path, made):
    path = written(tmp_path / "x.faissindex", **made)
    good = np.fromfile(path, np.uint8)
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(len(good), size=500):
        bad = good.copy()
        bad[place] = generator.choice([0, 255, bad[place] ^ 1, bad[place] ^ 128])
        bad.tofile(path)
        try:
            index = FaissIndex.open(path)
            found = index.shortlist(QUERIES, 10, 3, 3)
            list(index.blocks(7))
        except DataError:
            refused += 1
        else:
            assert found.lists.max() < index.num_lists and found.codes.max() < index.codebook_size
    assert 0 < refused < 500
