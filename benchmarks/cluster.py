"""What a cluster of Ray on this machine costs and loses: `python benchmarks/cluster.py PART model=... db=...`.

- `throughput`: encoding by two workers of a core beside one process of two threads, in turns.
- `search` (`queries=`): batches and single queries of four shards beside one index, and beside the slowest shard.
- `kills`: workers, machines (raylets) and drivers are killed at random instants, `kills=20` of each, until codes are
  complete.
- `memory`: the most memory of the driver and of each worker while all vectors of `db` are encoded.
- `planned` (`queries=`): what `qinco.planning.plan` says of one core beside what encoding, building and searching take.

Prints Markdown. Needs `pip install '.[train,ray]' psutil`.
"""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import ray
from ray.cluster_utils import Cluster

import qinco
from qinco.distributed import ShardedIndex, WorkerPool, encode
from qinco.machine import using_threads
from qinco.planning import measure_rates, plan
from qinco.search.index import Index
from qinco.store.codes import Codes

QUIET = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
STORE = 100 << 20


def throughput(settings: dict) -> None:
    source = qinco.open_vectors(settings["db"]).limit(int(float(settings.get("rows", 1e6))))
    ray.init(num_cpus=2, object_store_memory=STORE, **QUIET)
    list(WorkerPool(workers=2, threads=1)(abs, [1, 2]))  # Ray's start is not counted
    qinco.set_num_threads(2)
    seconds: dict[str, list[float]] = {"one process, two threads": [], "two workers, one thread each": []}
    for _ in range(int(settings.get("rounds", 3))):
        for name, taken in seconds.items():
            with scratch() as folder:
                begun = time.perf_counter()
                if name.startswith("one"):
                    qinco.encode_file(settings["model"], source, folder / "codes", progress=False)
                else:
                    encode(settings["model"], source, folder / "codes", workers=2, threads=1, progress=False)
                taken.append(time.perf_counter() - begun)
    print(f"| {len(source):,} vectors of dimension {source.dim} | seconds | vectors/s | ratio |\n|---|---:|---:|---:|")
    first = statistics.median(seconds["one process, two threads"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"| {name} | {median:.1f} | {len(source) / median:,.0f} | {first / median:.3f} |")


def search(settings: dict) -> None:
    queries = qinco.open_vectors(settings["queries"])
    ray.init(num_cpus=8, object_store_memory=STORE, **QUIET)
    with scratch() as folder:
        codec = qinco.Codec.load(settings["model"])
        codes = codec.encode(qinco.open_vectors(settings["db"]), progress=False)
        options = {"codec": codec, "vectors": settings["db"], "num_lists": int(settings.get("lists", 1024))}
        qinco.build_index(codes, folder / "index", num_shards=4, **options, progress=False)
        index = qinco.Index.load(folder / "index")
        shards = [Index(codec, replace(index.parts, segments=(segment,))) for segment in index.segments]
        with ShardedIndex(folder / "index") as sharded:
            expected, found = index.search(queries, 10), sharded.search(queries, 10)
            same = all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))
            print(f"{len(index):,} vectors in 4 shards, {len(queries):,} queries: {'equal' if same else 'NOT EQUAL'}\n")
            print("| queries a call | one index ms | sharded ms | slowest shard alone ms | over it ms |")
            print("|---:|---:|---:|---:|---:|")
            for count in (1, 100):
                one, several, slowest = [], [], []
                for start in range(0, 40 * count, count):
                    batch = queries[np.arange(start, start + count) % len(queries)]
                    for of, taken in ((index, one), (sharded, several)):
                        taken.append(milliseconds(of, batch))
                    slowest.append(max(milliseconds(shard, batch) for shard in shards))
                row = [statistics.median(taken) for taken in (one, several, slowest)]
                print(f"| {count} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:.2f} | {row[1] - row[2]:.2f} |")


def milliseconds(index, queries) -> float:
    begun = time.perf_counter()
    index.search(queries, 10)
    return (time.perf_counter() - begun) * 1e3


def kills(settings: dict) -> None:
    source = qinco.open_vectors(settings["db"]).limit(int(float(settings.get("rows", 20000))))
    wanted, codec = int(settings.get("kills", 20)), qinco.Codec.load(settings["model"])
    expected = codec.encode(source, progress=False).codes
    print("| killed | kills | runs | complete and equal |\n|---|---:|---:|---:|")
    for kind in ("workers", "machines", "drivers"):
        killed, runs, equal, generator = 0, 0, 0, random.Random(kind)
        while killed < wanted:
            with scratch() as folder:
                killed += _KILLERS[kind](settings, source, folder / "codes", generator, wanted - killed)
                runs += 1
                found = Codes.load(folder / "codes", codec).codes
                equal += bool(np.array_equal(found, expected))
        print(f"| {kind} | {killed} | {runs} | {equal} |", flush=True)


def _kill_workers(settings, source, output, generator, most: int) -> int:
    ray.init(num_cpus=3, object_store_memory=STORE, **QUIET)

    def kill() -> bool:
        found = [one for one in psutil.process_iter(["cmdline"]) if "_Worker" in " ".join(one.info["cmdline"] or [])]
        if found:
            generator.choice(found).kill()
        return bool(found)

    try:
        return _encode_and_kill(settings, source, output, kill, most, lambda: generator.uniform(1, 4))
    finally:
        ray.shutdown()


