"""Records with vectors by name."""

import pickle

import numpy as np
import pytest
from small_indexes import trained, vectors

from qinco.collection.collection import Collection
from qinco.collection.named import NamedCollection
from qinco.collection.opened import describe_collection, open_collection
from qinco.collection.spaces import in_space
from qinco.errors import ConfigError, DataError

X = vectors(300, 4)
T = vectors(300, 9)[:, :4]


@pytest.fixture
def docs(tmp_path):
    codec = trained("plain")
    settings = {"image": {"codec": codec, "metric": "l2"}, "text": {"dim": 4, "bytes": 2}}
    with NamedCollection.create(tmp_path / "c", settings, fields={"n": "integer"}) as docs:
        yield docs


def fill(docs, count=60):
    """Every second record has a text; names of fields are those of tables."""
    payloads = [{"n": number % 3, "segments": number, "my meta": "fresh"} for number in range(count)]
    texts = [T[number] if number % 2 else None for number in range(count)]
    docs.upsert(range(count), {"image": X[:count], "text": texts}, payloads)


@pytest.mark.parametrize("is_encoded", [False, True])
def test_searches_find_the_vectors_of_a_name(docs, is_encoded):
    fill(docs)
    if is_encoded:
        assert docs.optimize(progress=False)["image"]["encoded"] == 60
    assert docs.vectors == {"image": {"dim": 6, "metric": "l2", "bytes": 4},
                            "text": {"dim": 4, "metric": "cosine", "bytes": 2}}  # fmt: skip
    for using, given, known in ("image", X, range(60)), ("text", T, range(1, 60, 2)):
        for number, hits in zip([7, 9], docs.search(given[[7, 9]], k=3, using=using), strict=True):
            assert number in [hit.id for hit in hits[: 3 if is_encoded else 1]]  # codes of few bytes tell few apart
        assert {hit.id for hit in docs.search(given[0], 100, using=using, nprobe=100, num_short=100)} == {*known}
        among = docs.search(given[0], 100, {"n": 1}, using=using, filter=range(30))
        assert {hit.id for hit in among} == {number for number in known if number % 3 == 1 and number < 30}
        assert docs.search_by_id(7, 1, using=using)[0].id != 7
        assert len(docs.search(given[0], 5, using=using, diversity=0.5)) == 5
    hit = docs.search(T[7], 1, using="text", with_vectors=True)[0]
    assert hit.payload["n"] == 1 and set(hit.vector) == {"image", "text"}
    np.testing.assert_array_equal(hit.vector["text"], T[7])
    assert set(docs.search(X[0], 1, using="image", with_vectors=["text", "image"])[0].vector) == {"image"}
    with pytest.raises(DataError, match="no vector"):
        docs.search_by_id(8, using="text")
    assert docs.verify() == []


def test_filters_know_which_vectors_a_record_has(docs):
    fill(docs)
    docs.upsert(["none"], {}, [{"n": 7}])
    assert docs.count({"$vector": "text"}) == 30 == docs.count({"must": [{"has_vector": "text"}]})
    assert docs.count({"$vector": True}) == 60 and docs.count({"$vector": "none"}) == 0
    assert docs.count({"$not": {"$vector": "image"}}) == 1
    assert docs.count({"my meta": "fresh", "segments": {"lt": 5}}) == 5 and docs.facet("my meta") == [("fresh", 60)]
    assert {hit.id for hit in docs.search(X[0], 100, {"$vector": "text"}, using="image")} == {*range(1, 60, 2)}


def test_samples_know_which_vectors_a_record_has(docs):
    fill(docs)
    docs.upsert(["none"], {}, [{"n": 7}])
    assert {*docs.sample(100)} == {*range(60)} and {*docs.sample(100, has_vector=False)} == {*range(60), "none"}
    assert {*docs.sample(100, {"$vector": "text"})} == {*range(1, 60, 2)} == {*docs.parts["text"].sample(100)}
    assert {*docs.parts["text"].sample(100, {"n": 1})} == {*range(1, 60, 6)} and docs.sample(3, {"n": 7}) == []
    assert len(docs.sample(7, seed=1)) == 7 and docs.sample(7, seed=1) == docs.sample(7, seed=1)


