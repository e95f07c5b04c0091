"""Arrays over HTTP: the same as from the library."""

import io
import json

import numpy as np
import pytest
from served import error, result, served
from small_indexes import DIM, trained, vectors

pa = pytest.importorskip("pyarrow")
pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.collection.collection import Collection  # noqa: E402
from qinco.collection.named import NamedCollection  # noqa: E402
from qinco.server import arrow_stream, npy  # noqa: E402

NPY, ARROW = {"Content-Type": npy.TYPE}, {"Content-Type": arrow_stream.TYPE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with Collection.create(folder / "docs.qinco", metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(600), vectors(600), [{"n": n} for n in range(600)])
        docs.optimize()
        docs.upsert(range(600, 650), vectors(50, seed=1))
    with Collection.create(folder / "words.qinco", metric="cosine", dim=DIM) as docs:
        docs.upsert([f"w{n}" for n in range(5)], vectors(5), [{"text": "<b>ü</b>"}] * 5)
    return folder


@pytest.fixture(scope="module")
def client(folder):
    with served(folder, max_queries=50, max_body_bytes=100_000, max_payload_bytes=1000) as client:
        yield client


def found(client, path, body, headers=NPY, **options):
    response = client.post(path, content=body, headers=headers, **options)
    assert response.status_code == 200, response.text
    return np.load(io.BytesIO(response.content), allow_pickle=False)


def docs_of(client, name="docs"):
    return client.app.state.catalog.get(name)


def test_searches_of_npy_give_an_array_of_ids_and_scores(client):
    queries = vectors(20, seed=2)
    for asked, options in (("", {}), ("?k=3&exact=true", {"k": 3, "exact": True}),
                           ('?k=4&where={"n":{"lt":3}}', {"k": 4, "where": {"n": {"lt": 3}}}),
                           ("?nprobe=2&num_short=30", {"nprobe": 2, "num_short": 30})):  # fmt: skip
        answer = found(client, f"/v1/docs/search{asked}", npy.array_bytes(queries))
        expected = docs_of(client).search(queries, **options)
        k = options.get("k", 10)
        assert answer.shape == (20, k) and answer.dtype["id"] == np.int64
        padded = [[hit.id for hit in hits] + [-1] * (k - len(hits)) for hits in expected]
        assert answer["id"].tolist() == padded
        assert np.array_equal(np.isnan(answer["score"]), answer["id"] < 0)
        there = answer["score"][answer["id"] >= 0]
        np.testing.assert_array_equal(there, np.float32([hit.score for hits in expected for hit in hits]))
    one = found(client, "/v1/docs/search", npy.array_bytes(queries[0].astype(np.float16)))
    assert one.shape == (1, 10)
    texts = found(client, "/v1/words/search?k=7", npy.array_bytes(queries))
    assert texts["id"][0].tolist()[5:] == ["", ""] and set(texts["id"][0][:5]) == {f"w{n}" for n in range(5)}


def test_searches_of_arrow_give_a_table_and_any_may_be_json(client):
    queries = vectors(3, seed=2)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(queries.ravel()), DIM)
    body = arrow_stream.table_bytes(pa.table({"q": lists}))
    response = client.post("/v1/docs/search?with_payload=true", content=body, headers=ARROW)
    table = pa.ipc.open_stream(response.content).read_all()
    expected = docs_of(client).search(queries)
    assert table["query"].to_pylist() == [0] * 10 + [1] * 10 + [2] * 10
    assert table["rank"].to_pylist() == [*range(10)] * 3
    assert table["id"].to_pylist() == [hit.id for hits in expected for hit in hits]
    payloads = [None if text is None else json.loads(text) for text in table["payload"].to_pylist()]
    assert payloads == [hit.payload for hits in expected for hit in hits]
    asked = NPY | {"Accept": "application/json, */*"}
    response = client.post("/v1/words/search?k=2&with_payload=true", content=npy.array_bytes(queries), headers=asked)
    assert response.headers["content-type"].startswith("application/json")
    assert all(hit["payload"] == {"text": "<b>ü</b>"} for hits in response.json()["result"] for hit in hits)
    assert len(response.json()["result"]) == 3


