import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco.codec import Codec, ProductCodec, load_codec
from qinco.codec.evaluate import evaluate, measure_time
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.vectors.rows import as_source

RULE = EncodeOptions(num_pairs=6, beam_width=3, precision="float32")


@pytest.fixture
def codec():
    return Codec(random_model(ARCHITECTURES["projected"]), RULE)


@pytest.fixture
def ivf():
    return Codec(random_model(ARCHITECTURES["coarse"]), RULE)


@pytest.fixture
def placed(device):
    """`codec` on each device."""
    return Codec(random_model(ARCHITECTURES["projected"]).to(device), RULE)


@pytest.fixture
def placed_ivf(device):
    return Codec(random_model(ARCHITECTURES["coarse"]).to(device), RULE)


@pytest.fixture(params=["projected", "coarse"])
def either(request, device):
    """Codecs without and with lists, on each device."""
    return Codec(random_model(ARCHITECTURES[request.param]).to(device), RULE)


def test_codes_are_small_integers_and_decode_to_float32(placed):
    codec = placed
    codes = codec.encode(random_vectors(20, 3))
    assert (codes.dtype, codes.shape) == (np.uint8, (20, 3)) and codes.max() < 4
    decoded = codec.decode(codes)
    assert (decoded.dtype, decoded.shape) == (np.float32, (20, 3))
    assert (codec.dim, codec.code_size, codec.bytes_per_vector, codec.is_ivf) == (3, 3, 0.75, False)


def test_decoding_is_the_models_chain_in_data_space(placed, codec):
    codes = torch.tensor([[0, 1, 2], [3, 3, 3]])
    model = codec.model
    wanted = model(codes, torch.zeros(2, 3)) * model.scale + model.mean
    np.testing.assert_allclose(placed.decode(codes), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_large_codebooks_have_two_byte_codes(device):
    model = random_model(ModelConfig(dim=3, num_steps=2, codebook_size=1024, hidden_dim=4)).to(device)
    codec = Codec(model, RULE)
    codes = codec.encode(random_vectors(30, 3))
    assert codes.dtype == np.uint16 and codes.max() > 255


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64])
def test_vectors_of_any_type_encode_alike(codec, dtype):
    x = np.round(random_vectors(40, 3)).clip(0, 100)
    wanted = codec.encode(x)
    assert np.array_equal(codec.encode(x.astype(dtype)), wanted)
    assert np.array_equal(codec.encode(torch.from_numpy(x.astype(dtype))), wanted)
    assert np.array_equal(codec.encode(x.astype(dtype).tolist()), wanted)


def test_tensors_on_a_device_are_as_good_as_arrays(placed, device):
    x = random_vectors(40, 3)
    codes = placed.encode(x)
    assert np.array_equal(placed.encode(torch.from_numpy(x).to(device)), codes)
    there = torch.from_numpy(codes.astype(np.int64)).to(device)
    np.testing.assert_array_equal(placed.decode(there), placed.decode(codes))


def test_bfloat16_tensors_strided_arrays_and_files_encode_alike(codec, tmp_path):
    x = np.round(random_vectors(40, 3)).clip(0, 100)
    wanted = codec.encode(x)
    assert np.array_equal(codec.encode(torch.from_numpy(x).bfloat16()), wanted)
    assert np.array_equal(codec.encode(np.asfortranarray(x)), wanted)
    assert np.array_equal(codec.encode(x[::-1]), wanted[::-1])
    np.save(tmp_path / "x.npy", x)
    assert np.array_equal(codec.encode(tmp_path / "x.npy"), wanted)
    assert np.array_equal(codec.encode(np.load(tmp_path / "x.npy", mmap_mode="r")), wanted)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.uint64])
