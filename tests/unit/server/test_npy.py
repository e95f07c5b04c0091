import io

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("qdrant_client")

from qinco.errors import QincoError
from qinco.server.npy import array_bytes, read_array


def saved(x, **options):
    stream = io.BytesIO()
    np.save(stream, x, **options)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["f4", "f2", ">f4", "f8", "u1", "i8"])
def test_arrays_are_read_as_numpy_reads_them(dtype):
    x = np.arange(12).reshape(3, 4).astype(dtype)
    for one in (x, np.asfortranarray(x)):
        np.testing.assert_array_equal(read_array(saved(one), "it", "fiu"), x)
    assert read_array(saved(x[0]), "it", "fiu").shape == (1, 4)
    np.testing.assert_array_equal(np.load(io.BytesIO(array_bytes(x[:, ::2])), allow_pickle=False), x[:, ::2])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"\x93NUMPY", saved(np.ones((2, 3)))[:-1], saved(np.ones((2, 3))) + b"x",
        saved(np.array([{"a": 1}], object)), saved(np.array(["a"])), saved(np.ones((2, 3), bool)),
        saved(np.ones((2, 3), complex)), saved(np.float32(1)), saved(np.ones((2, 3, 4))), saved(np.ones((2, 0))),
        saved(np.zeros(2, [("a", "f4")])), b"PK\3\4" + b"x" * 100,
        saved(np.ones((2, 3))).replace(b"(2, 3)", b"(-2,-3)"), saved(np.ones((2, 3))).replace(b"(2, 3)", b"(True, 6)"),
        saved(np.ones((2, 3))).replace(b"(2, 3)", b"(2**9,)"), b"\x93NUMPY\1\0\xff\xff" + b"(" * 65535,
    ],
)  # fmt: skip
def test_what_is_none_is_refused(body):
    with pytest.raises(QincoError):
        read_array(body, "it", "fiu")
