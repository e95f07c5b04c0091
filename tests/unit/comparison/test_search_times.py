"""Problems of search, and the times of exact scans, graphs and indexes; what times are is not tested."""

import json
import threading
import time

import numpy as np
import pytest
from small_indexes import DIM, trained, vectors

from qinco.comparison.exact import time_exact
from qinco.comparison.hnsw import time_hnsw
from qinco.comparison.index_time import time_index
from qinco.comparison.installed import TimeOver, ended_after, is_installed
from qinco.comparison.problem import Problem, standard_error, time_search
from qinco.comparison.rival_index import rival_of, time_rival
from qinco.errors import ConfigError, DataError

FAST = {"seconds": 0.01, "progress": False}
needs_faiss = pytest.mark.skipif(not is_installed("faiss"), reason="needs faiss")


@pytest.fixture(scope="module")
def problem():
    return Problem.of(vectors(300, 1), vectors(600, 2), vectors(40, 3), max_tuning=30)


def nearest(queries_QD, x_ND):
    return np.square(queries_QD[:, None] - x_ND).sum(2).argmin(1)


def test_true_neighbours_are_found(problem):
    assert (problem.nearest_Q == nearest(problem.queries_QD, problem.vectors_ND)).all()
    assert (problem.tuning_nearest_T == nearest(problem.tuning_TD, problem.vectors_ND)).all()
    assert len(problem) == 600 and problem.dim == DIM and len(problem.tuning_TD) == 30


def test_fewer_vectors_have_neighbours_of_their_own(problem):
    some = problem.limited(100)
    assert len(some) == 100 and (some.nearest_Q == nearest(some.queries_QD, some.vectors_ND)).all()
    assert (vectors(600, 2)[some.rows_N] == some.vectors_ND).all()
    first = problem.limited_to_first(50)
    assert (first.vectors_ND == problem.vectors_ND[:50]).all()
    assert problem.limited(10_000) is problem


def test_a_training_vector_in_the_database_does_not_look_for_itself():
    x_ND = vectors(200, 4)
    problem = Problem.of(x_ND, x_ND, vectors(5, 5), max_tuning=20)
    found_TD = problem.vectors_ND[problem.tuning_nearest_T]
    assert (found_TD != problem.tuning_TD).any(1).all()
    distances_TN = np.square(problem.tuning_TD[:, None] - x_ND).sum(2)
    assert (problem.tuning_nearest_T == distances_TN.argsort(1)[:, 1]).all()


def test_cosine_compares_directions():
    problem = Problem.of(vectors(100, 1), 3 * vectors(200, 2), vectors(20, 3), "cosine")
    assert np.allclose(np.linalg.norm(problem.vectors_ND, axis=1), 1, atol=1e-5)
    assert (problem.nearest_Q == (problem.queries_QD @ problem.vectors_ND.T).argmax(1)).all()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"metric": "hamming"}, ConfigError),
        ({"max_vectors": 0}, ConfigError),
        ({"max_queries": 1.5}, ConfigError),
        ({"queries": np.zeros((3, DIM + 1), np.float32)}, DataError),
        ({"queries": np.zeros((0, DIM), np.float32)}, DataError),
        ({"db": np.zeros((5, DIM), np.float32)}, DataError),
    ],
)
def test_wrong_problems_are_refused(given, error):
    whole = {"train": vectors(50, 1), "db": vectors(60, 2), "queries": vectors(7, 3)} | given
    with pytest.raises(error):
        Problem.of(**whole)


def test_recall_is_counted_with_its_error(problem):
    ids_QR = np.full((40, 10), -1)
    ids_QR[:10, 3] = problem.nearest_Q[:10]
    timed = time_search(lambda queries_QD: ids_QR[: len(queries_QD)], problem, seconds=0.001)
    assert timed.recall == 0.25 and timed.error == standard_error(0.25, 40) == pytest.approx((0.25 * 0.75 / 40) ** 0.5)
    assert timed.query_us > 0 < timed.batch_us


def test_a_scan_is_exact_and_told_as_json(problem):
    found = time_exact(problem, **FAST)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["recall_10"] == [1.0, 0.0] and found["bytes"] == 4 * DIM and found["rows"] == 600
    assert {one["library"] for one in found["libraries"]} == {"qinco"} | ({"faiss"} if is_installed("faiss") else set())
    assert found["query_us"] == min(one["query_us"] for one in found["libraries"])
    line = found["line"]
    assert line["fixed_us"] + 600 * line["us_a_vector"] == pytest.approx(found["query_us"])


@needs_faiss
def test_a_graph_reaches_its_targets(problem):
    rows = time_hnsw(problem, targets=(0.5, 1.0), links=8, build_effort=40, **FAST)
    assert [row["target"] for row in rows] == [0.5, 1.0]
    assert rows[0]["status"] == "done" and rows[0]["recall_10"][0] > 0.5
    assert rows[0]["ef_search"] <= rows[1]["ef_search"]
    assert rows[0]["bytes"] > 4 * DIM + 4 * 16  # floats, and the links of the lowest level


