"""The command line on the files of the authors' search: their index, codes, centroids and pairwise decoder.

The parity folder holds them, and what their search reported of them (`search.json`).
"""

import json

import pytest
from parity_files import EXISTS, MISSING, PARITY

from qinco.cli import main

if not EXISTS:
    pytest.skip(MISSING, allow_module_level=True)

FOLDER = PARITY
EXPERIMENTS = json.loads((FOLDER / "search.json").read_text())["ivf_real_res"]
CODES = [f"encoded_trainset={FOLDER}/enc_train.npz", f"encoded_db={FOLDER}/enc_db.npz", f"trainset={FOLDER}/train.npy"]
CENTROIDS = f"ivf_centroids={FOLDER}/ivf1024.npy"
MODEL = f"model={FOLDER}/v2_ivf.pt"


@pytest.fixture
def search(capsys, monkeypatch):
    """What a search finds, by the number of vectors that are decoded."""
    monkeypatch.setattr("qinco.search.measure.timing.MIN_SECONDS", 0)

    def run(*arguments: str) -> dict[int, dict]:
        capsys.readouterr()
        queries = [f"queries={FOLDER}/query.npy", f"queries_gt={FOLDER}/gt.npy", "precision=float32"]
        code = main(["search", MODEL, *queries, *arguments, "json=true"])
        out, err = capsys.readouterr()
        assert code == 0, err
        return {setting["parameters"]["nshort"]: setting for setting in json.loads(out.splitlines()[-1])["settings"]}

    return run


def test_shortlists_are_the_same_and_the_final_order_is_better(search):
    found = search(f"index={FOLDER}/ix.faissindex")
    assert len(found) == len(EXPERIMENTS)
    for theirs in EXPERIMENTS:
        ours = found[theirs["parameters"]["nshort"]]
        assert ours["parameters"] == theirs["parameters"]
        assert ours["shortlist_recall"] == theirs["recalls_orig"]
        # Their order after decoding is worse than that of the shortlist.
        assert theirs["recalls"]["1"] < ours["shortlist_recall"]["1"] < ours["recall"]["1"]


@pytest.mark.parametrize("name", ["index", "index.faissindex"])
def test_an_index_built_from_their_codes_finds_as_much(name, tmp_path, search):
    assert main(["build_index", *CODES, CENTROIDS, f"output={tmp_path}/{name}"]) == 0
    theirs, ours = search(f"index={FOLDER}/ix.faissindex"), search(f"index={tmp_path}/{name}")
    for nshort in (4, 10):
        assert ours[nshort]["recall"]["1"] >= theirs[nshort]["recall"]["1"] - 0.03


def test_their_pairwise_decoder_takes_its_place(search):
    """It has a single pair of codes, and chooses worse than the look-up tables of all."""
    pairs = [f"pairwise_decoder={FOLDER}/pairwise.pt", "nmid_short=[4]", "nshort=[4]", "nprobe=64"]
    found = search(f"index={FOLDER}/ix.faissindex", *pairs)[4]
    assert found["parameters"]["nmid_short"] == 4
    assert found["seconds_by_stage"]["pairwise"] > 0
    assert found["recall"]["10"] > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_pairwise_decoder_of_their_codes_is_no_worse_than_the_tables(suffix, tmp_path, capsys):
    arguments = ["train_pairwise_decoder", CODES[0], CODES[2], CENTROIDS, "n_pairwise_codebooks=0.25", "json=true"]
    assert main([*arguments, f"output={tmp_path}/pairs{suffix}"]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["num_pairs"] == 1
    assert done["mse_pairwise"] <= done["mse_lookup"]
