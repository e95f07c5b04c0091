import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import random_vectors

SCRIPT = Path(__file__).with_name("two_processes.py")


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train(folder, *launcher, words=()):
    folder.mkdir()
    np.save(folder / "x.npy", random_vectors(501, 4))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "default"}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), *words]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, env=environment)
    return [json.loads(line) for line in (folder / "codec.safetensors.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    alone = train(tmp_path / "one")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    together = train(tmp_path / "two", *launcher)
    ranks = [load_file(tmp_path / "two" / f"rank{rank}") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    assert len(together) == len(alone) == 5
    assert sum(line["unused_codewords"] for line in together[1:-1]) > 0  # some were redrawn
    assert together[0]["mse"] == pytest.approx(alone[0]["mse"], rel=1e-4)
    assert together[1]["loss"] == pytest.approx(alone[1]["loss"], rel=1e-2)
    assert min(line["mse"] for line in together) == pytest.approx(min(line["mse"] for line in alone), rel=1e-2)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
        [*(f"codec.safetensors{end}" for end in ("", ".jsonl", ".last")), "rank0", "rank1", "x.npy"]
    )


@pytest.mark.slow
def test_two_processes_follow_the_plan_of_the_first(tmp_path):
    if not torch.distributed.is_gloo_available():
        pytest.skip("torch without gloo")
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    epochs = train(tmp_path / "two", *launcher, words=["0.2"])  # of which the start may take some
    ranks = [load_file(tmp_path / "two" / f"rank{rank}") for rank in (0, 1)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    assert epochs[-1]["epoch"] == epochs[-1]["epochs"] > 1
