"""`--cfg` shows the value of every key and its source, without running the task."""

import json

import numpy as np
import pytest

from qinco.cli import main
from qinco.cli.defaults import resolve
from qinco.cli.grammar import parse_arguments
from qinco.cli.tasks import TASKS
from qinco.cli.tasks.train import fit_arguments
from qinco.codec.plan import plan_training
from qinco.config import EncodeOptions, ModelConfig, field_keys
from qinco.datasets.catalogue import DATASETS
from qinco.training.options import TrainOptions
from qinco.vectors.rows import as_source

TRAIN = ("train", "trainset=x", "output=y")
DIM = 12


def resolved(*words: str) -> dict[str, tuple]:
    settings = parse_arguments(words, complete=False)
    return resolve(TASKS[settings.task], settings.given_values)


def missing(found) -> list[str]:
    return [name for name, (_, source) in found.items() if source.startswith("missing")]


def test_text(capsys):
    assert main(["eval", "--cfg", "db=deep1M", "ds.db=5", "A=0"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = {line.partition("=")[0]: line.partition("=")[2].split(maxsplit=1) for line in out.splitlines()}
    assert list(lines) == [key.name for key in TASKS["eval"].keys]
    expected = {"model": ["missing"], "db": ["data/deep1b/base.fvecs", "data set deep1M"], "A": ["0", "command line"]}
    expected |= {"ds.db": ["5", "command line"], "C": ["null", "A is used instead"], "threads": ["null", "default"]}
    assert {name: lines[name] for name in expected} == expected
    assert len({line.index(line.split(maxsplit=1)[-1]) for line in out.splitlines() if "  " in line}) == 1


@pytest.mark.parametrize("words", [["--cfg"], ["--cfg", "job"], ["--cfg=job"]])
def test_json_and_the_spellings_of_hydra(words, capsys):
    assert main([*words, "train", "json=true", "trainset=x", "output=${M}.pt", "M=16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [key.name for key in TASKS["train"].keys]
    assert found["output"] == {"value": "16.pt", "source": "command line"}
    assert found["lr"] == {"value": None, "source": "default, fitted to the run"}
    assert found["de"] == {"value": 128, "source": "preset qinco2-S"}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_says_what_is_missing(task):
    found = resolved(task)
    assert list(found) == [key.name for key in TASKS[task].keys]
    assert missing(found) == [names.split("|")[0] for names in TASKS[task].required]


def test_an_index_is_searched_without_a_database():
    found = resolved("search", "index=i")
    assert missing(found) == ["queries"]
    assert found["queries"] == (None, "missing, unless db names a data set")
    found = resolved("search", "index=i", "db=deep1M", "nprobe=[4,8]")
    assert not missing(found)
    assert found["queries"] == ("data/deep1b/deep1B_queries.fvecs", "data set deep1M")
    assert found["search.nprobe"] == ((4, 8), "command line")


def test_of_a_data_set_an_index_is_built_with_the_training_vectors():
    found = resolved("build_index", "db=deep1M", "encoded_db=d", "encoded_trainset=t", "output=o")
    assert found["trainset"] == ("data/deep1b/learn.fvecs", "data set deep1M")
    assert (found["db"], found["ds.db"]) == (("deep1M", "command line"), (None, "default"))
    assert found["search.index_key"] == ("IVF${ivf_K}_HNSW32,RQ${M}x8_Nqint8", "default")


def test_a_training_set_may_come_from_a_data_set():
    assert resolved("train")["trainset"] == (None, "missing, unless db names a data set")
    assert resolved("train", "db=no-set")["trainset"] == (None, "missing, unless db names a data set")
    assert resolved("train", "db=deep1M")["trainset"] == ("data/deep1b/learn.fvecs", "data set deep1M")
    assert resolved("train", "db=deep1M", "trainset=t")["trainset"] == ("t", "command line")
    assert resolved("encode", "encode_trainset=true")["trainset"] == (None, "default")
    assert resolved("encode", "encode_trainset=true", "db=deep1M")["trainset"][1] == "data set deep1M"
    assert resolved("encode", "db=deep1M")["trainset"] == (None, "default")


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_data_sets(dataset):
    source = f"data set {dataset.name}"
    found = resolved("search", f"db={dataset.name}", "queries=q")
    assert found["db"] == (dataset.database, source)
    assert found["queries"] == ("q", "command line")
    assert found["queries_gt"] == (dataset.ground_truth, source)
    limit = dataset.database_limit
    assert found["ds.db"] == ((None, "default") if limit is None else (limit, source))
    assert resolved("eval", f"db={dataset.name}")["mse_scale"] == (dataset.mse_scale, source)
    assert resolved("eval", f"db={dataset.name}", "mse_scale=2")["mse_scale"] == (2.0, "command line")
    more = resolved("eval", f"db={dataset.name}", "ds.db=10_000_000")["ds.db"]
    assert more == ((10_000_000, "command line") if limit is None else (limit, source))


def test_what_only_the_model_knows():
    found = resolved("eval", "model=m", "B=4")
    assert (found["A"], found["B"]) == ((None, "the codec's own"), (4, "command line"))
    assert resolved("eval", "model=m", "C=4")["A"] == (None, "C is used instead")
    found = resolved(*TRAIN, "model=m", "recipe=paper")
    assert found["M"] == found["de"] == found["A"] == (None, "the codec's own")
    assert found["lr"] == (None, "recipe paper of this kind of model")
    assert found["codebook_noise_init"] == (0.1, "recipe paper")
    assert resolved("train", "model=m", "output=a.pt")["A"][1] == "the codec's own, or A=16 B=32 if it has C"
    assert resolved("bench")["B"] == (None, "default, the usual options in turn")
    assert resolved("bench", "B=4")["C"] == (80, "default")


def test_sources():
    found = resolved(*TRAIN)
    assert found["model_args"] == ("qinco2-S", "default")
    assert (found["C"], found["A"]) == ((80, "default"), (None, "C is used instead"))
    assert resolved("train", "output=x.PT")["A"] == (16, "default of .pt files")
    assert resolved(*TRAIN, "recipe=paper")["A"] == (16, "recipe paper")
    assert resolved(*TRAIN, "model_args=qinco1")["A"] == (0, "preset qinco1")
    assert resolved(*TRAIN, "model_args=qinco1")["de"] == (None, "default, the dimension of the vectors")
    assert resolved(*TRAIN, "qinco1_mode=true", "de=24")["de"] == (None, "qinco1_mode, the dimension of the vectors")
    assert resolved(*TRAIN, "cpu=true")["device"] == ("cpu", "cpu=true")
    assert resolved(*TRAIN)["ds.valset"] == (10_000, "default, at most a fortieth of the training vectors, or 1,000")
    assert resolved(*TRAIN, "recipe=paper")["ds.valset"] == (10_000, "default, at most a tenth of the training vectors")


@pytest.mark.parametrize(
    "words",
    [
        "", "model_args=null", "model_args=qinco2-L M=16 K=16", "model_args=qinco1", "model_args=qinco1 recipe=paper",
        "recipe=paper", "recipe=paper lr=1e-3 A=4 scheduler.name=reduce_lr_plateau", "qinco1_mode=true A=4",
        "qinco1_mode=true recipe=paper B=3", "output=y.pt", "output=y.pt model_args=qinco1 recipe=paper",
        "output=y.pt K=4 B=2", "output=y.pt K=4 ivf_centroids=c", "output=y.pt A=4 recipe=paper",
        "output=y.pt A=0 B=0", "L=1 B=0", "dh=32 de=0 B=7", "de=24 A=null epochs=3 ds.valset=7",
        "C=16 batch=8 grad_clip=null", "ivf_centroids=c K=4 concat_rank=3", "K=2 A=2 seed=3 precision=float32",
        "C=null L=null K=null M=null dh=null model_args=qinco2-M", "minutes=0.5", "minutes=5 recipe=paper",
        "minutes=5 model_args=qinco1 recipe=paper", "minutes=5 scheduler.name=cosine lr=1e-3",
    ],
)  # fmt: skip
def test_it_is_what_training_does(words):
    output = [] if "output=y.pt" in words else ["output=y.safetensors"]
    settings = parse_arguments(["train", "trainset=x", *output, *words.split()])
    chosen = fit_arguments(settings, DIM)
    coarse = np.zeros((5, DIM), np.float32) if settings["ivf_centroids"] else None
    source = as_source(np.zeros((100, DIM), np.float32))
    preset, recipe = chosen.pop("preset"), chosen.pop("recipe")
    run = plan_training(source, preset, chosen, coarse_centroids=coarse, recipe=recipe, output=settings["output"])
    found = resolve(TASKS["train"], settings.given_values)
    parts = ((ModelConfig, run.model_config), (EncodeOptions, run.encode_options), (TrainOptions, run.train_options))
    done = {key: getattr(part, name) for options, part in parts for name, key in field_keys(options).items()}
    del done["engine"]
    shown = {key: found[key].value for key in done}
    assert shown["de"] in (done["de"], None)
    assert shown["de"] or run.model_config.embed_dim == DIM
    shown["de"] = done["de"]
    if "ds.valset" not in settings.given_values:  # chosen by the number of vectors, which nobody knows before
        assert shown.pop("ds.valset") == 10_000 and found["ds.valset"].source.startswith("default, ")
        del done["ds.valset"]
    done["A"] = 0 if not run.encode_options.preselects else done["A"]
    assert shown == done
