"""Indexes behind `/v1`: what is found, and what is refused."""

import io
from typing import ClassVar

import numpy as np
import pytest
from served import error, result, served
from small_indexes import DIM, trained, vectors

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")
pytest.importorskip("pyarrow")

from starlette.testclient import TestClient

from qinco.collection.collection import Collection
from qinco.distributed import Found
from qinco.errors import ConfigError
from qinco.search.build_index import build_index
from qinco.search.index import Index
from qinco.server import npy
from qinco.server.app import create_app
from qinco.server.catalog import Catalog
from qinco.server.settings import ServerSettings

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
        assert catalog.names() == ["docs"] and catalog.index_names() == ["base"]
        assert catalog.searched("base")[0] == "base"
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


def test_strings_of_an_index_are_ids_of_hits(tmp_path):
    names = np.array([f"doc-{number}" for number in range(600)])
    build_index(trained("plain").encode(vectors(600)), tmp_path / "base.index", codec=trained("plain"), num_lists=6,
                ids=names)  # fmt: skip
    expected = names[Index.load(tmp_path / "base.index").search(vectors(5, seed=2), 3)[1]]
    with served(tmp_path / "base.index") as client:
        asked = {"content": npy.array_bytes(vectors(5, seed=2))}
        found = np.load(io.BytesIO(client.post("/v1/base/search?k=3", headers=NPY, **asked).content))
        np.testing.assert_array_equal(found["id"], expected)
        hits = result(client.post("/v1/base/search?k=3", headers=NPY | JSON, **asked))
        assert [[hit["id"] for hit in row] for row in hits] == expected.tolist()


class OnCluster:
    """What `ServedIndex` asks of a `ShardedIndex`, whose folder gets a new version while it is searched."""

    asked: ClassVar[list] = []

    def __init__(self, folder, *, cluster, timeout):
        self._timeout, self.names = timeout, {0: "old"}

    def search(self, queries, k, nprobe, num_short, timeout=None):
        self.asked.append(self._timeout if timeout is None else timeout)
        names, self.names = self.names, {0: "new"}
        return Found((np.zeros((len(queries), 1), np.float32), np.zeros((len(queries), 1), np.int64)), [], names)

    def close(self):
        pass


@pytest.fixture
def clustered(folder, monkeypatch):
    monkeypatch.setattr("qinco.distributed.ShardedIndex", OnCluster)
    OnCluster.asked.clear()
    with Catalog.open(folder, cluster="auto", timeout=60.0) as catalog:
        yield catalog


def test_names_are_those_of_the_version_that_was_searched(clustered):
    assert clustered.index("base").search(vectors(1)[0], 1)[0].id == "old"


def test_names_are_those_of_the_index_that_was_searched(tmp_path, monkeypatch):
    def build(prefix):
        build_index(trained("plain").encode(vectors(600)), tmp_path / "base.index", codec=trained("plain"), num_lists=6,
                    ids=np.array([f"{prefix}-{number}" for number in range(600)]), overwrite=True)  # fmt: skip

    build("old")
    with Catalog.open(tmp_path / "base.index") as catalog:
        served, search = catalog.index("base"), Index.search

        def reloaded(index, *given, **named):
            found = search(index, *given, **named)
            build("new")
            served.reload()
            return found

        monkeypatch.setattr(Index, "search", reloaded)
        assert all(hit.id.startswith("old-") for hit in served.search(vectors(1)[0], 3))
        monkeypatch.setattr(Index, "search", search)
        assert all(hit.id.startswith("new-") for hit in served.search(vectors(1)[0], 3))


def test_a_search_on_a_cluster_has_half_of_the_time_of_its_request(clustered):
    with TestClient(create_app(clustered, ServerSettings(timeout=60.0))) as client:
        for rows in (1, 2):
            for asked in ("", "&timeout=2", "&timeout=500"):
                body = npy.array_bytes(vectors(rows))
                answer = client.post(f"/v1/base/search?k=1{asked}", content=body, headers=NPY)
                assert answer.status_code == 200
    assert OnCluster.asked == [30.0, 1.0, 30.0] * 2


def test_a_request_may_have_a_time_of_its_own_in_this_process_too(folder):
    with served(folder) as client:
        body = npy.array_bytes(vectors(1))
        assert client.post("/v1/base/search?timeout=5", content=body, headers=NPY).status_code == 200
