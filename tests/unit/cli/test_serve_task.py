"""`qinco serve`: what is wrong is told before anything is served."""

import socket

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("qdrant_client")
pytest.importorskip("prometheus_client")

from qinco.cli import main
from qinco.collection.collection import Collection


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("QINCO_API_KEY", "QINCO_READ_ONLY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Collection.create("docs.qinco", dim=3).close()
    np.save("x.npy", np.ones((4, 3), np.float32))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "shown"),
    [
        ("docs.qinco host=0.0.0.0", 2, "QINCO_API_KEY"), ("docs.qinco port=70000", 2, "port"),
        ("docs.qinco api_key_file=none", 2, "none"), ("", 2, "path"), ("none.qinco", 3, "none.qinco"),
        ("none.npy", 3, "none.npy"), ("docs.qinco x.npy", 2, "x.npy"), ("x.npy read_only=true", 2, "read_only"),
        ("docs.qinco host=no.such.host.invalid api_key_file=x.npy", 2, "x.npy"), ("*.npy", 2, "output"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(folder, capsys, words, code, shown):
    assert main(["serve", *words.split()]) == code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("qinco: error: ") and shown in line


def test_a_port_that_is_taken_is_told(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "docs.qinco", f"port={port}"]) == 2
    assert str(port) in capsys.readouterr().err
    Collection.open("docs.qinco").close()  # nothing holds it any more
