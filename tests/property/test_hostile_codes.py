"""Whatever lies where codes should be is read as what was written, or refused in one sentence, at little cost."""

import dataclasses
import io
import json
import os
import resource
import shutil
import tempfile
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qinco.compat.encoded_sets import npz_part
from qinco.description import describe
from qinco.errors import QincoError
from qinco.store.code_folder import CodePlan, save_codes
from qinco.store.codes import Codes
from qinco.store.manifest import MANIFEST

K, M, NUM_LISTS, COUNT, SHARD_ROWS = 16, 3, 40, 20, 12
CODES = np.random.default_rng(0).integers(0, K, (COUNT, M), dtype=np.uint8)
LISTS = np.random.default_rng(1).integers(0, NUM_LISTS, (COUNT, 1), dtype=np.int32)
MOST_MEMORY = 200 << 20
EXTREMES = [
    0,
    1,
    2,
    8,
    0x7F,
    0x80,
    0xFFFF,
    1 << 20,
    *((1 << bits) + more for bits in (31, 32, 60, 63, 64) for more in (-1, 0)),
]


@contextmanager
def bounded_memory():
    """Give what runs inside 200 MB of address space more than it has: what asks for more is a MemoryError."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def say(error: QincoError) -> str:
    message = str(error)
    assert 10 < len(message) < 700
    assert message.isprintable(), "a sentence in one line"
    return message


def load(path, num_codes=M, codebook_size=K, is_ivf=True) -> Codes:
    config = SimpleNamespace(codebook_size=codebook_size)
    codec = SimpleNamespace(num_codes=num_codes, config=config, is_ivf=is_ivf, fingerprint=lambda: "codec")
    return Codes.load(path, codec)


def read(path, is_ivf=True):
    """Codes and lists, or the sentence that refuses them."""
    try:
        blocks = [block for _, block in load(path, is_ivf=is_ivf).blocks(7)]
    except QincoError as error:
        return say(error)
    return (CODES[:0], LISTS[:0, 0]) if not blocks else tuple(Codes.concatenate(blocks))


def check(path, is_ivf=True) -> str | None:
    """Reading and describing end well; the sentence that refuses what is not what was written."""
    with bounded_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            json.dumps(describe(str(path)))
        except QincoError as error:
            say(error)
        found = read(path, is_ivf)
    if isinstance(found, str):
        return found
    assert np.array_equal(found[0], CODES)
    assert np.array_equal(found[1], LISTS[:, 0])
    return None


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    """A set in the authors' form, compressed and not, and folders of both format versions, as bytes."""
    folder = tmp_path_factory.mktemp("originals")
    Codes(CODES, LISTS).save(folder / "x.npz", codebook_size=K, dim=8)
    joined = np.asfortranarray(np.concatenate([LISTS, CODES], 1, dtype=np.int64))
    np.savez(folder / "y.npz", n_parts=1, K=K, M=M, D=8)
    np.savez(folder / "y.part_0.npz", codes=joined)
    plan = CodePlan(COUNT, M, K, NUM_LISTS, 8, SHARD_ROWS, "codec", "source", {"beam_width": 4})
    save_codes(folder / "z", plan, CODES, LISTS)
    (folder / "w").mkdir()
    content = dataclasses.asdict(plan) | {"kind": "codes", "format_version": 1, "complete": True}
    content |= {"code_size": content.pop("num_codes"), "search": content.pop("encode")}
    (folder / "w" / MANIFEST).write_text(json.dumps(content, indent=2))
    for shard in range(2):
        rows = plan.rows(shard)
        np.save(folder / "w" / f"codes-0000{shard}.npy", CODES[rows])
        np.save(folder / "w" / f"lists-0000{shard}.npy", LISTS[rows])
    for name in ("x.npz", "y.npz", "z", "w"):
        assert check(folder / name) is None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def copies(originals, name):
    """A fresh copy of a set, and its path."""
    with tempfile.TemporaryDirectory() as folder:
        for file, data in originals.items():
            if file.startswith(name[0]):
                path = Path(folder, file)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
        yield Path(folder, name)


def file_of(path: Path, part: str) -> Path:
    if path.name == "z":
        (found,) = path.glob(part.replace(".", "*."))
        return found
    return {"index": path, "part": npz_part(path, 0)}.get(part) or path / part


