"""What is done in parts, by any executor, is what one process does; what fails or is killed goes on."""

import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from small_indexes import NUM_VECTORS, trained, vectors

import qinco
from qinco.errors import ConfigError, DataError
from qinco.executors import in_this_process
from qinco.search.index import Index
from qinco.store.codes import Codes

ROWS = 200
QUERIES_QD = vectors(100, 21)


def backwards(function, numbers):
    """In another order, each number twice, as where an actor is late."""
    for number in reversed(numbers):
        function(number)
        yield number, function(number), None


class Failing:
    """An executor that loses some numbers the first time."""

    def __init__(self, lost):
        self.lost, self.done = set(lost), []

    def __call__(self, function, numbers):
        for number in numbers:
            if number in self.lost:
                self.lost.remove(number)
                yield number, None, RuntimeError(f"{number} is lost")
            else:
                self.done.append(number)
                yield number, function(number), None


@pytest.mark.parametrize("kind", ["plain", "ivf", "product"])
@pytest.mark.parametrize("name", ["codes", "codes.npy"])
def test_codes_are_those_of_one_process(tmp_path, kind, name):
    codec, expected = trained(kind), trained(kind).encode(vectors())
    for executor in (in_this_process, backwards):
        done = qinco.encode_file(codec, vectors(), tmp_path / name, shard_rows=ROWS, executor=executor, overwrite=True)
        assert done.complete and done.num_done == NUM_VECTORS
        found = Codes.load(tmp_path / name, codec)
        np.testing.assert_array_equal(found.codes, expected.codes)
        assert not expected.has_lists or np.array_equal(found.lists, expected.lists)


def test_what_could_not_be_encoded_is_named_and_goes_on(tmp_path):
    executor = Failing([1, 4])
    given = trained("plain"), vectors(), tmp_path / "codes"
    with pytest.raises(DataError, match=r"encoding failed for 2 of 8 parts.*vectors 200 to 399: 1 is lost.*800 to 999"):
        qinco.encode_file(*given, shard_rows=ROWS, executor=executor)
    executor.done = []
    done = qinco.encode_file(*given, shard_rows=ROWS, executor=executor, resume=True)
    assert executor.done == [1, 4] and done.num_done == 2 * ROWS
    np.testing.assert_array_equal(Codes.load(given[2], given[0]).codes, given[0].encode(vectors()).codes)


def elsewhere(function, numbers):
    """An executor whose workers have another working directory, and are sent the function."""
    here, sent = Path.cwd(), pickle.dumps(function)
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                result, error = pickle.loads(sent)(number), None
            except Exception as failure:
                result, error = None, failure
            finally:
                os.chdir(here)
        yield number, result, error


