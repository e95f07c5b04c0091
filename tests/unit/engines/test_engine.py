"""Which engine a call runs on, and that the codec's results do not depend on it."""

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco import Codec, ConfigError, EncodeOptions
from qinco.engines import native_engine
from qinco.engines.engine import choose_engine, make_encoder
from qinco.engines.torch_engine import Encoder
from qinco.native import library

CPU = torch.device("cpu")
SMALL = ARCHITECTURES["projected"]
native = pytest.mark.skipif(not library.is_available(), reason="this installation has no compiled kernels")


@native
def test_the_native_engine_is_taken_where_it_is_there():
    assert choose_engine("auto", SMALL, CPU) == choose_engine("native", SMALL, CPU) == "native"
    assert choose_engine("torch", SMALL, CPU) == "torch"
    assert choose_engine("auto", SMALL, torch.device("cuda")) == "torch"
    with pytest.raises(ConfigError, match="runs on the processor, not on cuda"):
        choose_engine("native", SMALL, torch.device("cuda"))


def test_without_compiled_kernels_torch_serves(monkeypatch):
    monkeypatch.setattr(native_engine, "is_available", lambda: False)
    monkeypatch.setattr("qinco.engines.engine.is_available", lambda: False)
    assert choose_engine("auto", SMALL, CPU) == "torch"
    assert isinstance(make_encoder(random_model(SMALL), EncodeOptions(), torch.float32), Encoder)
    with pytest.raises(ConfigError, match="no compiled kernels"):
        choose_engine("native", SMALL, CPU)


@native
def test_models_with_huge_tables_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(native_engine, "_TABLE_BYTES", 10)
    assert choose_engine("auto", SMALL, CPU) == "torch"
    with pytest.raises(ConfigError, match="tables are too large"):
        choose_engine("native", SMALL, CPU)


@native
@pytest.mark.parametrize("name", ["projected", "coarse", "qinco1"])
def test_a_codec_gives_the_same_with_each_engine_and_on_each_device(name, device):
    x, results = random_vectors(300, 3), []
    for engine, place in (("native", CPU), ("torch", device)):
        rule = EncodeOptions(beam_width=3, engine=engine, precision="float32")
        codec = Codec(random_model(ARCHITECTURES[name]).to(place), rule)
        encoded = codec.encode(x)
        codes, lists = encoded if codec.is_ivf else (encoded, None)
        results.append((codes, codec.decode(codes, lists)))
    same = (results[0][0] == results[1][0]).all(1)
    assert same.mean() > 0.99  # ties within rounding
    np.testing.assert_allclose(results[0][1][same], results[1][1][same], rtol=1e-4, atol=1e-3)


@native
def test_moving_a_codec_packs_it_again():
    codec = Codec(random_model(SMALL), EncodeOptions(beam_width=2))
    codec.encode(random_vectors(5, 3))
    assert codec._packings
    assert not codec.to("cpu")._packings
