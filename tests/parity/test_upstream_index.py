"""An index that the authors' code wrote: the same shortlists, and a final order above them, which theirs is not.

The parity folder holds `ix.faissindex`, `query.npy`, `gt.npy`, `v2_ivf.pt`, the codes of the database
and, in `search.json`, the recalls of the authors' search.
"""

import json

import numpy as np
import pytest
from parity_files import EXISTS, MISSING, PARITY

from qinco.codec import Codec
from qinco.compat.faiss_files import FaissIndex
from qinco.search.scan import Shortlist

if not EXISTS:
    pytest.skip(MISSING, allow_module_level=True)

FOLDER = PARITY
EXPERIMENTS = json.loads((FOLDER / "search.json").read_text())["ivf_real_res"]
QUERIES, TRUTH = np.load(FOLDER / "query.npy").astype(np.float32), np.load(FOLDER / "gt.npy")


def recalls(ids):
    return {str(rank): float((ids[:, :rank] == TRUTH[:, :1]).sum() / len(TRUTH)) for rank in (1, 10, 100)}


@pytest.fixture(scope="module")
def index():
    return FaissIndex(FOLDER / "ix.faissindex")


@pytest.fixture(params=EXPERIMENTS, ids=lambda experiment: f"nshort{experiment['parameters']['nshort']}")
def experiment(request):
    return request.param


@pytest.fixture
def shortlist(index, experiment):
    given = experiment["parameters"]
    *columns, scanned_Q = index.shortlist(QUERIES, given["nshort"], given["nprobe"], given["quantizer_efSearch"])
    return Shortlist(*columns, np.zeros(columns[0].shape, np.uint8), scanned_Q)


def reranked(shortlist, queries_QD, decoded_QSD):
    distances_QS = np.square(queries_QD[:, None] - decoded_QSD).sum(2)
    return np.take_along_axis(shortlist.ids, np.argsort(distances_QS, axis=1, kind="stable"), 1)


def decode(codec, shortlist):
    """float32 (Q, S, D); empty places decode like any others, as they do in the authors' search."""
    codes, lists = shortlist.codes.reshape(-1, codec.num_codes), np.maximum(shortlist.lists.ravel(), 0)
    return codec.decode(codes, lists).reshape(*shortlist.ids.shape, codec.dim)


def test_the_contents_are_those_that_it_was_made_of(index):
    np.testing.assert_array_equal(index.centroids, np.load(FOLDER / "ivf1024.npy"))
    encoded = np.load(FOLDER / "enc_db.part_0.npz")["codes"]
    codes, lists, ids = (np.concatenate(parts) for parts in zip(*index.blocks(1000), strict=True))
    assert len(index) == len(encoded) == len(np.unique(ids))
    np.testing.assert_array_equal(encoded[ids], np.column_stack([lists, codes]))


def test_shortlists_are_the_authors(experiment, shortlist):
    assert recalls(shortlist.ids) == experiment["recalls_orig"]


def test_neural_reranking_gains(experiment, shortlist):
    codec = Codec.load(FOLDER / "v2_ivf.pt")
    decoded_QSD = decode(codec, shortlist)
    decoded_QSD[shortlist.lists < 0] = np.inf
    final = recalls(reranked(shortlist, QUERIES, decoded_QSD))
    assert final["1"] > experiment["recalls_orig"]["1"] > experiment["recalls"]["1"]
    assert final["10"] == experiment["recalls"]["10"]


def test_the_authors_compare_queries_with_normalised_reconstructions(experiment, shortlist):
    codec = Codec.load(FOLDER / "v2_ivf.pt")
    normalised_QSD = (decode(codec, shortlist) - codec.models[0].mean.numpy()) / codec.models[0].scale.numpy()
    assert recalls(reranked(shortlist, QUERIES, normalised_QSD)) == experiment["recalls"]
