"""Named vectors from files, tables, arrays and iterators, and into Parquet files."""

import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_indexes import trained, vectors

from qinco.collection.named import NamedCollection
from qinco.errors import ConfigError, DataError

N = 600
X, T = vectors(N, 4), vectors(N, 9)[:, :4]
TEXTS = [None if row % 3 == 0 else T[row].tolist() for row in range(N)]
WITH_TEXT = sum(one is not None for one in TEXTS)
IDS = [f"p{row}" for row in range(N)]
GIVEN = {"image": "image_embedding", "text": "text_vector"}


class Stopped(Exception):
    """As of a kill between two transactions."""


def lists(x_ND):
    return pa.FixedSizeListArray.from_arrays(pa.array(x_ND.ravel()), x_ND.shape[1])


def table(first=0, stop=N):
    some = slice(first, stop)
    return pa.table({"id": IDS[some], "image_embedding": lists(X[some]), "year": list(range(first, stop)),
                     "text_vector": pa.array(TEXTS[some], pa.list_(pa.float32())),
                     "text": ["words"] * (stop - first)})  # fmt: skip


def dicts():
    return [{"id": id, "image": x_D, "year": row} | ({} if TEXTS[row] is None else {"text": TEXTS[row]})
            for row, (id, x_D) in enumerate(zip(IDS, X, strict=True))]  # fmt: skip


def parquet(folder):
    pq.write_table(table(), folder / "photos.parquet", row_group_size=150)
    return folder / "photos.parquet"


def json_lines(folder):
    lines = [json.dumps(one | {"image": one["image"].tolist()}) for one in dicts()]
    (folder / "photos.jsonl").write_text("\n".join(lines))
    return folder / "photos.jsonl"


def columns(first=0, stop=N):
    some = slice(first, stop)
    return {"id": IDS[some], "image": X[some], "text": TEXTS[some], "year": list(range(first, stop))}


SOURCES = {
    "parquet": parquet,
    "table": lambda folder: table(),
    "pandas": lambda folder: table().to_pandas(),
    "columns": lambda folder: columns(),
    "json lines": json_lines,
    "dicts": lambda folder: dicts(),
    "reader": lambda folder: table().to_reader(70),
    "batches of columns": lambda folder: (columns(first, first + 60) for first in range(0, N, 60)),
    "single dicts": lambda folder: iter(dicts()),
    "tuples": lambda folder: ((IDS[row : row + 50], {"image": X[row : row + 50], "text": TEXTS[row : row + 50]},
                               [{"year": year} for year in range(row, row + 50)]) for row in range(0, N, 50)),
}  # fmt: skip


@pytest.fixture
def docs(tmp_path):
    with NamedCollection.create(tmp_path / "c.qinco", {"image": {"metric": "l2"}, "text": {"metric": "l2"}}) as docs:
        yield docs


@pytest.mark.parametrize("kind", SOURCES)
def test_records_come_with_the_vectors_of_each_name(docs, tmp_path, kind):
    assert docs.upsert_from(SOURCES[kind](tmp_path), progress=False) == N
    assert docs.count({"$vector": "image"}) == N and docs.count({"$vector": "text"}) == WITH_TEXT
    for row in 7, 8, 9, N - 1:
        (record,) = docs.get(IDS[row], with_vectors=True)
        np.testing.assert_array_equal(record.vector["image"], X[row])
        assert ("text" in record.vector) == (row % 3 > 0) and record.payload["year"] == row
        if row % 3:
            np.testing.assert_array_equal(record.vector["text"], T[row])
    assert "image_embedding" not in record.payload and docs.verify() == []


def test_arrays_and_files_are_given_by_name(docs, tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "both.npz", image=X, text=T, other=T)
    both = str(tmp_path / "both.npz")
    for source, options in [({"image": X, "text": T}, {}), ({"image": tmp_path / "x.npy", "text": T}, {}),
                            (both, {}), (both, {"vector": {"image": "image", "text": "other"}})]:  # fmt: skip
        docs.clear()
        assert docs.upsert_from(source, ids=IDS, payload=[{"n": n} for n in range(N)], progress=False, **options) == N
        (record,) = docs.get("p9", with_vectors=True)
        np.testing.assert_array_equal(record.vector["image"], X[9])
        np.testing.assert_array_equal(record.vector["text"], T[9])
        assert record.payload == {"n": 9}


