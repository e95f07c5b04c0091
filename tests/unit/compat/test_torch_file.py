import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch_files import get, integer, items, mapping, module, name, pickled, put, tensor, text, zipped

from qinco.compat.torch_file import Module, StoredTensor, is_torch_file, read_torch_file
from qinco.errors import DataError

FOUR = {"data/0": np.arange(4, dtype=np.float32).tobytes()}
OF_FOUR = np.array([0, 1, 2, 3], np.float32)


def saved(path, content) -> object:
    torch.save(content, path)
    return read_torch_file(path)


def read(tmp_path, data: bytes):
    (tmp_path / "x.pt").write_bytes(data)
    return read_torch_file(tmp_path / "x.pt")


def refused(tmp_path, data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, data)


def test_containers_numbers_and_strings_are_read(tmp_path):
    content = {
        "none": None, "true": True, "false": False, "small": 3, "byte": 200, "short": -70_000, "long": 2**40,
        "float": -1.5e300, "text": "é =~", "list": [1, [2], []], "tuple": (1, (2, 3), (), (1, 2, 3, 4)),
        "dict": {1: "a", "b": {}}, "ordered": OrderedDict(a=1, b=2), "set": set(),
    }  # fmt: skip
    assert saved(tmp_path / "x", content) == content


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
              torch.uint8, torch.bool]
)  # fmt: skip
def test_tensors_of_every_type_are_read(tmp_path, dtype):
    values = torch.arange(6).reshape(2, 3).to(dtype)
    tensor = saved(tmp_path / "x", values)
    assert isinstance(tensor, StoredTensor)
    assert tensor.shape == (2, 3) and tensor.dtype == values.numpy().dtype and tensor.nbytes == values.nbytes
    np.testing.assert_array_equal(tensor.read(), values.numpy())


def test_bfloat16_is_read_as_float32(tmp_path):
    values = torch.tensor([[1.5, -2.25, 3e38], [0.0, 7.0, -1e-30]], dtype=torch.bfloat16)
    for view in (values, values.T, values[1:, 1:]):
        tensor = saved(tmp_path / "x", view)
        assert tensor.dtype == np.float32 and tensor.nbytes == 4 * view.numel()
        np.testing.assert_array_equal(tensor.read(), view.float().numpy())


@pytest.mark.parametrize(
    "view",
    [lambda t: t.T, lambda t: t[1:, 2:], lambda t: t[:, 1], lambda t: t[2, 3], lambda t: t[:0], lambda t: t[::2]],
)
def test_views_are_read_as_plain_arrays(tmp_path, view):
    values = view(torch.arange(20.0).reshape(4, 5))
    found = saved(tmp_path / "x", values).read()
    np.testing.assert_array_equal(found, values.numpy())
    assert found.flags.c_contiguous and found.flags.writeable


def test_parameters_shared_tensors_and_attributes_are_read(tmp_path):
    weight = torch.nn.Parameter(torch.ones(2))
    content = saved(tmp_path / "x", {"a": weight, "b": weight, "state": torch.nn.Linear(2, 1).state_dict()})
    assert content["a"] is content["b"] and content["a"].read().tolist() == [1, 1]
    assert list(content["state"]) == ["weight", "bias"]


@pytest.mark.parametrize("scalar", [np.float32(2.5), np.float64(2.5), np.float16(2.5), np.int64(-3), np.int32(7)])
def test_numpy_numbers_are_read(tmp_path, scalar):
    assert saved(tmp_path / "x", {"scalar": scalar})["scalar"] == scalar


def test_modules_are_read_as_their_attributes(tmp_path):
    found = saved(tmp_path / "x", torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))
    assert isinstance(found, Module) and found.name == "Sequential"
    linear = found.state["_modules"]["0"]
    assert linear.name == "Linear" and linear.state["in_features"] == 2
    assert linear.state["_parameters"]["weight"].shape == (3, 2)


def test_torch_is_not_imported(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.pt")
    code = (
        "import sys; from qinco.compat.torch_file import read_torch_file; read_torch_file(sys.argv[1])['a'].read()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.pt"], check=True, timeout=60)


