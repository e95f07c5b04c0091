"""Codecs of one model and of several: shapes and types of what goes in and out, on every device."""

import signal
from copy import deepcopy

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco.codec import Codec, ProductCodec
from qinco.config import EncodeOptions, ModelConfig
from qinco.errors import ConfigError, DataError
from qinco.store.codes import Codes
from qinco.vectors.rows import VectorSource, as_source

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


def product_codec(rotates: bool) -> Codec:
    rotation_DD = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0].astype(np.float32)
    models = [random_model(ARCHITECTURES["projected"], seed) for seed in range(2)]
    return Codec(models, RULE, None, rotation_DD if rotates else None)


@pytest.fixture(params=[False, True], ids=["plain", "rotated"])
def product(request):
    """Codecs of two models."""
    return product_codec(request.param)


@pytest.fixture(params=["projected", "coarse", "product", "rotated product"])
def each(request, named_device):
    """Every kind of codec, on each device."""
    if "product" in request.param:
        return product_codec("rotated" in request.param).to(named_device)
    return Codec(random_model(ARCHITECTURES[request.param]), RULE).to(named_device)


def on_processor(codec: Codec) -> Codec:
    return deepcopy(codec).to("cpu")


def test_codes_are_small_integers_and_decode_to_float32(placed):
    x = random_vectors(20, 3)
    before, codes = x.copy(), placed.encode(x)
    assert (codes.dtype, codes.shape) == (np.uint8, (20, 3)) and codes.max() < 4
    decoded = placed.decode(codes)
    assert (decoded.dtype, decoded.shape) == (np.float32, (20, 3)) and np.array_equal(x, before)
    assert (placed.dim, placed.num_codes, placed.bytes_per_vector, placed.is_ivf) == (3, 3, 0.75, False)


