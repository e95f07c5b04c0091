"""Inverted lists against their definition, however they are made; and folders of them that somebody has changed."""

import json
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_lists import lists_of

from qinco.errors import DataError
from qinco.native.bits import packed
from qinco.search.index_file import put_lists
from qinco.search.lists import InvertedLists, ListsBuilder, Merge, id_dtype
from qinco.store.folder import read_folder, write_folder
from qinco.store.manifest import MANIFEST, read_manifest

checked = settings(deadline=None, max_examples=100)


@st.composite
def vectors(draw, most=400, num_codes=None, num_lists=None):
    """Codes, scalars, lists, ids and the number of lists; most vectors are in few lists, as in life."""
    count, num_codes = draw(st.integers(0, most)), num_codes or draw(st.integers(1, 5))
    num_lists = num_lists or draw(st.sampled_from([1, 2, 5, 300, 70_000]))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    lists = generator.integers(0, draw(st.integers(1, num_lists)), count)
    lists[generator.random(count) < draw(st.sampled_from([0, 0.5, 1]))] = num_lists - 1
    ids = generator.permutation(count) - draw(st.sampled_from([0, 0, 3]))
    codes = generator.integers(0, 256, (count, num_codes), dtype=np.uint8)
    return codes, generator.integers(0, 256, count, dtype=np.uint8), lists, ids, num_lists


def by_definition(codes, scalars, lists, ids, num_lists):
    """Starts, bytes and ids of inverted lists, one list and one block after the other."""
    starts, stored, ordered = [0], [], []
    for number in range(num_lists) if num_lists < 1000 else np.unique(lists):
        rows = np.flatnonzero(lists == number)
        starts.append(starts[-1] + len(rows))
        ordered.append(ids[rows])
        for begin in range(0, len(rows), 64):
            block = rows[begin : begin + 64]
            stored += [codes[block].T.ravel(), scalars[block]]
    return np.array(starts), np.concatenate([np.zeros(0, np.uint8), *stored]), np.concatenate([ids[:0], *ordered])


def assert_are(found: InvertedLists, columns, num_lists):
    starts, stored, ids = by_definition(*columns, num_lists)
    assert np.array_equal(found.codes, stored) and np.array_equal(found.ids, ids)
    assert np.array_equal(np.unique(found.starts), np.unique(starts))
    assert found.ids.dtype == id_dtype(ids) and found.num_lists == num_lists


@given(given_vectors=vectors())
@checked
def test_lists_are_laid_out_as_they_are_defined(given_vectors):
    *columns, num_lists = given_vectors
    assert_are(lists_of(*columns, num_lists), columns, num_lists)


@given(given_vectors=vectors(), cuts=st.lists(st.integers(0, 400), max_size=4))
@checked
def test_blocks_of_any_size_make_the_same_lists(given_vectors, cuts):
    codes, scalars, lists, ids, num_lists = given_vectors
    blocks = np.split(np.arange(len(ids)), sorted(min(cut, len(ids)) for cut in cuts))
    builder = ListsBuilder(num_lists, codes.shape[1])
    for rows in reversed(blocks):  # counts come in any order
        builder.add_counts(lists[rows])
    builder.allocate(id_dtype(ids))
    for rows in blocks:
        builder.fill(codes[rows], scalars[rows], lists[rows], ids[rows])
    assert_are(builder.finish(), (codes, scalars, lists, ids), num_lists)


@given(given_vectors=vectors(), size=st.integers(1, 100), seed=st.integers(0, 100))
@checked
def test_rows_and_blocks_give_back_what_was_stored(given_vectors, size, seed):
    codes, scalars, numbers, ids, num_lists = given_vectors
    lists = lists_of(codes, scalars, numbers, ids, num_lists)
    for *found, found_ids in lists.blocks(size):
        rows = np.argsort(ids)[np.searchsorted(np.sort(ids), found_ids.astype(np.int64))]
        for array, expected in zip(found, (codes, scalars, numbers), strict=True):
            assert np.array_equal(array, expected[rows])
    positions = np.random.default_rng(seed).integers(0, max(1, len(ids)), size if len(ids) else 0)
    every = list(lists.blocks())
    if every:
        assert np.array_equal(lists.rows(positions)[0], every[0][0][positions])
        assert np.array_equal(lists.rows(positions)[1], every[0][1][positions])
        assert np.array_equal(lists.lists_of(positions), every[0][2][positions])