def test_vectors_change_alone(docs):
    fill(docs)
    docs.optimize(progress=False)
    before = docs.get()
    docs.update_vectors([3, 4, 3], {"text": [T[100], T[101], T[102]], "image": [X[100], None, None]})
    assert docs.get() == before and docs.verify() == []
    found = docs.get([3, 4], with_vectors=True)
    np.testing.assert_array_equal(found[0].vector["text"], T[102])
    np.testing.assert_array_equal(found[0].vector["image"], X[100])
    np.testing.assert_array_equal(found[1].vector["text"], T[101])
    assert docs.search(X[100], 1, using="image")[0].id == 3 and docs.count({"$vector": "text"}) == 31
    assert docs.delete_vectors("text", [3, 4, 6, "unknown"]) == 2
    assert docs.delete_vectors(["text", "image"], where={"n": 0}) == 20
    assert docs.count({"$vector": True}) == 40 and len(docs) == 60 and docs.verify() == []
    docs.optimize(progress=False)
    assert docs.verify() == [] and docs.stats()["vectors"]["image"]["vectors"] == 40
    with pytest.raises(DataError, match="99"):
        docs.update_vectors([3, 99], {"text": T[:2]})


def test_a_deleted_vector_is_not_read_any_more(docs):
    """Where other records of its name are still compressed."""
    fill(docs, 4)
    docs.optimize(progress=False)
    assert docs.delete_vectors("image", [1, 2]) == 2
    for _ in range(2):
        found = {one.id: set(one.vector) for one in docs.get(with_vectors=True)}
        assert found == {0: {"image"}, 1: {"text"}, 2: set(), 3: {"image", "text"}}
        with pytest.raises(DataError, match="no vector"):
            docs.search_by_id(2, using="image")
        docs.optimize(progress=False)
    docs.update_vectors([2], {"image": X[50:51]})
    np.testing.assert_array_equal(docs.get([2], with_vectors=True)[0].vector["image"], X[50])
    docs.optimize(progress=False)
    assert set(docs.get([2], with_vectors=True)[0].vector) == {"image"} and docs.verify() == []


def test_vectors_that_older_records_get_later_are_diverse_hits(docs):
    fill(docs)
    docs.update_vectors([8, 2], {"text": [T[8], T[2]]})
    for diversity in 1e-6, 0.5:
        found = docs.search(T[2], 100, using="text", diversity=diversity)
        assert {hit.id for hit in found} == {2, 8, *range(1, 60, 2)} and found[0].id == 2


def test_upserts_replace_whole_records(docs):
    fill(docs, 6)
    docs.optimize(progress=False)
    docs.upsert([1, 1, 9], {"image": X[10:13]}, [{"n": 5}, {"n": 6}, None])
    assert docs.get(1, with_vectors=True)[0].vector.keys() == {"image"} and docs.get(1)[0].payload == {"n": 6}
    docs.upsert([1, 10], {"text": T[:2]}, mode="insert")
    docs.upsert([1, 11], {"text": T[:2]}, mode="update", only_where={"n": 7})
    assert docs.search(X[11], 1, using="image")[0].id == 1 and docs.count({"$vector": "text"}) == 3
    docs.upsert([1], {"text": T[:1]}, only_where={"n": 6})
    assert docs.get(1, with_vectors=True)[0].vector.keys() == {"text"} and docs.get(1)[0].payload is None
    assert docs.verify() == [] and docs.stats()["records"] == 8


def test_records_are_deleted_with_their_vectors(docs):
    fill(docs)
    docs.optimize(progress=False)
    assert docs.delete([1, 2, "unknown"]) == 2 and docs.delete(where={"n": 0}) == 20
    assert len(docs) == 38 and docs.verify() == [] and 3 not in docs and 4 in docs
    assert {hit.id for hit in docs.search(T[0], 100, using="text")} == {n for n in range(3, 60, 2) if n % 3}
    docs.clear()
    assert len(docs) == 0 and docs.search(X[0], using="image") == [] and docs.verify() == []
    fill(docs, 5)
    assert docs.optimize(progress=False)["image"]["encoded"] == 5 and docs.verify() == []


def test_readers_and_copies_see_the_same(docs, tmp_path):
    with NamedCollection.open(docs.folder, read_only=True) as reader:
        fill(docs)
        docs.optimize(progress=False)
        docs.upsert([70], {"image": X[70:71]})
        docs.snapshot(tmp_path / "copy")
        with open_collection(tmp_path / "copy") as copy:
            for one in reader, copy:
                assert one.get() == docs.get() and one.verify() == []
                assert one.search(X[:3], using="image") == docs.search(X[:3], using="image")
        with pytest.raises(ConfigError, match="read_only"):
            reader.delete([1])
    described = describe_collection(docs.folder)
    assert described["records"] == 61 and described["vectors"]["image"]["vectors"] == 61
    docs.close()
    assert docs.closed
    with NamedCollection.open(docs.folder) as again:
        assert len(again) == 61 and again.fields == {"n": "integer"}


