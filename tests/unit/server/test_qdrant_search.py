import numpy as np
import pytest
from served import error, result, served

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
QUERY = np.random.default_rng(1).standard_normal(6).astype(np.float32)
DISTANCES = ["Cosine", "Dot", "Euclid"]


def scores(distance: str, query_D, x_ND=X):
    if distance == "Euclid":
        return np.linalg.norm(x_ND - query_D, axis=1)
    unit = distance == "Cosine"
    return x_ND @ query_D / (np.linalg.norm(x_ND, axis=1) * np.linalg.norm(query_D) if unit else 1)


def nearest(distance: str, query_D, k: int, without=()):
    order = np.argsort(scores(distance, query_D) * (1 if distance == "Euclid" else -1))
    return [row for row in order.tolist() if row not in without][:k]


@pytest.fixture(params=DISTANCES)
def distance(request):
    return request.param


@pytest.fixture
def client(tmp_path, distance):
    with served(tmp_path / "data", max_k=200, max_queries=3) as client:
        result(client.put("/collections/c", json={"vectors": {"size": 6, "distance": distance}}))
        points = [{"id": n, "vector": X[n].tolist(), "payload": {"n": n, "of": n % 7}} for n in range(40)]
        result(client.put("/collections/c/points", json={"points": points}))
        yield client


def find(client, **body):
    return result(client.post("/collections/c/points/query", json=body))["points"]


def ids(points):
    return [one["id"] for one in points]


def test_vectors_find_their_nearest_with_scores_of_qdrant(client, distance):
    found = find(client, query=QUERY.tolist(), limit=5, with_payload=["n"], params={"exact": True, "hnsw_ef": 64})
    assert ids(found) == nearest(distance, QUERY, 5)
    np.testing.assert_allclose([one["score"] for one in found], scores(distance, QUERY)[ids(found)], rtol=1e-4)
    assert found[0]["payload"] == {"n": found[0]["id"]} and "vector" not in found[0]
    assert ids(find(client, query={"nearest": QUERY.tolist()}, limit=3, offset=2)) == ids(found)[2:]
    far = {"must_not": [{"has_id": ids(found)[:2]}]}
    assert ids(find(client, query=QUERY.tolist(), limit=3, filter=far)) == ids(found)[2:]


def test_a_threshold_leaves_out_what_is_no_better(client, distance):
    third = sorted(scores(distance, QUERY), reverse=distance != "Euclid")[2]
    found = find(client, query=QUERY.tolist(), score_threshold=float(third) * (1.0001 if third > 0 else 0.9999))
    assert ids(found) == nearest(distance, QUERY, 3 if distance == "Euclid" else 2)


def test_points_find_others_like_them(client, distance):
    assert ids(find(client, query=5, limit=4)) == nearest(distance, X[5], 4, [5])
    rows = X / np.linalg.norm(X, axis=1, keepdims=True) if distance == "Cosine" else X
    mean_D = 2 * (rows[1] + rows[2]) / 2 - rows[3]
    recommended = find(client, query={"recommend": {"positive": [1, 2], "negative": [3]}}, limit=4)
    assert ids(recommended) == nearest(distance, mean_D, 4, [1, 2, 3])
    mixed = {"recommend": {"positive": [1, X[2].tolist()], "strategy": "average_vector"}}
    assert ids(find(client, query=mixed, limit=4)) == nearest(distance, (rows[1] + X[2]) / 2, 4, [1])


def test_points_of_another_collection_are_examples(client, distance):
    result(client.put("/collections/other", json={"vectors": {"size": 6, "distance": "Dot"}}))
    point = {"id": 5, "vector": QUERY.tolist()}
    result(client.put("/collections/other/points", json={"points": [point]}))
    found = find(client, query=5, limit=4, lookup_from={"collection": "other"})
    assert ids(found) == nearest(distance, QUERY, 4)


