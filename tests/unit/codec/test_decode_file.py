"""Decoding to a file gives what `decode` gives, however the work was interrupted and continued."""

import errno
import json
import threading

import numpy as np
import pytest
from small_models import ARCHITECTURES, random_model

from qinco.codec import Codec, ProductCodec
from qinco.codec.decode_file import SUFFIXES, decode_file, open_codes
from qinco.config import EncodeOptions
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store import decoded_part
from qinco.store.code_files import EncodedSet, write_encoded_set
from qinco.store.decoded_part import DecodedPart
from qinco.vectors.formats import VectorWriter, open_array, write_vectors

RULE = EncodeOptions(num_pairs=8, beam_width=4, precision="float32")
COUNT, BLOCK_ROWS = 100, 16
PATIENCE = 60  # seconds, before a test that would wait for ever fails


def make_codec(name, seed=0):
    if name == "product":
        rotation_DD = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0].astype(np.float32)
        codec = ProductCodec([Codec(random_model(ARCHITECTURES["projected"], part), RULE) for part in (0, 1)])
        codec.rotation_DD = rotation_DD
    else:
        codec = Codec(random_model(ARCHITECTURES[name], seed), RULE)
    for part in codec.parts if name == "product" else [codec]:
        part.block_rows = BLOCK_ROWS
    return codec


@pytest.fixture(params=["same width", "coarse", "product"])
def codec(request):
    return make_codec(request.param)


@pytest.fixture
def plain():
    return make_codec("same width")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


def some_codes(codec, seed=0, count=COUNT):
    generator = np.random.default_rng(seed)
    codes_NM = generator.integers(0, codec.config.codebook_size, (count, codec.code_size), dtype=np.uint8)
    lists_N1 = generator.integers(0, codec.config.num_lists, (count, 1)) if codec.is_ivf else None
    return EncodedSet(codes_NM, lists_N1, "the codes")


def expected(codec, codes, prefix=None, precision="float32"):
    """What `decode` gives, in the same blocks."""
    columns = codes.codes if prefix is None else codec.prefix(codes.codes, prefix)
    lists = None if codes.lists is None else codes.lists[:, 0]
    parts = [slice(start, start + BLOCK_ROWS) for start in range(0, len(codes), BLOCK_ROWS)]
    blocks = [codec.decode(columns[p], None if lists is None else lists[p], precision=precision) for p in parts]
    return np.concatenate(blocks)


def interrupt_at(row):
    def on_progress(done):
        if done > row:
            raise KeyboardInterrupt

    return on_progress


def interrupted(codec, codes, output, row=50, **options):
    with pytest.raises(KeyboardInterrupt):
        decode_file(codec, codes, output, on_progress=interrupt_at(row), **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [1, BLOCK_ROWS, COUNT])
def test_it_is_what_decode_gives(tmp_path, codec, suffix, count):
    codes, seen = some_codes(codec, count=count), []
    decode_file(codec, codes, tmp_path / f"x{suffix}", on_progress=seen.append)
    there = open_array(tmp_path / f"x{suffix}")
    assert there.dtype == np.float32
    assert np.array_equal(there, expected(codec, codes))
    assert seen == [0, *range(BLOCK_ROWS, count, BLOCK_ROWS), count]
    assert names(tmp_path) == [f"x{suffix}"]


def test_prefix_and_precision(tmp_path, codec):
    codes = some_codes(codec)
    decode_file(codec, codes, tmp_path / "x.npy", prefix=2, precision="bf16")
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(codec, codes, 2, "bf16"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("row", [0, 40, COUNT - 1])
def test_it_goes_on_where_it_was_interrupted(tmp_path, codec, suffix, engine, row):
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    codec, codes, seen = codec.with_options(codec.encode_options.override(engine=engine)), some_codes(codec), []
    for part in codec.parts if isinstance(codec, ProductCodec) else [codec]:
        part.block_rows = BLOCK_ROWS
    decode_file(codec, codes, tmp_path / "whole" / f"x{suffix}")
    interrupted(codec, codes, tmp_path / "parts" / f"x{suffix}", row)
    assert names(tmp_path / "parts") == [f"x{suffix}.part", f"x{suffix}.part.json"]
    record = json.loads((tmp_path / "parts" / f"x{suffix}.part.json").read_text())
    assert record["rows"] > row
    assert record["rows"] % BLOCK_ROWS == 0 or record["rows"] == COUNT
    decode_file(codec, codes, tmp_path / "parts" / f"x{suffix}", resume=True, on_progress=seen.append)
    assert seen[0] == record["rows"]
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_what_a_kill_left_behind_the_recorded_vectors_is_written_again(tmp_path, plain):
    codes = some_codes(plain)
    interrupted(plain, codes, tmp_path / "x.npy")
    with (tmp_path / "x.npy.part").open("ab") as file:
        file.write(b"half a block")
    decode_file(plain, codes, tmp_path / "x.npy", resume=True)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(plain, codes))


