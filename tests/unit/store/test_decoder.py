import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qinco.decoders.pairwise import PairwiseDecoder
from qinco.errors import ConfigError, DataError
from qinco.store.decoder import load_pairwise, save_pairwise

STEPS, SIZE, DIM, LISTS, STREAMS = 4, 8, 3, 6, 5


def decoder(pairs=((0, 2), (5, 1), (2, 1)), dtype=np.float32, has_lists=True, has_centroids=True):
    """Step 3 is in none of the pairs."""
    generator = np.random.default_rng(0)
    return PairwiseDecoder(
        tables_MKD=generator.standard_normal((STEPS, SIZE, DIM)).astype(np.float32),
        pairs_P2=np.array(pairs, np.int64).reshape(-1, 2),
        tables_PJD=(generator.standard_normal((len(pairs), SIZE**2, DIM)) * 100).astype(dtype),
        scale=0.25,
        list_codes_VI=generator.integers(0, SIZE, (LISTS, STREAMS)).astype(np.uint8) if has_lists else None,
        centroids_VD=generator.standard_normal((LISTS, DIM)).astype(np.float32) if has_centroids else None,
    )


WITHOUT_LISTS = decoder(pairs=[(0, 2), (3, 1)], has_lists=False, has_centroids=False)
CODES = np.random.default_rng(1).integers(0, SIZE, (50, STEPS)).astype(np.uint8)
NUMBERS = np.random.default_rng(2).integers(0, LISTS, 50)


@pytest.mark.parametrize(
    "before",
    [decoder(), decoder(dtype=np.float16), decoder(has_centroids=False), decoder(pairs=()), WITHOUT_LISTS],
    ids=["float32", "float16", "without centroids", "without pairs", "without lists"],
)
def test_ours_comes_back_bit_by_bit(tmp_path, before):
    save_pairwise(tmp_path / "p.safetensors", before)
    after = load_pairwise(tmp_path / "p.safetensors", STEPS)
    for name in ("tables_MKD", "pairs_P2", "tables_PJD", "list_codes_VI", "centroids_VD"):
        old, new = getattr(before, name), getattr(after, name)
        assert (old is None) == (new is None)
        if old is not None:
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(after.decode(CODES, NUMBERS), before.decode(CODES, NUMBERS))


@pytest.mark.parametrize("pairs", [((0, 2), (5, 1), (2, 1)), ((3, 3), (0, 1)), ((4, 5),), (), ((3, 0), (1, 2))])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_authors_form_decodes_alike(tmp_path, pairs, dtype):
    before = decoder(pairs, dtype)
    save_pairwise(tmp_path / "p.pt", before)
    after = load_pairwise(tmp_path / "p.pt", STEPS, before.centroids_VD)
    wanted = before.decode(CODES, NUMBERS)
    rounding = 1e-4 if dtype == np.float32 else 2**-11 * 2 * np.abs(wanted).max()
    np.testing.assert_allclose(after.decode(CODES, NUMBERS), wanted, atol=rounding)
    residual = load_pairwise(tmp_path / "p.pt", STEPS)
    assert residual.centroids_VD is None
    wanted -= before.centroids_VD[NUMBERS]
    np.testing.assert_allclose(residual.decode(CODES, NUMBERS), wanted, atol=rounding)


def test_the_authors_form_has_their_names_and_types(tmp_path):
    save_pairwise(tmp_path / "p.pt", decoder())
    content = torch.load(tmp_path / "p.pt", weights_only=True)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in content.items()} == {
        "ivf_code_map": ((LISTS, STREAMS), torch.int64),
        "combine_mvals_m": ((2, 4), torch.int64),
        "codebook_MKD": ((4, SIZE**2, DIM), torch.float32),
    }


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs lists"):
        save_pairwise(tmp_path / "p.pt", WITHOUT_LISTS)
    with pytest.raises(ConfigError, match=r"p\.npz does not end in"):
        save_pairwise(tmp_path / "p.npz", decoder())
    assert not list(tmp_path.iterdir())