def test_decoding_is_the_models_chain_in_data_space(placed, codec):
    codes = torch.tensor([[0, 1, 2], [3, 3, 3]])
    model = codec.models[0]
    wanted = model(codes, torch.zeros(2, 3)) * model.scale + model.mean
    np.testing.assert_allclose(placed.decode(codes), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_large_codebooks_have_two_byte_codes(device):
    model = random_model(ModelConfig(dim=3, num_steps=2, codebook_size=1024, hidden_dim=4)).to(device)
    codec = Codec(model, RULE)
    codes = codec.encode(random_vectors(30, 3))
    assert codes.dtype == np.uint16 and codes.max() > 255


def test_vectors_of_any_type_and_place_encode_alike(placed, device, tmp_path):
    codec, x = placed, np.round(random_vectors(40, 3)).clip(0, 100)
    wanted = codec.encode(x)
    assert np.array_equal(codec.encode(torch.from_numpy(x).to(device)), wanted)
    for dtype in (np.float16, np.float64, np.uint8, np.int64):
        for given in (x.astype(dtype), torch.from_numpy(x.astype(dtype)), x.astype(dtype).tolist()):
            assert np.array_equal(codec.encode(given), wanted)
    assert np.array_equal(codec.encode(torch.from_numpy(x).bfloat16()), wanted)
    assert np.array_equal(codec.encode(np.asfortranarray(x)), wanted)
    assert np.array_equal(codec.encode(x[::-1]), wanted[::-1])
    np.save(tmp_path / "x.npy", x)
    assert np.array_equal(codec.encode(tmp_path / "x.npy"), wanted)
    assert np.array_equal(codec.encode(np.load(tmp_path / "x.npy", mmap_mode="r")), wanted)


@pytest.mark.parametrize("count", [0, 1])
def test_zero_and_one_vector(each, count):
    codes = each.encode(random_vectors(count, each.dim))
    assert codes.shape == (count, each.num_codes) and codes.has_lists == each.is_ivf
    assert each.decode(codes).shape == (count, each.dim)


def test_a_shorter_code_is_searched_for_itself(placed):
    codec, x = placed, random_vectors(200, 3)
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
    normalised = (x - ivf.models[0].mean.numpy()) / ivf.models[0].scale.numpy()
    distances = np.square(normalised[:, None] - ivf.models[0].coarse_centroids.numpy()).sum(2)
    assert np.array_equal(lists, distances.argmin(1))
    assert np.array_equal(placed_ivf.assign_lists(x), lists)
    np.testing.assert_allclose(placed_ivf.coarse_centroids, ivf.coarse_centroids, rtol=1e-6)
    wanted = ivf.models[0](torch.from_numpy(codes).long(), ivf.models[0].coarse_centroids[lists.astype(np.int64)])
    wanted = ivf.models[0].denormalize(wanted).numpy()
    np.testing.assert_allclose(placed_ivf.decode(codes, lists), wanted, rtol=1e-5, atol=1e-5)


def test_options_of_a_call_replace_the_codecs(placed):
    codec, x = placed, random_vectors(300, 3)

    def error(**options):
        return np.square(codec.decode(codec.encode(x, **options)) - x).sum(1).mean()

    assert error(num_candidates=0, beam_width=64) < error(num_candidates=1, beam_width=1)
    assert error() == error(num_pairs=6) == error(beam_width=3)


def test_saved_codecs_are_the_same(tmp_path, each, named_device):
    x = random_vectors(30, each.dim)
    each.save(tmp_path / "x.safetensors")
    loaded, codes = Codec.load(tmp_path / "x.safetensors", named_device), each.encode(x)
    found = loaded.encode(x, precision="float32")
    assert np.array_equal(found, codes) and (not each.is_ivf or np.array_equal(found.lists, codes.lists))
    assert np.array_equal(loaded.decode(codes), each.decode(codes))
    assert loaded.config == each.config and loaded.encode_options.num_pairs == 6
    assert loaded.fingerprint() == each.fingerprint() == on_processor(each).fingerprint()
    with pytest.raises(ConfigError, match="exists"):
        each.save(tmp_path / "x.safetensors", overwrite=False)


def test_a_file_does_not_know_the_device(tmp_path, placed, placed_ivf, codec, ivf, named_device):
    for there, here in ((placed, codec), (placed_ivf, ivf)):
        there.save(tmp_path / "there.safetensors"), here.save(tmp_path / "here.safetensors")
        assert (tmp_path / "there.safetensors").read_bytes() == (tmp_path / "here.safetensors").read_bytes()
        assert there.fingerprint() == here.fingerprint() == Codec.load(tmp_path / "there.safetensors").fingerprint()
        assert Codec.load(tmp_path / "there.safetensors").models[0].device.type == "cpu"
    assert codec.to(named_device).models[0].device.type == placed.models[0].device.type
    assert np.array_equal(codec.encode(random_vectors(30, 3)), placed.encode(random_vectors(30, 3)))


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
        (np.zeros((4, 5), np.float32), "dimension 3, that of the codec, not 5"),
        (np.zeros(3, np.float32), "vectors"),
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
        ({"precision": "half"}, "precision must be one of"),
        ({"num_steps": 4}, "between 1 and 3, not 4"),
        ({"num_steps": 0}, "between 1 and 3"),
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
    ("kind", "codes", "lists", "message"),
    [
        ("codec", [[0, 0, 4]], None, "row 0, column 2 is 4"),
        ("codec", [[0, -1, 0]], None, "row 0, column 1 is -1"),
        ("codec", [[0, 0, 0, 0]], None, "columns.* not 4"),
        ("codec", [[0.5, 0, 0]], None, "integer array"),
        ("codec", [0, 0, 0], None, "2-D integer array"),
        ("codec", [[0, 0, 0]], [0], "this codec has none"),
        ("product", [[0] * 5], None, "multiple of 2 columns.* not 5"),
        ("product", [[0] * 8], None, "columns.* not 8"),
        ("product", np.empty((3, 0), np.uint8), None, "columns.* not 0"),
        ("product", [[0, 0, 0, 0, 0, 9]], None, "row 0, column 5 is 9"),
        ("product", [[0] * 6], [0], "lists"),
        ("ivf", [[0, 0, 0]], None, "give lists"),
        ("ivf", [[0, 0, 0], [1, 1, 1]], [0], "must be 2 integers"),
        ("ivf", [[0, 0, 0], [1, 1, 1]], [0, 5], "range 0 to 4.* row 1 is 5"),
        ("ivf", [[0, 0, 0], [1, 1, 1]], [-1, 0], "row 0 is -1"),
    ],
)
def test_wrong_codes_and_lists_are_refused(codec, ivf, kind, codes, lists, message):
    refusing = {"codec": codec, "ivf": ivf, "product": product_codec(False)}[kind]
    for given in ((codes, lists), ((codes, lists),) if lists else (codes,)):
        with pytest.raises(DataError, match=message):
            refusing.decode(*given)


