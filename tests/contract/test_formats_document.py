"""The decoder printed in docs/formats.md reads the files that the package writes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from qinco import Codec, EncodeOptions, ModelConfig, encode_file
from qinco.model.qinco import Qinco

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"
QINCO1 = {"has_preselector": False, "codeword_skip": False}
ARCHITECTURES = {
    "qinco1": QINCO1,
    "low rank": QINCO1 | {"concat_rank": 3},
    "qinco2": {},
    "projections": {"embed_dim": 7},
    "projections, low rank": {"embed_dim": 5, "concat_rank": 3},
    "no blocks": {"num_blocks": 0},
    "ivf": {"starts_from_coarse": True, "num_lists": 9},
    "ranked": {"has_ranker": True},
    "uint16 codes": {"codebook_size": 512, "num_steps": 2},
}


@pytest.fixture(scope="module")
def printed() -> dict:
    """What the document's Python defines."""
    (source,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict = {}
    exec(source, names)
    return names


def random_codec(seed: int, **settings) -> Codec:
    model = Qinco(ModelConfig(**({"dim": 6, "num_steps": 3, "codebook_size": 16, "hidden_dim": 8} | settings)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
    return Codec(model, EncodeOptions())


def random_codes(config: ModelConfig, columns: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, config.codebook_size, (20, columns))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_printed_decoder_gives_what_the_codec_gives(printed, tmp_path, name):
    codec = random_codec(0, **ARCHITECTURES[name])
    codec.save(tmp_path / "codec.safetensors")
    header, tensors = printed["read_codec"](tmp_path / "codec.safetensors")
    codes = random_codes(codec.config, codec.config.num_steps)
    lists = np.arange(20) % codec.config.num_lists if codec.is_ivf else None
    for m in range(1, codec.config.num_steps + 1):
        decoded = printed["decode"](header, tensors, codes[:, :m], lists)
        np.testing.assert_allclose(decoded, codec.decode(codes[:, :m], lists), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rotated", [False, True])
def test_printed_decoder_joins_parts(printed, tmp_path, rotated):
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((12, 12)))[0].astype(np.float32)
    codec = Codec(
        [random_codec(0).models[0], random_codec(1).models[0]], EncodeOptions(), None, rotation if rotated else None
    )
    codec.save(tmp_path / "codec.safetensors")
    header, tensors = printed["read_codec"](tmp_path / "codec.safetensors")
    for m in (1, 3):
        codes = random_codes(codec.config, 2 * m)
        decoded = printed["decode"](header, tensors, codes)
        np.testing.assert_allclose(decoded, codec.decode(codes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qinco2", "ivf"])
def test_printed_reader_reads_folders_of_codes(printed, tmp_path, name):
    codec = random_codec(0, **ARCHITECTURES[name])
    x_ND = np.random.default_rng(3).standard_normal((50, 6))
    encode_file(codec, x_ND, tmp_path / "codes", shard_rows=20)
    codes, lists = printed["read_codes"](tmp_path / "codes")
    expected = codec.encode(x_ND)
    assert np.array_equal(codes, expected.codes)
    assert lists is None if expected.lists is None else np.array_equal(lists, expected.lists)


def test_every_tensor_name_is_in_the_document():
    document = DOCUMENT.read_text()
    for settings in ARCHITECTURES.values():
        for name in random_codec(0, **settings).models[0].state_dict():
            assert f"`{re.sub(r'blocks[.][0-9]', 'blocks.j', re.sub(r'steps[.][0-9]', 'steps.m', name))}`" in document
