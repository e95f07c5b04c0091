"""The tasks of collections: what they print and change, and what they refuse."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_indexes import trained, vectors

import qinco
from qinco.cli import main
from qinco.errors import DataError

X_ND = vectors(600, 3)


def write(path, x_ND, **columns):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.ravel()), x_ND.shape[1])
    pq.write_table(pa.table(columns | {"embedding": lists}), path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Files of records, which are the working folder's."""
    monkeypatch.chdir(tmp_path)
    years = [1990 + row % 30 for row in range(len(X_ND))]
    write("text.parquet", X_ND, id=[f"d{row}" for row in range(len(X_ND))], year=years, title=["T"] * len(X_ND))
    write("more.parquet", X_ND[:2], id=["d0", "new"], year=[1, 2])
    np.save("q.npy", X_ND[:2])
    return tmp_path


def lines(capsys, *words) -> list:
    capsys.readouterr()
    assert main(list(words)) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *words, code=2) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("qinco: error: ")
    return err


def test_a_collection_is_made_changed_and_searched(here, capsys):
    (made,) = lines(capsys, "index", "text.parquet:embedding", "output=c.qinco", "fields=year:integer", "bytes=4")
    assert (made["records"], made["fresh"], made["compressed"], made["metric"]) == (600, 600, 0, "l2")
    assert "recall" not in made
    assert lines(capsys, "upsert", "c.qinco", "source=more.parquet")[0] | {"seconds": 0} == {
        "upserted": 2, "records": 601, "seconds": 0}  # fmt: skip
    hits = lines(capsys, "query", "c.qinco", "queries=q.npy", "k=3")
    assert [hit["query"] for hit in hits] == [0, 0, 0, 1, 1, 1]
    assert hits[0] == {"query": 0, "id": "d0", "score": 0.0, "payload": {"year": 1}}
    with qinco.Collection.open("c.qinco", read_only=True) as docs:
        where = {"year": {"lt": 1995}}
        found = docs.search_by_id("d7", 2, where)
        assert docs.stats()["fields"] == {"year": "integer"}
    near = lines(capsys, "query", "c.qinco", "ids=d7", "k=2", f"where={json.dumps(where)}", "with_vectors=true")
    assert [(hit["query"], hit["id"]) for hit in near] == [("d7", hit.id) for hit in found]
    assert np.allclose(near[0]["vector"], X_ND[int(near[0]["id"][1:])])
    options = {"exact": True, "score_limit": 30, "diversity": 0.3, "candidates": 9, "precision": "float32",
               "with_payload": False}  # fmt: skip
    with qinco.Collection.open("c.qinco", read_only=True) as docs:
        wanted = docs.search(X_ND[:2], 3, filter=["d0", "d1", "d2", "d3", 7], nprobe=3, num_short=0, **options)
    words = [f"{name}={json.dumps(value).strip(chr(34))}" for name, value in options.items()]
    words += ["filter=d0,d1,d2,d3,7", "nprobe=3", "num_short=0", "queries=q.npy", "k=3"]
    found = lines(capsys, "query", "c.qinco", *words)
    assert [list(hit) for hit in found] == [["query", "id", "score"]] * len(found) and len(found) > 2
    assert [(hit["id"], hit["score"]) for hit in found] == [(hit.id, hit.score) for hits in wanted for hit in hits]
    assert lines(capsys, "delete", "c.qinco", "ids=new,d1,unknown") == [{"deleted": 2, "records": 599}]
    assert lines(capsys, "delete", "c.qinco", 'where={"year": 1}') == [{"deleted": 1, "records": 598}]
    assert lines(capsys, "optimize", "c.qinco")[0]["trained"] is False
    assert lines(capsys, "stats", "c.qinco", "json=true")[0]["records"] == 598
    assert lines(capsys, "verify", "c.qinco") == [{"is_sound": True, "faults": []}]
    assert lines(capsys, "export", "c.qinco", "output=x.parquet", "with_vectors=true")[0]["records"] == 598
    assert pq.read_table("x.parquet").column_names == ["id", "payload", "vector"]


