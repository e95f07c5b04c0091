"""Encoding and merging: what is found stays, whatever happens meanwhile."""

import json
import os
import shutil
import signal
import threading
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_indexes import exact, trained, vectors

from qinco import Index, exhaustive_search
from qinco.collection import optimize
from qinco.collection.collection import Collection
from qinco.errors import ConfigError

X, QUERIES = vectors(), vectors(8, 8)
N = len(X)


def create(folder, metric="l2", payload=True, kind="plain", **settings) -> Collection:
    return Collection.create(folder / "c.qinco", metric=metric, payload=payload, codec=trained(kind), **settings)


@pytest.fixture
def docs(tmp_path):
    """1,500 records in a segment."""
    with create(tmp_path) as docs:
        docs.upsert(range(N), X, [{"n": n} for n in range(N)])
        docs.optimize()
        yield docs


def test_exact_vectors_take_no_space_once_they_are_encoded(tmp_path):
    with create(tmp_path, payload=False) as docs:
        empty = docs.stats()["bytes"]["database"]
        docs.upsert(range(N), X)
        docs.optimize()
        assert docs.stats()["bytes"]["database"] <= empty + (16 << 10)


def ids_of(found) -> list:
    return [[hit.id for hit in hits] for hits in found]


@pytest.mark.parametrize("metric", ["l2", "cosine", "inner_product"])
@pytest.mark.parametrize("kind", ["plain", "ivf", "product"])
def test_a_segment_is_searched_as_an_index(tmp_path, metric, kind):
    with create(tmp_path, metric, False, kind) as docs:
        docs.upsert(range(N), X)
        assert docs.optimize()["encoded"] == N and docs.stats()["fresh"] == 0
        index = Index.build(trained(kind), X, metric=metric)
        scores, ids = index.search(QUERIES, 10)
        found = docs.search(QUERIES, 10)
        assert ids_of(found) == ids.tolist()
        assert np.allclose([[hit.score for hit in hits] for hits in found], scores, rtol=1e-5, atol=1e-5)
        scores, ids = exhaustive_search(QUERIES, index, 10)
        assert ids_of(docs.search(QUERIES, 10, exact=True)) == ids.tolist()


def test_fresh_and_compressed_vectors_are_merged_by_score(docs):
    docs.upsert([f"f{n}" for n in range(100)], vectors(100, 3))
    found = docs.search(QUERIES, 30)
    kinds = {type(hit.id) for hits in found for hit in hits}
    truth_QN = exact("l2", QUERIES, np.concatenate([X, vectors(100, 3)]))
    names = [*range(N), *(f"f{n}" for n in range(100))]
    assert kinds == {int, str}
    shared = [len({names[row] for row in order[:30]} & {hit.id for hit in hits})
              for order, hits in zip(truth_QN.argsort(1), found, strict=True)]  # fmt: skip
    assert np.mean(shared) > 15
    for hits in found:
        assert [hit.score for hit in hits] == sorted(hit.score for hit in hits)


def test_filters_of_any_size(docs):
    docs.delete([5, 6])
    for bound in (3, 500, 1400):  # few vectors are compared one by one
        found = docs.search(QUERIES, 2000, where={"n": {"lt": bound}}, nprobe=100, num_short=2000)
        assert all({hit.id for hit in hits} == set(range(bound)) - {5, 6} for hits in found)
    assert ids_of(docs.search(QUERIES, 5, filter=[7, 5, 9])) == [
        sorted([7, 9], key=lambda id, row=row: docs.search(QUERIES[row], 1, filter=[id])[0].score) for row in range(8)
    ]


def test_what_is_deleted_or_replaced_is_not_found(docs):
    docs.delete(range(0, N, 2))
    docs.upsert(range(1, N, 4), vectors(N, 3)[: len(range(1, N, 4))])
    for _ in range(2):
        for hits in docs.search(QUERIES, N, nprobe=100, num_short=N):
            assert sorted(hit.id for hit in hits) == list(range(1, N, 2))
        assert docs.verify() == []
        assert docs.optimize()["merged_segments"] == (1 if _ == 0 else 0)
    stats = docs.stats()
    assert stats["deleted"] == 0 and stats["compressed"] == N // 2


