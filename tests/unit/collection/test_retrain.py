"""Another codec for the vectors of a collection."""

import numpy as np
import pytest
from small_indexes import trained, vectors

from qinco.collection.collection import Collection
from qinco.errors import ConfigError, DataError

X, N = vectors(1200, 4), 1200
CHANGED = X * np.float32([3, -2, 1, 1, -3, 1])
SETTINGS = {"epochs": 2, "num_blocks": 1, "hidden_dim": 8, "batch_size": 128, "num_pairs": 16, "beam_width": 4,
            "device": "cpu"}  # fmt: skip


@pytest.fixture(params=[True, False])
def docs(request, tmp_path):
    """Records whose second half is another kind of vectors, in two segments, and a few fresh ones."""
    with Collection.create(tmp_path / "c.qinco", metric="l2", codec=trained("plain"), payload=request.param) as docs:
        docs.upsert(range(600), X[:600])
        docs.optimize()
        docs.upsert(range(600, N), CHANGED[600:])
        docs.optimize()
        docs.delete(range(10))
        docs.upsert(range(2000, 2020), CHANGED[:20])
        yield docs


def originals():
    return np.concatenate([X[:600], CHANGED[600:]])


def test_a_drift_is_trained_away(docs):
    before = docs.stats()
    assert before["drift"] > 1.25 and "retrain" in before["warnings"][0]
    seen = []

    def change(stage, done, total, *_, **__):
        if stage == "encoding" and not seen:  # while it encodes, others write
            seen.append(stage)
            docs.delete([20, 21])
            docs.upsert([22, 3000], CHANGED[:2])

    done = docs.retrain(range(N), originals(), progress=change, **SETTINGS)
    assert done["trained"] and seen and docs.verify() == []
    after = docs.stats()
    assert after["codec"] != before["codec"] and not after["warnings"] and after["fresh"] == 0
    wanted = {*range(10, N), *range(2000, 2020), 3000} - {20, 21}
    assert {hit.id for hit in docs.search(X[0], 2 * N, nprobe=100, num_short=2 * N)} == wanted
    kept = [id for id in sorted(wanted) if id < N and id != 22]
    found = np.stack([one.vector for one in docs.get(kept, with_vectors=True)])
    errors = np.square(found - originals()[kept]).sum(1)
    assert errors[kept.index(600) :].mean() < 0.3 * np.square(CHANGED[600:] - CHANGED[600:].mean(0)).sum(1).mean()
    with Collection.open(docs.folder, read_only=True) as reader:
        assert reader.search(X[:3], 5) == docs.search(X[:3], 5)


def test_what_was_interrupted_goes_on(docs):
    before, stages = docs.search(X[:3], 5), []

    def stop(stage, done, *_, **__):
        if stage == "encoding" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        docs.retrain(range(N), originals(), progress=stop, **SETTINGS)
    assert docs.search(X[:3], 5) == before and docs.verify() == []
    docs.retrain(range(N), originals(), progress=lambda stage, *_, **__: stages.append(stage), **SETTINGS)
    assert not any(stage.startswith("epoch") for stage in stages) and docs.verify() == []
    assert not (docs.folder / "work").exists()


def test_an_interrupted_one_leaves_no_codes_to_fresh_vectors(docs):
    def stop(stage, done, *_, **__):
        if stage == "encoding" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        docs.retrain(range(N), originals(), progress=stop, **SETTINGS)
    docs.optimize()
    codec = trained("plain")
    wanted = codec.decode(codec.encode(CHANGED[:20]))
    found = [record.vector for record in docs.get(range(2000, 2020), with_vectors=True)]
    assert np.allclose(found, wanted, atol=1e-3) and docs.verify() == []


@pytest.mark.parametrize("docs", [True], indirect=True)
def test_originals_are_read_of_a_source(docs, tmp_path):
    ids = [*range(N), *range(2000, 2020), 9999]
    given = [*originals(), *CHANGED[:20], None]
    batches = iter([{"id": ids[first : first + 500], "vector": given[first : first + 500]} for first in (0, 500, 1000)])
    done = docs.retrain_from(batches, **SETTINGS)
    assert done["trained"] and done["encoded"] == N + 10 and docs.verify() == [] and docs.stats()["recall"] is None
    docs.delete(range(2000, 2020))
    docs.retrain_from({"id": range(10, N), "vector": originals()[10:]}, **SETTINGS)
    assert docs.stats()["recall"]["is_current"]
    assert not [path for path in docs.folder.iterdir() if path.name.startswith("tmp")]
    with pytest.raises(DataError, match="1,189 of 1,190"):
        docs.retrain_from({"id": [11], "vector": X[:1]})
    with Collection.create(tmp_path / "e.qinco") as empty, pytest.raises(DataError, match="compressed"):
        empty.retrain_from(X)


def test_all_originals_are_needed(docs, tmp_path):
    with pytest.raises(DataError, match="1 of 1,190"):
        docs.retrain(range(N - 1), originals()[:-1], **SETTINGS)
    with pytest.raises(DataError, match="1199"):
        docs.retrain(range(N - 1), originals(), **SETTINGS)
    with pytest.raises(DataError, match="dimension"):
        docs.retrain(range(N), originals()[:, :3], **SETTINGS)
    with Collection.create(tmp_path / "m.qinco", multi=True) as texts, pytest.raises(ConfigError, match="multi"):
        texts.retrain([1], X[:1])
