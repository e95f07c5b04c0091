"""Checkpoints that are damaged or made to harm: refused in one sentence, or read as finite values; nothing is executed.

What a refusal may cost is bounded by numbers of steps and bytes, which tests of the reader itself hold.
"""

import builtins
import os
import pickle
import random
import subprocess
import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import ARCHITECTURES, random_model
from torch_files import get, integer, items, mapping, module, name, pickled, put, save_first_code, tensor, text, zipped

from qinco.compat.torch_file import is_torch_file, read_torch_file
from qinco.config import EncodeOptions
from qinco.errors import DataError, QincoError
from qinco.store.codec import load_models, save_models

MOST_BYTES = 200 << 20
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Called:
    """Pickled as a call; tells when it is made."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def good(tmp_path):
    """A good file, which must load whatever was read before it."""
    path = tmp_path / "good.pt"
    save_models(path, [random_model(ARCHITECTURES["projected"])], None, EncodeOptions(beam_width=2), {})
    yield path
    assert load_models(path)[0][0].config == ARCHITECTURES["projected"]


def outcome(path, data: bytes) -> str:
    """How a file was read: "read", or the error's message."""
    path.write_bytes(data)
    is_torch_file(path)
    try:
        models, rotation_DD, options, provenance = load_models(path)
    except QincoError as error:
        message = str(error)
        assert isinstance(error, DataError) and message.isprintable() and len(message) < 400 + len(str(path))
        return message
    tensors = [tensor for model in models for tensor in model.state_dict().values()]
    assert all(tensor.isfinite().all() for tensor in [*tensors, *([] if rotation_DD is None else [rotation_DD])])
    assert all(model.scale > 0 for model in models)
    assert isinstance(options, EncodeOptions) and isinstance(provenance, dict)
    return "read"


# Calls


def calls(sentinel) -> dict:
    write = f"open({str(sentinel)!r}, 'w')"
    return {
        "os.system": Called(os.system, f"touch {sentinel}"),
        "eval": Called(builtins.eval, write),
        "exec": Called(builtins.exec, write),
        "open": Called(open, str(sentinel), "w"),
        "Popen": Called(subprocess.Popen, ["touch", str(sentinel)]),
        "loads": Called(pickle.loads, pickle.dumps(Called(open, str(sentinel), "w"))),
        "torch.load": Called(torch.load, str(sentinel)),
        "torch.save": Called(torch.save, 1, str(sentinel)),
        "numpy.save": Called(np.save, str(sentinel), 1),
        "import": Called(builtins.__import__, "this"),
        "getattr": Called(getattr, "a", "upper"),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_called(tmp_path, good, protocol):
    sentinel = tmp_path / "sentinel"
    for called in calls(sentinel).values():
        for content in (called, {"model": {"a": called}, "parameters": {}}, [[(called,)]], {"epoch": called}):
            message = outcome(tmp_path / "x.pt", zipped(pickle.dumps(content, protocol)))
            assert "is refused and nothing was executed" in message or "its pickle has the opcode" in message
    assert not sentinel.exists()


def test_a_call_beside_a_good_model_is_refused(tmp_path, good):
    sentinel = tmp_path / "sentinel"
    content = torch.load(good, weights_only=True)
    for called in calls(sentinel).values():
        torch.save(content | {"logger": called}, tmp_path / "x.pt")
        assert "is refused and nothing was executed" in outcome(tmp_path / "x.pt", (tmp_path / "x.pt").read_bytes())
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "attribute",
    [
        "builtins eval", "os system", "posix system", "nt system", "torch load", "torch.hub load", "torch.jit load",
        "torch.storage _load_from_bytes", "torch._utils _rebuild_tensor", "torch.nn.modules.linear os",
        "torch.FloatStorage __class__", "numpy ndarray", "numpy.core.multiarray _reconstruct", "builtins getattr",
        "copyreg _reconstructor", "collections deque", "collections OrderedDict.fromkeys", "model_qinco QINCo.__init__",
        "model_qinco __builtins__", "qinco.compat.torch_file read_torch_file",
    ],
)  # fmt: skip
def test_no_other_name_is_admitted(tmp_path, good, attribute):
    for tail in (b"", b")R", b")\x81", b"}b"):
        message = outcome(tmp_path / "x.pt", zipped(pickled(name(*attribute.split()), tail)))
        assert f"refers to {attribute.replace(' ', '.')}, which no checkpoint of QINCo contains" in message