def test_codes_and_vectors_are_those_of_the_codec(client):
    x = vectors(30, seed=3)
    codes = found(client, "/v1/docs/encode", npy.array_bytes(x))
    np.testing.assert_array_equal(codes, trained("plain").encode(x).codes)
    decoded = found(client, "/v1/docs/decode", npy.array_bytes(codes))
    np.testing.assert_array_equal(decoded, trained("plain").decode(codes))
    assert "optimize" in error(client.post("/v1/words/encode", content=npy.array_bytes(x), headers=NPY), 400)


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("/v1/none/search", NPY, 404), ("/v1/docs/search?k=0", NPY, 400), ("/v1/docs/search?k=x", NPY, 400),
        ("/v1/docs/search?k=10001", NPY, 413), ("/v1/docs/search?kk=3", NPY, 400),
        ("/v1/docs/search?exact=1", NPY, 400),
        ("/v1/docs/search?where=x", NPY, 400), ("/v1/docs/search?where=[]", NPY, 400), ("/v1/docs/search", {}, 415),
        ('/v1/docs/search?where={"$x":1}', NPY, 400), ("/v1/docs/search?with_payload=true", NPY, 400),
        ("/v1/docs/search", {"Content-Type": "application/json"}, 415), ("/v1/docs/search", ARROW, 422),
        ("/v1/docs/search", NPY | {"Accept": "text/html"}, 415), ("/v1/docs/points", NPY, 415),
        ("/v1/docs/decode", NPY, 400), ("/v1/docs/encode", ARROW, 415),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(client, path, headers, code):
    error(client.post(path, content=npy.array_bytes(vectors(2)), headers=headers), code)


@pytest.mark.parametrize("x", [vectors(51), vectors(2)[:, :3], np.full((2, DIM), np.nan), np.full((2, DIM), 1e300)])
def test_wrong_queries_are_refused(client, x):
    error(client.post("/v1/docs/search", content=npy.array_bytes(x), headers=NPY), 413 if len(x) > 50 else 400)


def stream(first, count, rows=10, dim=DIM, **columns):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(count * dim, np.float32)), dim)
    columns = {"id": list(range(first, first + count)), "vector": lists} | columns
    sink = pa.BufferOutputStream()
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, rows)
    return sink.getvalue().to_pybytes()


def lines(response):
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_streams_are_acknowledged_by_batch(client):
    body = stream(1000, 25, year=list(range(25)))
    response = client.post("/v1/docs/points", content=iter([body[:100], body[100:900], body[900:]]), headers=ARROW)
    assert lines(response) == [{"committed": 10}, {"committed": 20}, {"committed": 25}]
    assert [one.payload for one in docs_of(client).get([1000, 1024])] == [{"year": 0}, {"year": 24}]
    response = client.put("/v1/docs/points?payload=false", content=stream(1000, 1, year=[7]), headers=ARROW)
    assert lines(response) == [{"committed": 1}] and docs_of(client).get([1000])[0].payload is None
    assert lines(client.post("/v1/docs/points", content=stream(0, 0), headers=ARROW)) == [{"committed": 0}]


def test_the_batch_that_fails_is_told_and_those_before_it_are_kept(client):
    good, bad = stream(2000, 20, text=["x"] * 20), stream(3000, 10, text=["x" * 2000] * 10)
    sink = pa.BufferOutputStream()
    parts = [pa.ipc.open_stream(one).read_all() for one in (good, bad)]
    with pa.ipc.new_stream(sink, parts[0].schema) as writer:
        for part in parts:
            writer.write_table(part, 10)
    answer = lines(client.post("/v1/docs/points", content=sink.getvalue().to_pybytes(), headers=ARROW))
    assert answer[:2] == [{"committed": 10}, {"committed": 20}]
    assert answer[2]["status"] == 413 and answer[2]["committed"] == 20 and "bytes" in answer[2]["error"]
    assert 2019 in docs_of(client) and 3000 not in docs_of(client)
    error(client.post("/v1/docs/points", content=bad, headers=ARROW), 413)
    assert lines(client.post("/v1/docs/points", content=good[:-200], headers=ARROW))[-1]["status"] == 422


