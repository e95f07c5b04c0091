"""Codes written in each form are read back, by us and by numpy and faiss."""

import os
from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from qinco.errors import ConfigError, DataError
from qinco.packing import code_dtype
from qinco.store.code_files import is_folder, lists_beside, write_codes_file
from qinco.store.code_folder import CodePlan, save_codes
from qinco.store.codes import Codes
from qinco.vectors.formats import write_vectors

FILES = [".npy", ".ivecs", ".raw", ".npz"]
FORMS = ["", *FILES]
NUM_LISTS = 1000


def random_codes(num_vectors, code_size, codebook_size, seed=0):
    codes = np.random.default_rng(seed).integers(0, codebook_size, (num_vectors, code_size))
    if codes.size:
        codes.flat[0], codes.flat[-1] = codebook_size - 1, 0
    return codes.astype(code_dtype(codebook_size))


def random_lists(num_vectors):
    return np.random.default_rng(1).integers(0, NUM_LISTS, num_vectors, dtype=np.int32)


def write(path, codes, lists, codebook_size, shard_rows=16):
    """The same codes in any form."""
    if path.suffix:
        return Codes(codes, lists).save(path, codebook_size=codebook_size, dim=12, overwrite=True)
    num_lists = 0 if lists is None else NUM_LISTS
    return save_codes(
        path, CodePlan(*codes.shape, codebook_size, num_lists, 12, shard_rows, "codec", "", {}), codes, lists
    )


def open_codes(path, num_codes, codebook_size, is_ivf, lists=None) -> Codes:
    """Open as codes of a codec of these sizes."""
    config = SimpleNamespace(codebook_size=codebook_size)
    codec = SimpleNamespace(num_codes=num_codes, config=config, is_ivf=is_ivf, fingerprint=lambda: "codec")
    return Codes.load(path, codec, lists=lists)


def read(path, codes, codebook_size, is_ivf, size=7):
    found = open_codes(path, codes.shape[1], codebook_size, is_ivf)
    blocks = [block for _, block in found.blocks(size)]
    assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
    assert len(found) == sum(map(len, blocks)) and found.has_lists == is_ivf and found.name == str(path)
    return found.codes, found.lists


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("codebook_size", [2, 32, 256, 1024, 65536])
@pytest.mark.parametrize("num_vectors", [0, 1, 11, 37])
@pytest.mark.parametrize("is_ivf", [False, True])
def test_what_is_written_is_read(tmp_path, form, codebook_size, num_vectors, is_ivf):
    codes, lists = random_codes(num_vectors, 3, codebook_size), random_lists(num_vectors) if is_ivf else None
    path = tmp_path / f"set{form}"
    written = write(path, codes, lists, codebook_size)
    if written is not None:
        assert sorted(written) == sorted(tmp_path.iterdir())
    if form == ".ivecs" and not num_vectors:
        with pytest.raises(DataError, match=r"set\.ivecs"):
            read(path, codes, codebook_size, is_ivf)
        return
    read_codes, read_lists = read(path, codes, codebook_size, is_ivf)
    assert np.array_equal(read_codes, codes)
    assert lists is None or np.array_equal(read_lists, lists)


@pytest.mark.parametrize("codebook_size", [2, 32, 256, 1024, 65536])
def test_others_read_what_is_written(tmp_path, codebook_size):
    codes, lists = random_codes(50, 5, codebook_size), random_lists(50)
    for form in FORMS:
        write(tmp_path / f"set{form}", codes, lists, codebook_size)
    assert np.load(tmp_path / "set.npy").dtype == codes.dtype
    assert np.array_equal(np.load(tmp_path / "set.npy"), codes)
    assert np.array_equal(np.load(tmp_path / "set.lists.npy"), lists[:, None])
    shards = [np.load(path) for path in sorted((tmp_path / "set").glob("codes_*.npy"))]
    assert [len(shard) for shard in shards] == [16, 16, 16, 2]
    assert np.array_equal(np.concatenate(shards), codes)
    assert {np.load(path).dtype for path in (tmp_path / "set").glob("lists_*.npy")} == {np.dtype(np.int32)}
    ivecs = np.fromfile(tmp_path / "set.ivecs", np.int32).reshape(50, 6)
    assert (ivecs[:, 0] == 5).all()
    assert np.array_equal(ivecs[:, 1:], codes)
    with np.load(tmp_path / "set.part_0.npz") as part:
        assert np.array_equal(part["codes"], np.concatenate([lists[:, None], codes], 1))
        assert part["codes"].dtype == np.int64
    packed = faiss.pack_bitstrings(codes.astype(np.int32), codebook_size.bit_length() - 1)
    assert (tmp_path / "set.raw").read_bytes() == packed.tobytes()


