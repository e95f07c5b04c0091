"""The tasks of the search half through the real command line: codes, tables, pairs, indexes and their search."""

import json
from pathlib import Path

import numpy as np
import pytest

import qinco
from qinco.cli import main
from qinco.search.tables import MIN_GRAPH_LISTS
from qinco.store.folder import read_folder
from qinco.vectors.formats import write_vectors

SMALL = {"num_steps": 3, "codebook_size": 16, "num_blocks": 1, "embed_dim": 12, "hidden_dim": 16, "epochs": 0}
TRAIN, BASE, QUERIES, DIM, LISTS = 1500, 400, 30, 8, 12
CODES = ["encoded_trainset=ivf_train", "encoded_db=ivf_base", "trainset=train.npy", "model=ivf.safetensors"]
SEARCH = {"nprobe": "[1,4,20]", "nshort": "[4,10]", "precision": "float32"}
SEARCH |= {"queries": "query.npy", "queries_gt": "gt.ivecs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Vectors, two codecs (with lists and without), their codes, an index of each kind and a pairwise decoder."""
    folder = tmp_path_factory.mktemp("index")
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((DIM, DIM))
    train, base, queries = ((generator.standard_normal((n, DIM)) @ mixing + 3) for n in (TRAIN, BASE, QUERIES))
    for name, array in {"train": train, "base": base, "query": queries, "coarse": train[:LISTS]}.items():
        write_vectors(folder / f"{name}.npy", array.astype(np.float32))
    distances = ((queries[:, None] - base[None]) ** 2).sum(2)
    write_vectors(folder / "gt.ivecs", np.argsort(distances, axis=1)[:, :10].astype(np.int32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model, centroids in (("ivf", "coarse.npy"), ("plain", None)):
            codec = f"model={model}.safetensors"
            qinco.Codec.fit("train.npy", coarse_centroids=centroids, output=f"{model}.safetensors", **SMALL)
            run("encode", codec, "db=train.npy", f"output={model}_train")
            run("encode", codec, "db=base.npy", f"output={model}_base")
        run("encode", "model=ivf.safetensors", "db=train.npy", "output=train.npz")
        run("encode", "model=ivf.safetensors", "db=base.npy", "output=base.npz")
        run("build_index", *CODES, "output=ix")
        run("build_index", *CODES, "output=ix.faissindex")
        run("train_pairwise_decoder", *CODES[::2], "ivf_centroids=coarse.npy", "output=pairs.safetensors")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    """In the folder, and measured in haste."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("qinco.search.measure.timing.MIN_SECONDS", 0)


def test_an_index_needs_no_training_vectors(capsys, tmp_path):
    given = ["model=plain.safetensors", "encoded_db=plain_base", f"ivf_K={LISTS}"]
    for output, more in (("from_codes", []), ("from_vectors", ["trainset=base.npy"])):
        run("build_index", *given, *more, f"output={tmp_path}/{output}")
    qinco.build_index("plain_base", tmp_path / "ix", codec="plain.safetensors", num_lists=LISTS)
    for index in (qinco.Index.load(tmp_path / name) for name in ("ix", "from_vectors")):
        expected = qinco.Index.load(tmp_path / "from_codes").search(np.load("query.npy"), 5, nprobe=LISTS)
        np.testing.assert_array_equal(index.search(np.load("query.npy"), 5, nprobe=LISTS)[1], expected[1])
    capsys.readouterr()
    assert main(["build_index", "encoded_db=plain_base", "output=none"]) != 0
    assert "model=" in capsys.readouterr().err
    assert not Path("none").exists()


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def run_json(capsys, *arguments: str) -> dict:
    capsys.readouterr()
    code = main([*arguments, "json=true"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def command(*arguments: str) -> list[str]:
    """A search as SEARCH says but for what the arguments do."""
    return ["search", *(f"{k}={v}" for k, v in (SEARCH | dict(word.split("=", 1) for word in arguments)).items())]


def search(capsys, *arguments: str) -> dict[tuple, dict]:
    """Settings and what they find."""
    found = run_json(capsys, *command(*arguments))
    return {tuple(setting["parameters"].values()): setting for setting in found["settings"]}


def test_neighbours_are_found_and_written(capsys, tmp_path):
    common = ["search", "index=ix", "queries=query.npy", "k=5"]
    found = run_json(capsys, *common, "nprobe=20", "nshort=50", "queries_gt=gt.ivecs", f"output={tmp_path}/ids.npy")
    index = qinco.Index.load("ix")
    _, ids = index.search("query.npy", 5, nprobe=20, num_short=50)
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy"), ids)
    assert found["recall"]["1"] == (ids[:, 0] == qinco.open_vectors("gt.ivecs")[:][:, 0]).mean()
    run_json(capsys, *common, "refine=base.npy", "num_refine=60", "nprobe=20", f"output={tmp_path}/fine.npy")
    refined = index.search("query.npy", 5, nprobe=20, refine="base.npy", num_refine=60)[1]
    np.testing.assert_array_equal(np.load(tmp_path / "fine.npy"), refined)
    assert (refined != ids).any()
    run(*common, "decoder=lookup")
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_array_equal([record["ids"] for record in records], index.search("query.npy", 5, num_short=0)[1])
    run("search", "model=plain.safetensors", "db=base.npy", "queries=query.npy", f"output={tmp_path}/all.ivecs")
    codec = qinco.Codec.load("plain.safetensors")
    _, ids = qinco.exhaustive_search("query.npy", codec.decode(codec.encode("base.npy")), 10)
    np.testing.assert_array_equal(qinco.open_vectors(tmp_path / "all.ivecs")[:], ids)


def test_ivf_k_without_centroids_makes_so_many_lists(capsys, tmp_path):
    codes = ["encoded_trainset=plain_train", "encoded_db=plain_base", "trainset=train.npy", "model=plain.safetensors"]
    assert run_json(capsys, "build_index", *codes, "ivf_K=8", f"output={tmp_path}/ix")["num_lists"] == 8
    assert run_json(capsys, "build_index", *CODES, f"ivf_K={LISTS}", f"output={tmp_path}/ivf")["num_lists"] == LISTS
    for words in (["build_index", *CODES, "ivf_K=8"], ["build_index", *codes[:3], "ivf_K=8"]):
        assert main([*words, f"output={tmp_path}/none"]) == 2
    assert not (tmp_path / "none").exists()


def test_our_index_and_a_faiss_file_find_the_same(capsys):
    ours = search(capsys, "index=ix")
    theirs = search(capsys, "index=ix.faissindex", "model=ivf.safetensors")
    everything = (LISTS, 4, 10, 0)
    assert ours[everything]["recall"]["10"] == pytest.approx(theirs[everything]["recall"]["10"], abs=0.11)
    assert 0.1 < ours[everything]["recall"]["1"] <= ours[everything]["recall"]["10"]
    assert {key[0] for key in ours} <= {1, 4, LISTS}
    assert any(setting["pareto"] for setting in ours.values())
    assert ours[everything]["seconds_by_stage"]["total"] > 0


def test_searching_everything_is_exhaustive_search(capsys):
    exhaustive = run_json(
        capsys, "search", "model=ivf.safetensors", "db=base.npy", "queries=query.npy", "queries_gt=gt.ivecs",
        "precision=float32",
    )["recall"]  # fmt: skip
    found = search(capsys, "index=ix", "nprobe=20", "nshort=400")[LISTS, 4, 400, 0]["recall"]
    assert found == exhaustive


def test_the_papers_order_is_measured_with_the_calibrated_recall_beside(capsys, tmp_path):
    built = run_json(capsys, "build_index", *CODES, "vectors=base.npy", f"output={tmp_path}/ix")
    everything, plain = (LISTS, 4, 400, 0), f"index={tmp_path}/ix"
    found = search(capsys, plain, "nprobe=20", "nshort=400")[everything]
    assert found["recall"] == search(capsys, "index=ix", "nprobe=20", "nshort=400")[everything]["recall"]
    calibrated = search(capsys, plain, "nprobe=20", "nshort=400", "ranking=calibrated")[everything]
    assert found["recall_calibrated"] == calibrated["recall"] != found["recall"]
    assert built["bytes_per_vector"] == qinco.Index.load("ix").bytes_per_vector
    run(*command(plain, "nprobe=20", "nshort=400"))
    assert "calibrated@10" in capsys.readouterr().out
    common = ["search", plain, "queries=query.npy", "nprobe=20", "k=5"]
    for ranking in ("calibrated", "decoded"):
        run_json(capsys, *common, f"ranking={ranking}", f"output={tmp_path}/{ranking}.npy")
        _, ids = qinco.Index.load(tmp_path / "ix").search("query.npy", 5, nprobe=20, ranking=ranking)
        np.testing.assert_array_equal(np.load(tmp_path / f"{ranking}.npy"), ids)
    assert main(["search", "model=plain.safetensors", "db=base.npy", "queries=query.npy", "ranking=decoded"]) == 2
    assert "ranking= is for the search of an index" in capsys.readouterr().err


def test_the_index_holds_its_codec_or_is_told(tmp_path, capsys):
    codes = ["encoded_trainset=ivf_train", "encoded_db=ivf_base", "trainset=train.npy", "ivf_centroids=coarse.npy"]
    run_json(capsys, "build_index", *codes, f"output={tmp_path}/ix")
    assert main(command(f"index={tmp_path}/ix")) == 2
    assert "holds no codec" in capsys.readouterr().err
    told = search(capsys, f"index={tmp_path}/ix", "model=ivf.safetensors")
    assert told[LISTS, 4, 10, 0]["recall"] == search(capsys, "index=ix")[LISTS, 4, 10, 0]["recall"]
    assert main(command(f"index={tmp_path}/ix", "model=plain.safetensors")) == 3
    assert "another codec" in capsys.readouterr().err
    index = qinco.Index.load("ix")
    assert index.codec.fingerprint() == qinco.Index.load(tmp_path / "ix").codec_fingerprint


@pytest.mark.parametrize("form", ["npz", "npy", "raw"])
def test_codes_of_every_form_give_the_same_index(form, tmp_path, capsys):
    model = "model=ivf.safetensors"
    for name in ("train", "base"):
        run_json(capsys, "encode", model, f"db={name}.npy", f"output={tmp_path}/{name}.{form}")
    codes = [f"encoded_trainset={tmp_path}/train.{form}", f"encoded_db={tmp_path}/base.{form}", "trainset=train.npy"]
    told = ["ivf_centroids=coarse.npy"] + ([] if form == "npz" else ["M=3", "K=16"])
    run_json(capsys, "build_index", *codes, *told, f"output={tmp_path}/told")
    run_json(capsys, "build_index", *codes, model, f"output={tmp_path}/known")
    expected = read_folder("ix", "index").arrays
    for built in ("told", "known"):
        found = read_folder(tmp_path / built, "index").arrays
        for name in ("starts", "codes", "ids"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_codes_without_lists_are_in_one_or_in_those_of_given_centroids(tmp_path, capsys):
    codes = ["encoded_trainset=plain_train", "encoded_db=plain_base", "trainset=train.npy"]
    done = run_json(capsys, "build_index", *codes, f"output={tmp_path}/one")
    assert (done["num_vectors"], done["num_lists"]) == (BASE, 1)
    model = "model=plain.safetensors"
    done = run_json(capsys, "build_index", *codes, model, "ivf_centroids=coarse.npy", f"output={tmp_path}/many")
    assert done["num_lists"] == LISTS
    one = search(capsys, f"index={tmp_path}/one", model, "nshort=400", "nprobe=1")[1, 4, 400, 0]["recall"]
    many = search(capsys, f"index={tmp_path}/many", "nshort=400", "nprobe=20")[LISTS, 4, 400, 0]["recall"]
    assert one == many
    index = qinco.Index.load(tmp_path / "many")
    decoded = index.codec.decode(np.concatenate([block[0] for block in index.segments[0].blocks()]))
    lists = np.concatenate([block[2] for block in index.segments[0].blocks()])
    nearest = ((decoded[:, None] - np.load("coarse.npy")) ** 2).sum(2).argmin(1)
    assert (lists == nearest).mean() > 0.99
    run_json(capsys, "build_index", *codes, f"output={tmp_path}/one.faissindex")
    search(capsys, f"index={tmp_path}/one.faissindex", model)


def test_many_lists_are_found_through_a_graph(tmp_path, capsys):
    generator = np.random.default_rng(1)
    centroids = generator.standard_normal((MIN_GRAPH_LISTS, 4)).astype(np.float32)
    lists = generator.integers(MIN_GRAPH_LISTS, size=(900, 1))
    write_vectors(tmp_path / "c.npy", centroids)
    write_vectors(tmp_path / "codes.npy", generator.integers(16, size=(900, 2)).astype(np.uint8))
    np.save(tmp_path / "codes.lists.npy", lists.astype(np.int32))
    write_vectors(tmp_path / "x.npy", centroids[lists[:, 0]])
    write_vectors(tmp_path / "gt.ivecs", np.arange(900, dtype=np.int32)[:, None])
    codes = [f"encoded_trainset={tmp_path}/codes.npy", f"encoded_db={tmp_path}/codes.npy", f"trainset={tmp_path}/x.npy"]
    run_json(capsys, "build_index", *codes, f"ivf_centroids={tmp_path}/c.npy", "M=2", "K=16", f"output={tmp_path}/ix")
    found = run_json(
        capsys, "search", f"index={tmp_path}/ix", f"queries={tmp_path}/x.npy", f"queries_gt={tmp_path}/gt.ivecs",
        "decoder=lookup", "nprobe=2", "quantizer_efSearch=[1,200]",
    )["settings"]  # fmt: skip
    assert {setting["parameters"]["quantizer_efSearch"] for setting in found} == {1, 200}
    assert max(setting["recall"]["10"] for setting in found) > 0.9


@pytest.mark.parametrize("name", ["ix", "ix.faissindex"])
def test_other_metrics(name, tmp_path, capsys):
    truth = (np.load("query.npy") @ np.load("base.npy").T).argmax(1)
    write_vectors(tmp_path / "gt.ivecs", truth[:, None].astype(np.int32))
    codes = ["encoded_trainset=plain_train", "encoded_db=plain_base", "trainset=train.npy", "model=plain.safetensors"]
    run("build_index", *codes, "metric=inner_product", f"output={tmp_path}/{name}")
    assert qinco.Index.load(tmp_path / name).metric == "inner_product"
    there = "nprobe=4", "nshort=100", f"queries_gt={tmp_path}/gt.ivecs"
    (found,) = search(capsys, f"index={tmp_path}/{name}", "model=plain.safetensors", *there).values()
    assert found["recall"]["10"] > 0.6
    for more in (["k=10"], []):  # finding neighbours, and measuring settings
        asked = [*command(f"index={tmp_path}/{name}", "model=plain.safetensors", *there), *more]
        assert run_json(capsys, *asked, "metric=IP")["metric"] == "inner_product"
        assert main([*asked, "metric=cosine"]) == 2
        assert "metric=cosine, and the index compares by inner_product" in capsys.readouterr().err


def test_vectors_of_length_1_are_searched_by_cosine(tmp_path, capsys):
    for name in ("base", "train"):
        x_ND = np.load(f"{name}.npy")
        np.save(tmp_path / f"{name}.npy", x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True))
    _, ids = qinco.exhaustive_search("query.npy", tmp_path / "base.npy", 10, metric="l2")
    write_vectors(tmp_path / "gt.ivecs", ids.astype(np.int32))
    asked = ["search", "model=plain.safetensors", f"db={tmp_path}/base.npy", "queries=query.npy"]
    recalls = {}
    for metric in ([], ["metric=cosine"], ["metric=l2"]):
        found = run_json(capsys, *asked, f"queries_gt={tmp_path}/gt.ivecs", *metric)
        recalls[found["metric"], len(metric)] = found["recall"]
    assert recalls["cosine", 0] == recalls["cosine", 1] and ("l2", 1) in recalls
    assert main([*asked, f"output={tmp_path}/ids.npy"]) == 0
    out, err = capsys.readouterr()
    assert "metric: cosine" in out and err.count("\n") == 1
    assert err.startswith(f"{tmp_path}/base.npy: vectors of length 1 are compared by metric=cosine")
    run("encode", "model=ivf.safetensors", f"db={tmp_path}/train.npy", f"output={tmp_path}/codes")
    build = [
        "build_index",
        "model=ivf.safetensors",
        f"encoded_trainset={tmp_path}/codes",
        f"encoded_db={tmp_path}/codes",
    ]
    build += [f"trainset={tmp_path}/train.npy", "ivf_centroids=coarse.npy"]
    assert run_json(capsys, *build, f"output={tmp_path}/ix")["metric"] == "cosine"
    assert run_json(capsys, *build, f"output={tmp_path}/ix", "metric=l2", "overwrite=true")["metric"] == "l2"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pairwise_decoder_decodes_no_worse_than_the_tables(suffix, tmp_path, capsys):
    output = f"{tmp_path}/pairs{suffix}"
    common = ["encoded_trainset=ivf_train", "trainset=train.npy", "model=ivf.safetensors", f"output={output}"]
    done = run_json(capsys, "train_pairwise_decoder", *common, "n_pairwise_codebooks=1")
    assert 0 <= done["num_pairs"] <= 3
    assert done["mse_pairwise"] <= done["mse_lookup"]
    # Centroids are fitted with our tables; the authors' form and faiss files have the codec's.
    tables = "ix" if suffix == ".safetensors" else "ix.faissindex"
    on_base = {
        name: run_json(capsys, "eval", "model=ivf.safetensors", "db=base.npy", f"decoder={name}", *more)["mse"]
        for name, more in (("lookup", [f"index={tables}"]), ("pairwise", [f"pairwise_decoder={output}"]))
    }
    assert on_base["pairwise"] < 1.02 * on_base["lookup"]
    found = search(capsys, "index=ix", f"pairwise_decoder={output}", "nmid_short=[1,4]")
    assert {key[3] for key in found} <= {1, 4}
    common += ["n_pairwise_codebooks=1", "tables=float16", "overwrite=true"]
    half = run_json(capsys, "train_pairwise_decoder", *common)
    assert half["mse_pairwise"] == pytest.approx(done["mse_pairwise"], rel=1e-2)
    # Stored in the index, it is used without being named.
    if suffix == ".safetensors":
        run("build_index", *CODES, f"pairwise_decoder={output}", f"output={tmp_path}/ix")
        assert {key[3] for key in search(capsys, f"index={tmp_path}/ix", "nmid_short=[4]")} == {4}
        assert qinco.Index.load(tmp_path / "ix").pairwise.num_pairs == half["num_pairs"]


def test_a_pairwise_decoder_of_codes_without_lists(tmp_path, capsys):
    common = ["encoded_trainset=plain_train", "trainset=train.npy", f"output={tmp_path}/pairs.safetensors"]
    done = run_json(capsys, "train_pairwise_decoder", *common)
    assert done["mse_pairwise"] <= done["mse_lookup"]
    pairs = f"pairwise_decoder={tmp_path}/pairs.safetensors"
    model = "model=plain.safetensors"
    mse = run_json(capsys, "eval", model, "db=base.npy", "decoder=pairwise", pairs)["mse"]
    assert mse < run_json(capsys, "eval", model, "db=base.npy", "decoder=lookup", "trainset=train.npy")["mse"] * 1.02
    run("build_index", "encoded_db=plain_base", *common[:2], pairs, model, f"output={tmp_path}/ix")
    search(capsys, f"index={tmp_path}/ix", "nmid_short=[4]")
    assert main(["train_pairwise_decoder", *common[:2], f"output={tmp_path}/pairs.pt"]) == 2
    assert "needs lists" in capsys.readouterr().err


def test_each_stage_can_be_measured_alone(capsys):
    truth = ["model=ivf.safetensors", "db=base.npy", "queries=query.npy", "queries_gt=gt.ivecs"]
    recall = {}
    for name, more in (("neural", []), ("lookup", ["index=ix"]), ("pairwise", ["pairwise_decoder=pairs.safetensors"])):
        done = run_json(capsys, "search", *truth, f"decoder={name}", *more)
        assert done["decoder"] == name
        recall[name] = done["recall"]["10"]
    assert recall["neural"] >= recall["lookup"] - 0.05
    fitted = run_json(capsys, "search", *truth, "decoder=lookup", "trainset=train.npy")["recall"]["10"]
    assert fitted == pytest.approx(recall["lookup"], abs=0.1)
    stopped = search(capsys, "index=ix", "decoder=lookup", "nprobe=20")
    assert list(stopped) == [(LISTS, 4, 0, 0)]
    assert stopped[LISTS, 4, 0, 0]["recall"]["10"] == pytest.approx(recall["lookup"], abs=0.05)
    theirs = run_json(capsys, "search", *truth, "decoder=lookup", "index=ix.faissindex")["recall"]
    assert theirs["10"] == recall["lookup"]


def test_results_are_written_resumed_and_drawn(tmp_path, capsys):
    output = [f"output={tmp_path}/s.json", f"plot={tmp_path}/s.svg"]
    first = search(capsys, "index=ix", *output)
    written = json.loads((tmp_path / "s.json").read_text())
    assert [setting["parameters"] for setting in written["settings"]] == [s["parameters"] for s in first.values()]
    assert set(written["ivf_real_res"][0]) >= {"parameters", "recalls", "recalls_orig", "t_total", "cno", "key"}
    assert (tmp_path / "s.svg").read_text().startswith("<?xml")
    arguments = command("index=ix", *output)
    assert main(arguments) == 2
    assert "resume=true" in capsys.readouterr().err
    again = search(capsys, "index=ix", *output, "resume=true")
    assert {key: setting["seconds_by_stage"] for key, setting in again.items()} == {
        key: setting["seconds_by_stage"] for key, setting in first.items()
    }
    more = search(capsys, "index=ix", *output, "resume=true", "nshort=[4,10,50]")
    assert set(first) < set(more)
    assert main([*arguments, "resume=true", "decoder=lookup"]) == 2
    assert "other conditions" in capsys.readouterr().err
    assert run_json(capsys, "info", f"{tmp_path}/s.json")["num_settings"] == len(more)


def test_threads_and_the_table_of_the_front(capsys):
    arguments = command("index=ix", "nprobe=1", "nshort=4")
    for name in ("threads", "nthreads"):
        assert run_json(capsys, *arguments, f"{name}=1")["threads"] == 1
    assert main([*arguments, "threads=1", "nthreads=2"]) == 2
    assert "nthreads=2" in capsys.readouterr().err
    run(*arguments, "nthreads=100_000")
    out, err = capsys.readouterr()
    assert "nthreads=100000" in err and "measured 1 of 1" in err
    assert out.splitlines()[0].split()[:4] == ["recall@1", "recall@10", "recall@100", "us/query"]
    assert len(out.splitlines()) == 3


def test_info(capsys):
    found = run_json(capsys, "info", "ix")
    assert (found["kind"], found["num_vectors"], found["num_lists"]) == ("index", BASE, LISTS)
    assert found["holds_codec"]
    assert found["bytes_per_vector"] == qinco.Index.load("ix").bytes_per_vector == 3 + 1 + 4 + 8 * (LISTS + 1) / BASE
    assert (found["metric"], found["pairwise"], found["options"]["nprobe"]) == ("l2", None, 16)
    pairs = run_json(capsys, "info", "pairs.safetensors")
    assert (pairs["kind"], pairs["num_codes"], pairs["num_lists"]) == ("pairwise decoder", 3, LISTS)
    assert pairs["table_bytes"] <= Path("pairs.safetensors").stat().st_size
    theirs = run_json(capsys, "info", "ix.faissindex")
    assert (theirs["num_lists"], theirs["num_codes"], theirs["codebook_size"]) == (LISTS, 3, 16)


def test_a_damaged_index_is_refused_by_the_name_of_the_file(tmp_path, capsys):
    run("build_index", *CODES, f"output={tmp_path}/ix")
    (damaged,) = (tmp_path / "ix").glob("codes-*.npy")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    for arguments in (["info", f"{tmp_path}/ix"], command(f"index={tmp_path}/ix")):
        capsys.readouterr()
        assert main(arguments) == 3
        assert str(damaged) in capsys.readouterr().err
    (tmp_path / "ix.faissindex").write_bytes(Path("ix.faissindex").read_bytes()[:-1])
    assert main(["info", f"{tmp_path}/ix.faissindex"]) == 3
    assert "ix.faissindex" in capsys.readouterr().err


def test_an_index_replaces_another_only_if_it_is_told_to(tmp_path, capsys):
    for name in ("ix", "ix.faissindex"):
        output = f"output={tmp_path}/{name}"
        run("build_index", *CODES, output)
        assert main(["build_index", *CODES, output]) == 2
        assert "overwrite=true" in capsys.readouterr().err
        done = run_json(capsys, "build_index", *CODES, output, "overwrite=true", "ds.db=100")
        assert done["num_vectors"] == 100
    assert len(qinco.Index.load(tmp_path / "ix")) == 100


def test_codes_of_two_bytes_go_into_a_faiss_file(tmp_path, capsys):
    codes = np.random.default_rng(0).integers(512, size=(TRAIN, 2)).astype(np.uint16)
    np.save(tmp_path / "codes.npy", codes)
    both = [f"encoded_trainset={tmp_path}/codes.npy", f"encoded_db={tmp_path}/codes.npy", "trainset=train.npy"]
    run("build_index", *both, "M=2", "K=512", f"output={tmp_path}/ix.faissindex")
    assert run_json(capsys, "info", f"{tmp_path}/ix.faissindex")["codebook_size"] == 512
    assert search(capsys, f"index={tmp_path}/ix.faissindex", "decoder=lookup")


def test_the_kind_of_a_faiss_file(tmp_path, capsys):
    for key, kind in (("IVF${ivf_K},RQ${M}x4", "IwRQ"), ("IVF12,LSQ3x4_Nfloat", "IwLS")):
        run("build_index", *CODES, f"search.index_key={key}", f"output={tmp_path}/{kind}.faissindex")
        assert run_json(capsys, "info", f"{tmp_path}/{kind}.faissindex")["type"] == kind
        found = search(capsys, f"index={tmp_path}/{kind}.faissindex", "model=ivf.safetensors")
        assert found[LISTS, 4, 10, 0]["recall"]["10"] > 0.5


def test_a_kill_leaves_the_old_index(tmp_path, monkeypatch, capsys):
    run("build_index", *CODES, f"output={tmp_path}/ix")
    before = sorted(path.name for path in (tmp_path / "ix").iterdir())
    from qinco.search.lists import ListsBuilder

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ListsBuilder, "fill", interrupted)
    assert main(["build_index", *CODES, f"output={tmp_path}/ix", "overwrite=true"]) == 130
    assert main(["build_index", *CODES, f"output={tmp_path}/new"]) == 130
    assert sorted(path.name for path in (tmp_path / "ix").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ix"]


def test_codes_of_other_vectors_are_told_where_only_numbers_can_tell(tmp_path, capsys):
    np.save(tmp_path / "shuffled.npy", np.random.default_rng(5).permutation(np.load("train.npy")))
    for name in ("train", "base"):
        run("encode", "model=plain.safetensors", f"db={name}.npy", f"output={tmp_path}/{name}.npz")
    capsys.readouterr()
    codes = [f"encoded_trainset={tmp_path}/train.npz", f"encoded_db={tmp_path}/base.npz"]
    run("build_index", *codes, f"trainset={tmp_path}/shuffled.npy", f"output={tmp_path}/ix", "verbose=false")
    assert "explain nothing" in capsys.readouterr().err


def build(*more: str, **given: str) -> str:
    """A command that builds an index, with what is given in the place of what is right."""
    right = {"encoded_trainset": "ivf_train", "encoded_db": "ivf_base", "trainset": "train.npy", "output": "new"}
    return " ".join(["build_index", *(f"{key}={value}" for key, value in (right | given).items()), *more])


def find(*arguments: str) -> str:
    return " ".join(command(*arguments))


IVF = "model=ivf.safetensors"
PLAIN = {"encoded_trainset": "plain_train", "encoded_db": "plain_base"}
PAIRS = "train_pairwise_decoder encoded_trainset=ivf_train trainset=train.npy ivf_centroids=coarse.npy"
OTHER, LARGER = "model=other.safetensors", "model=larger.safetensors"
WRONG = {
    "no centroids": (build(), 2, "ivf_centroids="),
    "other centroids": (build(ivf_centroids="query.npy"), 3, "not 30"),
    "not a model's centroids": (build(IVF, ivf_centroids="shifted.npy"), 3, "leave it out"),
    "number of lists": (build(ivf_centroids="coarse.npy", ivf_K="9"), 2, "not 9"),
    "no lists to partition": (build("ivf_centroids=coarse.npy", **PLAIN), 2, "model="),
    "another model": (build("model=plain.safetensors"), 3, "another codec"),
    "codes of two codecs": (build(encoded_db="plain_base"), 3, "different codecs"),
    "codes of other vectors": (build(encoded_trainset="ivf_base"), 3, "must be the vectors that were encoded to"),
    "more codes than vectors": (build(trainset="base.npy"), 3, "(400, 8)"),
    "vectors as codes": (build("M=3", "K=16", encoded_db="base.npy"), 3, "must hold integers, 3 a vector"),
    "codes as vectors": (build(trainset="shard.npy"), 3, "(1500, 3)"),
    "codes that say nothing": (build(encoded_db="gt.ivecs"), 2, "M= and K="),
    "codes out of range": (build("K=16", "M=3", IVF, encoded_db="large.npz"), 3, "large.part_0.npz"),
    "lists out of range": (build(IVF, encoded_db="far.npz"), 3, "in the range"),
    "no codes": (build("M=3", "K=16", encoded_db="empty.npy", encoded_trainset="empty.npy"), 3, "must not be empty"),
    "wide codes": (build("M=10", "K=512", encoded_db="gt.ivecs", encoded_trainset="gt.ivecs"), 2, "K=512"),
    "M": (build("M=4", "ivf_centroids=coarse.npy"), 2, "M=4"),
    "missing codes": (build(encoded_db="nowhere.npz"), 3, "nowhere.npz"),
    "missing vectors": (build(IVF, trainset="nowhere.npy"), 3, "nowhere.npy"),
    "NaN": (build(IVF, "ds.trainset=1500", trainset="nan.npy"), 3, "row 7"),
    "suffix": (build(IVF, output="new.npy"), 2, ".faissindex"),
    "index exists": (build(IVF, output="ix"), 2, "overwrite=true"),
    "index over codes": (build(IVF, "overwrite=true", output="ivf_base"), 2, "ivf_base"),
    "index over inputs": (build(IVF, "overwrite=true", output="."), 2, "other files"),
    "index in a file": (build(IVF, output="base.npy/x"), 2, "base.npy"),
    "index below /proc": (build(IVF, output="/proc/x"), 2, "/proc"),
    "kind of a folder": (build(IVF, "index_key=IVF12,RQ3x4"), 2, "is a folder"),
    "kind": (build(IVF, "index_key=PQ8", output="n.faissindex"), 2, "PQ8"),
    "kind of others": (build(IVF, "index_key=IVF12,RQ8x8", output="n.faissindex"), 2, "IVF12_HNSW32,RQ3x4"),
    "cosine of lengths": (build(IVF, "metric=cosine"), 2, "one length"),
    "cosine in faiss": (build(IVF, "metric=cosine", output="n.faissindex"), 2, "cosine"),
    "pairs in faiss": (build(IVF, "pairwise_decoder=pairs.safetensors", output="n.faissindex"), 2, "pairwise_decoder="),
    "metric": (build("metric=l1"), 2, "l2, inner_product, cosine"),
    "pairs of others": (build("pairwise_decoder=pairs.safetensors", **PLAIN), 3, "number of lists"),
    "suffix of pairs": (f"{PAIRS} output=n.npy", 2, ".pt"),
    "no pairs": (f"{PAIRS} output=n.pt n_pairwise_codebooks=0", 2, "above 0"),
    "pairs exist": (f"{PAIRS} output=pairs.safetensors", 2, "overwrite=true"),
    "tables": (f"{PAIRS} output=n.pt tables=int8", 2, "float16"),
    "no index": (find("index=nowhere"), 3, "nowhere"),
    "codes as an index": (find("index=ivf_base"), 3, "ivf_base is a folder of codes"),
    "vectors as an index": (find("index=base.npy"), 3, "base.npy"),
    "faiss without a model": (find("index=ix.faissindex"), 2, "model="),
    "faiss of another codec": (find("index=ix.faissindex", OTHER), 3, "centroids are not the model's"),
    "faiss of other codes": (find("index=ix.faissindex", LARGER), 3, "num_codes is 3, not 2"),
    "index of another codec": (find("index=ix", OTHER), 3, "another codec"),
    "values without truth": ("search index=ix queries=query.npy nprobe=[1,4]", 2, "nprobe"),
    "plot of neighbours": ("search index=ix queries=query.npy plot=p.svg", 2, "plot"),
    "neighbours in text": ("search index=ix queries=query.npy output=ids.txt", 2, ".parquet"),
    "refined by others": (
        "search index=ix queries=query.npy refine=coarse.npy",
        3,
        "id 399 of the index is no row of coarse.npy",
    ),
    "refined by nothing": ("search index=ix queries=query.npy num_refine=50", 2, "refine="),
    "refined too little": ("search index=ix queries=query.npy refine=base.npy num_refine=9", 2, "num_refine"),
    "a refined sweep": (find("index=ix", "refine=base.npy"), 2, "k="),
    "refined vectors": ("search model=plain.safetensors db=base.npy queries=query.npy refine=base.npy", 2, "index="),
    "refined to its file": ("search index=ix queries=query.npy refine=base.npy output=base.npy", 2, "base.npy"),
    "pairs exhaustively": (
        "search model=plain.safetensors db=base.npy queries=query.npy decoder=pairwise",
        2,
        "decoder",
    ),
    "truth of others": (find("index=ix", "queries_gt=others.ivecs"), 3, "names vector 400"),
    "vectors as truth": (find("index=ix", "queries_gt=base.npy"), 3, "integers"),
    "too few queries": (find("index=ix", "queries=coarse.npy"), 3, "not 30"),
    "plot": (find("index=ix", "plot=front.pdf"), 2, ".svg"),
    "results": (find("index=ix", "output=results.txt"), 2, ".json"),
    "damaged results": (find("index=ix", "output=damaged.json", "resume=true"), 3, "damaged.json"),
    "a codec as pairs": (find("index=ix", "pairwise_decoder=ivf.safetensors"), 3, "not a pairwise"),
    "missing pairs": (find("index=ix", "decoder=pairwise"), 2, "pairwise_decoder="),
    "A": (find("index=ix", "A=4"), 2, "A= is for vectors that are encoded"),
    "two databases": (find("index=ix", "db=base.npy", IVF), 2, "keep one of them"),
    "keys of an index": (find("db=base.npy", IVF), 2, "search.n"),
    "tables from nowhere": (f"eval {IVF} db=base.npy decoder=lookup", 2, "trainset="),
    "pairs from nowhere": (f"eval {IVF} db=base.npy decoder=pairwise", 2, "pairwise_decoder="),
    "index without use": (f"eval {IVF} db=base.npy index=ix", 2, "decoder=lookup"),
    "prefix of tables": (f"eval {IVF} db=base.npy decoder=lookup index=ix prefix=2", 2, "prefix="),
    "tables of others": ("eval model=plain.safetensors db=base.npy decoder=lookup index=ix", 3, "another codec"),
}


@pytest.fixture(scope="module")
def wrong_files(folder) -> None:
    write_vectors(folder / "others.ivecs", np.full((QUERIES, 1), BASE, np.int32))
    write_vectors(folder / "wide.npy", np.zeros((QUERIES, DIM + 1), np.float32))
    write_vectors(folder / "shifted.npy", np.load(folder / "coarse.npy") + 1)
    np.save(folder / "empty.npy", np.empty((0, 3), np.uint8))
    (folder / "shard.npy").symlink_to(next((folder / "ivf_train").glob("codes_*.npy")))
    for name, column, value in (("large", 2, 16), ("far", 0, LISTS)):
        codes = np.zeros((50, 4), np.int64)
        codes[9, column] = value
        np.savez(folder / f"{name}.npz", n_parts=1, K=16, M=3, D=DIM)
        np.savez(folder / f"{name}.part_0.npz", codes=codes)
    x = np.load(folder / "train.npy")
    x[7, 3] = np.nan
    np.save(folder / "nan.npy", x)
    (folder / "damaged.json").write_text('{"settings": [')
    for name, centroids, steps in (("larger", "coarse", 2), ("other", "shifted", 3)):
        settings = SMALL | {"num_steps": steps, "output": folder / f"{name}.safetensors"}
        qinco.Codec.fit(folder / "train.npy", coarse_centroids=folder / f"{centroids}.npy", **settings)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_clear_line(name, folder, wrong_files, capsys):
    words, code, expected = WRONG[name]
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert main([*words.split(), "verbose=false"]) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("qinco: error: ")
    assert expected in err
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before


def test_pairs_that_need_more_memory_than_is_free_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qinco.decoders.pairwise.free_memory", lambda: 1 << 16)
    assert main([*PAIRS.split(), f"output={tmp_path}/pairs.pt"]) == 4
    assert "n_pairwise_codebooks=" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_codes_of_one_column_have_no_pairs(tmp_path, capsys):
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).integers(16, size=(TRAIN, 1)).astype(np.uint8))
    common = [f"encoded_trainset={tmp_path}/codes.npy", "trainset=train.npy", "M=1", "K=16"]
    done = run_json(capsys, "train_pairwise_decoder", *common, f"output={tmp_path}/pairs.safetensors")
    assert done["num_pairs"] == 0
    assert done["mse_pairwise"] == done["mse_lookup"]
