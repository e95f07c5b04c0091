"""`qinco.integrations.hub`, and the cards that show what it measures."""

import json

import numpy as np
import pytest
from small_indexes import DIM, built, trained, vectors

import qinco
from qinco.errors import DataError
from qinco.integrations.hub import measure_codec


@pytest.mark.parametrize("kind", ["plain", "ivf", "product"])
def test_figures_of_prefixes_are_those_of_their_definitions(kind):
    codec, x, queries = trained(kind), vectors(400, 11), vectors(50, 12)
    measured = measure_codec(codec, x, queries, metric="l2", dataset="test set")
    assert [row["mse"] for row in measured["prefixes"]] == pytest.approx(qinco.evaluate(codec, x).mse_per_step)
    nearest_Q = np.square(queries[:, None] - x).sum(2).argmin(1)
    codes = codec.encode(x)
    for row in measured["prefixes"]:
        decoded = codec.decode(codec.prefix(codes, row["steps"]))
        order_QN = np.square(queries[:, None].astype(float) - decoded).sum(2).argsort(1, kind="stable")
        for rank in (1, 10):
            share = (order_QN[:, :rank] == nearest_Q[:, None]).any(1).mean()
            assert row[f"recall_at_{rank}"] == pytest.approx(share, abs=0.03)  # of equal distances any is first
    assert measured["prefixes"][-1]["bytes"] == codec.bytes_per_vector
    assert measured["encode_us"] > 0 < measured["decode_us"]
    assert (measured["num_vectors"], measured["num_queries"], measured["dataset"]) == (400, 50, "test set")


def test_queries_are_taken_of_the_vectors():
    measured = measure_codec(trained("plain"), vectors(400, 11), max_vectors=200)
    assert (measured["num_vectors"], measured["num_queries"], measured["metric"]) == (180, 20, "l2")
    x = vectors(100, 11) / np.linalg.norm(vectors(100, 11), axis=1, keepdims=True)
    assert measure_codec(trained("plain"), x)["metric"] == "cosine"
    with pytest.raises(DataError, match="queries="):
        measure_codec(trained("plain"), np.ones((1, DIM)))


def test_a_card_shows_what_was_measured(tmp_path):
    codec = trained("plain")
    measured = measure_codec(codec, vectors(400, 11), dataset="test set")
    folder = codec.save_pretrained(tmp_path / "codec", measured=measured, metadata={"license": "mit"})
    assert json.loads((folder / "config.json").read_text())["measured"] == measured
    text = (folder / "README.md").read_text()
    assert f"{measured['prefixes'][0]['mse']:.4g}" in text and "license: mit" in text and "test set" in text

    index = built()
    found = index.evaluate(vectors(600, 13))
    folder = index.save_pretrained(tmp_path / "index", measured=found)
    assert f"{found['recall'][10]:.4g}" in (folder / "README.md").read_text()
    saved = json.loads((folder / "config.json").read_text())
    assert saved["measured"]["recall"] == {str(rank): share for rank, share in found["recall"].items()}


def test_the_recall_of_a_new_collection_is_on_its_card(tmp_path):
    settings = {"codec": trained("plain"), "metric": "l2", "progress": False}
    with qinco.Collection.create(tmp_path / "docs.qinco", vectors(300, 4), **settings) as docs:
        folder = docs.save_pretrained(tmp_path / "shared")
        found = docs.stats()["recall"]
    assert json.loads((folder / "config.json").read_text())["measured"] == found
    assert f"{found['recall']:.4g}" in (folder / "README.md").read_text()
