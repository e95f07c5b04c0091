"""The page about a collection as data and as one file."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from small_indexes import trained, vectors

import qinco
from qinco.collection.collection import Collection
from qinco.errors import ConfigError
from qinco.page import collection_data, write_page
from qinco.page.data import examples, neighbours

pytest.importorskip("jinja2")
X = vectors()
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--"


@pytest.fixture
def docs(tmp_path):
    with Collection.create(tmp_path / "docs.qinco", metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(800), X[:800], [{"text": HOSTILE, "n": n} for n in range(800)])
        docs.optimize()
        docs.upsert([HOSTILE], X[800:801], [{"text": "x" * 5000}])
        yield docs


def embedded(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_numbers_are_those_of_the_collection(docs):
    data, stats = collection_data(docs, "docs"), docs.stats()
    assert data["name"] == "docs" and data["records"] == 801 and data["compressed"] == 800 and data["fresh"] == 1
    assert data["bytes"] == stats["bytes"] | {"exact": 801 * X.shape[1] * 4}
    assert data["error_histogram"] == docs.histograms()["error"] and data["list_size"] == docs.histograms()["list_size"]
    json.dumps(data, allow_nan=False)


def test_recall_and_times_are_those_measured_last(docs, tmp_path):
    assert collection_data(docs, "docs")["recall"] is None
    found = docs.evaluate({"id": range(800), "vector": X[:800]}, keep=True)
    data = embedded(write_page(docs, tmp_path / "x.html").read_text())["collections"][0]
    assert data["recall"] == docs.stats()["recall"] and data["recall"]["latency"] == found["latency"]


def test_neighbours_have_their_rank_among_all_vectors(docs):
    hits, exact = neighbours(docs, 7), docs.search_by_id(7, 10, exact=True)
    assert [hit["id"] for hit in hits] == [hit.id for hit in docs.search_by_id(7, 10)]
    for hit in hits:
        ranks = [rank for rank, one in enumerate(exact, 1) if one.id == hit["id"]]
        assert hit["exact_rank"] == (ranks[0] if ranks else None)


def test_examples_are_records_with_vectors_and_long_payloads_are_cut(docs):
    docs.upsert(["none"], None)
    found = examples(docs)
    assert len({example["id"] for example in found}) == len(found) == 12 and "none" not in {one["id"] for one in found}
    docs.upsert(["long"], X[7:8], [{"text": "x" * 5000}])
    (long,) = [hit for hit in neighbours(docs, 7) if hit["id"] == "long"]
    assert isinstance(long["payload"], str) and 500 < len(long["payload"]) < 1000


def test_the_file_holds_all_and_nothing_of_a_record_is_markup(docs, tmp_path):
    path = write_page(docs, tmp_path / "x.html")
    text = path.read_text()
    data = embedded(text)["collections"][0]
    assert data["name"] == "docs" and len(data["examples"]) == 12
    assert any(hit["payload"]["text"] == HOSTILE for example in data["examples"] for hit in example["hits"])
    assert "onerror=alert" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert text.count("</script>") == 3 and "<img" not in text
    assert re.findall(r'(?:src|href)="(.*?)"', text) == ["#main"]  # it loads nothing


def test_only_its_own_scripts_and_styles_may_run(docs, tmp_path):
    text = write_page(docs, tmp_path / "x.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        (allowed,) = re.findall(rf"{tag}-src ([^;]*)", policy)
        for content in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S):
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in allowed.split()
    assert "unsafe" not in policy


def test_an_empty_collection_has_a_page(tmp_path):
    with Collection.create(tmp_path / "new.qinco") as docs:
        data = embedded(write_page(docs, tmp_path / "new.html").read_text())["collections"][0]
    assert data["records"] == 0 and data["examples"] == [] and data["list_size"] is None


def test_of_records_with_several_vectors_and_of_ids_alone(tmp_path):
    for kind in ({"multi": True}, {"payload": False}):
        with Collection.create(tmp_path / "c.qinco", metric="cosine", overwrite=True, **kind) as docs:
            docs.upsert(range(20), [X[n : n + 3] for n in range(20)] if kind.get("multi") else X[:20])
            found = examples(docs)
            assert len(found) == 12 and all(len(example["hits"]) == 10 for example in found)


def test_a_file_that_is_there_is_kept(docs, tmp_path):
    (tmp_path / "x.html").write_text("mine")
    with pytest.raises(ConfigError, match="overwrite=true"):
        write_page(docs, tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text() == "mine"
    write_page(docs, tmp_path / "x.html", overwrite=True)
    with pytest.raises(ConfigError, match=r"\.html"):
        write_page(docs, tmp_path / "x.txt")


def test_sampled_ids(docs):
    assert docs.sample(5, seed=1) == docs.sample(5, seed=1) != docs.sample(5, seed=2)
    assert sorted(docs.sample(10_000, seed=0), key=str) == sorted([*range(800), HOSTILE], key=str)
    assert np.ptp(docs.sample(100, seed=0)) > 400 and qinco.Collection is Collection
