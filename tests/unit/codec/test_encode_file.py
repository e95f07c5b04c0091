"""Encoding to files and folders gives what `encode` gives, however the work was cut, shared and interrupted."""

import errno
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco import atomic as files
from qinco.codec import Codec, encode_place
from qinco.codec import encode_file as module
from qinco.codec.encode_file import Share, encode_file
from qinco.compat import encoded_sets as npz
from qinco.config import EncodeOptions
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.code_files import open_encoded_set
from qinco.store.code_store import CodeStore
from qinco.vectors.formats import write_vectors
from qinco.vectors.rows import VectorSource, as_source, open_vectors

RULE = EncodeOptions(num_pairs=8, beam_width=4, precision="float32")
FILES = ["codes.npy", "codes.ivecs", "codes.raw", "codes.npz"]
FORMS = ["codes", *FILES]
COUNT, SHARD_ROWS = 300, 64
PATIENCE = 60  # seconds, before a test that would wait for ever fails


def make_codec(name, seed=0):
    if name != "product":
        return Codec(random_model(ARCHITECTURES[name], seed), RULE)
    rotation_DD = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0].astype(np.float32)
    return Codec([random_model(ARCHITECTURES["projected"], seed + part) for part in range(2)], RULE, None, rotation_DD)


@pytest.fixture(params=["same width", "coarse", "product"])
def codec(request):
    return make_codec(request.param)


@pytest.fixture
def coarse():
    return make_codec("coarse")


@pytest.fixture
def plain():
    return make_codec("same width")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "shard_rows", lambda num_vectors: SHARD_ROWS)
    monkeypatch.setattr(npz, "_PART_ROWS", 128)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.enumerate()
    yield
    assert threading.enumerate() == before


@pytest.fixture
def hold_writing(monkeypatch):
    """A function `hold(shard, event, fails)`: writing that shard waits for an event, and then fails if it is to."""
    held, write = {}, CodeStore.write

    def write_held(store, shard, *codes):
        event, error = held.get(shard, (None, None))
        assert event is None or event.wait(PATIENCE), "the next shard is not encoded meanwhile"
        if error is not None:
            raise error
        write(store, shard, *codes)

    monkeypatch.setattr(CodeStore, "write", write_held)
    return lambda shard, event, error=None: held.update({shard: (event, error)})


def vectors(codec, count=COUNT, seed=0):
    return as_source(random_vectors(count, codec.dim, seed), "the vectors")