SETS = ["x.npz", "y.npz"]
FILES = [(name, part) for name in SETS for part in ("index", "part")]
FILES += [("w", part) for part in ("codes-00001.npy", "lists-00000.npy", MANIFEST)]
FILES += [("z", part) for part in ("codes_00001.npy", "lists_00000.npy", MANIFEST)]
several = pytest.mark.usefixtures("turn")


@pytest.fixture(scope="module", params=[0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, 5))])
def turn(request) -> int:
    """Slow tests draw more examples, each turn others."""
    return request.param


@pytest.mark.parametrize(("name", "part"), FILES)
@pytest.mark.parametrize(
    ("first", "step"), [(0, 40), *(pytest.param(first, 8, marks=pytest.mark.slow) for first in range(8))]
)
def test_truncated_at_each_offset(originals, name, part, first, step):
    with copies(originals, name) as path:
        file = file_of(path, part)
        data = file.read_bytes()
        for size in range(first, len(data), step):
            file.write_bytes(data[:size])
            message = check(path)
            assert message is not None or data[size:].isspace(), f"{size} of {len(data)} bytes are as good as all"


@several
@pytest.mark.parametrize(("name", "part"), FILES)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3))
@settings(deadline=None, max_examples=20)
def test_flipped_bits(originals, name, part, flips):
    with copies(originals, name) as path:
        file = file_of(path, part)
        data = bytearray(file.read_bytes())
        for place, bit in flips:
            data[int(place * len(data))] ^= 1 << bit
        file.write_bytes(data)
        if name == "w" and part != MANIFEST:
            accept_other_codes(path)  # these shards have no checksum: a flip may give other codes
        else:
            check(path)


def accept_other_codes(path):
    with bounded_memory():
        found = read(path)
    assert isinstance(found, str) or found[0].shape == CODES.shape


@several
@pytest.mark.parametrize(("name", "part"), [*FILES[:4], ("w", "codes-00000.npy")])
@given(place=st.floats(0, 1, exclude_max=True), value=st.sampled_from(EXTREMES), size=st.sampled_from([1, 2, 4, 8]))
@settings(deadline=None, max_examples=30)
def test_extreme_numbers_anywhere(originals, name, part, place, value, size):
    with copies(originals, name) as path:
        file = file_of(path, part)
        data = file.read_bytes()
        start = int(place * len(data))
        file.write_bytes(data[:start] + (value & ((1 << 8 * size) - 1)).to_bytes(size, "little") + data[start + size :])
        if name == "w":
            accept_other_codes(path)
        else:
            check(path)


