"""`qinco train` before the training: what is said about settings that do nothing."""

import numpy as np
import pytest

from qinco.cli import main, training
from qinco.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["ivf_K=1024"], True),
        (["ivf_K=null"], False),
        (["ivf_K=1024", "ivf_centroids=c.npy"], False),
        (["ivf_K=1024", "model=m.safetensors"], False),
    ],
)
def test_a_number_of_centroids_alone_does_nothing(words, warned, capsys, tmp_path, monkeypatch):
    def stop(*_):
        raise ConfigError("here the training begins")

    monkeypatch.setattr(training, "_fit", stop)
    np.save(tmp_path / "x.npy", np.ones((9, 3), np.float32))
    assert main(["train", f"trainset={tmp_path}/x.npy", f"output={tmp_path}/y.safetensors", *words]) == 2
    err = capsys.readouterr().err
    warning = "qinco: warning: ivf_K=1024 has no effect without ivf_centroids=FILE, "
    assert err.startswith(warning if warned else "qinco: error: here")
