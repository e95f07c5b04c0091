"""Calibrated ranking: what an index knows of vectors besides their codes, and what it makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_indexes import KINDS, NUM_LISTS, NUM_VECTORS, built, copied, exact, trained, vectors, with_margin

import qinco
from qinco.errors import ConfigError, DataError
from qinco.search.calibrate import with_other_tables
from qinco.search.index import Index
from qinco.search.metric import METRICS, Metric
from qinco.search.ranking import Score, corrections, fit_score, shared_part

QUERIES_QD = vectors(200, 21)
ALL = {"nprobe": NUM_LISTS, "num_short": NUM_VECTORS}
MANY = {"nprobe": NUM_LISTS, "num_short": 200}


def known_of(index: Index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The corrections that norm codes tell, ids, and what the tables decode, by ascending ids."""
    blocks, tables = [block for segment in index.segments for block in segment.blocks()], index.tables
    parts = [(tables.corrections(*b[:3]), b[3], tables.lookup.decode(b[0], b[2])) for b in blocks]
    known, ids, decoded_ND = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(ids)
    return known[order], ids[order], decoded_ND[order]


def prepared(index: Index, x_ND=None) -> np.ndarray:
    return index.tables.metric.prepare(vectors() if x_ND is None else x_ND)


def recall(index: Index, x_ND: np.ndarray, k: int = 1, **options) -> float:
    _, nearest = qinco.exhaustive_search(QUERIES_QD, x_ND, 1, metric=index.metric)
    return float((index.search(QUERIES_QD, k, **options)[1] == nearest).any(1).mean())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_norm_codes_tell_the_corrections_to_half_a_level(kind, metric):
    index = built(kind, metric)
    codes_NM, norm_codes_N, lists_N, ids_N = next(index.segments[0].blocks())
    ranking, levels = index.tables.ranking, index.tables.levels
    known_N = index.tables.corrections(codes_NM, norm_codes_N, lists_N)
    if not ranking.lookup.correction:  # they say too little of these vectors to be stored
        assert kind == "product" and not known_N.any()
        return
    true_N = corrections(prepared(index)[ids_N], known_of(index)[2][ids_N], ranking.mean_D)
    steps = norm_codes_N.astype(int)
    gaps_N = np.maximum(levels[np.minimum(steps + 1, 255)] - levels[steps], levels[steps] - levels[steps - 1])
    is_inner_N = (steps > 0) & (steps < 255)
    errors_N = np.abs(known_N - true_N) * abs(ranking.lookup.correction)
    assert (errors_N <= gaps_N / 2 * 1.001 + 1e-3)[is_inner_N].all() and is_inner_N.mean() > 0.95
    assert np.corrcoef(known_N, true_N)[0, 1] > 0.5