def test_codes_and_centroids_must_be_those_of_the_file(tmp_path):
    for suffix in ("safetensors", "pt"):
        path = tmp_path / f"p.{suffix}"
        save_pairwise(path, decoder())
        with pytest.raises(DataError, match=r"centroids of shape \(6, 3\), not float32 .*\(7, 3\)"):
            load_pairwise(path, STEPS, np.zeros((7, DIM), np.float32))
        with pytest.raises(DataError, match="not finite"):
            load_pairwise(path, STEPS, np.full((LISTS, DIM), np.inf, np.float32))
    with pytest.raises(DataError, match="M=4, not M=8"):
        load_pairwise(tmp_path / "p.safetensors", 8)
    with pytest.raises(ConfigError, match="does not tell how many codes"):
        load_pairwise(tmp_path / "p.pt")
    with pytest.raises(DataError, match="numbers below 6 were expected for M=1"):
        save_pairwise(tmp_path / "p.pt", decoder(pairs=[(0, 8)]))
        load_pairwise(tmp_path / "p.pt", 1)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_damaged_files_are_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"whole.{suffix}"
    save_pairwise(path, decoder())
    whole, cut = path.read_bytes(), tmp_path / f"cut.{suffix}"
    for length in [0, 1, 9, 50, len(whole) // 2, len(whole) - 300, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"cut\.{suffix}"):
            load_pairwise(cut, STEPS)
    for content in (b"\x93NUMPY" * 30, b"\0" * 500, b"{}"):
        cut.write_bytes(content)
        with pytest.raises(DataError, match=rf"cut\.{suffix}"):
            load_pairwise(cut, STEPS)
    with pytest.raises(DataError, match="nowhere"):
        load_pairwise(tmp_path / f"nowhere.{suffix}", STEPS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pairs", torch.tensor([[0, 1], [2, 3], [0, 9]])),
        ("pairs", torch.tensor([[0, 1], [2, 3], [-1, 0]])),
        ("pairs", torch.tensor([[0, 1], [2, 3], [0, 1]], dtype=torch.float64)),
        ("pairs", torch.tensor([0, 1, 2])),
        ("pair_tables", torch.zeros(2, SIZE**2, DIM)),
        ("pair_tables", torch.zeros(3, SIZE**2, DIM + 1)),
        ("pair_tables", torch.zeros(3, SIZE**2, DIM, dtype=torch.float64)),
        ("pair_tables", torch.zeros(3, SIZE**2, DIM, dtype=torch.bfloat16)),
        ("pair_tables", torch.full((3, SIZE**2, DIM), torch.nan)),
        ("tables", torch.full((STEPS, SIZE, DIM), torch.inf)),
        ("tables", torch.zeros(STEPS, SIZE + 1, DIM)),
        ("tables", torch.zeros(SIZE, DIM)),
        ("tables", torch.zeros(0, SIZE, DIM)),
        ("list_codes", torch.full((LISTS, STREAMS), SIZE, dtype=torch.uint8)),
        ("list_codes", torch.zeros(LISTS, STREAMS, dtype=torch.int64)),
        ("list_codes", torch.zeros(LISTS, dtype=torch.uint8)),
        ("list_codes", torch.zeros(LISTS + 1, STREAMS, dtype=torch.uint8)),
        ("centroids", torch.full((LISTS, DIM), torch.nan)),
        ("centroids", torch.zeros(LISTS, DIM, 1)),
        ("other", torch.zeros(1)),
        ("tables", None),
        ("list_codes", None),
        ("scale", 0.0),
        ("scale", float("nan")),
        ("scale", "1"),
    ],
)
def test_hostile_tensors_of_ours_are_refused(tmp_path, name, value):
    path = tmp_path / "p.safetensors"
    save_pairwise(path, decoder())
    with safe_open(path, "pt") as file:
        header, tensors = json.loads(file.metadata()["qinco"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    (header if name == "scale" else tensors)[name] = value
    kept = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(kept, path, metadata={"qinco": json.dumps(header)})
    with pytest.raises(DataError, match=r"p\.safetensors"):
        load_pairwise(path)


@pytest.mark.parametrize(
    "change",
    [
        {"ivf_code_map": torch.full((LISTS, STREAMS), SIZE)},
        {"ivf_code_map": torch.full((LISTS, STREAMS), 256)},
        {"ivf_code_map": torch.full((LISTS, STREAMS), -1)},
        {"ivf_code_map": torch.zeros(LISTS, STREAMS)},
        {"ivf_code_map": torch.zeros(LISTS, dtype=torch.int64)},
        {"ivf_code_map": [[0]]},
        {"combine_mvals_m": torch.tensor([[0], [9]])},
        {"combine_mvals_m": torch.tensor([[-1], [0]])},
        {"combine_mvals_m": torch.tensor([[0, 1, 2]])},
        {"combine_mvals_m": torch.tensor([0])},
        {"combine_mvals_m": torch.zeros(2, 1)},
        {"codebook_MKD": torch.zeros(1, SIZE**2 + 1, DIM)},
        {"codebook_MKD": torch.zeros(1, 257**2, 1)},
        {"codebook_MKD": torch.zeros(2, SIZE**2, DIM)},
        {"codebook_MKD": torch.zeros(SIZE**2, DIM)},
        {"codebook_MKD": torch.zeros(1, 0, DIM)},
        {"codebook_MKD": torch.full((1, SIZE**2, DIM), torch.inf)},
        {"codebook_MKD": torch.zeros(1, SIZE**2, DIM, dtype=torch.int64)},
        {"more": torch.zeros(1)},
    ],
    ids=str,
)
def test_hostile_tensors_of_the_authors_form_are_refused(tmp_path, change):
    path = tmp_path / "p.pt"
    content = {
        "ivf_code_map": torch.zeros(LISTS, STREAMS, dtype=torch.int64),
        "combine_mvals_m": torch.tensor([[0], [8]]),
        "codebook_MKD": torch.zeros(1, SIZE**2, DIM),
    }
    torch.save(content, path)
    assert load_pairwise(path, STEPS).num_pairs == 1
    torch.save(content | change, path)
    with pytest.raises(DataError, match=r"p\.pt"):
        load_pairwise(path, STEPS)


def test_an_index_puts_in_its_own_centroids():
    centroids_VD = np.ones((LISTS, DIM), np.float32)
    before = decoder()
    after = replace(before, centroids_VD=centroids_VD)
    wanted = before.decode(CODES, NUMBERS) - before.centroids_VD[NUMBERS] + 1
    np.testing.assert_allclose(after.decode(CODES, NUMBERS), wanted, atol=1e-4)
