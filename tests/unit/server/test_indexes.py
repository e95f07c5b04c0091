"""Indexes behind `/v1`: what is found, and what is refused."""

import io

import numpy as np
import pytest
from served import error, result, served
from small_indexes import DIM, trained, vectors

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")
pytest.importorskip("pyarrow")

from qinco.collection.collection import Collection
from qinco.errors import ConfigError
from qinco.search.index import Index
from qinco.server import npy
from qinco.server.catalog import Catalog

NPY, JSON = {"Content-Type": npy.TYPE}, {"Accept": "application/json"}


@pytest.fixture
def folder(tmp_path):
    Index.build(trained("plain"), vectors(600), num_lists=6).save(tmp_path / "base.index")
    return tmp_path / "base.index"


def test_what_is_found_is_what_the_index_finds(folder):
    queries, expected = vectors(20, seed=2), Index.load(folder).search(vectors(20, seed=2), 3, nprobe=6, num_short=40)
    with served(folder) as client:
        options = "?k=3&nprobe=6&num_short=40"
        answer = client.post(f"/v1/base/search{options}", content=npy.array_bytes(queries), headers=NPY)
        found = np.load(io.BytesIO(answer.content))
        np.testing.assert_array_equal(found["id"], expected[1])
        np.testing.assert_array_equal(found["score"], expected[0])
        one = client.post(f"/v1/base/search{options}", content=npy.array_bytes(queries[:1]), headers=NPY | JSON)
        assert [hit["id"] for hit in result(one)[0]] == expected[1][0].tolist()
        assert "X-Missing-Rows" not in answer.headers
        assert result(client.get("/v1/base/stats")) == {
            "kind": "index", "vectors": 600, "dim": DIM, "metric": "l2", "lists": 6, "cluster": None
        }  # fmt: skip


def test_a_new_version_is_searched_once_it_is_reloaded(folder):
    with served(folder) as client:
        Index.build(trained("plain"), vectors(700), num_lists=6).save(folder, overwrite=True)
        assert result(client.get("/v1/base/stats"))["vectors"] == 600
        assert result(client.post("/v1/base/reload"))["vectors"] == 700


def test_an_index_stands_beside_a_collection(folder, tmp_path):
    with Collection.create(tmp_path / "docs.qinco", metric="l2", dim=DIM) as docs:
        docs.upsert(range(5), vectors(5))
    with Catalog.open(folder, tmp_path / "docs.qinco") as catalog:
        assert catalog.names() == ["docs"] and catalog.searched("base")[0] == "base"
        assert catalog.searched("docs")[0] == "docs"


def test_what_an_index_cannot_do_is_refused(folder, tmp_path):
    query = npy.array_bytes(vectors(1))
    with served(folder) as client:
        for asked, name in (("where={}", None), ('where={"a":1}', "where"), ("exact=true", "exact"),
                            ("with_payload=true", "with_payload"), ("using=text", "using")):  # fmt: skip
            answer = client.post(f"/v1/base/search?{asked}", content=query, headers=NPY | JSON)
            if name is None:
                assert answer.status_code == 200
            else:
                assert name in error(answer, 400)
        assert "/v1/base/search" in error(client.get("/collections/base"), 400)
        assert "no index" in error(client.post("/v1/other/reload"), 404)
        wrong = client.post("/v1/base/search", content=npy.array_bytes(vectors(1)[:, :3]), headers=NPY)
        assert str(DIM) in error(wrong, 400)
    with Collection.create(tmp_path / "docs.qinco", metric="l2", dim=DIM):
        pass
    with pytest.raises(ConfigError, match="cluster=auto"):
        Catalog.open(tmp_path / "docs.qinco", cluster="auto")