def test_torch_files_are_recognized(tmp_path):
    torch.save({}, tmp_path / "x")
    assert is_torch_file(tmp_path / "x") and is_torch_file(str(tmp_path / "x"))
    np.savez(tmp_path / "y.npz", a=np.zeros(3))
    (tmp_path / "text").write_text("PK")
    (tmp_path / "empty").touch()
    others = [
        tmp_path / "y.npz",
        tmp_path / "text",
        tmp_path / "empty",
        tmp_path / "none",
        tmp_path,
        "/dev/null",
        "a\0b",
    ]
    assert not any(map(is_torch_file, others))


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_torch_file(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a folder"):
        read_torch_file(tmp_path)


@pytest.mark.parametrize("content", [b"PK", b"\x80\x02}q\0.", b"\x93NUMPY", b"\0" * 999])
def test_other_files_are_named(tmp_path, content):
    refused(tmp_path, content, "is not a checkpoint in PyTorch's zip format: it is damaged, of another kind, or was")


def test_the_format_before_zip_is_named(tmp_path):
    torch.save({"a": 1}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"written by PyTorch before 1\.6"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_newer_pickles_are_refused(tmp_path, protocol):
    torch.save({"a": 1, "b": b"x"}, tmp_path / "x.pt", pickle_protocol=protocol)
    with pytest.raises(DataError, match=r"its pickle has the opcode .*, which torch.save does not write"):
        read_torch_file(tmp_path / "x.pt")


# Tensors that lie


def test_a_tensor_put_together_by_hand_is_read(tmp_path):
    np.testing.assert_array_equal(read(tmp_path, zipped(pickled(tensor()), FOUR)).read(), OF_FOUR)
    backwards = tensor(shape=(2, 2), strides=(1, 2))
    np.testing.assert_array_equal(read(tmp_path, zipped(pickled(backwards), FOUR)).read(), [[0, 2], [1, 3]])


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"shape": (5,)}, "a tensor beyond its storage"),
        ({"offset": 1}, "a tensor beyond its storage"),
        ({"offset": 2**40}, "a tensor beyond its storage"),
        ({"strides": (2,)}, "a tensor beyond its storage"),
        ({"shape": (2**20,), "strides": (0,)}, "a tensor beyond its storage"),
        ({"shape": (2**47, 2**47), "strides": (0, 0)}, "a tensor beyond its storage"),
        ({"offset": -1}, "a tensor of impossible shape"),
        ({"strides": (-1,)}, "a tensor of impossible shape"),
        ({"shape": (-4,)}, "a tensor of impossible shape"),
        ({"shape": (2**60,)}, "a tensor of impossible shape"),
        ({"shape": (4, 1)}, "a tensor of impossible shape"),
        ({"shape": (1,) * 9, "strides": (1,) * 9}, "a tensor of impossible shape"),
        ({"count": 5}, "it promises 5 values of float32 in 16 bytes"),
        ({"count": 2, "kind": "LongStorage"}, "a tensor beyond its storage"),
        ({"count": -4}, "an unknown kind of storage"),
        ({"count": 2**2000}, "an unknown kind of storage"),
        ({"key": "1"}, "one of its entries is missing"),
        ({"key": "../data.pkl"}, "one of its entries is missing"),
        ({"kind": "ComplexFloatStorage"}, "refers to torch.ComplexFloatStorage, which no checkpoint of QINCo contains"),
    ],
)
def test_tensors_that_lie_are_refused(tmp_path, lie, message):
    refused(tmp_path, zipped(pickled(tensor(**lie)), FOUR), message)


def test_empty_tensors_of_any_shape_are_empty(tmp_path):
    found = read(tmp_path, zipped(pickled(tensor(shape=(0, 2**40), strides=(1, 1))), FOUR))
    assert found.read().shape == (0, 2**40) and found.nbytes == 0
    refused(tmp_path, zipped(pickled(tensor(shape=(0, 2**47, 2**47), strides=(1, 1, 1))), FOUR), "makes no sense")


def test_storages_cannot_be_made_up(tmp_path):
    made_up = items(items(text("abc"), b"\x88"), integer(0), items(integer(3)), items(integer(1)), b"\x89", b"}")
    data = pickled(name("torch._utils", "_rebuild_tensor_v2"), made_up, b"R")
    refused(tmp_path, zipped(data), "a tuple in the place of a _Storage")


# Archives that lie


def test_compressed_entries_are_refused(tmp_path):
    data = zipped(pickled(tensor(count=1 << 20)), {"data/0": bytes(4 << 20)}, zipfile.ZIP_DEFLATED)
    refused(tmp_path, data, "it has compressed entries")


def test_duplicate_and_overlapping_entries_are_refused(tmp_path):
    whole = zipped(pickled(tensor()), FOUR | {"data/1": b"\0" * 16})
    refused(tmp_path, whole.replace(b"archive/data/1", b"archive/data/0"), "it has entries that overlap")
    grown = bytearray(whole)
    at = whole.rindex(b"PK\1\2") + 20  # both sizes of the last entry
    grown[at : at + 8] = len(whole).to_bytes(4, "little") * 2
    refused(tmp_path, bytes(grown), "it has entries that overlap")


def test_entries_elsewhere_are_refused(tmp_path):
    whole = zipped(pickled(tensor()), FOUR)
    at = whole.rindex(b"PK\1\2") + 42
    for offset, message in ((1, "one of its entries is damaged"), (2**31, "one of its entries is damaged")):
        moved = whole[:at] + offset.to_bytes(4, "little") + whole[at + 4 :]
        refused(tmp_path, moved, message)
    cut = bytearray(whole)
    begin = whole.rindex(b"PK\3\4")
    cut[begin + 28 : begin + 30] = b"\xff\xff"  # the local header's extra bytes
    refused(tmp_path, bytes(cut), "one of its entries is cut off")