@pytest.mark.parametrize(
    "body",
    [
        stream(0, 3, id=None), stream(0, 3, id=[1, 1, 2]), stream(0, 3, vector=None), stream(0, 3, id=[-1, 2, 3]),
        stream(0, 3, dim=4), b"", b"{}",
    ],
)  # fmt: skip
def test_wrong_streams_are_refused(client, body):
    response = client.post("/v1/docs/points", content=body, headers=ARROW)
    assert response.status_code in (400, 422) and response.json()["status"]["error"]
    error(client.post("/v1/docs/points?ids=x", content=stream(0, 3), headers=ARROW), 400)


def test_statistics_and_jobs(client):
    assert result(client.get("/v1/docs/stats"))["compressed"] == 600
    assert result(client.get("/v1/words/optimize")) == {"state": "none"}
    assert client.post("/v1/words/optimize").status_code == 202
    error(client.post("/v1/words/optimize?minutes=-1"), 400)
    error(client.post("/v1/words/optimize?minutes=x"), 422)
    error(client.post("/v1/none/optimize"), 404)
    client.app.state.jobs.wait()
    done = result(client.get("/v1/words/optimize"))
    assert done["state"] == "done" and done["result"] == {"trained": False, "encoded": 0, "merged_segments": 0}


IMAGES, TEXTS = vectors(60, 4), np.ascontiguousarray(vectors(60, 9)[:, :4])


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A client of `photos`, of named vectors, of `one` with a single name, and of `several` vectors a record."""
    folder = tmp_path_factory.mktemp("named")
    kinds = {"image": {"codec": trained("plain")}, "text": {"dim": 4}, "coarse": {"codec": trained("ivf")}}
    with NamedCollection.create(folder / "photos.qinco", kinds) as docs:
        docs.upsert(range(60), {"image": IMAGES, "coarse": IMAGES})
        docs.optimize(progress=False)
    NamedCollection.create(folder / "one.qinco", {"only": {}}).close()
    Collection.create(folder / "several.qinco", multi=True).close()
    Collection.create(folder / "plain.qinco").close()
    with served(folder) as client:
        yield client


def test_codes_are_those_of_the_codec_of_a_name(named):
    codes = found(named, "/v1/photos/encode?using=image", npy.array_bytes(IMAGES))
    unit = IMAGES / np.linalg.norm(IMAGES, axis=1, keepdims=True)  # metric cosine
    np.testing.assert_array_equal(codes, trained("plain").encode(unit).codes)
    decoded = found(named, "/v1/photos/decode?using=image", npy.array_bytes(codes))
    np.testing.assert_array_equal(decoded, trained("plain").decode(codes))
    hits = found(named, "/v1/photos/search?using=image&k=3", npy.array_bytes(IMAGES[:2]))
    assert hits["id"].tolist() == [[hit.id for hit in some] for some in
                                   docs_of(named, "photos").search(IMAGES[:2], 3, using="image")]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("photos/encode", "using="), ("photos/encode?using=imge", "Did you mean image"), ("photos/encode?using=", "''"),
        ("photos/encode?using=text", "optimize"), ("photos/encode?using=coarse", "coarse"),
        ("photos/encode?usng=x", "usng"),
        ("plain/encode?using=image", "no names"), ("plain/search?using=image", "no names"),
        ("photos/search?using=imge", "image"), ("one/encode", "optimize"),
    ],
)  # fmt: skip
def test_codes_of_other_names_are_refused(named, path, said):
    assert said in error(named.post(f"/v1/{path}", content=npy.array_bytes(IMAGES[:2]), headers=NPY), 400)


@pytest.mark.parametrize("x", [TEXTS[:2], np.full((2, DIM), np.nan, np.float32)])
def test_other_vectors_of_a_name_are_not_encoded(named, x):
    error(named.post("/v1/photos/encode?using=image", content=npy.array_bytes(x), headers=NPY), 400)


def arrow(rows=10, **columns):
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
             for name, x in columns.items() if isinstance(x, np.ndarray)}  # fmt: skip
    table, sink = pa.table(columns | lists), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, rows)
    return sink.getvalue().to_pybytes()


def photos(count=25, **more):
    texts = pa.array([TEXTS[row].tolist() if row % 2 else None for row in range(count)], pa.list_(pa.float32()))
    return arrow(id=list(range(1000, 1000 + count)), image_embedding=IMAGES[:count], text=texts, **more)


def test_streams_have_columns_of_named_vectors(named):
    docs, texts = docs_of(named, "photos"), {"$vector": "text"}
    for columns in "image:image_embedding,text:text", '{"image": "image_embedding", "text": "text"}':
        response = named.post("/v1/photos/points", params={"vector": columns}, content=photos(), headers=ARROW)
        assert lines(response) == [{"committed": 10}, {"committed": 20}, {"committed": 25}]
        assert docs.count(texts) == 12 and docs.count({"$vector": "image"}) == 85
    np.testing.assert_array_equal(docs.get([1001], with_vectors=["text"])[0].vector["text"], TEXTS[1])
    more = photos(coarse_vector=IMAGES[:25], year=list(range(25)))
    assert lines(named.post("/v1/photos/points", content=more, headers=ARROW))[-1] == {
        "committed": 25
    }  # by their names
    assert docs.get([1003])[0].payload == {"year": 3} and docs.count({"$vector": "coarse"}) == 85
    assert lines(named.post("/v1/photos/points?vector=image:image_embedding", content=photos(), headers=ARROW))
    assert docs.count(texts) == 0 and docs.count({"$vector": "image"}) == 85 and docs.verify() == []  # whole records
    empty = named.post("/v1/photos/points", content=arrow(id=[], image=IMAGES[:0]), headers=ARROW)
    assert lines(empty) == [{"committed": 0}]
    for path in "one/points", "one/points?vector=only", "one/points?vector=only:only":
        assert lines(named.post(f"/v1/{path}", content=arrow(id=["a"], only=IMAGES[:1]), headers=ARROW))


@pytest.mark.parametrize(
    ("columns", "body", "said"),
    [
        ("image:none", photos(), "none"), ("imge:image_embedding", photos(), "image"),
        ("image:text", photos(), "dimension 6"), ("image_embedding", photos(), "by name"),
        ("image:a,image:b", photos(), "twice"), ("image:", photos(), "image:"), ('{"image": 3}', photos(), "image"),
        ("", photos(), "by name"), ("image:image", arrow(id=[1, 1], image=IMAGES[:2]), "ids"),
        ("image:image", arrow(image=IMAGES[:2]), "ids"), (None, photos(), "'coarse'"),
        ("image:image", arrow(id=[1, 2], image=np.full((2, DIM), np.nan, np.float32)), "NaN"),
    ],
)  # fmt: skip
def test_wrong_streams_of_named_vectors_are_refused(named, columns, body, said):
    docs = docs_of(named, "photos")
    count, params = docs.count(), {} if columns is None else {"vector": columns}
    assert said in error(named.post("/v1/photos/points", params=params, content=body, headers=ARROW), 400)
    assert docs.count() == count


def test_streams_of_vectors_without_names_have_one_column(named):
    for path in "plain/points?vector=image:image", "several/points?vector=image":
        error(named.post(f"/v1/{path}", content=arrow(id=[1], image=IMAGES[:1]), headers=ARROW), 400)
