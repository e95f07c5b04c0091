"""`qinco train`: what it says, and settings that do nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import random_vectors

from qinco.cli import main
from qinco.cli.grammar import parse_arguments
from qinco.cli.tasks.train import fit_arguments
from qinco.codec.plan import plan_training
from qinco.config import PRESETS, EncodeOptions, ModelConfig, field_keys
from qinco.errors import ConfigError
from qinco.training.options import TrainOptions
from qinco.vectors.rows import as_source

SMALL = ["M=2", "K=8", "L=1", "de=4", "dh=6", "C=8", "B=2", "epochs=2", "batch=64", "precision=float32", "cpu=true"]


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", random_vectors(300, 4))
    return ["train", "trainset=x.npy", "output=y.safetensors", *SMALL]


@pytest.mark.parametrize(("more", "warned"), [
    (["ivf_K=1024"], True), (["ivf_K=null"], False), (["ivf_K=1024", "ivf_centroids=c.npy"], False),
    (["ivf_K=1024", "model=m.safetensors"], False),
])  # fmt: skip
def test_a_number_of_centroids_alone_does_nothing(more, warned, words, capsys):
    assert main([*words, "ds.valset=299", *more]) in (2, 3)  # ends before the run begins
    assert ("ivf_K=1024 has no effect" in capsys.readouterr().err) == warned


def test_a_run_is_told_in_lines_and_ends_in_a_result(words, capsys):
    assert main([*words, "mse_scale=1000", "json=true", "seed=1"]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("qinco: warning")]  # of an unused codeword
    assert "vectors (30 for validation)" in lines[0] and "start: mse" in lines[1]
    assert [line.split(":")[0] for line in lines[2:4]] == ["epoch 1/2", "epoch 2/2"]
    result = json.loads(out)
    errors = [json.loads(line)["mse"] for line in Path("y.safetensors.jsonl").read_text().splitlines()]
    assert result["mse"] == pytest.approx(1000 * min(errors))
    assert result["num_vectors"] == 300 and result["bytes_per_vector"] == 0.75


def test_nothing_but_warnings_without_verbose(words, capsys):
    assert main([*words, "verbose=false", "lr=2"]) == 0
    assert all("warning" in line for line in capsys.readouterr().err.splitlines())


def test_parts_and_curves(words, capsys, tmp_path):
    assert main([*words, "pq=2", "opq=true", "tensorboard=board"]) == 0
    assert "part 2 of 2" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "board").iterdir()) == ["part_0", "part_1"]


@pytest.mark.parametrize(("more", "fact"), [
    (["opq=true"], "(pq)"), (["pq=2", "ivf_centroids=c.npy"], "(ivf_centroids)"),
    (["model=m.safetensors", "model_args=qinco2-S"], "model_args"), (["output=y.npy"], "y.npy"),
    (["output=x.npy"], "x.npy"), (["tensorboard=x.npy"], "tensorboard"),
])  # fmt: skip
def test_settings_that_exclude_each_other_are_refused(more, fact, words, capsys, tmp_path):
    kept = [word for word in words if not any(word.split("=")[0] == other.split("=")[0] for other in more)]
    assert main([*kept, *more]) == 2
    assert fact in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


EVERY_VALUE = {
    "0": 0, "-1": -1, "3": 3, "16": 16, "1.5": 1.5, "nan": float("nan"), "inf": float("inf"), "true": True,
    "false": False, "null": None, "x": "x", "1e30": 1e30, "99999999999999999999": 10**20 - 1, "adam": "adam",
}  # fmt: skip


@pytest.mark.parametrize(("field", "key"), field_keys(ModelConfig, EncodeOptions, TrainOptions).items())
def test_the_command_line_and_python_refuse_the_same_values_and_make_the_same_of_others(field, key):
    if key == "engine":
        return  # of the machine, and so no setting of training
    vectors = as_source(np.zeros((100, 12), np.float32))

    def outcome(make):
        try:
            plan = plan_training(vectors, "qinco2-S", make())
            return plan.model_config, plan.encode_options, plan.train_options
        except ConfigError:
            return None

    def from_words(name, text):
        settings = parse_arguments(["train", "trainset=x", "output=y.safetensors", f"{name}={text}"])
        given = fit_arguments(settings, 12)
        preset = "auto" if settings["minutes"] is not None else "qinco2-S"
        assert (given.pop("preset"), given.pop("recipe")) == (preset, "default")
        return given

    for text, value in EVERY_VALUE.items():
        if (key, text) in (
            ("A", "null"),
            ("B", "null"),
            ("epochs", "null"),
        ):  # None in Python: as if nothing were given
            continue
        one = outcome(lambda text=text: from_words(key, text))
        assert one == outcome(lambda text=text: from_words(field, text)), text
        for name in (field, key):
            is_end = field == "epochs" or (field == "minutes" and value is not None)
            given = {name: value} | ({} if is_end else {"epochs": 60})  # which the command line has by default
            found = outcome(lambda given=given: given)
            assert found == one or (value == 10**20 - 1 and found and one), (name, text)


@pytest.mark.parametrize("words", ["L=1", "L=2", "de=24", "dh=16", "M=8 K=64 L=1", "num_blocks=1", "de=0"])
def test_a_size_beside_nothing_keeps_the_rest_of_the_preset(words):
    settings = parse_arguments(["train", "trainset=x", "output=y.safetensors", *words.split()])
    given = fit_arguments(settings, 384)
    preset, recipe = given.pop("preset"), given.pop("recipe")
    plan = plan_training(as_source(np.zeros((100, 384), np.float32)), preset, given, recipe=recipe)
    fields = settings.fields(ModelConfig) | ({"embed_dim": 384, "has_ranker": True} if words == "de=0" else {})
    assert plan.model_config == ModelConfig(384, **PRESETS["qinco2-S"] | fields)