def test_codes_of_any_type_decode_alike(codec, dtype):
    codes = codec.encode(random_vectors(20, 3))
    wanted = codec.decode(codes)
    assert np.array_equal(codec.decode(codes.astype(dtype)), wanted)
    assert np.array_equal(codec.decode(codes.tolist()), wanted)
    assert np.array_equal(codec.decode(torch.from_numpy(codes.astype(np.int32))), wanted)
    np.testing.assert_allclose(codec.decode(codes[::-1]), wanted[::-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_zero_and_one_vector(name, count, device):
    config = ARCHITECTURES[name]
    codec = Codec(random_model(config).to(device), EncodeOptions(beam_width=3))
    codes = codec.encode(random_vectors(count, config.dim))
    parts = codes if codec.is_ivf else (codes,)
    assert parts[0].shape == (count, config.num_steps)
    assert codec.decode(*parts).shape == (count, config.dim)


def test_inputs_are_not_changed(codec):
    x = random_vectors(20, 3)
    before = x.copy()
    codes = codec.encode(x)
    copied = codes.copy()
    codec.decode(codes)
    assert np.array_equal(x, before) and np.array_equal(codes, copied)


def test_a_shorter_code_is_searched_for_itself(placed):
    codec = placed
    x = random_vectors(200, 3)
    short = codec.encode(x, num_steps=2)
    assert short.shape == (200, 2)

    def error(codes):
        return np.square(codec.decode(codes) - x).sum(1).mean()

    assert error(short) <= error(codec.encode(x)[:, :2]) * 1.0001
    assert np.array_equal(codec.prefix(short, 1), short[:, :1])


def test_ivf_codes_come_with_the_nearest_lists(placed_ivf, ivf):
    x = random_vectors(50, 3)
    codes, lists = placed_ivf.encode(x)
    assert (lists.dtype, lists.shape) == (np.int32, (50,))
    normalised = (x - ivf.model.mean.numpy()) / ivf.model.scale.numpy()
    distances = np.square(normalised[:, None] - ivf.model.coarse_centroids.numpy()).sum(2)
    assert np.array_equal(lists, distances.argmin(1))
    assert np.array_equal(placed_ivf.assign_lists(x), lists)
    np.testing.assert_allclose(placed_ivf.coarse_centroids, ivf.coarse_centroids, rtol=1e-6)
    wanted = ivf.model(torch.from_numpy(codes).long(), ivf.model.coarse_centroids[lists.astype(np.int64)])
    wanted = ivf.model.denormalize(wanted).numpy()
    np.testing.assert_allclose(placed_ivf.decode(codes, lists), wanted, rtol=1e-5, atol=1e-5)


def test_evaluation_is_the_error_of_every_prefix(either):
    codec, x = either, random_vectors(200, 3)
    codec.block_rows = 64
    parts = codec.encode(x) if codec.is_ivf else (codec.encode(x),)
    errors = [
        np.square(codec.decode(codec.prefix(parts[0], m), *parts[1:]) - x, dtype=np.float64).sum(1).mean()
        for m in (1, 2, 3)
    ]
    heard = []
    found = evaluate(codec, as_source(x), on_progress=heard.append)
    assert found.mse_per_step == pytest.approx(errors, rel=1e-4) and found.num_vectors == 200
    assert heard == [64, 128, 192, 200]
    assert min(measure_time(codec, as_source(x))) > 0


def test_options_of_a_call_replace_the_codecs(placed):
    codec = placed
    x = random_vectors(300, 3)

    def error(**options):
        return np.square(codec.decode(codec.encode(x, **options)) - x).sum(1).mean()

    assert error(num_candidates=0, beam_width=64) < error(num_candidates=1, beam_width=1)
    assert error() == error(num_pairs=6) == error(beam_width=3)


def test_saved_codecs_are_the_same(tmp_path, either, named_device):
    one, x = either, random_vectors(30, 3)
    one.save(tmp_path / "x.safetensors")
    loaded = Codec.load(tmp_path / "x.safetensors", named_device)
    for a, b in zip(one.encode(x, precision="float32"), loaded.encode(x, precision="float32"), strict=True):
        assert np.array_equal(a, b)
    assert loaded.config == one.config and loaded.encode_options.num_pairs == 6
    with pytest.raises(ConfigError, match="exists"):
        one.save(tmp_path / "x.safetensors", overwrite=False)


def test_a_file_does_not_know_the_device(tmp_path, placed, placed_ivf, codec, ivf, named_device):
    for there, here in ((placed, codec), (placed_ivf, ivf)):
        there.save(tmp_path / "there"), here.save(tmp_path / "here")
        assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
        assert there.fingerprint() == here.fingerprint() == Codec.load(tmp_path / "there").fingerprint()
        assert Codec.load(tmp_path / "there").model.device.type == "cpu"
    assert codec.to(named_device).model.device.type == placed.model.device.type
    assert np.array_equal(codec.encode(random_vectors(30, 3)), placed.encode(random_vectors(30, 3)))


def test_each_kind_of_file_names_the_other(tmp_path, codec):
    codec.save(tmp_path / "one")
    ProductCodec([Codec(random_model(codec.config, seed), RULE) for seed in (1, 2)]).save(tmp_path / "two")
    assert isinstance(load_codec(tmp_path / "one"), Codec)
    assert isinstance(load_codec(tmp_path / "two"), ProductCodec)
    with pytest.raises(DataError, match="of 2 parts"):
        Codec.load(tmp_path / "two")
    with pytest.raises(DataError, match="of one part"):
        ProductCodec.load(tmp_path / "one")


def test_reading_executes_nothing(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"model": Trap()}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="nothing was executed"):
        Codec.load(tmp_path / "x.safetensors")
    assert not (tmp_path / "sprung").exists()


def test_its_text_says_what_it_is(codec, ivf):
    assert "dim=3, num_steps=3, codebook_size=4, 0.75 bytes a vector" in repr(codec)
    assert "num_lists=5" in repr(ivf)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_row_that_is_not_finite_is_named(codec, value):
    x = random_vectors(3000, 3)
    x[2345, 1] = value
    with pytest.raises(DataError, match=r"row 2345 of vectors holds .* in column 1"):
        codec.encode(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((4, 5), np.float32), "vectors have 5 dimensions, the codec was trained on 3"),
        (np.zeros(3, np.float32), "vectors"),
        (np.zeros((2, 3, 3), np.float32), "vectors"),
        (np.array([["a", "b", "c"]]), "vectors"),
        (np.zeros((2, 3), complex), "vectors"),
        ([[1, 2, 3], [1, 2]], "not a matrix of numbers"),
        (None, "vectors"),
        ("nowhere.fvecs", "nowhere.fvecs"),
    ],
)
def test_what_is_no_matrix_of_the_codecs_dimension_is_refused(codec, x, message):
    with pytest.raises(DataError, match=message):
        codec.encode(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_candidates": 2, "num_pairs": 2}, "exclude each other"),
        ({"num_candidates": -1}, r"num_candidates \(A\) must be at least 1"),
        ({"num_pairs": 0}, r"num_pairs \(C\) must be at least 1"),
        ({"beam_width": 0}, r"beam_width \(B\) must be at least 1"),
        ({"beam_width": 2.0}, r"beam_width \(B\) must be an integer"),
        ({"precision": "half"}, "precision must be one of"),
        ({"num_steps": 4}, "num_steps must be between 1 and 3, not 4"),
        ({"num_steps": 0}, "num_steps must be between 1 and 3"),
    ],
)
def test_wrong_options_are_refused(codec, options, message):
    with pytest.raises(ConfigError, match=message):
        codec.encode(random_vectors(4, 3), **options)


