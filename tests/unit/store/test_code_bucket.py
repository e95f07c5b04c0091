"""Codes in a bucket take the place of older ones, and of nothing else."""

import uuid

import numpy as np
import pytest

from qinco.errors import ConfigError
from qinco.store.code_bucket import CodeBucket
from qinco.store.code_folder import CodePlan
from qinco.vectors.remote import RemotePath, files_in, listed

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("pyarrow")


def plan(source: str = "s", num_lists: int = 0) -> CodePlan:
    return CodePlan(
        num_vectors=10, num_codes=3, codebook_size=16, num_lists=num_lists, dim=6, shard_rows=4, codec="c",
        source=source, encode={},
    )  # fmt: skip


@pytest.fixture
def url():
    """The address of a folder in a store in memory, which is not there yet."""
    name = f"/codes-{uuid.uuid4().hex}"
    yield f"memory:/{name}"
    store = fsspec.filesystem("memory")
    if store.exists(name):
        store.rm(name, recursive=True)


def fill(bucket: CodeBucket, value: int = 0, shards=range(3)) -> None:
    for shard in shards:
        count = len(bucket.plan.rows(shard))
        lists_N = np.zeros(count, np.int32) if bucket.plan.num_lists else None
        bucket.write(shard, np.full((count, 3), value), lists_N)


def written(url: str, value: int, **settings) -> CodeBucket:
    """Complete codes that are all one value."""
    complete, _ = CodeBucket.find(url)
    bucket = CodeBucket.create(url, plan(**settings), complete and complete.token)
    fill(bucket, value)
    bucket.commit()
    return CodeBucket.open(url)


def names(url: str) -> set[str]:
    return {str(file).removeprefix(f"{url}/") for file in listed(f"{url}/") or ()}


def test_only_shards_of_older_codes_are_removed(url):
    first = written(url, 1, num_lists=5)
    assert len(names(url)) == 7
    others = {
        "codes_of_products.csv", "codes_00000.npy", f"codes_0-{first.token}.npy", f"codes_00000-{first.token}.npy.bak",
        "lists_of_names.txt", f"copy/codes_00000-{first.token}.npy", "copy/manifest.json", "copy/lists_00001.npy",
    }  # fmt: skip
    for name in others:
        RemotePath(f"{url}/{name}").write_bytes(b"kept")
    second = written(url, 2)
    own = {f"codes_{shard:05}-{second.token}.npy" for shard in range(3)}
    assert names(url) == others | own | {"manifest.json"}
    assert (second.codes[:] == 2).all()


def test_copies_below_are_no_shards(url):
    bucket = CodeBucket.create(url, plan())
    RemotePath(f"{url}/copy/codes_00001-{bucket.token}.npy").write_bytes(b"")
    assert bucket.missing() == [0, 1, 2]
    fill(bucket, shards=[1])
    assert bucket.missing() == [0, 2]


def test_a_run_that_another_has_replaced_is_not_published(url):
    complete = written(url, 1)
    old = CodeBucket.create(url, plan("a"), complete.token)
    fill(old, 2)
    new = CodeBucket.create(url, plan("b"), complete.token)
    fill(new, 3, [0])
    before = names(url)
    with pytest.raises(ConfigError, match="another run"):
        old.commit()
    assert names(url) == before
    there, pending = CodeBucket.find(url)
    assert there == complete and (there.codes[:] == 1).all() and pending == new and new.missing() == [1, 2]
    fill(new, 3)
    new.commit()
    assert (CodeBucket.open(url).codes[:] == 3).all() and len(names(url)) == 4
    with pytest.raises(ConfigError, match="another run"):
        old.is_current()


def test_codes_that_another_share_has_completed_stay(url):
    one = CodeBucket.create(url, plan())
    other = CodeBucket.find(url)[1]
    assert other == one and other.is_current()
    fill(one)
    one.commit()
    assert not other.is_current()
    newer = CodeBucket.create(url, plan("b"), one.token)
    fill(newer, 1, [2])
    before = names(url)
    other.commit()
    assert names(url) == before and CodeBucket.find(url)[0].token == one.token


def test_a_folder_is_listed_without_what_is_below(url):
    for name in ("a.npy", "b/c.npy"):
        RemotePath(f"{url}/{name}").write_bytes(b"x")
    assert files_in(url) == files_in(f"{url}/") == [RemotePath(f"{url}/a.npy")]
    assert files_in(f"{url}-none") == []
