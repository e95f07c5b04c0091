"""`qinco info` says what a file is, and no more than it can know."""

import numpy as np
import pytest
from small_models import random_vectors

import qinco
from qinco import describe
from qinco.errors import DataError
from qinco.vectors.formats import write_vectors


@pytest.mark.parametrize(("name", "dtype", "kind"), [
    ("a.npy", "<f4", "vectors"), ("a.npy", "u1", "integers"), ("a.npy", "<u2", "integers"),
    ("a.npy", "<i8", "integers"), ("a.ivecs", "<i4", "integers"), ("a.bvecs", "u1", "vectors"),
    ("a.u8bin", "u1", "vectors"), ("a.fvecs", "<f4", "vectors"),
])  # fmt: skip
def test_integers_may_be_codes_where_codes_are_written(name, dtype, kind, tmp_path):
    path = tmp_path / name
    rows = np.ones((3, 5), dtype)
    write_vectors(path, rows)
    found = describe(path)
    assert (found["kind"], found["num_vectors"], found["dim"], found["dtype"]) == (kind, 3, 5, np.dtype(dtype).name)
    assert ("codes" in found.get("note", "")) == (kind == "integers")


def test_a_codec_its_run_and_its_log(tmp_path):
    output = tmp_path / "c.safetensors"
    sizes = {"num_steps": 2, "codebook_size": 4, "num_blocks": 1, "hidden_dim": 8}
    qinco.Codec.fit(random_vectors(300, 6), output=output, epochs=2, num_pairs=4, beam_width=2, **sizes)
    found = describe(output)
    assert (found["kind"], found["dim"], found["num_parts"], found["bytes_per_vector"]) == ("codec", 6, 1, 0.5)
    assert (found["model"]["hidden_dim"], found["encode"]["num_pairs"]) == (8, 4)
    assert found["bytes"] == output.stat().st_size
    state, log = describe(f"{output}.last"), describe(f"{output}.jsonl")
    assert state["kind"] == "training state" and state["train"]["epochs"] == 2
    assert (log["kind"], log["epoch"], log["epochs"]) == ("training log", 2, 2)
    assert log["best_mse"] == found["provenance"]["valid_mse"]


@pytest.mark.parametrize("suffix", [".fvecs", ".safetensors", ".pt", ".npz", ".jsonl", ".json", ".faissindex", ""])
def test_what_is_no_such_file_is_refused(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(DataError, match="No such file"):
        describe(path)
    path.write_bytes(b'{"a": [1, 2]}\n')
    with pytest.raises(DataError, match=path.name):
        describe(path)


def test_a_collection(tmp_path):
    with qinco.Collection.create(tmp_path / "c.qinco", metric="l2", fields={"year": "integer"}) as docs:
        docs.upsert(["a"], [[1.0, 2.0]], [{"year": 1990}])
        found = describe(tmp_path / "c.qinco")
    wanted = {"kind": "collection", "records": 1, "dim": 2, "metric": "l2", "fresh": 1, "fields": {"year": "integer"}}
    assert wanted.items() <= found.items() and found["bytes"] > 0
