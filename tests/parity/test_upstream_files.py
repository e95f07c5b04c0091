"""Files that the authors' code wrote: decoding gives its vectors, encoding its codes and its error, on every device.

Small ones lie in tests/data/upstream. Those in the parity folder (see parity_files) are tested too: `X.pt`, `base.npy`
and, for its first rows, `X.expect.npz` with codes, decoded vectors and, except for the small ones, the prefixes' error;
`X_A2_B5.expect.npz` was searched with A=2 and B=5.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from parity_files import EXISTS, MISSING, PARITY

from qinco.codec import Codec
from qinco.codec.evaluate import evaluate
from qinco.vectors.rows import as_source

SMALL = Path(__file__).parents[1] / "data" / "upstream"
FOLDERS = [SMALL, PARITY] if EXISTS else [SMALL]
EXPECTED = [path for folder in FOLDERS for path in sorted(folder.glob("v[12]_*.expect.npz"))]


class Case:
    def __init__(self, path: Path, device: torch.device):
        name = path.name.removesuffix(".expect.npz")
        searched = re.fullmatch(r"(.*)_A(\d+)_B(\d+)", name)
        self.options = {"precision": "float32"}
        if searched:
            name = searched[1]
            self.options |= {"num_candidates": int(searched[2]), "beam_width": int(searched[3])}
        self.codec = Codec.load(path.with_name(f"{name}.pt"))
        for model in self.codec.models:
            model.to(device)
        with np.load(path) as arrays:
            self.codes, self.decoded = arrays["codes"], arrays["decoded"]
            self.prefix_mse = arrays.get("prefix_mse")
        self.base = np.load(path.with_name("base.npy"))[: len(self.codes)].astype(np.float32)
        self.lists = None
        if self.codec.is_ivf:
            self.lists, self.codes = self.codes[:, 0], self.codes[:, 1:]

        options, config = self.codec.encode_options, self.codec.config
        assert options.num_pairs is None and (options.num_candidates is not None) == config.has_preselector

    def mse(self, decoded: np.ndarray) -> float:
        return np.square(decoded - self.base, dtype=np.float64).sum(1).mean()


@pytest.fixture(scope="module", params=EXPECTED, ids=lambda path: f"{path.parent.name}/{path.name.split('.')[0]}")
def case(request, device):
    return Case(request.param, device)


def test_a_folder_of_all_files_is_given():
    if not EXISTS:
        pytest.skip(f"{MISSING}; the small copies alone are tested")
    assert any(path.parent != SMALL for path in EXPECTED)


def test_the_copies_cover_the_kinds():
    assert {path.name.split(".")[0] for path in EXPECTED if path.parent == SMALL} == {
        "v1_pq_opq", "v1_qinco", "v1_qinco_lr", "v2_proj", "v2_proj_A2_B5"
    }  # fmt: skip
    assert len(Codec.load(SMALL / "v1_pq_opq.pt").models) > 1
    assert Codec.load(SMALL / "v1_qinco_lr.pt").config.concat_rank == 24
    assert Codec.load(SMALL / "v2_proj.pt").config.projects


def test_given_codes_decode_to_the_same_vectors(case):
    decoded = case.codec.decode(case.codes, case.lists)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, case.decoded, rtol=0, atol=1e-4 * np.abs(case.decoded).max())
    assert len(np.unique(decoded, axis=0)) > len(decoded) // 2


def test_encoding_finds_the_same_codes_and_error(case):
    found = case.codec.encode(case.base, **case.options)
    same = (found == case.codes).all(1)
    if found.has_lists:
        same &= found.lists == case.lists
    assert same.mean() >= 0.99
    assert case.mse(case.codec.decode(found)) == pytest.approx(case.mse(case.decoded), rel=1e-3)


def test_evaluation_finds_the_same_error(case):
    found = evaluate(case.codec, as_source(case.base), case.codec.encode_options.override(**case.options))
    assert found.mse == pytest.approx(case.mse(case.decoded), rel=1e-3)


def test_prefixes_have_the_same_error(case):
    if case.prefix_mse is None:
        pytest.skip("the error of the prefixes is not given")
    errors = [
        case.mse(case.codec.decode(case.codec.prefix(case.codes, m + 1), case.lists))
        for m in range(case.codec.config.num_steps)
    ]
    if case.codec.is_ivf:
        errors.insert(0, case.mse(case.codec.coarse_centroids[case.lists]))
    np.testing.assert_allclose(errors, case.prefix_mse, rtol=1e-3)
