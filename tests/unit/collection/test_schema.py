"""The file of a collection: one writer, readers that see whole commits, forks, damage and full disks."""

import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest
from endings import forked
from small_models import random_vectors

from qinco.collection.collection import Collection
from qinco.collection.schema import FILE
from qinco.errors import ConfigError, DataError, QincoError, ResourceError

X = random_vectors(100, 4)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture
def docs(tmp_path):
    with Collection.create(tmp_path / "c.qinco") as collection:
        collection.upsert(range(50), X[:50], [{"n": n} for n in range(50)])
        yield collection


def in_child(work) -> int:
    """The exit status of a forked child that does some work: 0, or 1 where it failed."""
    return os.waitstatus_to_exitcode(os.waitpid(forked(work), 0)[1])


def test_a_second_writer_is_told_who_writes(docs):
    with pytest.raises(ConfigError, match=f"process {os.getpid()}.*read_only=true"):
        Collection.open(docs.folder)
    with pytest.raises(ConfigError, match="open for writing"):
        Collection.create(docs.folder, overwrite=True)
    docs.close()
    Collection.open(docs.folder).close()


def test_a_collection_that_is_forgotten_lets_others_write(tmp_path):
    Collection.create(tmp_path / "c.qinco").upsert([1], X[:1])
    with Collection.open(tmp_path / "c.qinco") as docs:
        assert 1 in docs


def test_readers_see_what_is_written(docs):
    with Collection.open(docs.folder, read_only=True) as reader:
        assert len(reader.search(X[0], 100)) == 50
        docs.upsert(["new"], X[60:61])
        assert reader.search(X[60], 1)[0].id == "new"
        docs.delete(["new", 3])
        assert len(reader) == 49 and len(reader.search(X[0], 100)) == 49
        for change in (lambda: reader.upsert([1], X[:1]), lambda: reader.delete([1]), lambda: reader.clear()):
            with pytest.raises(ConfigError, match="read_only"):
                change()


@needs_fork
def test_a_forked_child_reads_and_does_not_write(docs):
    docs.search(X[0])

    def work():
        assert docs.search(X[1], 1)[0].id == 1 and len(docs) == 50 and docs.get(5)[0].payload == {"n": 5}
        with pytest.raises(ConfigError, match="parent"):
            docs.upsert([1], X[:1])
        docs.close()

    assert in_child(work) == 0
    docs.upsert(["after"], X[:1])
    assert len(docs) == 51


@needs_fork
def test_a_child_that_lives_on_does_not_keep_the_lock(docs):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.read(reading, 1)
        os._exit(0)
    try:
        docs.close()
        Collection.open(docs.folder).close()
    finally:
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


@needs_fork
def test_a_folder_that_cannot_be_written_is_read(docs):
    """As another user, if the tests run as root."""
    docs.close()
    for path in (docs.folder, *docs.folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    path, reached = docs.folder, [docs.folder, *docs.folder.parents]
    modes = {one: one.stat().st_mode for one in reached}

    def work():
        if os.getuid() == 0:
            os.setuid(65534)
        with Collection.open(path, read_only=True) as reader:
            assert reader.search(X[7], 1)[0].id == 7 and len(reader) == 50
        with pytest.raises(ResourceError, match="read_only=true"):
            Collection.open(path)

    try:
        for one in reached[1:]:
            if one.owner() == docs.folder.owner() and os.access(one, os.W_OK) and len(one.parts) > 2:
                one.chmod(0o755)
        assert in_child(work) == 0
    finally:
        for one, mode in modes.items():
            if len(one.parts) > 2:
                one.chmod(mode)
        docs.folder.chmod(0o755)


def test_changes_that_read_only_media_hide_are_told(docs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(docs.folder, copy)  # with the log, which was not moved into the file yet
    assert (copy / f"{FILE}-wal").stat().st_size
    with Collection.open(copy) as again:
        assert len(again) == 50


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"SQLite format 3\0" + bytes(5000)])
def test_other_files_are_refused(docs, content):
    docs.close()
    (docs.folder / FILE).write_bytes(content)
    for read_only in (False, True):
        with pytest.raises(DataError):
            Collection.open(docs.folder, read_only=read_only)


def test_other_databases_and_newer_versions_are_refused(docs, tmp_path):
    docs.close()
    with pytest.raises(DataError, match="no such folder"):
        Collection.open(tmp_path / "missing")
    (tmp_path / "pages.qinco").mkdir()
    with pytest.raises(DataError, match=r"pages\.qinco\?"):
        Collection.open(tmp_path / "page.qinco")
    with pytest.raises(DataError, match="has no"):
        Collection.open(tmp_path)
    connection = sqlite3.connect(docs.folder / FILE)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(DataError, match="update qinco"):
        Collection.open(docs.folder)
    connection = sqlite3.connect(docs.folder / FILE)
    connection.execute("PRAGMA application_id = 5")
    connection.close()
    with pytest.raises(DataError):
        Collection.open(docs.folder)


@pytest.mark.parametrize(
    "statement",
    ["CREATE VIEW spy AS SELECT 1", "CREATE TRIGGER spy AFTER DELETE ON points BEGIN SELECT 1; END",
     "CREATE VIRTUAL TABLE spy USING rtree(id, low, high)"],
)  # fmt: skip
def test_files_whose_sql_would_run_by_itself_are_refused(docs, statement):
    docs.close()
    connection = sqlite3.connect(docs.folder / FILE)
    connection.execute(statement)
    connection.close()
    with pytest.raises(DataError, match=r"'spy'.*do not open it"):
        Collection.open(docs.folder, read_only=True)


