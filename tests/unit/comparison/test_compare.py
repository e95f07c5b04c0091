"""`qinco.compare` on tiny vectors: the report, resuming, limits of time, and failures."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import qinco
from qinco.comparison.child import run_in_child
from qinco.comparison.inputs import GIVEN, HELD_OUT, OTHER, Sources, find_truths
from qinco.comparison.rivals import Rival
from qinco.errors import ConfigError
from qinco.progress import silent

for package in ("faiss", "torch", "jinja2", "matplotlib"):
    pytest.importorskip(package)

QUICK = {"bytes": [2], "presets": [], "rivals": ["signs"], "parts": [], "metrics": "l2"}


def vectors(count: int, seed: int = 0) -> np.ndarray:
    centres = np.random.default_rng(9).standard_normal((20, 16))
    generator = np.random.default_rng(seed)
    return (centres[generator.integers(0, 20, count)] + generator.standard_normal((count, 16)) / 2).astype(np.float32)


TRAIN, BASE, QUERIES = vectors(400, 1), vectors(600, 2), vectors(30, 3)


def done_at(folder: Path) -> dict:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def job(size: int, kind: str = "PQ") -> Rival:
    return Rival("job", kind, "a job", size, kind, size)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "report"
    return folder, qinco.compare(TRAIN, BASE, QUERIES, other_queries=QUERIES + 1, output=folder, **QUICK)


def test_the_report(compared):
    folder, report = compared
    assert json.loads((folder / "report.json").read_text()) == report
    assert {"report.html", "report.md", "report.csv"} <= {path.name for path in folder.iterdir()}
    assert report["data"]["train"]["rows"] == 400 and report["data"]["db"]["rows"] == 600
    assert not report["data"]["queries"]["held_out"] and report["data"]["other_queries"]["rows"] == 30
    assert report["bytes"] == [2] and report["metrics"] == ["l2"] and report["machine"]["threads_timed"] == 1
    assert len({cell["id"] for cell in report["cells"]}) == len(report["cells"]) == 3
    for cell in report["cells"]:
        assert cell["status"] == "done" and cell["bytes"] == cell["code_bytes"] + cell["scalar_bytes"] == 2
        assert cell["trained_on"] == 400 and cell["encode_us"] > 0 and cell["peak_memory_bytes"] > 1 << 20
        assert [result["queries"] for result in cell["results"]] == [GIVEN, OTHER]
        for result in cell["results"]:
            recall = [result["recall"][rank][0] for rank in ("1", "10", "100")]
            assert recall[0] <= recall[1] <= recall[2] <= 1 and recall[2] > 0.5  # by chance a sixth
    assert {(one["queries"], one["target"]) for one in report["targets"]} >= {(GIVEN, 0.9), (OTHER, 0.99)}


def test_what_is_there_is_refused_and_resumed(compared):
    folder, report = compared
    settings = QUICK | {"output": folder, "other_queries": QUERIES + 1}
    before = done_at(folder)
    with pytest.raises(ConfigError, match="overwrite=true to replace it or resume=true"):
        qinco.compare(TRAIN, BASE, QUERIES, **settings)
    removed = sorted(before)[0]
    (folder / "cells" / removed).unlink()
    again = qinco.compare(TRAIN, BASE, QUERIES, resume=True, price=2.5, **settings)
    assert again["price"] == 2.5 and "at 2.5" in (folder / "report.html").read_text()
    after = done_at(folder)
    assert {name for name in after if after[name] != before[name]} == {removed}
    for old, new in zip(report["cells"], again["cells"], strict=True):
        assert old["results"] == new["results"]
    with pytest.raises(ConfigError, match=r"other vectors \(train\)"):
        qinco.compare(TRAIN + 1, BASE, QUERIES, resume=True, **settings)
    with pytest.raises(ConfigError, match="price must be"):
        qinco.compare(TRAIN, BASE, QUERIES, resume=True, price=-1, **settings)
    with pytest.raises(ConfigError, match="seed=0 there, 1 here"):
        qinco.compare(TRAIN, BASE, QUERIES, resume=True, seed=1, **settings)


def test_a_folder_of_something_else_is_kept(tmp_path):
    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no comparison"):
        qinco.compare(TRAIN, BASE, output=tmp_path, overwrite=True, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.fixture(scope="module")
def problem():
    sources = Sources.open(TRAIN, BASE)
    return sources, find_truths(sources, ("l2",), silent)


def test_a_job_that_takes_too_long_is_ended(problem, tmp_path):
    begun = time.monotonic()
    cells, status, reason = run_in_child(job(4), *problem, tmp_path, 0.05, silent)
    assert (cells, status) == ([], "time limit") and "0 seconds" in reason
    assert time.monotonic() - begun < 60


def test_a_job_that_fails_says_why(problem, tmp_path):
    assert run_in_child(job(3, "unknown"), *problem, tmp_path, 60, silent)[1:] == ("failed", "KeyError: 'unknown'")


def test_errors_and_limits_are_cells_and_end_nothing(tmp_path):
    settings = QUICK | {"rivals": ["signs", "OPQ"], "output": tmp_path / "report"}
    (tmp_path / "report").mkdir()
    few = TRAIN[:256]  # a part of which is held out, and the rest is too few for 256 codewords
    report = qinco.compare(few, BASE, **settings)
    status = {cell["family"]: cell["status"] for cell in report["cells"]}
    assert status["signs"] == "done" and status["OPQ"] == "failed"
    assert report["data"]["queries"]["held_out"]
    failed = next(cell for cell in report["cells"] if cell["status"] == "failed")
    assert "training" in failed["reason"] and failed["results"] == [] and failed["bytes"] == 2
    assert {result["queries"] for cell in report["cells"] for result in cell["results"]} == {HELD_OUT}


@pytest.mark.slow
def test_a_killed_comparison_goes_on(tmp_path):
    for name, x_ND in (("train", TRAIN), ("base", BASE)):
        np.save(tmp_path / f"{name}.npy", x_ND)
    words = ["trainset=train.npy", "db=base.npy", "output=report", "bytes=[2,4]", "presets=[]", "rivals=[signs,PQ]",
             "parts=[]", "metrics=l2", "threads=1"]  # fmt: skip
    command, cells = [sys.executable, "-m", "qinco", "compare", *words], tmp_path / "report" / "cells"
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (cells.exists() and any(cells.glob("[!.]*.json"))):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130 and "resume=true" in said
    kept = done_at(tmp_path / "report")
    assert 1 <= len(kept) < 6
    subprocess.run([*command, "resume=true", "json=true"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    after = done_at(tmp_path / "report")
    assert len(after) >= 6 and kept.items() <= after.items()
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["command"].startswith("qinco compare trainset=train.npy")


@pytest.mark.slow
def test_our_codecs_and_their_prefixes(tmp_path):
    (tmp_path / "report").mkdir()
    settings = QUICK | {"bytes": [4, 6], "presets": ["qinco2-XS"], "rivals": ["PQ"], "metrics": None, "epochs": 1}
    report = qinco.compare(TRAIN, BASE, QUERIES, output=tmp_path / "report", **settings)
    ours = {cell["id"]: cell for cell in report["cells"] if cell["ours"]}
    assert {cell["bytes"] for cell in ours.values()} == {4, 5, 6, 7}
    assert ours["qinco2-XS-6-calibrated-4"]["prefix_of"] == "qinco2-XS-6"
    assert ours["qinco2-XS-6-calibrated-7"]["scalar_bytes"] == 1
    assert report["metrics"] == ["l2", "inner_product", "cosine"]
    for cell in ours.values():
        assert cell["status"] == "done" and len(cell["results"]) == 3
        assert qinco.Codec.load(tmp_path / "report" / cell["codec"]).num_codes in (4, 6)
    assert ours["qinco2-XS-6"]["settings"]["epochs"] == 1
    errors = ours["qinco2-XS-6"]["settings"]["mse_per_step"]
    assert sorted(errors, reverse=True) == errors and ours["qinco2-XS-6"]["results"][0]["mse"] == errors[-1]


@pytest.mark.slow
def test_a_preset_that_the_time_is_too_short_for_is_skipped(tmp_path):
    (tmp_path / "report").mkdir()
    settings = QUICK | {"bytes": [16], "presets": ["qinco2-L"], "rivals": [], "minutes": 0.05}
    report = qinco.compare(vectors(20_000), BASE, QUERIES, output=tmp_path / "report", **settings)
    (cell,) = report["cells"]
    assert cell["status"] == "skipped" and "0.05 minutes" in cell["reason"] and cell["family"] == "qinco2-L"
