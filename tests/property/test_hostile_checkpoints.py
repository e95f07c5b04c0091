"""Checkpoints that are damaged or made to harm: one DataError or finite values, and nothing in a file is executed."""

import builtins
import io
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
from first_code import save_first_code
from small_models import ARCHITECTURES, random_model

from qinco.compat.torch_files import is_torch_file
from qinco.config import EncodeOptions
from qinco.errors import DataError
from qinco.store.codec import load_models, save_models


class Called:
    """Pickled as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A small file of each kind, by name."""
    folder = tmp_path_factory.mktemp("samples")
    weights, options = random_model(ARCHITECTURES["one dimension"]).weights(), EncodeOptions(num_candidates=2)
    save_models(folder / "second.pt", [weights], None, options, {"epoch": 1})
    save_models(folder / "ours.safetensors", [weights], None, options, {"epoch": 1})
    first = replace(ARCHITECTURES["qinco1"], num_steps=2, num_blocks=1)
    save_first_code(folder / "first.pt", [random_model(first)], np.float32(2.0))
    save_first_code(folder / "product.pt", [random_model(first), random_model(first, 1)], 2.0, torch.eye(6), True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def outcome(path, data: bytes) -> str:
    """How a file was read: "read", or the message of the DataError."""
    path.write_bytes(data)
    is_torch_file(path)
    try:
        parts, rotation_DD, options, provenance = load_models(path)
    except DataError as error:
        assert str(path) in str(error) and str(error).isprintable() and len(str(error)) < 400 + len(str(path))
        return str(error)
    assert all(np.isfinite(array).all() for weights in parts for array in weights.arrays.values())
    assert rotation_DD is None or np.isfinite(rotation_DD).all()
    assert all(weights.scale > 0 for weights in parts) and isinstance(options, EncodeOptions)
    assert isinstance(provenance, dict)
    return "read"


def zipped(pickled: bytes, entries=None, compression=zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    contents = {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"} | (entries or {})
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_file_is_called(tmp_path, samples, protocol):
    sentinel = tmp_path / "sentinel"
    (tmp_path / "good.pt").write_bytes(samples["second.pt"])
    good = torch.load(tmp_path / "good.pt", weights_only=True)
    for called in (
        Called(os.system, f"touch {sentinel}"), Called(builtins.eval, f"open({str(sentinel)!r}, 'w')"),
        Called(open, str(sentinel), "w"), Called(subprocess.Popen, ["touch", str(sentinel)]),
        Called(pickle.loads, pickle.dumps(Called(open, str(sentinel), "w"))), Called(torch.save, 1, str(sentinel)),
        Called(np.save, str(sentinel), 1), Called(getattr, "a", "upper"),
    ):  # fmt: skip
        for content in (called, {"model": {"a": called}, "parameters": {}}, [[(called,)]]):
            assert outcome(tmp_path / "x.pt", zipped(pickle.dumps(content, protocol))) != "read"
        torch.save(good | {"logger": called}, tmp_path / "x.pt")
        assert "nothing was executed" in outcome(tmp_path / "x.pt", (tmp_path / "x.pt").read_bytes())
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "os system", "torch load", "torch.hub load", "numpy ndarray", "model_qinco QINCo.__init__",
     "model_qinco Other", "numpy.core.multiarray _reconstruct", "collections deque", "torch.nn.modules.linear os"],
)  # fmt: skip
def test_no_other_name_is_admitted(tmp_path, name):
    pickled = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n"
    for tail in (b".", b")R.", b")\x81.", b"}b."):
        message = outcome(tmp_path / "x.pt", zipped(pickled + tail))
        assert name.replace(" ", ".").removeprefix("builtins.") in message


def test_a_bomb_is_refused_before_it_is_unfolded(tmp_path):
    bomb = zipped(b"\x80\x02N.", {"data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        assert "compressed" in outcome(tmp_path / "x.pt", bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    generator = random.Random(0)
    for size in range(0, 300, 7):
        content = generator.randbytes(size)
        for data in (content, b"PK\3\4" + content, content + b"PK\5\6" + content, zipped(b"\x80\x02" + content)):
            assert outcome(tmp_path / "x.pt", data) != "read"


KINDS = ["second.pt", "first.pt", "product.pt", "ours.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_files_are_refused(tmp_path, samples, kind):
    whole, path = samples[kind], tmp_path / kind
    assert outcome(path, whole) == "read"
    for length in [*range(0, len(whole), len(whole) // 100), *range(len(whole) - 30, len(whole))]:
        assert outcome(path, whole[:length]) != "read", length


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_harmless(tmp_path, samples, kind):
    whole, path, generator = samples[kind], tmp_path / kind, random.Random(0)
    end = whole.rfind(b"PK\1\2") if kind == "ours.safetensors" else whole.index(b"PK\3\4", 100)  # of the pickle
    for trial in range(300):
        data = bytearray(whole)
        if trial % 4 == 3:  # a splice
            at, length = generator.randint(0, len(whole)), generator.randint(0, 60)
            data[at : at + length] = generator.randbytes(generator.choice([0, 1, 8, 60]))
        for _ in range(trial % 4):
            data[generator.randrange(end if trial % 2 and end > 0 else len(data))] ^= 1 << generator.randrange(8)
        outcome(path, bytes(data))