def test_columns_are_named_or_found_and_told(docs, tmp_path, caplog):
    caplog.set_level(logging.INFO, "qinco")
    docs.upsert_from(table(), progress=False)
    told = [message for message in caplog.messages if "vectors '" in message]
    assert len(told) == 2 and "'image_embedding'" in told[0] and "'text_vector'" in told[1]
    docs.upsert_from(table(0, 10), vector={"image": "image_embedding"}, progress=False)  # the rest is left out
    assert docs.count({"$vector": "text"}) == WITH_TEXT - 6 and docs.count({"$vector": "image"}) == N
    docs.upsert_from({"id": ["p0"], "both": T[:1], "image": [None]}, vector={"image": "image", "text": "both"})
    assert docs.get("p0", with_vectors=True)[0].vector.keys() == {"text"}
    with NamedCollection.create(tmp_path / "d.qinco", {"small": {"bytes": 2}, "large": {}}) as twice:
        twice.upsert_from(table(), vector=dict.fromkeys(["small", "large"], "image_embedding"), progress=False)
        assert twice.search(X[3], 1, using="small") == twice.search(X[3], 1, using="large")


def test_the_only_name_needs_no_mapping(tmp_path):
    with NamedCollection.create(tmp_path / "c.qinco", {"only": {}}) as docs:
        path = parquet(tmp_path)
        for source, options in [(X, {}), (f"{path}:image_embedding", {}), (path, {"vector": "image_embedding"})]:
            assert docs.upsert_from(source, **options, progress=False) == N
            docs.clear()


def test_a_name_may_have_its_first_vectors_late(docs, tmp_path):
    late = table().set_column(3, "text_vector", pa.array([None] * (N - 1) + [T[0].tolist()], pa.list_(pa.float32())))
    batches = [{"id": ["a"], "image": X[:1], "text": [None]}, {"id": ["b"], "image": X[:1], "text": T[:1]},
               [{"id": "c", "image": X[0]}], (["d"], {"image": X[:1]})]  # fmt: skip
    for source, found in [(late, 1), (iter(batches[:2] + batches[2:]), 1)]:
        docs.clear()
        docs.upsert_from(source, progress=False)
        assert docs.count({"$vector": "text"}) == found and docs.count({"$vector": "image"}) == docs.count() > 3


def test_batches_may_leave_names_and_ids_out(docs):
    docs.upsert_from(iter([(None, {"image": X[:2], "text": None}), (None, {"text": T[:1]})]), progress=False)
    assert [record.vector.keys() for record in docs.get(with_vectors=True)] == [{"image"}, {"image"}, {"text"}]
    docs.upsert_from(iter([(["a"], {}, [{"n": 1}])]), progress=False)
    assert docs.get("a", with_vectors=True)[0].vector in (None, {}) and docs.get("a")[0].payload == {"n": 1}


def test_what_is_stored_is_not_read_again_after_a_kill(docs, tmp_path):
    wide = {"id": list(range(3000)), "image": np.tile(X, (5, 400)), "text": np.tile(T, (5, 1))}
    begun = []

    def stop(stage, done, total, unit="vector", **fields):
        begun.append(done)
        if done > 1500:
            raise Stopped

    with pytest.raises(Stopped):
        docs.upsert_from(wide, progress=stop)
    stored = begun[-1]
    assert docs.count() == stored < 3000 and docs.count({"$vector": "text"}) == stored and docs.verify() == []
    begun.clear()
    with pytest.raises(Stopped):
        docs.upsert_from(wide, progress=stop)
    assert begun[0] == stored
    assert docs.upsert_from(wide, progress=False) == 3000 == docs.count({"$vector": "image"})
    assert docs.upsert_from({"id": [1], "image": np.tile(X[:1], 400), "text": T[:1]}, progress=False) == 1
    assert docs.count() == 3000 and docs.verify() == []