def _kill_machines(settings, source, output, generator, most: int) -> int:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)

    def kill() -> bool:
        cluster.remove_node(nodes.pop(generator.randrange(len(nodes))), allow_graceful=False)
        return True

    try:  # one of three is left
        return _encode_and_kill(settings, source, output, kill, min(most, 2), lambda: generator.uniform(2, 6))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _encode_and_kill(settings, source, output, kill, most: int, pause) -> int:
    """Encode, and meanwhile kill at most so many times; how often."""
    ended, killed = threading.Event(), []

    def kill_all() -> None:
        while len(killed) < most and not ended.wait(pause()):
            if kill():
                killed.append(1)

    thread = threading.Thread(target=kill_all, daemon=True)
    thread.start()
    try:
        encode(settings["model"], source, output, workers=3, threads=1, shard_rows=500, progress=False)
    finally:
        ended.set()
        thread.join()
    return len(killed)


def _kill_drivers(settings, source, output, generator, most: int) -> int:
    script = (
        "import sys, qinco, qinco.distributed as d\n"
        "x = qinco.open_vectors(sys.argv[2]).limit(int(sys.argv[4]))\n"
        "d.encode(sys.argv[1], x, sys.argv[3], workers=2, threads=1, shard_rows=500, resume=True, progress=False)"
    )
    given = [settings["model"], settings["db"], str(output), str(len(source))]
    killed = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", script, *given], start_new_session=True)
        try:
            process.wait(generator.uniform(5, 15) if killed < most else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
            continue
        finally:
            process.wait()
        return killed


_KILLERS = {"workers": _kill_workers, "machines": _kill_machines, "drivers": _kill_drivers}


def memory(settings: dict) -> None:
    ray.init(num_cpus=2, object_store_memory=STORE, **QUIET)
    most, ended = {"driver": 0, "worker": 0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for process in psutil.process_iter(["cmdline", "memory_info", "pid"]):
                words, size = " ".join(process.info["cmdline"] or []), process.info["memory_info"]
                kind = "driver" if process.info["pid"] == os.getpid() else "worker" if "_Worker" in words else None
                if kind and size:
                    most[kind] = max(most[kind], size.rss)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with scratch() as folder:
        x = qinco.open_vectors(settings["db"])
        options = {"num_pairs": 4, "beam_width": 1}  # what is measured does not depend on it
        encode(settings["model"], x, folder / "codes", workers=2, threads=1, progress=False, **options)
    ended.set()
    print(f"{len(x):,} vectors: driver {most['driver'] >> 20} MiB, worker {most['worker'] >> 20} MiB")


def planned(settings: dict) -> None:
    codec, queries = qinco.Codec.load(settings["model"]), qinco.open_vectors(settings["queries"])
    queries_QD = np.asarray(queries[0 : len(queries)], np.float32)
    rates = measure_rates(codec.config, codec.encode_options, progress=False)
    print("| vectors | | planned | measured | planned / measured |\n|---:|---|---:|---:|---:|")
    for rows in (int(float(size)) for size in settings["sizes"].split(",")):
        source = qinco.open_vectors(settings["db"]).limit(rows)
        job = plan(rows, source.dim, codec.config.num_steps, cores=1, options=codec.encode_options, rates=rates)
        hours = {stage.name: stage.hours for stage in job.stages}
        with using_threads(1), scratch() as folder:
            begun = time.perf_counter()
            qinco.encode_file(codec, source, folder / "codes", progress=False)
            encoded = time.perf_counter()
            lists = {"num_lists": job.settings["num_lists"]}
            given = {"codec": codec, "vectors": source, "progress": False}
            size = qinco.build_index(folder / "codes", folder / "index", **given, **lists).bytes_per_vector
            built = time.perf_counter()
            index = qinco.Index.load(folder / "index")
            options = {name: job.settings[name] for name in ("nprobe", "num_short")}
            index.search(queries_QD[:100], 10, **options)
            searched = time.perf_counter()
            index.search(queries_QD, 10, **options)
            rate = len(queries_QD) / (time.perf_counter() - searched)
        facts = [
            ("encoding, s", hours["encode"] * 3600, encoded - begun),
            ("centroids and index, s", (hours["centroids"] + hours["build"]) * 3600, built - encoded),
            ("queries a second", job.queries_per_second, rate), ("bytes a vector", job.bytes_per_vector, size),
        ]  # fmt: skip
        for name, said, taken in facts:
            print(f"| {rows:,} | {name} | {said:,.1f} | {taken:,.1f} | {said / taken:.2f} |", flush=True)


class scratch:
    """A new folder, which is removed."""

    def __enter__(self) -> Path:
        self.path = Path(f"cluster-{os.getpid()}-{time.monotonic_ns()}").absolute()
        self.path.mkdir()
        return self.path

    def __exit__(self, *error) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


if __name__ == "__main__":
    parts = {"throughput": throughput, "search": search, "kills": kills, "memory": memory, "planned": planned}
    parts[sys.argv[1]](dict(word.split("=", 1) for word in sys.argv[2:]))
