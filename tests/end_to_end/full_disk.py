"""Calls of collections on a disk that is full, with ever more room until they succeed.

After each failure, which must be one sentence with a remedy, the collection is as it was; then the same call works.

Usage: full_disk.py FOLDER limit|disk all|few; prints how often calls failed.
  limit: files may not grow beyond a size (EFBIG)
  disk:  the folder is a small file system of its own, which another file fills (ENOSPC)
  few:   without training and child processes, with fewer records, and with larger steps
"""

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from small_indexes import trained, vectors

from qinco.collection import optimize
from qinco.collection.collection import Collection
from qinco.errors import ResourceError

X, N = vectors(1500), 400 if sys.argv[-1] == "few" else 1200
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


def failures(docs: Collection, call: Callable, make_room: Callable, growth: float, are_exact: bool = True) -> int:
    """Call until there is room enough; how often it failed."""
    before, room, count = content(docs, are_exact), 1 << 12, 0
    while True:
        make_room(room)
        try:
            call()
        except ResourceError as error:
            text = str(error)
            is_kept = "room" in text and ("nothing of this call was written" in text or "nothing is lost" in text)
            assert is_kept or "cannot write" in text, text
        else:
            return count
        finally:
            make_room(MOST)
        assert content(docs, are_exact) == before
        with Collection.open(docs.folder, read_only=True) as reader:
            assert content(reader, are_exact) == before
        room, count = int(room * growth), count + 1


def train(folder: Path, make_room: Callable, growth: float) -> dict[str, int]:
    with Collection.create(folder, metric="l2", bytes=2, exact_below=1000) as docs:
        docs.upsert(range(N), X[:N], [{"n": n} for n in range(N)])
        calls = {
            "optimize": lambda: docs.optimize(progress=False, **TRAINING),
            "retrain": lambda: docs.retrain(range(N), X[:N], progress=False, **TRAINING),
        }
        counts = {name: failures(docs, call, make_room, growth, False) for name, call in calls.items()}
        assert docs.stats()["compressed"] == N
    return counts


def change(folder: Path, make_room: Callable, growth: float, *, in_child: bool) -> dict[str, int]:
    ids, payloads, counts = [f"b{n}" for n in range(300)], [{"n": n} for n in range(300)], {}

    def until_it_works(name: str, call: Callable, are_exact: bool = True) -> None:
        counts[name] = failures(docs, call, make_room, growth, are_exact)

    with Collection.create(folder, metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(N), X[:N], [{"n": n} for n in range(N)])
        until_it_works("encode", lambda: docs.optimize(progress=False), False)
        for name in ("snapshot", "export"):
            output = folder.with_name(f"{name}.parquet")
            until_it_works(name, lambda: copies(docs, name, output))  # noqa: B023
            check_copy(docs, name, output)
        until_it_works("upsert", lambda: docs.upsert(ids, X[:300], payloads))
        assert docs.count({"n": {"lt": 300}}) == 600
        until_it_works("update", lambda: docs.update_payload({"more": "x" * 50}, where={}))
        assert docs.count({"more": "x" * 50}) == N + 300
        until_it_works("delete", lambda: docs.delete(range(0, N, 2)))
        assert len(docs) == N // 2 + 300
        until_it_works("extend", lambda: docs.optimize(in_child=in_child, progress=False), False)
        for first in range(0, N, N // 4):
            docs.upsert(range(first, first + N // 4), X[first : first + N // 4])
            docs.optimize(progress=False)
        docs.delete(range(0, N, 3))
        until_it_works("merge", lambda: docs.optimize(progress=False))
        assert docs.stats()["deleted"] == 0 and content(docs, False).keys() == {*ids, *range(N)} - {*range(0, N, 3)}
    return counts


def copies(docs: Collection, name: str, output: Path) -> None:
    """Call `snapshot` or `export`, of which nothing may be left if it fails."""
    before = {*output.parent.iterdir()}
    try:
        getattr(docs, name)(output)
    except ResourceError:
        assert {*output.parent.iterdir()} == before
        raise


def check_copy(docs: Collection, name: str, output: Path) -> None:
    if name == "snapshot":
        with Collection.open(output, read_only=True) as copy:
            assert content(copy, False) == content(docs, False)
    else:
        assert docs.export(output, overwrite=True) == len(docs)


def main(folder: Path, kind: str, extent: str) -> int:
    make_room = limit if kind == "limit" else lambda room: fill(folder, room)
    optimize.MAX_SEGMENTS = 3
    counts = change(folder / "changed", make_room, 4 if extent == "few" else 1.25, in_child=extent == "all")
    if extent == "all":
        counts |= train(folder / "trained", make_room, 1.25)
    assert all(counts.values()), counts
    print(counts, file=sys.stderr)
    return sum(counts.values())


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), *sys.argv[2:]))