def test_a_collection_is_made_of_a_source(tmp_path, caplog):
    caplog.set_level(logging.INFO, "qinco")
    kinds = {"image": {"codec": trained("plain"), "metric": "l2"}, "text": {"metric": "l2"}}
    options = {"vector": GIVEN, "fields": {"year": "integer"}, "payload": ["year"]}

    def stop(stage, done, total, unit="vector", **fields):
        if stage == "searching exactly":
            raise Stopped

    with pytest.raises(Stopped):
        NamedCollection.create(tmp_path / "m.qinco", kinds, table(), **options, progress=stop)
    with pytest.raises(ConfigError, match=r"text\.bytes=8 there, 4 here"):
        NamedCollection.create(tmp_path / "m.qinco", kinds | {"text": {"metric": "l2", "bytes": 4}}, table(), **options)
    with NamedCollection.create(tmp_path / "m.qinco", kinds, table(), **options, progress=False) as docs:
        stats = docs.stats()["vectors"]
        assert len(docs) == stats["image"]["compressed"] == N and stats["text"]["fresh"] == WITH_TEXT
        assert stats["image"]["recall"]["is_current"] and stats["text"]["recall"] is None
        assert docs.get("p3")[0].payload == {"year": 3} and docs.fields == {"year": "integer"} and docs.verify() == []
    assert len([one for one in caplog.messages if "recall@10" in one and "'image'" in one]) == 1
    with pytest.raises(ConfigError, match="overwrite=true"):  # it is complete
        NamedCollection.create(tmp_path / "m.qinco", kinds, table(), **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ids": "id"}, "columns of a source"), ({"source": table(), "vector": {"image": "none"}}, "'none'"),
        ({"source": table(), "vector": "image_embedding"}, "by name"),
        ({"source": table(), "fields": {"yaer": "integer"}}, "Did you mean year"),
        ({"source": table(), "minutes": 0}, "minutes"), ({"source": table(0, 0)}, "no rows"),
    ],
)  # fmt: skip
def test_no_collection_is_made_of_what_is_wrong(tmp_path, options, said):
    with pytest.raises((ConfigError, DataError), match=said):
        NamedCollection.create(tmp_path / "m.qinco", {"image": {}, "text": {}}, **options)
    assert not (tmp_path / "m.qinco").exists()