@given(several=st.lists(vectors(150, num_codes=2, num_lists=7), min_size=1, max_size=3), share=st.floats(0, 1))
@checked
def test_merging_and_leaving_out_are_those_of_the_vectors(several, share):
    columns = [np.concatenate([one[column] for one in several]) for column in range(3)]
    ids = np.arange(len(columns[0])) - 3  # those of all parts differ
    own_ids = np.split(ids, np.cumsum([len(one[0]) for one in several])[:-1])
    parts = [lists_of(*one[:3], own, 7) for one, own in zip(several, own_ids, strict=True)]
    columns.append(ids)
    merged = InvertedLists.merged(parts)
    assert_are(merged, columns, 7)
    is_removed = np.random.default_rng(0).random(len(merged)) < share
    kept = ~np.isin(ids, merged.ids[is_removed].astype(np.int64))
    for removed in (is_removed, np.flatnonzero(is_removed)):
        assert_are(merged.without(removed), [column[kept] for column in columns], 7)


@given(
    several=st.lists(vectors(300, num_codes=2, num_lists=3), min_size=1, max_size=3),
    share=st.sampled_from([0, 0.5, 0.99, 1]), size=st.sampled_from([1, 50, 64, 100, 1000]),
)  # fmt: skip
@checked
def test_merging_in_pieces_is_merging_at_once(several, share, size):
    """Also where lists are longer than a piece, and where some vectors are left out."""
    parts = [lists_of(*one[:3], np.arange(len(one[0])) + 2**33 * place, 3) for place, one in enumerate(several)]
    masks = [np.random.default_rng(place).random(len(part)) < share for place, part in enumerate(parts)]
    left = [part.without(~mask) for part, mask in zip(parts, masks, strict=True)]
    for kept, wanted in ((None, InvertedLists.merged(parts)), (list(map(packed, masks)), InvertedLists.merged(left))):
        merge = Merge(parts, kept)
        blocks = [(np.zeros(0, np.uint8), np.zeros(0, merge.id_dtype)), *merge.blocks(size)]
        codes, ids = map(np.concatenate, zip(*blocks, strict=True))
        assert np.array_equal(merge.starts, wanted.starts) and np.array_equal(codes, wanted.codes)
        assert np.array_equal(ids, wanted.ids) and ids.dtype == wanted.ids.dtype
        assert max(len(block) for _, block in blocks) <= 2 * max(64, size)
        with tempfile.TemporaryDirectory() as folder:
            with write_folder(folder, "index", {}) as writer:
                assert put_lists(writer, parts, kept) == len(wanted)
            arrays = read_folder(folder, "index").arrays
            assert all(np.array_equal(arrays[name], getattr(wanted, name)) for name in ("starts", "codes", "ids"))


@given(starts=st.lists(st.sampled_from([0, 1, 2, 5, 9, 10, 11, -1, 1 << 62, -(1 << 63)]), min_size=1, max_size=6))
@checked
@example(starts=[0, 5, 10])
@example(starts=[0, 1 << 62, 10])
def test_starts_that_are_read_rise_or_are_refused(starts):
    stored = np.array(starts, np.int64), np.zeros(30, np.uint8), np.zeros(10, np.uint32)
    is_sound = len(starts) == 3 and starts[0] == 0 and starts[2] == 10 and 0 <= starts[1] <= 10
    try:
        InvertedLists.from_stored(*stored, num_lists=2, num_codes=2, name="x")
        assert is_sound
    except DataError:
        assert not is_sound


# Folders

