"""Work on a cluster of Ray is that of one process, whatever is lost meanwhile."""

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from small_indexes import trained, vectors

import qinco
from qinco.distributed import ShardedIndex, WorkerPool, encode
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.search.index import Index
from qinco.store.codes import Codes

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
ROWS, QUERIES_QD = 50, vectors(100, 21)


@pytest.fixture(scope="module")
def cluster():
    """One of this process, of four cores whether there are as many or not."""
    ray.init(
        num_cpus=4, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False,
        configure_logging=False,
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def codec(tmp_path):
    trained("plain").save(tmp_path / "codec.safetensors")
    return tmp_path / "codec.safetensors"


def actors(name: str) -> list:
    """The processes of actors of a class."""
    return [process for process in psutil.process_iter(["cmdline"]) if name in " ".join(process.info["cmdline"] or [])]


def assert_encoded(folder, x_ND):
    expected = trained("plain").encode(x_ND)
    np.testing.assert_array_equal(Codes.load(folder, trained("plain")).codes, expected.codes)


def test_codes_are_those_of_one_process(cluster, codec, tmp_path):
    np.save(tmp_path / "x.npy", vectors())
    done = encode(codec, tmp_path / "x.npy", tmp_path / "codes", workers=2, threads=1, shard_rows=ROWS)
    assert done.complete and done.num_done == len(vectors())
    assert_encoded(tmp_path / "codes", vectors())
    one = qinco.encode_file(codec, tmp_path / "x.npy", tmp_path / "one", shard_rows=ROWS)
    assert one.num_vectors == done.num_vectors
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("*.npy")} for name in ("codes", "one")]
    assert files[0] == files[1]


def test_rows_that_cannot_be_encoded_are_named(cluster, codec, tmp_path):
    x_ND = vectors().copy()
    x_ND[[70, 1234]] = np.nan
    np.save(tmp_path / "x.npy", x_ND)
    given = codec, tmp_path / "x.npy", tmp_path / "codes"
    with pytest.raises(DataError, match=r"2 of 30 parts.*row 70 of .*x.npy holds NaN.*row 1234"):
        encode(*given, workers=2, threads=1, shard_rows=ROWS)
    assert qinco.describe(tmp_path / "codes")["shards_there"] == 28


def test_killed_workers_lose_nothing(cluster, codec, tmp_path):
    generator, ended, killed = random.Random(0), threading.Event(), []

    def kill():
        for count in range(1, 5):  # each time once something has been done
            while len(list((tmp_path / "codes").glob("codes_*"))) < 3 * count and not ended.wait(0.02):
                pass
            if found := actors("_Worker"):
                found[generator.randrange(len(found))].kill()
                killed.append(1)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        x_ND = np.concatenate([vectors(20_000, seed) for seed in range(4)])
        encode(codec, x_ND, tmp_path / "codes", workers=3, threads=1, shard_rows=400)
    finally:
        ended.set()
        thread.join()
    assert len(killed) == 4
    assert_encoded(tmp_path / "codes", x_ND)


def test_a_function_that_ends_its_process_is_an_error(cluster):
    def end(number):
        if number == 2:
            os._exit(1)
        return number * 2

    found = {number: (result, error) for number, result, error in WorkerPool(workers=2, threads=1)(end, [1, 2, 3])}
    assert found[1] == (2, None) and found[3] == (6, None)
    assert found[2][0] is None and isinstance(found[2][1], ray.exceptions.RayError)


