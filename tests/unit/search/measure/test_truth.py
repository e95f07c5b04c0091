"""Ground truths of other vectors, of another metric, or of a shape that does not fit are noticed."""

import struct

import h5py
import numpy as np
import pytest
from small_indexes import DIM, NUM_VECTORS, built, decoded, exact, trained, vectors

import qinco
from qinco.errors import ConfigError, DataError
from qinco.search.measure.truth import check_neighbours, open_queries

GENERATOR = np.random.default_rng(0)
X_ND, Q_ND = ((vectors(n, s) * GENERATOR.lognormal(0, 0.8, (n, 1))).astype(np.float32) for n, s in ((600, 2), (90, 3)))
FORMS = {
    "l2": (lambda v: v, np.sqrt), "inner_product": (lambda v: v, lambda v: -v, lambda v: 1 - v),
    "cosine": (lambda v: v, lambda v: 1 - v, lambda v: np.arccos(np.clip(v, -1, 1))),
}  # fmt: skip


def truth_of(metric, q_ND=Q_ND, x_ND=X_ND, count=20):
    values = exact(metric, q_ND, x_ND)
    ids = np.argsort(values if metric == "l2" else -values, 1)[:, :count]
    return ids, np.take_along_axis(values, ids, 1)


def warned(caplog, metric, ids, distances=None, q_ND=Q_ND, x_ND=X_ND) -> str:
    caplog.clear()
    check_neighbours(metric, q_ND, ids, distances, x_ND.__getitem__, x_ND[:200])
    return caplog.text


@pytest.mark.parametrize("metric", FORMS)
def test_a_ground_truth_of_another_metric_or_of_other_vectors_is_noticed(metric, caplog):
    ids, values = truth_of(metric)
    others = [name for name in FORMS if name != metric]
    for distances in (None, *(form(values) for form in FORMS[metric])):
        assert not warned(caplog, metric, ids, distances)
        assert not warned(caplog, metric, ids[:, :1], None if distances is None else distances[:, :1])
        for name in others:
            assert f"of metric={metric}, and metric={name}" in warned(caplog, name, ids, distances)
        assert "other vectors" in warned(caplog, metric, ids, distances, x_ND=X_ND[::-1])
    if metric != "inner_product":  # by which few vectors are nearest to most queries
        assert "other vectors" in warned(caplog, metric, ids[:, :1], q_ND=Q_ND[::-1])


def test_vectors_of_one_length_have_the_same_neighbours_by_any_metric(caplog):
    unit_ND = X_ND / np.linalg.norm(X_ND, axis=1, keepdims=True)
    ids, values = truth_of("cosine", x_ND=unit_ND)
    for metric in FORMS:
        assert not warned(caplog, metric, ids, 1 - values, x_ND=unit_ND)


def test_an_index_is_judged_by_ground_truth_of_its_metric_and_its_vectors(caplog):
    index, queries = built("plain"), vectors(40, 1)
    ids, values = truth_of("l2", queries, decoded("plain"), 5)
    qinco.sweep(index, queries, (np.sqrt(values), ids), nprobe=[1], num_short=[5])
    assert not caplog.text
    by_angle = truth_of("cosine", queries, decoded("plain"), 5)
    qinco.sweep(index, queries, (by_angle[0], 1 - by_angle[1]), nprobe=[1], num_short=[5])
    assert "metric=cosine, and metric=l2" in caplog.text
    caplog.clear()
    qinco.sweep(index, queries, GENERATOR.permutation(NUM_VECTORS)[:40], nprobe=[1], num_short=[5])
    assert "other vectors" in caplog.text


def test_what_an_hdf5_file_states_is_the_metric_or_is_contradicted_aloud(tmp_path, caplog):
    codec, path = trained("plain"), tmp_path / "angular.hdf5"
    ids, values = truth_of("cosine")
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "angular"
        file["train"], file["test"], file["neighbors"], file["distances"] = X_ND, Q_ND, ids, 1 - values
    by_file = path, f"{path}:test", f"{path}:neighbors"
    given = X_ND, Q_ND, ids
    by_angle, by_l2 = (qinco.exhaustive_recall(codec, *given, metric=name) for name in ("angular", "euclidean"))
    assert "metric=cosine, and metric=l2" in caplog.text
    caplog.clear()
    assert qinco.exhaustive_recall(codec, *by_file) == by_angle != by_l2 and not caplog.text
    assert qinco.exhaustive_recall(codec, *by_file, metric="l2") == by_l2
    assert "'angular'" in caplog.text and "metric=l2" in caplog.text
    assert np.array_equal(qinco.exhaustive_search(Q_ND, path, 20)[1], ids)
    assert qinco.Index.build(codec, path, 1).metric == "cosine"
    for search in (
        lambda: built("plain").search(by_file[1]), lambda: built("plain").evaluate(path),
        lambda: qinco.sweep(built("plain"), *by_file[1:], nprobe=[1], num_short=[5]),
    ):  # fmt: skip
        caplog.clear()
        search()
        assert "'angular'" in caplog.text and "metric=l2" in caplog.text
    with pytest.raises(ConfigError, match="metric=cosine"):
        built("plain").tune(*by_file[1:], metric="cosine")


def test_ground_truth_that_cannot_be_that_of_the_queries_is_refused():
    queries = vectors(40, 1)
    for truth in (np.arange(39), np.zeros((10, 40), int), np.zeros(40), -np.ones(40, int), np.arange(40) - 10**6,
                  np.arange(40) + 10**6,
                  np.zeros((40, 0), int), [[1], [2, 3]], (np.zeros((40, 2)), np.zeros((40, 3), int))):  # fmt: skip
        for judge in (built("plain").tune, lambda *given: qinco.sweep(built("plain"), *given),
                      lambda *given: qinco.exhaustive_recall(trained("plain"), vectors(), *given)):  # fmt: skip
            with pytest.raises(DataError):
                judge(queries, truth)
    with pytest.raises(DataError, match="no vectors"):
        built("plain").emptied().tune(queries, np.arange(40))


def test_a_pair_of_distances_and_ids_is_a_ground_truth():
    ids, values = truth_of("l2")
    for pair in ((values, ids), (ids, values)):
        _, found, distances = open_queries(Q_ND, pair, DIM)
        assert np.array_equal(found, ids) and np.array_equal(distances, values)
    assert np.array_equal(open_queries(Q_ND[:2], ([3, 4], [5, 6]), DIM)[1], [[3, 4], [5, 6]])


@pytest.mark.parametrize("header", ["<II", "<QQ"])
def test_the_distances_of_a_big_ann_file_are_read_whatever_its_header(header, tmp_path):
    ids, values = truth_of("l2")
    content = struct.pack(header, *ids.shape) + ids.astype("<u4").tobytes() + values.astype("<f4").tobytes()
    (tmp_path / "gt100").write_bytes(content)
    _, found, distances = open_queries(Q_ND, tmp_path / "gt100", DIM)
    assert np.array_equal(found, ids) and np.array_equal(distances, values.astype(np.float32))