ADMITTED = [
    ("collections", "OrderedDict"), ("model_qinco", "QINCo"), ("torch._utils", "_rebuild_tensor_v2"),
    ("__builtin__", "set"), ("numpy", "dtype"), ("numpy._core.multiarray", "scalar"), ("torch", "FloatStorage"),
]  # fmt: skip


@pytest.mark.parametrize("admitted", ADMITTED)
def test_admitted_names_cannot_be_changed(tmp_path, good, admitted):
    """BUILD sets attributes in Python's own unpickler: of classes, functions and what they made."""
    for made in (b"", b")R", b")\x81"):
        for attribute in ("__class__", "__init__", "append", "state", "shape", "get"):
            for state in (mapping(**{attribute: b"N"}), items(b"N", mapping(**{attribute: name(*admitted)}))):
                assert outcome(tmp_path / "x.pt", zipped(pickled(name(*admitted), made, state, b"b"))) != "read"


@pytest.mark.parametrize(
    "opcodes",
    [
        b"(S'true'\nios\nsystem\n", b"(o", b"\x82\1", b"\x83\1\0",
        b"\x84\1\0\0\0", text("os") + text("system") + b"\x93", name("collections", "OrderedDict") + b")}\x92", b"P0\n",
        b"\x95" + b"\xff" * 8, b"\x8f", b"\x91", b"(d", b"(l", b"N2", b"N0", b"(1", b"\x94", b"\x97", b"\x98",
        b"C\1x", b"U\1x", b"I1\n", b"L1L\n", b"F1\n", b"Vx\n", b"g0\n", b"p0\n",
    ],
)  # fmt: skip
def test_no_other_opcode_is_admitted(tmp_path, good, opcodes):
    assert "its pickle has the opcode" in outcome(tmp_path / "x.pt", zipped(pickled(opcodes)))


# Costs


def nested_modules(children: int, depth: int) -> bytes:
    parts = []
    for level in range(depth):
        inner = mapping(**{f"c{n}": get(level - 1) for n in range(children)}) if level else b"}"
        parts += [module("QINCo", d=b"K\3", M=b"K\1", K=b"K\2", L=b"K\1", h=b"K\1", _modules=inner), put(level)]
    return pickled(*parts)


def nested_lists(depth: int) -> bytes:
    return b"(]" + put(0) + b"".join(b"](" + get(n) * 10 + b"e" + put(n + 1) for n in range(depth)) + b"t"


