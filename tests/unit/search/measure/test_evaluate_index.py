from dataclasses import replace

import numpy as np
import pytest
from small_indexes import KINDS, NUM_VECTORS, built, copied, trained, vectors

from qinco.errors import ConfigError, DataError
from qinco.maths.clustering import quantize_residually, residual_kmeans
from qinco.search.measure.evaluate import evaluate_index as evaluate
from qinco.search.options import SearchOptions
from qinco.search.parts import Fitted
from qinco.vectors.rows import stratified_rows

QUERY_ROWS = stratified_rows(1200, 120)
UNSEEN_ND = np.empty_like(vectors(1200, 9))
UNSEEN_ND[QUERY_ROWS] = vectors(1200, 9)[-120:]
UNSEEN_ND[np.delete(np.arange(1200), QUERY_ROWS)] = vectors(1200, 9)[:-120]


def nearest(queries_QD, x_ND, metric, k):
    queries_QD, x_ND = queries_QD.astype(np.float64), x_ND.astype(np.float64)
    if metric == "l2":
        return np.square(queries_QD[:, None] - x_ND).sum(2).argsort(1, kind="stable")[:, :k]
    products_QN = queries_QD @ x_ND.T
    return (-products_QN / (np.linalg.norm(x_ND, axis=1) if metric == "cosine" else 1)).argsort(1, kind="stable")[:, :k]


def shares(found_QR, nearest_Q):
    return {rank: float((found_QR[:, :rank] == nearest_Q[:, None]).any(1).mean()) for rank in (1, 10, 100)}


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_what_they_say(kind, metric):
    index, codec = built(kind, metric), trained(kind)
    found = index.evaluate(UNSEEN_ND)
    x_ND, queries_QD = np.delete(UNSEEN_ND, QUERY_ROWS, 0), UNSEEN_ND[QUERY_ROWS]
    assert (found["num_vectors"], found["num_queries"]) == (1080, 120)
    nearest_Q = nearest(queries_QD, x_ND, metric, 1)[:, 0]
    prepared_ND = index.tables.metric.prepare(x_ND)
    codes = codec.encode(prepared_ND)
    decoded_ND = codec.decode(codes)
    assert found["mse"] == pytest.approx(np.square(decoded_ND - prepared_ND).sum(1).mean(), rel=1e-4)
    unseen = index.emptied()
    unseen.parts = replace(unseen.parts, fitted=Fitted())  # its tables and its ranking are judged
    unseen.add(x_ND)
    # Vectors of equal codes are equally near: which comes first decides a little.
    for name, expected_QR in (
        ("recall_exhaustive", nearest(queries_QD, decoded_ND, metric, 100)),
        ("recall", unseen.search(queries_QD, 100)[1]),
    ):
        assert found[name] == pytest.approx(shares(expected_QR, nearest_Q), abs=0.02)
    base_ND = codec.coarse_centroids[codes.lists] if kind == "ivf" else 0
    # A residual quantizer of that size that was fitted to these very vectors is no worse, but not out of reach.
    books_MKD = residual_kmeans(prepared_ND - base_ND, codec.num_codes, codec.config.codebook_size)
    plain_ND = base_ND + quantize_residually(prepared_ND - base_ND, books_MKD)
    seen = np.square(plain_ND - prepared_ND).sum(1).mean()
    assert 0.99 * seen <= found["mse_rq"] < 1.5 * seen
    shares_of_seen = shares(nearest(queries_QD, plain_ND, metric, 100), nearest_Q)
    assert all(0 <= found["recall_rq"][rank] <= shares_of_seen[rank] + 0.1 for rank in shares_of_seen)
    assert 0 < found["recall"][1] <= found["recall"][10] <= found["recall"][100] <= 1


def test_the_index_and_its_options_are_judged_and_stay_as_they_are():
    index = copied(built("plain"))
    whole = index.evaluate(UNSEEN_ND)["recall"]
    index.options = SearchOptions(nprobe=1, num_short=2)
    before = index.segments
    assert index.evaluate(UNSEEN_ND)["recall"][100] < whole[100]
    assert index.segments is before and len(index) == NUM_VECTORS and index.next_id == NUM_VECTORS


def test_queries_are_of_all_parts_of_the_vectors():
    index = built("ivf")
    swapped = UNSEEN_ND.copy()
    swapped[stratified_rows(1200, 50)] += 100
    near, far = (evaluate(index, x_ND, 50) for x_ND in (UNSEEN_ND, swapped))
    assert near["num_queries"] == far["num_queries"] == 50
    assert near["mse"] == pytest.approx(far["mse"]) and near["recall"] != far["recall"]


def test_any_number_of_vectors_is_used():
    for count, num_queries in ((2, 1), (11, 2), (12, 11)):
        found = evaluate(built(), UNSEEN_ND[:count], num_queries)
        assert (found["num_vectors"], found["num_queries"]) == (count - num_queries, num_queries)
    assert evaluate(built(), UNSEEN_ND, max_vectors=300) == evaluate(built(), UNSEEN_ND[stratified_rows(1200, 300)])


@pytest.mark.parametrize(
    ("x", "num_queries", "error", "message"),
    [
        (UNSEEN_ND[:1], None, DataError, "1 vectors"), (UNSEEN_ND[:0], None, DataError, "0 vectors"),
        (UNSEEN_ND[:9], 9, DataError, "9 vectors"), (UNSEEN_ND, 0, ConfigError, "num_queries.*0"),
        (UNSEEN_ND, 1.5, ConfigError, "num_queries.*1.5"), (UNSEEN_ND[:, :3], None, DataError, "not 3"),
        (UNSEEN_ND[0], None, DataError, r"\(1, "), (UNSEEN_ND * np.nan, None, DataError, "NaN"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused(x, num_queries, error, message):
    with pytest.raises(error, match=message):
        built().evaluate(x, num_queries)


def test_a_sorted_file_is_judged_by_queries_of_all_its_parts():
    index, order = built("plain"), np.argsort(UNSEEN_ND[:, 0])
    sorted_ND, far_ND = UNSEEN_ND[order], UNSEEN_ND[order].copy()
    far_ND[-120:] += 100  # a class at the end
    shuffled, found = (evaluate(index, x_ND)["mse"] for x_ND in (UNSEEN_ND, sorted_ND))
    assert found == pytest.approx(shuffled, rel=0.1)
    assert evaluate(index, far_ND)["mse"] > 2 * found  # most of that class is encoded
