"""Decodings that are killed, interrupted and resumed, by the real command."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from endings import content, kill_when
from small_models import random_model

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.vectors.formats import write_vectors

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NUM_VECTORS, BLOCK_ROWS = 100_000, 16
ROW_BYTES = 16

COMMAND = """
import sys
from functools import partial
import qinco
from qinco.cli import main

qinco.decode_file = partial(qinco.decode_file, save_seconds=0.02)
sys.exit(main(sys.argv[1:]))
"""
SIGNALLED = """
import os, sys
from qinco.cli import main
from qinco.codec.decode_file import DecodedPart

append, number, last = DecodedPart.append, int(sys.argv.pop(1)), int(sys.argv.pop(1))

def append_and_signal(part, block):
    rows = append(part, block)
    if rows == last:
        os.kill(os.getpid(), number)
    return rows

DecodedPart.append = append_and_signal
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, with lists and without, and codes that take it a second."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    sizes = {"dim": 4, "num_steps": 3, "codebook_size": 32, "num_blocks": 1, "hidden_dim": 16}
    rule = EncodeOptions(num_pairs=64, beam_width=32)
    Codec(random_model(ModelConfig(**sizes)), rule).save(folder / "plain.safetensors")
    Codec(random_model(ModelConfig(**sizes, starts_from_coarse=True, num_lists=7)), rule).save(
        folder / "ivf.safetensors"
    )
    write_vectors(folder / "codes.npy", generator.integers(0, 32, (NUM_VECTORS, 3), dtype=np.uint8))
    write_vectors(folder / "lists.npy", generator.integers(0, 7, (NUM_VECTORS, 1), dtype=np.int32))
    return folder


def arguments(folder, model, output, *more) -> list[str]:
    lists = [f"lists={folder}/lists.npy"] if model == "ivf" else []
    paths = [f"model={folder}/{model}.safetensors", f"codes={folder}/codes.npy", f"output={output}"]
    return ["decode", *paths, *lists, "threads=1", "json=true", f"enc_max_bs={BLOCK_ROWS}", *more]


def decode(*given) -> dict:
    command = [sys.executable, "-c", COMMAND, *arguments(*given)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "output", "more", "kills"),
    [
        ("plain", "x.npy", [], 12),
        ("plain", "x.fbin", ["engine=torch", "prefix=2"], 6),
        ("ivf", "x.fvecs", ["precision=bf16"], 6),
    ],
)
def test_decodings_that_are_killed_and_resumed_equal_the_uninterrupted_one(
    folder, tmp_path, model, output, more, kills
):
    generator = np.random.default_rng(0)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert decode(folder, model, tmp_path / "whole" / output, *more)["decoded"] == NUM_VECTORS
    expected, path = content(tmp_path / "whole"), tmp_path / "parts" / output
    part, killed, at_work = path.with_name(f"{output}.part"), 0, 0
    while killed < kills:
        before = size(part)
        reached, delay = before + int(generator.integers(1, NUM_VECTORS * ROW_BYTES // 4)), generator.uniform(0, 0.05)
        if generator.random() < 0.2:  # wherever it is then: importing, opening, or at the first blocks
            reached, delay = 0, generator.uniform(0, 3)
        command = [sys.executable, "-c", COMMAND, *arguments(folder, model, path, "resume=true", *more)]
        if kill_when(lambda wanted=reached: size(part) >= wanted, delay, command, ENVIRONMENT):
            killed += 1
            at_work += 0 < before < size(part)
        else:
            assert content(tmp_path / "parts") == expected
            path.unlink()
    assert decode(folder, model, path, "resume=true", *more)["decoded"] <= NUM_VECTORS
    assert content(tmp_path / "parts") == expected
    assert at_work > 0


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "x.fvecs"), (signal.SIGTERM, "x.npy")])
def test_ctrl_c_and_termination_say_how_to_go_on(folder, tmp_path, number, name):
    for place in ("whole", "parts"):
        (tmp_path / place).mkdir()
    path, last = tmp_path / "parts" / name, 1000 * BLOCK_ROWS
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), str(last), *arguments(folder, "plain", path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stdout == ""
    assert "interrupted" in done.stderr and "resume=true" in done.stderr
    assert sorted(content(tmp_path / "parts")) == [f"{name}.part", f"{name}.part.json"]
    left = NUM_VECTORS - decode(folder, "plain", path, "resume=true")["decoded"]
    assert left >= last and left % BLOCK_ROWS == 0
    assert decode(folder, "plain", tmp_path / "whole" / name)["decoded"] == NUM_VECTORS
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert decode(folder, "plain", path, "resume=true")["decoded"] == 0
