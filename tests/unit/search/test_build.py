"""What indexes are built by: samples that tables are fitted to, partitions, lists filled in blocks; both builders."""

import numpy as np
import pytest
from small_indexes import DIM, KINDS, NUM_LISTS, NUM_VECTORS, decoded, trained, vectors
from small_lists import lists_of

import qinco
from qinco.decoders.lookup import LookupDecoder
from qinco.errors import ConfigError, DataError
from qinco.search.build import choose_num_lists, fit_tables, metric_of_codec, partition, prepared
from qinco.search.fill import fill_lists
from qinco.search.fit import fit_lookup, fit_lookup_decoder
from qinco.search.index import Index
from qinco.search.metric import L2, Metric
from qinco.search.parts import merge_small
from qinco.search.sample import FitSample, assign_decoded
from qinco.store.decoder import load_pairwise
from qinco.vectors.rows import as_source


def sample_of(codes, x_ND) -> FitSample:
    """All of these vectors."""
    return FitSample.of_vectors(codes, as_source(x_ND), np.arange(len(x_ND)), holds_out=False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_unit_length_is_that_of_training_vectors(kind):
    length = np.sqrt(np.square(vectors()).sum(1).mean())
    assert metric_of_codec("cosine", trained(kind)).unit_length == pytest.approx(length, rel=0.1)
    assert metric_of_codec("l2", trained(kind)) == L2


def test_prepared_vectors_are_read_as_the_originals():
    source = prepared(as_source(vectors().astype(np.float64)), Metric("cosine", 3.0))
    assert source.shape == (NUM_VECTORS, DIM)
    np.testing.assert_allclose(np.linalg.norm(source[10:20], axis=1), 3, rtol=1e-6)
    plain = as_source(vectors())
    assert prepared(plain, Metric("inner_product")) is plain
    broken = vectors().copy()
    broken[77, 2] = np.inf
    with pytest.raises(DataError, match="row 77"):
        list(prepared(as_source(broken), Metric("cosine")).blocks(50))


def test_the_number_of_lists_follows_that_of_vectors():
    numbers = [choose_num_lists(None, count) for count in (1, 38, 78, 1000, 20_000, 10**6, 10**9)]
    assert numbers == [1, 1, 2, 25, 512, 4096, 131072]
    assert choose_num_lists(7, 7) == 7
    for wrong in (8, 0, 2.0, True):
        with pytest.raises(ConfigError, match="num_lists"):
            choose_num_lists(wrong, 7)


@pytest.mark.parametrize("kind", ["plain", "product"])
def test_lists_partition_what_is_decoded(kind):
    codes = trained(kind).encode(vectors())
    for num_lists in (1, NUM_LISTS):
        centroids_VD, lists_N = partition(trained(kind), codes, num_lists, 0)
        distances_NV = np.square(decoded(kind)[:, None] - centroids_VD).sum(2)
        assert lists_N.dtype == np.int32 and centroids_VD.shape == (num_lists, DIM) and centroids_VD.dtype == np.float32
        chosen_N = np.take_along_axis(distances_NV, lists_N[:, None].astype(int), 1)[:, 0]
        np.testing.assert_allclose(chosen_N, distances_NV.min(1), rtol=1e-3, atol=1e-2)
        assert np.array_equal(assign_decoded(trained(kind), codes, centroids_VD), lists_N)


def test_lists_that_would_be_empty_are_left_out():
    """A vector that is all there is fills one list of many, which few visits would miss."""
    codes = trained("plain").encode(np.repeat(vectors(3), 50, axis=0))
    centroids_VD, lists_N = partition(trained("plain"), codes, NUM_LISTS, 0)
    assert len(centroids_VD) <= 3 and np.array_equal(np.unique(lists_N), np.arange(len(centroids_VD)))


def test_a_partition_depends_on_the_seed_alone():
    codes = trained("plain").encode(vectors())
    first, again, other = (partition(trained("plain"), codes, 5, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_fitted_centroids_decode_better_vectors_they_have_not_seen():
    codec, x_ND = trained("ivf"), vectors(20_000, 1)
    codes = codec.encode(x_ND)
    seen, unseen = slice(0, 4500), slice(4500, None)
    sample = sample_of(codes[seen], x_ND[seen])
    both = [fit_lookup(sample, 16, codec.coarse_centroids, moves_centroids=moves) for moves in (False, True)]
    errors_2N = np.stack([
        np.square(decoder.decode(codes[unseen].codes, codes[unseen].lists) - x_ND[unseen]).sum(1) for decoder in both
    ])  # fmt: skip
    gains_N = errors_2N[0] - errors_2N[1]
    assert gains_N.mean() > 3 * gains_N.std() / np.sqrt(len(gains_N))
    assert both[1].centroids_VD.dtype == np.float32 and both[1].centroids_VD.shape == (NUM_LISTS, DIM)


def test_nothing_is_fitted_to_vectors_held_out():
    codes, x_ND = trained("plain").encode(vectors()), vectors().copy()
    sample = FitSample.of_vectors(codes, as_source(x_ND), np.arange(NUM_VECTORS))
    expected = fit_lookup(sample, 16, None).tables_MKD
    assert sample.is_held_T.sum() == NUM_VECTORS / 20
    x_ND[sample.is_held_T] += 100
    assert np.array_equal(fit_lookup(sample, 16, None).tables_MKD, expected)
    assert sample.mse(LookupDecoder(expected).decode)[0] > 100
    with pytest.raises(DataError, match="empty"):
        fit_lookup(sample_of(codes[:0], x_ND[:0]), 16, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lookup_decoder_is_fitted_to_codes_or_encodes_them(kind):
    codec = trained(kind)
    codes = codec.encode(vectors())
    one = qinco.fit_lookup_decoder(vectors(), codec=codec)
    other = fit_lookup_decoder(vectors(), codes, codec=codec)
    assert np.array_equal(one.decoder.tables_MKD, other.decoder.tables_MKD) and one.mse == other.mse
    assert one.num_vectors == NUM_VECTORS * 19 // 20
    with pytest.raises(ConfigError, match="codec"):
        fit_lookup_decoder(vectors())


def test_a_pairwise_decoder_is_fitted_to_codes(tmp_path):
    codec, output = trained("ivf"), tmp_path / "pairs.safetensors"
    codes = codec.encode(vectors(4000, 2))
    fitted = qinco.fit_pairwise_decoder(
        vectors(4000, 2), codes, codec=codec, pairs_per_code=0.5, dtype="float16", output=output
    )
    assert np.array_equal(load_pairwise(output).tables_PJD, fitted.decoder.tables_PJD)
    for wrong in (output, tmp_path / "pairs.npy"):
        with pytest.raises(ConfigError, match=wrong.name):
            qinco.fit_pairwise_decoder(vectors(4000, 2), codes, codec=codec, output=wrong)
    codes.save(tmp_path / "codes", codec)
    with pytest.raises(ConfigError, match="is read"):
        within = tmp_path / "codes" / "pairs.safetensors"
        qinco.fit_pairwise_decoder(vectors(4000, 2), tmp_path / "codes", codec=codec, output=within)
    assert fitted.decoder.num_pairs <= 2 and fitted.decoder.tables_PJD.dtype == np.float16
    assert fitted.mse <= 1.01 * fitted.mse_lookup
    held = slice(None, None, 20)
    error = np.square(codec.decode(codes[held]) - vectors(4000, 2)[held]).sum(1).mean()
    assert fitted.mse_neural == pytest.approx(error, rel=1e-3)
    with pytest.raises(DataError, match="4000"):
        qinco.fit_pairwise_decoder(vectors(), codes, codec=codec)


@pytest.mark.parametrize("ids", [range(NUM_VECTORS), range(2**40, 2**40 + NUM_VECTORS), np.arange(NUM_VECTORS)[::-1]])
def test_lists_are_filled_in_blocks(ids):
    codec, heard = trained("ivf"), []
    codes = codec.encode(vectors())
    tables = fit_tables(sample_of(codes, vectors()), 16, codec.coarse_centroids, L2, adds_centroids=True)
    filled = fill_lists(tables, codes, ids, lambda *told: heard.append(told), block_rows=400)
    assert [done for _, done, _ in heard] == [400, 800, 1200, 1500]
    wanted_N = np.array(ids)
    assert filled.ids.dtype == (np.int64 if wanted_N.max() >= 1 << 32 else np.uint32)
    order = filled.ids.argsort()[wanted_N.argsort().argsort()]  # the position of each vector
    assert np.array_equal(filled.rows(order)[0], codes.codes) and np.array_equal(filled.lists_of(order), codes.lists)
    assert np.array_equal(filled.rows(order)[1], tables.norm_codes(codes.codes, codes.lists, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_built_of_codes_is_that_of_their_vectors(kind, tmp_path):
    codec, heard = trained(kind), []
    codes = codec.encode(vectors())
    lists = {} if kind == "ivf" else {"num_lists": NUM_LISTS}
    built = qinco.build_index(
        codes, tmp_path / "index", codec=codec, **lists, progress=lambda *told, **fields: heard.append(told),
        vectors=vectors(),
    )  # fmt: skip
    assert (built.num_vectors, built.num_lists) == (NUM_VECTORS, NUM_LISTS) and built.mse_lookup > 0
    found, expected = Index.load(tmp_path / "index"), Index.build(codec, vectors(), **lists)
    everything = {"nprobe": NUM_LISTS, "num_short": NUM_VECTORS, "ranking": "decoded"}
    assert np.array_equal(
        found.search(vectors(30, 1), **everything)[0], expected.search(vectors(30, 1), **everything)[0]
    )
    assert found.bytes_per_vector == built.bytes_per_vector
    assert {"checking codes", "fitting look-up tables", "filling lists"} <= {stage for stage, *_ in heard}


def test_what_cannot_be_built_of_codes_is_refused(tmp_path):
    codec, output = trained("plain"), tmp_path / "index"
    codes = codec.encode(vectors())
    for options, error in (
        ({}, ConfigError), ({"codebook_size": 16}, ConfigError), ({"codec": codec, "num_codes": 3}, ConfigError),
        ({"codec": trained("ivf")}, DataError), ({"codec": codec, "train_vectors": vectors()[:9]}, DataError),
        ({"codec": codec, "num_lists": 3, "centroids": vectors(3)}, ConfigError),
        ({"codec": codec, "metric": "hamming"}, ConfigError),
        ({"codec": codec, "index_key": "IVF1,RQ4x4"}, ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            qinco.build_index(codes, output, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_is_refused_before_lists_are_made(tmp_path):
    codec, heard, given = trained("plain"), [], tmp_path / "pairs.safetensors"
    codes = codec.encode(vectors())
    for output, options in (
        ("index", {"pairwise": given}), ("index", {"train_vectors": vectors()[:9]}), ("index", {"progress": "yes"}),
        ("ix.faissindex", {"index_key": "Flat"}),
    ):  # fmt: skip
        options = {"codec": codec, "num_lists": 3, "progress": lambda *report: heard.append(report)} | options
        with pytest.raises((ConfigError, DataError)):
            qinco.build_index(codes, tmp_path / output, **options)
    assert heard == [] and list(tmp_path.iterdir()) == []


def test_segments_are_merged_where_the_last_is_not_small():
    def segment(count):
        zeros_N = np.zeros(count, np.uint8)
        return lists_of(zeros_N[:, None], zeros_N, zeros_N.astype(int), np.arange(count), 1)

    def sizes(*counts):
        return [len(part) for part in merge_small(tuple(map(segment, counts)))]

    assert sizes(10) == [10] and sizes(10, 4) == [10, 4] and sizes(10, 5) == [15] and sizes(10, 4, 2) == [16]
    assert sizes(100, 40, 5) == [100, 40, 5] and sizes(0, 0) == [0] and sizes(0, 3) == [3] and sizes(9, 0) == [9, 0]


def test_vectors_of_length_1_are_indexed_by_cosine(tmp_path, caplog):
    caplog.set_level("INFO", "qinco")
    codec, unit_ND = trained("ivf"), Metric("cosine").prepare(vectors())
    assert Index.build(codec, unit_ND).metric == "cosine" and "metric=cosine" in caplog.text
    assert Index.build(codec, unit_ND, metric="l2").metric == Index.build(codec, vectors()).metric == "l2"
    index = Index.build(codec, vectors())
    index.add(unit_ND, ids=range(5000, 6500))
    assert index.metric == "l2"
    codes = codec.encode(unit_ND)
    for vectors_ND, metric in ((unit_ND, "cosine"), (vectors(), "l2"), (None, "l2")):
        found = qinco.build_index(codes, tmp_path / "ix", codec=codec, train_vectors=vectors_ND, overwrite=True)
        assert found.metric == Index.load(tmp_path / "ix").metric == metric
    found = qinco.build_index(codes, tmp_path / "ix.faissindex", codec=codec, train_vectors=unit_ND)
    assert found.metric == "l2"  # faiss's files know no cosine


def test_vectors_of_which_only_the_first_have_length_1(tmp_path, caplog):
    codec, x_ND = trained("ivf"), Metric("cosine").prepare(vectors()).copy()
    x_ND[1200] = 0
    codes, output = codec.encode(x_ND), tmp_path / "ix"
    with caplog.at_level("INFO", "qinco"):
        assert qinco.build_index(codes, output, codec=codec, train_vectors=x_ND).metric == "l2"
    assert "other lengths, and metric=l2 is used" in caplog.text
    with pytest.raises(ConfigError, match="one length"):
        qinco.build_index(codes, output, codec=codec, train_vectors=x_ND, metric="cosine", overwrite=True)
    assert Index.load(output).metric == "l2"