@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_what_is_told_just_beyond_the_likely_corrections_is_the_nearest_of_these(kind):
    """And not the typical one, unless the level is as near to that."""
    index, levels = with_margin(built(kind), None), built(kind).tables.levels
    known_N, _, _ = known_of(index)
    low, high = np.quantile(known_N, [0.03, 0.97]).astype(float)
    index.tables = replace(index.tables, ranking=replace(index.tables.ranking, low=low, high=high))
    found_N, ranking = known_of(index)[0], index.tables.ranking
    is_likely_N = (known_N >= low) & (known_N <= high)
    np.testing.assert_array_equal(found_N[is_likely_N], known_N[is_likely_N])
    _, norm_codes_N, _, order_N = next(index.segments[0].blocks())
    steps_N = norm_codes_N[np.argsort(order_N)].astype(int)
    gaps_N = np.maximum(levels[np.minimum(steps_N + 1, 255)] - levels[steps_N], levels[steps_N] - levels[steps_N - 1])
    leaves_typical_N = np.abs(known_N - ranking.typical) * ranking.lookup.correction <= gaps_N / 2 * 1.001
    is_limit_N = (found_N == np.float32(low)) | (found_N == np.float32(high))
    assert (is_likely_N | is_limit_N | (found_N == known_N) | leaves_typical_N).all() and is_limit_N.any()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_by_definition(kind, metric):
    """‖q − x̂‖² + κ T + offset, or of inner products those of a query of length 1, times its length."""
    index = built(kind, metric)
    ranking, (known, _, lookup_ND) = index.tables.ranking, known_of(index)
    decoded_ND = index.reconstruct(np.arange(NUM_VECTORS)).astype(np.float64)
    if ranking.lookup.correction:
        known = known - ((decoded_ND - lookup_ND) * (decoded_ND - ranking.mean_D)).sum(1)
    queries_QD, score = prepared(index, QUERIES_QD).astype(np.float64), ranking.neural
    if metric == "inner_product":
        lengths_N = np.square(decoded_ND).sum(1)
        norms_Q1 = np.linalg.norm(queries_QD, axis=1, keepdims=True)
        values_QN = -(queries_QD / norms_Q1) @ decoded_ND.T + score.correction * known + score.length * lengths_N
        expected_QN = -(values_QN + score.offset) * norms_Q1
    else:
        lengths_N = np.square(decoded_ND - ranking.mean_D).sum(1)
        values_QN = np.square(queries_QD[:, None] - decoded_ND).sum(2) + score.correction * known
        expected_QN = np.maximum(values_QN + score.length * lengths_N + score.offset, 0)
        if metric == "cosine":
            expected_QN = 1 - expected_QN / (2 * index.tables.metric.unit_length**2)
    distances_QR, ids_QR = with_margin(index, None).search(QUERIES_QD, 50, **ALL, precision="float32")
    np.testing.assert_allclose(distances_QR, np.take_along_axis(expected_QN, ids_QR, 1), rtol=1e-4, atol=1e-3)
    best_QR = np.sort(expected_QN if metric == "l2" else -expected_QN)[:, :50]
    np.testing.assert_allclose(distances_QR, best_QR if metric == "l2" else -best_QR, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
def test_more_is_found_and_distances_are_less_biased(metric):
    """Of sets drawn as the index's, not of its queries; short codes, where there is most to gain."""
    index = built("plain", metric)
    assert recall(index, vectors(), **MANY) > recall(index, vectors(), **MANY, ranking="decoded") - 0.03
    if metric == "inner_product":
        assert recall(index, vectors(), **MANY) > 2 * recall(index, vectors(), **MANY, ranking="decoded")
    errors = []
    for ranking in ("calibrated", "decoded"):
        distances_QR, ids_QR = index.search(QUERIES_QD, 10, **MANY, ranking=ranking)
        true_QN = exact(metric, QUERIES_QD, vectors())
        errors.append(abs(float((distances_QR - np.take_along_axis(true_QN, ids_QR, 1)).mean())))
    assert errors[0] < 0.7 * errors[1]


def test_the_shortlist_is_better_too():
    index = built("plain", "inner_product")
    options = {"nprobe": NUM_LISTS, "num_short": 0}
    assert recall(index, vectors(), **options) > 1.5 * recall(index, vectors(), **options, ranking="decoded")


def test_the_length_of_a_query_changes_no_order():
    index = built("plain", "inner_product")
    distances_QR, ids_QR = index.search(QUERIES_QD, 10, **MANY)
    for factor in (1e-20, 8.0, 1e20):
        found_QR, found_ids_QR = index.search(QUERIES_QD * np.float32(factor), 10, **MANY)
        np.testing.assert_allclose(found_QR, distances_QR * factor, rtol=1e-3)
        assert (found_ids_QR == ids_QR).mean() > 0.99
    zeros_QR, ids_QR = index.search(np.zeros((1, QUERIES_QD.shape[1])), 3, **MANY)
    assert not zeros_QR.any() and (ids_QR >= 0).all()


def test_corrections_survive_what_an_index_goes_through(tmp_path):
    index = copied(built("ivf", "inner_product"))
    index.add(vectors(500, 31))
    index.remove(np.arange(0, NUM_VECTORS, 3))
    index.save(tmp_path / "index")
    loaded = Index.load(tmp_path / "index")
    merged = Index.build(trained("ivf"), vectors(2000, 32), metric="inner_product")
    merged.merge_from(loaded, 10_000)
    both = np.concatenate([vectors(), vectors(500, 31)])
    for found, first in ((loaded, 0), (merged, 10_000)):
        known, ids, decoded_ND = known_of(found)
        rows = ids[ids >= first].astype(int) - first
        true = corrections(both[rows], decoded_ND[-len(rows) :], found.tables.ranking.mean_D)
        assert np.corrcoef(known[-len(rows) :], true)[0, 1] > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_corrections_are_those_of_any_decoder_but_for_a_small_part(kind):
    """From those of the tables follow the network's, and those of tables that are fitted anew."""
    codec, x_ND, mean_D = trained(kind), vectors(), built(kind).tables.ranking.mean_D
    one, other = built(kind).tables.lookup, Index.build(codec, vectors(800, 34), NUM_LISTS).tables.lookup
    codes = codec.encode(x_ND)
    of_one, of_other = (corrections(x_ND, lookup.decode(codes.codes, codes.lists), mean_D) for lookup in (one, other))
    moved = with_other_tables(of_one, codes, one, other, mean_D)
    assert np.corrcoef(moved, of_other)[0, 1] > 0.99
    np.testing.assert_array_equal(with_other_tables(of_one, codes, one, one, mean_D), of_one)
    decoded_ND = codec.decode(codes)
    known = of_one - shared_part(decoded_ND, one.decode(codes.codes, codes.lists), mean_D)
    assert np.corrcoef(known, corrections(x_ND, decoded_ND, mean_D))[0, 1] > 0.95
    tensors = shared_part(torch.from_numpy(decoded_ND), one.decode(codes.codes, codes.lists), mean_D)
    np.testing.assert_allclose(of_one - tensors, known, rtol=1e-4, atol=1e-4)


def test_rare_corrections_are_known_where_levels_are_near():
    """Under inner products of vectors of very different lengths, the longest are found, whose corrections are rare."""
    lengths_N1 = np.exp(np.random.default_rng(0).standard_normal((NUM_VECTORS, 1)))
    x_ND = (vectors() * lengths_N1).astype(np.float32)
    index = Index.build(trained("plain"), x_ND, NUM_LISTS, metric="inner_product")
    known, _, decoded_ND = known_of(index)
    true, longest = corrections(x_ND, decoded_ND, index.tables.ranking.mean_D), np.argsort(-lengths_N1[:, 0])[:10]
    np.testing.assert_allclose(known[longest], true[longest], rtol=0.05)
    assert recall(index, x_ND, **MANY) > 1.3 * recall(index, x_ND, **MANY, ranking="decoded")


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("factor", [1e10, 1e25])
def test_a_few_vectors_of_broken_length_do_not_hide_the_others(factor, metric):
    x_ND = vectors().copy()
    x_ND[::100] *= np.float32(factor)
    index = Index.build(trained("plain"), x_ND, NUM_LISTS, metric=metric)
    distances_QR, ids_QR = index.search(x_ND[1:100], 10, **MANY)
    is_broken_QR = ids_QR % 100 == 0  # whose inner products are truly the largest
    assert np.isfinite(distances_QR).all() and np.abs(distances_QR[~is_broken_QR]).max(initial=0) < 1e4
    if metric == "l2":
        expected_QR = built().search(x_ND[1:100], 10, **MANY)[1]
        assert not is_broken_QR.any()
        is_own_Q2 = [(ids[:, 0] == np.arange(1, 100)).mean() for ids in (ids_QR, expected_QR)]
        assert is_own_Q2[0] > is_own_Q2[1] - 0.15


def test_vectors_of_given_codes_are_checked(tmp_path, caplog):
    """Codes that are given are not made of the vectors, which the ranking is fitted to all the same."""
    codec, broken_ND = trained("plain"), vectors().copy()
    codes, broken_ND[700] = codec.encode(vectors()), np.nan
    index = copied(built())
    for call in (
        lambda: Index.build(codec, broken_ND, codes=codes),
        lambda: index.add(broken_ND, codes=codes),
        lambda: qinco.build_index(codes, tmp_path / "no", codec=codec, vectors=broken_ND, metric="l2"),
    ):  # fmt: skip
        with pytest.raises(DataError, match="row 700 of vectors holds NaN"):
            call()
    assert len(index) == NUM_VECTORS
    with pytest.raises(DataError, match="vectors must have dimension 6, that of the codec, not 5"):
        qinco.build_index(codes, tmp_path / "no", codec=codec, vectors=vectors()[:, :5], metric="l2")
    assert not caplog.messages
    qinco.build_index(codes, tmp_path / "yes", codec=codec, vectors=vectors())
    assert not caplog.messages
    qinco.build_index(codes, tmp_path / "other", codec=codec, vectors=vectors()[::-1])
    assert "are they the codes of these vectors, in this order?" in caplog.text


def test_few_vectors_have_a_ranking_too():
    for count in (1, 2, 30, 150):
        index = Index.build(trained("plain"), vectors()[:count])
        assert index.tables.ranking.num_vectors == count
        assert (index.search(vectors()[:count], 1, **ALL)[1][:, 0] == np.arange(count)).mean() > 0.9


def test_without_vectors_an_index_ranks_by_what_codes_decode_to(tmp_path):
    codec = trained("plain")
    codes, options = codec.encode(vectors()), {"codec": codec, "num_lists": 4}
    qinco.build_index(codes, tmp_path / "decoded", **options)
    index = Index.load(tmp_path / "decoded")
    assert index.tables.ranking is None
    for one, other in zip(index.search(QUERIES_QD), index.search(QUERIES_QD, ranking="decoded"), strict=True):
        np.testing.assert_array_equal(one, other)
    qinco.build_index(codes, tmp_path / "calibrated", **options, vectors=vectors())
    assert Index.load(tmp_path / "calibrated").tables.ranking.num_vectors == NUM_VECTORS
    for wrong, error in (
        ({"vectors": vectors()[:9]}, DataError),
        ({"vectors": vectors(), "output": tmp_path / "x.faissindex"}, ConfigError),
        ({"vectors": vectors(), "codec": None, "num_lists": None, "codebook_size": 16}, ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            qinco.build_index(codes, **{"output": tmp_path / "no"} | options | wrong)


@pytest.mark.parametrize("ranking", ["exact", None, 1])
def test_other_rankings_are_refused(ranking):
    with pytest.raises(ConfigError, match="ranking must be one of calibrated, decoded"):
        built().search(QUERIES_QD, ranking=ranking)
    with pytest.raises(ConfigError, match="ranking must be one of calibrated, decoded"):
        built().range_search(QUERIES_QD, 1.0, ranking=ranking)


@pytest.mark.parametrize("field", ["low", "high", "typical", "num_vectors", "neural", "lookup", "mean"])
def test_a_damaged_ranking_is_refused(field, tmp_path, monkeypatch):
    index = copied(built())
    ranking = index.tables.ranking
    damage = {
        "low": {"low": float("nan")}, "num_vectors": {"num_vectors": -1}, "mean": {"mean_D": ranking.mean_D[:2]},
        "neural": {"neural": Score(correction=float("inf"))}, "lookup": {"lookup": Score(length=10**400)},
        "high": {"high": ranking.low - 1}, "typical": {"typical": 1e300},
    }[field]  # fmt: skip
    index.tables = replace(index.tables, ranking=replace(ranking, **damage))
    with pytest.raises((DataError, ValueError)):  # JSON has no such numbers, and a reader refuses the rest
        index.save(tmp_path / "index")
        Index.load(tmp_path / "index")


def test_the_weight_of_corrections_is_found():
    """Of queries whose true distances are the decoded ones plus a share of the corrections."""
    generator = np.random.default_rng(0)
    values_QC, corrections_QC = generator.uniform(1, 2, (800, 20)), generator.uniform(0, 1, (800, 20))
    true_QC = values_QC + 0.4 * corrections_QC + 0.02 * generator.standard_normal((800, 20)) + 3
    score = fit_score(values_QC, corrections_QC, None, true_QC, np.ones(800, bool), 0.25)
    assert score.correction == pytest.approx(0.4, abs=0.05) and score.offset == pytest.approx(3, abs=0.02)
    assert fit_score(values_QC[:0], corrections_QC[:0], None, true_QC[:0], np.empty(0, bool), 0.25) == Score(0.25)
    nothing = fit_score(values_QC, corrections_QC, None, values_QC, np.ones(800, bool), 0.25)
    assert abs(nothing.correction) < 0.02


def test_cosines_of_calibrated_values_are_cosines():
    assert Metric("cosine", 2.0).distances(np.float32([0, 8, 16])).tolist() == [1, 0, -1]
    distances_QR, _ = built("plain", "cosine").search(prepared(built("plain", "cosine"))[:300], 3, **MANY)
    assert (distances_QR <= 1).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_exhaustive_search_of_an_index_is_that_of_all_its_lists(kind, metric):
    index = with_margin(built(kind, metric), None)
    index.add(vectors(200, 33), ids=np.arange(200) + 2**40)
    for ranking in ("calibrated", "decoded"):
        options = {"nprobe": NUM_LISTS, "num_short": 2 * NUM_VECTORS, "ranking": ranking}
        distances_QR, ids_QR = index.search(QUERIES_QD[:50], 20, **options)
        found_QR, found_ids_QR = qinco.exhaustive_search(QUERIES_QD[:50], index, 20, ranking=ranking)
        np.testing.assert_allclose(found_QR, distances_QR, rtol=1e-4, atol=1e-3)
        assert (found_ids_QR == ids_QR).mean() > 0.9  # of equal codes another one is first
    bare = Index(None, index.parts)
    expected_QR, _ = bare.search(QUERIES_QD[:50], 20, nprobe=NUM_LISTS)
    found_QR, _ = qinco.exhaustive_search(QUERIES_QD[:50], bare, 20)
    np.testing.assert_allclose(found_QR, expected_QR, rtol=0.02, atol=2)  # a scan adds a level, not the scalar itself
    few = Index.build(trained(kind), vectors()[:3], metric=metric)
    few_QR, few_ids_QR = qinco.exhaustive_search(QUERIES_QD[:1], few, 5)
    assert (few_ids_QR[:, 3:] == -1).all() and np.isinf(few_QR[:, 3:]).all() and np.isfinite(few_QR[:, :3]).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_corrections_of_another_decoder_are_those_of_the_tables_but_for_the_shared_part(kind, metric):
    """An array is compared as it is read, which saves what the tables decode; a tensor is not."""
    index = built(kind, metric)
    tables, (codes_NM, norm_codes_N, lists_N, _) = index.tables, next(index.segments[0].blocks())
    decoded_ND = index.codec.decode(codes_NM, lists_N if kind == "ivf" else None)
    lookup_ND = tables.lookup.decode(codes_NM, lists_N)
    wanted_N = tables.corrections(codes_NM, norm_codes_N, lists_N)
    if wanted_N.any():
        wanted_N = wanted_N - shared_part(decoded_ND, lookup_ND, tables.ranking.mean_D)
    for given_ND in (decoded_ND, torch.from_numpy(decoded_ND)):
        found_N = tables.corrections(codes_NM, norm_codes_N, lists_N, given_ND)
        np.testing.assert_allclose(found_N, wanted_N, rtol=1e-4, atol=1e-4 * np.abs(wanted_N).max())


@pytest.mark.parametrize("ranking", ["calibrated", "decoded"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_query_a_call_finds_what_many_find(kind, metric, ranking):
    """To the bit: all vectors of these shortlists are decoded, whatever the number of queries."""
    index = built(kind, metric)
    for num_short in (0, 20):
        options = {"k": 10, "nprobe": 5, "num_short": num_short, "ranking": ranking}
        values_QR, ids_QR = index.search(QUERIES_QD[:20], **options)
        for query_D, values_R, ids_R in zip(QUERIES_QD, values_QR, ids_QR, strict=False):
            found = index.search(query_D, **options)
            assert np.array_equal(found[0], values_R) and np.array_equal(found[1], ids_R)