@pytest.mark.parametrize("payload", [True, False])
def test_many_segments_become_few(tmp_path, payload):
    with create(tmp_path, payload=payload) as docs:
        for first in range(0, 800, 40):
            docs.upsert(range(first, first + 40), X[first : first + 40])
            docs.upsert([first // 2], X[900:901])  # one that is in a segment already, or will be
            docs.optimize()
            assert len(docs.stats()["segments"]) <= optimize.MAX_SEGMENTS and docs.verify() == []
        for hits in docs.search(QUERIES, N, nprobe=100, num_short=N):
            assert sorted(hit.id for hit in hits) == list(range(800))


def test_tables_are_fitted_again_as_a_collection_grows(tmp_path):
    with create(tmp_path, "cosine", False) as docs:
        docs.upsert(range(100), X[:100])
        docs.optimize()
        before = {path.name for path in docs.folder.glob("tables-*")}
        docs.delete(range(10))
        docs.upsert(range(100, N), X[100:])
        docs.optimize()
        assert {path.name for path in docs.folder.glob("tables-*")} > before  # the old ones are kept for a minute
        assert docs.verify() == [] and len(docs.stats()["segments"]) == 1
        index = Index.build(trained("plain"), X, metric="cosine")
        order = np.argsort(-exact("cosine", QUERIES, X), 1)[:, :10].tolist()

        def recall(found):
            return np.mean([len(set(a) & set(b)) for a, b in zip(found, order, strict=True)])

        assert recall(ids_of(docs.search(QUERIES, 10))) > recall(index.search(QUERIES, 10)[1].tolist()) - 1.5


def test_changes_while_it_encodes_are_kept(tmp_path):
    """Between any two steps of it, of records that it is about to list."""
    for payload in (True, False):
        with create(tmp_path, payload=payload, overwrite=True) as docs:
            docs.upsert(range(300), X[:300])
            docs.optimize()
            docs.upsert(range(250, 900), X[250:900])
            docs.delete(range(0, 100))
            expected, stages = set(range(100, 900)), []

            def change(stage, done, total, unit="vector", docs=docs, expected=expected, stages=stages, **fields):
                stages.append(stage)
                at = len(stages)
                if at < 100:
                    assert docs.delete([200 + at]) == 1
                    docs.upsert([400 + at, 1000 + at], X[at : at + 2])
                    expected.discard(200 + at)
                    expected.add(1000 + at)

            docs.optimize(progress=change)
            assert len(set(stages)) >= 3 and docs.verify() == []
            replaced = {400 + at: X[at] for at in range(1, min(100, len(stages) + 1))}
            for _ in range(2):
                for hits in docs.search(QUERIES, 2000, nprobe=100, num_short=2000):
                    assert {hit.id for hit in hits} == expected
                for record in docs.get(list(replaced), with_vectors=True):
                    assert np.square(record.vector - replaced[record.id]).sum() < 0.3 * X.var(0).sum()
                docs.optimize()


def test_an_interrupt_keeps_what_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr("qinco.collection.stages.PIECE_ROWS", 200)
    with create(tmp_path) as docs:
        docs.upsert(range(N), X)

        def stop(stage, done, total, unit="vector", **fields):
            if stage == "encoding" and done >= 700:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match="codes so far are kept"):
            docs.optimize(progress=stop)
        assert docs.stats()["fresh"] == N
        docs.delete([3])
        begun = []
        docs.optimize(progress=lambda stage, done, *_, **__: begun.append(done) if stage == "encoding" else None)
        assert begun[0] >= 599 and docs.stats()["compressed"] == N - 1 and not (docs.folder / "work").exists()


@pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.001, 0.002, 0.004])
def test_an_interrupt_while_codes_are_written_keeps_them(tmp_path, seconds):
    with create(tmp_path) as docs:
        docs.upsert(range(N), X)
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))

        def stop_soon(stage, done, *_, **__):
            if stage == "encoding" and done == N and not timer.ident:
                timer.start()

        with suppress(KeyboardInterrupt):
            docs.optimize(progress=stop_soon)
            timer.join()
        begun = []
        docs.optimize(progress=lambda stage, done, *_, **__: begun.append(done) if stage == "encoding" else None)
        assert set(begun) <= {N} and docs.stats()["compressed"] == N and docs.verify() == []


def test_a_codec_is_trained_when_there_are_enough_vectors(tmp_path):
    quick = {"epochs": 2, "num_blocks": 1, "hidden_dim": 8, "batch_size": 128, "device": "cpu"}
    with Collection.create(tmp_path / "c.qinco", bytes=2, exact_below=1200) as docs:
        docs.upsert(range(1100), X[:1100])
        assert docs.optimize(**quick) == {"trained": False, "encoded": 0, "merged_segments": 0}
        docs.upsert(range(1100, N), X[1100:])
        stages = []

        def stop(stage, *_, **__):
            stages.append(stage)
            if len({one for one in stages if one.startswith("epoch")}) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match="the same call"):
            docs.optimize(progress=stop, **quick)
        assert docs.stats()["codec"] is None and len(docs.search(QUERIES[0], N)) == N
        begun = len(stages)
        done = docs.optimize(progress=lambda stage, *_, **__: stages.append(stage), **quick)
        assert done == {"trained": True, "encoded": N, "merged_segments": 0} and docs.verify() == []
        assert not any(stage.startswith("epoch 1") for stage in stages[begun:])
        stats = docs.stats()
        assert 0 < stats["error"] < 1 and stats["bytes_per_vector"] < 16 and not stats["warnings"]
        assert not (docs.folder / "work").exists()


