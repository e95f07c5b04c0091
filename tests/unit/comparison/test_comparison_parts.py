"""Measures, coders, and the choice of rivals and requests of `qinco.compare`, without a comparison."""

import numpy as np
import pytest

from qinco.comparison.inputs import HELD_OUT, Sources
from qinco.comparison.linear import Components, Rotation, make_space
from qinco.comparison.measures import Errors, crossings, judge, share
from qinco.comparison.ours import first_steps, our_jobs
from qinco.comparison.request import Request
from qinco.comparison.rivals import rivals
from qinco.errors import ConfigError, DataError

FAMILIES = ("PQ", "OPQ", "RQ", "LSQ", "PRQ", "SQ", "signs", "RaBitQ", "TurboQuant")
GIVEN = {"bytes": 8, "minutes": 1, "epochs": None, "metrics": None, "presets": None, "rivals": None,
         "limit_minutes": 60, "seed": 0}  # fmt: skip


def vectors(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, dim)) + 0.3).astype(np.float32)


def cell(family: str, size: int, recall: float, **changes) -> dict:
    result = {"metric": "l2", "queries": "given", "recall": {"10": [recall, 0.01]}}
    return {"family": family, "ours": False, "bytes": size, "status": "done", "results": [result]} | changes


def test_a_target_is_interpolated_in_the_logarithm_of_bytes():
    cells = [cell("PQ", 8, 0.8), cell("PQ", 16, 0.7), cell("PQ", 16, 1.0), cell("SQ", 4, 0.96), cell("RQ", 8, 0.2)]
    found = {(one["family"], one["target"]): (one["bytes"], one["between"]) for one in crossings(cells)}
    assert found["PQ", 0.9][0] == pytest.approx(8 * 2**0.5) and found["PQ", 0.9][1] == [8, 16]
    assert found["SQ", 0.95] == (4.0, None)
    assert found["SQ", 0.99] == found["RQ", 0.9] == (None, None)


def test_cells_that_are_not_done_reach_no_target():
    assert crossings([cell("PQ", 8, 1.0, status="time limit")]) == []


def test_recall_overlap_and_their_errors():
    ids_QR = np.array([[5, 1, 2], [9, 8, 4], [7, 0, 6], [3, 2, 1]])
    nearest_QR = np.array([[5, 2, 0], [4, 8, 9], [1, 2, 3], [3, 9, 8]])
    found = judge(ids_QR, nearest_QR)
    assert found["recall"]["1"][0] == 0.5 and found["recall"]["10"][0] == 0.75
    assert found["overlap_10"][0] == pytest.approx((2 + 3 + 0 + 1) / 12)
    assert share(np.array([True, False, False, True]))[1] == pytest.approx(np.std([1, 0, 0, 1], ddof=1) / 2)


def test_errors_add_up_over_blocks():
    x_ND, y_ND, errors = vectors(50), vectors(50, seed=1), Errors()
    errors.add(x_ND[:20], y_ND[:20])
    errors.add(x_ND[20:], y_ND[20:])
    squares_N = np.square(x_ND - y_ND, dtype=np.float64).sum(1)
    assert errors.summary()["mse"] == pytest.approx(squares_N.mean())
    assert errors.summary()["mse_se"] == pytest.approx(squares_N.std() / np.sqrt(50))


def test_rotations_keep_distances_and_components_keep_most():
    x_ND = vectors(400) * np.linspace(4, 0.1, 16).astype(np.float32)
    for centres in (False, True):
        space = Rotation(x_ND, centres)
        assert np.allclose(space.reverse(space.apply(x_ND)), x_ND, atol=1e-4)
        assert bool(np.allclose(space.apply(x_ND).mean(0), 0, atol=1e-4)) == centres
    space = Components(x_ND, 8)
    lost = np.square(space.reverse(space.apply(x_ND)) - x_ND).sum() / np.square(x_ND - x_ND.mean(0)).sum()
    assert 0.001 < lost < 0.2
    spread_E = space.apply(x_ND).std(0)
    assert spread_E.max() < 3 * spread_E.min(), "a random rotation spreads the variance"


@pytest.mark.parametrize("dim, sizes", [(16, (2, 4, 8)), (20, (8,)), (384, (8, 16, 32)), (3, (64,))])
def test_rivals_have_the_sizes_that_are_asked_for_or_lie_near(dim, sizes):
    found = list(rivals(dim, sizes, FAMILIES))
    assert len({one.id for one in found}) == len(found)
    for one in found:
        assert one.size in sizes or (one.space != "components" and one.size <= 2 * max(sizes)), one
        assert one.space != "components" or 8 <= one.dims <= dim
    assert {one.family for one in rivals(384, (8, 16, 32), FAMILIES)} >= {*FAMILIES} - {"SQ"} | {"PCA+SQ", "PCA+RQ"}


