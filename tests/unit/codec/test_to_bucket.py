"""Codes are encoded to a bucket as to a folder: by shares, in any order, with or without resume."""

import uuid

import numpy as np
import pytest
from small_indexes import trained, vectors

import qinco
from qinco.errors import ConfigError, DataError

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("pyarrow")
ROWS = 400  # four shards


@pytest.fixture(params=["folder", "bucket"])
def output(request, tmp_path):
    """Where codes are written, which is not there yet."""
    if request.param == "folder":
        yield str(tmp_path / "codes")
        return
    name = f"/codes-{uuid.uuid4().hex}"
    yield f"memory:/{name}"
    store = fsspec.filesystem("memory")
    if store.exists(name):
        store.rm(name, recursive=True)


def encode(output, x_ND=None, **settings):
    return qinco.encode_file(trained("plain"), vectors() if x_ND is None else x_ND, output, shard_rows=ROWS, **settings)


def assert_encoded(output, x_ND):
    found = qinco.Codes.load(output, trained("plain"))
    np.testing.assert_array_equal(found.codes, trained("plain").encode(x_ND).codes)


def test_shares_join(output):
    assert not encode(output, shard=(0, 2)).complete
    with pytest.raises(ConfigError, match="resume=true"):  # that share again
        encode(output, shard=(0, 2))
    with pytest.raises(ConfigError, match="resume=true"):  # all of them
        encode(output)
    done = encode(output, shard=(1, 2))
    assert done.complete and done.num_done == len(vectors()) - 2 * ROWS
    assert_encoded(output, vectors())
    with pytest.raises(ConfigError, match="resume=true"):
        encode(output, shard=(1, 2))
    assert encode(output, shard=(1, 2), resume=True).num_done == 0


def test_shares_that_overwrite_join(output):
    encode(output)
    other = vectors(1400, 3)
    assert not encode(output, other, shard=(0, 2), overwrite=True).complete
    assert_encoded(output, vectors())
    done = encode(output, other, shard=(1, 2), overwrite=True)
    assert done.complete and done.num_done == 600
    assert_encoded(output, other)


def test_shares_of_other_work_are_refused(output):
    encode(output, shard=(0, 2))
    for settings in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(ConfigError, match="other vectors"):
            encode(output, vectors(1400, 3), shard=(1, 2), **settings)
    assert encode(output, vectors(1400, 3), overwrite=True).complete
    assert_encoded(output, vectors(1400, 3))


def test_a_share_without_shards_does_nothing(output):
    encode(output)
    done = encode(output, shard=(5, 6))
    assert done.num_done == 0 and not done.complete
    assert_encoded(output, vectors())


def test_a_run_that_another_has_replaced_says_so(output):
    other, ended = vectors(1400, 3), []

    def overtaken(function, numbers):
        for number in numbers:
            if not ended:
                ended.append(encode(output, other, overwrite=True))
            try:
                yield number, function(number), None
            except ConfigError as error:
                yield number, None, error

    with pytest.raises((ConfigError, DataError), match="another run"):
        encode(output, executor=overtaken)
    assert ended[0].complete
    assert_encoded(output, other)


def test_codes_in_a_bucket_are_no_file():
    with pytest.raises(ConfigError, match=r"without \.npy"):
        encode("memory://bucket/codes.npy")
