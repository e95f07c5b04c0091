"""Which cases `bench` measures and how it reports them; never how long anything takes."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from small_models import random_model

from qinco.cli import bench
from qinco.cli.console import Console
from qinco.cli.grammar import parse_arguments
from qinco.codec import Codec, evaluate
from qinco.codec.evaluate import benchmark
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError
from qinco.machine import processor_name, usable_cores

TINY = ("M=2", "K=16", "L=1", "dh=16", "de=16")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measurements of a few vectors, and as many threads afterwards as before."""
    monkeypatch.setattr(bench, "benchmark", partial(benchmark, pass_us=1, max_vectors=64))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def bf16(monkeypatch):
    """Sets what `precision=auto` is on this machine."""

    def choose(is_bf16):
        chosen = torch.bfloat16 if is_bf16 else torch.float32
        monkeypatch.setattr(evaluate, "candidate_dtype", lambda precision, device, config: chosen)

    return choose


def run(*arguments):
    settings = parse_arguments(["bench", "cpu=true", *arguments])
    bench.bench(settings, Console(settings["verbose"]))


def results(capsys, *arguments):
    run("json=true", *arguments)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def cases(report, *names):
    return [tuple(row[name] for name in names) for row in report["results"]]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_every_case_is_measured(capsys, bf16):
    bf16(True)
    torch.set_num_threads(2)
    report = results(capsys, *TINY)
    rules = ("A=16 B=32", "C=64 B=32", "C=16 B=4")
    expected = [(threads, precision, rule) for threads in (1, 2) for precision in ("float32", "auto") for rule in rules]
    assert cases(report, "threads", "precision", "rule") == expected
    assert torch.get_num_threads() == 2


def test_what_a_case_holds(capsys, bf16):
    bf16(False)
    report = results(capsys, *TINY, "threads=1")
    for row in report["results"]:
        assert row["model"] == "M=2 K=16 L=1 de=16 dh=16"
        assert row["encode_us"] > 0 and row["decode_us"] > 0
        assert row["encode_vectors_per_second"] == pytest.approx(1e6 / row["encode_us"])
    assert len({row["decode_us"] for row in report["results"]}) == 1
    assert report["torch"] == torch.__version__
    assert report["processor"] == processor_name()
    assert report["cores"] == usable_cores()
    assert report["device"] == "cpu"
    assert report["weights"].startswith("random")


def test_auto_is_left_out_where_it_is_float32(capsys, bf16):
    bf16(False)
    assert cases(results(capsys, *TINY, "threads=1", "B=4", "C=8"), "precision", "rule") == [("float32", "C=8 B=4")]


@pytest.mark.parametrize("precision", ["float32", "bf16", "auto"])
def test_the_case_that_is_asked_for(capsys, precision):
    report = results(capsys, *TINY, "A=2", "B=3", "threads=1", f"precision={precision}")
    assert cases(report, "rule", "precision", "threads") == [("A=2 B=3", precision, 1)]


def test_models_without_preselector(capsys, bf16):
    bf16(False)
    report = results(capsys, "model_args=qinco1", "M=2", "K=4", "L=1", "dh=8", "threads=1")
    assert cases(report, "model", "rule") == [("qinco1 M=2 K=4 L=1 dh=8", "B=1")]


def test_table(capsys):
    run(*TINY, "threads=1", "A=2", "B=3", "precision=float32")
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "model"
    for column in ("rule", "precision", "threads", "encode us", "encode vectors/s", "decode us"):
        assert column in lines[0]
    assert lines[2].startswith("M=2 K=16 L=1 de=16 dh=16  A=2 B=3  float32")
    assert lines[-1] == "weights: random, which take the same time as trained ones"
    assert err.startswith("measuring M=2 K=16 L=1 de=16 dh=16 on vectors of 128 dimensions, 1 times")
    run(*TINY, "threads=1", "A=2", "B=3", "precision=float32", "verbose=false")
    assert capsys.readouterr().err == ""


def save(path, **fields) -> str:
    config = ModelConfig(dim=4, num_steps=2, codebook_size=4, num_blocks=1, hidden_dim=8, **fields)
    Codec(random_model(config), EncodeOptions(num_pairs=3, beam_width=2)).save(path)
    return f"model={path}"


@pytest.mark.parametrize("fields", [{}, {"starts_from_coarse": True, "num_lists": 5}])
def test_a_codec_file(capsys, tmp_path, bf16, fields):
    bf16(False)
    model = save(tmp_path / "c.safetensors", **fields)
    report = results(capsys, model, "threads=1")
    assert cases(report, "rule") == [("A=16 B=32",), ("C=64 B=32",), ("C=16 B=4",), ("C=3 B=2",)]
    assert {row["model"] for row in report["results"]} == {model.removeprefix("model=")}
    assert report["weights"] == "trained"


def test_a_codec_of_several_parts(capsys, tmp_path, bf16):
    bf16(False)
    config = ModelConfig(dim=4, num_steps=2, codebook_size=4, num_blocks=1, hidden_dim=8)
    models = [random_model(config, seed) for seed in (0, 1)]
    Codec(models, EncodeOptions(num_pairs=3, beam_width=2)).save(tmp_path / "c.safetensors")
    report = results(capsys, f"model={tmp_path / 'c.safetensors'}", "threads=1", "B=2", "C=3")
    assert cases(report, "rule") == [("C=3 B=2",)]


@pytest.mark.parametrize("size", ["M=3", "K=8", "model_args=qinco2-S", "dh=4"])
def test_a_codec_file_has_its_own_sizes(tmp_path, size):
    with pytest.raises(ConfigError, match=f"leave out {size.split('=')[0]}"):
        run(save(tmp_path / "c.safetensors"), size)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["model_args=qinco1", "A=4"], "needs a pre-selector"),
        (["A=4", "C=4"], "exclude each other"),
        (["K=10"], "power of two"),
        (["qinco1_mode=true", "model_args=qinco2-S"], "contradicts"),
    ],
)
def test_mistakes_are_found_before_anything_is_measured(arguments, message, monkeypatch):
    monkeypatch.setattr(bench, "benchmark", None)
    with pytest.raises(ConfigError, match=message):
        run(*arguments)
