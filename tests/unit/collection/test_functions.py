"""Functions of Python within SQL: what ends them is what the call ends with."""

import pytest
from small_indexes import vectors

from qinco.collection import words
from qinco.collection.collection import Collection

PLACE = {"center": {"lat": 52.5, "lon": 13.4}, "radius": 1000}


@pytest.fixture
def docs(tmp_path):
    with Collection.create(tmp_path / "c") as docs:
        payloads = [
            {"at": {"lat": 52.5, "lon": 13.4 + number / 1000}, "text": f"Number {number}"} for number in range(50)
        ]
        docs.upsert(range(50), [*vectors(40, 4), *[None] * 10], payloads)
        yield docs


def test_collections_know_places_words_and_vectors(docs):
    near = [record.id for record in docs.get(where={"must": [{"key": "at", "geo_radius": PLACE}]})]
    assert near == list(range(15))
    hits = docs.search(vectors(1, 4), 50, {"must": [{"key": "at", "geo_radius": PLACE}]})[0]
    assert sorted(hit.id for hit in hits) == near
    assert docs.count({"must": [{"key": "text", "match": {"text": "number 7"}}]}) == 1
    assert docs.count({"$vector": True}) == 40 == docs.count({"must": [{"has_vector": ""}]})
    assert docs.count({"$vector": False}) == 10 and docs.count({"$vector": "image"}) == 0
    assert docs.facet("text", {"$vector": False}, 1) == [("Number 40", 1)]


def test_a_filter_is_interrupted_at_once(docs, monkeypatch):
    def stop(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(words, "words", stop)
    where = {"must": [{"key": "text", "match": {"text": "number"}}]}
    with pytest.raises(KeyboardInterrupt):
        docs.count(where)
    with pytest.raises(KeyboardInterrupt):
        docs.delete(where=where)
    monkeypatch.undo()
    assert docs.count(where) == 50
