"""An interrupted run that is resumed equals the uninterrupted one, bit for bit."""

import json
import signal
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from small_models import random_vectors

from qinco.codec import Codec
from qinco.errors import ConfigError
from qinco.store.run_state import load_state
from qinco.training.loop import EpochReport, StepReport
from qinco.training.monitor import Estimate
from qinco.training.schedule import StepPlan
from qinco.vectors.rows import as_source

SMALL = {
    "num_steps": 2, "codebook_size": 8, "num_blocks": 1, "embed_dim": 6, "hidden_dim": 8, "num_pairs": 12,
    "beam_width": 4, "epochs": 4, "batch_size": 32, "precision": "float32", "device": "cpu",
}  # fmt: skip
RUNS = {
    "muon, cooldown": {"optimizer": "muon", "schedule": "cooldown"},
    "adamw, cosine": {"optimizer": "adamw", "schedule": "cosine"},
    "plateau": {"schedule": "plateau", "patience": 1, "stop_patience": 3, "threshold": 0.01},
    "short epochs": {"epoch_size": 140},
    "adam, accumulated, targets": {"optimizer": "adam", "grad_accumulate": 2, "redraw": "targets"},
    "coarse": {"coarse_centroids": random_vectors(5, 4, 3)},
    "bf16": {"precision": "bf16"},
    "qinco1": {"preset": "qinco1", "embed_dim": None, "num_pairs": None},
    "without an end": {"epochs": None, "epoch_size": 128, "least_gain": 0.9},
}


def interrupter(kind, epoch, step=None):
    """Ctrl-C at one step of one epoch, or at the end of it."""

    def on_report(report):
        if isinstance(report, kind) and report.epoch == epoch and (step is None or report.step == step):
            signal.raise_signal(signal.SIGINT)

    return on_report


