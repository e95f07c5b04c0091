"""Collections whose process is killed at random instants, or ends before any operation on files.

No write that was acknowledged is missing, nothing is half there, and other processes read whole states throughout.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from endings import ends_at, forked
from killed_collections import KINDS, Killer, X, check, check_files
from small_indexes import trained

from qinco.collection.collection import Collection
from qinco.collection.creation import hidden_folder
from qinco.errors import DataError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
KILLS = {
    "named": 40, "upsert": 50, "vectors": 25, "delete": 50, "optimize": 50, "merge": 25, "retrain": 25, "child": 10,
    "upsert-ids": 10, "merge-ids": 15,
}  # fmt: skip


def kill(name: str, folder: Path, times: int, seed: int = 0) -> None:
    killer = Killer(KINDS[name](), folder, seed)
    killer.kill(times)
    print(f"{killer.killed.total()} kills in {name}: {dict(killer.killed)}")


@pytest.mark.parametrize(
    ("name", "times"), {"named": 2, "upsert": 3, "delete": 3, "vectors": 2, "optimize": 2, "merge": 2}.items()
)
def test_kills_lose_no_acknowledged_write(tmp_path, name, times):
    kill(name, tmp_path, times)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(4))
@pytest.mark.parametrize(("name", "times"), KILLS.items())
def test_many_kills_lose_no_acknowledged_write(tmp_path, name, times, shard):
    kill(name, tmp_path, times, shard + 1)


def found(docs: Collection) -> dict:
    """The steps by which the records were written that there are, told by their payloads."""
    return {record.id: record.payload["step"] for record in docs.get()}


@pytest.mark.parametrize("times", [3, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_creation_can_be_repeated(tmp_path, overwrite, times):
    """One that replaces another collection leaves that or the new one."""
    generator, seconds, codec = np.random.default_rng(0), 0.0, trained("plain")

    def create(folder: Path, year: str) -> Collection:
        given = codec if year == "new" else None
        return Collection.create(folder, codec=given, fields={year: "integer"}, overwrite=overwrite)

    for number in range(times):
        folder = tmp_path / str(number)
        if overwrite:
            create(folder, "old").close()
        begun_at = time.monotonic()
        create(tmp_path / f"{number}-whole", "new").close()
        seconds = max(seconds, time.monotonic() - begun_at)
        reading, writing = os.pipe()
        child = forked(lambda: (os.write(writing, b"x"), create(folder, "new"), time.sleep(60)))  # noqa: B023
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        time.sleep(generator.uniform(0, 1.5 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            with Collection.open(folder) as docs:
                assert docs.verify() == [] and docs.stats()["fields"] in ({"old": "integer"}, {"new": "integer"})
        except DataError as error:
            assert not overwrite and "reate" in str(error)
            create(folder, "new").close()
        with Collection.open(folder) as docs:
            docs.upsert([1], X[:1])
            assert docs.verify() == [] and len(docs) == 1


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("call", ["create", "snapshot"])
def test_what_ended_calls_leave_beside_a_collection_is_removed(tmp_path, call, every):
    """One that was being replaced is the old or the new one; who only reads finds it, too."""
    prepared, place = tmp_path / "prepared", tmp_path / "place"
    folder, copy = place / "c.qinco", place / "copy.qinco"
    prepared.mkdir()
    with Collection.create(prepared / "c.qinco", codec=trained("plain"), fields={"old": "integer"}) as docs:
        docs.upsert(range(60), X[:60])
        docs.optimize(progress=False)

    def work():
        if call == "create":
            Collection.create(folder, codec=trained("plain"), fields={"new": "integer"}, overwrite=True)
        else:
            with Collection.open(folder) as docs:
                docs.snapshot(copy)

    def there() -> set[str]:
        return {path.name for path in place.iterdir()}

    point, left = 0, 0
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(prepared, place)
        is_ended = ends_at(point, place, work)
        left += len(there() - {"c.qinco", "copy.qinco"})
        for path in place.glob(".c*"):
            os.utime(path, (0, 0))  # as if long ago: its process might have been about to lock it
        with Collection.open(folder, read_only=bool(point % 2)) as docs:
            assert docs.verify() == [] and (len(docs), docs.stats()["fields"]) in (
                (60, {"old": "integer"}), (0, {"new": "integer"}))  # fmt: skip
            if not copy.exists():
                docs.snapshot(copy)
        Collection.open(folder).close()
        with Collection.open(copy) as docs:
            assert docs.verify() == []
        assert there() == {"c.qinco", "copy.qinco"}
        if not is_ended:
            break
        point += every
    assert point > 20 and left > 2


def test_what_a_living_process_makes_beside_a_collection_stays(tmp_path):
    folder = tmp_path / "c.qinco"
    Collection.create(folder).close()
    with hidden_folder(folder) as place:
        os.utime(place, (0, 0))
        Collection.open(folder).close()
        assert place.exists()
        other = folder.with_name(f".{folder.name}.0123456789.txt")
        other.mkdir()
    Collection.open(folder).close()
    assert not place.exists() and other.exists()


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_optimize_may_end_before_any_operation_on_files(tmp_path, every):
    """Encoding, fitting tables again, and merging."""
    prepared, place = tmp_path / "prepared", tmp_path / "place"
    with Collection.create(prepared, metric="cosine", codec=trained("plain")) as docs:
        docs.upsert(range(60), X[:60], [{"step": 0}] * 60)
        docs.optimize(progress=False)
        docs.upsert(range(50, 600), X[50:600], [{"step": 1}] * 550)
        docs.delete(range(10))
        wanted = found(docs)
    point = 0
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(prepared, place)

        def work():
            with Collection.open(place) as docs:
                docs.optimize(progress=False)

        is_ended = ends_at(point, place, work)
        with Collection.open(place) as docs:
            assert docs.verify() == [] and found(docs) == wanted
            docs.optimize(progress=False)
            assert docs.verify() == [] and found(docs) == wanted and docs.stats()["fresh"] == 0
            check_files(docs)
            assert {hit.id for hit in docs.search(X[0], 1000, nprobe=100, num_short=1000)} == wanted.keys()
        if not is_ended:
            break
        point += every
    assert point >= 26


@pytest.mark.slow
@pytest.mark.parametrize("first", range(2))
@pytest.mark.parametrize("name", ["optimize", "retrain"])
def test_training_may_end_before_operations_on_files(tmp_path, name, first):
    """Each ninth operation, of hundreds; then the same call goes on."""
    end_training(tmp_path, name, range(4 * first, 10_000, 9))


def end_training(folder: Path, name: str, points: range) -> None:
    kind, place = KINDS[name](), folder / "place"
    state = kind.create(folder / "prepared")

    def work() -> None:
        with Collection.open(place) as docs:
            kind.run(docs, 1, state, lambda *_, **__: None)

    for point in points:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "prepared", place)
        is_ended = ends_at(point, place, work)
        with Collection.open(place) as docs:
            assert check(docs, [state])
            kind.run(docs, 1, state, lambda *_, **__: None)
            assert check(docs, [state]) == state and docs.stats()["fresh"] == 0
            check_files(docs)
        if not is_ended:
            break
    assert point > 100
