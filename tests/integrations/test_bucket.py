"""Files in a bucket of S3, which a stand-in serves on this machine."""

import threading

import numpy as np
import pytest
from small_indexes import trained, vectors

import qinco
from qinco.errors import ConfigError, DataError, QincoError
from qinco.vectors.remote import listed

moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """Files of `vectors()` in three parts with ids; its address, and what follows addresses."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = moto_server.ThreadedMotoServer("127.0.0.1", port=0)
        server.start()
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="vectors")
        folder = tmp_path_factory.mktemp("bucket")
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors().ravel()), vectors().shape[1])
        table = pyarrow.table({"id": np.arange(len(vectors())) * 7, "embedding": column})
        for number, (start, stop) in {1: (0, 500), 2: (500, 600), 10: (600, len(vectors()))}.items():
            file = folder / f"part-{number}.parquet"
            parquet.write_table(table[start:stop], file, row_group_size=100)
            client.upload_file(str(file), "vectors", f"emb/{file.name}")
        np.save(folder / "x.npy", vectors())
        client.upload_file(str(folder / "x.npy"), "vectors", "x.npy")
        yield "s3://vectors", f"?endpoint_override={host}:{port}&scheme=http"
        server.stop()
    assert not any(thread.name.startswith("moto") for thread in threading.enumerate())


def test_vectors_are_read(bucket):
    address, end = bucket
    for name in ("emb/part-*.parquet", "emb/", "x.npy"):
        source = qinco.open_vectors(f"{address}/{name}{end}")
        np.testing.assert_array_equal(source[:], vectors())
        np.testing.assert_array_equal(source[[3, 1400, 7]], vectors()[[3, 1400, 7]])
    with pytest.raises(DataError, match="No such file"):
        qinco.open_vectors(f"{address}/none.npy{end}")


def test_codes_and_indexes_are_those_of_files(bucket, tmp_path):
    address, end = bucket
    codec, source = trained("plain"), f"{address}/emb/*.parquet{end}"
    qinco.encode_file(codec, source, tmp_path / "codes", shard_rows=400)
    np.testing.assert_array_equal(qinco.Codes.load(tmp_path / "codes", codec).codes, codec.encode(vectors()).codes)
    qinco.build_index(tmp_path / "codes", tmp_path / "index", codec=codec, vectors=source, num_lists=12, ids="id")
    assert qinco.Index.load(tmp_path / "index").search(vectors()[:20], 3)[1].max() % 7 == 0


@pytest.mark.parametrize("kind", ["plain", "ivf"])
def test_codes_are_encoded_to_a_bucket(bucket, tmp_path, kind):
    address, end = bucket
    codec, output = trained(kind), f"{address}/codes-{kind}{end}"
    expected = codec.encode(vectors())
    done = qinco.encode_file(codec, vectors(), output, shard_rows=400, shard=(0, 2))
    assert not done.complete and done.num_done == 800
    with pytest.raises(DataError, match=r"2 of 4 shards.*resume=true"):
        qinco.Codes.load(output, codec)
    with pytest.raises(ConfigError, match="resume=true"):
        qinco.encode_file(codec, vectors(), output, shard_rows=400)
    done = qinco.encode_file(codec, vectors(), output, shard_rows=400, resume=True)
    assert done.complete and done.num_done == len(vectors()) - 800
    assert qinco.encode_file(codec, vectors(), output, shard_rows=400, resume=True).num_done == 0
    found = qinco.Codes.load(output, codec)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found[[1400, 3]].codes, expected.codes[[1400, 3]])
    if expected.has_lists:
        np.testing.assert_array_equal(found.lists, expected.lists)
    np.testing.assert_array_equal(codec.decode(output), codec.decode(expected))
    with pytest.raises(DataError, match="another codec"):
        qinco.Codes.load(output, trained("ivf" if kind == "plain" else "plain"))


def test_other_codes_take_the_place_of_those_in_a_bucket(bucket, tmp_path):
    address, end = bucket
    codec, output = trained("plain"), f"{address}/replaced{end}"
    qinco.encode_file(codec, vectors(), output, shard_rows=400)
    with pytest.raises(ConfigError, match="other vectors"):
        qinco.encode_file(codec, vectors(500), output, shard_rows=400, resume=True)
    qinco.encode_file(codec, vectors(500), output, shard_rows=400, overwrite=True)
    assert len(qinco.Codes.load(output, codec)) == 500
    left = [path.name for path in listed(f"{address}/replaced/{end}")]
    assert len(left) == 3 and "manifest.json" in left
    qinco.build_index(output, tmp_path / "index", codec=codec, vectors=vectors(500), num_lists=4)
    assert len(qinco.Index.load(tmp_path / "index")) == 500


def test_a_bucket_that_is_not_there_is_named(bucket):
    address, end = bucket
    with pytest.raises(QincoError, match="s3://none"):
        qinco.encode_file(trained("plain"), vectors(), f"s3://none/codes{end}", shard_rows=400)
    with pytest.raises(DataError, match="holds no codes"):
        qinco.Codes.load(f"{address}/no-codes{end}")
