"""The real command line on small vectors: what it writes, prints and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import qinco
from qinco.cli import main
from qinco.vectors.formats import write_vectors
from qinco.vectors.rows import stratified_rows

SMALL = ["M=3", "K=16", "L=1", "de=12", "dh=16", "C=8", "B=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Vectors in every format, queries with their ground truth, and a codec trained by the command line."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((8, 8))
    train, base, queries = (generator.standard_normal((n, 8)) @ mixing for n in (1200, 300, 20))
    write_vectors(folder / "train.fvecs", train.astype(np.float32))
    write_vectors(folder / "base.npy", base.astype(np.float16))
    write_vectors(folder / "base.bvecs", np.clip(base * 10 + 128, 0, 255).astype(np.uint8))
    write_vectors(folder / "query.fvecs", queries.astype(np.float32))
    distances = ((queries[:, None] - base[None]) ** 2).sum(2)
    write_vectors(folder / "gt.ivecs", np.argsort(distances, axis=1)[:, :10].astype(np.int32))
    write_vectors(folder / "coarse.npy", train[:20].astype(np.float32))
    arguments = [f"trainset={folder}/train.fvecs", f"output={folder}/codec.safetensors", "epochs=3", *SMALL]
    assert main(["train", *arguments]) == 0
    return folder


def run_json(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    assert main([*arguments, "json=true"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_trains_evaluates_encodes_decodes_and_searches(folder, capsys):
    model = f"model={folder}/codec.safetensors"
    done = run_json(capsys, "eval", model, f"db={folder}/base.npy")
    assert done["num_vectors"] == 300 and len(done["mse_per_step"]) == 3
    assert [*done["mse_per_step"][:-1], done["mse"]] == sorted(done["mse_per_step"], reverse=True)
    assert run_json(capsys, "task=eval", model, f"db={folder}/base.npy", "mse_scale=0.5")["mse"] == done["mse"] / 2
    assert run_json(capsys, "eval", model, f"db={folder}/base.npy", "prefix=2")["mse"] > done["mse"]

    done_encoding = run_json(capsys, "encode", model, f"db={folder}/base.npy", f"output={folder}/codes.npy")
    assert done_encoding["num_vectors"] == 300
    codes = np.load(folder / "codes.npy")
    assert (codes.shape, codes.dtype) == ((300, 3), np.uint8)
    run_json(capsys, "decode", model, f"codes={folder}/codes.npy", f"output={folder}/decoded.fvecs")
    decoded, base = qinco.open_vectors(folder / "decoded.fvecs")[:], qinco.open_vectors(folder / "base.npy")[:]
    assert ((decoded - base) ** 2).sum(1).mean() == pytest.approx(done["mse"], rel=1e-5)
    run_json(capsys, "decode", model, f"codes={folder}/codes.npy", f"output={folder}/coarser.npy", "prefix=1")
    coarser = ((np.load(folder / "coarser.npy") - base) ** 2).sum(1).mean()
    assert coarser == pytest.approx(done["mse_per_step"][0], rel=1e-5)

    queries = [f"queries={folder}/query.fvecs", f"queries_gt={folder}/gt.ivecs"]
    shares = run_json(capsys, "search", model, f"db={folder}/base.npy", *queries)["recall"]
    assert 0.05 < shares["1"] <= shares["10"] <= shares["100"] <= 1
    times = run_json(capsys, "eval_time", model, f"db={folder}/base.npy", "threads=1")
    assert times["encode_us"] > 0 and times["decode_us"] > 0 and times["threads"] == 1


def test_folders_patterns_and_lists_of_files_are_one_database(folder, tmp_path, capsys):
    base = np.load(folder / "base.npy")
    for number in range(12):
        np.save(tmp_path / f"part-{number}.npy", base[25 * number :][:25])
    model, expected = f"model={folder}/codec.safetensors", qinco.Codec.load(folder / "codec.safetensors").encode(base)
    listed = ",".join(f"{tmp_path}/part-{number}.npy" for number in range(12))
    for number, db in enumerate((tmp_path, f"{tmp_path}/part-*.npy", f"[{listed}]")):
        output = folder / f"joined{number}.npy"
        assert run_json(capsys, "encode", model, f"db={db}", f"output={output}")["num_vectors"] == 300
        np.testing.assert_array_equal(np.load(output), expected.codes)
        assert main(["encode", model, f"db={db}", f"output={tmp_path}/part-3.npy", "overwrite=true"]) == 2
    assert np.array_equal(np.load(tmp_path / "part-3.npy"), base[75:100])
    assert run_json(capsys, "info", str(tmp_path))["num_vectors"] == 300
    assert run_json(capsys, "info", f"{tmp_path}/part-?.npy")["num_vectors"] == 250


def test_the_metric_that_a_file_states_is_used_and_another_one_is_warned_of(folder, tmp_path, capsys):
    base, queries = (qinco.open_vectors(folder / name)[:] for name in ("base.npy", "query.fvecs"))
    ids = qinco.exhaustive_search(queries, base, 10, metric="cosine")[1]
    with h5py.File(tmp_path / "angular.hdf5", "w") as file:
        file.attrs["distance"] = "angular"
        file["train"], file["test"], file["neighbors"] = base, queries, ids
    path, codec = tmp_path / "angular.hdf5", qinco.Codec.load(folder / "codec.safetensors", "cpu")
    command = ["search", f"model={folder}/codec.safetensors", f"db={path}", f"queries={path}:test"]
    command.append(f"queries_gt={path}")
    for given, metric in ([], "cosine"), (["metric=IP"], "inner_product"):
        assert (found := run_json(capsys, *command, *given))["metric"] == metric
        wanted = qinco.exhaustive_recall(codec, base, queries, ids, metric=metric)
        assert found["recall"] == {str(rank): share for rank, share in wanted.items()}
    assert main([*command, "metric=euclidean"]) == 0
    assert "'angular'" in (said := capsys.readouterr().err) and "metric=l2" in said


@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_validation_vectors_are_those_of_the_training(folder, tmp_path, recipe, capsys):
    model, x = tmp_path / "codec.safetensors", qinco.open_vectors(folder / "train.fvecs")[:]
    words = [f"trainset={folder}/train.fvecs", f"recipe={recipe}", *SMALL, "epochs=0", "ds.valset=100"]
    trained = run_json(capsys, "train", f"output={model}", *words)
    done = run_json(capsys, "eval_valset", f"model={model}", f"trainset={folder}/train.fvecs", "ds.valset=100")
    codec, rows = qinco.Codec.load(model), range(len(x) - 100, len(x))
    x = x[stratified_rows(len(x), 100) if recipe == "default" else rows]
    assert done["mse"] == pytest.approx(float(((codec.decode(codec.encode(x)) - x) ** 2).sum(1).mean()), rel=1e-5)
    assert done["mse"] == pytest.approx(trained["mse"], rel=1e-3)


def test_ivf_codec_through_files(folder, tmp_path, capsys):
    model = f"model={tmp_path}/ivf.safetensors"
    arguments = [f"trainset={folder}/train.fvecs", f"ivf_centroids={folder}/coarse.npy", "ivf_K=20", "epochs=1", *SMALL]
    run_json(capsys, "train", f"output={tmp_path}/ivf.safetensors", *arguments)
    mse = run_json(capsys, "eval", model, f"db={folder}/base.npy")["mse"]
    run_json(capsys, "encode", model, f"db={folder}/base.npy", f"output={tmp_path}/codes.npy")
    assert np.load(tmp_path / "codes.lists.npy").shape == (300, 1)
    (tmp_path / "codes.lists.npy").rename(tmp_path / "other.npy")
    assert main(["decode", model, f"codes={tmp_path}/codes.npy", f"output={tmp_path}/decoded.npy"]) == 3
    assert "codes.lists.npy" in capsys.readouterr().err
    lists = f"lists={tmp_path}/other.npy"
    run_json(capsys, "decode", model, f"codes={tmp_path}/codes.npy", lists, f"output={tmp_path}/decoded.npy")
    error = np.load(tmp_path / "decoded.npy") - qinco.open_vectors(folder / "base.npy")[:]
    assert (error**2).sum(1).mean() == pytest.approx(mse, rel=1e-5)


def test_product_codec_and_paper_recipe(folder, tmp_path, capsys):
    common = ["train", f"trainset={folder}/train.fvecs", "epochs=1", *SMALL]
    run_json(capsys, *common, "pq=2", "opq=true", f"output={tmp_path}/pq.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pq.safetensors"]
    done = run_json(capsys, "eval", f"model={tmp_path}/pq.safetensors", f"db={folder}/base.npy")
    assert len(done["mse_per_step"]) == 3
    run_json(capsys, *common, "recipe=paper", f"output={tmp_path}/paper.safetensors")
    stored = run_json(capsys, "info", f"{tmp_path}/paper.safetensors")["provenance"]["train"]
    assert (stored["lr"], stored["codebook_noise"], stored["exact_start"]) == (8e-4, 0.1, False)


def test_goes_on_from_a_model_at_its_epoch(folder, tmp_path, capsys):
    arguments = ["train", f"trainset={folder}/train.fvecs", f"model={folder}/codec.safetensors"]
    output = f"output={tmp_path}/more.safetensors"
    had = run_json(capsys, "info", f"{folder}/codec.safetensors")["provenance"]["epoch"]
    assert main([*arguments, output, f"epochs={max(had, 1)}"]) == 2
    assert f"not {max(had, 1)}" in capsys.readouterr().err
    run_json(capsys, *arguments, output, "epochs=5")
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "more.safetensors.jsonl").read_text().splitlines()]
    assert epochs == list(range(had, 6))


WRONG = {
    "missing file": ("eval model={codec} db=nowhere.fvecs", 3, "No such file"),
    "not a data set": ("eval model={codec} db=bigann9M", 3, "bigann1M"),
    "truncated vectors": ("eval model={codec} db={truncated}", 3, "truncated.fvecs"),
    "vectors as a codec": ("eval model={base} db={base}", 3, "base.npy"),
    "NaN": ("eval model={codec} db={nan}", 3, "row 7"),
    "dimension": ("eval model={codec} db={gt}", 3, "dimension"),
    "too few": ("train trainset={base} output={new} K=1024", 3, "1024"),
    "validation": ("train trainset={base} output={new} ds.valset=200", 2, "200"),
    "keys of an index": ("search model={codec} db={base} nprobe=4 queries={query} queries_gt={gt}", 2, "nprobe="),
    "A without pre-selector": ("train trainset={base} output={new} model_args=qinco1 K=16 A=4", 2, "pre-selector"),
    "K": ("train trainset={base} output={new} K=100", 2, "power of two"),
    "newer format": ("eval model={newer} db={base}", 3, "version 2"),
    "codes": ("decode model={codec} codes={wrong_codes} output={new}.npy", 3, "row 2, column 1 is 16"),
    "prefix": ("eval model={codec} db={base} prefix=4", 2, "between 1 and 3, not 4"),
    "folder": ("train trainset={base} output=/nowhere/x.safetensors", 2, "/nowhere"),
    "exists": ("train trainset={base} output={codec} K=16", 2, "overwrite=true"),
    "output is input": ("encode model={codec} db={base} output={base} overwrite=true", 2, "is read"),
    "output is codes": ("decode model={codec} codes={codes} output={codes} overwrite=true", 2, "is read"),
    "codes of others": ("encode model={codec} db={base} output={codes} resume=true", 2, "holds codes of shape (4, 3)"),
    "codes exist": ("encode model={codec} db={base} output={codes}", 2, "overwrite=true"),
    "folder of inputs": ("encode model={codec} db={base} output={folder}", 2, "lies in"),
    "checkpoint with parts": ("train trainset={base} output={new}.pt pq=2 K=16", 2, ".safetensors"),
    "checkpoint with C": ("train trainset={base} output={new}.pt K=16 C=8", 2, "num_pairs=8"),
    "converted rule": ("convert model={codec} output={new}.pt C=4", 2, "num_pairs=4"),
    "decode prefix": ("decode model={codec} codes={codes} output={new}.npy prefix=9", 2, "(prefix)"),
    "ground truth": ("search model={codec} db={base} queries={query} queries_gt={gt} ds.db=50", 3, "vector 1"),
}


@pytest.fixture(scope="module")
def files(folder) -> dict[str, str]:
    from safetensors.numpy import save_file

    paths = {name: folder / file for name, file in {
        "codec": "codec.safetensors", "base": "base.npy", "query": "query.fvecs", "gt": "gt.ivecs",
        "truncated": "truncated.fvecs", "nan": "nan.npy", "newer": "newer.safetensors",
        "wrong_codes": "wrong.npy", "new": "new.safetensors", "codes": "right.npy", "ivf": "ivf.safetensors",
    }.items()}  # fmt: skip
    paths["truncated"].write_bytes((folder / "train.fvecs").read_bytes()[:-5])
    x = np.zeros((40, 8), np.float32)
    x[7, 3] = np.nan
    np.save(paths["nan"], x)
    header = {"qinco": json.dumps({"kind": "codec", "format_version": 2})}
    save_file({"x": np.zeros(1)}, paths["newer"], metadata=header)
    np.save(paths["wrong_codes"], np.array([[0, 0, 0], [1, 15, 2], [0, 16, 0]], np.uint8))
    np.save(paths["codes"], np.zeros((4, 3), np.uint8))
    options = {"num_steps": 2, "codebook_size": 4, "hidden_dim": 4, "epochs": 0}
    qinco.Codec.fit(folder / "train.fvecs", coarse_centroids=folder / "coarse.npy", output=paths["ivf"], **options)
    return {name: str(path) for name, path in paths.items()} | {"folder": str(folder)}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_clear_line(name, files, folder, capsys):
    command, code, words = WRONG[name]
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main([word.format(**files) for word in command.split()]) == code
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith("qinco: error: ") and words in output.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_is_not_resumed_on_other_vectors(folder, tmp_path, capsys):
    common = ["train", f"output={tmp_path}/x.safetensors", "epochs=1", *SMALL]
    np.save(tmp_path / "other.npy", qinco.open_vectors(folder / "train.fvecs")[:] + 1)
    assert main([*common, f"trainset={folder}/train.fvecs"]) == 0
    assert main([*common, f"trainset={tmp_path}/other.npy", "resume=true"]) == 2
    assert "other training vectors" in capsys.readouterr().err
    assert main([*common, f"trainset={folder}/train.fvecs", "resume=true"]) == 0


@pytest.mark.slow
def test_interrupted_training_resumes_to_the_same_codec(folder, tmp_path):
    """Ctrl-C in the middle of training, then the same command with resume=true."""
    common = [f"trainset={folder}/train.fvecs", "epochs=40", "batch=32", "threads=1", *SMALL]
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert main(["train", f"output={whole}", *common]) == 0
    command = [sys.executable, "-m", "qinco", "train", f"output={parts}", "resume=true", *common]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        for line in process.stderr:
            if line.startswith(b"epoch 2/"):
                time.sleep(0.05)
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read().decode()
        assert process.wait() == 130, rest
    assert "resume=true" in rest
    log = Path(f"{parts}.jsonl")
    assert len(log.read_text().splitlines()) < 41
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert len(log.read_text().splitlines()) == 41
    first, second = (qinco.Codec.load(path).models[0].state_dict() for path in (whole, parts))
    assert all((first[name] == second[name]).all() for name in first)
