"""Encodings that are killed and resumed, shared between processes, and larger than memory, by the real command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from endings import content, count_points, kill_when
from small_models import random_model, random_vectors

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.vectors.formats import write_vectors

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")} | {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
NUM_VECTORS = 40_000  # ten shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, with lists and without, and vectors that take it a second."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"dim": 4, "num_steps": 3, "codebook_size": 32, "num_blocks": 1, "hidden_dim": 16}
    rule = EncodeOptions(num_pairs=64, beam_width=32, precision="float32")
    Codec(random_model(ModelConfig(**sizes)), rule).save(folder / "plain.safetensors")
    Codec(random_model(ModelConfig(**sizes, starts_from_coarse=True, num_lists=7)), rule).save(
        folder / "ivf.safetensors"
    )
    write_vectors(folder / "x.fvecs", random_vectors(NUM_VECTORS, 4))
    return folder


def command(folder, model, output, *more):
    paths = [f"model={folder}/{model}.safetensors", f"db={folder}/x.fvecs", f"output={output}"]
    return [sys.executable, "-m", "qinco", "encode", *paths, "threads=1", "json=true", *more]


def encode(*arguments) -> dict:
    done = subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def count_shards(shards: Path) -> int:
    try:
        return sum(path.name.startswith("codes_") for path in shards.iterdir())
    except FileNotFoundError:  # not made yet, or made into the file meanwhile
        return 0


ENDS = ("codes encode overwrite", "codes.npz encode overwrite", "x.npy decode fresh", "x.fvecs decode overwrite")
MORE_ENDS = (
    "codes encode fresh", "codes encode both", "codes.npy encode both", "codes.npz encode fresh",
    "codes.npy encode fresh", "codes.npy encode overwrite", "codes.raw encode overwrite",
    "codes.ivecs encode overwrite", "x.fbin decode fresh", "x.fvecs decode fresh", "x.npy decode overwrite",
    "x.fbin decode overwrite",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "every"),
    [
        *((words, 5) for words in ENDS),
        *(pytest.param(words, 1, marks=pytest.mark.slow) for words in (*ENDS, *MORE_ENDS)),
    ],
)
def test_an_end_before_operations_on_files_loses_nothing(tmp_path, words, every):
    """At each fifth of them, or at any."""
    script = Path(__file__).with_name("crash_points.py")
    assert count_points(script, tmp_path, *words.split(), str(every), environment=ENVIRONMENT) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "output", "kills"),
    [("plain", "codes", 20), ("ivf", "codes", 8), ("ivf", "codes.npz", 8), ("ivf", "codes.npy", 8)],
)
def test_encodings_that_are_killed_and_resumed_equal_the_uninterrupted_one(folder, tmp_path, model, output, kills):
    generator = np.random.default_rng(0)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert encode(folder, model, tmp_path / "whole" / output)["complete"]
    expected, path = content(tmp_path / "whole"), tmp_path / "parts" / output
    shards = path if output == "codes" else path.with_name(f"{output}.shards")
    total, killed, at_work = -(-NUM_VECTORS // 4096), 0, 0
    while killed < kills:
        before = count_shards(shards)
        delay = generator.uniform(0, 0.05)
        if generator.random() < 0.2:  # wherever it is then: importing, opening, or at the first shards
            target, delay = 0, generator.uniform(0, 3)
        else:
            target = min(total + 1, before + int(generator.integers(1, 4)))
        resuming = command(folder, model, path, "resume=true")
        if kill_when(lambda wanted=target: count_shards(shards) >= wanted, delay, resuming, ENVIRONMENT):
            killed += 1
            at_work += 0 < before < count_shards(shards)
        else:
            assert content(tmp_path / "parts") == expected
            for file in sorted((tmp_path / "parts").rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
    done = encode(folder, model, path, "resume=true")
    assert done["complete"]
    assert done["encoded"] <= NUM_VECTORS
    assert content(tmp_path / "parts") == expected
    assert at_work > 0


@pytest.mark.slow
@pytest.mark.parametrize("output", ["codes.npz", "codes"])
def test_processes_share_the_work(folder, tmp_path, output):
    """One share each, the first of them cut again by torchrun's variables, all at the same time."""
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert encode(folder, "ivf", tmp_path / "whole" / output)["encoded"] == NUM_VECTORS
    launched = []
    for share, environment in (
        ("shard=1/2", {"RANK": "0", "WORLD_SIZE": "2"}),
        ("shard=1/2", {"RANK": "1", "WORLD_SIZE": "2"}),
        ("shard=2/2", {"RANK": "0", "WORLD_SIZE": "2"}),
        ("shard=0/2", {"RANK": "1", "WORLD_SIZE": "2"}),
    ):
        arguments = command(folder, "ivf", tmp_path / "parts" / output, share)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        launched.append(subprocess.Popen(arguments, env=ENVIRONMENT | environment, **pipes))
    ends = [process.communicate() for process in launched]
    assert [process.returncode for process in launched] == [0] * 4, ends
    assert any(json.loads(out)["complete"] for out, _ in ends if out)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


