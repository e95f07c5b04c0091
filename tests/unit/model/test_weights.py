"""Weights as arrays: those of the torch module, to the bit."""

import copy
import pickle
from hashlib import sha256

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.model.qinco import Qinco
from qinco.model.weights import Weights, random_weights, weight_shapes

NAMES = pytest.mark.parametrize("name", ARCHITECTURES)


@NAMES
def test_arrays_are_those_of_the_module(name):
    model = random_model(ARCHITECTURES[name])
    weights, state = model.weights(), model.state_dict()
    assert weights.config == model.config and weights.arrays.keys() == state.keys()
    for array, tensor in zip(weights.arrays.values(), state.values(), strict=True):
        assert array.dtype == np.float32 and np.array_equal(array, tensor)
    assert {key: array.shape for key, array in weights.arrays.items()} == weight_shapes(model.config)
    assert {key: array.shape for key, array in random_weights(model.config).arrays.items()} == weight_shapes(
        model.config
    )


@NAMES
def test_the_fingerprint_is_that_of_architecture_and_tensors(name):
    model = random_model(ARCHITECTURES[name])
    digest = sha256(repr(sorted(model.config.to_dict().items())).encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.numpy().tobytes())
    assert model.weights().fingerprint() == digest.hexdigest() == Codec(model, EncodeOptions()).fingerprint()
    assert random_model(model.config, 1).weights().fingerprint() != digest.hexdigest()


def test_vectors_are_normalized_as_by_the_module_to_the_bit():
    model = random_model(ModelConfig(dim=7, num_steps=1, codebook_size=4, hidden_dim=3))
    weights, x_ND = model.weights(), random_vectors(300, 7)
    x_ND[:3] = [[3e38] * 7, [-1e-40] * 7, [np.inf] * 7]
    normal_ND, tensors = weights.normalize(x_ND), model.normalize(torch.from_numpy(x_ND))
    assert normal_ND.dtype == np.float32 and normal_ND.tobytes() == tensors.numpy().tobytes()
    wanted = model.denormalize(tensors).numpy()
    out_ND = np.empty_like(x_ND)
    assert weights.denormalize(normal_ND, out_ND) is out_ND
    assert out_ND.tobytes() == weights.denormalize(normal_ND).tobytes() == wanted.tobytes()


@NAMES
def test_reconstructions_start_as_those_of_the_module(name):
    model, lists_N = random_model(ARCHITECTURES[name]), np.array([3, 0, 3, 4], np.int32)
    wanted_ND = model.initial_reconstruction(4, torch.from_numpy(lists_N).long()).numpy()
    start_ND = model.weights().start(lists_N if model.config.starts_from_coarse else None)
    assert np.array_equal(np.zeros_like(wanted_ND) if start_ND is None else start_ND, wanted_ND)
    assert (start_ND is None) == (not model.config.starts_from_coarse)


@NAMES
def test_the_parts_of_a_step_are_those_of_the_module(name):
    model = random_model(ARCHITECTURES[name])
    for number, step in enumerate(model.steps):
        arrays = model.weights().step(number)
        assert arrays.conditioned == step.conditioned and np.array_equal(arrays.codebook_KD, step.codebook.weight)
        if not step.conditioned:
            continue
        wide, dim = copy.deepcopy(step).double(), model.config.dim
        wanted = (
            wide.embed(wide.codebook.weight),
            wide.concat.from_reconstruction(torch.eye(dim, dtype=torch.float64)).T,
        )
        for dtype, exact in ((np.float64, 1e-12), (np.float32, 1e-5)):
            found = arrays.embed(dtype), arrays.concat(dtype)[1]
            for array, tensor in zip(found, wanted, strict=True):
                assert array.dtype == dtype
                np.testing.assert_allclose(array, tensor.numpy(), rtol=exact, atol=exact)


def test_a_module_is_made_once_for_each_device_and_is_not_trained(device):
    weights = random_model(ARCHITECTURES["coarse, projected"]).weights()
    model = Qinco.of(weights, device)
    assert Qinco.of(weights, str(model.device)) is Qinco.of(weights, model.device)
    assert model.device.type == device.type and (Qinco.of(weights) is model) == (device.type == "cpu")
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    for array, tensor in zip(weights.arrays.values(), model.state_dict().values(), strict=True):
        assert np.array_equal(array, tensor.cpu())
        assert np.shares_memory(array, tensor.cpu().numpy()) or device.type != "cpu"


def test_modules_that_have_been_moved_are_made_again(elsewhere):
    weights = random_model(ARCHITECTURES["projected"]).weights()
    assert Qinco.of(weights).to(elsewhere).device.type == elsewhere.type
    assert Qinco.of(weights).device.type == "cpu"


def test_arrays_that_are_only_read_are_copied():
    weights = random_model(ARCHITECTURES["projected"]).weights()
    for array in weights.arrays.values():
        array.flags.writeable = False
    model = Qinco.of(weights)
    with torch.no_grad():
        model.mean += 1
    assert not np.array_equal(model.mean.numpy(), weights.mean_D)


def test_copies_have_no_modules():
    weights = random_model(ARCHITECTURES["projected"]).weights()
    Qinco.of(weights)
    for other in (pickle.loads(pickle.dumps(weights)), copy.deepcopy(weights)):
        assert not other.models and other.fingerprint() == weights.fingerprint()
        assert not any(map(np.shares_memory, other.arrays.values(), weights.arrays.values()))


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("name", ["projected", "coarse", "product"])
def test_a_codec_of_arrays_is_that_of_modules(name, engine):
    """To the bit, whether modules have been made or not."""
    count = 2 if name == "product" else 1
    models = [random_model(ARCHITECTURES["projected" if count == 2 else name], seed) for seed in range(count)]
    options, x_ND = EncodeOptions(beam_width=3, engine=engine), random_vectors(200, 3 * count)
    plain = Codec([Weights(model.config, copy.deepcopy(model.weights().arrays)) for model in models], options)
    codes, decoded_ND = plain.encode(x_ND), plain.decode(plain.encode(x_ND))
    assert engine == "torch" or not any(weights.models for weights in plain.weights)
    made, of_models = plain.with_options(options), Codec(models, options)
    assert all(model is again for model, again in zip(made.models, made.models, strict=True))
    for codec in (made, of_models):
        assert np.array_equal(codec.encode(x_ND), codes) and codec.decode(codes).tobytes() == decoded_ND.tobytes()
        assert codec.fingerprint() == plain.fingerprint() and codec.device == "cpu"
