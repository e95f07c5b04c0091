"""Recall of collections beside an exact search over the original vectors."""

import json
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_indexes import trained, vectors

from qinco.collection.collection import Collection
from qinco.errors import ConfigError, DataError
from qinco.machine import processor_name, using_threads

X_ND = vectors(3000, 3)
IDS = [f"doc-{row}" for row in range(len(X_ND))]


def plain_recall(docs, queries_QD, own_Q, k, ids=IDS, x_ND=X_ND):
    """By all distances of float64."""
    shares = []
    for query_D, own in zip(queries_QD, own_Q, strict=True):
        order = np.argsort(np.square(x_ND.astype(float) - query_D).sum(1), kind="stable")
        near = [ids[row] for row in order if ids[row] != own][:k]
        found = [hit.id for hit in docs.search(query_D, k + 1) if hit.id != own][:k]
        shares.append(len({*near} & {*found}) / k)
    return np.mean(shares)


def without_times(found):
    """A measurement without what differs from one to the next."""
    return {name: value for name, value in found.items() if name != "latency"}


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "c.qinco"
    table = {"id": IDS, "vector": X_ND, "year": list(range(len(X_ND)))}
    with Collection.create(folder, table, codec=trained("plain"), metric="l2", fields={"year": "integer"}) as docs:
        yield docs


def test_creation_measures_recall_of_sampled_records(docs):
    kept = docs.stats()["recall"]
    assert kept.pop("is_current") and datetime.fromisoformat(kept.pop("measured_at")).tzinfo is not None
    found, again = kept, docs.evaluate({"id": IDS, "vector": X_ND})
    assert without_times(found) == without_times(again) and 0 < found["recall"] < 1
    assert (found["k"], found["num_queries"], found["num_vectors"]) == (10, 100, len(X_ND))
    starts = np.unique(np.linspace(0, len(X_ND) - 5, 20).astype(int))
    rows = (starts[:, None] + np.arange(5)).ravel()
    assert found["recall"] == pytest.approx(plain_recall(docs, X_ND[rows], [IDS[row] for row in rows], 10))
    assert docs.stats()["fields"] == {"year": "integer"}


def test_given_queries_are_compared_with_all_vectors(docs):
    queries_QD = vectors(20, 7)
    batches = ({"id": IDS[row : row + 700], "vector": X_ND[row : row + 700]} for row in range(0, len(X_ND), 700))
    found = docs.evaluate(batches, queries=queries_QD, k=5)
    assert found["recall"] == pytest.approx(plain_recall(docs, queries_QD, [None] * 20, 5))
    assert found["num_vectors"] == len(X_ND) and found["num_queries"] == 20


def test_sources_of_unknown_length_and_without_some_vectors(docs, tmp_path):
    lines = [{"id": id, "vector": None if row % 3 == 0 else x_D.tolist()} for row, (id, x_D) in
             enumerate(zip(IDS[:300], X_ND[:300], strict=True))]  # fmt: skip
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = docs.evaluate(tmp_path / "x.jsonl", num_queries=30)
    assert found["num_vectors"] == 200 and found["num_queries"] == 20
    with pytest.raises(DataError, match="more than one"):
        docs.evaluate({"id": IDS[:1], "vector": X_ND[:1]})


def test_queries_are_sampled_across_row_groups(docs, tmp_path):
    columns = {"id": IDS, "vector": pa.FixedSizeListArray.from_arrays(pa.array(X_ND.ravel()), X_ND.shape[1])}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=7)
    found = docs.evaluate(tmp_path / "x.parquet")
    assert without_times(found) == {name: docs.stats()["recall"][name] for name in without_times(found)}