ARRAYS = {
    "codes": np.arange(60, dtype=np.uint8),
    "others": np.arange(60, 120, dtype=np.uint8),
    "tables": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32),
    "empty": np.zeros((0, 3), np.int64),
}
SETTINGS = {"metric": "l2", "levels": [0.1, -1e-30, 3], "nested": {"ü": None}}
CODEC = b"a codec" * 9


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("index")
    with write_folder(folder, "index", SETTINGS) as writer:
        for name, array in ARRAYS.items():
            writer.put(name, array)
        writer.file("codec.bin").write_bytes(CODEC)
    assert read(folder) is None
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@contextmanager
def changed(original, **changes):
    """A copy of the index in which files with these beginnings of names have other bytes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in original.items():
            for start, other in changes.items():
                content = other if name.startswith(start) else content
            Path(folder, name).write_bytes(content)
        yield Path(folder)


def read(folder, mmap=True, check_settings=True) -> str | None:
    """The sentence that refuses an index; None where it is the original one."""
    try:
        found = read_folder(folder, "index", mmap=mmap)
    except DataError as error:
        message = str(error)
        assert 10 < len(message) < 400 and message.isprintable(), message
        return message
    for name, array in found.arrays.items():
        assert np.array_equal(array, ARRAYS[name]) and array.dtype == ARRAYS[name].dtype
    assert all(path.parent == folder and path.read_bytes() == CODEC for path in found.files.values())
    if check_settings:
        assert found.settings == SETTINGS and set(found.arrays) == set(ARRAYS) and set(found.files) == {"codec.bin"}
    return None


STARTS = [*ARRAYS, "codec", "manifest"]


def name_of(original, start):
    return next(name for name in original if name.startswith(start))


@pytest.mark.parametrize("start", STARTS)
def test_truncated_or_extended_anywhere(original, start):
    name = name_of(original, start)
    content = original[name]
    for size in range(len(content)):
        with changed(original, **{start: content[:size]}) as folder:
            message = read(folder)
            assert (message and name in message) or content[size:].isspace()
    with changed(original, **{start: content + b"x"}) as folder:
        assert name in read(folder)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("start", STARTS)
def test_no_flipped_bit_is_overlooked(original, start, mmap):
    name = name_of(original, start)
    for place in range(len(original[name])):
        content = bytearray(original[name])
        content[place] ^= 1 << place % 8
        with changed(original, **{start: bytes(content)}) as folder:
            message = read(folder, mmap)
            assert (message and name in message) or json.loads(content) == json.loads(original[name])  # 1e9 and 1E9


@pytest.mark.parametrize("start", STARTS)
@given(content=st.binary(max_size=300), begin=st.sampled_from([b"", b"{", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"]))
@settings(deadline=None, max_examples=30)
def test_other_bytes(original, start, begin, content):
    with changed(original, **{start: begin + content}) as folder:
        assert name_of(original, start) in read(folder)


def test_files_that_are_missing_exchanged_or_no_files(original):
    for start in STARTS:
        with changed(original) as folder:
            file = folder / name_of(original, start)
            file.unlink()
            assert file.name in read(folder)
            file.mkdir()
            assert file.name in read(folder)
            file.rmdir()
            for target in (file, "/dev/zero", "nowhere"):
                file.symlink_to(target)
                assert file.name in read(folder)
                file.unlink()
    for start in ("others", "tables"):
        with changed(original, codes=original[name_of(original, start)]) as folder:
            assert name_of(original, "codes") in read(folder)


# Manifests of somebody who knows how to compute their checksum


def signed(content: dict) -> bytes:
    content.pop("crc32", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
    return json.dumps(content | {"crc32": zlib.crc32(text)}).encode()


EXTREMES = [
    *((1 << bits) + more for bits in (0, 8, 16, 31, 32, 47, 60, 63, 64, 2000) for more in (-1, 0)),
    -1,
    True,
    8.0,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)  # fmt: skip


def test_the_original_can_be_signed_again(original):
    with changed(original, manifest=signed(json.loads(original[MANIFEST]))) as folder:
        assert read(folder) is None


@given(text=st.one_of(JSON.map(json.dumps), st.text(max_size=50)))
@settings(deadline=None, max_examples=100)
@example(text="[" * 500_000)
@example(text='{"kind": "index", "format_version": 1, "settings": ' + '{"a":' * 100_000 + "1" + "}" * 100_001)
@example(text="1" * 10_000)
@example(text="NaN")
@example(text='{"kind": "index", "format_version": 1, "settings": 1e999}')
@example(text='{"kind": "index", "format_version": ' + "9" * 4000 + "}")
@example(text="{}" + " " * (1 << 20))
def test_manifests_of_any_json(original, text):
    with changed(original, manifest=text.encode("utf-8", "surrogatepass")) as folder:
        assert read(folder) is not None


@given(name=st.sampled_from(["kind", "format_version", "token", "files", "x"]), value=JSON | st.sampled_from(EXTREMES))
@checked
@example(name="token", value="s" + "0" * 12)
@example(name="token", value="../../../../etc")
@example(name="format_version", value=1)
@example(name="format_version", value=3)
@example(name="files", value={"../codes.npy": {"bytes": 1, "crc32": 1}})
@example(name="files", value={"/etc/passwd": {"bytes": 1, "crc32": 1}})
@example(name="files", value={})
def test_manifests_with_any_value_in_a_field(original, name, value):
    content = json.loads(original[MANIFEST])
    with changed(original, manifest=signed(content | {name: value})) as folder:
        message = read(folder, check_settings=False)
        is_same = name in content and type(value) is type(content[name]) and value == content[name]
        is_read = name == "format_version" and type(value) is int and value in (1, 2)
        is_free = name == "x" or is_same or is_read or (name == "files" and value == {})
        assert (message is None) == is_free
        assert "newer" in message if (name, value) == ("format_version", 3) else True


@given(
    file=st.sampled_from(["codes.npy", "tables.npy", "empty.npy", "codec.bin"]),
    changes=st.dictionaries(
        st.sampled_from(["bytes", "crc32", "dtype", "shape"]),
        JSON
        | st.sampled_from(EXTREMES)
        | st.lists(st.sampled_from([*EXTREMES, 2, 3, 4, 60]), max_size=9)
        | st.sampled_from(["|u1", "|i1", "<f4", ">f4", "|O", "<U4", "<M8[s]", "|V4", "f4,f4", "<f2"]),
        min_size=1,
        max_size=2,
    ),
)
@settings(deadline=None, max_examples=300)
@example(file="codes.npy", changes={"shape": [1 << 47], "dtype": "<f8"})
@example(file="codes.npy", changes={"shape": [1 << 32, 1 << 32]})
@example(file="codes.npy", changes={"shape": [-60]})
@example(file="codes.npy", changes={"shape": [60, 1]})
@example(file="codes.npy", changes={"shape": []})
@example(file="empty.npy", changes={"shape": [3, 0]})
@example(file="empty.npy", changes={"shape": [0, 1 << 40]})
@example(file="tables.npy", changes={"dtype": "<i4"})
def test_manifests_with_any_description_of_a_file(original, file, changes):
    content = json.loads(original[MANIFEST])
    before = content["files"][file]
    content["files"][file] = before | changes
    is_same = all(json.dumps(before.get(field)) == json.dumps(value) for field, value in changes.items())
    is_ignored = file == "codec.bin" and not changes.keys() & {"bytes", "crc32"}
    with changed(original, manifest=signed(content)) as folder:
        assert (read(folder) is None) == (is_same or is_ignored)


@given(
    name=st.text(max_size=30)
    | st.sampled_from(["codes.np", "codes..npy", "CODES.npy", "codes.npy\n", "a/b.npy", ".npy"])
)
@checked
def test_manifests_with_files_of_any_name(original, name):
    content = json.loads(original[MANIFEST])
    content["files"][name] = content["files"]["codec.bin"]
    with changed(original, manifest=signed(content)) as folder:
        assert read(folder, check_settings=False) is not None or name == "codec.bin"


def test_what_the_manifest_says_is_there_without_the_files(original):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, MANIFEST).write_bytes(original[MANIFEST])
        manifest = read_manifest(folder, "index")
    assert manifest.settings == SETTINGS
    assert manifest.files["tables.npy"].shape == (2, 3, 4) and manifest.files["tables.npy"].dtype == "<f4"
    for name, stored in manifest.files.items():
        content = original[name.replace(".", f"-{manifest.token}.")]
        assert (stored.bytes, stored.crc32) == (len(content), zlib.crc32(content))