def test_a_codec_is_trained_on_the_originals_of_a_name(docs):
    originals = vectors(400, 4)
    docs.upsert(range(400), {"image": originals})
    docs.optimize(progress=False)
    quick = {"epochs": 1, "num_blocks": 1, "hidden_dim": 8, "batch_size": 128, "device": "cpu", "progress": False}
    assert docs.retrain(range(400), originals, using="image", **quick)["trained"]
    stats = docs.stats()["vectors"]["image"]
    assert docs.verify() == [] and stats["compressed"] == 400 and stats["recall"]["is_current"]
    docs.update_vectors([1], {"image": X[2:3]})
    assert not docs.stats()["vectors"]["image"]["recall"]["is_current"]


def test_what_a_killed_creation_left_is_removed(tmp_path):
    folder = tmp_path / "c"
    (folder / "vectors" / "1").mkdir(parents=True)
    (folder / "vectors" / "1" / "codec-0123456789ab.safetensors").write_bytes(b"half")
    (folder / "lock").touch()
    with NamedCollection.create(folder, {"a": {}}) as docs:
        assert docs.verify() == [] and not (folder / "vectors" / "1" / "codec-0123456789ab.safetensors").exists()


def test_a_child_encodes(docs):
    fill(docs)
    assert docs.optimize(in_child=True, progress=False)["image"]["encoded"] == 60 and docs.verify() == []


def test_what_is_wrong_is_refused(docs, tmp_path):
    fill(docs, 3)
    for call, said in [
        (lambda: docs.search(X[0]), "using="),
        (lambda: docs.search(X[0], using="imge"), "image"),
        (lambda: docs.upsert([1], {"imgae": X[:1]}), "image"),
        (lambda: docs.delete_vectors(["none"], [1]), "none"),
        (lambda: docs.get(1, with_vectors=["none"]), "none"),
        (lambda: docs.upsert([1], X[:1]), "by name"),
        (lambda: docs.upsert([1], {"image": T[:1]}), "dimension"),
        (lambda: docs.upsert([1], {"image": X[:2]}), "as many"),
        (lambda: docs.upsert([1], {}, mode="x"), "mode"),
        (lambda: pickle.dumps(docs), "pickled"),
        (lambda: Collection.open(docs.folder, read_only=True), "NamedCollection"),
        (lambda: NamedCollection.create(docs.folder, {"a": {}}), "open for writing"),
        (lambda: NamedCollection.create(tmp_path / "d", {}), "names"),
        (lambda: NamedCollection.create(tmp_path / "d", {"a": {"size": 3}}), "size"),
        (lambda: NamedCollection.create(tmp_path / "d", {"a": {"dim": 0}}), "dim"),
    ]:
        with pytest.raises((ConfigError, DataError, TypeError), match=said):
            call()
    assert not (tmp_path / "d").exists() and docs.verify() == [] and len(docs) == 3
    with Collection.create(tmp_path / "plain"):
        with pytest.raises(ConfigError, match=r"use Collection\.open"):
            NamedCollection.open(tmp_path / "plain", read_only=True)
        with open_collection(tmp_path / "plain", read_only=True) as found:
            assert isinstance(found, Collection)


def test_one_name_needs_no_using(tmp_path):
    with NamedCollection.create(tmp_path / "c", {"only": {}}) as docs:
        docs.upsert(["a", "b"], {"only": X[:2]})
        assert docs.search(X[1], 1)[0].id == "b" and docs.vectors["only"]["dim"] == 6


def test_statements_are_about_the_tables_of_a_name():
    class Told:
        def execute(self, statement, parameters):
            self.said = statement

    told = Told()
    for given, expected in {
        "SELECT count(*) FROM fresh INDEXED BY sqlite_autoindex_fresh_1": "SELECT count(*) FROM fresh_2 INDEXED BY "
                                                                          "sqlite_autoindex_fresh_2_1",
        "SELECT value FROM main.meta WHERE name = 'version'": "SELECT value FROM main.meta WHERE name = 'version'",
        """SELECT key FROM points, dead WHERE '$."dead ''segments"' = segment""":
            """SELECT key FROM points, dead_2 WHERE '$."dead ''segments"' = segment""",
    }.items():  # fmt: skip
        in_space(told, 2).execute(given)
        assert told.said == expected