def test_the_record_is_written_while_it_works(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(decoded_part, "_SECONDS_BETWEEN_RECORDS", 0)
    seen = []

    def look(done):
        seen.append((done, json.loads((tmp_path / "x.npy.part.json").read_text())["rows"]))

    decode_file(plain, some_codes(plain), tmp_path / "x.npy", on_progress=look)
    assert all(recorded >= done for done, recorded in seen)
    assert len(seen) == 1 + -(-COUNT // BLOCK_ROWS)


def test_what_was_decoded_in_bf16_is_not_float32(tmp_path, plain):
    codes, output = some_codes(plain), tmp_path / "x.fvecs"
    plain = plain.with_options(RULE.override(engine="torch"))  # which rounds to bf16 on every processor
    decode_file(plain, codes, output, precision="bf16")
    decode_file(plain, codes, output, precision="bf16", resume=True)
    with pytest.raises(ConfigError, match="holds other vectors than"):
        decode_file(plain, codes, output, precision="float32", resume=True)


def test_resuming_what_is_complete_checks_it(tmp_path, codec, monkeypatch):
    codes, seen = some_codes(codec), []
    output = tmp_path / "x.fvecs"
    decode_file(codec, codes, output, resume=True)
    before = output.read_bytes()
    (tmp_path / "x.fvecs.part.json").write_text("left by a kill")
    monkeypatch.setattr(DecodedPart, "append", None)
    decode_file(codec, codes, output, resume=True, on_progress=seen.append)
    assert seen == [COUNT]
    assert content(tmp_path) == {"x.fvecs": before}
    with pytest.raises(ConfigError, match=r"x.fvecs exists: give overwrite=true"):
        decode_file(codec, codes, output)
    wrong = "holds other vectors than .* decode the codes to: give overwrite=true without resume"
    with pytest.raises(ConfigError, match=wrong):
        decode_file(codec, some_codes(codec, 1), output, resume=True)
    with pytest.raises(ConfigError, match=wrong):
        decode_file(codec, codes, output, prefix=1, resume=True)
    with pytest.raises(ConfigError, match=r"holds float32 \(100, .\), not float32 \(7, "):
        decode_file(codec, some_codes(codec, count=7), output, resume=True)
    assert content(tmp_path) == {"x.fvecs": before}


def test_what_is_there_is_not_replaced_unasked(tmp_path, plain):
    codes, output = some_codes(plain), tmp_path / "x.npy"
    interrupted(plain, codes, output)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"x.npy.part holds \d+ of 100 vectors: give resume=true .* overwrite=true"):
        decode_file(plain, codes, output)
    for difference, other in {
        "another codec": {"codec": make_codec("same width", 1)},
        "other codes": {"codes": some_codes(plain, 1)},
        "num_vectors 100 there, 7 here; other codes": {"codes": some_codes(plain, count=7)},
        "prefix 3 there, 2 here": {"prefix": 2},
        "precision float32 there, bf16 here": {"precision": "bf16"},
        "engine auto there, torch here": {"codec": plain.with_options(RULE.override(engine="torch"))},
    }.items():
        for resume in (False, True):
            message = rf"x.npy.part holds vectors of another run \({difference}\): repeat it .* overwrite=true"
            with pytest.raises(ConfigError, match=message):
                decode_file(**{"codec": plain, "codes": codes, "output": output, "resume": resume} | other)
    assert content(tmp_path) == before
    decode_file(plain, some_codes(plain, 1), output, overwrite=True)
    assert np.array_equal(np.load(output), expected(plain, some_codes(plain, 1)))
    assert names(tmp_path) == ["x.npy"]


def test_a_shorter_code_is_the_same_work_as_all_its_steps(tmp_path, plain):
    codes = some_codes(plain)
    interrupted(plain, codes, tmp_path / "x.npy")
    decode_file(plain, codes, tmp_path / "x.npy", prefix=plain.code_size, resume=True)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(plain, codes))


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_has_decoded_nothing_is_replaced(tmp_path, plain, monkeypatch, resume):
    with monkeypatch.context() as patched:
        patched.setattr(plain, "decode_blocks", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decode_file(plain, some_codes(plain, 1), tmp_path / "x.npy")
    assert names(tmp_path) == ["x.npy.part", "x.npy.part.json"]
    decode_file(plain, some_codes(plain), tmp_path / "x.npy", resume=resume)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(plain, some_codes(plain)))


def test_the_old_output_is_there_until_the_new_one_is(tmp_path, plain):
    output = tmp_path / "x.npy"
    decode_file(plain, some_codes(plain), output)
    interrupted(plain, some_codes(plain, 1), output, overwrite=True)
    assert np.array_equal(np.load(output), expected(plain, some_codes(plain)))
    decode_file(plain, some_codes(plain, 1), output, resume=True)
    assert np.array_equal(np.load(output), expected(plain, some_codes(plain, 1)))


