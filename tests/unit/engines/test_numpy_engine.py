"""Decoding by numpy against the torch modules."""

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco import Codec, ConfigError, EncodeOptions
from qinco.engines import native_engine, numpy_engine
from qinco.engines.engine import choose_engine, find_engine


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prefixes_are_those_of_the_module(name, monkeypatch):
    model, generator = random_model(ARCHITECTURES[name]), np.random.default_rng(0)
    codes_NM = generator.integers(4, size=(50, model.config.num_steps), dtype=np.uint8)
    lists_N = generator.integers(5, size=50, dtype=np.int32) if model.config.starts_from_coarse else None
    start_ND = model.initial_reconstruction(50, None if lists_N is None else torch.from_numpy(lists_N).long())
    wanted = [
        model.denormalize(x_ND).numpy() for x_ND in model.reconstructions(torch.from_numpy(codes_NM).long(), start_ND)
    ]
    decoder = numpy_engine.NumpyDecoder(model.weights())
    for found_ND, wanted_ND in zip(decoder.prefixes(codes_NM, lists_N), wanted, strict=True):
        assert found_ND.dtype == np.float32
        np.testing.assert_allclose(found_ND, wanted_ND, atol=1e-5 * np.abs(wanted_ND).max())
    assert len(list(decoder.prefixes(codes_NM[:, :1], lists_N))) == 1
    monkeypatch.setattr(numpy_engine, "_BLOCK_ROWS", 7)
    np.testing.assert_allclose(decoder.decode(codes_NM, lists_N), wanted[-1], atol=1e-5 * np.abs(wanted[-1]).max())
    assert decoder.decode(codes_NM[:0], lists_N if lists_N is None else lists_N[:0]).shape == (0, model.config.dim)


def test_it_is_the_last_resort_and_says_what_to_do(monkeypatch, caplog):
    numpy_engine._say_slow.cache_clear()
    codec = Codec(random_model(ARCHITECTURES["projected"]), EncodeOptions(beam_width=2, precision="float32"))
    codes, decoded_ND = codec.encode(random_vectors(20, 3)), codec.decode(codec.encode(random_vectors(20, 3)))
    monkeypatch.setattr(native_engine, "is_available", lambda: False)
    assert choose_engine("auto", codec.config, "cpu").name == "torch"

    def without_torch(name):
        if name == "torch":
            raise ConfigError("engine=torch needs the package torch")
        return find_engine(name)

    monkeypatch.setattr("qinco.engines.engine.find_engine", without_torch)
    bare = codec.with_options()
    for _ in range(2):
        np.testing.assert_allclose(bare.decode(codes), decoded_ND, rtol=1e-5, atol=1e-5)
    assert [record.message for record in caplog.records] == [
        "the compiled engine is missing, and decoding by numpy is slow: install qinco where a C++ compiler is, "
        "or pip install 'qinco[train]'"
    ]
    with pytest.raises(
        ConfigError, match=r"^encoding needs the compiled engine or torch: .*pip install 'qinco\[train\]'$"
    ):
        bare.encode(random_vectors(20, 3))
    with pytest.raises(ConfigError, match=r"no engine can be used: .*native.*torch.*numpy.*not on cuda"):
        choose_engine("auto", codec.config, "cuda")