def test_a_killed_driver_and_its_cluster_lose_nothing(codec, tmp_path):
    """They go on by resume=True, also without a cluster."""
    np.save(tmp_path / "x.npy", np.concatenate([vectors(20_000, seed) for seed in range(2)]))
    script = (
        "import sys, qinco.distributed as d\n"
        "d.encode(*sys.argv[1:], cluster='auto', workers=2, threads=1, shard_rows=200, resume=True, overwrite=True)"
    )
    given = list(map(str, (codec, tmp_path / "x.npy", tmp_path / "codes")))
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", script, *given], start_new_session=True)
        deadline = time.monotonic() + 60
        while not list(Path(tmp_path / "codes").glob("codes_*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    there = qinco.describe(tmp_path / "codes")["shards_there"]
    assert there
    done = qinco.encode_file(*given, shard_rows=200, resume=True)
    assert done.num_done < 40_000 and done.complete
    assert_encoded(tmp_path / "codes", np.load(tmp_path / "x.npy"))


@pytest.fixture
def index(tmp_path) -> Path:
    qinco.build_index(
        trained("plain").encode(vectors()), tmp_path / "index", codec=trained("plain"), vectors=vectors(), num_lists=12,
        num_shards=4, executor=WorkerPool(workers=2, threads=1),
    )  # fmt: skip
    return tmp_path / "index"


def assert_same(found, index: Path, **options):
    expected = Index.load(index).search(QUERIES_QD, 10, **options)
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("num_actors", [None, 3])
def test_shards_are_searched_as_one_index(cluster, index, num_actors):
    with ShardedIndex(index, num_actors=num_actors) as sharded:
        for options in ({}, {"nprobe": 12, "num_short": 300}, {"filter": range(500)}, {"exclude": [3, 4]}):
            found = sharded.search(QUERIES_QD, 10, **options)
            assert not found.is_partial
            assert_same(found, index, **options)
        one = sharded.search(QUERIES_QD[0], 5)
        assert one[0].shape == one[1].shape == (5,)
        assert len(sharded) == len(vectors()) and f"{num_actors or 1} actor" in repr(sharded)


def test_replicas_stand_in_for_those_that_are_lost(cluster, index):
    with ShardedIndex(index, num_actors=2, num_replicas=2) as sharded:
        for _ in range(3):
            random.Random(1).choice(actors("ShardServer")).kill()
            for _ in range(5):
                found = sharded.search(QUERIES_QD, 10)
                assert not found.is_partial
                assert_same(found, index)


def test_what_a_lost_shard_holds_is_marked_as_missing_until_it_is_back(cluster, index):
    with ShardedIndex(index, num_actors=2) as sharded:
        sharded.search(QUERIES_QD, 10)
        victim = actors("ShardServer")[0]
        victim.suspend()
        try:
            found = sharded.search(QUERIES_QD, 10, timeout=1.0)
            assert found.is_partial and len(found.missing) == 1
            assert not np.isin(found[1], found.missing[0]).any() and (found[1] >= 0).all()
        finally:
            victim.kill()
        found = sharded.search(QUERIES_QD, 10)  # Ray starts it again
        assert not found.is_partial
        assert_same(found, index)


def test_a_new_version_is_searched_without_a_failed_query(cluster, index):
    with ShardedIndex(index, num_actors=2) as sharded:
        ended, failed, done = threading.Event(), [], []

        def search():
            while not ended.is_set():
                try:
                    done.append(sharded.search(QUERIES_QD[:5], 3)[1].max())
                except Exception as error:
                    failed.append(error)

        threads = [threading.Thread(target=search) for _ in range(2)]
        for thread in threads:
            thread.start()
        new = np.concatenate([vectors(), vectors(500, 9)])
        qinco.build_index(
            trained("plain").encode(new), index, codec=trained("plain"), vectors=new, num_lists=12, num_shards=2,
            overwrite=True,
        )  # fmt: skip
        sharded.reload()
        count = len(done)
        while len(done) < count + 5 and not failed:
            time.sleep(0.05)
        ended.set()
        for thread in threads:
            thread.join()
        assert not failed and len(sharded) == 2000
        assert_same(sharded.search(QUERIES_QD, 10), index)


def build(index: Path, num_vectors: int) -> None:
    """Write another version of an index to its folder."""
    new = vectors(num_vectors, 9)
    codes = trained("plain").encode(new)
    qinco.build_index(codes, index, codec=trained("plain"), vectors=new, num_lists=12, num_shards=4, overwrite=True)


def test_an_actor_that_is_started_again_serves_no_other_version(cluster, index):
    with ShardedIndex(index, num_actors=2) as sharded:
        sharded.search(QUERIES_QD, 10)
        build(index, 2000)
        actors("ShardServer")[0].kill()
        found = sharded.search(QUERIES_QD, 10, timeout=20.0)
        while not found.is_partial:  # it was not dead yet
            found = sharded.search(QUERIES_QD, 10, timeout=20.0)
        assert len(found.missing) == 1 and not np.isin(found[1], found.missing[0]).any()
        with pytest.raises(ResourceError, match="reload"):
            sharded.search(QUERIES_QD, 10)
        sharded.reload()
        assert len(sharded) == 2000
        assert_same(sharded.search(QUERIES_QD, 10), index)


def test_what_a_single_actor_finds_may_be_widened(cluster, index):
    """Its arrays are read-only here: more lists are scanned where these hold fewer than k."""
    with ShardedIndex(index, num_actors=1) as sharded:
        for options in ({"nprobe": 1}, {"nprobe": 1, "filter": range(2, 5)}):
            found = sharded.search(QUERIES_QD, 800, **options)
            expected = Index.load(index).search(QUERIES_QD, 800, **options)
            np.testing.assert_array_equal(found[1], expected[1])


def test_a_server_searches_the_shards_of_an_index(cluster, index):
    pytest.importorskip("fastapi")
    from served import served

    from qinco.server import npy

    expected = Index.load(index).search(QUERIES_QD, 4)
    with served(index, cluster="auto") as client:
        answer = client.post(
            "/v1/index/search?k=4", content=npy.array_bytes(QUERIES_QD), headers={"Content-Type": npy.TYPE}
        )
        assert answer.status_code == 200 and "X-Missing-Rows" not in answer.headers
        found = np.load(io.BytesIO(answer.content))
        np.testing.assert_array_equal(found["id"], expected[1])
        np.testing.assert_array_equal(found["score"], expected[0])
        assert client.get("/v1/index/stats").json()["result"]["cluster"] == "auto"


def test_what_cannot_be_is_refused(cluster, index, tmp_path):
    with pytest.raises(ConfigError, match="workers"):
        WorkerPool(workers=0)
    with pytest.raises(DataError, match="No such file"):
        ShardedIndex(tmp_path / "none")
    with pytest.raises(ConfigError, match="num_replicas"):
        ShardedIndex(index, num_replicas=0)
    for refused in (lambda: ShardedIndex(index, threads=16), lambda: list(WorkerPool(threads=16)(int, [1]))):
        with pytest.raises(ConfigError, match="threads=16"):
            refused()
    with pytest.raises(ConfigError, match="num_gpus=1"):
        list(WorkerPool(num_gpus=1)(int, [1]))


def test_an_address_where_nothing_answers_is_named():
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(ResourceError, match=r"no cluster of Ray answers at 127\.0\.0\.1:1"):
        list(WorkerPool("127.0.0.1:1")(int, [1]))