SIGNALLED = """
import os, sys
from qinco.cli import main
from qinco.store.code_folder import CodeFolder

write, number = CodeFolder.write, int(sys.argv.pop(1))

def write_and_signal(folder, shard, *codes):
    write(folder, shard, *codes)
    if shard == 2:
        os.kill(os.getpid(), number)

CodeFolder.write = write_and_signal
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "codes"), (signal.SIGTERM, "codes.npy")])
def test_ctrl_c_and_termination_say_how_to_go_on(folder, tmp_path, number, name):
    arguments = command(folder, "plain", tmp_path / name)[3:]
    script = [sys.executable, "-c", SIGNALLED, str(int(number)), *arguments]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert "interrupted" in done.stderr and "resume=true" in done.stderr
    kept = count_shards(tmp_path / (name if name == "codes" else f"{name}.shards"))
    assert kept in (3, 4), "three were written, and the next one may have been encoded meanwhile"
    resumed = encode(folder, "plain", tmp_path / name, "resume=true")
    assert resumed["encoded"] == NUM_VECTORS - kept * 4096
    assert [path.name for path in tmp_path.iterdir()] == [name]


MEASURED = """
import re, sys
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

import torch
before = peak()
from qinco.cli import main
assert main(sys.argv[1:]) == 0
print((peak() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "dim", "encoded", "megabytes"),
    [("x.bvecs", 10_000_000, 128, 200_000, 250), ("x.npy", 100_000, 1536, 100_000, 500)],
)
def test_memory_does_not_grow_with_the_vectors(tmp_path, name, rows, dim, encoded, megabytes):
    """Peak above that of importing torch, of files of 1.3 and 0.6 GB; the system counts what it maps of them."""
    sizes = {"num_steps": 2, "codebook_size": 16, "num_blocks": 1, "embed_dim": 16, "hidden_dim": 16}
    rule = EncodeOptions(num_pairs=16, beam_width=4, precision="float32")
    Codec(random_model(ModelConfig(dim=dim, **sizes)), rule).save(tmp_path / "m.safetensors")
    if name == "x.npy":
        np.lib.format.open_memmap(tmp_path / name, "w+", np.float32, (rows, dim))  # zeros, in a sparse file
    else:
        write_vectors(tmp_path / name, np.random.default_rng(0).integers(0, 256, (encoded, dim), dtype=np.uint8))
        os.truncate(tmp_path / name, rows * (dim + 4))
    arguments = ["encode", f"model={tmp_path}/m.safetensors", f"db={tmp_path / name}", f"ds.db={encoded}"]
    script = [sys.executable, "-c", MEASURED, *arguments, f"output={tmp_path}/codes", "threads=1"]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < megabytes
    assert len(list((tmp_path / "codes").glob("codes_*.npy"))) == -(-encoded // 4096)