MANY = 190_000
NO_MODEL, NO_NAME, NO_TEXT = "holds no model", "a key that is neither a number nor a name", "in the place of a str"
STEEP = {
    "deep tuple": (b")" + b"\x85" * MANY, NO_MODEL),
    "deep tuple as a key": (b"})" + b"\x85" * MANY + b"Ns", NO_NAME),
    "deep tuple as a function": (b")" + b"\x85" * MANY + b")R", NO_TEXT),
    "deep tuple as a class": (b")" + b"\x85" * MANY + b")\x81", NO_TEXT),
    "deep tuple as a storage": (
        items(text("storage"), b")" + b"\x85" * MANY, text("0"), text("cpu"), b"K\4") + b"Q", NO_TEXT
    ),
    "deep tuple as a type": (name("numpy", "dtype") + b")" + b"\x85" * MANY + b"\x85R", NO_TEXT),
    "deep list": (b"]" * MANY + b"a" * (MANY - 1), NO_MODEL),
    "many dictionaries": (b"(" + b"}" * MANY + b"t", NO_MODEL),
    "many modules": (name("model_qinco", "QINCo") + put(0) + b"(" + (b"h\0)\x81") * (MANY // 2) + b"t", NO_MODEL),
    "many tensors": (
        b"(" + tensor() + name("torch._utils", "_rebuild_parameter") + put(0) + tensor() + b"\x85" + put(1)
        + b"h\0h\1R" * (MANY // 3) + b"t",
        NO_MODEL,
    ),
    "colliding numbers": (b"}(" + b"".join(integer(n * (2**61 - 1)) + b"N" for n in range(1, 60_000)) + b"u", NO_NAME),
    "colliding tuples": (b"}(" + b"K\1K\1\x86N" * 60_000 + b"u", NO_NAME),
    "memo of 2^32": (b"N" + put(2**32 - 1), NO_MODEL),
    "memo": (b"N" + b"".join(put(n << 12) for n in range(MANY)), NO_MODEL),
    "text of 2^32 bytes": (b"X\xff\xff\xff\xff", "ValueError"),
    "text of 2^63 bytes": (b"\x8d" + b"\xff" * 7 + b"\x7f", "ValueError"),
    "bytes of 2^64": (b"\x8e" + b"\xff" * 8, "ValueError"),
    "number of 2^31 bytes": (b"\x8b\xff\xff\xff\x7f", "ValueError"),
    "digits": (b"L" + b"9" * 1_000_000 + b"L\n", "ValueError"),
    "axes": (tensor(shape=(1,) * 20_000, strides=(1,) * 20_000), "a tensor of impossible shape"),
    "laughing lists": (nested_lists(1000), NO_MODEL),
    "laughing modules": (nested_modules(100, 8)[2:-1], "nested too deeply or repeat"),
    "module chain": (nested_modules(1, 2000)[2:-1], "nested too deeply or repeat"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), STEEP.values(), ids=STEEP)
def test_steep_pickles_are_refused(tmp_path, good, content, message):
    """Python's own unpickler would overflow the stack, or insert keys of one hash for minutes."""
    assert message in outcome(tmp_path / "x.pt", zipped(pickled(content), {"data/0": bytes(16)}))


@pytest.mark.parametrize("kind", [kind for kind in STEEP if kind.startswith(("many", "memo", "text", "laughing"))])
def test_steep_pickles_take_little_memory(tmp_path, good, kind):
    tracemalloc.start()
    try:
        outcome(tmp_path / "x.pt", zipped(pickled(STEEP[kind][0]), {"data/0": bytes(16)}))
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["deep tuple", "laughing lists"])
def test_steep_values_are_not_shown(tmp_path, good, kind):
    """Python's own representation of them would recurse, or take all memory."""
    for place in ("K", "de"):
        content = mapping(model=b"}", parameters=mapping(**{place: STEEP[kind][0]}), data_dim=b"K\3")
        message = outcome(tmp_path / "x.pt", zipped(pickled(content)))
        assert f"its {place} is no number" in message
    for place in ("d", "_modules"):
        content = module("QINCo", **{place: STEEP[kind][0]})
        assert outcome(tmp_path / "x.pt", zipped(pickled(content))) != "read"


def test_bombs_are_not_unfolded(tmp_path, good):
    bomb = zipped(pickled(tensor(count=16 << 20)), {"data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        assert "it has compressed entries" in outcome(tmp_path / "x.pt", bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_structures_that_contain_themselves_are_refused(tmp_path, good):
    itself = b"}" + put(0) + b"".join(text(key) + get(0) + b"s" for key in ("model", "parameters", "data_dim"))
    assert "is a damaged checkpoint" in outcome(tmp_path / "x.pt", zipped(pickled(itself)))
    sizes = dict.fromkeys(("d", "K", "L", "M", "h"), b"K\2")
    again = mapping(**sizes, _parameters=b"}", _buffers=b"}", _modules=mapping(a=get(0)))
    child = pickled(module("QINCo"), put(0), again, b"b")
    assert "its modules are nested too deeply or repeat" in outcome(tmp_path / "x.pt", zipped(child))
    parts = {f"sub_quantizer_{n}": get(0) for n in range(2)}
    first = name("torch._utils", "_rebuild_parameter") + tensor(shape=(2, 2), strides=(2, 1)) + b"\x85R"
    book = module("QINCo", _parameters=mapping(weight=first))
    sizes |= {"L": b"K\0", "M": b"K\1", "_modules": mapping(codebook0=book)}
    for count, message in ((1, "read"), (2, "its modules are nested too deeply or repeat")):
        some = mapping(**dict(list(parts.items())[:count]))
        product = pickled(module("QINCo", **sizes), put(0), module("PQ_QINCo", _modules=some))
        assert message in outcome(tmp_path / "x.pt", zipped(product, {"data/0": bytes(16)}))


# Damage


def files(folder) -> dict[str, bytes]:
    """A small file of each kind."""
    model = random_model(ARCHITECTURES["one dimension"])
    save_models(folder / "second.pt", [model], None, EncodeOptions(num_candidates=2), {"epoch": 1})
    first = replace(ARCHITECTURES["qinco1"], num_steps=2, num_blocks=1)
    save_first_code(folder / "first.pt", [random_model(first)], 2.0)
    save_first_code(folder / "product.pt", [random_model(first), random_model(first, 1)], 2.0, torch.eye(6), True)
    save_models(folder / "ours.safetensors", [model], None, EncodeOptions(num_candidates=2), {"epoch": 1})
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return files(tmp_path_factory.mktemp("samples"))


NAMES = ["second.pt", "first.pt", "product.pt", "ours.safetensors"]


@pytest.mark.parametrize("kind", NAMES)
def test_cut_off_anywhere_it_is_refused(tmp_path, good, samples, kind):
    whole, path = samples[kind], tmp_path / kind
    assert outcome(path, whole) == "read"
    step = max(1, len(whole) // 500)
    for length in [*range(0, len(whole), step), *range(len(whole) - 80, len(whole))]:
        assert outcome(path, whole[:length]) != "read", length


@pytest.mark.parametrize("kind", NAMES)
def test_flipped_bits_are_refused_or_harmless(tmp_path, good, samples, kind):
    whole, path, generator = samples[kind], tmp_path / kind, random.Random(0)
    read = 0
    for trial in range(400):
        data = bytearray(whole)
        for _ in range(1 + trial % 3):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        read += outcome(path, bytes(data)) == "read"
    assert 0 < read < 350  # flips in values and padding cannot be seen


@pytest.mark.parametrize("kind", NAMES[:3])
def test_flipped_bits_of_the_pickle_are_refused_or_harmless(tmp_path, good, samples, kind):
    whole, path, generator = samples[kind], tmp_path / kind, random.Random(1)
    begin = whole.index(b"\x80\x02")
    end = whole.index(b"PK", begin)
    for _ in range(400):
        data = bytearray(whole)
        data[generator.randrange(begin, end)] ^= 1 << generator.randrange(8)
        outcome(path, bytes(data))


@pytest.mark.parametrize("kind", NAMES)
def test_spliced_files_are_refused_or_harmless(tmp_path, good, samples, kind):
    whole, generator = samples[kind], random.Random(2)
    for _ in range(100):
        at, length = generator.randint(0, len(whole)), generator.randint(0, 60)
        inserted = generator.randbytes(generator.choice([0, 1, 8, generator.randint(0, 60)]))
        outcome(tmp_path / kind, whole[:at] + inserted + whole[at + length :])


@QUICK
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path, good, content):
    for data in (content, b"PK\3\4" + content, content + b"PK\5\6" + content):
        assert outcome(tmp_path / "x.pt", data) != "read"


@QUICK
@given(opcodes=st.lists(st.sampled_from(
    [b"N", b")", b"]", b"}", b"(", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"b", b"R", b"\x81", b"Q",
     b"\x88", b"\x89", b"K\3", put(0), put(1), get(0), get(1), text("model"), text("storage"), integer(2**40), tensor(),
     *(name(*admitted) for admitted in ADMITTED)]
), max_size=40))  # fmt: skip
def test_random_pickles_are_refused_or_inert(tmp_path, good, opcodes):
    path = tmp_path / "x.pt"
    assert outcome(path, zipped(pickled(*opcodes), {"data/0": bytes(16)})) != "read"
    try:
        content = read_torch_file(path)
    except DataError:
        return
    assert type(content).__module__ in ("builtins", "numpy", "numpy.dtypes", "qinco.compat.torch_file")
