"""Which cases `qinco bench` measures and how it reports them; never how long anything takes."""

import json
from functools import partial
from itertools import product

import pytest
from small_models import random_model

import qinco
from qinco.cli import main
from qinco.codec import Codec, evaluate
from qinco.codec.evaluate import benchmark
from qinco.config import EncodeOptions, ModelConfig
from qinco.machine import processor_name, set_num_threads, usable_cores

TINY = ("M=2", "K=16", "L=1", "dh=16", "de=16")
ONE_CASE = (*TINY, "threads=1", "A=2", "B=3", "precision=float32")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measurements of a few vectors in float32, on two threads, and afterwards on as many as before."""
    monkeypatch.setattr(qinco, "benchmark", partial(benchmark, pass_us=1, max_vectors=64), raising=False)
    monkeypatch.setattr(evaluate, "candidate_precision", lambda precision, device, config: "float32")
    monkeypatch.setenv("QINCO_NUM_THREADS", "2")
    yield
    monkeypatch.undo()
    set_num_threads(None)


def results(capsys, *arguments):
    assert main(["bench", "cpu=true", "json=true", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def cases(report, *names):
    return [tuple(row[name] for name in names) for row in report["results"]]


def save(path, parts=1, **fields) -> str:
    config = ModelConfig(dim=4, num_steps=2, codebook_size=4, num_blocks=1, hidden_dim=8, **fields)
    models = [random_model(config, seed) for seed in range(parts)]
    Codec(models, EncodeOptions(num_pairs=3, beam_width=2)).save(path)
    return f"model={path}"


def test_what_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "candidate_precision", lambda precision, device, config: "bf16")
    report = results(capsys, *TINY)
    options = ("A=16 B=32", "C=80 B=40", "C=16 B=4")
    assert cases(report, "threads", "precision", "rule") == list(product((1, 2), ("float32", "auto"), options))
    for row in report["results"]:
        assert row["model"] == "M=2 K=16 L=1 de=16 dh=16"
        assert row["encode_us"] > 0 and row["decode_us"] > 0
        assert row["encode_vectors_per_second"] == pytest.approx(1e6 / row["encode_us"])
    machine = {"processor": processor_name(), "cores": usable_cores(), "device": "cpu"}
    assert {name: report[name] for name in machine} == machine
    assert report["weights"].startswith("random")


@pytest.mark.parametrize("words, found", [
    ("B=4 C=8", [("float32", "C=8 B=4")]), ("A=2 B=3 precision=bf16", [("bf16", "A=2 B=3")]),
    ("A=2 B=3 precision=auto", [("auto", "A=2 B=3")]),
    ("model_args=qinco1 K=4 dh=8 de=null", [("float32", "B=1")]),
])  # fmt: skip
def test_the_cases_that_are_asked_for(words, found, capsys):
    given = [word for word in TINY if word.split("=")[0] + "=" not in words]
    assert cases(results(capsys, *given, "threads=1", *words.split()), "precision", "rule") == found


def test_table(capsys):
    assert main(["bench", "cpu=true", *ONE_CASE]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    for column in ("model", "options", "precision", "threads", "encode us", "encode vectors/s", "decode us"):
        assert column in lines[0]
    assert lines[2].startswith("M=2 K=16 L=1 de=16 dh=16  A=2 B=3  float32")
    assert lines[-1].startswith("weights: random") and "dimension 128" in err


@pytest.mark.parametrize("fields", [{}, {"starts_from_coarse": True, "num_lists": 5}, {"parts": 2}])
def test_a_codec_file(fields, capsys, tmp_path):
    model = save(tmp_path / "c.safetensors", **fields)
    report = results(capsys, model, "threads=1")
    assert cases(report, "rule") == [("A=16 B=32",), ("C=80 B=40",), ("C=16 B=4",), ("C=3 B=2",)]
    assert {row["model"] for row in report["results"]} == {model.removeprefix("model=")}
    assert report["weights"] == "trained"


@pytest.mark.parametrize("words, fact", [
    ("model={model} M=3", "leave out M"), ("model={model} model_args=qinco2-S", "leave out model_args"),
    ("model_args=qinco1 A=4", "pre-selector"), ("K=10", "power of two"),
    ("qinco1_mode=true model_args=qinco2-S", "contradicts"),
])  # fmt: skip
def test_mistakes_are_found_before_anything_is_measured(words, fact, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(qinco, "benchmark", None, raising=False)
    save(tmp_path / "c.safetensors")
    assert main(["bench", *words.format(model=tmp_path / "c.safetensors").split()]) == 2
    assert fact in capsys.readouterr().err
