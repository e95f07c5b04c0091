"""The pipeline: a scan, then stages of any decoders."""

import numpy as np
import pytest
import torch

from qinco.errors import DataError
from qinco.search.metric import L2, Metric
from qinco.search.options import SearchOptions
from qinco.search.pipeline import STAGE_TIMINGS, Pipeline, Stage, plan_stages
from qinco.search.scan import Shortlist
from qinco.vectors.rows import as_queries

Q, N, D = 5, 40, 3
GENERATOR = np.random.default_rng(0)
X_ND = GENERATOR.standard_normal((N, D)).astype(np.float32)
QUERIES_QD = GENERATOR.standard_normal((Q, D)).astype(np.float32)
IDS_N = np.arange(N) + 1000  # a vector's code is its number


class Searched:
    """A pipeline over `found` of the vectors; the scan's order is that of the numbers."""

    def __init__(self, found=N, metric=L2, **decoders):
        self.found, self.metric, self.decoders, self.lengths = found, metric, decoders, []

    def scan(self, queries_QD, length):
        self.lengths.append(length)
        numbers = np.arange(length)
        there = numbers < self.found
        row = (
            np.where(there, numbers, np.inf).astype(np.float32), np.where(there, numbers + 1000, -1),
            np.where(there, 0, -1).astype(np.int32), np.where(there, numbers, 0).astype(np.uint8)[:, None],
            np.zeros(length, np.uint8),
        )  # fmt: skip
        columns = (np.stack([column] * Q)[: len(queries_QD)] for column in row)
        return Shortlist(*columns, np.full(len(queries_QD), self.found))

    def run(self, queries_QD, k, options):
        length, stages = plan_stages(options, k, **self.decoders)
        self.pipeline = Pipeline(self.scan, length, stages, self.metric)
        return self.pipeline.run(queries_QD, k)


class Decoder:
    """Decodes a vector's number to the vector, off by an error."""

    def __init__(self, error=0.0, function=None):
        self.error, self.function, self.count = np.float32(error), function, 0

    def decode(self, codes_NM, lists_N):
        assert codes_NM.shape == (len(lists_N), 1) and (lists_N == 0).all()
        self.count += len(lists_N)
        return self.function(codes_NM) if self.function else X_ND[codes_NM[:, 0]] + self.error


def nearest(x_ND, first, k):
    distances_QN = np.square(QUERIES_QD[:, None] - x_ND[:first]).sum(2)
    order_QR = distances_QN.argsort(1, kind="stable")[:, :k]
    return order_QR + 1000, np.take_along_axis(distances_QN, order_QR, 1)


def test_the_network_orders_the_shortlist():
    searched = Searched(neural=Decoder())
    best, first = searched.run(QUERIES_QD, 4, SearchOptions(num_short=10))
    ids_QR, distances_QR = nearest(X_ND, 10, 4)
    assert searched.lengths == [10] and first.ids.shape == (Q, 10)
    assert np.array_equal(best.ids, ids_QR)
    np.testing.assert_allclose(best.values, distances_QR, rtol=1e-6)
    assert np.array_equal(best.codes[..., 0].astype(int) + 1000, ids_QR) and (best.lists == 0).all()


def test_without_a_network_the_order_is_the_shortlists():
    for decoders, options in (({}, SearchOptions()), ({"neural": Decoder()}, SearchOptions(num_short=0))):
        searched = Searched(**decoders)
        best, first = searched.run(QUERIES_QD, 4, options)
        assert searched.lengths == [4] and (best.ids == IDS_N[:4]).all() and np.array_equal(best.values, first.values)


@pytest.mark.parametrize(
    ("options", "k", "length"),
    [
        (SearchOptions(num_short=5), 3, 20), (SearchOptions(num_short=5), 8, 32),
        (SearchOptions(num_short=5, num_mid=30), 3, 30), (SearchOptions(num_short=5, num_mid=6), 8, 8),
        (SearchOptions(num_short=5, num_mid=0), 3, 5), (SearchOptions(num_short=0), 3, 12),
        (SearchOptions(num_short=0, num_mid=30), 3, 30), (SearchOptions(num_short=0, num_mid=0), 3, 3),
    ],
)  # fmt: skip
def test_the_pairwise_stage_chooses_what_the_network_decodes(options, k, length):
    neural = Decoder()
    searched = Searched(neural=neural, pairwise=Decoder(0.1))
    best, first = searched.run(QUERIES_QD, k, options)
    assert searched.lengths == [length] and first.ids.shape == (Q, length)
    kept = max(options.num_short, k) if options.num_short else 0
    assert neural.count == Q * kept
    if options.num_mid == 0:
        expected_QR = np.broadcast_to(IDS_N[: kept or k], (Q, kept or k))
    else:
        expected_QR, _ = nearest(X_ND + np.float32(0.1), length, kept or k)
    if kept:  # the network's order, of what pairwise kept
        distances_QR = np.square(QUERIES_QD[:, None] - X_ND[expected_QR - 1000]).sum(2)
        expected_QR = np.take_along_axis(expected_QR, distances_QR.argsort(1), 1)
    assert np.array_equal(best.ids, expected_QR[:, :k])