STARTS = [b"", b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f", b"{"]


@several
@pytest.mark.parametrize(("name", "part"), FILES)
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
@settings(deadline=None, max_examples=15)
def test_random_bytes(originals, name, part, start, rest):
    with copies(originals, name) as path:
        file_of(path, part).write_bytes(start + rest)
        assert check(path) is not None


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def array_file(description: str, content=b"") -> bytes:
    header = description.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


ROWS = np.concatenate([LISTS, CODES], 1).astype("<i8").tobytes()
HEADERS = {
    "2^60 rows": "{'descr': '<i8', 'fortran_order': False, 'shape': (1152921504606846976, 4), }",
    "rows that overflow to what is there": f"{{'descr': '<i8', 'fortran_order': True, 'shape': ({2**62 + 20}, 4), }}",
    "negative rows": "{'descr': '<i8', 'fortran_order': False, 'shape': (-20, -4), }",
    "more digits than Python prints": "{'descr': '<i8', 'fortran_order': False, 'shape': (0x" + "f" * 5000 + ", 4), }",
    "more axes than there are": "{'descr': '<i8', 'fortran_order': False, 'shape': (" + "1, " * 2000 + "20, 4), }",
    "fractions": "{'descr': '<i8', 'fortran_order': False, 'shape': (20.0, 4), }",
    "true rows": "{'descr': '<i8', 'fortran_order': False, 'shape': (True, 80), }",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (20, 4), }",
    "fields": "{'descr': [('a', '<i4'), ('b\\n', '<i4')], 'fortran_order': False, 'shape': (20, 4), }",
    "arrays in arrays": "{'descr': ('<i4', (2,)), 'fortran_order': False, 'shape': (20, 4), }",
    "endless type": "{'descr': " + "[" * 90 + "]" * 90 + ", 'fortran_order': False, 'shape': (20, 4), }",
    "no type": "{'descr': 'qinco', 'fortran_order': False, 'shape': (20, 4), }",
    "wide type": "{'descr': '<V800000000', 'fortran_order': False, 'shape': (20, 4), }",
    "code": "__import__('os').system('false')",
    "a call": "{'descr': '<i8', 'fortran_order': print('x'), 'shape': (20, 4), }",
    "bad escape": "{'descr': '\\\\d', 'fortran_order': False, 'shape': (20, 4), }",
    "Python 2's numbers": "{'descr': '<i8', 'fortran_order': False, 'shape': (20L, 5L), }",
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(originals, name):
    content = array_file(HEADERS[name], ROWS)
    with copies(originals, "x.npz") as path:
        npz_part(path, 0).write_bytes(zipped(codes=content))
        assert check(path) is not None
    with copies(originals, "w") as path:
        (path / "codes-00000.npy").write_bytes(content)
        assert check(path) is not None
        (path / "codes.npy").write_bytes(content)
        shutil.copy(path / "lists-00000.npy", path / "codes.lists.npy")
        assert check(path / "codes.npy") is not None


def test_what_is_said_of_sizes_is_not_believed(originals):
    """An entry of the archive that claims, in numbers of 64 bits, what its array claims."""
    rows = 1 << 55
    header = array_file(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows}, 4), }}")
    for compressed in (None, 1 << 40, 1 << 62):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("codes.npy", header + ROWS)
            entry = archive.getinfo("codes.npy")
            entry.file_size, entry.compress_size = rows * 32 + len(header), compressed or entry.compress_size
        with copies(originals, "x.npz") as path:
            npz_part(path, 0).write_bytes(file.getvalue())
            assert "would expand" in check(path)


@pytest.mark.parametrize("dtype", ["<i8", "<i1"])
@pytest.mark.parametrize("megabytes", [60, 100, 400])
def test_bombs_do_not_explode(originals, dtype, megabytes):
    """Zeros are codes, so that a small bomb is a set: it is read in little memory; a larger one is refused."""
    rows = (megabytes << 20) // np.dtype(dtype).itemsize // 4
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("codes.npy", "w") as member:
        member.write(array_file(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({rows}, 4), }}"))
        for _ in range(megabytes):
            member.write(bytes(1 << 20))
    with copies(originals, "x.npz") as path:
        npz_part(path, 0).write_bytes(file.getvalue())
        with bounded_memory():
            try:
                seen = 0
                for _, block in load(path).blocks():
                    assert not block.codes.any() and not block.lists.any()
                    seen += len(block)
                assert (seen, megabytes) == (rows, 60)
            except QincoError as error:
                assert "would expand" in say(error)
                assert megabytes > 60


