"""Encoding to files and folders gives what `encode` gives, however the work was cut, shared and interrupted."""

import errno
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from small_models import ARCHITECTURES, random_model, random_vectors

from qinco import atomic
from qinco.codec import Codec
from qinco.codec.convert import convert_codec
from qinco.codec.files import FileResult, encode_file, share_of_process
from qinco.config import EncodeOptions
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.store.codes import Codes
from qinco.store.manifest import MANIFEST, PENDING, write_manifest
from qinco.vectors.formats import write_vectors
from qinco.vectors.rows import as_source, open_vectors

pytestmark = pytest.mark.usefixtures("no_thread_is_left")
RULE = EncodeOptions(num_pairs=8, beam_width=4, precision="float32")
FILES = ["codes.npy", "codes.ivecs", "codes.raw", "codes.npz"]
FORMS = ["codes", *FILES]
COUNT, SHARD_ROWS, NUM_SHARDS = 300, 64, 5
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
def one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def encode(codec, source, output, options=None, heard=lambda done: None, **settings) -> bool:
    """Encode in small shards, and tell how far it has come; whether the output is complete."""
    settings = {"shard_rows": SHARD_ROWS, "progress": lambda stage, done, *_, **fields: heard(done)} | settings
    return encode_file(codec, source, output, options, **settings).complete


def vectors(codec, count=COUNT, seed=0):
    return as_source(random_vectors(count, codec.dim, seed), "the vectors")


