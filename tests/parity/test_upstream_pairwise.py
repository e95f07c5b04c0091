"""A pairwise decoder that the authors' code wrote decodes to its vectors, and ours is better on the same codes.

The parity folder holds `pairwise.pt`, encoded sets with their centroids, and `pairwise.expect.npz`:
what its tables add to the centroids for the first rows of `enc_db`.
"""

import numpy as np
import pytest
import torch
from parity_files import EXISTS, MISSING, PARITY

from qinco.decoders.lookup import LookupDecoder
from qinco.decoders.pairwise import PairwiseDecoder
from qinco.store.codes import Codes
from qinco.store.decoder import load_pairwise, save_pairwise

CODE_SIZE, CODEBOOK_SIZE = 4, 256


@pytest.fixture(scope="module")
def folder():
    if not EXISTS:
        pytest.skip(MISSING)
    return PARITY


def codes_and_lists(path):
    return tuple(Codes.load(path, num_codes=CODE_SIZE, codebook_size=CODEBOOK_SIZE))


@pytest.fixture(scope="module")
def database(folder):
    """Codes, lists and vectors."""
    return *codes_and_lists(folder / "enc_db.npz"), np.load(folder / "base.npy").astype(np.float32)


def mse(decoder, codes, lists, x_ND):
    return float(np.square(decoder.decode(codes, lists) - x_ND, dtype=np.float64).sum(1).mean())


def test_it_decodes_to_the_same_vectors(folder, database):
    codes, lists, _ = database
    expected = np.load(folder / "pairwise.expect.npz")["residual"]
    residual = load_pairwise(folder / "pairwise.pt", CODE_SIZE).decode(codes, lists)[: len(expected)]
    np.testing.assert_allclose(residual, expected, atol=1e-4 * np.abs(expected).max())


def test_written_again_it_is_the_same(folder, database, tmp_path):
    codes, lists, _ = database
    decoder = load_pairwise(folder / "pairwise.pt", CODE_SIZE, np.load(folder / "ivf1024.npy"))
    save_pairwise(tmp_path / "p.pt", decoder)
    again = load_pairwise(tmp_path / "p.pt", CODE_SIZE, decoder.centroids_VD)
    np.testing.assert_array_equal(again.decode(codes, lists), decoder.decode(codes, lists))
    theirs = torch.load(folder / "pairwise.pt", weights_only=True, map_location="cpu")
    ours = torch.load(tmp_path / "p.pt", weights_only=True)
    assert set(theirs) == set(ours) and torch.equal(theirs["ivf_code_map"], ours["ivf_code_map"])
    assert torch.equal(theirs["codebook_MKD"], ours["codebook_MKD"][: len(theirs["codebook_MKD"])])


@pytest.mark.slow
def test_ours_of_as_many_pairs_is_better_on_unseen_vectors(folder, database):
    centroids_VD = np.load(folder / "ivf1024.npy").astype(np.float32)
    codes, lists = codes_and_lists(folder / "enc_train.npz")
    x_ND = np.load(folder / "train.npy").astype(np.float32)[: len(codes)]
    lookup = LookupDecoder.fit([(codes, lists, x_ND)], CODE_SIZE, CODEBOOK_SIZE, centroids_VD)
    theirs = load_pairwise(folder / "pairwise.pt", CODE_SIZE, centroids_VD)
    ours = PairwiseDecoder.fit(codes, lists, x_ND, lookup, num_pairs=theirs.num_pairs)
    assert mse(ours, *database) <= mse(lookup, *database)
    assert mse(ours, *database) < mse(theirs, *database)