def test_recall_is_printed_of_compressed_vectors(here, capsys):
    trained("plain").save("codec.safetensors")
    words = ["index", "text.parquet", "output=c.qinco", "model=codec.safetensors", "format=table", "payload=year,title"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    with qinco.Collection.open("c.qinco") as docs:
        recall = docs.stats()["recall"]["recall"]
        assert docs.stats()["compressed"] == len(X_ND) and set(docs.get("d0")[0].payload) == {"year", "title"}
    assert f"recall@10: {recall:.4f}" in out and f"recall@10 is {recall:.3f}" in err
    assert main(["stats", "c.qinco", "format=table"]) == 0
    assert "token" in capsys.readouterr().out
    assert main(["query", "c.qinco", "ids=d0", "format=table", "k=2"]) == 0
    assert capsys.readouterr().out.split("\n")[0].split() == ["query", "id", "score", "payload"]
    assert main(["query", "c.qinco", "queries=q.npy", "k=1", "format=table", "with_vectors=true"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[-1] == "vector" and len(table) == 4 and max(map(len, table)) < 200
    assert "overwrite=" in refused(capsys, *words)
    assert main(["retrain", "c.qinco", "source=text.parquet", "minutes=0.02", "format=table"]) == 0
    assert "trained: true" in (out := capsys.readouterr().out) and "recall@10: " in out
    words_of_ids = "source=text.parquet", "id=false", "vector=embedding", "verbose=false"
    assert "600 of 600" in refused(capsys, "retrain", "c.qinco", *words_of_ids, code=3)
    assert main([*words[:-1], "overwrite=true", "id=false", "payload=false"]) == 0
    assert lines(capsys, "query", "c.qinco", "ids=5", "k=1")[0]["query"] == 5


def test_ids_are_words_or_json(here, capsys):
    with qinco.Collection.create("c.qinco") as docs:
        docs.upsert([7, "7", 8, "a", "b,c"], X_ND[:5])
    assert lines(capsys, "delete", "c.qinco", "ids=7,a") == [{"deleted": 2, "records": 3}]
    assert lines(capsys, "delete", "c.qinco", 'ids=["7", "b,c"]') == [{"deleted": 2, "records": 1}]
    with qinco.Collection.open("c.qinco") as docs:
        docs.upsert([12345], X_ND[:1])
    assert main(["query", "c.qinco", "queries=q.npy", "format=table"]) == 0
    assert " 12345 " in capsys.readouterr().out
    assert "ids= is no JSON" in refused(capsys, "delete", "c.qinco", "ids=[7")


@pytest.mark.parametrize("words, fact", [
    (["index", "text.parquet"], "output="),
    (["index", "text.parquet", "output=c.qinco", "fields=year"], "year:integer"),
    (["index", "text.parquet", "output=c.qinco", "fields=year:number"], "keyword"),
    (["index", "text.parquet", "output=c.qinco", "bytes=0"], "bytes"),
    (["query", "c.qinco"], "queries="), (["query", "c.qinco", "ids=1", "queries=q.npy"], "ids=1"),
    (["query", "c.qinco", "ids=1", "where=year"], "JSON"), (["query", "c.qinco", "ids=1", "where=[1]"], "JSON"),
    (["query", "c.qinco", "ids=1", "score_limit=inf"], "a number"),
    (["query", "c.qinco", "ids=1", "nprobe=[3,4]"], "one number"),
    (["query", "c.qinco", "ids=1", "filter=[7"], "filter= is no JSON"),
    (["delete", "c.qinco"], "where="), (["stats", "c.qinco", "json=true", "format=table"], "format=table"),
])  # fmt: skip
def test_wrong_settings_are_one_sentence(here, capsys, words, fact):
    assert fact in refused(capsys, *words)
    assert not (here / "c.qinco").exists()


def test_wrong_data_is_one_sentence(here, capsys, monkeypatch):
    assert "c.qinco" in refused(capsys, "stats", "c.qinco", code=3)
    assert "none.parquet" in refused(capsys, "index", "none.parquet", "output=c.qinco", code=DataError.exit_code)
    with qinco.Collection.create("c.qinco") as docs:
        docs.upsert(["a", "b"], X_ND[:2])
    assert "'x'" in refused(capsys, "query", "c.qinco", "ids=x", code=3)
    with qinco.Collection.open("c.qinco") as docs, docs._database.writing() as connection:
        connection.execute("DELETE FROM points WHERE id = 'a'")
    assert main(["verify", "c.qinco"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["is_sound"] is False and "c.qinco is damaged" in err


@pytest.fixture
def named(here):
    write("photos.parquet", X_ND, id=[f"d{row}" for row in range(len(X_ND))], text=X_ND[:, :4].tolist())
    kinds = {"image": {"codec": trained("plain"), "metric": "l2"}, "text": {"metric": "l2"}}
    qinco.NamedCollection.create("n.qinco", kinds).close()
    return "vector=image:embedding,text:text"


def test_named_vectors_are_written_searched_and_exported(named, here, capsys):
    assert lines(capsys, "upsert", "n.qinco", "source=photos.parquet", named)[0]["upserted"] == 600
    assert lines(capsys, "query", "n.qinco", "queries=q.npy", "k=1", "using=image")[1]["id"] == "d1"
    (hit,) = lines(capsys, "query", "n.qinco", "ids=d7", "k=1", "using=text", "with_vectors=true")
    assert hit["id"] != "d7" and set(hit["vector"]) == {"image", "text"}
    done = lines(capsys, "optimize", "n.qinco")[0]
    assert done["image"]["encoded"] == 600 and done["text"]["encoded"] == 0
    assert lines(capsys, "stats", "n.qinco")[0]["vectors"]["image"]["compressed"] == 600
    assert lines(capsys, "verify", "n.qinco") == [{"is_sound": True, "faults": []}]
    assert lines(capsys, "delete", "n.qinco", "ids=d1,d2")[0] == {"deleted": 2, "records": 598}
    assert lines(capsys, "export", "n.qinco", "output=x.parquet", "with_vectors=true")[0]["records"] == 598
    wanted = ["id", "payload", "code_image", "vector_image", "vector_text"]
    assert pq.read_table("x.parquet").column_names == wanted
    assert lines(capsys, "upsert", "n.qinco", "source=x.parquet")[0]["records"] == 598
    assert lines(capsys, "page", "n.qinco", "output=x.html")[0]["bytes"] > 0
    page = (here / "x.html").read_text()
    assert '"name":"n.image"' in page and '"name":"n.text"' in page
    for words in (["stats", "n.qinco"], ["query", "n.qinco", "ids=d7", "k=1", "using=text", "with_vectors=true"]):
        assert main([*words, "format=table"]) == 0
        out = capsys.readouterr().out
        assert "image" in out and "text" in out


def test_a_collection_of_named_vectors_is_made(named, here, capsys):
    (made,) = lines(capsys, "index", "photos.parquet", "output=m.qinco", named, "metric=l2", "bytes=4")
    assert made["records"] == made["image"]["fresh"] == 600 and made["text"]["dim"] == 4
    with qinco.NamedCollection.open("m.qinco", read_only=True) as docs:
        assert docs.vectors["text"] == {"dim": 4, "metric": "l2", "bytes": 4}
    said = refused(capsys, "index", "photos.parquet", "output=o.qinco", named, "model=x.safetensors")
    assert "one codec" in said and not (here / "o.qinco").exists()


def test_one_name_of_a_collection_is_trained_anew(named, capsys):
    lines(capsys, "upsert", "n.qinco", "source=photos.parquet", named)
    said = refused(capsys, "retrain", "n.qinco", "source=photos.parquet", "vector=text", "using=text",
                   "verbose=false", code=3)  # fmt: skip
    assert "no vectors are compressed" in said
    assert "using=" in refused(capsys, "retrain", "n.qinco", "source=photos.parquet", "vector=text")


def test_wrong_names_of_vectors_are_refused(named, capsys):
    upsert, query = ["upsert", "n.qinco", "source=photos.parquet"], ["query", "n.qinco", "queries=q.npy"]
    for words, said in [
        ([*upsert, "vector=image:none"], "'none'"), ([*upsert, "vector=imge:embedding"], "Did you mean image"),
        ([*upsert, "vector=embedding"], "image:image_embedding"), ([*upsert, "vector=image:a,image:b"], "twice"),
        ([*upsert, "vector=image:text"], "dimension 6"),
        (["upsert", "n.qinco", "source=photos.parquet:text"], "2 names"),
        (query, "using="), ([*query, "using=imge"], "image"), ([*query, "using=text"], "dimension"),
    ]:  # fmt: skip
        capsys.readouterr()
        if words == [*query, "using=text"]:
            lines(capsys, *upsert, named)
        assert main(words) in (2, 3) and said in capsys.readouterr().err
    lines(capsys, "index", "more.parquet", "output=c.qinco")
    assert "no names" in refused(capsys, "query", "c.qinco", "ids=d0", "using=image")
    assert "one column" in refused(capsys, "upsert", "c.qinco", "source=more.parquet", "vector=image:embedding")