@pytest.mark.parametrize("options", [{"num_candidates": 2}, {"num_pairs": 2}])
def test_a_codec_without_preselector_says_so(options):
    codec = Codec(random_model(ARCHITECTURES["qinco1"]), EncodeOptions())
    with pytest.raises(ConfigError, match="needs a pre-selector"):
        codec.encode(random_vectors(4, 3), **options)


@pytest.mark.parametrize(
    ("codes", "lists", "message"),
    [
        ([[0, 0, 4]], None, "row 0, column 2 is 4"),
        ([[0, -1, 0]], None, "row 0, column 1 is -1"),
        ([[0, 0, 0, 0]], None, "4 columns"),
        ([[0.5, 0, 0]], None, "integer array"),
        ([0, 0, 0], None, "2-D integer array"),
        ([[0, 0, 0]], [0], "this codec has none"),
    ],
)
def test_wrong_codes_are_refused(codec, codes, lists, message):
    with pytest.raises(DataError, match=message):
        codec.decode(codes, lists)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (None, "give lists"),
        ([0], "must be 2 integers"),
        ([0, 5], "row 1 is 5, the codec has 5 lists"),
        ([-1, 0], "row 0 is -1"),
        ([0.0, 1.0], "integers"),
    ],
)
def test_wrong_lists_are_refused(ivf, lists, message):
    with pytest.raises(DataError, match=message):
        ivf.decode([[0, 0, 0], [1, 1, 1]], lists)