def losses(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def same_tensors(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, name):
    x, settings = random_vectors(300, 4), SMALL | RUNS[name]
    whole = Codec.fit(x, output=tmp_path / "whole.safetensors", **settings)
    path = tmp_path / "cut.safetensors"
    for interruption in (
        interrupter(EpochReport, 0),
        interrupter(StepReport, 1, 1),
        interrupter(StepReport, 2, 3),
        interrupter(EpochReport, 2),
    ):
        with pytest.raises(KeyboardInterrupt):
            Codec.fit(x, output=path, resume=True, on_report=interruption, **settings)
    resumed = Codec.fit(x, output=path, resume=True, **settings)
    assert same_tensors(tmp_path / "whole.safetensors", path)
    assert same_tensors(tmp_path / "whole.safetensors.last", tmp_path / "cut.safetensors.last")
    assert losses(tmp_path / "whole.safetensors.jsonl") == losses(tmp_path / "cut.safetensors.jsonl")
    assert resumed.provenance | {"seconds": 0} == whole.provenance | {"seconds": 0}


def test_a_run_goes_on_with_its_own_optimizer(tmp_path):
    """Where none is given; another one is refused."""
    x, path = random_vectors(300, 4), tmp_path / "x.safetensors"
    begun = SMALL | {"optimizer": "adamw"}
    whole = Codec.fit(x, output=tmp_path / "whole.safetensors", **begun)
    with pytest.raises(KeyboardInterrupt):
        Codec.fit(x, output=path, on_report=interrupter(EpochReport, 2), **begun)
    with pytest.raises(ConfigError, match="optimizer"):
        Codec.fit(x, output=path, resume=True, **SMALL, optimizer="muon")
    resumed = Codec.fit(x, output=path, resume=True, **SMALL)
    assert resumed.provenance["train"]["optimizer"] == "adamw"
    assert resumed.fingerprint() == whole.fingerprint() != Codec.fit(x, **SMALL).fingerprint()


def test_a_run_of_minutes_keeps_the_plan_that_was_settled_first(tmp_path, monkeypatch):
    """However fast or busy the machine is when the run goes on."""
    plans = [
        StepPlan(160, 20, 8, 5, 4, 1e-2, seconds=1e6, num_valid=20),
        StepPlan(100, 10, 10, 2, 2, 1e-3, seconds=1.0),
    ]
    remaining = iter([plans[0], plans[0], plans[1]])
    monkeypatch.setattr("qinco.codec.fit.settle", lambda *arguments: next(remaining))
    monkeypatch.setattr("qinco.codec.fit.start_rows", lambda *arguments: 300)  # which two runs may choose differently
    x, settings = random_vectors(300, 4), SMALL | {"epochs": None, "batch_size": None, "minutes": 0.01}
    settings["has_ranker"] = False  # how many vectors they are fitted to is a matter of the machine, too
    whole, path = Codec.fit(x, output=tmp_path / "whole.safetensors", **settings), tmp_path / "cut.safetensors"
    for interruption in (interrupter(StepReport, 1, 1), interrupter(StepReport, 3, 3), interrupter(EpochReport, 4)):
        with pytest.raises(KeyboardInterrupt):
            Codec.fit(x, output=path, resume=True, on_report=interruption, **settings)
    assert load_state(path)[0]["progress"]["plan"] == asdict(plans[0]) | {"num_ranked": 0}
    resumed = Codec.fit(x, output=path, resume=True, **settings)
    assert same_tensors(tmp_path / "whole.safetensors", path)
    assert losses(tmp_path / "whole.safetensors.jsonl") == losses(tmp_path / "cut.safetensors.jsonl")
    assert resumed.provenance["epoch"] == whole.provenance["epoch"]
    for other in ({"minutes": 0.02}, {"minutes": None, "epochs": 4}):
        with pytest.raises(ConfigError, match=r"minutes=0\.01 there"):
            Codec.fit(x, output=path, resume=True, **settings | other)


def test_a_run_of_minutes_that_overfits_ends_alike_when_it_is_resumed(tmp_path, monkeypatch):
    """Interrupted before its end is brought forward, with that, and while its rate falls."""
    plan = StepPlan(160, 20, 8, 16, 4, 1e-2, seconds=1e6)
    monkeypatch.setattr("qinco.codec.fit.settle", lambda *arguments: plan)
    monkeypatch.setattr("qinco.codec.fit.start_rows", lambda *arguments: 100)
    x, settings = random_vectors(100, 4), SMALL | {"epochs": None, "batch_size": None, "minutes": 0.01}
    settings |= {"has_ranker": False, "hidden_dim": 64, "optimizer": "adamw"}
    whole, path = Codec.fit(x, output=tmp_path / "whole.safetensors", **settings), tmp_path / "cut.safetensors"
    log = losses(tmp_path / "whole.safetensors.jsonl")
    decided = next(line["epoch"] for line in log if line["ending"])
    assert log[decided - 1]["epochs"] == 16 > log[decided]["epochs"] == log[-1]["epoch"] > decided
    assert whole.provenance["epoch"] == min(log, key=lambda line: line["mse"])["epoch"]
    for interruption in (
        interrupter(StepReport, decided, 2),
        interrupter(EpochReport, decided),
        interrupter(StepReport, decided + 1, 1),
    ):
        with pytest.raises(KeyboardInterrupt):
            Codec.fit(x, output=path, resume=True, on_report=interruption, **settings)
    Codec.fit(x, output=path, resume=True, **settings)
    assert same_tensors(tmp_path / "whole.safetensors", path)
    assert losses(tmp_path / "whole.safetensors.jsonl") == losses(tmp_path / "cut.safetensors.jsonl")


def test_an_interrupt_says_whether_something_was_saved(tmp_path):
    """At the estimate nothing has been done; later the state is there, and a run that is resumed has one before."""
    x, path = random_vectors(300, 4), tmp_path / "x.safetensors"
    for moment, saved in ((Estimate, False), (StepReport, True), (Estimate, False)):

        def interrupt(report, moment=moment):
            if isinstance(report, moment):
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt) as caught:
            Codec.fit(x, output=path, resume=True, on_report=interrupt, **SMALL)
        assert ("resume=true" in str(caught.value)) == saved