def test_wrong_examples_are_said(client):
    def refused(code, **body):
        return error(client.post("/collections/c/points/query", json=body), code)

    assert "99" in refused(404, query=99)
    result(client.put("/collections/c/points", json={"points": [{"id": 50, "vector": {}}]}))
    assert "50" in refused(404, query=50)
    assert "positive" in refused(400, query={"recommend": {"negative": [1]}})
    assert "average_vector" in refused(400, query={"recommend": {"positive": [1], "strategy": "best_score"}})
    assert "dimension 6" in refused(400, query=[1, 2, 3])
    assert "other" in refused(400, query=[1] * 6, using="other")
    assert "missing" in refused(404, query=5, lookup_from={"collection": "missing"})
    assert "multivectors" in refused(400, query=[[1.0] * 6])
    for query in [1e39] * 6, {"recommend": {"positive": [[1e39] * 6], "negative": [[1e39] * 6]}}:
        assert "column 0" in refused(400, query=query)
    assert "score_threshold" in refused(400, score_threshold=0.5)
    assert "offset" in refused(400, query=5, limit=100, offset=101)
    assert "hnsw_ef" in refused(400, params={"hnsw_ef": 0}) and "hnsw_ef" in refused(
        400, query=5, params={"hnsw_ef": 0}
    )


def test_queries_without_examples_are_pages(client):
    assert ids(find(client, limit=3, offset=2)) == [2, 3, 4]
    assert ids(find(client, query={"order_by": {"key": "n", "direction": "desc"}}, limit=2, offset=1)) == [38, 37]


def test_samples_are_random_points(client):
    result(client.put("/collections/c/points", json={"points": [{"id": 50, "vector": {}, "payload": {"of": 3}}]}))
    random = {"sample": "random"}
    everyone = find(client, query=random, limit=100, with_payload=True)
    assert sorted(ids(everyone)) == [*range(40), 50] and ids(everyone) != ids(find(client, query=random, limit=100))
    assert all(one["score"] == 1.0 and one["payload"]["of"] in (one["id"] % 7, 3) for one in everyone)
    third = {"must": [{"key": "of", "match": {"value": 3}}]}
    assert {*ids(find(client, query=random, limit=100, filter=third))} == {3, 10, 17, 24, 31, 38, 50}
    assert len(find(client, query=random, filter=third, limit=2, offset=1)) == 2
    body = {"query": random, "group_by": "of", "limit": 9, "group_size": 9}
    groups = result(client.post("/collections/c/points/query/groups", json=body))["groups"]
    assert sorted(id for group in groups for id in ids(group["hits"])) == [*range(40), 50]
    assert "score_threshold" in error(client.post("/collections/c/points/query",
                                                  json={"query": random, "score_threshold": 0.5}), 400)  # fmt: skip


def test_hits_may_be_diverse(client, distance):
    nearest_only = {"nearest": QUERY.tolist(), "mmr": {"diversity": 0.0, "candidates_limit": 20}}
    alone = find(client, query=nearest_only, limit=5)
    assert ids(alone) == nearest(distance, QUERY, 5)
    diverse = find(client, query={"nearest": 5, "mmr": {"diversity": 0.9, "candidates_limit": 20}}, limit=5)
    assert len(diverse) == 5 and diverse[0]["id"] == nearest(distance, X[5], 1, [5])[0] and 5 not in ids(diverse)


def test_several_queries_are_answered_at_once(client, distance):
    searches = [{"query": QUERY.tolist(), "limit": 3}, {"query": 7, "limit": 2}, {"limit": 1}]
    found = result(client.post("/collections/c/points/query/batch", json={"searches": searches}))
    assert [ids(one["points"]) for one in found] == [nearest(distance, QUERY, 3), nearest(distance, X[7], 2, [7]), [0]]
    error(client.post("/collections/c/points/query/batch", json={"searches": [*searches, {}]}), 400)
    error(client.post("/collections/c/points/query/batch", json={"searches": [{"query": 99}, {}]}), 404)


def test_hits_are_grouped(client, distance):
    body = {"query": QUERY.tolist(), "group_by": "of", "limit": 7, "group_size": 4, "with_lookup": "c"}
    found = result(client.post("/collections/c/points/query/groups", json=body))["groups"]
    expected: dict = {}
    for row in nearest(distance, QUERY, 40):
        expected.setdefault(row % 7, []).append(row)
    assert {group["id"]: ids(group["hits"]) for group in found} == {of: rows[:4] for of, rows in expected.items()}
    assert [group["id"] for group in found] == list(expected)
    assert all(group["lookup"]["id"] == group["id"] for group in found)
