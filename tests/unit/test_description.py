"""`qinco info` says what a file is, and no more than it can know."""

import numpy as np
import pytest

from qinco import describe
from qinco.vectors.formats import write_vectors


@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("a.npy", "<f4", "vectors"),
        ("a.npy", "u1", "integers"),
        ("a.npy", "<u2", "integers"),
        ("a.npy", "<i8", "integers"),
        ("a.ivecs", "<i4", "integers"),
        ("a.bvecs", "u1", "vectors"),
        ("a.u8bin", "u1", "vectors"),
        ("a.fvecs", "<f4", "vectors"),
    ],
)
def test_integers_may_be_codes_where_codes_are_written(name, dtype, kind, tmp_path):
    path = tmp_path / name
    rows = np.ones((3, 5), dtype)
    write_vectors(path, rows)
    found = describe(path)
    assert (found["kind"], found["num_vectors"], found["dim"], found["dtype"]) == (kind, 3, 5, np.dtype(dtype).name)
    assert ("codes" in found.get("note", "")) == (kind == "integers")
