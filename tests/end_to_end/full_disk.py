"""Calls of collections on a disk that is full, with ever more room until they succeed.

After each failure, which must be one sentence with a remedy, the collection is as it was; then the same call works.

Usage: full_disk.py FOLDER limit|disk; prints how often calls failed.
  limit: files may not grow beyond a size (EFBIG)
  disk:  the folder is a small file system of its own, which another file fills (ENOSPC)
"""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from small_indexes import trained, vectors

from qinco.collection import optimize
from qinco.collection.collection import Collection
from qinco.errors import ResourceError

X, N = vectors(1500), 1200
TRAINING = {"epochs": 1, "num_blocks": 1, "hidden_dim": 8, "batch_size": 256, "device": "cpu"}
MOST = 1 << 30


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def fill(folder: Path, room: int) -> None:
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with filler.open("wb") as file:
        if free > room:
            os.posix_fallocate(file.fileno(), 0, free - room)


def content(docs: Collection, are_exact: bool) -> dict:
    """Records by id, with the vectors if none is encoded meanwhile, after everything has been checked."""
    assert docs.verify() == []
    records = docs.get(with_vectors=are_exact)
    hits = docs.search(X[0], 10 * N, nprobe=100, num_short=10 * N)
    assert len(hits) == len(records) and {hit.id for hit in hits} == {record.id for record in records}
    return {one.id: (one.payload, one.vector.tolist() if are_exact else None) for one in records}


def failures(docs: Collection, call: Callable, make_room: Callable, are_exact: bool = True) -> int:
    """Call until there is room enough; how often it failed."""
    before, room, count = content(docs, are_exact), 1 << 12, 0
    while True:
        make_room(room)
        try:
            call()
        except ResourceError as error:
            text = str(error)
            assert "room" in text and ("nothing of this call was written" in text or "nothing is lost" in text), text
        else:
            return count
        finally:
            make_room(MOST)
        assert content(docs, are_exact) == before
        with Collection.open(docs.folder, read_only=True) as reader:
            assert content(reader, are_exact) == before
        room, count = room * 5 // 4, count + 1


def main(folder: Path, kind: str) -> int:
    make_room = limit if kind == "limit" else lambda room: fill(folder, room)
    optimize.MAX_SEGMENTS = 3
    ids, payloads = [f"b{n}" for n in range(300)], [{"n": n} for n in range(300)]
    counts = {}
    with Collection.create(folder / "a", metric="l2", bytes=2, exact_below=1000) as docs:
        docs.upsert(range(N), X[:N], [{"n": n} for n in range(N)])
        counts["train"] = failures(docs, lambda: docs.optimize(progress=False, **TRAINING), make_room, False)
        assert docs.stats()["compressed"] == N
        counts["retrain"] = failures(docs, lambda: docs.retrain(range(N), X[:N], progress=False, **TRAINING), make_room,
                                     False)  # fmt: skip
        assert docs.stats()["compressed"] == N
    with Collection.create(folder / "b", metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(N), X[:N], [{"n": n} for n in range(N)])
        counts["encode"] = failures(docs, lambda: docs.optimize(progress=False), make_room, False)
        counts["upsert"] = failures(docs, lambda: docs.upsert(ids, X[:300], payloads), make_room)
        assert docs.count({"n": {"lt": 300}}) == 600
        counts["update"] = failures(docs, lambda: docs.update_payload({"more": "x" * 50}, where={}), make_room)
        assert docs.count({"more": "x" * 50}) == N + 300
        counts["delete"] = failures(docs, lambda: docs.delete(range(0, N, 2)), make_room)
        assert len(docs) == N // 2 + 300
        counts["child"] = failures(docs, lambda: docs.optimize(in_child=True, progress=False), make_room, False)
        for first in range(0, N, 300):
            docs.upsert(range(first, first + 300), X[first : first + 300])
            docs.optimize(progress=False)
        docs.delete(range(0, N, 3))
        counts["merge"] = failures(docs, lambda: docs.optimize(progress=False), make_room)
        assert docs.stats()["deleted"] == 0 and content(docs, False).keys() == {*ids, *range(N)} - {*range(0, N, 3)}
    assert all(counts.values()), counts
    print(counts)
    return sum(counts.values())


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2]))
