"""A leading ~/ is the user's folder in Python as in shells, and codecs are read from and written to memory."""

import io
from pathlib import Path

import numpy as np
import pytest

import qinco
from qinco.errors import ConfigError, DataError

SMALL = {"num_steps": 2, "codebook_size": 16, "num_blocks": 0, "epochs": 0}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The user's folder; the current one is another, and stays empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


@pytest.fixture(scope="module")
def codec():
    return qinco.Codec.fit(np.random.default_rng(0).standard_normal((300, 8), np.float32), **SMALL)


def test_every_call_reads_and_writes_in_the_users_folder(home, codec):
    x = np.random.default_rng(1).standard_normal((300, 8), np.float32)
    qinco.write_vectors("~/x.npy", x)
    np.testing.assert_array_equal(qinco.open_vectors(Path("~/x.npy"))[:], x)
    qinco.kmeans("~/x.npy", 4, output="~/k.npy")
    qinco.Codec.fit("~/x.npy", output="~/i.safetensors", coarse_centroids="~/k.npy", **SMALL)
    qinco.Codec.fit("~/x.npy", output="~/i.safetensors", coarse_centroids="~/k.npy", resume=True, **SMALL)
    codec.save("~/c.safetensors")
    qinco.convert_codec("~/c.safetensors", "~/c.pt")
    assert qinco.Codec.load("~/c.pt").fingerprint() == codec.fingerprint()
    codes = codec.encode(x)
    for name in ("codes", "codes.npy", "codes.npz", "codes.raw"):
        qinco.encode_file(codec, "~/x.npy", f"~/{name}")
        np.testing.assert_array_equal(qinco.Codes.load(f"~/{name}", codec), codes)
        qinco.decode_file(codec, f"~/{name}", f"~/{name}.fvecs")
        codes.save(f"~/saved_{name}", codec)
        assert qinco.describe(f"~/saved_{name}")["kind"]
    qinco.fit_pairwise_decoder("~/x.npy", "~/codes", codec=codec, output="~/p.safetensors")
    more = {"codec": codec, "train_vectors": "~/x.npy", "pairwise": "~/p.safetensors", "centroids": "~/k.npy"}
    qinco.build_index("~/codes", "~/ix", **more)
    index = qinco.Index.load("~/ix")
    index.add("~/x.npy")
    index.save("~/ix2")
    truth = qinco.exhaustive_search("~/x.npy", "~/x.npy", k=1)[1]
    qinco.write_vectors("~/gt.ivecs", truth)
    how = {"nprobe": [1], "num_short": [5], "mid_factors": [0]}
    qinco.sweep("~/ix", "~/x.npy", "~/gt.ivecs", **how, output="~/s.json")
    qinco.find_neighbors("~/ix", "~/x.npy", ground_truth="~/gt.ivecs", output="~/n.npy", distances_output="~/d.npy")
    wanted = {"i.safetensors.last", "codes.npy.fvecs", "p.safetensors", "ix", "ix2", "s.json", "n.npy", "d.npy"}
    assert wanted <= {file.name for file in home.iterdir()}


def test_a_tilde_elsewhere_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~").mkdir()
    qinco.write_vectors("./~/x.npy", np.zeros((2, 3), np.float32))
    assert [file.name for file in Path("~").iterdir()] == ["x.npy"]
    assert qinco.open_vectors("./~/x.npy").shape == (2, 3)


def test_codecs_in_memory(codec, tmp_path):
    content = codec.to_bytes()
    codec.save(tmp_path / "c.safetensors")
    with (tmp_path / "other").open("wb") as file:
        codec.save(file)
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "other").read_bytes() == content
    qinco.convert_codec(codec, tmp_path / "c.pt")
    for source in (content, memoryview(content), io.BytesIO(content), io.BytesIO((tmp_path / "c.pt").read_bytes())):
        assert qinco.Codec.load(source).fingerprint() == codec.fingerprint()
    wrong = (content[:-9], DataError), (b"", DataError), (io.StringIO("c"), ConfigError), (3, ConfigError)
    for source, error in wrong:
        with pytest.raises(error):
            qinco.Codec.load(source)