def test_rivals_take_the_bytes_that_they_say():
    pytest.importorskip("faiss")
    from qinco.comparison.coders import CODERS

    x_ND = vectors(600, 24)
    for one in rivals(24, (4, 16, 24), ("SQ", "signs", "RaBitQ", "TurboQuant")):
        space, coder = make_space(one.space, one.dims, x_ND), CODERS[one.kind](one.number)
        coder.fit(space.apply(x_ND))
        codes = coder.encode(space.apply(x_ND[:9]))
        assert coder.code_bytes + coder.scalar_bytes == codes.shape[1] == one.size, one


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_rabitq_is_ranked_as_its_own_search_does(bits, metric):
    faiss = pytest.importorskip("faiss")
    from qinco.comparison.coders import CODERS

    x_ND, queries_QD = vectors(800, 64), vectors(40, 64, seed=1)
    coder = CODERS["RaBitQ"](bits)
    coder.fit(x_ND)
    v_NE, added_N = coder.score(coder.encode(x_ND, metric), metric)
    index = faiss.IndexRaBitQ(64, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT, bits)
    index.qb = 0
    index.train(x_ND)
    index.add(x_ND)
    ids_QR = index.search(queries_QD, 10)[1]  # with more bits it leaves out what it bounds, which may be too much
    mine_QR = np.argsort(added_N - queries_QD @ v_NE.T, 1)[:, :10]
    overlap = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(ids_QR, mine_QR, strict=True)])
    assert overlap == 1 if bits == 1 else overlap > 0.97


@pytest.mark.parametrize("kind, number", [("PQ", 3), ("SQ", 4), ("SQ", 6), ("SQ", 8), ("TurboQuant", 4), ("RaBitQ", 4)])
def test_coders_decode_to_vectors_near_their_own(kind, number):
    pytest.importorskip("faiss")
    from qinco.comparison.coders import CODERS

    x_ND = vectors(1000)
    coder = CODERS[kind](number)
    coder.fit(x_ND)
    error = np.square(coder.decode(coder.encode(x_ND)) - x_ND).sum(1).mean()
    assert error < (0.6 if kind == "PQ" else 0.05) * np.square(x_ND - x_ND.mean(0)).sum(1).mean()


def test_a_prefix_of_a_residual_quantizer_is_one():
    pytest.importorskip("faiss")
    from qinco.comparison.coders import CODERS

    x_ND = vectors(600, 4)
    coder = CODERS["RQ"](3)
    coder.fit(x_ND)
    errors = [
        float(np.square(one.decode(one.encode(x_ND)) - x_ND).sum(1).mean())
        for one in (coder.prefix(1), coder.prefix(2), coder, coder.prefix(3))
    ]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2] and errors[3] == pytest.approx(errors[2])
    assert coder.prefix(2).encode(x_ND).shape == (600, 2)


def test_the_longest_codec_is_measured_at_its_prefixes():
    jobs = {job.size: job.sizes for job in our_jobs((8, 16), ("qinco2-S",), {"epochs": 1})}
    assert jobs == {8: (8,), 16: (4, 6, 8, 12, 16)}


def test_a_codec_of_the_first_steps_decodes_their_codes():
    from qinco.codec.codec import Codec
    from qinco.config import EncodeOptions, ModelConfig
    from qinco.model.weights import random_weights

    codec = Codec(random_weights(ModelConfig(3, 3, 4, hidden_dim=5)), EncodeOptions())
    codes_NM = np.random.default_rng(0).integers(0, 4, (20, 3))
    assert np.allclose(first_steps(codec, 2).decode(codes_NM[:, :2]), codec.decode(codes_NM[:, :2]), atol=1e-5)
    assert first_steps(codec, 3) is codec


def test_held_out_queries_are_not_in_the_database():
    x_ND = vectors(1000)
    sources = Sources.open(vectors(300, seed=1), x_ND)
    assert list(sources.queries) == [HELD_OUT] and len(sources.db) == 950
    asked = {row.tobytes() for row in sources.queries[HELD_OUT][:]}
    assert len(asked) == 50 and not asked & {row.tobytes() for row in sources.db[:]}
    described = sources.describe()
    assert described["queries"]["held_out"] and described["queries"]["path"] is None
    assert described["other_queries"] is None


@pytest.mark.parametrize("changed, fact", [
    ({"bytes": []}, "bytes must not be empty"), ({"bytes": [8, 0]}, "0"), ({"bytes": 8.5}, "8.5"),
    ({"bytes": "8"}, "'8'"), ({"bytes": [8, 5000]}, "5000"), ({"minutes": 0}, "minutes must be above 0"),
    ({"minutes": 2, "epochs": 3}, "exclude each other"), ({"minutes": None, "epochs": 0}, "epochs"),
    ({"metrics": "l3"}, "'l3'"), ({"metrics": []}, "metrics must not be empty"),
    ({"presets": ["qinco2-XXL"]}, "There are"), ({"rivals": ["PQX"]}, "Did you mean PQ?"),
    ({"rivals": [3]}, "3"), ({"presets": [], "rivals": []}, "both empty"), ({"seed": -1}, "seed"),
    ({"limit_minutes": 0}, "limit_minutes"),
])  # fmt: skip
def test_wrong_requests_are_one_sentence(changed, fact):
    with pytest.raises(ConfigError) as caught:
        Request.of(**GIVEN | changed)
    assert fact in str(caught.value) and "\n" not in str(caught.value)


def test_requests_are_sorted_and_named():
    request = Request.of(**GIVEN | {"bytes": [16, 8, 8], "metrics": ["ip", "euclidean"], "rivals": ["pq"]})
    assert request.sizes == (8, 16) and request.metrics == ("l2", "inner_product") and request.families == ("PQ",)
    assert Request.of(**GIVEN | {"minutes": None}).budget == {"minutes": 10.0, "seed": 0}


@pytest.mark.parametrize("sizes, fact", [
    ((100, 16, 1000, 16), "at least 256"), ((300, 16, 100, 16), "at least 256"), ((300, 16, 1000, 8), "dimension 16"),
])  # fmt: skip
def test_wrong_vectors_are_one_sentence(sizes, fact):
    with pytest.raises(DataError, match=fact):
        Sources.open(vectors(*sizes[:2]), vectors(*sizes[2:]))
