"""The index as its users meet it: searching, filtering, adding, removing, from several threads."""

import copy
import pickle
import threading
from dataclasses import replace
from itertools import pairwise

import faiss
import numpy as np
import pytest
import torch
from small_indexes import (
    DIM,
    KINDS,
    NUM_LISTS,
    NUM_VECTORS,
    built,
    copied,
    decoded,
    exact,
    trained,
    trained_on,
    vectors,
)
from small_models import random_model

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.machine import using_threads
from qinco.search.index import Index
from qinco.search.metric import METRICS
from qinco.search.options import SearchOptions
from qinco.vectors.formats import write_vectors
from qinco.vectors.rows import as_source

QUERIES_QD = vectors(40, 1)
LAST = 2**63 - 1
ALL = {"nprobe": NUM_LISTS, "num_short": NUM_VECTORS, "ranking": "decoded"}


def same(one, other) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


# Searching


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_searching_everything_is_comparing_everything(kind, metric):
    index = built(kind, metric)
    distances_QR, ids_QR = index.search(QUERIES_QD, **ALL)
    assert distances_QR.dtype == np.float32 and ids_QR.dtype == np.int64 and ids_QR.shape == (40, 10)
    values_QN = exact(metric, QUERIES_QD, index.reconstruct(np.arange(NUM_VECTORS)))
    best_QR = np.sort(values_QN if metric == "l2" else -values_QN)[:, :10]
    np.testing.assert_allclose(distances_QR, best_QR if metric == "l2" else -best_QR, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(distances_QR, np.take_along_axis(values_QN, ids_QR, 1), rtol=1e-5, atol=1e-4)
    assert all(len(set(row)) == 10 for row in ids_QR.tolist())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_ranks_as_the_processor_does(kind, metric, device):
    index = built(kind, metric)
    moved = Index(trained_on(device, kind), index.parts)
    for ranking in ("decoded", "calibrated"):
        options = {"k": 20, "nprobe": 4, "num_short": 60, "ranking": ranking}
        distances_QR, ids_QR = index.search(QUERIES_QD, **options)
        found_QR, found_ids_QR = moved.search(QUERIES_QD, **options)
        assert (found_ids_QR == ids_QR).mean() > 0.98  # others are as near, but for rounding
        is_near = np.isclose(found_QR, distances_QR, rtol=1e-4, atol=1e-3)
        # A device decodes the whole shortlist; the processor what may be among the first ten by calibrated distances.
        assert is_near.all() if ranking == "decoded" else is_near.mean() > 0.98 and is_near[:, :10].all()
    np.testing.assert_allclose(moved.reconstruct([3, 1, 4]), index.reconstruct([3, 1, 4]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_built_on_a_device(kind, device):
    num_lists = None if kind == "ivf" else NUM_LISTS
    index = Index.build(trained_on(device, kind), vectors(), num_lists, pairwise=True)
    index.add(vectors(50, 1))
    assert len(index) == NUM_VECTORS + 50
    nearest_QR, _ = Index.build(trained(kind), vectors(), num_lists).search(QUERIES_QD, **ALL)
    found_QR, _ = index.search(QUERIES_QD, **ALL)
    assert (found_QR[:, 0] <= nearest_QR[:, 0] * 1.0001 + 1e-3).mean() > 0.9  # there are more, few codes are others
    judged, wanted = index.evaluate(vectors(300, 9)), built(kind).evaluate(vectors(300, 9))
    assert judged["mse"] == pytest.approx(wanted["mse"], rel=0.01)


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_index_is_copied_by_saving_it(make):
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        make(built())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_few_visits_and_a_short_list_find_nearly_all(kind, metric):
    index = built(kind, metric)
    nearest_Q = index.search(QUERIES_QD, **ALL)[0][:, 0]
    options = {"num_short": 20, "ranking": "decoded"}
    found = [index.search(QUERIES_QD, nprobe=nprobe, **options)[0][:, 0] for nprobe in (1, 4, NUM_LISTS)]
    shares = [(found_Q == nearest_Q).mean() for found_Q in found]
    assert shares[0] <= shares[1] <= shares[2] and shares[2] >= 0.95
    assert shares[1] > (0.6 if metric == "inner_product" else 0.9)


def test_the_defaults_are_those_of_the_options():
    index = built()
    assert index.options == SearchOptions(nprobe=16, num_short=100)
    assert same(index.search(QUERIES_QD), index.search(QUERIES_QD, 10, 16, 100))
    tuned = Index(index.codec, replace(index.parts, options=SearchOptions(2, 15, 0)))
    assert same(tuned.search(QUERIES_QD, 5), index.search(QUERIES_QD, 5, 2, 15))
    assert same(tuned.search(QUERIES_QD, 5, num_short=30), index.search(QUERIES_QD, 5, 2, 30))


def test_faiss_would_order_them_so():
    """Ascending distances, descending similarities; what is missing last."""
    for metric, sign in (("l2", 1), ("inner_product", -1), ("cosine", -1)):
        distances_QR, ids_QR = built("ivf", metric).search(QUERIES_QD, k=NUM_VECTORS + 3, nprobe=2)
        there = ids_QR >= 0
        assert (sign * distances_QR[:, 1:] >= sign * distances_QR[:, :-1]).all()
        assert not there[:, -3:].any() and there[:, 0].all() and (np.diff(there.astype(int)) <= 0).all()
        assert (distances_QR[~there] == sign * np.inf).all() and np.isfinite(distances_QR[there]).all()
        assert (ids_QR[~there] == -1).all()


def test_one_query_has_one_row():
    index = built()
    distances_QR, ids_QR = index.search(QUERIES_QD, k=3)
    query_D = QUERIES_QD[5].copy()
    for one in (query_D, query_D.tolist(), tuple(query_D.tolist()), torch.from_numpy(query_D)):
        found = index.search(one, k=3)
        assert found[0].shape == found[1].shape == (3,) and same(found, (distances_QR[5], ids_QR[5]))


def test_queries_of_any_kind(tmp_path):
    index, whole_QD = built(), np.round(QUERIES_QD)
    expected = index.search(whole_QD)
    write_vectors(tmp_path / "q.fvecs", whole_QD)
    kinds = [
        whole_QD.tolist(), whole_QD.astype(np.float64), whole_QD.astype(np.float16), whole_QD.astype(np.int8),
        np.asfortranarray(whole_QD), np.repeat(whole_QD, 2, 0)[::2], torch.from_numpy(whole_QD),
        torch.from_numpy(whole_QD).bfloat16(), as_source(whole_QD), tmp_path / "q.fvecs", str(tmp_path / "q.fvecs"),
    ]  # fmt: skip
    for queries in kinds:
        assert same(index.search(queries), expected)


@pytest.mark.parametrize("num_short", [0, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_no_bit(kind, num_short):
    index = copied(built(kind, pairwise=True))
    expected = index.search(QUERIES_QD, 10, 4, num_short)
    for rows in (1, 3, 17):
        parts = [index.search(QUERIES_QD[i : i + rows], 10, 4, num_short) for i in range(0, 40, rows)]
        assert same([np.concatenate(column) for column in zip(*parts, strict=True)], expected)
    index.batch_bytes = 5000
    assert same(index.search(QUERIES_QD, 10, 4, num_short), expected)
    with using_threads(3):
        assert same(index.search(QUERIES_QD, 10, 4, num_short), expected)


@pytest.mark.parametrize(
    ("queries", "options", "error", "message"),
    [
        (np.zeros((2, 5)), {}, DataError, "dimension 6, that of the index, not 5"),
        (np.zeros(5), {}, DataError, "queries .* not 5"), ([], {}, DataError, "queries"),
        (np.full((3, 6), np.nan), {}, DataError, "row 0 of queries holds NaN"),
        ([[1.0], [2, 3]], {}, DataError, "queries"),
        (np.array([1, 2, 3, np.inf, 5, 6]), {}, DataError, "an infinite value"),
        ("nowhere.fvecs", {}, DataError, "No such file: .*nowhere.fvecs"), (None, {}, DataError, "queries"),
        (QUERIES_QD, {"k": 0}, ConfigError, "k must be between 1"), (QUERIES_QD, {"k": 2.0}, ConfigError, "k must be"),
        (QUERIES_QD, {"k": 10**12}, ConfigError, "k must be"), (QUERIES_QD, {"k": True}, ConfigError, "k must be"),
        (QUERIES_QD, {"nprobe": 0}, ConfigError, "nprobe"), (QUERIES_QD, {"nprobe": "4"}, ConfigError, "nprobe"),
        (QUERIES_QD, {"num_short": -1}, ConfigError, "num_short"),
        (QUERIES_QD, {"num_mid": 50}, ConfigError, "num_mid"), (QUERIES_QD, {"ef_search": 0}, ConfigError, "ef_search"),
        (QUERIES_QD, {"filter": np.ones(9, bool)}, ConfigError, "not by a mask"),
        (QUERIES_QD, {"filter": [0.5]}, DataError, "ids must be integers"),
        (QUERIES_QD, {"filter": [[1, 2]]}, DataError, r"give numpy\.ravel\(ids\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused(queries, options, error, message):
    with pytest.raises(error, match=message):
        built().search(queries, **options)


def test_queries_far_away_find_something_or_nothing():
    index = built()
    distances_QR, ids_QR = index.search(QUERIES_QD * np.float32(1e6), **ALL)
    assert (ids_QR >= 0).all() and np.isfinite(distances_QR).all()
    for metric in METRICS:  # squares that no float holds
        distances_QR, ids_QR = built("ivf", metric).search(np.full((2, DIM), 3e38, np.float32), **ALL)
        assert not np.isnan(distances_QR).any() and ((ids_QR == -1) | (ids_QR < NUM_VECTORS)).all()
        assert metric != "cosine" or (ids_QR >= 0).all()


def test_cosine_knows_no_length():
    index = built("plain", "cosine")
    expected = index.search(QUERIES_QD)
    for scale in (1e-30, 1e30):
        found = index.search(QUERIES_QD.astype(np.float64) * scale)
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
        assert (found[1][:, 0] == expected[1][:, 0]).mean() > 0.9
    for options in ({}, {"num_short": 0}):
        distances_R, ids_R = index.search(np.zeros(DIM), k=3, **options)
        assert not distances_R.any() and (ids_R >= 0).all()


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e19, 1e30])
def test_inner_products_of_queries_of_any_length_are_found(scale):
    queries_QD, index = QUERIES_QD * np.float32(scale), built("plain", "inner_product")
    for options in (ALL, ALL | {"num_short": 0}):
        found_QR, ids_QR = index.search(queries_QD, **options)
        expected_QR, expected_ids = index.search(QUERIES_QD, **options)
        is_subnormal = scale < 1e-40
        np.testing.assert_allclose(found_QR, expected_QR * scale, rtol=0.1 if is_subnormal else 1e-4, atol=1e-42)
        assert is_subnormal or np.array_equal(ids_QR[:, 0], expected_ids[:, 0])


@pytest.mark.parametrize("num_short", [0, 2 * NUM_VECTORS])
def test_the_cosine_of_a_zero_vector_is_zero(num_short, tmp_path):
    x_ND = np.concatenate([vectors()[:500] - vectors().mean(0), np.zeros((2, DIM))])
    index = Index.build(trained("plain"), x_ND[::-1], 2, metric="cosine")  # ids 0 and 1 are zero
    index.add(x_ND[:3] * [[1], [0], [1]], [600, 601, 602])
    index.upsert(x_ND[[0, -1, -1]], [0, 501, 603])
    index.save(tmp_path / "index")
    merged = index.emptied()
    merged.merge_from(index, 1000)
    for searched, zeros in ((index, {1, 501, 601, 603}), (Index.load(tmp_path / "index"), {1, 501, 601, 603}),
                            (merged, {1001, 1501, 1601, 1603})):  # fmt: skip
        found_QR, ids_QR = searched.search(QUERIES_QD, k=506, nprobe=2, num_short=num_short)
        for found_R, ids_R in zip(found_QR, ids_QR, strict=True):
            assert set(ids_R[found_R == 0].tolist()) == zeros and len(set(ids_R)) == 506
        assert (found_QR[:, 0] > 0).all() and (found_QR[:, -1] < 0).any() and (np.diff(found_QR) <= 0).all()
        assert not searched.reconstruct(sorted(zeros)).any()
        _, within, ids = searched.range_search(QUERIES_QD[:1], -1e-6, nprobe=2)
        assert set(ids[within == 0].tolist()) == zeros
    index.remove([1, 501])
    index.add(x_ND[:1], [1])
    assert set(index.parts.zeros.tolist()) == {601, 603} and not len(index.emptied().parts.zeros)


@pytest.mark.parametrize("scale", [1e-30, 1e20])
def test_an_index_whose_distances_float32_cannot_hold_is_refused(scale):
    model = random_model(ModelConfig(dim=DIM, num_steps=2, codebook_size=16, num_blocks=1, hidden_dim=8))
    model.scale.fill_(scale)
    model.mean.zero_()
    codec = Codec(model, EncodeOptions())
    for metric in METRICS:
        with pytest.raises(ConfigError, match="multiply vectors"):
            Index.build(codec, vectors(), 2, metric=metric)


# Stages


@pytest.mark.parametrize("metric", [METRICS[0], *(pytest.param(one, marks=pytest.mark.slow) for one in METRICS[1:])])
@pytest.mark.parametrize("kind", KINDS)
def test_each_stage_orders_better_than_the_one_before(kind, metric):
    index = built(kind, metric, pairwise=True)
    nearest_Q = index.search(vectors(300, 2), 1, **ALL)[0][:, 0]

    def share(**options):
        _, ids_QR = index.search(vectors(300, 2), 1, nprobe=NUM_LISTS, ranking="decoded", **options)
        found_Q = exact(metric, vectors(300, 2), index.reconstruct(ids_QR[:, 0]))[np.arange(300), np.arange(300)]
        return np.isclose(found_Q, nearest_Q, rtol=1e-4, atol=1e-4).mean()

    looked_up, paired, decoded_ = share(num_short=0, num_mid=0), share(num_short=0), share(num_short=40, num_mid=0)
    assert 0.3 < looked_up <= paired + 0.02 and paired <= decoded_ and decoded_ > 0.97


def test_the_pairwise_stage_chooses_but_does_not_decide():
    index = built("ivf", pairwise=True)
    plain = Index(index.codec, replace(index.parts, pairwise=None))
    expected = plain.search(QUERIES_QD, **ALL)
    assert same(index.search(QUERIES_QD, **ALL), expected)
    assert same(index.search(QUERIES_QD, **ALL, num_mid=NUM_VECTORS), expected)
    assert same(index.search(QUERIES_QD, num_short=30, num_mid=0), plain.search(QUERIES_QD, num_short=30))
    kinds = {
        decoder: [type(stage.decoder).__name__ for stage in index.pipeline(index.options, 10, decoder=decoder).stages]
        for decoder in ("neural", "pairwise", "lookup")
    }
    assert kinds == {"neural": ["PairwiseDecoder", "NeuralDecoder"], "pairwise": ["PairwiseDecoder"], "lookup": []}


def test_an_index_of_codes_alone_is_searched_by_its_tables():
    index = built("ivf")
    bare = Index(None, replace(index.parts, codec_fingerprint="x"))
    assert same(bare.search(QUERIES_QD), index.search(QUERIES_QD, num_short=0))
    expected = index.tables.lookup.decode(*index.codec.encode(vectors()[:1]))
    np.testing.assert_allclose(bare.reconstruct(0), expected[0], rtol=1e-6)
    for change in (lambda: bare.add(QUERIES_QD), lambda: bare.evaluate(vectors())):
        with pytest.raises(ConfigError, match="no codec to encode with: load it with codec="):
            change()
    assert bare.remove([0, 1]) == 2


# Filters


@pytest.mark.parametrize("metric", METRICS)
def test_a_filter_admits_its_ids_wherever_they_are(metric):
    index = built("plain", metric)
    admitted = np.arange(5, NUM_VECTORS, 97)
    kinds = [
        admitted, admitted[::-1].tolist(), set(admitted.tolist()), torch.from_numpy(admitted), np.repeat(admitted, 2),
        np.append(admitted, LAST), admitted.astype(np.uint16), faiss.IDSelectorBatch(admitted),
    ]  # fmt: skip
    values_QN = exact(metric, QUERIES_QD, index.reconstruct(admitted))
    best_QR = np.sort(values_QN if metric == "l2" else -values_QN)
    for chosen in kinds:
        options = {"nprobe": 1, "num_short": 50, "ranking": "decoded", "filter": chosen}
        distances_QR, ids_QR = index.search(QUERIES_QD, k=len(admitted) + 2, **options)
        assert (ids_QR[:, -2:] == -1).all()
        assert (np.sort(ids_QR[:, :-2]) == admitted).all()
        np.testing.assert_allclose(distances_QR[:, :-2], best_QR if metric == "l2" else -best_QR, rtol=1e-5, atol=1e-4)


def test_selectors_of_faiss_filter():
    index, everything = built(), built().search(QUERIES_QD, **ALL)
    assert same(index.search(QUERIES_QD, **ALL, filter=faiss.IDSelectorAll()), everything)
    _, ids_QR = index.search(QUERIES_QD, nprobe=1, filter=faiss.IDSelectorRange(100, 130))
    assert ((ids_QR >= 100) & (ids_QR < 130)).all()
    _, ids_QR = index.search(QUERIES_QD, filter=faiss.IDSelectorNot(faiss.IDSelectorRange(0, NUM_VECTORS - 4)))
    assert (np.sort(ids_QR)[:, -4:] == np.arange(NUM_VECTORS - 4, NUM_VECTORS)).all() and (ids_QR == -1).sum() == 240


# Building


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"num_lists": NUM_VECTORS + 1}, ConfigError, "num_lists must be at most 1500, .* not 1501"),
        ({"num_lists": 0}, ConfigError, "num_lists must be"), ({"num_lists": 2.5}, ConfigError, "num_lists must be"),
        ({"metric": "hamming"}, ConfigError, "'hamming'"),
        ({"ids": np.arange(5)}, DataError, "vectors, 1500, not 5"),
        ({"ids": np.zeros(NUM_VECTORS, int)}, DataError, "id 0 is given twice"),
        ({"ids": np.arange(NUM_VECTORS) - 1}, DataError, "not -1"),
        ({"ids": np.arange(NUM_VECTORS) * 1.0}, DataError, "must be integers"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_before_anything_is_encoded(settings, error, message, monkeypatch):
    monkeypatch.setattr(Codec, "encode_blocks", lambda *arguments: pytest.fail("it was encoded"))
    with pytest.raises(error, match=message):
        Index.build(trained("plain"), vectors(), **settings)


def test_vectors_and_codecs_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="dimension 6, that of the codec, not 5"):
        Index.build(trained("plain"), vectors()[:, :5])
    with pytest.raises(DataError, match="must not be empty"):
        Index.build(trained("plain"), vectors()[:0])
    with pytest.raises(ConfigError, match=r"13 .*12"):
        Index.build(trained("ivf"), vectors(), 13)
    wide = Codec(random_model(ModelConfig(dim=6, num_steps=2, codebook_size=512, hidden_dim=4)), EncodeOptions())
    for codec, named in ((wide, "K=512"), (None, "a Codec or the path of one, not None")):
        with pytest.raises(ConfigError, match=named):
            Index.build(codec, vectors())
    broken = vectors().copy()
    broken[1234, 2] = np.nan
    for metric in METRICS:
        with pytest.raises(DataError, match="row 1234 of vectors holds NaN in column 2"):
            Index.build(trained("plain"), broken, 3, metric=metric)


def test_the_parts_of_an_index_are_told():
    index = built()
    assert (index.dim, index.num_lists, index.metric) == (DIM, NUM_LISTS, "l2")
    assert "1,500 vectors" in repr(index) and "pairwise" in repr(built(pairwise=True))


def test_progress_is_told():
    heard = []
    Index.build(trained("plain"), vectors(), 10, pairwise=True, progress=lambda *told, **fields: heard.append(told))
    stages = list(dict.fromkeys(stage for stage, *_ in heard))
    assert [stage for stage in stages if stage != "fitting pairs"] == [
        "encoding", "partitioning", "assigning vectors to lists", "fitting look-up tables",
        "measuring what codes lose", "calibrating", "filling lists",
    ]  # fmt: skip
    assert all(0 <= done <= total for _, done, total, *_ in heard)
    assert heard[-1] == ("filling lists", NUM_VECTORS, NUM_VECTORS)


def test_an_index_of_one_vector():
    for kind in KINDS:
        index = Index.build(trained(kind), vectors()[:1])
        distances_R, ids_R = index.search(vectors()[0], k=3, nprobe=2**31 - 1)
        assert ids_R.tolist() == [0, -1, -1] and np.isposinf(distances_R[1:]).all() and distances_R[0] < 100


def test_vectors_that_are_all_the_same():
    index = Index.build(trained("plain"), np.repeat(vectors()[:1], 200, 0), 10)
    _, ids_R = index.search(vectors()[0], k=200, nprobe=1)
    assert np.array_equal(np.sort(ids_R), np.arange(200))


# Changing


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_added_vectors_are_as_those_it_was_built_of(kind, metric):
    index = copied(built(kind, metric))
    ids = index.add(vectors())
    assert ids.tolist() == list(range(NUM_VECTORS, 2 * NUM_VECTORS)) and len(index) == 2 * NUM_VECTORS
    assert np.array_equal(index.reconstruct(ids), index.reconstruct(ids - NUM_VECTORS))
    distances_QR, _ = index.search(QUERIES_QD, k=20, **ALL | {"num_short": 2 * NUM_VECTORS})
    expected_QR, _ = built(kind, metric).search(QUERIES_QD, **ALL)
    assert np.array_equal(distances_QR[:, ::2], expected_QR) and np.array_equal(distances_QR[:, 1::2], expected_QR)
    assert len(built(kind, metric)) == NUM_VECTORS


def test_additions_of_many_sizes_are_searched_as_one():
    index, total = copied(built("ivf")), NUM_VECTORS
    for count in (1, 1, 3, 1, 700, 20, 2, 900, 64, 65, 1, 1500, 0, 5):
        assert index.add(vectors(1500, 3)[:count]).tolist() == list(range(total, total + count))
        total += count
        sizes = [len(segment) for segment in index.segments]
        assert sum(sizes) == len(index) == total and all(2 * b < a for a, b in pairwise(sizes))
        found = index.search(QUERIES_QD, 30, 4, 40)
    whole = Index(index.codec, replace(index.parts, segments=[index.segments[0].merged(index.segments)]))
    for one, other in zip(found, whole.search(QUERIES_QD, 30, 4, 40), strict=True):
        assert np.array_equal(np.sort(one), np.sort(other))


def test_ids_that_are_given_are_kept():
    ids = np.random.default_rng(0).permutation(10 * NUM_VECTORS)[:NUM_VECTORS] + 2**40
    index = Index.build(trained("plain"), vectors(), NUM_LISTS, ids=ids)
    assert same(index.search(QUERIES_QD, **ALL)[:1], built().search(QUERIES_QD, **ALL)[:1])
    assert index.bytes_per_vector == pytest.approx(built().bytes_per_vector + 4)
    np.testing.assert_array_equal(index.reconstruct(ids[7]), built().reconstruct(7))
    assert index.add(vectors()[:2]).tolist() == [ids.max() + 1, ids.max() + 2]
    more = np.array([5, 2**32 - 1, 2**32, LAST])
    assert np.array_equal(index.add(vectors()[:4], ids=more), more)
    np.testing.assert_array_equal(index.reconstruct(more), built().reconstruct(np.arange(4)))
    _, found = index.search(vectors()[2], k=2, filter=more, nprobe=1)
    assert set(found) <= set(more.tolist())
    with pytest.raises(DataError, match="9223372036854775808"):
        index.add(vectors()[:1])
    assert index.remove(LAST) == 1 and index.add(vectors()[:1], ids=[LAST]).tolist() == [LAST]


def test_no_vectors_are_added():
    index = copied(built())
    for nothing in (np.zeros((0, DIM)), torch.zeros(0, DIM)):
        assert index.add(nothing).tolist() == index.add(nothing, ids=[]).tolist() == []


@pytest.mark.parametrize("has_pairs", [False, True])
def test_removed_vectors_are_gone(has_pairs):
    index = copied(built("ivf", pairwise=has_pairs))
    index.add(vectors(200, 4))
    gone = np.r_[0:NUM_VECTORS:2, NUM_VECTORS : NUM_VECTORS + 50]
    assert index.remove(gone) == 800 and index.remove(gone) == 0 and len(index) == 900
    _, ids_QR = index.search(QUERIES_QD, k=1000, nprobe=NUM_LISTS)
    left = np.setdiff1d(np.arange(NUM_VECTORS + 200), gone)
    assert (np.sort(ids_QR)[:, -900:] == left).all() and (np.sort(ids_QR)[:, :100] == -1).all()
    with pytest.raises(DataError, match="id 0 "):
        index.reconstruct([1, 0])
    assert index.add(vectors()[:1]).tolist() == [NUM_VECTORS + 200], "ids are not used again"
    assert index.add(vectors()[:2], ids=[0, 2]).tolist() == [0, 2], "unless they are given"


def test_the_habits_of_other_indexes_work():
    index = copied(built("ivf"))
    assert (index.ntotal, index.d) == (len(index), index.dim) == (NUM_VECTORS, DIM)
    assert all(id in index for id in (0, np.int64(NUM_VECTORS - 1), torch.tensor(3), np.array(4, np.uint8)))
    assert all(missing not in index for missing in (NUM_VECTORS, -1, "0", None))
    assert np.array_equal(index[7], index.reconstruct(7)) and np.array_equal(index[[7, 3]], index.reconstruct([7, 3]))
    index.remove(7)
    assert 7 not in index
    with pytest.raises(DataError, match="id 7 "):
        index[7]
    with pytest.raises(TypeError):
        iter(index)


def test_what_can_be_removed():
    index = copied(built())
    given = (3, np.int64(4), [3, 4, 5], {5, 6}, torch.tensor([7]), [], [10**9], faiss.IDSelectorRange(0, 10), [-5])
    assert [index.remove(ids) for ids in given] == [1, 1, 1, 1, 1, 0, 0, 5, 0]
    given = (range(-(10**12), 20), range(10**12, 28, -1), slice(20, 22), [[22, -1], [23, 22]], [24, -1])
    assert [index.remove(ids) for ids in given] == [10, NUM_VECTORS - 29, 2, 2, 1]
    for wrong, error in (([-5.0], DataError), (np.ones(5, bool), ConfigError), ("all", ConfigError)):
        with pytest.raises(error):
            index.remove(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_may_be_emptied_and_filled_again(kind):
    index = copied(built(kind))
    assert index.remove(np.arange(NUM_VECTORS)) == NUM_VECTORS and len(index) == 0
    distances_QR, ids_QR = index.search(QUERIES_QD, k=3)
    assert (ids_QR == -1).all() and np.isposinf(distances_QR).all() and ids_QR.shape == (40, 3)
    assert (index.search(QUERIES_QD, filter=[3], num_short=0)[1] == -1).all()
    assert index.remove([1]) == 0 and index.reconstruct([]).shape == (0, DIM) and index.bytes_per_vector > 0
    assert index.add(vectors()).tolist() == list(range(NUM_VECTORS, 2 * NUM_VECTORS))
    assert np.array_equal(index.search(QUERIES_QD, **ALL)[0], built(kind).search(QUERIES_QD, **ALL)[0])


def test_an_index_may_begin_empty():
    index = built().emptied()
    assert len(index) == 0 and (index.search(QUERIES_QD)[1] == -1).all() and index.remove([0]) == 0
    assert index.add(vectors()).tolist() == list(range(NUM_VECTORS))
    assert np.array_equal(index.search(QUERIES_QD, **ALL)[0], built().search(QUERIES_QD, **ALL)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_reconstructions_of_ids_in_any_order(kind):
    index = copied(built(kind))
    index.add(vectors(), ids=np.arange(NUM_VECTORS) + 2**40)
    wanted = [2**40 + 3, 7, 7, 2**40, 0, 2**40 + 3]
    found = index.reconstruct(wanted)
    assert found.dtype == np.float32 and found.shape == (6, DIM)
    np.testing.assert_allclose(found, decoded(kind)[[3, 7, 7, 0, 0, 3]], rtol=0, atol=1e-4)
    for one in (7, np.int64(7), np.uint8(7), torch.tensor(7)):
        assert index.reconstruct(one).shape == (DIM,)
        np.testing.assert_allclose(index.reconstruct(one), found[1], rtol=1e-5, atol=1e-5)
    assert index.reconstruct(np.array(wanted)[:0]).shape == (0, DIM)
    assert np.array_equal(index.reconstruct(torch.tensor(wanted)), found)
    assert np.array_equal(index.reconstruct(np.reshape(wanted, (2, 3))), found.reshape(2, 3, DIM))


@pytest.mark.parametrize("id", [NUM_VECTORS, [1, LAST], -1, 1.0, [[1], [-1]], "1", None, range(10**15)])
def test_what_cannot_be_reconstructed_is_refused(id):
    with pytest.raises(DataError):
        built().reconstruct(id)


def test_codes_that_the_codec_has_not_are_told():
    """Files that are mapped are not read as a whole when they are opened."""
    index = built("plain")
    segment = index.segments[0]
    damaged = type(segment)(segment.starts, np.full_like(segment.codes, 16), segment.ids, segment.num_codes)
    broken = Index(index.codec, replace(index.parts, segments=[damaged]))
    for use in (lambda: broken.search(QUERIES_QD), lambda: broken.reconstruct(3)):
        with pytest.raises(DataError, match="the index is damaged: it holds the code 16, the codec's are below 16"):
            use()


# Threads


def in_threads(work, several: int) -> None:
    """Call work(0), work(1), ... in threads; raises what they raised."""
    errors = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(several)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_threads_find_what_one_finds(kind):
    fresh = Codec(trained(kind).models[0], trained(kind).encode_options)  # nothing is packed yet
    index = Index(fresh, built(kind).parts)
    expected = built(kind).search(QUERIES_QD)

    def search(number):
        for _ in range(5):
            assert same(index.search(QUERIES_QD), expected)

    in_threads(search, 8)


def test_threads_search_while_one_changes(tmp_path):
    """Every search sees the index as it was at one moment."""
    index, moved, done = copied(built("ivf")), 100, threading.Event()
    x_ND = decoded("ivf").astype(np.float64)

    def search(number):
        generator = np.random.default_rng(number)
        while not done.is_set():
            queries_QD = QUERIES_QD[generator.integers(0, 40, 4)]
            distances_QR, ids_QR = index.search(queries_QD, k=20, num_short=40, nprobe=6, ranking="decoded")
            values_QR = np.square(queries_QD[:, None] - x_ND[ids_QR % NUM_VECTORS]).sum(2)
            np.testing.assert_allclose(distances_QR, values_QR, rtol=1e-4, atol=1e-3)
            assert all(len(set(row)) == 20 for row in ids_QR.tolist())
            _, ids_R = index.search(queries_QD[0], k=moved, filter=faiss.IDSelectorRange(NUM_VECTORS, LAST), nprobe=1)
            batches, sizes = np.unique(ids_R[ids_R >= 0] // NUM_VECTORS, return_counts=True)
            assert len(batches) <= 1 and set(sizes) <= {moved}, "an addition is there or not, and so is a removal"
            assert (index.search(queries_QD[0], k=3, filter=[0, 1, 2], nprobe=1)[1] >= 0).all()

    def change(number):
        if number:
            return search(number)
        try:
            for step in range(1, 25):
                ids = np.arange(moved) + step * NUM_VECTORS
                index.add(vectors()[:moved], ids=ids)
                if step % 8 == 0:
                    index.save(tmp_path / "index")
                    assert len(Index.load(tmp_path / "index")) == NUM_VECTORS + moved
                assert index.remove(ids) == moved
        finally:
            done.set()

    in_threads(change, 9)
    expected_QR, _ = built("ivf").search(QUERIES_QD, **ALL)
    assert len(index) == NUM_VECTORS and np.array_equal(index.search(QUERIES_QD, **ALL)[0], expected_QR)


def test_threads_that_add_get_ids_of_their_own():
    index, given = copied(built()), []

    def add(number):
        given.extend(np.concatenate([index.add(vectors()[:7]) for _ in range(10)]))

    in_threads(add, 6)
    assert sorted(given) == list(range(NUM_VECTORS, NUM_VECTORS + 420)) and len(index) == NUM_VECTORS + 420
    np.testing.assert_array_equal(index.reconstruct(sorted(given)[:7]), index.reconstruct(np.arange(7)))


def test_the_names_of_the_command_line_are_options_too():
    assert SearchOptions(nprobe=3, nshort=5, quantizer_efSearch=7) == SearchOptions(3, 5, None, 7)
    index, x = built("plain"), vectors(3)
    one, two = index.range_search(x, 9.0, quantizer_efSearch=5), index.range_search(x, 9.0, ef_search=5)
    assert all(map(np.array_equal, one, two))