def test_a_second_interrupt_acts_at_once(tmp_path):
    def interrupt_twice(report):
        if isinstance(report, StepReport) and (report.epoch, report.step) == (2, 3):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Codec.fit(random_vectors(300, 4), output=tmp_path / "x.safetensors", on_report=interrupt_twice, **SMALL)
    progress = load_state(tmp_path / "x.safetensors")[0]["progress"]
    assert (progress["epoch"], progress["step"]) == (1, 0)  # saved at the end of the epoch, not at the first interrupt


def test_the_handlers_of_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Codec.fit(random_vectors(300, 4), on_report=interrupter(StepReport, 1, 2), **SMALL)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_continued_codec_resumes_too(tmp_path):
    x = random_vectors(300, 4)
    first = Codec.fit(x, **SMALL | {"epochs": 1})
    settings = {name: SMALL[name] for name in ("epochs", "batch_size", "precision", "device")} | {"initial": first}
    Codec.fit(x, output=tmp_path / "whole.safetensors", **settings)
    with pytest.raises(KeyboardInterrupt):
        Codec.fit(x, output=tmp_path / "cut.safetensors", on_report=interrupter(StepReport, 2, 2), **settings)
    Codec.fit(x, output=tmp_path / "cut.safetensors", resume=True, **settings)
    assert same_tensors(tmp_path / "whole.safetensors", tmp_path / "cut.safetensors")
    assert losses(tmp_path / "whole.safetensors.jsonl") == losses(tmp_path / "cut.safetensors.jsonl")


def test_a_log_beyond_the_saved_state_is_cut(tmp_path):
    """A crash after the log's line and before the state's file."""
    x, path = random_vectors(300, 4), tmp_path / "x.safetensors"
    with pytest.raises(KeyboardInterrupt):
        Codec.fit(x, output=path, on_report=interrupter(EpochReport, 1), **SMALL)
    log = tmp_path / "x.safetensors.jsonl"
    log.write_text(log.read_text() + json.dumps({"epoch": 2}) + '\n{"epo')
    Codec.fit(x, output=path, resume=True, **SMALL)
    assert [line["epoch"] for line in losses(log)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("part", [1, 2], ids=["first part", "second part"])
def test_a_product_codec_resumes(tmp_path, part):
    x, settings = random_vectors(300, 4), SMALL | {"num_parts": 2, "rotate": True}
    Codec.fit(x, output=tmp_path / "whole.safetensors", **settings)
    seen = []

    def on_report(report):
        seen.append(isinstance(report, StepReport) and (report.epoch, report.step) == (2, 3))
        if seen[-1] and sum(seen) == part:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Codec.fit(x, output=tmp_path / "cut.safetensors", on_report=on_report, **settings)
    Codec.fit(x, output=tmp_path / "cut.safetensors", resume=True, **settings)
    assert same_tensors(tmp_path / "whole.safetensors", tmp_path / "cut.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.safetensors", "whole.safetensors"]


def test_a_run_that_is_interrupted_anywhere_continues_exactly(tmp_path):
    """While vectors are read: in the middle of an epoch, and of validation."""
    x, path, reads = as_source(random_vectors(300, 4)), tmp_path / "cut.safetensors", []
    Codec.fit(x, output=tmp_path / "whole.safetensors", **SMALL)

    def interrupting(rows, at):
        reads.append(len(rows))
        if len(reads) == at:
            signal.raise_signal(signal.SIGINT)
        return rows

    for at in range(1, 100):
        reads.clear()
        try:
            Codec.fit(x.map(lambda rows, at=at: interrupting(rows, at)), output=path, resume=True, **SMALL)
        except KeyboardInterrupt:
            continue
        break
    assert at > 5 and same_tensors(tmp_path / "whole.safetensors.last", tmp_path / "cut.safetensors.last")
    assert losses(tmp_path / "whole.safetensors.jsonl") == losses(tmp_path / "cut.safetensors.jsonl")
