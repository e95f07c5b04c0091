import numpy as np
import pytest
from small_indexes import DIM, KINDS, NUM_LISTS, NUM_VECTORS, decoded, trained, vectors
from small_models import random_model

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError, DataError
from qinco.search import build
from qinco.search.build import silent
from qinco.search.lists import InvertedLists
from qinco.search.metric import Metric
from qinco.vectors.rows import as_source


def test_codes_of_a_byte_are_needed():
    for kind in KINDS:
        build.check_codec(trained(kind))
    wide = Codec(random_model(ModelConfig(dim=3, num_steps=2, codebook_size=512, hidden_dim=4)), EncodeOptions())
    with pytest.raises(ConfigError, match=r"K=512 codewords \(codebook_size\): train one with 256 at most"):
        build.check_codec(wide)
    with pytest.raises(ConfigError, match="must be a Codec, not str"):
        build.check_codec("codec.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_the_radius_is_the_length_of_what_the_codec_knows(kind):
    lengths = np.linalg.norm(vectors(), axis=1)
    assert build.metric_of("cosine", trained(kind)).radius == pytest.approx(np.sqrt(np.square(lengths).mean()), rel=0.1)
    assert build.metric_of("l2", trained(kind)) == Metric("l2")


def test_prepared_vectors_are_read_as_the_originals():
    source = build.prepared(as_source(vectors().astype(np.float64)), Metric("cosine", 3.0))
    assert source.shape == (NUM_VECTORS, DIM)
    np.testing.assert_allclose(np.linalg.norm(source[10:20], axis=1), 3, rtol=1e-6)
    plain = as_source(vectors())
    assert build.prepared(plain, Metric("inner_product")) is plain
    broken = vectors().copy()
    broken[77, 2] = np.inf
    with pytest.raises(DataError, match="row 77 of vectors holds an infinite value"):
        list(build.prepared(as_source(broken), Metric("cosine")).blocks(50))


@pytest.mark.parametrize("kind", KINDS)
def test_all_vectors_are_encoded(kind):
    heard = []
    codes_NM, lists_N = build.encode_all(trained(kind), as_source(vectors()), lambda *told: heard.append(told))
    expected = trained(kind).encode(vectors())
    assert codes_NM.dtype == np.uint8 and np.array_equal(codes_NM, expected)
    assert (lists_N is None) if kind != "ivf" else np.array_equal(lists_N, expected.lists)
    assert heard[-1] == ("encoding", NUM_VECTORS, NUM_VECTORS)


def test_the_number_of_lists_follows_that_of_vectors():
    numbers = [build.choose_num_lists(None, count) for count in (1, 38, 78, 1000, 20_000, 10**6, 10**9)]
    assert numbers == [1, 1, 2, 25, 512, 4096, 131072]
    assert build.choose_num_lists(7, 7) == 7
    for wrong, message in ((8, "more than the 7 vectors"), (0, "between 1"), (2.0, "integer"), (True, "integer")):
        with pytest.raises(ConfigError, match=message):
            build.choose_num_lists(wrong, 7)


@pytest.mark.parametrize("kind", ["plain", "product"])
def test_lists_partition_what_is_decoded(kind):
    codes_NM = trained(kind).encode(vectors())
    for num_lists in (1, NUM_LISTS):
        centroids_VD, lists_N = build.partition(trained(kind), codes_NM, num_lists, 0, silent)
        distances_NV = np.square(decoded(kind)[:, None] - centroids_VD).sum(2)
        assert lists_N.dtype == np.int32 and centroids_VD.shape == (num_lists, DIM) and centroids_VD.dtype == np.float32
        chosen_N = np.take_along_axis(distances_NV, lists_N[:, None].astype(int), 1)[:, 0]
        np.testing.assert_allclose(chosen_N, distances_NV.min(1), rtol=1e-3, atol=1e-2)
        again_N = build.lists_of_decoded(trained(kind), codes_NM, centroids_VD, silent)
        assert np.array_equal(again_N, lists_N)


def test_lists_that_would_be_empty_are_left_out():
    """A vector that is all there is fills one list of many, which few visits would miss."""
    codes_NM = np.repeat(trained("plain").encode(vectors(3)), 50, axis=0)
    centroids_VD, lists_N = build.partition(trained("plain"), codes_NM, NUM_LISTS, 0, silent)
    assert len(centroids_VD) <= 3 and np.array_equal(np.unique(lists_N), np.arange(len(centroids_VD)))


def test_a_partition_depends_on_the_seed_alone():
    codes_NM = trained("plain").encode(vectors())
    first, again, other = (build.partition(trained("plain"), codes_NM, 5, seed, silent)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_sampled_rows_are_different_and_ascend():
    assert build.sample_rows(5, 5, 0).tolist() == [0, 1, 2, 3, 4]
    rows = build.sample_rows(1000, 100, 3)
    assert len(rows) == 100 and (np.diff(rows) > 0).all() and rows[-1] < 1000
    assert np.array_equal(rows, build.sample_rows(1000, 100, 3)) and not np.array_equal(
        rows, build.sample_rows(1000, 100, 4)
    )


def blocks_of(codes_NM, lists_N, x_ND):
    return lambda: ((codes_NM[i : i + 400], lists_N[i : i + 400], x_ND[i : i + 400]) for i in range(0, len(x_ND), 400))


def test_fitted_centroids_decode_better_vectors_they_have_not_seen():
    codec = trained("ivf")
    codes_NM, lists_N = codec.encode(vectors(6000, 1))
    seen, unseen = slice(0, 4500), slice(4500, None)
    blocks = blocks_of(codes_NM[seen], lists_N[seen], vectors(6000, 1)[seen])
    fixed = LookupDecoder.fit(blocks(), 4, 16, codec.coarse_centroids)
    fitted = build.fit_lookup(blocks, 4, 16, codec.coarse_centroids)
    errors = [
        np.square(decoder.decode(codes_NM[unseen], lists_N[unseen]) - vectors(6000, 1)[unseen]).sum(1).mean()
        for decoder in (fixed, fitted)
    ]
    assert errors[1] < 0.97 * errors[0]
    assert fitted.centroids_VD.dtype == np.float32 and fitted.centroids_VD.shape == (NUM_LISTS, DIM)


def test_centroids_of_lists_without_vectors_stay():
    codec = trained("ivf")
    codes_NM, lists_N = codec.encode(vectors())
    some = lists_N > 0
    fitted = build.fit_lookup(blocks_of(codes_NM[some], lists_N[some], vectors()[some]), 4, 16, codec.coarse_centroids)
    assert np.array_equal(fitted.centroids_VD[0], codec.coarse_centroids[0])
    assert not np.allclose(fitted.centroids_VD[1:], codec.coarse_centroids[1:])


def test_tables_are_fitted_to_the_rows_that_are_given():
    codec, rows_S = trained("ivf"), np.arange(0, NUM_VECTORS, 2)
    codes_NM, lists_N = codec.encode(vectors())
    tables = build.fit_tables(as_source(vectors()), codes_NM, lists_N, codec.coarse_centroids, 16, Metric("l2"), rows_S)
    there = vectors()[rows_S]
    alone = build.fit_tables(
        as_source(there),
        codes_NM[rows_S],
        lists_N[rows_S],
        codec.coarse_centroids,
        16,
        Metric("l2"),
        np.arange(len(there)),
    )
    assert np.array_equal(tables.lookup.tables_MKD, alone.lookup.tables_MKD)
    assert np.array_equal(tables.levels, alone.levels)
    with pytest.raises(DataError, match="holds no vectors that look-up tables could be fitted to"):
        build.fit_tables(as_source(there), codes_NM, lists_N, codec.coarse_centroids, 16, Metric("l2"), rows_S[:0])


@pytest.mark.parametrize("ids", [range(NUM_VECTORS), range(2**40, 2**40 + NUM_VECTORS), np.arange(NUM_VECTORS)[::-1]])
def test_lists_are_filled_in_blocks(monkeypatch, ids):
    monkeypatch.setattr(build, "BLOCK_ROWS", 400)
    codec, heard = trained("ivf"), []
    codes_NM, lists_N = codec.encode(vectors())
    rows = np.arange(NUM_VECTORS)
    tables = build.fit_tables(as_source(vectors()), codes_NM, lists_N, codec.coarse_centroids, 16, Metric("l2"), rows)
    filled = build.fill_lists(tables, lambda: build.in_blocks(codes_NM, lists_N), ids, lambda *told: heard.append(told))
    assert [done for _, done, _ in heard] == [400, 800, 1200, 1500]
    wanted_N = np.array(ids)
    assert filled.ids.dtype == (np.int64 if wanted_N.max() >= 1 << 32 else np.uint32)
    order = filled.ids.argsort()[wanted_N.argsort().argsort()]  # the position of each vector
    assert np.array_equal(filled.rows(order)[0], codes_NM) and np.array_equal(filled.lists_of(order), lists_N)
    assert np.array_equal(filled.rows(order)[1], tables.scalar_bytes(codes_NM, lists_N, 1))


def test_segments_are_merged_where_the_last_is_not_small():
    def segment(count):
        zeros_N = np.zeros(count, np.uint8)
        return InvertedLists.from_arrays(zeros_N[:, None], zeros_N, zeros_N.astype(int), np.arange(count), 1)

    def sizes(*counts):
        return [len(part) for part in build.settled(tuple(map(segment, counts)))]

    assert sizes(10) == [10] and sizes(10, 4) == [10, 4] and sizes(10, 5) == [15] and sizes(10, 4, 2) == [16]
    assert sizes(100, 40, 5) == [100, 40, 5] and sizes(0, 0) == [0] and sizes(0, 3) == [3] and sizes(9, 0) == [9, 0]