def content(folder):
    """All files below a folder, as bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def shards(folder) -> list[int]:
    """The numbers of all shards in a folder, of any generation."""
    return sorted(int(path.name[6:11]) for path in folder.glob("codes_*.npy"))


def check(path, codec, source):
    """The output holds what `encode` gives."""
    expected = codec.encode(source)
    codes, lists = expected if codec.is_ivf else (expected, None)
    found = Codes.load(path, codec)
    assert np.array_equal(found.codes, codes)
    assert lists is None or np.array_equal(found.lists, lists)


def interrupt_at(row):
    def heard(done):
        if done > row:
            raise KeyboardInterrupt

    return heard


def interrupted(codec, source, output, row=3 * SHARD_ROWS, **settings):
    with pytest.raises(KeyboardInterrupt, match="resume"):
        encode(codec, source, output, heard=interrupt_at(row), **settings)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, SHARD_ROWS, COUNT])
def test_it_is_what_encode_gives(tmp_path, codec, form, count):
    source, seen = vectors(codec, count), []
    codec.block_rows = 50
    assert encode(codec, source, tmp_path / form, heard=seen.append)
    check(tmp_path / form, codec, source)
    assert (seen[0], seen[-1]) == (0, count) and seen == sorted(seen)
    beside = {"codes.npz": ["codes.part_0.npz"], "codes": []}.get(form, ["codes.lists.npy"] if codec.is_ivf else [])
    assert names(tmp_path) == sorted([form, *beside])


def test_paths_and_arrays_are_sources_and_the_result_tells_what_was_done(tmp_path, coarse):
    x_ND = random_vectors(COUNT, coarse.dim)
    write_vectors(tmp_path / "x.npy", x_ND)
    done = encode_file(coarse, tmp_path / "x.npy", tmp_path / "codes.npy", num_pairs=8, beam_width=4)
    lists = tmp_path / "codes.lists.npy"
    assert done == FileResult(tmp_path / "codes.npy", COUNT, COUNT, True, done.seconds, lists)
    check(tmp_path / "codes.npy", coarse, as_source(x_ND))
    done = encode_file(coarse, x_ND, tmp_path / "codes.npy", resume=True)
    assert (done.num_done, done.complete, done.lists) == (0, True, lists)
    with pytest.raises(ConfigError, match="is read"):
        encode_file(coarse, tmp_path / "x.npy", tmp_path / "x.npy", overwrite=True)


# What is there already


@pytest.mark.parametrize("form", FORMS)
def test_what_exists_is_not_touched_unless_that_is_asked_for(tmp_path, coarse, form):
    source, other = vectors(coarse), vectors(coarse, seed=1)
    assert encode(coarse, source, tmp_path / form)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="overwrite=true"):
        encode(coarse, source, tmp_path / form)
    assert content(tmp_path) == before
    assert encode(coarse, source, tmp_path / form, resume=True)
    assert content(tmp_path) == before
    assert encode(coarse, other, tmp_path / form, overwrite=True)
    check(tmp_path / form, coarse, other)
    assert len(content(tmp_path)) == len(before) and content(tmp_path) != before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", [0, SHARD_ROWS + 1, COUNT - 1])
def test_ctrl_c_keeps_the_finished_shards(tmp_path, coarse, form, row):
    source, seen = vectors(coarse), []
    interrupted(coarse, source, tmp_path / form, row)
    kept = row // SHARD_ROWS
    folder = tmp_path / (form if form == "codes" else f"{form}.shards")
    assert shards(folder) == list(range(kept)) and names(tmp_path) == [folder.name] * (kept > 0)
    if kept:
        with pytest.raises(ConfigError, match=rf"{kept} of 5 shards"):
            encode(coarse, source, tmp_path / form)
    with pytest.raises(DataError, match=form):
        Codes.load(tmp_path / form, coarse)
    assert encode(coarse, source, tmp_path / form, heard=seen.append, resume=True)
    assert (seen[0], seen[-1]) == (kept * SHARD_ROWS, COUNT)
    (tmp_path / "whole").mkdir()
    assert encode(coarse, source, tmp_path / "whole" / form)
    whole = content(tmp_path / "whole")
    assert content(tmp_path) == whole | {f"whole/{name}": data for name, data in whole.items()}


@pytest.mark.parametrize("form", ["codes", "codes.npy"])
def test_the_work_of_another_run_is_not_resumed(tmp_path, coarse, form):
    source, changed = vectors(coarse), vectors(coarse)[:]
    interrupted(coarse, source, tmp_path / form, 100)
    before = content(tmp_path)
    changed[-1, -1] += 1
    for difference, (codec, *given) in {
        "another codec": (make_codec("coarse", 7), source),
        "other vectors": (coarse, as_source(changed)),
        "num_vectors=300 there, 299 here": (coarse, vectors(coarse, COUNT - 1)),
        "num_pairs=8 there, 7 here": (coarse, source, RULE.override(num_pairs=7)),
        "precision=float32 there, auto here": (coarse, source, RULE.override(precision="auto")),
    }.items():
        for resume in (True, False):
            with pytest.raises(ConfigError, match=difference):
                encode(codec, given[0], tmp_path / form, *given[1:], resume=resume)
    assert content(tmp_path) == before
    assert encode(coarse, vectors(coarse, 200, 3), tmp_path / form, overwrite=True)
    check(tmp_path / form, coarse, vectors(coarse, 200, 3))


@pytest.mark.parametrize("form", FILES)
def test_a_finished_file_of_another_run_is_recognised(tmp_path, coarse, form):
    """It does not say of which codec it is: some vectors are encoded again."""
    source = vectors(coarse)
    assert encode(coarse, source, tmp_path / form)
    before = content(tmp_path)
    for codec, here, message in (
        (make_codec("coarse", 7), source, "other codes"),
        (coarse, vectors(coarse, seed=1), "other codes"),
        (coarse, vectors(coarse, COUNT - 1), r"\(300, "),
    ):
        with pytest.raises(ConfigError, match=message):
            encode(codec, here, tmp_path / form, resume=True)
    assert content(tmp_path) == before
    (tmp_path / form).write_bytes((tmp_path / form).read_bytes()[:-7])
    with pytest.raises((DataError, ConfigError)):
        encode(coarse, source, tmp_path / form, resume=True)


def test_a_folder_with_other_things_is_refused(tmp_path, plain):
    for name in ("codes", "codes.npy.shards"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_text("mine")
    before = content(tmp_path)
    for form, options in itertools.product(("codes", "codes.npy"), ({}, {"resume": True}, {"overwrite": True})):
        with pytest.raises(ConfigError, match="other files"):
            encode(plain, vectors(plain), tmp_path / form, **options)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", [MANIFEST, PENDING])
@pytest.mark.parametrize("text", ['{"kind": "index"}', '{"kind": "codes", "format_version": 3}', "{"])
def test_a_damaged_or_newer_folder_is_not_cleared(tmp_path, plain, name, text):
    assert encode(plain, vectors(plain), tmp_path / "codes")
    (tmp_path / "codes" / name).write_text(text)
    before = content(tmp_path)
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises((ConfigError, DataError), match="is an index" if "index" in text else name):
            encode(plain, vectors(plain), tmp_path / "codes", **options)
    assert content(tmp_path) == before


# Replacing a folder


def begin_to_replace(codec, output, seed=1):
    """Complete codes of the vectors of seed 0, and three shards of those that are to replace them."""
    assert encode(codec, vectors(codec), output)
    interrupted(codec, vectors(codec, seed=seed), output, overwrite=True)


def test_complete_codes_stay_until_the_new_ones_are_complete(tmp_path, coarse):
    source, other, seen = vectors(coarse), vectors(coarse, seed=1), []
    output = tmp_path / "many" / "codes"
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode(coarse, other, tmp_path / "one" / "codes")
    begin_to_replace(coarse, output)
    check(output, coarse, source)
    before = content(tmp_path)
    for settings in ({"source": other}, {"source": source, "resume": True}):
        with pytest.raises(ConfigError, match=r"3 of 5 shards|other vectors"):
            encode(coarse, output=output, **settings)
    assert content(tmp_path) == before
    assert encode(coarse, other, output, heard=seen.append, resume=True)
    assert (seen[0], seen[-1]) == (3 * SHARD_ROWS, COUNT)
    assert content(tmp_path / "many") == content(tmp_path / "one")


# Wrong settings


@pytest.mark.parametrize("form", FILES)
def test_inputs_are_not_replaced(tmp_path, coarse, form):
    written = {"codes.npz": ["codes.npz", "codes.part_0.npz"]}.get(form, [form, "codes.lists.npy"])
    for name in written:
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConfigError, match=f"{name} is read"):
            encode(coarse, vectors(coarse), tmp_path / form, inputs=[None, "x", tmp_path / name], overwrite=True)
        for resume in (False, True):  # nor what lies beside
            with pytest.raises((ConfigError, DataError), match=rf"{name}|codes\.lists\.npy"):
                encode(coarse, vectors(coarse), tmp_path / form, resume=resume)
        assert content(tmp_path) == {name: b"mine"}
        (tmp_path / name).unlink()


def test_inputs_within_the_folder_are_not_cleared(tmp_path, plain):
    assert encode(plain, vectors(plain), tmp_path / "codes")
    before = content(tmp_path)
    read = tmp_path / "codes" / names(tmp_path / "codes")[0]
    (tmp_path / "link.npy").symlink_to(read)
    for name in (read, tmp_path / "link.npy", tmp_path / "codes" / ".." / "codes" / read.name):
        with pytest.raises(ConfigError, match=r"lies in .*codes"):
            encode(plain, open_vectors(read), tmp_path / "codes", overwrite=True, inputs=[name])
    (tmp_path / "link.npy").unlink()
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", [".", "..", "/", "codes.txt", "codes.v2", "codes.fvecs"])
def test_names_that_say_no_form_are_refused(tmp_path, monkeypatch, plain, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"output={name}: "):
        encode(plain, vectors(plain), name)
    assert list(tmp_path.iterdir()) == []


LONG = "x" * 300


@pytest.mark.parametrize(
    "name", ["nowhere/codes.npy", "nowhere/codes", "file/codes.npy", "file", "file/codes", f"{LONG}.npy", LONG]
)
def test_paths_that_cannot_be_written_are_refused(tmp_path, plain, name):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"nowhere|file|File name too long"):
        encode(plain, vectors(plain), tmp_path / name)
    assert names(tmp_path) == ["file"]


def test_folders_below_the_current_one_are_made(tmp_path, monkeypatch, plain):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b/codes", "c/d/codes.npy", "e.f/"):
        assert encode(plain, vectors(plain), name)
        check(name, plain, vectors(plain))
    assert encode(plain, vectors(plain), "e.f", resume=True)
    assert names(tmp_path) == ["a", "c", "e.f"]


def test_what_the_codec_cannot_do_is_refused_before_any_work(tmp_path, plain):
    with pytest.raises(DataError, match=r"dimension.* not 4"):
        encode(plain, as_source(random_vectors(9, 4)), tmp_path / "codes")
    qinco1 = Codec(random_model(ARCHITECTURES["qinco1"]), EncodeOptions())
    with pytest.raises(ConfigError):
        encode(qinco1, vectors(qinco1), tmp_path / "codes", RULE)
    with pytest.raises(ConfigError, match="shard_rows"):
        encode(plain, vectors(plain), tmp_path / "codes", shard_rows=-3)
    assert list(tmp_path.iterdir()) == []


# Shares


def test_shares_are_cut_among_the_processes_of_torchrun(monkeypatch):
    assert share_of_process() == (0, 1)
    assert [share_of_process(shard) for shard in ((2, 4), (4, 4))] == [(2, 4), (0, 4)]
    covered = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert share_of_process() == (rank, 3)
        for index, count in (share_of_process((i, 4)) for i in (1, 2, 3, 4)):
            covered += range(index, 100, count)
    assert sorted(covered) == list(range(100))


@pytest.mark.parametrize(("rank", "world"), [("3", "3"), ("2", None), ("x", "3"), ("", ""), ("-1", "3"), ("0", "0")])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ConfigError, match=f"RANK={rank} WORLD_SIZE="):
        share_of_process()


@pytest.mark.parametrize("shard", [(2, 1), (-1, 2), (0, 0), (0.5, 2)])
def test_shares_that_do_not_exist_are_refused(shard):
    with pytest.raises(ConfigError, match="shar"):
        share_of_process(shard)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (6, 0, 5, 2, 4, 1, 3)])
def test_shares_in_any_order_give_what_one_process_gives(tmp_path, coarse, form, order):
    source, seen = vectors(coarse), {}
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode(coarse, source, tmp_path / "one" / form)
    for share in order:
        heard = seen[share] = []
        is_last = share < 5 and {shard for shard in range(5) if shard % len(order) in seen} == set(range(5))
        output = tmp_path / "many" / form
        assert encode(coarse, source, output, heard=heard.append, shard=(share, len(order))) == is_last
    assert sum(heard[-1] for heard in seen.values() if heard) == COUNT
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [3, 8])
def test_shares_at_the_same_time_give_what_one_process_gives(tmp_path, coarse, form, count):
    source, start = vectors(coarse), threading.Barrier(count)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode(coarse, source, tmp_path / "one" / form)

    def work(index):
        start.wait()
        return encode(coarse, source, tmp_path / "many" / form, shard=(index, count))

    with ThreadPoolExecutor(count) as pool:
        assert True in list(pool.map(work, range(count)))
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.parametrize("form", ["codes", "codes.npz"])
def test_interrupted_shares_are_resumed_by_any_number_of_processes(tmp_path, coarse, form):
    source = vectors(coarse)
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    assert encode(coarse, source, tmp_path / "one" / form)
    path = tmp_path / "many" / form
    interrupted(coarse, source, path, SHARD_ROWS, shard=(0, 2))
    assert not encode(coarse, source, path, shard=(1, 2))
    with pytest.raises(ConfigError, match="3 of 5 shards"):
        encode(coarse, source, path, shard=(1, 2))
    assert not encode(coarse, source, path, shard=(1, 2), resume=True)
    assert not encode(coarse, source, path, shard=(1, 3), resume=True)
    assert encode(coarse, source, path, resume=True)
    assert encode(coarse, source, path, shard=(1, 2), resume=True)
    assert content(tmp_path / "many") == content(tmp_path / "one")


@pytest.mark.parametrize("form", FORMS)
def test_a_run_whose_folder_another_has_taken_stops(tmp_path, coarse, form):
    """Or its shards would be taken for those of the other."""
    source, other, begun = vectors(coarse), vectors(coarse, seed=1), []

    def heard(done):
        if done > 2 * SHARD_ROWS and not begun:
            begun.append(True)
            interrupted(coarse, other, tmp_path / form, SHARD_ROWS, overwrite=True)

    with pytest.raises(ConfigError, match="other vectors"):
        encode(coarse, source, tmp_path / form, heard=heard)
    assert begun
    assert encode(coarse, other, tmp_path / form, resume=True)
    check(tmp_path / form, coarse, other)


# Writing while the next shard is encoded


@pytest.mark.parametrize("shard", [0, 3, 4])
def test_a_full_disk_is_reported_and_the_rest_can_be_resumed(tmp_path, plain, monkeypatch, shard):
    def full(path):
        if path.name.startswith(f".codes_{shard:05}-"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write_to_disk", full)
        with pytest.raises(ResourceError, match=rf"codes_{shard:05}-.*\.npy: No space left on device"):
            encode(plain, vectors(plain), tmp_path / "codes")
    there = set(shards(tmp_path / "codes"))
    assert set(range(shard)) <= there <= set(range(shard + 2)) - {shard}
    assert not list((tmp_path / "codes").glob(".codes*"))
    assert encode(plain, vectors(plain), tmp_path / "codes", resume=True)
    check(tmp_path / "codes", plain, vectors(plain))


# Converting codecs


def test_codecs_are_converted_both_ways(tmp_path, caplog):
    codec = make_codec("projected")
    codec.save(tmp_path / "a.safetensors")
    converted = convert_codec(tmp_path / "a.safetensors", tmp_path / "b.pt")
    assert "num_pairs" in caplog.text and converted.encode_options.num_candidates == 4
    with pytest.raises(ConfigError, match=r"b\.pt exists"):
        convert_codec(codec, tmp_path / "b.pt")
    options = EncodeOptions(num_candidates=2, beam_width=2)
    assert convert_codec(codec, tmp_path / "b.pt", options, overwrite=True).encode_options.beam_width == 2
    again = convert_codec(tmp_path / "b.pt", tmp_path / "c.safetensors")
    assert again.fingerprint() == codec.fingerprint() and again.encode_options.num_candidates == 2
    for output in (tmp_path / "a.npy", tmp_path / "a.safetensors"):
        with pytest.raises(ConfigError, match=output.name):
            convert_codec(tmp_path / "a.safetensors", output, overwrite=True)
    assert json.loads(json.dumps(again.encode_options.to_dict()))["beam_width"] == 2


@pytest.mark.parametrize("form", FORMS)
def test_codes_of_another_codec_are_refused_before_anything_is_written(tmp_path, coarse, plain, form):
    good, path = coarse.encode(vectors(coarse)), tmp_path / form
    wide = Codes(good.codes.astype(np.int64), good.lists)  # such as an .ivecs file gives
    wide.save(path, coarse)
    read = Codes.load(path, coarse)
    assert np.array_equal(read.codes, good.codes) and np.array_equal(read.lists, good.lists)
    before = content(tmp_path)
    for codes, codec in (
        (good, plain), (good.with_lists(None), coarse), (Codes(good.codes + 4, good.lists), coarse),
        (Codes(-wide.codes, good.lists), coarse), (good.with_lists(good.lists + 5), coarse),
        (Codes(good.codes * 1.0, good.lists), coarse),
    ):  # fmt: skip
        with pytest.raises(DataError):
            codes.save(path, codec, overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_left_of_a_run_that_wrote_nothing(tmp_path, coarse, form):
    x = vectors(coarse)[:]
    x[3, 0] = np.nan
    for options in ({}, {"overwrite": True}):
        before = content(tmp_path)
        with pytest.raises(DataError, match="row 3"):
            encode(coarse, x, tmp_path / form, **options)
        assert content(tmp_path) == before and (before or not names(tmp_path))
        encode(coarse, vectors(coarse), tmp_path / form, overwrite=True)


def test_what_stands_in_the_way_is_named(tmp_path, coarse, plain):
    assert encode(plain, vectors(plain), tmp_path / "codes")
    with pytest.raises(ConfigError, match="codes of another codec"):
        encode(coarse, vectors(coarse), tmp_path / "codes")
    write_manifest(tmp_path / MANIFEST, "index", "s000000000000", {}, {})
    x = vectors(plain)
    for write in (lambda: encode(plain, x, tmp_path), lambda: plain.encode(x).save(tmp_path, plain)):
        with pytest.raises(ConfigError, match="is an index"):
            write()
