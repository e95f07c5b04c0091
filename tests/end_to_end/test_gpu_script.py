"""The script that measures a GPU, rehearsed on the processor: each part says something, and none fails."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
FIRST = ["machine", "encode", "decode", "train", "error", "assign", "search", "table"]
PARTS = [*FIRST, *(["check", "step"] if find_spec("triton") else [])]


def run(*words: str, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_rehearsal_runs_every_part(tmp_path):
    run("rehearse", f"output={tmp_path}", f"parts={','.join(PARTS)}", "minutes=30")
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {line["part"] for line in lines if line.get("done")} == set(PARTS)
    assert not [line for line in lines if "failed" in line or line.get("fault")]
    said = {key for line in lines for key in line}
    (assigned,) = [line for line in lines if "same_centroid" in line]
    assert assigned["same_centroid"] > 0.99 and assigned["further_away"] == 0
    assert [line["by"] for line in lines if "queries_per_second" in line] == ["tables", "network"]
    assert {"card", "matrix_rate", "vectors_per_second", "vectors/s", "difference", "card_ran_kernels"} <= said
    if "step" in PARTS:
        engines = {line["engine"] for line in lines if "vectors_per_second" in line}
        assert engines == {"triton", "torch"}
        assert all(line["same_every_time"] for line in lines if "same_every_time" in line)


def test_what_it_cannot_do_it_says():
    assert "missing: output=" in run("data=here", code=2).stderr
    assert "unknown part fly" in run("data=here", "output=there", "parts=fly", code=2).stderr
    assert "no number: minutes=soon" in run("data=here", "output=there", "minutes=soon", code=2).stderr