@pytest.mark.parametrize("row", [5, 2**20 + 5])
def test_a_wrong_code_is_named_by_its_row(codec, ivf, row):
    codes_NM, lists_N = np.zeros((row + 10, 3), np.uint8), np.zeros(row + 10, np.int32)
    codes_NM[row, 1], lists_N[row + 1] = 4, 5
    with pytest.raises(DataError, match=f"row {row}, column 1 is 4"):
        codec.check_codes(codes_NM)
    with pytest.raises(DataError, match=f"row {row + 1} is 5"):
        ivf.check_codes(codes_NM * 0, lists_N)


# Codes of every kind


def test_codes_are_decoded_in_every_form(each, device):
    codes = each.encode(random_vectors(40, each.dim))
    assert isinstance(codes, Codes) and codes.has_lists == each.is_ivf
    wanted, lists = each.decode(codes), codes.lists
    tensor = torch.from_numpy(codes.codes).to(device)
    for given in (codes.codes, codes.tolist(), tensor, *(codes.astype(t) for t in ["b", "u2", "i4", "u8"])):
        assert np.array_equal(each.decode(given, lists), wanted)
        if each.is_ivf:
            assert np.array_equal(each.decode((given, lists)), wanted)
    tensors = torch.cat([block_ND for _, block_ND in each.decode_tensors(codes)])
    assert tensors.device.type == device.type
    np.testing.assert_allclose(tensors.cpu().numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_prefixes_decode_one_after_the_other(each):
    codes = each.encode(random_vectors(40, each.dim))
    for steps, x_ND in enumerate(each.decode_prefixes(codes), 1):
        prefix = each.prefix(codes, steps)
        assert prefix.shape == (40, steps * len(each.models))
        np.testing.assert_allclose(x_ND, each.decode(prefix), rtol=1e-4, atol=1e-4)
    assert steps == each.config.num_steps


def test_blocks_are_the_whole(each):
    x = random_vectors(40, each.dim)
    codes, decoded = each.encode(x), each.decode(each.encode(x))
    each.block_rows = 7
    blocks = list(each.encode_blocks(as_source(x)))
    assert [first for first, _ in blocks] == list(range(0, 40, 7))
    joined = Codes.concatenate([block for _, block in blocks])
    assert np.array_equal(joined, codes) and (not each.is_ivf or np.array_equal(joined.lists, codes.lists))
    parts = [block_ND for _, block_ND in each.decode_blocks(codes)]
    np.testing.assert_allclose(np.concatenate(parts), decoded, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(each.decode(codes), decoded, rtol=1e-5, atol=1e-5)


# Several models


def rotated(codec, x):
    return x if codec.rotation_DD is None else x @ codec.rotation_DD.T


def test_each_model_encodes_its_columns(product):
    x = random_vectors(40, 6)
    codes = product.encode(x)
    assert (codes.dtype, codes.shape) == (np.uint8, (40, 6))
    assert (product.dim, product.num_codes, product.bytes_per_vector) == (6, 6, 1.5)
    y, alone = rotated(product, x), [Codec(model, RULE) for model in product.models]
    for i, part in enumerate(alone):
        assert np.array_equal(codes[:, 3 * i : 3 * i + 3], part.encode(y[:, 3 * i : 3 * i + 3]))
    decoded = np.concatenate([alone[i].decode(codes[:, 3 * i : 3 * i + 3]) for i in (0, 1)], 1)
    np.testing.assert_allclose(rotated(product, product.decode(codes)), decoded, rtol=1e-4, atol=1e-4)


def test_every_device_gives_the_same(each, device):
    x = random_vectors(100, each.dim)
    codes = on_processor(each).encode(x)
    assert {model.device.type for model in each.models} == {device.type}
    assert (each.encode(x) == codes).all(1).mean() >= 0.99  # ties within rounding
    np.testing.assert_allclose(each.decode(codes), on_processor(each).decode(codes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_rows", [7, 40, 100])
def test_every_block_is_read_once(product, block_rows):
    x, reads = random_vectors(100, 6), []
    ranges = [range(0, 30), range(30, 31), range(50, 100)]
    expected = np.concatenate([product.encode(x[rows]) for rows in ranges])

    class Rows:
        shape, dtype = x.shape, x.dtype

        def __getitem__(self, key):
            reads.extend(range(*key.indices(len(x))))
            return x[key]

    product.block_rows = block_rows
    blocks = list(product.encode_blocks(VectorSource(Rows()), ranges=ranges))
    assert reads == [row for rows in ranges for row in rows]
    assert [row for first, codes in blocks for row in range(first, first + len(codes))] == reads
    assert np.array_equal(Codes.concatenate([codes for _, codes in blocks]), expected)


def test_values_that_are_not_finite_are_found_in_every_column(product):
    product.block_rows = 7
    for column in range(6):
        x = random_vectors(40, 6)
        x[33, column] = np.nan
        with pytest.raises(DataError, match="row 33 of vectors holds NaN"):
            list(product.encode_blocks(as_source(x)))


def test_shorter_codes_take_the_first_steps_of_every_part(product):
    codes = product.encode(random_vectors(40, 6))
    for given in (codes, codes.codes, torch.from_numpy(codes.codes)):
        assert np.array_equal(product.prefix(given, 2), codes[:, [0, 1, 3, 4]])
    assert product.encode(random_vectors(40, 6), num_steps=1).shape == (40, 2)


@pytest.mark.parametrize("name", ["x.txt", "x", "x.bin"])
def test_codecs_are_saved_under_the_suffixes_of_codecs_and_read_by_content(tmp_path, codec, name):
    with pytest.raises(ConfigError, match="safetensors"):
        codec.save(tmp_path / name)
    codec.save(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / name)
    assert Codec.load(tmp_path / name).fingerprint() == codec.fingerprint()


def test_paths_of_codes_are_decoded(tmp_path, ivf):
    codes = ivf.encode(random_vectors(40, ivf.dim))
    for name in ("codes", "codes.npy"):
        codes.save(tmp_path / name, ivf)
        assert np.array_equal(ivf.decode(str(tmp_path / name)), ivf.decode(codes))
    with pytest.raises(DataError):
        ivf.decode([[1, 2, 3], [1]])


def test_the_alias_makes_and_loads_codecs(tmp_path, product):
    product.save(tmp_path / "x.safetensors")
    assert ProductCodec.load(tmp_path / "x.safetensors").fingerprint() == product.fingerprint()
    with pytest.raises(ConfigError, match="must divide the dimension 6, not 4"):
        ProductCodec.fit(random_vectors(40, 6), num_parts=4)


def test_an_interrupt_carries_the_codes_so_far(codec):
    x = random_vectors(1000, 3)
    codec.block_rows = 300

    def stop(stage, done, total, unit="vector"):
        if done >= 600:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        codec.encode(x, progress=stop)
    assert np.array_equal(caught.value.codes.codes, codec.encode(x).codes[:600])


@pytest.mark.parametrize("name", ["projected", "coarse"])
def test_a_block_is_encoded_in_parts_that_an_interrupt_keeps(name):
    codec = Codec(random_model(ARCHITECTURES[name]), EncodeOptions(num_pairs=6, beam_width=3))
    x, whole = random_vectors(300, codec.dim), Codec(codec.models, codec.encode_options)
    whole.block_rows = 64  # the first part, so that a block is encoded at once
    seen: list[int] = []

    def press(stage, done, *_, **fields):
        seen.append(done)
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        codec.encode(x, progress=press)
    expected, kept = whole.encode(x), caught.value.codes
    assert seen == [64] and len(kept) == 64
    assert np.array_equal(kept.codes, expected.codes[:64])
    found = codec.encode(x)
    assert np.array_equal(found.codes, expected.codes)
    assert not codec.is_ivf or np.array_equal(found.lists, expected.lists)
