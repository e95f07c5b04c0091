import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco.codec import Codec, ProductCodec
from qinco.codec.parts import PartRows
from qinco.codec.product import _SharedBlocks
from qinco.config import EncodeOptions
from qinco.errors import DataError
from qinco.vectors.rows import VectorSource, as_source

RULE = EncodeOptions(num_pairs=6, beam_width=3, precision="float32")
SMALL = {
    "num_steps": 2, "codebook_size": 8, "num_blocks": 1, "embed_dim": 4, "hidden_dim": 6, "num_pairs": 8,
    "beam_width": 2, "epochs": 2, "batch_size": 64, "precision": "float32", "device": "cpu",
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["plain", "rotated"])
def codec(request):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0].astype(np.float32)
    parts = [Codec(random_model(ARCHITECTURES["projected"], seed), RULE) for seed in range(2)]
    return ProductCodec(parts, rotation if request.param else None)


def rotated(codec, x):
    return x if codec.rotation_DD is None else x @ codec.rotation_DD.T


def test_each_part_encodes_its_columns(codec):
    x = random_vectors(40, 6)
    codes = codec.encode(x)
    assert (codes.dtype, codes.shape) == (np.uint8, (40, 6))
    assert (codec.dim, codec.code_size, codec.bytes_per_vector) == (6, 6, 1.5)
    y = rotated(codec, x)
    for i, part in enumerate(codec.parts):
        assert np.array_equal(codes[:, 3 * i : 3 * i + 3], part.encode(y[:, 3 * i : 3 * i + 3]))
    decoded = np.concatenate([codec.parts[i].decode(codes[:, 3 * i : 3 * i + 3]) for i in (0, 1)], 1)
    np.testing.assert_allclose(rotated(codec, codec.decode(codes)), decoded, rtol=1e-4, atol=1e-4)


def test_every_device_gives_the_same(tmp_path, codec, named_device, device):
    x = random_vectors(100, 6)
    codes, decoded = codec.encode(x), codec.decode(codec.encode(x))
    codec.save(tmp_path / "x")
    for placed in (ProductCodec.load(tmp_path / "x", named_device), codec.to(named_device)):
        assert {part.model.device.type for part in placed.parts} == {device.type}
        assert (placed.encode(x) == codes).all(1).mean() >= 0.99  # ties within rounding
        np.testing.assert_allclose(placed.decode(codes), decoded, rtol=1e-4, atol=1e-4)


def test_blocks_are_the_whole(codec):
    x = random_vectors(40, 6)
    codes, decoded = codec.encode(x), codec.decode(codec.encode(x))
    for part in codec.parts:
        part.block_rows = 7
    blocks = list(codec.encode_blocks(as_source(x)))
    assert [first for first, _, _ in blocks] == list(range(0, 40, 7))
    assert np.array_equal(np.concatenate([block for _, block, _ in blocks]), codes)
    np.testing.assert_allclose(
        np.concatenate([b for _, b in codec.decode_blocks(codes)]), decoded, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("block_rows", [7, 40, 100])
def test_every_block_is_read_once_for_all_parts(codec, block_rows):
    """However far one part is ahead of the others, and no block is kept when all have had it."""
    x, reads = random_vectors(100, 6), []
    ranges = [range(0, 30), range(30, 31), range(50, 100)]
    expected = np.concatenate([codec.encode(x[rows]) for rows in ranges])

    class Rows:
        shape, dtype = x.shape, x.dtype

        def __getitem__(self, key):
            reads.extend(range(*key.indices(len(x))))
            return x[key]

    for part in codec.parts:
        part.block_rows = block_rows
    blocks = list(codec.encode_blocks(VectorSource(Rows()), ranges=ranges))
    assert reads == [row for rows in ranges for row in rows]
    assert [row for first, codes, _ in blocks for row in range(first, first + len(codes))] == reads
    assert np.array_equal(np.concatenate([codes for _, codes, _ in blocks]), expected)


def test_a_block_is_kept_until_the_last_part_has_taken_it():
    x = random_vectors(20, 6)
    blocks = _SharedBlocks([PartRows(as_source(x), part, 3, None) for part in range(3)])
    for start in (0, 5):  # the first part is a block ahead
        assert np.array_equal(blocks.take(0, slice(start, start + 5)), x[start : start + 5, :2])
    for start in (0, 5):
        for part in (1, 2):
            taken = blocks.take(part, slice(start, start + 5))
            assert np.array_equal(taken, x[start : start + 5, 2 * part : 2 * part + 2])
    assert blocks._waiting == {}


def test_values_that_are_not_finite_are_found_in_every_part(codec):
    for column in range(6):
        x = random_vectors(40, 6)
        x[33, column] = np.nan
        for part in codec.parts:
            part.block_rows = 7
        with pytest.raises(DataError, match="row 33 of vectors holds NaN"):
            list(codec.encode_blocks(as_source(x)))


def test_shorter_codes_take_the_first_steps_of_every_part(codec):
    codes = codec.encode(random_vectors(40, 6))
    short = codec.prefix(codes, 2)
    assert np.array_equal(short, codes[:, [0, 1, 3, 4]])
    assert codec.decode(short).shape == (40, 6)
    assert codec.encode(random_vectors(40, 6), num_steps=1).shape == (40, 2)


@pytest.mark.parametrize("count", [0, 1])
def test_zero_and_one_vector(codec, count):
    codes = codec.encode(random_vectors(count, 6))
    assert codes.shape == (count, 6) and codec.decode(codes).shape == (count, 6)


def test_codes_may_be_lists_and_tensors(codec):
    codes = codec.encode(random_vectors(5, 6))
    assert np.array_equal(codec.decode(codes.tolist()), codec.decode(codes))
    assert np.array_equal(codec.decode(torch.from_numpy(codes)), codec.decode(codes))


def test_saved_codecs_are_the_same(codec, tmp_path):
    x = random_vectors(30, 6)
    codec.save(tmp_path / "x")
    loaded = ProductCodec.load(tmp_path / "x")
    codes = codec.encode(x)
    assert np.array_equal(loaded.encode(x, precision="float32"), codes)
    assert np.array_equal(loaded.decode(codes), codec.decode(codes))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0] * 5], "have 5 columns: 2 parts need as many each"),
        ([[0] * 8], "4 columns"),
        (np.empty((3, 0), np.uint8), "0 columns"),
        ([[0, 0, 0, 0, 0, 9]], "9"),
        ([0] * 6, "2-D integer array"),
        ([[0.5] * 6], "integer array"),
    ],
)
def test_wrong_codes_are_refused(codec, codes, message):
    with pytest.raises(DataError, match=message):
        codec.decode(codes)


def test_lists_and_wrong_vectors_are_refused(codec):
    with pytest.raises(DataError, match="lists were given"):
        codec.decode([[0] * 6], [0])
    with pytest.raises(DataError, match="have 3 dimensions, the codec was trained on 6"):
        codec.encode(random_vectors(4, 3))
    x = random_vectors(400, 6)
    x[300, 5] = np.nan
    with pytest.raises(DataError, match="row 300 of vectors holds NaN"):
        codec.encode(x)