class Exploit:
    """An object whose pickle makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("member", ["codes", "K", "n_parts"])
def test_pickles_are_never_loaded(originals, tmp_path, member):
    shape = (1,) if member == "codes" else ()
    exploit = np.empty(shape, object)
    exploit[...] = Exploit(tmp_path / "executed")
    with copies(originals, "x.npz") as path, copies(originals, "w") as folder:
        if member == "codes":
            np.savez(npz_part(path, 0), codes=exploit)
        else:
            np.savez(path, **{"n_parts": 1, "K": K, "M": M, "D": 8} | {member: exploit})
        assert "object" in check(path)
        np.save(folder / "codes-00000.npy", exploit)
        assert "pickled Python objects, which are never loaded" in check(folder)
        (folder / "codes-00000.npy").write_bytes(exploit.dumps())
        assert check(folder) is not None
        path.write_bytes(exploit.dumps())
        assert check(path) is not None
    assert not (tmp_path / "executed").exists()
    import pickle

    pickle.loads(exploit.dumps())
    assert (tmp_path / "executed").exists(), "the test can fail"


def test_encrypted_and_doubled_members(originals):
    data = bytearray(originals["x.part_0.npz"])
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    with copies(originals, "x.npz") as path:
        npz_part(path, 0).write_bytes(data)
        assert "encrypted" in check(path)
        with warnings.catch_warnings(), zipfile.ZipFile(npz_part(path, 0), "w") as archive:
            warnings.simplefilter("ignore")
            archive.writestr("codes.npy", b"the first is not read, by numpy neither")
            archive.writestr("codes.npy", zipfile.ZipFile(io.BytesIO(originals["x.part_0.npz"])).read("codes.npy"))
        assert check(path) is None
        for wrong in ("../codes.npy", "/codes.npy", "codes", "Codes.npy", "codes.npy/"):
            npz_part(path, 0).write_bytes(zipped(**{wrong.removesuffix(".npy"): b"x"}))
            assert check(path) is not None


# Folders of shards

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
FREE = {"source": str, "search": dict, "dim": int, "num_lists": int}  # what readers cannot check
FIELDS = ["num_vectors", "code_size", "codebook_size", "num_lists", "dim", "shard_rows", "codec"]
FIELDS += ["source", "search", "complete"]


@given(text=st.one_of(JSON.map(json.dumps), st.text(max_size=50)))
@settings(deadline=None, max_examples=100)
@example(text="[" * 500_000)
@example(text='{"kind": "codes", "format_version": 1, "search": ' + '{"a":' * 100_000 + "1" + "}" * 100_001)
@example(text="1" * 10_000)
@example(text="NaN")
def test_manifests_of_any_json(originals, text):
    with copies(originals, "w") as path:
        (path / MANIFEST).write_text(text, "utf-8", "surrogatepass")
        assert check(path) is not None


@given(
    name=st.sampled_from([*FIELDS, "kind", "format_version", "../x", "new\nline"]),
    value=JSON | st.sampled_from(EXTREMES),
)
@settings(deadline=None, max_examples=300)
@example(name="num_vectors", value=1 << 47)
@example(name="shard_rows", value=1)
@example(name="shard_rows", value=1 << 47)
@example(name="code_size", value=1 << 47)
@example(name="codec", value="x" * 1_000_000)
@example(name="search", value={"x": "y" * 1_000_000})
@example(name="num_lists", value=0)
def test_manifests_with_any_value_in_a_field(originals, name, value):
    with copies(originals, "w") as path:
        content = json.loads((path / MANIFEST).read_text())
        (path / MANIFEST).write_text(json.dumps(content | {name: value}))
        is_same = name in content and type(content[name]) is type(value) and content[name] == value
        is_free = type(value) is FREE.get(name) and (name not in ("dim", "num_lists") or 0 < value < 1 << 48)
        if name == "num_vectors" and value == 0 and value is not False:
            assert len(read(path)[0]) == 0
        else:
            assert (check(path) is None) == (is_same or is_free)


FIRST = CODES[:SHARD_ROWS]


@pytest.mark.parametrize(
    "shard",
    [
        CODES[: SHARD_ROWS - 1],
        CODES[: SHARD_ROWS + 1],
        FIRST[:, :2],
        FIRST.astype(float),
        FIRST.astype("<U2"),
        FIRST.astype(">u2"),
        FIRST[0],
        FIRST + np.uint8(K),
    ],
)
def test_shards_of_other_shapes_and_types(originals, shard):
    with copies(originals, "w") as path:
        np.save(path / "codes-00000.npy", shard)
        if shard.shape == FIRST.shape and shard.dtype == np.uint8:  # values are the codec's to check
            assert read(path)[0].max() >= K
        else:
            assert check(path) is not None


# Files without a header


@given(content=st.binary(max_size=60), code_size=st.integers(1, 9), bits=st.integers(1, 16))
@settings(deadline=None, max_examples=200)
def test_raw_codes_of_any_bytes(content, code_size, bits):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.raw")
        path.write_bytes(content)
        describe(str(path))
        row = (code_size * bits + 7) // 8
        try:
            there = load(path, code_size, 1 << bits, False)
            codes = [block.codes for _, block in there.blocks(7)]
        except QincoError as error:
            assert "not a multiple" in say(error)
            assert len(content) % row
            return
        assert len(there) == len(content) // row == sum(map(len, codes))
        assert all(codes_NM.max() < 1 << bits for codes_NM in codes)