def test_what_is_there_is_replaced_only_if_asked(docs, tmp_path):
    docs.close()
    with pytest.raises(ConfigError, match="overwrite=true"):
        Collection.create(docs.folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="other files"):
        Collection.create(tmp_path / "other", overwrite=True)
    with pytest.raises(ConfigError):
        Collection.create(docs.folder, overwrite=True, metric="nonsense")
    with Collection.open(docs.folder) as again:
        assert len(again) == 50
    with Collection.create(docs.folder, overwrite=True) as again:
        assert len(again) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.qinco", "other"]


def test_files_of_others_stay(tmp_path):
    """Also those that look like files of a collection."""
    mine = tmp_path / "codec-0123456789ab.safetensors"
    mine.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="other files"):
            Collection.create(tmp_path, overwrite=overwrite)
    assert mine.read_text() == "mine"


def test_a_collection_that_cannot_be_opened_is_not_kept_locked(docs):
    docs.close()
    for path in docs.folder.glob(f"{FILE}*"):
        path.unlink()
    sqlite3.connect(docs.folder / FILE).close()
    (docs.folder / FILE).touch()
    with pytest.raises(DataError, match="create it again") as error:
        Collection.open(docs.folder)
    with Collection.create(docs.folder) as again:
        assert error.value and again.verify() == [] and len(again) == 0


def test_a_full_disk_loses_nothing(docs):
    """A limit on the size of files is as a full disk."""
    folder = docs.folder
    docs.close()

    def work():
        with Collection.open(folder) as again:
            most = (folder / FILE).stat().st_size + 30_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            written, batch = 0, np.tile(X, (2, 1))
            with pytest.raises(ResourceError, match="nothing of this call was written"):
                for written in range(1000):
                    again.upsert([f"b{written}-{row}" for row in range(200)], batch, [{"b": written}] * 200)
            assert len(again) == 50 + 200 * written and again.count({"b": written}) == 0
            assert len(again.search(X[0], 10_000)) == len(again)
        with Collection.open(folder, read_only=True) as again:
            assert len(again) == 50 + 200 * written

    assert in_child(work) == 0
    with Collection.open(folder) as again:
        again.upsert(["more"], X[:1])
        assert len(again) % 200 == 51


@pytest.mark.parametrize("rest", ["cut", "zeros", "noise"])
def test_a_log_torn_anywhere_is_read_to_its_last_whole_commit(docs, tmp_path, rest):
    """Commits of one page to a hundred; readers see what the next writer does."""
    docs.close()
    generator, log = np.random.default_rng(0), docs.folder / f"{FILE}-wal"
    commits = [
        lambda docs: docs.upsert(["one"], X[:1]),
        lambda docs: docs.upsert([f"a{n}" for n in range(300)], np.tile(X, (3, 1)), [{"text": "x" * 90}] * 300),
        lambda docs: docs.delete(where={"n": {"gte": 20}}),
        lambda docs: docs.update_payload({"more": "y" * 200}, ids=range(10)),
        lambda docs: docs.upsert(range(10), X[50:60], [{"n": -n} for n in range(10)]),
        lambda docs: docs.clear(),
        lambda docs: docs.upsert(["last"], X[:1]),
    ]
    with Collection.open(docs.folder) as writer:
        sizes, states = [0], [told(writer)]
        for commit in commits:
            commit(writer)
            sizes.append(log.stat().st_size)
            states.append(told(writer))
        assert sizes == sorted(set(sizes))
        shutil.copytree(docs.folder, tmp_path / "whole")
    whole = (tmp_path / "whole" / log.name).read_bytes()
    cuts = {*sizes, *(size - 1 for size in sizes[1:]), *generator.integers(0, sizes[-1], 30).tolist()}
    for cut in sorted(cuts):
        copy = tmp_path / f"copy{cut}"
        shutil.copytree(tmp_path / "whole", copy, ignore=shutil.ignore_patterns("*-shm"))
        lost = len(whole) - cut
        torn = whole[:cut] + {"cut": b"", "zeros": bytes(lost), "noise": generator.bytes(lost)}[rest]
        (copy / log.name).write_bytes(torn)
        expected = states[sum(torn[:size] == whole[:size] for size in sizes) - 1]
        with Collection.open(copy, read_only=True) as reader, Collection.open(copy) as writer:
            assert told(reader) == expected == told(writer) and reader.verify() == []
            writer.upsert(["after"], X[:1])
            assert "after" in reader and len(reader) == len(expected) + 1


def told(docs) -> list:
    return [(record.id, record.payload, record.vector.tolist()) for record in docs.get(with_vectors=True)]


WRITER = """
import sys, numpy as np
from qinco.collection.collection import Collection
docs = Collection.open(sys.argv[1])
x = np.random.default_rng(0).standard_normal((10, 4)).astype("f4")
for n in range(10**6):
    docs.upsert([f"{n}-{i}" for i in range(10)], x, [{"batch": n}] * 10)
    print(n, flush=True)
"""


def test_another_process_sees_whole_batches_and_a_kill_loses_none(docs):
    folder = docs.folder
    docs.delete(range(50))
    docs.close()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, folder], stdout=subprocess.PIPE, text=True, env=environment
    ) as writer:
        writer.stdout.readline()
        with Collection.open(folder, read_only=True) as reader:
            ends = time.monotonic() + 1.0
            while time.monotonic() < ends:
                assert len(reader) % 10 == 0 and len(reader.search(X[0], 10**5)) % 10 == 0
            with pytest.raises(QincoError, match=f"process {writer.pid}"):
                Collection.open(folder)
        writer.kill()
        acknowledged = 1 + int(writer.stdout.read().split()[-1])
    with Collection.open(folder) as again:
        assert len(again) % 10 == 0 and len(again) >= 10 * acknowledged
        assert again.count({"batch": acknowledged - 1}) == 10