@pytest.mark.parametrize("found", [0, 1, 7])
def test_empty_places_stay_last_and_are_not_decoded(found):
    best, _ = Searched(found, neural=Decoder(), pairwise=Decoder(0.1)).run(QUERIES_QD, 9, SearchOptions(num_short=10))
    assert (best.ids[:, found:] == -1).all() and np.isposinf(best.values[:, found:]).all()
    assert np.array_equal(best.ids[:, :found], nearest(X_ND, found, found)[0])


def test_values_are_the_metrics():
    for name in ("inner_product", "cosine"):
        run = Searched(metric=Metric(name), neural=Decoder())
        best, _ = run.run(QUERIES_QD, 3, SearchOptions(num_short=N))
        products_QN = QUERIES_QD @ X_ND.T
        if name == "cosine":
            products_QN /= np.linalg.norm(QUERIES_QD, axis=1)[:, None] * np.linalg.norm(X_ND, axis=1)
        assert np.array_equal(best.ids, products_QN.argsort(1)[:, ::-1][:, :3] + 1000)
        np.testing.assert_allclose(run.metric.distances(best.values), -np.sort(-products_QN)[:, :3], rtol=1e-5)


def test_of_equal_vectors_the_first_stays_first():
    same = Decoder(function=lambda codes_NM: np.zeros((len(codes_NM), D), np.float32))
    best, _ = Searched(neural=same).run(QUERIES_QD, 6, SearchOptions(num_short=9))
    assert (best.ids == IDS_N[:6]).all()


def test_what_is_no_number_comes_last():
    broken = Decoder(function=lambda codes_NM: np.where(codes_NM == 0, np.float32(np.nan), X_ND[codes_NM[:, 0]]))
    best, _ = Searched(neural=broken).run(QUERIES_QD, 10, SearchOptions(num_short=10))
    assert (best.ids[:, -1] == 1000).all() and not (best.ids[:, :-1] == 1000).any()


def test_stages_are_timed():
    run = Searched(neural=Decoder(), pairwise=Decoder(0.1))
    run.run(QUERIES_QD, 3, SearchOptions(num_short=5))
    assert tuple(run.pipeline.seconds) == STAGE_TIMINGS and all(run.pipeline.seconds.values())


def test_shortlists_are_cut_and_padded():
    _, first = Searched(4).run(QUERIES_QD, 6, SearchOptions())
    assert first.first(2).ids.tolist() == [[1000, 1001]] * Q
    filled = first.first(8)
    assert filled.codes.shape == (Q, 8, 1) and (filled.ids[:, 4:] == -1).all() and (filled.lists[:, 4:] == -1).all()
    assert np.isposinf(filled.values[:, 4:]).all() and filled.values.dtype == np.float32


@pytest.mark.parametrize(
    "one", [[1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5]), torch.tensor([1, 2.5]).bfloat16()]
)
def test_one_query_is_told_from_several(one):
    source, is_one = as_queries(one)
    assert is_one and source[:].tolist() == [[1, 2.5]]
    several = torch.stack([one, one]) if isinstance(one, torch.Tensor) else [one, one]
    source, is_one = as_queries(several)
    assert not is_one and source[:].tolist() == [[1, 2.5]] * 2


@pytest.mark.parametrize("queries", [[], [[1.0, 2], [3]], 5.0, None, [["a"]], np.zeros((1, 2, 3))])
def test_what_is_no_query_is_refused(queries):
    with pytest.raises(DataError, match="queries"):
        as_queries(queries)


def test_any_number_of_stages_can_follow_each_other():
    stages = [Stage(Decoder(0.3), 20, ("a", "a")), Stage(Decoder(0.1), 10, ("b", "b")), Stage(Decoder(), 3, ("c", "d"))]
    pipeline = Pipeline(Searched().scan, N, stages)
    best, _ = pipeline.run(QUERIES_QD, 3)
    assert [stage.decoder.count for stage in stages] == [Q * N, Q * 20, Q * 10]
    assert best.ids.shape == (Q, 3) and all(pipeline.seconds[name] > 0 for name in "abcd")
