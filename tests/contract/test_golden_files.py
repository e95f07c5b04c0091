"""Codecs that earlier versions wrote load forever, and decode to the same vectors."""

from pathlib import Path

import numpy as np
import pytest

from qinco.codec import ProductCodec, load_codec
from qinco.storage.header import read_header

DATA = Path(__file__).parents[1] / "data"
NAMES = ["golden-codec-v1", "golden-ivf-codec-v1", "golden-product-codec-v1"]


@pytest.fixture(params=NAMES)
def golden(request):
    arrays = np.load(DATA / f"{request.param}.npz")
    parts = [arrays[name] for name in ("codes", "lists") if name in arrays]
    return load_codec(DATA / f"{request.param}.safetensors"), parts, arrays


def test_all_golden_files_are_tested():
    assert sorted(path.stem for path in DATA.glob("golden-*.safetensors")) == sorted(NAMES)


def test_they_decode_to_the_same_vectors(golden):
    codec, parts, arrays = golden
    np.testing.assert_allclose(codec.decode(*parts), arrays["decoded"], rtol=0, atol=1e-6 * np.ptp(arrays["decoded"]))
    assert len(np.unique(arrays["decoded"], axis=0)) > 20


def test_they_encode_as_well_as_they_did(golden):
    codec, parts, arrays = golden
    found = codec.encode(arrays["vectors"], precision="float32")
    found = found if codec.is_ivf else (found,)
    errors = [np.square(codec.decode(*codes) - arrays["vectors"]).sum() for codes in (found, parts)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_the_kinds_are_what_they_were(golden):
    codec, parts, _ = golden
    assert codec.is_ivf == (len(parts) == 2)
    assert not isinstance(codec, ProductCodec) or codec.rotation_DD is not None
    assert (codec.encode_options.num_pairs, codec.encode_options.beam_width) == (8, 4)
    assert codec.provenance["train"]["epochs"] == 3


@pytest.mark.parametrize("name", NAMES)
def test_their_header_is_of_version_one(name):
    header = read_header(DATA / f"{name}.safetensors")
    assert set(header) == {"kind", "format_version", "model", "num_parts", "encode", "provenance"}
    assert (header["kind"], header["format_version"]) == ("codec", 1)
