"""Decoding to a file gives what `decode` gives, however the work was interrupted and continued."""

import errno
import json
import shutil

import numpy as np
import pytest
from small_models import ARCHITECTURES, random_model

from qinco.codec import Codec
from qinco.codec.decode_file import DecodedPart, decode_file
from qinco.config import EncodeOptions
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.codes import Codes
from qinco.vectors.formats import FLOAT_SUFFIXES, VectorWriter, open_array, write_vectors

pytestmark = pytest.mark.usefixtures("no_thread_is_left")
RULE = EncodeOptions(num_pairs=8, beam_width=4, precision="float32")
COUNT, BLOCK_ROWS = 100, 16
PATIENCE = 60  # seconds, before a test that would wait for ever fails


def make_codec(name, seed=0):
    if name == "product":
        rotation_DD = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0].astype(np.float32)
        codec = Codec([random_model(ARCHITECTURES["projected"], part) for part in (0, 1)], RULE, None, rotation_DD)
    else:
        codec = Codec(random_model(ARCHITECTURES[name], seed), RULE)
    codec.block_rows = BLOCK_ROWS
    return codec


@pytest.fixture(params=["same width", "coarse", "product"])
def codec(request):
    return make_codec(request.param)


@pytest.fixture
def plain():
    return make_codec("same width")


def some_codes(codec, seed=0, count=COUNT):
    generator = np.random.default_rng(seed)
    codes_NM = generator.integers(0, codec.config.codebook_size, (count, codec.num_codes), dtype=np.uint8)
    lists_N1 = generator.integers(0, codec.config.num_lists, (count, 1)) if codec.is_ivf else None
    return Codes(codes_NM, lists_N1, "the codes")


def expected(codec, codes, prefix=None, precision="float32"):
    """What `decode` gives, in the same blocks."""
    columns = codes.codes if prefix is None else codec.prefix(codes.codes, prefix)
    lists = codes.lists
    parts = [slice(start, start + BLOCK_ROWS) for start in range(0, len(codes), BLOCK_ROWS)]
    blocks = [codec.decode(columns[p], None if lists is None else lists[p], precision=precision) for p in parts]
    return np.concatenate(blocks)


def decode(codec, codes, output, heard=lambda done: None, **settings):
    return decode_file(codec, codes, output, progress=lambda stage, done, *_, **fields: heard(done), **settings)


def interrupt_at(row):
    def heard(done):
        if done > row:
            raise KeyboardInterrupt

    return heard