def nan(x_ND):
    x_ND = x_ND[:3].copy()
    x_ND[1, 2] = np.nan
    return x_ND


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        (table(), {"vector": {"image": "imag"}}, "'imag'"),
        (table(), {"vector": {"image": "text"}}, "not lists of numbers"),
        (table(), {"vector": {"imge": "image_embedding"}}, "Did you mean image"),
        (table(), {"vector": "image_embedding"}, "by name"),
        (table(), {"vector": {}}, "by name"),
        (table(), {"vector": {"image": None}}, "by name"),
        (table(), {"vector": {"image": "text_vector"}}, "dimension 6"),
        (table(), {"vector": dict.fromkeys(GIVEN, "text_vector")}, "dimension 6"),
        (table().drop_columns(["text_vector"]), {}, "vector={'image': 'image_embedding'}"),
        (table(0, 0), {}, "holds no rows"),
        ([], {}, "holds no rows"),
        (X, {}, "2 names"),
        ({"image": X, "text": T[:9]}, {}, "equally many"),
        ({"image": T, "text": T}, {}, "dimension 6"),
        ({"image": "none.npy", "text": T}, {}, "none.npy"),
        ({"image": nan(X), "text": T[:3]}, {}, "row 1 of source.'image'. holds NaN"),
        ({"id": [1, 2, 3], "image": X[:3], "text": nan(T)}, {}, "row 1 of source:text holds NaN"),
        ([{"image": X[0], "text": nan(T)[1]}], {}, "source:text holds NaN"),
        ({"id": ["a", "a"], "image": X[:2], "text": T[:2]}, {"ids": "id"}, "rows 0 and 1 have the same"),
        (iter([([1], X[:1])]), {}, "dict by name"),
        (iter([([1], {"imge": X[:1]})]), {}, "imge"),
        (iter([([1], {"image": T[:1]})]), {}, "dimension 6"),
        (iter([([1, 2], {"image": X[:1]})]), {}, "as many ids"),
        (None, {}, "integers or floats"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_stored(docs, source, options, said):
    docs.upsert(["p"], {"image": X[:1], "text": T[:1]})
    with pytest.raises((ConfigError, DataError), match=said):
        docs.upsert_from(source, **options, progress=False)
    assert docs.count() == 1 and docs.verify() == []


def test_other_sources_are_refused_for_what_they_are(docs, tmp_path):
    np.save(tmp_path / "x.npy", X)
    for source, options, said in [(f"{parquet(tmp_path)}:image_embedding", {}, "2 names"),
                                  (tmp_path / "x.npy", {}, "2 names"),
                                  (tmp_path / "x.npy", {"vector": {"image": "a"}}, "without columns")]:  # fmt: skip
        with pytest.raises((ConfigError, DataError), match=said):
            docs.upsert_from(source, **options)
    with NamedCollection.open(docs.folder, read_only=True) as reader, pytest.raises(ConfigError, match="read_only"):
        reader.upsert_from(table())


@pytest.mark.parametrize("is_encoded", [False, True])
def test_exports_have_codes_and_vectors_of_each_name(tmp_path, is_encoded):
    codec = trained("plain")
    with NamedCollection.create(tmp_path / "c", {"image": {"codec": codec, "metric": "l2"}, "text": {}}) as docs:
        docs.upsert_from(table(), vector=GIVEN, progress=False)
        if is_encoded:
            docs.optimize(progress=False)
            docs.update_vectors(["p3"], {"image": X[100:101]})
            docs.delete(["p4"])
            docs.delete_vectors("image", ["p5"])
        assert docs.export(tmp_path / "x.parquet", with_vectors=True) == docs.count()
        found = {row["id"]: row for row in pq.read_table(tmp_path / "x.parquet").to_pylist()}
        records = docs.get(with_vectors=True)
        assert found.keys() == {record.id for record in records} and json.loads(found["p7"]["payload"])["year"] == 7
        for record in records:
            row = found[record.id]
            for name in "image", "text":
                assert (row[f"vector_{name}"] is None) == (name not in record.vector)
                np.testing.assert_allclose(record.vector.get(name, []), row[f"vector_{name}"] or [], rtol=1e-6)
        if is_encoded:
            assert found["p3"]["code_image"] is None and found["p5"]["code_image"] is None
            np.testing.assert_array_equal(
                np.frombuffer(found["p9"]["code_image"], np.uint8), codec.encode(X[9:10]).codes[0]
            )
        assert docs.export(tmp_path / "x.parquet", overwrite=True) == docs.count()
        names = pq.read_table(tmp_path / "x.parquet").column_names
        assert names == ["id", "payload", *(["code_image"] if is_encoded else [])]
        with pytest.raises(ConfigError, match="overwrite"):
            docs.export(tmp_path / "x.parquet")


def test_an_export_is_a_source(docs, tmp_path):
    docs.upsert_from(table(), progress=False)
    docs.export(tmp_path / "x.parquet", with_vectors=True)
    with NamedCollection.create(tmp_path / "d.qinco", {"image": {}, "text": {}}) as again:
        again.upsert_from(tmp_path / "x.parquet", progress=False)
        assert len(again) == N and again.count({"$vector": "text"}) == WITH_TEXT
        np.testing.assert_array_equal(again.get("p8", with_vectors=True)[0].vector["image"], X[8])


def test_recall_is_that_of_a_name(docs):
    docs.upsert_from(table(), progress=False)
    source = table()
    found = docs.evaluate(source, using="image", vector="image_embedding", num_queries=20, progress=False)
    assert found["recall"] == 1 and found["num_vectors"] == N
    found = docs.evaluate(source, using="text", num_queries=20, progress=False)  # the column is found
    assert found["recall"] == 1 and found["num_vectors"] == WITH_TEXT
    with pytest.raises(ConfigError, match="using="):
        docs.evaluate(source, vector="text_vector")
    with pytest.raises(DataError, match="no vectors are compressed"):
        docs.retrain_from(source, using="image", vector="image_embedding", progress=False)