def test_drift_is_told(docs):
    assert docs.stats()["drift"] == pytest.approx(1) and not docs.stats()["warnings"]
    docs.upsert(range(N, N + 500), X[:500] * np.float32([3, -2, 1, 1, -3, 1]))
    docs.optimize()
    assert docs.stats()["drift"] > 1.25 and len(docs.stats()["warnings"]) == 1


def test_what_it_cannot_do_is_refused(docs):
    with pytest.raises(ConfigError, match="bytes="):
        docs.optimize(num_steps=4)
    waiting, going = threading.Event(), threading.Event()

    def wait(*_, **__):
        going.set()
        waiting.wait(10)

    docs.upsert(["new"], X[:1])
    thread = threading.Thread(target=lambda: docs.optimize(progress=wait))
    thread.start()
    going.wait(10)
    with pytest.raises(ConfigError, match="another thread"):
        docs.optimize()
    waiting.set()
    thread.join()
    with Collection.open(docs.folder, read_only=True) as reader, pytest.raises(ConfigError):
        reader.optimize()


@pytest.mark.parametrize("settings", [{"codec": "plain", "dim": 7}, {"exact_below": -1}, {"bytes": 0}, {"metric": "x"},
                                      {"payload": "no"}, {"dim": 0}])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(tmp_path, settings):
    if "codec" in settings:
        settings = settings | {"codec": trained("plain")}
    with pytest.raises(ConfigError):
        Collection.create(tmp_path / "c.qinco", **settings)
    assert not (tmp_path / "c.qinco").exists()


def test_damage_is_found(docs, tmp_path):
    docs.upsert(["fresh"], X[:1])
    docs.snapshot(tmp_path / "sound")
    (segment,) = (docs.folder / "segments").iterdir()
    (codes,) = segment.glob("codes-*.npy")
    content = bytearray(codes.read_bytes())
    content[-5] ^= 1
    codes.unlink()  # not in the snapshot, which links to it
    codes.write_bytes(content)
    docs.close()
    with Collection.open(docs.folder, read_only=True) as reader:
        assert any(str(codes) in fault for fault in reader.verify())
    shutil.rmtree(segment)
    with Collection.open(docs.folder, read_only=True) as reader:
        assert len(reader.verify()) >= 1 and len(reader.get()) == N + 1
    with Collection.open(tmp_path / "sound") as sound:
        assert sound.verify() == [] and len(sound) == N + 1
        sound.upsert(["more"], X[1:2])
        sound.optimize()
        assert sound.verify() == []


def test_snapshots_go_to_new_folders(docs, tmp_path):
    (tmp_path / "there").mkdir()
    for wrong in ("there", "missing/copy"):
        with pytest.raises(ConfigError):
            docs.snapshot(tmp_path / wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.qinco", "there"]


def test_files_that_nobody_uses_are_removed(docs, monkeypatch):
    monkeypatch.setattr("qinco.collection.segments.GRACE_SECONDS", 0.0)
    docs.delete(range(N // 2))
    docs.optimize()
    named = {one["token"] for one in docs.stats()["segments"]}
    assert {path.name for path in (docs.folder / "segments").iterdir()} == named
    docs.clear()
    docs.optimize()
    assert not list((docs.folder / "segments").iterdir()) and docs.search(QUERIES[0]) == []
    docs.upsert([1], X[:1])
    docs.optimize()
    assert docs.search(QUERIES[0])[0].id == 1


@pytest.mark.parametrize("payload", [True, False])
def test_exports_hold_all_records(tmp_path, payload):
    with create(tmp_path, payload=payload) as docs:
        docs.upsert(range(100), X[:100], [{"n": n} for n in range(100)] if payload else None)
        docs.optimize()
        docs.delete([3])
        docs.upsert([7, 200], X[300:302])
        if payload:
            docs.upsert([300], None)
        assert docs.export(tmp_path / "a.parquet", with_vectors=True) == len(docs)
        rows = {row["id"]: row for row in pq.read_table(tmp_path / "a.parquet").to_pylist()}
        assert rows.keys() == {one.id for one in docs.get()}
        codes = trained("plain").encode(X[:100]).codes
        for id, row in rows.items():
            assert row["code"] == (None if id in (7, 200, 300) else codes[id].tobytes())
            assert (row["payload"] and json.loads(row["payload"])) == docs.get(id)[0].payload
        assert np.allclose(rows[200]["vector"], X[301]) and rows.get(300, {"vector": None})["vector"] is None
        with pytest.raises(ConfigError, match="overwrite"):
            docs.export(tmp_path / "a.parquet")
        if payload:
            docs.upsert(["text"], X[:1])
            with pytest.raises(ValueError, match="integers and strings"):
                docs.export(tmp_path / "b.parquet")
            assert not (tmp_path / "b.parquet").exists()