def test_a_table_of_contents_of_any_size_is_not_read(tmp_path):
    entry = b"PK\1\2" + bytes(24) + b"\1" + bytes(17) + b"x"
    count = (5 << 20) // len(entry)
    end = b"PK\5\6" + bytes(8) + (count * len(entry)).to_bytes(4, "little") + (30).to_bytes(4, "little") + bytes(2)
    refused(tmp_path, b"PK\3\4" + bytes(26) + entry * count + end, r"its table of contents takes \d+ bytes")


def test_archives_without_a_pickle_or_with_two_are_refused(tmp_path):
    whole = zipped(pickled(b"N"))
    refused(tmp_path, whole.replace(b"data.pkl", b"data.plk"), "it has no data.pkl inside")
    refused(tmp_path, zipped(pickled(b"N"), {"x/data.pkl": b"N."}), "it has no data.pkl inside")


def test_big_endian_files_are_refused(tmp_path):
    refused(tmp_path, zipped(pickled(tensor()), FOUR).replace(b"little", b"bigger"), "its byte order is not little")


def test_what_it_costs_is_bounded(tmp_path):
    refused(tmp_path, zipped(pickled(b"N" * (5 << 20))), "its pickle takes 5242883 bytes")
    refused(tmp_path, zipped(pickled(b"(" + b"N" * 400_000 + b"t")), "its pickle takes more than 400000 steps")


# Pickles that lie


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"", "IndexError"),
        (b"}Na", "a dict in the place of a list"),
        (b"]NNs", "a list in the place of a dict"),
        (b"}NNs", "a key that is neither a number nor a name"),
        (b"})Ns", "a key that is neither a number nor a name"),
        (b"}" + integer(2**61 - 1) + b"Ns", "a key that is neither a number nor a name"),
        (b"}" + text("\x1b[2J") + b"Ns", "a key that is neither a number nor a name"),
        (b"}" + text("k" * 300) + b"Ns", "a key that is neither a number nor a name"),
        (b"}(" + text("k") + b"u", "ValueError"),
        (b"N\x86", "its pickle takes more than it has"),
        (get(3), "KeyError"),
        (text("os") + b")R", "KeyError"),
        (b"))R", "a tuple in the place of a str"),
        (name("collections", "OrderedDict") + b"}R", "a dict in the place of a tuple"),
        (name("collections", "OrderedDict") + b"N\x85R", "TypeError"),
        (name("collections", "OrderedDict") + b")\x81", "KeyError"),
        (name("collections", "OrderedDict") + b"}b", "a str in the place of a dict"),
        (name("model_qinco", "QINCo") + b")R", "KeyError"),
        (name("model_qinco", "QINCo") + text("x") + b"\x85\x81", "TypeError"),
        (name("model_qinco", "QINCo") + b")\x81]b", "a list in the place of a dict"),
        (name("torch._utils", "_rebuild_parameter") + b"N\x85R", "a NoneType in the place of a StoredTensor"),
        (name("__builtin__", "set") + b"]Na\x85R", "a set with elements"),
        (name("numpy", "dtype") + text("O8") + b"\x85R", "KeyError"),
        (name("numpy.core.multiarray", "scalar") + b"NN\x86R", "a number without a type"),
        (name("numpy", "dtype") + text("f4") + b"\x85R" + items(b"K\3", text(">")) + b"b", "another byte order"),
        (name("_codecs", "encode") + text("é" * 3) + b"\x85R", "TypeError"),
        (b"NQ", "TypeError"),
        (items(b"N", b"N", b"N", b"N", b"N") + b"Q", "a NoneType in the place of a str"),
    ],
)
def test_pickles_that_make_no_sense_are_refused(tmp_path, opcodes, message):
    refused(tmp_path, zipped(pickled(opcodes)), message)


def test_recursive_structures_are_read_as_they_are(tmp_path):
    itself = read(tmp_path, zipped(pickled(b"}" + put(0) + text("a") + get(0) + b"s")))
    assert itself["a"] is itself
    child = read(tmp_path, zipped(pickled(module("QINCo", d=b"K\3"), put(0), mapping(me=get(0)), b"b")))
    assert child.state["me"] is child and child.name == "QINCo"


def test_foreign_names_are_printable(tmp_path):
    refused(tmp_path, zipped(pickled(name("a\x1b[2J", "b"))), r"refers to 'a\\x1b\[2J.b', which no checkpoint of QINCo")
    refused(tmp_path, zipped(pickled(name("m" * 500, "b"))), "refers to m{100}, which")