def content(folder):
    """All files below a folder, as bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def check(path, codec, source):
    """The output holds what `encode` gives."""
    encoded = codec.encode(source)
    codes, lists = encoded.codes, encoded.lists
    found = open_encoded_set(path, codec.num_codes, codec.config.codebook_size, codec.is_ivf)
    for start, (codes_NM, lists_N) in zip(range(0, len(source), 50), found.blocks(50), strict=True):
        assert np.array_equal(codes_NM, codes[start : start + 50])
        assert lists is None or np.array_equal(lists_N, lists[start : start + 50])


def interrupt_at(row):
    def on_progress(done):
        if done > row:
            raise KeyboardInterrupt

    return on_progress


def fails(*args, **kwargs):
    raise AssertionError("encodes again")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, SHARD_ROWS, COUNT])
def test_it_is_what_encode_gives(tmp_path, codec, form, count):
    source, seen = vectors(codec, count), []
    codec.block_rows = 50
    assert encode_file(codec, source, tmp_path / form, on_progress=seen.append)
    check(tmp_path / form, codec, source)
    assert seen[0] == 0
    assert seen[-1] == count
    assert seen == sorted(seen)
    expected = {form}
    if form == "codes.npz":
        expected |= {f"codes.part_{number}.npz" for number in range(-(-count // 128))}
    elif form != "codes" and codec.is_ivf:
        expected |= {"codes.lists.npy"}
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("form", [form for form in FORMS if form != "codes.ivecs"])
def test_no_vectors_give_no_codes(tmp_path, codec, form):
    source = vectors(codec, 0)
    assert encode_file(codec, source, tmp_path / form)
    check(tmp_path / form, codec, source)
    assert encode_file(codec, source, tmp_path / form, resume=True)
    assert encode_file(codec, source, tmp_path / form, overwrite=True)
    check(tmp_path / form, codec, source)


def test_shards_and_manifest_are_the_same_each_time(tmp_path, codec):
    for name in ("a", "b"):
        assert encode_file(codec, vectors(codec), tmp_path / name)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 1 + (10 if codec.is_ivf else 5)


def test_another_search_rule_may_be_given(tmp_path, plain):
    rule = EncodeOptions(num_candidates=1, precision="float32")
    assert encode_file(plain, vectors(plain), tmp_path / "codes.npy", rule)
    expected = plain.encode(vectors(plain), num_candidates=1, beam_width=1)
    assert np.array_equal(np.load(tmp_path / "codes.npy"), expected)
    assert not np.array_equal(expected, plain.encode(vectors(plain)))


# What is there already


@pytest.mark.parametrize("form", FORMS)
def test_what_exists_is_not_touched_unless_that_is_asked_for(tmp_path, coarse, form):
    source, other = vectors(coarse), vectors(coarse, seed=1)
    assert encode_file(coarse, source, tmp_path / form)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="overwrite=true"):
        encode_file(coarse, source, tmp_path / form)
    assert content(tmp_path) == before
    assert encode_file(coarse, source, tmp_path / form, overwrite=True)
    assert content(tmp_path) == before
    assert encode_file(coarse, other, tmp_path / form, overwrite=True)
    check(tmp_path / form, coarse, other)
    assert content(tmp_path).keys() == before.keys()
    assert content(tmp_path) != before


@pytest.mark.parametrize("form", FORMS)
def test_a_finished_output_is_resumed_without_work(tmp_path, monkeypatch, codec, form):
    source = vectors(codec)
    assert encode_file(codec, source, tmp_path / form, resume=True)  # of nothing: a beginning
    before = content(tmp_path)
    monkeypatch.setattr(module, "write_encoded_set", fails)
    assert encode_file(codec, source, tmp_path / form, resume=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", [0, SHARD_ROWS, SHARD_ROWS + 1, COUNT - 1])
def test_ctrl_c_keeps_the_finished_shards(tmp_path, coarse, form, row):
    source, seen = vectors(coarse), []
    with pytest.raises(KeyboardInterrupt):
        encode_file(coarse, source, tmp_path / form, on_progress=interrupt_at(row))
    kept = row // SHARD_ROWS * SHARD_ROWS
    folder = tmp_path / (form if form == "codes" else f"{form}.shards")
    shards = {path.name: path.read_bytes() for path in folder.glob("codes-*.npy")}
    assert len(shards) == kept // SHARD_ROWS
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    if shards:
        with pytest.raises(ConfigError, match=rf"holds {len(shards)} of 5 shards: give resume=true"):
            encode_file(coarse, source, tmp_path / form)
    with pytest.raises(DataError, match="is not complete|is missing" if form == "codes" else "does not exist|No such"):
        open_encoded_set(tmp_path / form, coarse.num_codes, 4, coarse.is_ivf)
    assert encode_file(coarse, source, tmp_path / form, resume=True, on_progress=seen.append)
    assert (seen[0], seen[-1]) == (kept, COUNT)
    check(tmp_path / form, coarse, source)
    (tmp_path / "whole").mkdir()
    assert encode_file(coarse, source, tmp_path / "whole" / form)
    whole = content(tmp_path / "whole")
    assert content(tmp_path) == whole | {f"whole/{name}": data for name, data in whole.items()}


@pytest.mark.parametrize("form", FORMS)
def test_the_work_of_another_run_is_not_resumed(tmp_path, codec, form):
    source = vectors(codec)
    with pytest.raises(KeyboardInterrupt):
        encode_file(codec, source, tmp_path / form, on_progress=interrupt_at(100))
    before = content(tmp_path)
    name = "product" if len(codec.models) > 1 else "coarse" if codec.is_ivf else "same width"
    changed = source[:]
    changed[-1, -1] += 1
    for arguments in (
        (make_codec(name, 7), source),
        (codec, as_source(changed)),
        (codec, vectors(codec, COUNT - 1)),
        (codec, source, EncodeOptions(num_pairs=7, beam_width=4, precision="float32")),
        (codec, source, EncodeOptions(num_pairs=8, beam_width=4)),
    ):
        codec_here, *rest = arguments
        for resume in (True, False):
            with pytest.raises(ConfigError, match="holds codes of another run"):
                encode_file(codec_here, rest[0], tmp_path / form, *rest[1:], resume=resume)
    assert content(tmp_path) == before
    assert encode_file(codec, vectors(codec, 200, 3), tmp_path / form, overwrite=True)
    check(tmp_path / form, codec, vectors(codec, 200, 3))


@pytest.mark.parametrize("form", FILES)
def test_a_finished_file_of_another_run_is_not_taken_for_this_one(tmp_path, codec, form):
    """It does not say of which codec it is: some vectors are encoded again."""
    source = vectors(codec)
    assert encode_file(codec, source, tmp_path / form)
    before = content(tmp_path)
    name = "product" if len(codec.models) > 1 else "coarse" if codec.is_ivf else "same width"
    for codec_here, here, message in (
        (make_codec(name, 7), source, "other codes than this model"),
        (codec, vectors(codec, seed=1), "other codes than this model"),
        (codec, vectors(codec, COUNT - 1), r"holds codes of shape \(300, "),
    ):
        with pytest.raises(ConfigError, match=message):
            encode_file(codec_here, here, tmp_path / form, resume=True)
    assert content(tmp_path) == before


def test_a_damaged_output_is_not_resumed(tmp_path, plain):
    for form in FILES:
        assert encode_file(plain, vectors(plain), tmp_path / form)
        (tmp_path / form).write_bytes((tmp_path / form).read_bytes()[:-7])
        with pytest.raises((DataError, ConfigError)):
            encode_file(plain, vectors(plain), tmp_path / form, resume=True)


def test_a_folder_with_other_things_is_refused(tmp_path, plain):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes.npy.shards").mkdir()
    for name in ("codes", "codes.npy.shards"):
        (tmp_path / name / "photo.jpg").write_text("mine")
    before = content(tmp_path)
    for form in ("codes", "codes.npy"):
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match="has other things in it than codes"):
                encode_file(plain, vectors(plain), tmp_path / form, **options)
    assert content(tmp_path) == before


def test_overwriting_removes_its_own_files_only(tmp_path, plain):
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    own = content(tmp_path / "codes")
    foreign = ["codes-old.npy", "notes", ".codes-00000.npy", "codes-0.npy", "manifest.json.bak"]
    for name in foreign:
        (tmp_path / "codes" / name).write_text("mine")
    (tmp_path / ".codes.done").mkdir()  # what the shards of a file would be called
    (tmp_path / ".codes.done" / "x").write_text("mine")
    assert encode_file(plain, vectors(plain, 100), tmp_path / "codes", overwrite=True)
    assert {name for name, data in content(tmp_path / "codes").items() if data == b"mine"} == set(foreign)
    assert set(content(tmp_path / "codes")) == {"codes-00000.npy", "codes-00001.npy", "manifest.json", *foreign}
    assert (tmp_path / ".codes.done" / "x").exists()
    assert encode_file(plain, vectors(plain), tmp_path / "codes", overwrite=True)
    assert {name: data for name, data in content(tmp_path / "codes").items() if data != b"mine"} == own


def test_a_damaged_folder_is_not_cleared(tmp_path, plain):
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    (tmp_path / "codes" / "manifest.json").write_text('{"kind": "other"}')
    before = content(tmp_path)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(DataError, match="holds no codes"):
            encode_file(plain, vectors(plain), tmp_path / "codes", **options)
    assert content(tmp_path) == before


def test_what_a_killed_process_left_does_not_stand_in_the_way(tmp_path, plain):
    """The moments between the first file of a folder and its manifest, and after the file was made."""
    for name in ("codes", "codes.npy.shards"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".manifest.123-0123abcd.json").write_text("{")
    (tmp_path / "codes" / ".lock").touch()
    (tmp_path / ".codes.npy.shards.lock").touch()
    (tmp_path / ".codes.npy.shards.done").mkdir()
    (tmp_path / ".codes.npy.shards.done" / "codes-00000.npy").write_text("left")
    (tmp_path / ".codes.123-0123abcd.npy").write_text("left")
    for form in ("codes", "codes.npy"):
        assert encode_file(plain, vectors(plain), tmp_path / form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes", "codes.npy"]
    assert sorted(content(tmp_path / "codes")) == [*(f"codes-0000{shard}.npy" for shard in range(5)), "manifest.json"]


# Replacing a folder


@pytest.fixture(params=["exchanged", "renamed"])
def replacing(request, monkeypatch):
    """On a file system that can exchange names, and on one that cannot."""
    if request.param == "renamed":
        monkeypatch.setattr(encode_place, "_exchange", lambda one, other: False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def begin_to_replace(codec, output, seed=1):
    """Complete codes of the vectors of seed 0, and three shards of those that are to replace them."""
    assert encode_file(codec, vectors(codec), output)
    with pytest.raises(KeyboardInterrupt):
        encode_file(codec, vectors(codec, seed=seed), output, overwrite=True, on_progress=interrupt_at(3 * SHARD_ROWS))


def test_complete_codes_stay_until_the_new_ones_are_complete(tmp_path, coarse, replacing):
    source, other, seen = vectors(coarse), vectors(coarse, seed=1), []
    output = tmp_path / "many" / "codes"
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode_file(coarse, other, tmp_path / "one" / "codes")
    begin_to_replace(coarse, output)
    check(output, coarse, source)
    assert names(tmp_path / "many") == ["codes", "codes.shards"]
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=r"codes holds codes of another run"):
        encode_file(coarse, other, output)
    with pytest.raises(ConfigError, match=r"codes\.shards holds codes of another run"):
        encode_file(coarse, source, output, resume=True)
    assert content(tmp_path) == before
    assert encode_file(coarse, other, output, resume=True, on_progress=seen.append)
    assert (seen[0], seen[-1]) == (3 * SHARD_ROWS, COUNT)
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert names(tmp_path / "many") == ["codes"]


def test_replacing_begins_anew_without_resume(tmp_path, plain, replacing):
    begin_to_replace(plain, tmp_path / "codes")
    third, seen = vectors(plain, seed=2), []
    assert encode_file(plain, third, tmp_path / "codes", overwrite=True, on_progress=seen.append)
    assert (seen[0], seen[-1]) == (0, COUNT)
    check(tmp_path / "codes", plain, third)
    assert names(tmp_path) == ["codes"]


@pytest.mark.parametrize("form", FORMS)
def test_both_settings_replace_others_and_resume_the_same(tmp_path, coarse, form):
    """One command that can be repeated until it has succeeded."""
    source, other, seen = vectors(coarse), vectors(coarse, seed=1), []
    both = {"resume": True, "overwrite": True}
    assert encode_file(coarse, source, tmp_path / form)
    with pytest.raises(KeyboardInterrupt):
        encode_file(coarse, other, tmp_path / form, **both, on_progress=interrupt_at(3 * SHARD_ROWS))
    check(tmp_path / form, coarse, source)
    with pytest.raises(ConfigError, match=r"\.shards holds codes of another run"):
        encode_file(coarse, vectors(coarse, seed=2), tmp_path / form, **both)
    assert encode_file(coarse, other, tmp_path / form, **both, on_progress=seen.append)
    assert seen[0] == 3 * SHARD_ROWS
    check(tmp_path / form, coarse, other)
    done = content(tmp_path)
    assert encode_file(coarse, other, tmp_path / form, **both)
    assert content(tmp_path) == done
    assert not [name for name in names(tmp_path) if "shards" in name]


def test_the_same_codes_are_made_again_where_that_is_asked_for(tmp_path, plain, replacing):
    """As where a shard has been damaged: it is not taken for the new one."""
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    good = content(tmp_path)
    (tmp_path / "codes" / "codes-00001.npy").write_bytes(b"damaged")
    with pytest.raises(KeyboardInterrupt):
        encode_file(plain, vectors(plain), tmp_path / "codes", overwrite=True, on_progress=interrupt_at(100))
    assert encode_file(plain, vectors(plain), tmp_path / "codes", resume=True)
    assert content(tmp_path) == good


def test_values_that_are_not_finite_leave_the_old_codes(tmp_path, plain):
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    x = random_vectors(COUNT, 3, 1)
    x[201, 1] = np.nan
    with pytest.raises(DataError, match=r"row 201 of .*NaN"):
        encode_file(plain, as_source(x), tmp_path / "codes", overwrite=True)
    check(tmp_path / "codes", plain, vectors(plain))


def test_a_reader_of_the_old_codes_keeps_them_or_is_told(tmp_path, plain, replacing):
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    expected = plain.encode(vectors(plain))
    reader = CodeStore.open(tmp_path / "codes").codes
    mapped = reader[:SHARD_ROWS]
    assert encode_file(plain, vectors(plain, 200, 1), tmp_path / "codes", overwrite=True)
    assert np.array_equal(mapped, expected[:SHARD_ROWS])
    assert np.array_equal(reader[5:9], expected[5:9])
    for start in (SHARD_ROWS, 4 * SHARD_ROWS):
        with pytest.raises(DataError, match="codes was replaced by other codes while it was read: read it again"):
            reader[start : start + 3]


def test_other_things_stay_in_the_folder_that_is_replaced(tmp_path, plain, replacing):
    begin_to_replace(plain, tmp_path / "codes")
    (tmp_path / "codes" / "notes").write_text("mine")
    (tmp_path / "codes.shards" / "notes").write_text("new")
    (tmp_path / "codes" / "more").mkdir()
    (tmp_path / "codes" / "more" / "x").write_text("mine")
    assert encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", resume=True)
    there = content(tmp_path / "codes")
    assert (there["notes"], there["notes.old"], there["more/x"]) == (b"new", b"mine", b"mine")
    assert names(tmp_path) == ["codes"]


def test_a_link_to_a_folder_stays_one(tmp_path, plain, replacing):
    (tmp_path / "disk").mkdir()
    (tmp_path / "codes").symlink_to(tmp_path / "disk" / "set")
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    assert encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", overwrite=True)
    check(tmp_path / "codes", plain, vectors(plain, seed=1))
    assert (tmp_path / "codes").is_symlink()
    assert names(tmp_path / "disk") == ["set"]


def test_shares_go_on_with_a_replacement(tmp_path, plain):
    begin_to_replace(plain, tmp_path / "codes")
    results = [
        encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", share=Share(i, 2), resume=True) for i in range(2)
    ]
    assert results == [False, True]
    check(tmp_path / "codes", plain, vectors(plain, seed=1))
    assert names(tmp_path) == ["codes"]


def test_a_replacement_goes_on_where_the_old_codes_were_removed(tmp_path, plain):
    begin_to_replace(plain, tmp_path / "codes")
    CodeStore(tmp_path / "codes", None).clear()
    (tmp_path / "codes").rmdir()
    seen = []
    assert encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", resume=True, on_progress=seen.append)
    assert seen[0] == 3 * SHARD_ROWS
    check(tmp_path / "codes", plain, vectors(plain, seed=1))
    assert names(tmp_path) == ["codes"]


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}])
def test_a_folder_that_lost_its_name_between_two_renames_gets_it_again(tmp_path, plain, options):
    for name, seed in ((".codes.shards.done", 0), ("codes.shards", 1)):
        assert encode_file(plain, vectors(plain, seed=seed), tmp_path / "made")
        (tmp_path / "made").rename(tmp_path / name)
    with pytest.raises(ConfigError, match="codes holds codes of another run"):
        encode_file(plain, vectors(plain, seed=1), tmp_path / "codes")
    check(tmp_path / "codes", plain, vectors(plain))
    assert encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", **options)
    check(tmp_path / "codes", plain, vectors(plain, seed=1))
    assert names(tmp_path) == ["codes"]


def test_a_folder_beside_that_is_of_somebody_else_is_not_touched(tmp_path, plain):
    for name in ("codes", "others"):
        assert encode_file(plain, vectors(plain, seed=len(name)), tmp_path / name)
    (tmp_path / "others").rename(tmp_path / "codes.shards")
    before = content(tmp_path)
    assert encode_file(plain, vectors(plain, seed=5), tmp_path / "codes", resume=True)
    for options in ({"overwrite": True}, {"overwrite": True, "resume": True}):
        with pytest.raises(ConfigError, match=r"codes\.shards holds codes of another run"):
            encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", **options)
    assert content(tmp_path) == before
    CodeStore(tmp_path / "codes.shards", None).clear()
    (tmp_path / "codes.shards" / "photo.jpg").write_text("mine")
    assert encode_file(plain, vectors(plain, seed=5), tmp_path / "codes", resume=True)
    with pytest.raises(ConfigError, match=r"codes\.shards has other things in it than codes"):
        encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", overwrite=True)
    check(tmp_path / "codes", plain, vectors(plain, seed=5))
    assert (tmp_path / "codes.shards" / "photo.jpg").read_text() == "mine"


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, plain, monkeypatch):
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    monkeypatch.setattr(module, "_encode_shards", fails)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "codes")
    with pytest.raises(ConfigError, match="codes is the root of a file system and cannot be replaced at once"):
        encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", overwrite=True)
    check(tmp_path / "codes", plain, vectors(plain))


def test_a_replacement_that_the_system_refuses_can_be_tried_again(tmp_path, plain, monkeypatch):
    assert encode_file(plain, vectors(plain), tmp_path / "codes")

    def busy(path, target):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patched:
        patched.setattr(encode_place, "_exchange", lambda one, other: False)
        patched.setattr(Path, "rename", busy)
        with pytest.raises(ResourceError, match=r"shards is complete, but cannot take .*resource busy\): resume=true"):
            encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", overwrite=True)
    check(tmp_path / "codes", plain, vectors(plain))
    seen = []
    assert encode_file(plain, vectors(plain, seed=1), tmp_path / "codes", resume=True, on_progress=seen.append)
    assert seen == [COUNT]
    check(tmp_path / "codes", plain, vectors(plain, seed=1))
    assert names(tmp_path) == ["codes"]


# Wrong settings


@pytest.mark.parametrize("form", FILES)
def test_inputs_are_not_replaced(tmp_path, form):
    codec = make_codec("coarse")
    source = vectors(codec)
    written = {"codes.npz": ["codes.npz", "codes.part_0.npz"]}.get(form, [form, "codes.lists.npy"])
    for name in written:
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match="is read"):
            encode_file(codec, source, tmp_path / form, inputs=[None, "other", tmp_path / name], overwrite=True)
        assert content(tmp_path) == {name: b"mine"}
        (tmp_path / name).unlink()


def test_inputs_within_the_folder_are_not_cleared(tmp_path, plain):
    assert encode_file(plain, vectors(plain), tmp_path / "codes")
    before = content(tmp_path)
    read = tmp_path / "codes" / "codes-00000.npy"
    (tmp_path / "link.npy").symlink_to(read)
    for name in (read, tmp_path / "link.npy", tmp_path / "codes" / ".." / "codes" / "codes-00000.npy"):
        with pytest.raises(ConfigError, match=r"is read and lies in .*codes, which would be replaced"):
            encode_file(plain, open_vectors(read), tmp_path / "codes", overwrite=True, inputs=[name])
    (tmp_path / "link.npy").unlink()
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", [".", "..", "/", "codes.txt", "codes.v2", "codes.fvecs"])
def test_names_that_say_no_form_are_refused(tmp_path, monkeypatch, plain, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"output={name}: "):
        encode_file(plain, vectors(plain), name)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_refused(tmp_path, plain):
    (tmp_path / "file").write_text("mine")
    for name in (
        "nowhere/codes.npy",
        "nowhere/codes",
        "file/codes.npy",
        "file",
        "file/codes",
        "x" * 300 + ".npy",
        "x" * 300,
    ):
        with pytest.raises(ConfigError, match=r"nowhere|file|File name too long"):
            encode_file(plain, vectors(plain), tmp_path / name)
    assert content(tmp_path) == {"file": b"mine"}
    assert len(list(tmp_path.iterdir())) == 1


def test_folders_below_the_current_one_are_made(tmp_path, monkeypatch, plain):
    monkeypatch.chdir(tmp_path)
    assert encode_file(plain, vectors(plain), "a/b/codes")
    assert encode_file(plain, vectors(plain), "c/d/codes.npy")
    assert encode_file(plain, vectors(plain), "e.f/")
    check("a/b/codes", plain, vectors(plain))
    check("c/d/codes.npy", plain, vectors(plain))
    check("e.f", plain, vectors(plain))
    assert encode_file(plain, vectors(plain), "e.f", resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "e.f"]


def test_what_the_codec_cannot_do_is_refused_before_any_work(tmp_path, plain):
    with pytest.raises(DataError, match="4 dimensions"):
        encode_file(plain, as_source(random_vectors(9, 4)), tmp_path / "codes")
    qinco1 = Codec(random_model(ARCHITECTURES["qinco1"]), EncodeOptions())
    with pytest.raises(ConfigError):
        encode_file(qinco1, vectors(qinco1), tmp_path / "codes", RULE)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_named_and_can_be_repaired(tmp_path, plain):
    x = random_vectors(COUNT, 3)
    good = x[201, 1]
    x[201, 1] = np.nan
    write_vectors(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=r"row 201 of .*NaN"):
        encode_file(plain, open_vectors(tmp_path / "x.npy"), tmp_path / "codes.npy")
    assert len(list((tmp_path / "codes.npy.shards").glob("codes-*"))) == 3
    x[201, 1] = good
    write_vectors(tmp_path / "x.npy", x)
    try:
        encode_file(plain, open_vectors(tmp_path / "x.npy"), tmp_path / "codes.npy", resume=True)
    except ConfigError as error:  # the vector was among those that the fingerprint is of
        assert "other vectors" in str(error)
        encode_file(plain, open_vectors(tmp_path / "x.npy"), tmp_path / "codes.npy", overwrite=True)
    check(tmp_path / "codes.npy", plain, as_source(x))


# Shares


def test_shares_are_cut_among_the_processes_of_torchrun(monkeypatch):
    assert Share.of_process() == Share(0, 1)
    assert Share.of_process(2, 4) == Share(2, 4)
    assert Share.of_process(4, 4) == Share(0, 4)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Share.of_process() == Share(1, 3)
    assert [Share.of_process(i, 4) for i in (1, 4)] == [Share(4, 12), Share(1, 12)]
    covered = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        covered += [shard for i in (1, 2, 3, 4) for shard in Share.of_process(i, 4).shards(100)]
    assert sorted(covered) == list(range(100))


@pytest.mark.parametrize(("rank", "world"), [("3", "3"), ("2", None), ("x", "3"), ("", ""), ("-1", "3"), ("0", "0")])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match=f"RANK={rank} WORLD_SIZE="):
        Share.of_process()


@pytest.mark.parametrize(("index", "count"), [(1, 1), (-1, 2), (0, 0), (0.5, 2)])
def test_shares_that_are_none_are_refused(index, count):
    with pytest.raises(ConfigError, match="share"):
        Share(index, count)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [*itertools.permutations(range(3)), (6, 0, 5, 2, 4, 1, 3)])
def test_shares_in_any_order_give_what_one_process_gives(tmp_path, coarse, form, order):
    source = vectors(coarse)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode_file(coarse, source, tmp_path / "one" / form)
    seen = {}
    for share in order:
        progress = seen[share] = []
        is_last = share < 5 and {shard for shard in range(5) if shard % len(order) in seen} == set(range(5))
        complete = encode_file(
            coarse, source, tmp_path / "many" / form, share=Share(share, len(order)), on_progress=progress.append
        )
        assert complete == is_last
    assert sum(progress[-1] for progress in seen.values() if progress) == COUNT
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [3, 8])
def test_shares_at_the_same_time_give_what_one_process_gives(tmp_path, coarse, form, count):
    source, results, errors = vectors(coarse), [], []
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode_file(coarse, source, tmp_path / "one" / form)
    start = threading.Barrier(count)
    threads_before = torch.get_num_threads()

    def work(index):
        try:
            start.wait()
            results.append(encode_file(coarse, source, tmp_path / "many" / form, share=Share(index, count)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert True in results
    assert content(tmp_path / "many") == content(tmp_path / "one")
    assert torch.get_num_threads() == threads_before


@pytest.mark.parametrize("form", FORMS)
def test_interrupted_shares_are_resumed_by_any_number_of_processes(tmp_path, coarse, form):
    source = vectors(coarse)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode_file(coarse, source, tmp_path / "one" / form)
    path = tmp_path / "many" / form
    with pytest.raises(KeyboardInterrupt):
        encode_file(coarse, source, path, share=Share(0, 2), on_progress=interrupt_at(SHARD_ROWS))
    assert not encode_file(coarse, source, path, share=Share(1, 2))
    with pytest.raises(ConfigError, match=r"holds 3 of 5 shards: .*remove it \(shares cannot overwrite"):
        encode_file(coarse, source, path, share=Share(1, 2))
    assert not encode_file(coarse, source, path, share=Share(1, 2), resume=True)
    assert not encode_file(coarse, source, path, share=Share(1, 3), resume=True)
    assert encode_file(coarse, source, path, resume=True)
    assert encode_file(coarse, source, path, share=Share(1, 2), resume=True)
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.parametrize("form", FORMS)
def test_shares_do_not_replace_what_exists_unless_that_is_asked_for(tmp_path, coarse, form):
    source, other = vectors(coarse), vectors(coarse, seed=1)
    assert encode_file(coarse, source, tmp_path / form)
    before = content(tmp_path)
    for index in range(2):
        with pytest.raises(ConfigError, match=r"exists|holds 5 of 5 shards|of another run"):
            encode_file(coarse, other, tmp_path / form, share=Share(index, 2))
    assert content(tmp_path) == before
    if form != "codes":
        results = [encode_file(coarse, other, tmp_path / form, share=Share(i, 2), overwrite=True) for i in range(2)]
        assert results == [False, True]
        check(tmp_path / form, coarse, other)
    else:
        with pytest.raises(ConfigError, match="remove it"):
            encode_file(coarse, other, tmp_path / form, share=Share(0, 2), overwrite=True)
        assert content(tmp_path) == before


def test_two_processes_with_the_same_share_do_not_disturb_each_other(tmp_path, plain):
    """The second begins while the first is at its third shard, and finishes before it."""
    source, results = vectors(plain), []
    (tmp_path / "one").mkdir()
    assert encode_file(plain, source, tmp_path / "one" / "codes.npy")

    def second(done):
        if done > 2 * SHARD_ROWS and not results:
            results.append(True)
            assert encode_file(plain, source, tmp_path / "codes.npy", resume=True)

    assert encode_file(plain, source, tmp_path / "codes.npy", on_progress=second)
    assert (tmp_path / "codes.npy").read_bytes() == (tmp_path / "one" / "codes.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npy", "one"]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_whose_place_another_has_taken_stops(tmp_path, coarse, form):
    """Or its shards would be taken for those of the other."""
    source, other, begun = vectors(coarse), vectors(coarse, seed=1), []

    def second(done):
        if done > 2 * SHARD_ROWS and not begun:
            begun.append(True)
            with pytest.raises(KeyboardInterrupt):
                encode_file(coarse, other, tmp_path / form, overwrite=True, on_progress=interrupt_at(SHARD_ROWS))

    with pytest.raises(ConfigError, match="holds codes of another run"):
        encode_file(coarse, source, tmp_path / form, on_progress=second)
    assert begun
    assert encode_file(coarse, other, tmp_path / form, resume=True)
    check(tmp_path / form, coarse, other)


@pytest.mark.parametrize(("form", "name"), [("codes.npy", "codes.lists.npy"), ("codes.npz", "codes.part_0.npz")])
def test_files_that_would_lie_beside_are_not_replaced_by_resuming_nothing(tmp_path, form, name):
    codec = make_codec("coarse")
    (tmp_path / name).write_text("mine")
    for resume in (False, True):
        with pytest.raises(ConfigError, match=f"{name} exists"):
            encode_file(codec, vectors(codec), tmp_path / form, resume=resume)
    assert content(tmp_path) == {name: b"mine"}


# Writing while the next shard is encoded


def test_a_shard_is_written_while_the_next_is_encoded_and_no_third_one_waits(tmp_path, plain, hold_writing):
    encoded = [threading.Event() for _ in range(5)]
    for shard in range(4):
        hold_writing(shard, encoded[shard + 1])
    threads, behind = set(), []

    def on_progress(done):
        threads.add(threading.current_thread())
        if done:
            shard = (done - 1) // SHARD_ROWS
            behind.extend(k for k in range(shard - 1) if not (tmp_path / "codes" / f"codes-{k:05}.npy").exists())
            encoded[shard].set()

    assert encode_file(plain, vectors(plain), tmp_path / "codes", on_progress=on_progress)
    check(tmp_path / "codes", plain, vectors(plain))
    assert threads == {threading.current_thread()}
    assert behind == []


def test_a_shard_is_read_while_the_last_is_encoded(tmp_path, codec):
    """In shards of one block, too."""
    read = [threading.Event() for _ in range(5)]
    x = random_vectors(COUNT, codec.dim)

    class Rows:
        shape, dtype = x.shape, x.dtype

        def __getitem__(self, key):
            if isinstance(key, slice) and key.stop - key.start > 1:
                read[key.start // SHARD_ROWS].set()
            return x[key]

    def on_progress(done):
        if done == 0:  # the fingerprint has been taken
            [event.clear() for event in read]
        elif done < COUNT:
            assert read[done // SHARD_ROWS].wait(PATIENCE), "the next shard is not read meanwhile"

    codec.block_rows = SHARD_ROWS
    assert encode_file(codec, VectorSource(Rows()), tmp_path / "codes", on_progress=on_progress)
    check(tmp_path / "codes", codec, as_source(x))


@pytest.mark.parametrize("form", ["codes", "codes.npy"])
def test_ctrl_c_keeps_a_shard_that_is_being_written(tmp_path, coarse, hold_writing, form):
    interrupted, seen = threading.Event(), []
    hold_writing(1, interrupted)

    def on_progress(done):
        if done > 2 * SHARD_ROWS:
            interrupted.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_file(coarse, vectors(coarse), tmp_path / form, on_progress=on_progress)
    folder = tmp_path / (form if form == "codes" else f"{form}.shards")
    assert sorted(path.name for path in folder.glob("codes-*")) == ["codes-00000.npy", "codes-00001.npy"]
    assert encode_file(coarse, vectors(coarse), tmp_path / form, resume=True, on_progress=seen.append)
    assert seen == [2 * SHARD_ROWS, 3 * SHARD_ROWS, 4 * SHARD_ROWS, COUNT]
    check(tmp_path / form, coarse, vectors(coarse))


def test_a_shard_that_cannot_be_written_ends_the_encoding_of_the_next(tmp_path, plain, hold_writing, monkeypatch):
    """At its next block, and without a shard of its own."""
    plain.block_rows, seen, writings, third = 16, [], [], threading.Event()

    class Recorded(ThreadPoolExecutor):
        def submit(self, *call):
            writings.append(super().submit(*call))
            return writings[-1]

    def on_progress(done):
        seen.append(done)
        if done > 2 * SHARD_ROWS:
            third.set()
            wait(writings, PATIENCE)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Recorded)
    hold_writing(1, third, ResourceError("no space left"))
    with pytest.raises(ResourceError, match="no space left"):
        encode_file(plain, vectors(plain), tmp_path / "codes.npy", on_progress=on_progress)
    assert seen[-1] == 2 * SHARD_ROWS + 16
    assert [path.name for path in (tmp_path / "codes.npy.shards").glob("codes-*")] == ["codes-00000.npy"]


@pytest.mark.parametrize("shard", range(5))
def test_a_full_disk_is_reported_for_every_shard_and_the_rest_can_be_resumed(tmp_path, plain, monkeypatch, shard):
    def full(path):
        if path.name.startswith(f".codes-{shard:05}."):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_to_disk", full)
        with pytest.raises(ResourceError, match=rf"cannot write .*codes-{shard:05}\.npy: No space left on device"):
            encode_file(plain, vectors(plain), tmp_path / "codes")
    there = {int(path.stem[-5:]) for path in (tmp_path / "codes").glob("codes-*.npy")}
    assert set(range(shard)) <= there <= set(range(shard + 2)) - {shard}
    assert not list((tmp_path / "codes").glob(".codes-*"))
    assert encode_file(plain, vectors(plain), tmp_path / "codes", resume=True)
    check(tmp_path / "codes", plain, vectors(plain))


def test_a_run_whose_file_another_has_made_stops_at_its_next_block(tmp_path, plain, hold_writing, monkeypatch):
    plain.block_rows, seen, others = 16, [], []
    source = vectors(plain)

    def on_progress(done):
        seen.append(done)
        if done > 2 * SHARD_ROWS and not others:
            others.append(True)
            assert encode_file(plain, source, tmp_path / "codes.npy", resume=True)

    assert encode_file(plain, source, tmp_path / "codes.npy", on_progress=on_progress)
    assert seen[-1] <= 4 * SHARD_ROWS, "the store is missed where the third shard is written"
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npy"]
    check(tmp_path / "codes.npy", plain, source)
