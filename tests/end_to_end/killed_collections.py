"""Processes that change collections and are killed at random instants, and others that read throughout.

Records come in groups of ten, which each write changes as a whole. A record's payload names the step that wrote it, by
which its vector is known, too.
"""

import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endings import forked
from small_indexes import trained, vectors

from qinco.codec import Codec
from qinco.collection import optimize, segments
from qinco.collection.collection import Collection
from qinco.collection.named import NamedCollection
from qinco.collection.schema import FILE, LOCK, OPTIMIZE_LOCK

X = vectors(1500, 4)
GROUP, GROUPS, TEXT_DIM = 10, 40, 4
TRAINING = {"epochs": 2, "num_blocks": 1, "hidden_dim": 8, "batch_size": 128, "device": "cpu"}


def vector_of(id: int, step: int) -> int:
    """The row of X that a record has."""
    return (id + 7 * step) % len(X)


def ids_of(groups) -> list[int]:
    return [GROUP * group + number for group in groups for number in range(GROUP)]


def write(docs: Collection, groups, step: int, *, payload: bool = True) -> None:
    ids = ids_of(groups)
    payloads = [payload_of(id, step) for id in ids] if payload else None
    docs.upsert(ids, X[[vector_of(id, step) for id in ids]], payloads)


def payload_of(id: int, step: int) -> dict:
    return {"step": step, "group": id // GROUP}


def groups_of(step: int, count: int = 6) -> list[int]:
    """What a step changes: the same whenever it is asked."""
    generator = np.random.default_rng(step)
    first = int(generator.integers(0, GROUPS))
    return [(first + number) % GROUPS for number in range(int(generator.integers(1, count + 1)))]


class Upsert:
    """New records and such that replace fresh and compressed ones."""

    readers, payload, names = 4, True, (None,)

    def open(self, folder: Path, **options) -> Any:
        return Collection.open(folder, **options)

    def create(self, folder: Path) -> dict:
        with Collection.create(folder, metric="l2", codec=trained("plain"), payload=self.payload) as docs:
            write(docs, range(GROUPS // 2), 0, payload=self.payload)
            docs.optimize(progress=False)
        return dict.fromkeys(range(GROUPS // 2), 0)

    def run(self, docs: Collection, step: int, state: dict, tell: Callable) -> None:
        write(docs, groups_of(step), step, payload=self.payload)

    def after(self, state: dict, step: int) -> dict:
        """The steps that wrote the groups, by group."""
        return state | dict.fromkeys(groups_of(step), step)

    def refill(self, docs: Collection, state: dict, step: int) -> dict:
        """What the parent does between kills; what there is then."""
        if docs.stats()["fresh"] > 200:
            docs.optimize(progress=False)
        return state

    def is_over(self, docs: Collection) -> bool:
        """Whether the next kill needs a new collection."""
        return False


class Delete(Upsert):
    """By ids and by filters, of fresh and compressed records."""

    def run(self, docs, step, state, tell):
        groups = groups_of(step, 2)
        if step % 2:
            docs.delete(ids_of(groups))
        else:
            docs.delete(where={"group": groups})

    def after(self, state, step):
        return {group: wrote for group, wrote in state.items() if group not in groups_of(step, 2)}

    def refill(self, docs, state, step):
        if len(state) > GROUPS // 4:
            return state
        write(docs, range(GROUPS), step)
        docs.optimize(progress=False)
        write(docs, range(GROUPS // 2), step)
        return dict.fromkeys(range(GROUPS), step)


class Vectors(Upsert):
    """Records whose vectors change in one call, and whose payloads are replaced in another, where they still fulfil a
    filter: each write is whole.
    """

    def run(self, docs, step, state, tell):
        groups = [group for group in groups_of(step) if group in state]
        ids = ids_of(groups)
        if step % 2:
            rows = [vector_of(id, step) for id in ids]
            docs.upsert(ids, X[rows], [payload_of(id, step) for id in ids], mode="update", only_where={"group": groups})
        else:
            docs.update_vectors(ids, X[[vector_of(id, state[id // GROUP] + len(X)) for id in ids]])

    def after(self, state, step):
        if step % 2 == 0:  # which give vectors that are those there were
            return state
        return state | {group: step for group in groups_of(step) if group in state}


class Optimize(Upsert):
    """Training a codec, and encoding everything."""

    def create(self, folder):
        with Collection.create(folder, metric="l2", bytes=2, exact_below=100) as docs:
            write(docs, range(100), 0)
        return dict.fromkeys(range(100), 0)

    def run(self, docs, step, state, tell):
        docs.optimize(progress=tell, **TRAINING)

    def after(self, state, step):
        return state

    def refill(self, docs, state, step):
        return state

    def is_over(self, docs):
        return docs.stats()["fresh"] == 0


class Merge(Upsert):
    """Small segments, of which some become one, at times with new tables."""

    def run(self, docs, step, state, tell):
        write(docs, groups_of(step, 4), step, payload=self.payload)
        docs.optimize(progress=tell)

    def after(self, state, step):
        return state | dict.fromkeys(groups_of(step, 4), step)

    def refill(self, docs, state, step):
        return state


class UpsertIds(Upsert):
    """Where ids are keys."""

    payload = False


class MergeIds(Merge):
    payload = False


class InChild(Merge):
    """The process that encodes is not the one that is killed."""

    def run(self, docs, step, state, tell):
        write(docs, groups_of(step, 4), step)
        docs.optimize(in_child=True, progress=tell)


class Retrain(Optimize):
    """Another codec for all vectors, some of which are fresh."""

    def create(self, folder):
        with Collection.create(folder, metric="l2", codec=trained("plain")) as docs:
            write(docs, range(100), 0)
            docs.optimize(progress=False)
            write(docs, range(10), 1)
        return dict.fromkeys(range(100), 0) | dict.fromkeys(range(10), 1)

    def run(self, docs, step, state, tell):
        ids = ids_of(state)
        originals = X[[vector_of(id, state[id // GROUP]) for id in ids]]
        docs.retrain(ids, originals, progress=tell, **TRAINING)

    def is_over(self, docs):
        return False


class Named(Upsert):
    """Vectors of two names, which change together; those of one are compressed."""

    names = "image", "text"

    def open(self, folder, **options):
        return NamedCollection.open(folder, **options)

    def create(self, folder):
        codec = trained("plain")
        with NamedCollection.create(
            folder, {"image": {"metric": "l2", "codec": codec}, "text": {"metric": "l2"}}
        ) as docs:
            self.write(docs, range(GROUPS // 2), 0)
            docs.optimize(progress=False)
        return dict.fromkeys(range(GROUPS // 2), 0)

    def write(self, docs, groups, step):
        ids = ids_of(groups)
        docs.upsert(ids, self.vectors(ids, [step] * len(ids)), [payload_of(id, step) for id in ids])

    def vectors(self, ids, steps) -> dict:
        rows = [vector_of(*pair) for pair in zip(ids, steps, strict=True)]
        return {"image": X[rows], "text": X[rows, :TEXT_DIM]}

    def run(self, docs, step, state, tell):
        if step % 4 == 3:  # vectors that are those there were
            ids = ids_of(state)
            docs.update_vectors(ids, self.vectors(ids, [state[id // GROUP] for id in ids]))
        elif step % 4 == 2:
            docs.delete(where={"group": groups_of(step, 2)})
        else:
            self.write(docs, groups_of(step), step)
        if step % 4 == 1:
            docs.optimize(progress=tell)

    def after(self, state, step):
        if step % 4 == 3:
            return state
        if step % 4 == 2:
            return {group: wrote for group, wrote in state.items() if group not in groups_of(step, 2)}
        return state | dict.fromkeys(groups_of(step), step)

    def refill(self, docs, state, step):
        return state


KINDS = {
    "named": Named, "upsert": Upsert, "delete": Delete, "optimize": Optimize, "merge": Merge,
    "retrain": Retrain, "child": InChild, "vectors": Vectors, "upsert-ids": UpsertIds, "merge-ids": MergeIds,
}  # fmt: skip


@cache
def decoded(path: Path) -> np.ndarray:
    """X as a codec decodes it."""
    codec = Codec.load(path)
    return codec.decode(codec.encode(X, progress=False), progress=False)


def check(docs: Any, possible: list[dict], *, payload: bool = True) -> dict:
    """The one of some states, steps that wrote the groups, in which the collection is, whole and sound."""
    assert docs.verify() == []
    records, stats, folder, options = docs.get(with_vectors=True), docs.stats(), docs.folder, {}
    if isinstance(docs, NamedCollection):
        texts = np.reshape([record.vector["text"] for record in records], (-1, TEXT_DIM))
        rows = [vector_of(record.id, record.payload["step"]) for record in records]
        np.testing.assert_array_equal(texts, X[rows, :TEXT_DIM])
        hits = docs.search(X[1, :TEXT_DIM], 5000, using="text")
        assert sorted(hit.id for hit in hits) == [record.id for record in records]
        records = [replace(record, vector=record.vector["image"]) for record in records]
        stats, folder, options = stats["vectors"]["image"], folder / "vectors" / "1", {"using": "image"}
    ids = [record.id for record in records]
    found_ND = np.reshape([record.vector for record in records], (-1, X.shape[1]))
    for state in possible:
        steps = [state.get(id // GROUP) for id in ids]
        if ids != sorted(ids_of(state)):
            continue
        rows = [vector_of(*pair) for pair in zip(ids, steps, strict=True)]
        are_right = are_exact = (found_ND == X[rows]).all(1)
        if stats["codec"] is not None:
            codes_ND = decoded(segments.codec_path(folder, stats["codec"]))[rows]
            are_right = are_exact | np.isclose(found_ND, codes_ND, atol=1e-3).all(1)
        payloads = [payload_of(*pair) if payload else None for pair in zip(ids, steps, strict=True)]
        if are_right.all() and payloads == [record.payload for record in records]:
            assert np.count_nonzero(are_exact) >= stats["fresh"]
            hits = docs.search(X[1], 5000, nprobe=100, num_short=5000, **options)
            assert sorted(hit.id for hit in hits) == ids
            return state
    found = {record.id // GROUP: record.payload and record.payload["step"] for record in records}
    raise AssertionError(f"{found} is not the right one of {possible}")


def check_files(docs: Any) -> None:
    """No file is left of what was interrupted, if nobody reads any more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "GRACE_SECONDS", 0.0)
        docs.optimize(progress=False)
    stats, folder, kept = docs.stats(), docs.folder, {FILE, LOCK, OPTIMIZE_LOCK}
    if isinstance(docs, NamedCollection):
        there = {path.name for path in folder.iterdir()} - {f"{FILE}-wal", f"{FILE}-shm"}
        assert there == kept | {"vectors"}, there
        stats, folder, kept = stats["vectors"]["image"], folder / "vectors" / "1", set()
    named = {segments.codec_path(folder, stats["codec"]).name, segments.SEGMENTS, *kept}
    there = {path.name for path in folder.iterdir()} - {f"{FILE}-wal", f"{FILE}-shm"}
    tables = {name for name in there if name.startswith("tables-")}
    assert len(tables) == 1 and there - tables == named, there
    tokens = {path.name for path in (folder / segments.SEGMENTS).iterdir()}
    assert tokens == {one["token"] for one in stats["segments"]}


def write_on(kind: Upsert, folder: Path, step: int, state: dict, output: int) -> None:
    """Write steps until a kill comes, and tell of each when it begins and when its call has returned."""
    stages: list[str] = []

    def tell(stage: str, *_, **__) -> None:
        if stage != stages[-1]:
            stages.append(stage)
            os.write(output, f"at {stage}\n".encode())

    optimize.MAX_SEGMENTS = 3
    with kind.open(folder) as docs:
        while True:
            stages.append("")
            os.write(output, f"begun {step}\n".encode())
            kind.run(docs, step, state, tell)
            os.write(output, f"done {step}\n".encode())
            state, step = kind.after(state, step), step + 1


def read_throughout(kind: Upsert, folder: Path, parent: int) -> None:
    """See whole groups of one step until the parent ends this process or is gone."""
    with kind.open(folder, read_only=True) as reader:
        while os.getppid() == parent:
            steps = Counter((one.id // GROUP, one.payload and one.payload["step"]) for one in reader.get())
            assert set(steps.values()) <= {GROUP} and len({group for group, _ in steps}) == len(steps), steps
            for name in kind.names:
                query = X[0, :TEXT_DIM] if name == "text" else X[0]
                options = {} if name is None else {"using": name}
                hits = reader.search(query, 5000, nprobe=100, num_short=5000, **options)
                assert len({hit.id for hit in hits}) == len(hits) and len(hits) % GROUP == 0
            assert reader.verify() == []
            time.sleep(0.1)


class Killer:
    """Kills processes that work on a collection; counts what they were at."""

    def __init__(self, kind: Upsert, folder: Path, seed: int):
        self.kind, self.folder, self.generator = kind, folder, np.random.default_rng(seed)
        self.step, self.number, self.longest = 1, 0, 0.0
        self.killed: Counter[str] = Counter()

    def kill(self, times: int) -> None:
        """Kill as often within the kind's call; in other moments it does not count."""
        while self.killed.total() < times:
            folder = self.folder / str(self.number)
            self.number += 1
            state, parent = self.kind.create(folder), os.getpid()
            self.longest = self.longest or self._seconds_of_a_call(folder, state)
            readers = [forked(lambda: read_throughout(self.kind, folder, parent)) for _ in range(self.kind.readers)]  # noqa: B023
            try:
                possible = self._kill_in(folder, state, times)
            finally:
                for reader in readers:
                    ended = os.waitpid(reader, os.WNOHANG)
                    os.kill(reader, signal.SIGKILL)
                    if not ended[0]:
                        os.waitpid(reader, 0)
                    assert ended == (0, 0), f"a reader ended: {ended}"
            with self.kind.open(folder) as docs:
                state = check(docs, possible, payload=self.kind.payload)  # a step is of the state that there is
                self.kind.run(docs, self.step, state, lambda *_, **__: None)
                check(docs, [self.kind.after(state, self.step)], payload=self.kind.payload)
                check_files(docs)
            shutil.rmtree(folder)

    def _seconds_of_a_call(self, folder: Path, state: dict) -> float:
        """So long that a kill may come at any moment of it: of a copy, in a process as those that are killed."""
        copy = shutil.copytree(folder, self.folder / "copy")

        def work() -> None:
            with self.kind.open(copy) as docs:
                self.kind.run(docs, 1, state, lambda *_, **__: None)

        begun_at = time.monotonic()
        assert os.waitpid(forked(work), 0)[1] == 0
        shutil.rmtree(copy)
        return max(0.1, 1.2 * (time.monotonic() - begun_at))

    def _kill_in(self, folder: Path, state: dict, times: int) -> list[dict]:
        """Kill processes; returns in which states the collection may be.

        A commit that was on disk when its process was killed, and known to nobody, appears if SQLite recovers the log:
        once all readers have ended, if nothing was written since.
        """
        hidden: list[dict] = []
        while self.killed.total() < times:
            done, pending = self._killed_one(folder, state)
            for step in done:
                state, hidden = self.kind.after(state, step), []
            if pending is not None:
                hidden = [*hidden, self.kind.after(state, pending)]
            with self.kind.open(folder) as docs:
                found = check(docs, [state, *hidden], payload=self.kind.payload)
                hidden = hidden if found is state else []
                state = self.kind.refill(docs, found, self.step)
                hidden = hidden if state is found else []
                self.step += 1
                if self.kind.is_over(docs):
                    break
        return [state, *hidden]

    def _killed_one(self, folder: Path, state: dict) -> tuple[list[int], int | None]:
        """The steps that a process acknowledged before it was killed, and the one that it had begun."""
        reading, writing = os.pipe()
        writer = forked(lambda: write_on(self.kind, folder, self.step, state, writing))
        os.close(writing)
        with os.fdopen(reading) as told:
            lines = [told.readline()]
            time.sleep(self.generator.uniform(0, self.longest))
            os.kill(writer, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
            assert status == -signal.SIGKILL, "the process failed"
            lines += told.read().splitlines()
        words = [line.split(maxsplit=1) for line in lines]
        begun = [int(word[1]) for word in words if word[0] == "begun"]
        done = [int(word[1]) for word in words if word[0] == "done"]
        self.step = begun[-1] + 1
        if len(begun) == len(done):
            return done, None
        stage = words[-1][1] if words[-1][0] == "at" else "call"
        self.killed[stage] += 1
        return done, begun[-1]
