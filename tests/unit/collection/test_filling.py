import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_indexes import trained, vectors

from qinco.collection.collection import Collection
from qinco.errors import ConfigError, DataError

X_ND = vectors(9000, 3)
N, D = X_ND.shape


class Stopped(Exception):
    """As of a kill between two transactions."""


@pytest.fixture
def path(tmp_path):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X_ND.ravel()), D)
    columns = {
        "id": [f"doc-{row}" for row in range(N)],
        "year": [1900 + row % 100 for row in range(N)],
        "embedding": lists,
    }
    pq.write_table(pa.table(columns), tmp_path / "text.parquet", row_group_size=1000)
    return f"{tmp_path}/text.parquet:embedding"


def test_a_collection_is_made_of_a_file_and_tells_what_it_guessed(path, tmp_path, caplog):
    caplog.set_level(logging.INFO, "qinco")
    with Collection.create(tmp_path / "c.qinco", path, codec=trained("plain")) as docs:
        assert docs.count() == docs.stats()["compressed"] == N and docs.metric == "l2"
        assert docs.count({"year": 1907}) == 90 and docs.get("doc-7")[0].payload == {"year": 1907}
        assert docs.search(X_ND[5], 5, exact=True)
        assert docs.verify() == []
    told = [message for message in caplog.messages if "recall@10" in message]
    assert len(told) == 1 and any("bytes a vector" in message for message in caplog.messages)
    assert any("'id'" in message for message in caplog.messages)
    with pytest.raises(ConfigError, match="overwrite=true"):  # it is complete
        Collection.create(tmp_path / "c.qinco", path, codec=trained("plain"))


@pytest.mark.parametrize("at", ["storing", "encoding"])
def test_what_is_stored_is_not_read_again_after_a_kill(path, tmp_path, at):
    def stop(stage, done, total, unit="vector", **fields):
        if stage.startswith(at) and done > 5000:
            raise Stopped

    begun = []

    def note(stage, done, total, unit="vector", **fields):
        if stage == "storing":
            begun.append(done)

    folder = tmp_path / "c.qinco"
    with pytest.raises(Stopped):
        Collection.create(folder, path, codec=trained("plain"), progress=stop)
    with pytest.raises(ConfigError, match="bytes=8 there, 4 here"):
        Collection.create(folder, path, codec=trained("plain"), bytes=4)
    with Collection.create(folder, path, codec=trained("plain"), progress=note) as docs:
        assert begun[0] == (8000 if at == "storing" else N)
        assert docs.stats()["compressed"] == docs.count() == N and docs.verify() == []
        assert [record.id for record in docs.get(limit=2)] == ["doc-0", "doc-1"]


def test_ctrl_c_says_how_to_go_on(path, tmp_path):
    def stop(stage, done, total, unit="vector", **fields):
        if done > 5000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="the same call"):
        Collection.create(tmp_path / "c.qinco", path, codec=trained("plain"), progress=stop)
    with pytest.raises(KeyboardInterrupt, match="optimize goes on"):
        Collection.create(tmp_path / "d.qinco", iter([X_ND]), codec=trained("plain"), progress=stop)
    with Collection.open(tmp_path / "d.qinco") as docs:
        assert docs.count() > 5000


@pytest.mark.parametrize("kind", ["table", "records", "array", "arrow"])
@pytest.mark.parametrize("value", ["a\0b", ["a", "\0"], {"x": "\0"}, [[{"x": "\0"}]]])
def test_a_payload_with_nul_is_refused_and_tells_whose(tmp_path, kind, value):
    values = ["fine", value] if isinstance(value, str) else [None, value]
    x_ND = X_ND[:2]
    sources = {
        "table": {"id": ["one", "two"], "vector": x_ND, "text": values},
        "records": [{"id": id, "vector": X_ND[0], "text": text} for id, text in
                    zip(("one", "two"), values, strict=True)],
        "array": iter([(["one", "two"], x_ND, [{"text": text} for text in values])]),
        "arrow": pa.table({"id": ["one", "two"], "vector": x_ND.tolist(), "text": values}),
    }  # fmt: skip
    with Collection.create(tmp_path / "c.qinco") as docs:
        with pytest.raises(DataError, match="'two' holds the character NUL"):
            docs.upsert_from(sources[kind])
        assert docs.count() == 0


def test_integer_ids_without_payload_are_all_that_is_kept(tmp_path):
    with Collection.create(tmp_path / "a.qinco", X_ND) as docs:
        assert docs.search(X_ND[7], 1)[0].id == 7 and docs.count() == N
        with pytest.raises(ConfigError, match="order"):
            docs.get(order_by="year")
        assert docs.upsert_from((X_ND[first : first + 100] for first in (0, 100)), progress=False) == 200
        assert docs.count() == N
    with Collection.create(tmp_path / "b.qinco", X_ND, payload=True) as docs:
        docs.upsert([0], X_ND[:1], [{"a": 1}])
        assert docs.get(0)[0].payload == {"a": 1}


def test_sources_replace_records_and_are_resumed(path, tmp_path):
    with Collection.create(tmp_path / "c.qinco", metric="l2") as docs:
        docs.upsert(["doc-1", "other"], X_ND[:2], [{"year": 1}, None])

        def stop(stage, done, total, unit="vector", **fields):
            if done > 5000:
                raise Stopped

        with pytest.raises(Stopped):
            docs.upsert_from(path, progress=stop)
        assert 5000 < docs.count() < N
        assert docs.upsert_from(path) == N and docs.count() == N + 1
        assert docs.get("doc-1")[0].payload == {"year": 1901}
        with pytest.raises(DataError, match="dimension 6"):
            docs.upsert_from({"id": ["a"], "vector": X_ND[:1, :3]})
        assert docs.upsert_from({"id": ["a", "b"], "vector": [None, X_ND[0].tolist()]}) == 2
        assert docs.count() == N + 3


def test_columns_need_a_source(tmp_path):
    with pytest.raises(ConfigError, match="minutes"):  # before anything is stored
        Collection.create(tmp_path / "c.qinco", X_ND, minutes=0)
    with pytest.raises(ConfigError, match="source"):
        Collection.create(tmp_path / "c.qinco", ids="id")
    with pytest.raises(DataError):
        Collection.create(tmp_path / "c.qinco", {"vector": X_ND}, ids="idd")
    assert not (tmp_path / "c.qinco").exists()


def test_a_source_has_one_vector_a_record(tmp_path):
    with pytest.raises(ConfigError, match="one vector a row"):
        Collection.create(tmp_path / "c.qinco", X_ND, multi=True)
    assert not (tmp_path / "c.qinco").exists()
    with Collection.create(tmp_path / "c.qinco", multi=True) as docs:
        with pytest.raises(ConfigError, match="one vector a row"):
            docs.upsert_from(X_ND)
        assert docs.count() == 0


def test_the_metric_is_told_where_it_is_guessed(tmp_path, caplog):
    caplog.set_level(logging.INFO, "qinco")
    with Collection.create(tmp_path / "a.qinco", X_ND[:5]) as docs:
        assert any("metric=l2" in message for message in caplog.messages)
        caplog.clear()
        docs.upsert_from(X_ND[5:9], ids=[5, 6, 7, 8])
    Collection.create(tmp_path / "b.qinco", X_ND[:5], metric="cosine").close()
    assert not any("metric" in message for message in caplog.messages)
