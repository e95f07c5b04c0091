"""Time and memory of building and searching an index of random codes: a Markdown report on stdout.

    python benchmarks/index_scale.py [sizes=5,10,20] [dim=128] [lists=65536] [folder=/var/tmp]

`sizes` are in millions of vectors of 8 codes. Codes, training vectors and queries are random, so recall means nothing.
The tasks build_index and search run as users run them, each in its own process. Memory is the peak resident set, and
its anonymous part, above those of a process that has only imported the libraries. The folder takes 45 bytes per vector
of the largest size.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import commit

from qinco.machine import processor_name
from qinco.search.index import Index
from qinco.store.code_folder import CodeFolder, CodePlan, default_shard_rows
from qinco.vectors.rows import fingerprint, open_vectors

CODE_SIZE, CODEWORDS, TRAINING, QUERIES = 8, 256, 100_000, 1000
IMPORTS = "import faiss, torch, qinco; qinco.Codec, qinco.Index"


def write_codes(folder: Path, count: int, num_lists: int, dim: int, seed: int, source: str = "random") -> None:
    """A folder of random codes as `encode` writes it; `source` is the fingerprint of the vectors they stand for."""
    rows = default_shard_rows(count)
    plan = CodePlan(count, CODE_SIZE, CODEWORDS, num_lists, dim, rows, codec="random", source=source, encode={})
    folder.mkdir()
    codes, generator = CodeFolder.create(folder, plan), np.random.default_rng(seed)
    for shard in range(plan.num_shards):
        rows = len(plan.rows(shard))
        codes_NM = generator.integers(0, CODEWORDS, (rows, CODE_SIZE), np.uint8)
        codes.write(shard, codes_NM, generator.integers(0, num_lists, rows, np.int32))
    codes.commit()


def peak_of(command: list[str]) -> tuple[float, int, int, str]:
    """Seconds, peak resident bytes, peak anonymous bytes, and output of a command."""
    begun, resident, anonymous = time.monotonic(), 0, 0
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as messages:
        process = subprocess.Popen(command, stdout=output, stderr=messages)
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except FileNotFoundError:
                break
            fields = dict(line.split(":\t", 1) for line in lines if line.startswith(("VmHWM", "RssAnon")))
            resident = max(resident, int(fields.get("VmHWM", "0 kB").split()[0]) << 10)
            anonymous = max(anonymous, int(fields.get("RssAnon", "0 kB").split()[0]) << 10)
            time.sleep(0.01)
        if process.wait():
            messages.seek(0)
            sys.exit(f"{shlex.join(command)} failed: {messages.read()}")
        output.seek(0)
        return time.monotonic() - begun, resident, anonymous, output.read()


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    sizes = [float(size) for size in given.get("sizes", "5,10,20").split(",")]
    dim, num_lists = int(given.get("dim", 128)), int(given.get("lists", 65_536))
    print("# An index of random codes\n")
    print(f"- {os.cpu_count()} cores of {processor_name()}, all of them used")
    print(f"- commit {commit()}, {num_lists:,} lists, dimension {dim}")
    print(f"- `python benchmarks/index_scale.py {shlex.join(words)}`\n", flush=True)
    _, base, base_anonymous, _ = peak_of([sys.executable, "-c", IMPORTS])
    print(f"Libraries alone: {base / 2**20:,.0f} MiB resident, {base_anonymous / 2**20:,.0f} MiB of it anonymous.\n")
    print("| million vectors | task | seconds | MiB above libraries | anonymous | bytes per vector | us per query |")
    print("|---|---|---|---|---|---|---|", flush=True)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=given.get("folder")) as name:
        folder = Path(name)
        np.save(folder / "train.npy", generator.standard_normal((TRAINING, dim), np.float32))
        np.save(folder / "queries.npy", generator.standard_normal((QUERIES, dim), np.float32))
        np.save(folder / "gt.npy", np.zeros((QUERIES, 1), np.int32))
        np.save(folder / "centroids.npy", generator.standard_normal((num_lists, dim), np.float32))
        trainset = fingerprint(open_vectors(folder / "train.npy"))
        write_codes(folder / "train_codes", TRAINING, num_lists, dim, 1, trainset)
        for size in sizes:
            write_codes(folder / f"codes{size:g}", int(size * 1e6), num_lists, dim, 2)
            qinco, index = [sys.executable, "-m", "qinco"], f"{folder}/index{size:g}"
            build = [
                *qinco, "build_index", f"ivf_centroids={folder}/centroids.npy",
                f"encoded_trainset={folder}/train_codes",
                f"trainset={folder}/train.npy", f"encoded_db={folder}/codes{size:g}", f"output={index}", "json=true",
                f"ds.trainset={TRAINING}",
            ]  # fmt: skip
            search = [
                *qinco, "search", f"index={index}", f"queries={folder}/queries.npy", f"queries_gt={folder}/gt.npy",
                "decoder=lookup", "nprobe=16", "quantizer_efSearch=64", "json=true",
            ]  # fmt: skip
            for task, command in (("build_index", build), ("search", search)):
                seconds, resident, anonymous, output = peak_of(command)
                result = json.loads(output.splitlines()[-1])
                rate = result.get("bytes_per_vector")
                us = 1e6 / result["settings"][0]["queries_per_second"] if task == "search" else None
                cells = [f"{size:g}", task, f"{seconds:.1f}", f"{(resident - base) / 2**20:,.0f}"]
                cells += [f"{(anonymous - base_anonymous) / 2**20:,.0f}", f"{rate:.2f}" if rate else "–"]
                print(f"| {' | '.join([*cells, f'{us:.0f}' if us else '–'])} |", flush=True)
            begun = time.monotonic()
            Index.load(index)
            print(f"| {size:g} | `Index.load`, warm | {time.monotonic() - begun:.2f} | – | – | – | – |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
