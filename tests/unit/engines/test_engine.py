"""Which engine a call runs on, and that the codec's results do not depend on it."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco import Codec, ConfigError, EncodeOptions
from qinco.config import ENGINE_MODULES, ENGINES
from qinco.engines import native_engine
from qinco.engines.engine import choose_engine, find_engine
from qinco.engines.tensors import pack
from qinco.engines.torch_engine import TorchTensors
from qinco.model.qinco import Qinco
from qinco.native import library

CPU = "cpu"
SMALL = ARCHITECTURES["projected"]
native = pytest.mark.skipif(not library.is_available(), reason="this installation has no compiled kernels")


def test_the_engines_go_by_their_names():
    assert ENGINES == ("auto", *ENGINE_MODULES) == ("auto", *(find_engine(name).name for name in ENGINE_MODULES))


@native
def test_the_native_engine_is_taken_where_it_is_there():
    assert choose_engine("auto", SMALL, CPU) is choose_engine("native", SMALL, CPU) is find_engine("native")
    assert choose_engine("torch", SMALL, CPU).name == "torch"
    assert choose_engine("auto", SMALL, "cuda").name == "torch"
    with pytest.raises(ConfigError, match="cuda"):
        choose_engine("native", SMALL, "cuda")


def test_without_compiled_kernels_torch_serves(monkeypatch):
    monkeypatch.setattr(native_engine, "is_available", lambda: False)
    assert choose_engine("auto", SMALL, CPU).name == "torch"
    assert isinstance(pack(random_model(SMALL), "auto", "float32"), TorchTensors)
    with pytest.raises(ConfigError, match="engine=native"):
        choose_engine("native", SMALL, CPU)


@native
@pytest.mark.parametrize("name", ["projected", "coarse", "qinco1"])
def test_a_codec_gives_the_same_with_each_engine_and_on_each_device(name, device):
    x, results = random_vectors(300, 3), []
    for engine, place in (("native", CPU), ("torch", device)):
        options = EncodeOptions(beam_width=3, engine=engine, precision="float32")
        codec = Codec(random_model(ARCHITECTURES[name]).to(place), options)
        codes = codec.encode(x)
        results.append((codes.codes, codec.decode(codes)))
    same = (results[0][0] == results[1][0]).all(1)
    assert same.mean() > 0.99  # ties within rounding
    np.testing.assert_allclose(results[0][1][same], results[1][1][same], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_an_engine_works_on_arrays(engine):
    model, x_ND = random_model(ARCHITECTURES["coarse"]), random_vectors(20, 3)
    chosen, options, lists_N = find_engine(engine), EncodeOptions(beam_width=3), np.arange(20, dtype=np.int32) % 5
    if chosen.supports(model.config, CPU) is not None:
        pytest.skip(chosen.supports(model.config, CPU))
    packed = chosen.pack(model.weights(), "float32", CPU)
    if engine == "numpy":
        with pytest.raises(ConfigError, match=r"needs the compiled engine or torch: .* pip install 'qinco\[train\]'"):
            packed.encode(packed.send(x_ND), lists_N, options)
        codes_NM = np.random.default_rng(0).integers(4, size=(20, 3), dtype=np.uint8)
    else:
        codes_NM = packed.encode(packed.send(x_ND), lists_N, options)
        assert packed.encode(packed.send(x_ND), lists_N, options, 2).shape == (20, 2)
    assert codes_NM.dtype == np.uint8 and codes_NM.shape == (20, 3)
    decoded_ND, out_ND = packed.decode(codes_NM, lists_N), np.empty((20, 3), np.float32)
    assert packed.decode(codes_NM.astype(np.int64), lists_N, out_ND) is out_ND
    assert np.array_equal(out_ND, decoded_ND) and decoded_ND.dtype == np.float32
    expected = model(
        torch.from_numpy(codes_NM).long(), model.initial_reconstruction(20, torch.from_numpy(lists_N).long())
    )
    np.testing.assert_allclose(decoded_ND, model.denormalize(expected).numpy(), rtol=1e-4, atol=1e-4)


class PlainPacked:
    """A model that is decoded as it stands, and encoded greedily: plain arrays and nothing else."""

    def __init__(self, model):
        self.model = model

    def send(self, x_ND):
        return x_ND

    def encode(self, x_ND, lists_N, options, num_steps=None):
        target_ND, codes = self.model.normalize(torch.from_numpy(x_ND)), []
        reached_ND = self.model.initial_reconstruction(
            len(x_ND), None if lists_N is None else torch.from_numpy(lists_N).long()
        )
        for step in self.model.steps[:num_steps]:
            every = [step(torch.full((len(x_ND),), code), reached_ND) for code in range(4)]
            errors = torch.stack([(target_ND - reached_ND - f_ND).square().sum(1) for f_ND in every])
            codes.append(errors.argmin(0))
            reached_ND = reached_ND + step(codes[-1], reached_ND)
        return torch.stack(codes, 1).numpy().astype(np.uint8)

    def decode(self, codes_NM, lists_N=None, out_ND=None):
        start_ND = self.model.initial_reconstruction(
            len(codes_NM), None if lists_N is None else torch.from_numpy(lists_N).long()
        )
        decoded_ND = self.model.denormalize(self.model(torch.from_numpy(codes_NM).long(), start_ND)).numpy()
        if out_ND is not None:
            out_ND[:] = decoded_ND
        return decoded_ND


@pytest.mark.parametrize("name", ["projected", "coarse", "product"])
def test_an_engine_is_a_module_and_a_line(monkeypatch, name):
    """What packs plain arrays takes the place of the torch engine."""
    seeds, architecture = ((0, 1), "projected") if name == "product" else ((0,), name)
    models = [random_model(ARCHITECTURES[architecture], seed) for seed in seeds]
    options = EncodeOptions(precision="float32", engine="torch")
    x_ND = random_vectors(50, 3 * len(models))
    expected = Codec(models, options).encode(x_ND)
    expected_ND = Codec(models, options).decode(expected)
    plain = SimpleNamespace(
        name="plain",
        supports=lambda config, device: None,
        pack=lambda weights, precision, device: PlainPacked(Qinco.of(weights)),
    )
    monkeypatch.setitem(sys.modules, "plain_engine", plain)
    monkeypatch.setitem(ENGINE_MODULES, "torch", "plain_engine")
    find_engine.cache_clear()
    try:
        codes = Codec(models, options).encode(x_ND)
        assert (codes == expected).all(1).mean() > 0.97  # ties within rounding
        np.testing.assert_allclose(Codec(models, options).decode(expected), expected_ND, rtol=1e-4, atol=1e-4)
    finally:
        find_engine.cache_clear()


@native
def test_moving_a_codec_packs_it_again(monkeypatch):
    packed, pack = [], native_engine.pack
    monkeypatch.setattr(native_engine, "pack", lambda *given: packed.append(given) or pack(*given))
    codec = Codec(random_model(SMALL), EncodeOptions(beam_width=2, precision="float32"))
    for _ in range(2):
        codec.decode(codec.encode(random_vectors(5, 3)))
    assert len(packed) == 1
    codec.to("cpu").encode(random_vectors(5, 3))
    assert len(packed) == 2