def test_a_link_stays_one(tmp_path, plain):
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / "x.npy"
    output.symlink_to(tmp_path / "elsewhere" / "y.data")
    interrupted(plain, some_codes(plain), output)
    assert names(tmp_path / "elsewhere") == ["y.data.part", "y.data.part.json"]
    decode_file(plain, some_codes(plain), output, resume=True)
    assert output.is_symlink()
    assert np.array_equal(np.load(output), expected(plain, some_codes(plain)))
    assert names(tmp_path / "elsewhere") == ["y.data"]


@pytest.mark.parametrize("resume", [False, True])
def test_files_of_others_are_not_touched(tmp_path, plain, resume):
    (tmp_path / "x.npy.part").write_text("not ours")
    with pytest.raises(ConfigError, match=r"x.npy.part is there without its x.npy.part.json .* remove it"):
        decode_file(plain, some_codes(plain), tmp_path / "x.npy", resume=resume)
    assert content(tmp_path) == {"x.npy.part": b"not ours"}


def test_wrong_codes_leave_nothing(tmp_path, plain):
    codes = some_codes(plain, count=1000)
    for row in (999, 7):  # one is of the sample
        codes.codes[row, 1] = 4
        with pytest.raises(DataError, match=rf"the codes: .*row {row}, column 1 is 4"):
            decode_file(plain, codes, tmp_path / "x.npy")
    assert names(tmp_path) == []
    for wrong in (codes.codes / 2, codes.codes[:, 0]):
        with pytest.raises(DataError, match="the codes: "):
            decode_file(plain, EncodedSet(wrong, name="the codes"), tmp_path / "x.npy")
    assert names(tmp_path) == []


def test_outputs_that_cannot_be(tmp_path, plain):
    codes = some_codes(plain)
    with pytest.raises(ConfigError, match=r"vectors are written to \.npy, \.fvecs, \.fbin files"):
        decode_file(plain, codes, tmp_path / "x.bvecs")
    (tmp_path / "codes").mkdir()
    with pytest.raises(ConfigError, match=r"lies in .*codes, which is read"):
        decode_file(plain, codes, tmp_path / "codes" / "x.npy", inputs=[tmp_path / "codes"])
    with pytest.raises(ConfigError, match="is read and would be replaced"):
        decode_file(plain, codes, tmp_path / "x.npy", inputs=[tmp_path / "x.npy"])
    (tmp_path / "x.npy.part").mkdir()
    with pytest.raises(ResourceError, match=r"cannot write .*x.npy.part: Is a directory"):
        decode_file(plain, codes, tmp_path / "x.npy")
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
        with pytest.raises(ResourceError, match=r"x.fbin.part: No space left on device; .* resume=true continues"):
            decode_file(plain, some_codes(plain), tmp_path / "x.fbin")
    decode_file(plain, some_codes(plain), tmp_path / "x.fbin", resume=True, on_progress=seen.append)
    assert seen[0] == block * BLOCK_ROWS
    assert np.array_equal(open_array(tmp_path / "x.fbin"), expected(plain, some_codes(plain)))
    assert names(tmp_path) == ["x.fbin"]


def test_a_block_is_written_while_the_next_is_decoded(tmp_path, plain, monkeypatch):
    decoded, count = [threading.Event() for _ in range(-(-COUNT // BLOCK_ROWS) + 1)], 0
    append, decode_blocks = DecodedPart.append, plain.decode_blocks

    def held(part, block_ND):
        number = part._writer.rows_written // BLOCK_ROWS
        assert decoded[number + 1].wait(PATIENCE) or number == len(decoded) - 2
        return append(part, block_ND)

    def counted(*given):
        nonlocal count
        for item in decode_blocks(*given):
            decoded[count].set()
            count += 1
            yield item
        if count == len(decoded) - 1:
            decoded[count].set()

    monkeypatch.setattr(DecodedPart, "append", held)
    monkeypatch.setattr(plain, "decode_blocks", counted)
    decode_file(plain, some_codes(plain), tmp_path / "x.npy")
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(plain, some_codes(plain)))


def test_open_codes(tmp_path, plain):
    codes = some_codes(plain)
    write_encoded_set(tmp_path / "codes.raw", codes, plain.config.codebook_size, plain.dim)
    found = open_codes(plain, tmp_path / "codes.raw")
    assert (len(found), found.name) == (COUNT, str(tmp_path / "codes.raw"))
    write_vectors(tmp_path / "none.npy", codes.codes[:0])
    with pytest.raises(DataError, match=r"none.npy holds no codes"):
        open_codes(plain, tmp_path / "none.npy")


@pytest.mark.parametrize("form", ["codes.npz", "codes.ivecs", "codes.raw"])
def test_the_same_codes_in_another_form_are_the_same_work(tmp_path, form):
    codec = make_codec("coarse")
    codes = some_codes(codec)
    interrupted(codec, codes, tmp_path / "x.npy")
    write_encoded_set(tmp_path / form, codes, codec.config.codebook_size, codec.dim)
    decode_file(codec, open_codes(codec, tmp_path / form), tmp_path / "x.npy", resume=True)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(codec, codes))
