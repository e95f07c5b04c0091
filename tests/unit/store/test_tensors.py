import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save_file
from small_models import ARCHITECTURES

from qinco.errors import DataError, QincoError
from qinco.model.qinco import Qinco
from qinco.model.weights import check_promise, weight_shapes
from qinco.store.tensors import FORMAT_VERSION, read_header, read_tensors, write_tensors

A = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "é =~.safetensors"
    write_tensors(path, "test", {"n": 3, "text": "é"}, {"a": A, "b": np.array(1.5)})
    return path


def test_what_was_written_is_read(path):
    header, tensors = read_tensors(path, "test")
    assert header == {"kind": "test", "format_version": FORMAT_VERSION, "n": 3, "text": "é"}
    assert np.array_equal(tensors["a"], A) and tensors["b"].shape == ()
    assert read_header(path) == header


def test_views_are_written_as_plain_arrays(tmp_path):
    write_tensors(tmp_path / "x", "test", {}, {"t": A.T, "part": A[1]})
    tensors = read_tensors(tmp_path / "x", "test")[1]
    assert tensors["t"].tolist() == [[0, 3], [1, 4], [2, 5]] and tensors["part"].tolist() == [3, 4, 5]


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qinco.atomic.write_to_disk", fail)
    with pytest.raises(QincoError, match="No space left"):
        write_tensors(path, "test", {}, {})
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_truncated_anywhere_it_is_refused(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut"
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 4, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut is not a readable safetensors file|cut is empty"):
            read_tensors(cut, "test")


@pytest.mark.parametrize(
    "content", [b"\x93NUMPY", b"PK\x03\x04" * 40, b"\xff" * 64, b"\x80\x02}q\x00." * 9, b"\0" * 99]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match="is not a readable safetensors file"):
        read_tensors(tmp_path / "x", "test")


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        read_tensors(tmp_path / "nowhere", "test")
    with pytest.raises(DataError, match="is a folder"):
        read_tensors(tmp_path, "test")


def test_another_kind_is_named(path):
    with pytest.raises(DataError, match="holds a test, not a codec"):
        read_tensors(path, "codec")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no qinco header"),
        ({"format": "pt"}, "no qinco header"),
        ({"qinco": "{"}, "damaged qinco header"),
        ({"qinco": "[" * 100_000}, "damaged qinco header"),
        ({"qinco": "[1]"}, "damaged qinco header"),
        ({"qinco": "{}"}, "damaged qinco header"),
        ({"qinco": json.dumps({"kind": 3, "format_version": 1})}, "damaged qinco header"),
        ({"qinco": json.dumps({"kind": "test", "format_version": "1"})}, "damaged qinco header"),
        (
            {"qinco": json.dumps({"kind": "test", "format_version": FORMAT_VERSION + 1})},
            f"format version {FORMAT_VERSION + 1}",
        ),
    ],
)
def test_foreign_damaged_and_newer_headers_are_refused(tmp_path, metadata, message):
    save_file({"a": torch.zeros(2)}, tmp_path / "x", metadata=metadata)
    for read in (lambda: read_header(tmp_path / "x"), lambda: read_tensors(tmp_path / "x", "test")):
        with pytest.raises(DataError, match=message):
            read()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_known_without_building_a_model(name):
    for num_steps in (1, 2, 5):
        config = replace(ARCHITECTURES[name], num_steps=num_steps)
        expected = {key: tuple(tensor.shape) for key, tensor in Qinco.empty(config).state_dict().items()}
        assert weight_shapes(config) == expected
        check_promise("x", config, len(expected))
        blocks = sum(".blocks." in key for key in expected)
        with pytest.raises(DataError, match="x does not fit its configuration"):
            check_promise("x", config, num_steps + blocks - 1)


def test_files_are_those_of_safetensors(tmp_path):
    types = [np.uint8, np.float16, np.float32, np.int64]
    arrays = {f"é{rows}": np.ones((rows, 3), dtype) for rows, dtype in enumerate(types)} | {"a": np.array(3)}
    write_tensors(tmp_path / "x", "test", {"a": "é"}, arrays)
    header = json.dumps({"kind": "test", "format_version": 1, "a": "é"}, sort_keys=True)
    assert (tmp_path / "x").read_bytes() == save(arrays, {"qinco": header})
    others = {dtype.__name__: np.ones(3, dtype) for dtype in (np.bool_, np.int16, np.float64)}
    write_tensors(tmp_path / "x", "test", {}, others)
    for name, array in read_tensors(tmp_path / "x", "test")[1].items():
        assert np.array_equal(others[name], array) and array.dtype == others[name].dtype


def test_numbers_that_numpy_has_not_are_refused(tmp_path):
    metadata = {"qinco": json.dumps({"kind": "test", "format_version": 1})}
    save_file({"a": torch.ones(2), "b": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "x", metadata=metadata)
    with pytest.raises(DataError, match="x does not fit its configuration: tensor b is BF16, not float32"):
        read_tensors(tmp_path / "x", "test")
