"""Neighbours of queries, found and written."""

import json

import numpy as np
import pytest
from small_indexes import built, trained, vectors

import qinco
from qinco.errors import ConfigError, DataError
from qinco.search.measure import neighbors
from qinco.search.metric import Metric
from qinco.vectors.formats import open_array, write_vectors

QUERIES_QD = vectors(40, 1)


@pytest.mark.parametrize("name", ["ids.npy", "ids.ivecs", "ids.ibin"])
def test_ids_and_distances_are_those_of_a_search(name, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbors, "BATCH_QUERIES", 16)
    index = built("ivf")
    distances_QR, ids_QR = index.search(QUERIES_QD, 5, nprobe=2)
    paths = {"output": tmp_path / name, "distances_output": tmp_path / "distances.fvecs"}
    found = qinco.find_neighbors(index, QUERIES_QD, 5, nprobe=2, **paths)
    np.testing.assert_array_equal(found.ids, ids_QR)
    np.testing.assert_array_equal(found.distances, distances_QR)
    assert found.recall is None
    np.testing.assert_array_equal(open_array(paths["output"])[:], ids_QR)
    np.testing.assert_array_equal(open_array(paths["distances_output"])[:], distances_QR)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_records_leave_empty_places_out(suffix, tmp_path):
    index, path = built("plain"), tmp_path / f"found{suffix}"
    found = qinco.find_neighbors(index, QUERIES_QD, 3, filter=[4, 7], output=path)
    if suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        records = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert [record["query"] for record in records] == list(range(len(QUERIES_QD)))
    assert all(sorted(record["ids"]) == [4, 7] for record in records)
    np.testing.assert_array_equal([record["distances"] for record in records], found.distances[:, :2])


def test_a_pair_is_searched_exhaustively_and_truth_adds_recall(tmp_path):
    codec, truth = trained("plain"), tmp_path / "truth.ivecs"
    decoded = codec.decode(codec.encode(vectors()))
    distances_QR, ids_QR = qinco.exhaustive_search(QUERIES_QD, decoded, 10)
    write_vectors(truth, np.roll(ids_QR, -1, axis=1).astype(np.int32))  # the second is the nearest by this truth
    found = qinco.find_neighbors((codec, vectors()), QUERIES_QD, ground_truth=truth)
    np.testing.assert_array_equal(found.ids, ids_QR)
    np.testing.assert_array_equal(found.distances, distances_QR)
    assert found.recall == {1: 0.0, 10: 1.0}


def test_what_cannot_be_is_refused_before_the_search(tmp_path):
    index, there = built("plain"), tmp_path / "there.npy"
    there.write_bytes(b"")
    for error, arguments in (
        (ConfigError, {"output": there}),
        (ConfigError, {"output": tmp_path / "ids.txt"}),
        (ConfigError, {"distances_output": tmp_path / "d.ivecs"}),
        (ConfigError, {"output": tmp_path / "a.npy", "distances_output": tmp_path / "a.npy"}),
        (ConfigError, {"k": 0}),
        (DataError, {"ground_truth": np.full(len(QUERIES_QD), 10**6)}),
    ):
        with pytest.raises(error):
            qinco.find_neighbors(index, QUERIES_QD, **arguments)
    with pytest.raises(DataError):
        qinco.find_neighbors(index, QUERIES_QD[:, :-1])
    assert list(tmp_path.iterdir()) == [there] and there.read_bytes() == b""


@pytest.mark.parametrize("suffix", [".ivecs", ".ibin"])
@pytest.mark.parametrize("odd", [1 << 31, -(1 << 31) - 1])
def test_ids_that_a_file_cannot_hold_are_refused_before_the_search(suffix, odd, tmp_path, monkeypatch):
    index = qinco.Index.build(trained("plain"), vectors(3), ids=[1, odd, 2])
    monkeypatch.setattr(qinco.Index, "search", None)
    with pytest.raises(ConfigError, match=rf"{odd}.*\.npy"):
        qinco.find_neighbors(index, QUERIES_QD, 2, output=tmp_path / f"ids{suffix}")
    monkeypatch.undo()
    assert odd in qinco.find_neighbors(index, QUERIES_QD, 3, output=tmp_path / "ids.npy").ids
    index.remove(odd)
    qinco.find_neighbors(index, QUERIES_QD, 2, output=tmp_path / f"ids{suffix}")
    index.reset()
    qinco.find_neighbors(index, QUERIES_QD, 2, output=tmp_path / f"none{suffix}")


@pytest.mark.parametrize("options", [{"nprobe": 3}, {"filter": [1]}, {"device": "tpu"}])
def test_options_that_a_pair_has_not_are_refused_before_it_is_encoded(options, monkeypatch):
    codec = trained("plain")
    monkeypatch.setattr(qinco.Codec, "encode", None)
    with pytest.raises(ConfigError):
        qinco.find_neighbors((codec, vectors()), QUERIES_QD, **options)


def test_vectors_of_length_1_are_compared_by_cosine(caplog):
    codec, unit_ND = trained("plain"), Metric("cosine").prepare(vectors())
    truth = qinco.exhaustive_search(QUERIES_QD, unit_ND, metric="l2")
    similarities_QR, ids_QR = qinco.exhaustive_search(QUERIES_QD, unit_ND)
    np.testing.assert_allclose(similarities_QR, qinco.exhaustive_search(QUERIES_QD, unit_ND, metric="cosine")[0])
    assert (ids_QR == truth[1]).mean() > 0.98  # one order by each metric, but for rounding
    found = {metric: qinco.find_neighbors((codec, unit_ND), QUERIES_QD, ground_truth=truth, metric=metric)
             for metric in (None, "cosine", "l2")}  # fmt: skip
    assert found[None].metric == "cosine" and found["l2"].metric == "l2"
    assert (found[None].ids == found["cosine"].ids).mean() > 0.98
    recall = qinco.exhaustive_recall(codec, unit_ND, QUERIES_QD, truth)
    assert [recall[rank] for rank in (1, 10)] == pytest.approx([*found[None].recall.values()], abs=0.03)
    assert qinco.find_neighbors(built("plain"), QUERIES_QD).metric == "l2"
    assert not caplog.text  # the ground truth is theirs, though it was found by l2