@pytest.mark.parametrize("name", ["codes", "codes.npy", "new/codes"])
def test_workers_may_be_elsewhere(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", vectors())
    done = qinco.encode_file(trained("plain"), "x.npy", name, shard_rows=ROWS, executor=elsewhere)
    assert done.complete and done.output == Path(name)
    np.testing.assert_array_equal(Codes.load(name, trained("plain")).codes, trained("plain").encode(vectors()).codes)


def test_workers_elsewhere_find_the_files_of_a_pattern(tmp_path, monkeypatch):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    own = np.random.default_rng(0).permutation(NUM_VECTORS)
    emb = pyarrow.array(vectors().tolist(), pyarrow.list_(pyarrow.float32()))
    table = pyarrow.table({"id": own, "emb": emb})
    for number in range(3):
        parquet.write_table(table[500 * number :][:500], f"part-{number}.parquet")
    source = "part-*.parquet:emb"
    qinco.encode_file(trained("plain"), source, "codes", shard_rows=ROWS, executor=elsewhere)
    given = {"codec": trained("plain"), "num_lists": 12, "ids": "id", "vectors": source, "num_shards": 3}
    qinco.build_index("codes", "index", **given, executor=elsewhere)
    built(tmp_path, "plain", "one", ids=own)
    found, expected = (Index.load(name).search(QUERIES_QD, 10) for name in ("index", "one"))
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("name", ["s3:/bucket/codes", "file:///tmp/codes"])
def test_addresses_that_are_no_buckets_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for output in (name, Path(name)):
        with pytest.raises(ConfigError, match="address"):
            qinco.encode_file(trained("plain"), vectors(), output)
    assert not list(tmp_path.iterdir())


def built(tmp_path, kind: str, name: str = "index", **settings):
    codec = trained(kind)
    given = codec.encode(vectors()), tmp_path / name
    settings = {"codec": codec, "vectors": vectors(), "num_lists": None if kind == "ivf" else 12} | settings
    return qinco.build_index(*given, **settings)


@pytest.mark.parametrize("kind", ["plain", "ivf", "product"])
def test_an_index_in_shards_is_that_in_one_piece(tmp_path, kind):
    one, several = built(tmp_path, kind), built(tmp_path, kind, "shards", num_shards=4, executor=backwards)
    assert several.num_vectors == one.num_vectors and several.mse_lookup == one.mse_lookup
    index, sharded = Index.load(tmp_path / "index"), Index.load(tmp_path / "shards")
    assert list(map(len, sharded.segments)) == [375] * 4 and len(index.segments) == 1
    for options in ({}, {"nprobe": 12, "num_short": 300}, {"num_short": 0}, {"filter": range(300, 900)}):
        expected, found = index.search(QUERIES_QD, 10, **options), sharded.search(QUERIES_QD, 10, **options)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    described = qinco.describe(tmp_path / "shards")
    assert described["num_vectors"] == NUM_VECTORS and described["bytes_per_vector"] == several.bytes_per_vector
    sharded.add(vectors(100, 5))
    sharded.save(tmp_path / "one")
    assert len(Index.load(tmp_path / "one")) == NUM_VECTORS + 100
    assert not (tmp_path / "shards.tables").exists()


def test_a_build_goes_on(tmp_path):
    executor = Failing([2])
    settings = {"num_shards": 5, "executor": executor}
    with pytest.raises(DataError, match=r"filling lists failed for 1 of 5 parts.*vectors 600 to 899: 2 is lost"):
        built(tmp_path, "plain", **settings)
    with pytest.raises(DataError, match="not an index"):
        Index.load(tmp_path / "index")
    with pytest.raises(ConfigError, match="num_shards=5 there, 3 here"):
        built(tmp_path, "plain", num_shards=3, resume=True)
    executor.done = []
    done = built(tmp_path, "plain", **settings, resume=True)
    assert executor.done == [2] and done.mse_lookup is None
    again = built(tmp_path, "plain", **settings, resume=True)
    assert executor.done == [2] and again.bytes_per_vector == done.bytes_per_vector
    built(tmp_path, "plain", "whole", num_shards=5)
    expected, found = (Index.load(tmp_path / name).search(QUERIES_QD, 10) for name in ("whole", "index"))
    np.testing.assert_array_equal(found[1], expected[1])


def test_an_index_of_something_else_is_not_replaced_nor_gone_on_with(tmp_path):
    centroids_VD, others_VD = vectors(12, 3), vectors(12, 4)
    given = {"num_lists": None, "num_shards": 3, "centroids": centroids_VD}
    built(tmp_path, "plain", **given)
    before = Index.load(tmp_path / "index").search(QUERIES_QD, 10)
    for changes in ({"centroids": others_VD}, {"seed": 1}, {"num_training": 700}, {"ids": np.arange(NUM_VECTORS) + 9},
                    {"train_vectors": vectors(), "train_codes": trained("plain").encode(vectors())}):  # fmt: skip
        with pytest.raises(ConfigError, match=r"something else.*overwrite=true"):
            built(tmp_path, "plain", **given | changes, resume=True)
    np.testing.assert_array_equal(Index.load(tmp_path / "index").search(QUERIES_QD, 10)[1], before[1])
    with pytest.raises(ConfigError, match="num_shards"):
        built(tmp_path, "plain", "one", resume=True)


def test_a_build_goes_on_with_its_own_ids_and_tables(tmp_path):
    ids, executor = np.arange(NUM_VECTORS) + 1000, Failing([1])
    given = {"num_lists": None, "num_shards": 3, "centroids": vectors(12, 3), "ids": ids, "executor": executor}
    with pytest.raises(DataError, match="1 is lost"):
        built(tmp_path, "plain", **given)
    with pytest.raises(ConfigError, match="being built of something else"):
        built(tmp_path, "plain", **given | {"ids": ids + 5}, resume=True)
    executor.lost = {0}
    other = given | {"centroids": vectors(12, 4)}
    with pytest.raises(DataError, match="0 is lost"):  # in the same process
        built(tmp_path, "plain", **other, overwrite=True)
    built(tmp_path, "plain", **other, resume=True)
    built(tmp_path, "plain", "new", **other)
    found, expected = (Index.load(tmp_path / name) for name in ("index", "new"))
    np.testing.assert_array_equal(found.tables.centroids_VD, expected.tables.centroids_VD)
    for one, other in zip(found.search(QUERIES_QD, 10), expected.search(QUERIES_QD, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(tmp_path.glob("*.tables"))


def test_ids_are_those_given(tmp_path):
    own = np.random.default_rng(0).choice(2**40, NUM_VECTORS, replace=False)
    built(tmp_path, "plain")
    built(tmp_path, "plain", "one", ids=own)
    built(tmp_path, "plain", "shards", ids=own, num_shards=4)
    expected = Index.load(tmp_path / "index").search(QUERIES_QD, 10)
    for name in ("one", "shards"):
        index = Index.load(tmp_path / name)
        distances, ids = index.search(QUERIES_QD, 10)
        np.testing.assert_array_equal(distances, expected[0])
        np.testing.assert_array_equal(ids, own[expected[1]])
        assert index.next_id == own.max() + 1
    for ids, error in (([*own[1:], own[5]], "given twice"), (own[:-1], "1,499 ids")):
        for num_shards in (None, 3):
            with pytest.raises(DataError, match=error):
                built(tmp_path, "plain", "no", ids=ids, num_shards=num_shards)


def test_shards_that_cannot_be_are_refused(tmp_path):
    for count in (0, NUM_VECTORS + 1, 2.5):
        with pytest.raises(ConfigError, match="num_shards"):
            built(tmp_path, "plain", num_shards=count)
    with pytest.raises(ConfigError, match="s3://bucket/ix is an address"):
        qinco.build_index(trained("plain").encode(vectors()), "s3://bucket/ix", codec=trained("plain"))
    pytest.importorskip("faiss")
    with pytest.raises(ConfigError, match="no shards"):
        qinco.build_index(
            trained("plain").encode(vectors()), tmp_path / "x.faissindex", codec=trained("plain"), num_lists=12,
            num_shards=2,
        )  # fmt: skip


def test_a_lost_shard_is_noticed(tmp_path):
    built(tmp_path, "plain", num_shards=3)
    next((tmp_path / "index").glob("ids_00001-*.npy")).unlink()
    with pytest.raises(DataError, match="ids_00001"):
        Index.load(tmp_path / "index")