def interrupted(codec, codes, output, row=50, **options):
    with pytest.raises(KeyboardInterrupt):
        decode(codec, codes, output, heard=interrupt_at(row), **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", FLOAT_SUFFIXES)
@pytest.mark.parametrize("count", [1, BLOCK_ROWS, COUNT])
def test_it_is_what_decode_gives(tmp_path, codec, suffix, count):
    codes, seen = some_codes(codec, count=count), []
    decode(codec, codes, tmp_path / f"x{suffix}", heard=seen.append)
    there = open_array(tmp_path / f"x{suffix}")
    assert there.dtype == np.float32
    assert np.array_equal(there, expected(codec, codes))
    assert seen == [0, *range(BLOCK_ROWS, count, BLOCK_ROWS), count]
    assert names(tmp_path) == [f"x{suffix}"]


def test_an_unknown_precision_is_refused(tmp_path, codec):
    with pytest.raises(ConfigError, match="int8"):
        decode(codec, some_codes(codec), tmp_path / "x.npy", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_prefix_and_precision(tmp_path, codec):
    codes = some_codes(codec)
    decode(codec, codes, tmp_path / "x.npy", num_steps=2, precision="bf16")
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(codec, codes, 2, "bf16"))


@pytest.mark.parametrize("suffix", FLOAT_SUFFIXES)
@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("row", [0, 40, COUNT - 1])
def test_it_goes_on_where_it_was_interrupted(tmp_path, codec, suffix, engine, row):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    codec, codes, seen = codec.with_options(codec.encode_options.override(engine=engine)), some_codes(codec), []
    codec.block_rows = BLOCK_ROWS
    decode(codec, codes, tmp_path / "whole" / f"x{suffix}")
    interrupted(codec, codes, tmp_path / "parts" / f"x{suffix}", row)
    assert names(tmp_path / "parts") == [f"x{suffix}.part", f"x{suffix}.part.json"]
    record = json.loads((tmp_path / "parts" / f"x{suffix}.part.json").read_text())
    assert record["rows"] > row
    assert record["rows"] % BLOCK_ROWS == 0 or record["rows"] == COUNT
    decode(codec, codes, tmp_path / "parts" / f"x{suffix}", resume=True, heard=seen.append)
    assert seen[0] == record["rows"]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_resuming_what_is_complete_checks_it(tmp_path, codec, monkeypatch):
    codes, seen = some_codes(codec), []
    output = tmp_path / "x.fvecs"
    decode(codec, codes, output, resume=True)
    before = output.read_bytes()
    (tmp_path / "x.fvecs.part.json").write_text("left by a kill")
    monkeypatch.setattr(DecodedPart, "append", None)
    decode(codec, codes, output, resume=True, heard=seen.append)
    assert seen == [COUNT]
    assert content(tmp_path) == {"x.fvecs": before}
    with pytest.raises(ConfigError, match=r"x.fvecs exists: give overwrite=true"):
        decode(codec, codes, output)
    wrong = r"x\.fvecs holds other vectors"
    with pytest.raises(ConfigError, match=wrong):
        decode(codec, some_codes(codec, 1), output, resume=True)
    with pytest.raises(ConfigError, match=wrong):
        decode(codec, codes, output, num_steps=1, resume=True)
    with pytest.raises(ConfigError, match=r"holds float32 \(100, .\), not float32 \(7, "):
        decode(codec, some_codes(codec, count=7), output, resume=True)
    assert content(tmp_path) == {"x.fvecs": before}


def test_what_is_there_is_not_replaced_unasked(tmp_path, plain):
    codes, output = some_codes(plain), tmp_path / "x.npy"
    interrupted(plain, codes, output)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"x\.npy\.part holds \d+ of 100 vectors"):
        decode(plain, codes, output)
    for difference, other in {
        "another codec": {"codec": make_codec("same width", 1)},
        "other codes": {"codes": some_codes(plain, 1)},
        "num_vectors=100 there, 7 here; other codes": {"codes": some_codes(plain, count=7)},
        "prefix=3 there, 2 here": {"num_steps": 2},
        "precision=float32 there, bf16 here": {"precision": "bf16"},
        "engine=auto there, torch here": {"codec": plain.with_options(RULE.override(engine="torch"))},
    }.items():
        for resume in (False, True):
            message = rf"x\.npy\.part .*{difference}"
            with pytest.raises(ConfigError, match=message):
                decode(**{"codec": plain, "codes": codes, "output": output, "resume": resume} | other)
    assert content(tmp_path) == before
    decode(plain, some_codes(plain, 1), output, overwrite=True)
    assert np.array_equal(np.load(output), expected(plain, some_codes(plain, 1)))
    assert names(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_has_decoded_nothing_is_replaced(tmp_path, plain, monkeypatch, resume):
    with monkeypatch.context() as patched:
        patched.setattr(plain, "decode_blocks", lambda *given: shutil.copytree(tmp_path, tmp_path / "killed") / 0)
        with pytest.raises(TypeError):
            decode(plain, some_codes(plain, 1), tmp_path / "x.npy")
    killed = tmp_path / "killed"
    assert names(tmp_path) == ["killed"] and names(killed) == ["x.npy.part", "x.npy.part.json"]
    decode(plain, some_codes(plain), killed / "x.npy", resume=resume)
    assert np.array_equal(np.load(killed / "x.npy"), expected(plain, some_codes(plain)))


def test_the_old_output_is_there_until_the_new_one_is(tmp_path, plain):
    output = tmp_path / "x.npy"
    decode(plain, some_codes(plain), output)
    interrupted(plain, some_codes(plain, 1), output, overwrite=True)
    assert np.array_equal(np.load(output), expected(plain, some_codes(plain)))
    decode(plain, some_codes(plain, 1), output, resume=True)
    assert np.array_equal(np.load(output), expected(plain, some_codes(plain, 1)))


@pytest.mark.parametrize("resume", [False, True])
def test_files_of_others_are_not_touched(tmp_path, plain, resume):
    (tmp_path / "x.npy.part").write_text("not ours")
    with pytest.raises(ConfigError, match=r"x\.npy\.part\.json"):
        decode(plain, some_codes(plain), tmp_path / "x.npy", resume=resume)
    assert content(tmp_path) == {"x.npy.part": b"not ours"}


def test_wrong_codes_leave_nothing(tmp_path, plain):
    codes = some_codes(plain, count=1000)
    for row in (999, 7):  # one is of the sample
        codes.codes[row, 1] = 4
        with pytest.raises(DataError, match=rf"the codes .*row {row}, column 1 is 4"):
            decode(plain, codes, tmp_path / "x.npy")
    assert names(tmp_path) == []
    for wrong in (codes.codes / 2, codes.codes[:, 0]):
        with pytest.raises(DataError, match="integer array"):
            decode(plain, wrong, tmp_path / "x.npy")
    assert names(tmp_path) == []


def test_outputs_that_cannot_be(tmp_path, plain):
    codes = some_codes(plain)
    with pytest.raises(ConfigError, match=r"x\.bvecs"):
        decode(plain, codes, tmp_path / "x.bvecs")
    (tmp_path / "codes").mkdir()
    with pytest.raises(ConfigError, match=r"lies in .*codes"):
        decode(plain, codes, tmp_path / "codes" / "x.npy", inputs=[tmp_path / "codes"])
    with pytest.raises(ConfigError, match=r"x\.npy is read"):
        decode(plain, codes, tmp_path / "x.npy", inputs=[tmp_path / "x.npy"])
    (tmp_path / "x.npy.part").mkdir()
    with pytest.raises(ResourceError, match=r"cannot write .*x.npy.part: Is a directory"):
        decode(plain, codes, tmp_path / "x.npy")
    assert names(tmp_path) == ["codes", "x.npy.part"]


@pytest.mark.parametrize("block", range(-(-COUNT // BLOCK_ROWS)))
def test_a_full_disk_is_reported_and_the_rest_can_be_resumed(tmp_path, plain, monkeypatch, block):
    append, seen = VectorWriter.append, []

    def full(writer, block_ND):
        if writer.rows_written == block * BLOCK_ROWS:
            writer._file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        append(writer, block_ND)

    with monkeypatch.context() as patched:
        patched.setattr(VectorWriter, "append", full)
        with pytest.raises(ResourceError, match=r"x\.fbin\.part: No space left.* resume=true"):
            decode(plain, some_codes(plain), tmp_path / "x.fbin")
    decode(plain, some_codes(plain), tmp_path / "x.fbin", resume=True, heard=seen.append)
    assert seen[0] == block * BLOCK_ROWS
    assert np.array_equal(open_array(tmp_path / "x.fbin"), expected(plain, some_codes(plain)))
    assert names(tmp_path) == ["x.fbin"]


@pytest.mark.parametrize("form", ["codes", "codes.npz", "codes.ivecs", "codes.raw"])
def test_the_same_codes_in_another_form_are_the_same_work(tmp_path, form):
    codec = make_codec("coarse")
    codes = some_codes(codec)
    interrupted(codec, codes, tmp_path / "x.npy")
    codes.save(tmp_path / form, codec)
    decode(codec, tmp_path / form, tmp_path / "x.npy", resume=True)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(codec, codes))


def test_codes_and_lists_may_be_arrays_or_paths(tmp_path):
    codec = make_codec("coarse")
    codes = some_codes(codec)
    np.save(tmp_path / "codes.npy", codes.codes)
    np.save(tmp_path / "lists", codes.lists)
    decode(codec, codes.codes, tmp_path / "a.npy", lists=codes.lists)
    done = decode(codec, tmp_path / "codes.npy", tmp_path / "b.npy", lists=tmp_path / "lists.npy")
    assert (done.num_vectors, done.num_done, done.complete) == (COUNT, COUNT, True)
    for name in ("a.npy", "b.npy"):
        assert np.array_equal(np.load(tmp_path / name), expected(codec, codes))
    with pytest.raises(ConfigError, match=r"codes\.npy is read"):
        decode(codec, tmp_path / "codes.npy", tmp_path / "codes.npy", lists=tmp_path / "lists.npy", overwrite=True)
    write_vectors(tmp_path / "none.npy", codes.codes[:0])
    with pytest.raises(DataError, match=r"none\.npy"):
        decode(codec, Codes.load(tmp_path / "none.npy"), tmp_path / "c.npy")