@pytest.mark.parametrize("payload", [True, False])
def test_recall_is_dated_and_measured_again_where_the_originals_are_there(tmp_path, payload):
    def kept():
        with Collection.open(tmp_path / "c.qinco", read_only=True) as reader:
            return reader.stats()["recall"]

    x_ND, training = (
        X_ND[:1200],
        {"epochs": 1, "num_blocks": 1, "hidden_dim": 8, "batch_size": 256, "num_pairs": 16, "beam_width": 4},
    )
    changes = [lambda: docs.upsert([0], X_ND[-1:]), lambda: docs.delete([0]), lambda: docs.upsert([0], X_ND[:1]),
               lambda: docs.optimize(progress=False)]  # fmt: skip
    with Collection.create(tmp_path / "c.qinco", x_ND, codec=trained("plain"), metric="l2", payload=payload) as docs:
        first = kept()
        assert first["is_current"]
        for change in changes:
            change()
            assert kept() == first | {"is_current": False}
        docs.retrain([*range(1200), 9999], X_ND[:1201], **training)
        assert kept() == first | {"is_current": False}  # by some others than the records
        docs.upsert([1, 2], X_ND[1:3])
        docs.retrain(range(1200), x_ND, **training)
        found, again = kept(), without_times(docs.evaluate(x_ND))
        assert found["is_current"] and again == {name: found[name] for name in again} and found["num_vectors"] == 1200
        docs.add_field("year", "integer") if payload else None
        assert kept()["is_current"]


def test_times_are_kept_with_what_they_depend_on(docs):
    before = docs.stats()["recall"]
    with using_threads(1):
        found = docs.evaluate({"id": IDS, "vector": X_ND}, num_queries=40)
    assert found["latency"].keys() == before["latency"].keys() and docs.stats()["recall"] == before
    assert (found["latency"]["threads"], found["latency"]["batch"]) == (1, 40)
    assert found["latency"]["machine"] == processor_name()
    assert found["latency"]["batch_microseconds"] > 0 and found["latency"]["microseconds"] > 0


def test_a_measurement_is_kept_on_request(tmp_path):
    with Collection.create(tmp_path / "c.qinco", metric="l2") as docs:
        docs.upsert(range(50), X_ND[:50])
        assert docs.stats()["recall"] is None
        found = docs.evaluate(X_ND[:50], k=3, keep=True)
    with Collection.open(tmp_path / "c.qinco", read_only=True) as docs:
        kept = docs.stats()["recall"]
        assert kept.pop("is_current") and kept.pop("measured_at") and kept == found
        with pytest.raises(ConfigError, match="read_only"):
            docs.evaluate(X_ND[:50], keep=True)


def test_what_is_written_while_it_is_measured_makes_it_old(tmp_path):
    with Collection.create(tmp_path / "c.qinco", metric="l2") as docs:
        docs.upsert(range(50), X_ND[:50])

        def batches():
            yield {"id": [*range(50)], "vector": X_ND[:50]}
            docs.upsert([50], X_ND[50:51])

        docs.evaluate(batches(), queries=X_ND[60:70], keep=True)
        assert not docs.stats()["recall"]["is_current"]


def test_what_cannot_be_measured_is_said(docs, tmp_path):
    with pytest.raises(ConfigError, match="queries="):
        docs.evaluate(iter([{"id": IDS, "vector": X_ND}]))
    with pytest.raises(DataError, match="dimension"):
        docs.evaluate({"id": IDS[:2], "vector": X_ND[:2, :3]})
    with Collection.create(tmp_path / "m.qinco", multi=True) as several, pytest.raises(ConfigError, match="multi"):
        several.evaluate(X_ND)
    with pytest.raises(ConfigError, match="fields="):
        Collection.create(tmp_path / "n.qinco", X_ND, fields={"year": "integer"})
    for path in ("yaer", "yaer.first"):
        with pytest.raises(ConfigError, match="Did you mean year"):
            Collection.create(tmp_path / "n.qinco", {"vector": X_ND, "year": IDS}, fields={path: "integer"})
    with pytest.raises(ConfigError, match="kinds"):
        Collection.create(tmp_path / "n.qinco", fields={"year": "number"})
    assert not (tmp_path / "n.qinco").exists()