@needs_faiss
def test_a_graph_that_is_not_complete_in_time_is_of_fewer_vectors():
    problem = Problem.of(vectors(100, 1), vectors(5000, 2), vectors(20, 3), max_tuning=20)
    rows = time_hnsw(problem, targets=(0.5,), limit_seconds=1e-6, **FAST)
    assert rows[0]["status"] == "time limit" and rows[0]["rows"] < 5000
    assert rows[0]["recall_10"][0] > 0.5  # among those


@pytest.mark.parametrize(
    "given", [{"library": "annoy"}, {"links": 1}, {"build_effort": 0}, {"limit_seconds": 0}, {"targets": (1.5,)}]
)
@needs_faiss
def test_wrong_graphs_are_refused(problem, given):
    with pytest.raises(ConfigError):
        time_hnsw(problem, **given)


def test_an_index_is_timed_at_each_target(problem):
    problem = Problem.of(vectors(300, 1), vectors(3000, 2), vectors(20, 3), max_tuning=300)
    rows = time_index(trained("plain"), problem, targets=(0.05, 1.0), num_lists=2, **FAST)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    low, high = rows
    assert low["status"] == "done" and low["nprobe"] >= 1 and low["query_us"] > 0
    assert high["status"] == "out of reach" and high["query_us"] is None and "tuning" in high["reason"]
    assert low["bytes"] >= trained("plain").bytes_per_vector and low["fixed_bytes"] > 0


def test_settings_that_there_is_no_time_for_are_told(problem):
    rows = time_index(trained("plain"), problem, targets=(0.01,), num_lists=4, limit_seconds=1e-9, **FAST)
    assert "time" in rows[0]["reason"]


def test_vectors_that_there_is_no_time_to_encode_are_left_out():
    problem = Problem.of(vectors(300, 1), vectors(2500, 2), vectors(20, 3), max_tuning=20)
    rows = time_index(trained("plain"), problem, targets=(0.01,), num_lists=2, limit_seconds=1e-6, **FAST)
    assert rows[0]["rows"] == 1000 and "encoding all 2,500" in rows[0]["reason"]


@pytest.mark.parametrize("given", [{"targets": ()}, {"targets": (0.0,)}, {"limit_seconds": -1}])
def test_wrong_targets_are_refused(problem, given):
    with pytest.raises(ConfigError):
        time_index(trained("plain"), problem, **given)


@pytest.mark.parametrize(
    ("family", "num_bytes", "factory"),
    [
        ("PQ", 16, "IVF64,PQ16x8"), ("PQ", 24, None), ("OPQ", 8, "OPQ8,IVF64,PQ8x8"), ("RQ", 8, "IVF64,RQ7x8_Nqint8"),
        ("RQ", 1, None), ("RaBitQ", 24, "RR128,IVF64,RaBitQ"), ("RaBitQ", 16, None), ("SQ", 128, "IVF64,SQ8"),
        ("SQ", 64, "IVF64,SQ4"), ("SQ", 16, None), ("PCA+RaBitQ", 16, "PCAR64,IVF64,RaBitQ"), ("PCA+RaBitQ", 8, None),
        ("PCA+RaBitQ", 30, None), ("PCA+PQ", 16, "PCAR64,IVF64,PQ16x8"),
    ],
)  # fmt: skip
def test_rivals_have_the_bytes_that_are_asked_for(family, num_bytes, factory):
    rival = rival_of(family, num_bytes, 128, 64)
    assert (None if rival is None else rival.factory) == factory
    assert rival is None or rival.code_bytes == num_bytes


@needs_faiss
@pytest.mark.parametrize("family", [pytest.param("PQ", marks=pytest.mark.slow), "RaBitQ", "SQ"])
def test_rivals_are_timed_as_ours(problem, family):
    size = {"PQ": 3, "RaBitQ": 9, "SQ": DIM}[family]
    rows = time_rival(family, size, vectors(1000, 1), problem, targets=(0.05, 1.0), num_lists=4, **FAST)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0]["status"] == "done" and rows[0]["lists"] == 4 and rows[0]["bytes"] == size + 8
    assert rows[0]["nprobe"] <= 4 and rows[0]["recall_10"][0] > 0.05


@needs_faiss
def test_rivals_that_take_too_long_say_so(problem):
    rows = time_rival("PQ", 6, vectors(5000, 1), problem, targets=(0.5,), num_lists=8, limit_seconds=1e-3, **FAST)
    assert rows[0]["status"] == "time limit" and rows[0]["query_us"] is None


def test_families_without_such_an_index_give_nothing(problem):
    assert time_rival("PQ", 5, vectors(100, 1), problem) == []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"family": "LSH"}, ConfigError),
        ({"num_bytes": 0}, ConfigError),
        ({"train": np.zeros((9, 2), np.float32)}, DataError),
    ],
)
def test_wrong_rivals_are_refused(problem, given, error):
    with pytest.raises(error):
        time_rival(**{"family": "PQ", "num_bytes": 3, "train": vectors(100, 1), "problem": problem} | given)


def test_limits_end_what_takes_long_and_nothing_else():
    with pytest.raises(TimeOver), ended_after(0.01):
        time.sleep(10)
    with ended_after(60):
        pass
    time.sleep(0.02)


def test_other_threads_have_no_limit():
    ends = []

    def work():
        with ended_after(0.001):
            time.sleep(0.01)
        ends.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ends == [True]
