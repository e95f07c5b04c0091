"""Every command of the authors' README for the tasks that exist, with their file names and small files behind them.

What is not verbatim: `epochs=1` ends the training commands, and K_IVF is small.
"""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import random_model, random_vectors

import qinco
from qinco.cli import main
from qinco.config import EncodeOptions, ModelConfig
from qinco.datasets.catalogue import DATASETS
from qinco.vectors.formats import write_vectors

TRAIN, BASE, QUERIES = 600, 120, 10
DIMS = {"bigann": 128, "deep1b": 96, "contriever": 24, "fb_ssnpp": 16}
SMALL = {"num_steps": 3, "codebook_size": 16, "num_blocks": 1, "embed_dim": 12, "hidden_dim": 16}

QUICK = {
    "small model on one's own data": """./run.sh task=train model_args=qinco2-S L=1 dh=32 de=64 A=4 B=4
        output=my_super_small_model-my_dataset-8x8.pt
        trainset=my_dataset-trainset.fvecs
        ds.loop=100_000 epochs=1""",
    "evaluation with a larger beam": "./run.sh task=eval model=models/qinco2_L-bigann1M-8x8.pt db=bigann1M A=32 B=64",
    "evaluation on one's own data": """./run.sh task=eval model=my_model.pt db=my_dataset-db.fvecs
        ds.db=100_000""",
    "retrieval accuracy": "python run.py task=search model=models/qinco2_L-bigann1M-8x8.pt db=bigann1M A=32 B=64",
    "validation set": """./run.sh task=eval_valset model=models/qinco2_L-bigann1M-8x8.pt db=bigann1M A=4 B=8
        ds.valset=100""",
    "time": "python run.py cpu=true task=eval_time model=models/qinco2_L-bigann1M-8x8.pt db=bigann1M",
    "centroids": """python run.py task=ivf_centroids ivf_K=16 db=deep1M
        output=runs/ivf_centroids/ivf_centroids-deep1M-1048576.npy""",
    "centroids of one's own data": """python run.py task=ivf_centroids ivf_K=20
        trainset=my_dataset-trainset.fvecs
        output=runs/ivf_centroids/ivf_centroids-my_dataset-K=700.npy""",
    "encoding a named set": """./run.sh task=encode db=deep1B model=models/IVF-qinco2_S-deep1B-8x8.pt
        output=runs/encoded_db/IVF-qinco2_S-deep1B-8x8_db.npz""",
    "encoding a training set": """./run.sh task=encode db=deep1B encode_trainset=true
        model=models/IVF-qinco2_S-deep1B-8x8.pt
        output=runs/encoded_db/IVF-qinco2_S-deep1B-8x8_trainset.npz""",
    "encoding one's own data": """./run.sh task=encode db=my_dataset-trainset.fvecs model=my-custom-IVF-model.pt
        output=my_encoded_trainset.npz""",
    "encoding one's own database": """./run.sh task=encode db=my_dataset-db.fvecs model=my-custom-IVF-model.pt
        output=my_encoded_db.npz""",
}
# Each needs the files of those before it. The encoded sets are named after deep1M, as the authors' are.
INDEX = {
    "pairwise decoder": """python run.py task=train_pairwise_decoder db=deep1B
        ivf_centroids=models/ivf_centroids-deep1M-1048576.npy
        output=runs/weights/qinco2s-ivf-deep1B-8x8_pairwise_decoder.pt
        encoded_trainset=runs/encoded_db/IVF-qinco2_S-deep1M-8x8_trainset.npz""",
    "index": """python run.py task=build_index db=deep1B
        ivf_centroids=models/ivf_centroids-deep1M-1048576.npy
        output=runs/index/index-IVF-qinco2_S-deep1B-8x8.faissindex
        encoded_trainset=runs/encoded_db/IVF-qinco2_S-deep1M-8x8_trainset.npz
        encoded_db=runs/encoded_db/IVF-qinco2_S-deep1M-8x8_db.npz
        ds.db=300_000 ds.trainset=100_000 ds.valset=10_000""",
    "search of the index": """python run.py cpu=true task=search db=deep1B
        model=models/IVF-qinco2_S-deep1B-8x8.pt
        index=runs/index/index-IVF-qinco2_S-deep1B-8x8.faissindex
        output=runs/logs/search_results-IVF-qinco2_S-deep1B-8x8_v2.json resume=true
        pairwise_decoder=runs/weights/qinco2s-ivf-deep1B-8x8_pairwise_decoder.pt""",
}
LONG = {
    "preset": """./run.sh task=train model_args=qinco2-S db=deep1M M=16
        output=runs/weights/qinco2_S-deep1M-16x8.pt resume=true epochs=1""",
    "going on from a model": """python run.py cpu=true task=train model=runs/weights/qinco2_S-deep1M-8x8.pt
        output=runs/weights/qinco2_S-deep1M-8x8-2.pt db=deep1M verbose=false epochs=1""",
    "qinco1": """./run.sh task=train model_args=qinco1 db=deep1M output=runs/weights/qinco1-deep1M-8x8.pt
        ds.trainset=400 epochs=1""",
    "IVF": """./run.sh task=train model_args=qinco2-S db=deep1M output=runs/weights/IVF-qinco2_S-deep1M-8x8.pt
        ivf_centroids=models/ivf_centroids-deep1M-1048576.npy epochs=1""",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with all files that the commands name."""
    home = tmp_path_factory.mktemp("home")
    for dataset in DATASETS.values():
        dim = DIMS[Path(dataset.database).parts[1]]
        x = random_vectors(TRAIN + BASE + QUERIES, dim)
        x = np.clip(x * 4 + 100, 0, 255).astype(np.uint8) if dataset.database.endswith(".bvecs") else x
        parts = dict(zip(("trainset", "database", "queries"), np.split(x, [TRAIN, TRAIN + BASE]), strict=True))
        squared = ((parts["queries"].astype(float)[:, None] - parts["database"].astype(float)[None]) ** 2).sum(2)
        parts["ground_truth"] = np.argsort(squared, 1)[:, :1].astype(np.int32)
        for name, array in parts.items():
            path = home / getattr(dataset, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_vectors(path, array)
    write_vectors(home / "my_dataset-trainset.fvecs", random_vectors(TRAIN, 6))
    write_vectors(home / "my_dataset-db.fvecs", random_vectors(BASE, 6))
    (home / "models").mkdir()
    (home / "runs" / "weights").mkdir(parents=True)
    lists = {"starts_from_coarse": True, "num_lists": 20}
    _save(home / "models/qinco2_L-bigann1M-8x8.pt", ModelConfig(128, **SMALL))
    _save(home / "models/IVF-qinco2_S-deep1B-8x8.pt", ModelConfig(96, **SMALL, **lists))
    centroids = qinco.Codec.load(home / "models/IVF-qinco2_S-deep1B-8x8.pt").coarse_centroids
    write_vectors(home / "models/ivf_centroids-deep1M-1048576.npy", centroids)
    _save(home / "my-custom-IVF-model.pt", ModelConfig(6, **SMALL, **lists))
    _save(home / "my_model.pt", ModelConfig(6, **SMALL))
    _save(home / "runs/weights/qinco2_S-deep1M-8x8.pt", ModelConfig(96, **SMALL))
    return home


def _save(path: Path, config: ModelConfig) -> None:
    qinco.Codec(random_model(config), EncodeOptions(num_candidates=4, beam_width=4)).save(path)


def _run(command: str, home: Path, monkeypatch, capsys) -> tuple[dict, dict]:
    """The result of a command, and its settings."""
    monkeypatch.chdir(home)
    words = shlex.split(command)
    arguments = words[2:] if words[0] == "python" else words[1:]
    capsys.readouterr()
    assert main([*arguments, "json=true"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1]), dict(word.split("=", 1) for word in arguments)


@pytest.mark.parametrize("name", QUICK)
def test_command_of_the_readme(name, home, monkeypatch, capsys):
    result, settings = _run(QUICK[name], home, monkeypatch, capsys)
    _check(result, settings, home)


def test_index_commands_of_the_readme(home, monkeypatch, capsys):
    monkeypatch.setattr("qinco.search.measure.timing.MIN_SECONDS", 0)
    model = "model=models/IVF-qinco2_S-deep1B-8x8.pt"
    for part, more in (("db", ""), ("trainset", " encode_trainset=true")):
        output = f"output=runs/encoded_db/IVF-qinco2_S-deep1M-8x8_{part}.npz"
        _run(f"./run.sh task=encode db=deep1B {model} {output}{more}", home, monkeypatch, capsys)
    results = {name: _run(command, home, monkeypatch, capsys)[0] for name, command in INDEX.items()}
    assert results["pairwise decoder"]["mse_pairwise"] <= results["pairwise decoder"]["mse_lookup"]
    assert (results["index"]["num_vectors"], results["index"]["num_lists"]) == (BASE, 20)
    found = results["search of the index"]["settings"]
    assert {setting["parameters"]["nshort"] for setting in found} == {4, 10}
    logs = json.loads((home / "runs/logs/search_results-IVF-qinco2_S-deep1B-8x8_v2.json").read_text())
    assert [result["recalls"] for result in logs["ivf_real_res"]] == [setting["recall"] for setting in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_command_of_the_readme(name, home, monkeypatch, capsys):
    result, settings = _run(LONG[name], home, monkeypatch, capsys)
    _check(result, settings, home)


def _check(result: dict, settings: dict, home: Path) -> None:
    if settings["task"] == "train":
        content = torch.load(home / settings["output"], weights_only=True)
        codec = qinco.Codec.load(home / settings["output"])
        assert content["data_dim"] == codec.dim
        assert content["parameters"]["M"] == codec.config.num_steps == int(settings.get("M", codec.config.num_steps))
        assert result["mse"] > 0
    elif settings["task"] == "search":
        recall = result["recall"]
        assert 0 <= recall["1"] <= recall["10"] <= recall["100"] <= 1 and result["num_queries"] == QUERIES
    elif settings["task"] == "ivf_centroids":
        centroids = np.load(home / settings["output"])
        assert (len(centroids), centroids.dtype) == (int(settings["ivf_K"]), np.float32)
    elif settings["task"] == "encode":
        sizes = np.load(home / settings["output"])
        rows = TRAIN if "trainset" in settings["output"] else BASE
        parts = [np.load(home / settings["output"].replace(".npz", f".part_{i}.npz")) for i in range(sizes["n_parts"])]
        codes = np.concatenate([part["codes"] for part in parts])
        assert (codes.shape, codes.dtype) == ((rows, sizes["M"] + 1), np.int64)
        assert codes[:, 0].max() < 20 and codes[:, 1:].max() < sizes["K"] == 16
    elif settings["task"] == "eval_time":
        assert result["encode_us"] > 0
    else:
        assert result["mse"] > 0
        assert result["num_vectors"] == (100 if settings["task"] == "eval_valset" else BASE)