def test_lists_may_lie_anywhere(tmp_path):
    codes, lists = random_codes(20, 3, 16), random_lists(20)
    write(tmp_path / "set.npy", codes, None, 16)
    with pytest.raises(DataError, match=r"set\.lists\.npy"):
        open_codes(tmp_path / "set.npy", 3, 16, True)
    for name in ("other.npy", "other.ivecs"):
        write_vectors(tmp_path / name, lists[:, None])
        found = open_codes(tmp_path / "set.npy", 3, 16, True, tmp_path / name)
        assert np.array_equal(found.lists, lists)
    with pytest.raises(DataError, match=r"other\.npy"):
        open_codes(tmp_path / "set.npy", 3, 16, False, tmp_path / "other.npy")
    for wrong in (lists[:19, None], lists[:, None].astype(np.float32), np.stack([lists, lists], 1)):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(DataError, match=r"\(20, 1\)"):
            open_codes(tmp_path / "set.npy", 3, 16, True, tmp_path / "wrong.npy")


@pytest.mark.parametrize("form", ["", ".npz"])
def test_lists_within_are_not_given_again(tmp_path, form):
    write(tmp_path / f"set{form}", random_codes(20, 3, 16), random_lists(20), 16)
    with pytest.raises(ConfigError, match=r"lists=.*any\.npy"):
        open_codes(tmp_path / f"set{form}", 3, 16, True, tmp_path / "any.npy")


@pytest.mark.parametrize("form", ["", ".npz"])
@pytest.mark.parametrize(("sizes", "word"), [((4, 16), "num_codes|M"), ((3, 32), "codebook_size|K")])
def test_sets_of_other_sizes_are_refused(tmp_path, form, sizes, word):
    write(tmp_path / f"set{form}", random_codes(20, 3, 16), None, 16)
    with pytest.raises(DataError, match=f"another codec: ({word}) is"):
        open_codes(tmp_path / f"set{form}", *sizes, False)


def test_raw_codes_of_another_codec_or_truncated_are_refused(tmp_path):
    write(tmp_path / "set.raw", random_codes(20, 3, 32), None, 32)
    assert (tmp_path / "set.raw").stat().st_size == 40
    for sizes in ((4, 32), (3, 1 << 16)):
        with pytest.raises(DataError, match=r"set\.raw has 40 bytes"):
            open_codes(tmp_path / "set.raw", *sizes, False)
    (tmp_path / "set.raw").write_bytes(bytes(39))
    with pytest.raises(DataError, match=r"39 bytes.* multiple of 2,"):
        open_codes(tmp_path / "set.raw", 3, 32, False)


def test_what_is_no_file_is_refused(tmp_path):
    for name in ("x.raw", "x.npz", "x.npy"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=name):
            open_codes(tmp_path / name, 3, 16, False)


def test_names_of_folders_and_lists(tmp_path):
    (tmp_path / "there.npy").mkdir()
    names = ("codes", "codes/", "codes.npy/", tmp_path / "there.npy")
    assert [is_folder(name) for name in names] == [True] * 4
    assert [is_folder(name) for name in ("codes.npy", "codes.v2", tmp_path / "codes.raw", "n" * 300 + ".npy")] == [
        False
    ] * 4
    assert str(lists_beside("a.b/codes.v2.npy")) == "a.b/codes.v2.lists.npy"


class Killed(BaseException):
    pass


class EndsEarly:
    """Codes that kill whoever reads them beyond row 15."""

    def __init__(self, codes):
        self._codes, self.shape, self.dtype = codes, codes.shape, codes.dtype

    def __getitem__(self, key):
        if key.stop > 15:
            raise Killed
        return self._codes[key]


@pytest.mark.parametrize("form", FILES)
def test_a_kill_between_the_files_of_a_set_leaves_no_mixed_one(tmp_path, form):
    """New lists or parts beside old codes would be read as a set without a word."""
    old, new, lists = random_codes(30, 3, 16), random_codes(30, 3, 16, 5), random_lists(30)
    path = tmp_path / f"set{form}"
    write(path, old, lists, 16)
    with pytest.raises(Killed):
        write_codes_file(path, EndsEarly(new), lists[::-1], 16, 12, block_rows=4)
    with pytest.raises(DataError, match=r"No such file"):
        open_codes(path, 3, 16, True)
    write(path, new, lists[::-1], 16)
    read_codes, read_lists = read(path, new, 16, True)
    assert np.array_equal(read_codes, new)
    assert np.array_equal(read_lists, lists[::-1])


@pytest.mark.parametrize("form", FORMS)
def test_codes_are_saved_and_loaded_without_a_codec_where_they_can_be(tmp_path, form):
    codes, path = Codes(random_codes(20, 3, 16), random_lists(20)), tmp_path / f"set{form}"
    if form in ("", ".raw", ".npz"):
        with pytest.raises(ConfigError, match="codec"):
            codes.save(path)
        write(path, codes.codes, codes.lists, 16)
    else:
        codes.save(path)
        with pytest.raises(ConfigError, match="overwrite=true"):
            codes.save(path)
    if form == ".raw":
        with pytest.raises(ConfigError, match="num_codes"):
            Codes.load(path)
    found = Codes.load(path, num_codes=3, codebook_size=16) if form == ".raw" else Codes.load(path)
    assert np.array_equal(found.codes, codes.codes) and np.array_equal(found.lists, codes.lists)
