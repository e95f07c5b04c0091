"""Replacing and merging vectors, and that what is refused is refused before there is work to lose."""

from functools import partial

import numpy as np
import pytest
from small_indexes import DIM, KINDS, NUM_LISTS, NUM_VECTORS, built, copied, trained, vectors

from qinco.codec import Codec
from qinco.codec.evaluate import evaluate
from qinco.errors import ConfigError, DataError, ResourceError
from qinco.search.edit import EditableIndex
from qinco.search.index import Index
from qinco.search.measure.evaluate import evaluate_decoder

MORE = vectors(60, 9)


def test_upsert_replaces_vectors_and_adds_others():
    index = copied(built())
    ids = np.arange(NUM_VECTORS - 20, NUM_VECTORS + 40)
    assert index.upsert(MORE, ids).tolist() == ids.tolist() and len(index) == NUM_VECTORS + 40
    whole = copied(built())
    added = whole.add(MORE)
    np.testing.assert_array_equal(index.reconstruct(ids), whole.reconstruct(added))
    np.testing.assert_array_equal(index.ids, np.arange(NUM_VECTORS + 40))
    assert index.next_id == NUM_VECTORS + 40 and index.upsert(MORE[:0], []).tolist() == []
    with pytest.raises(ConfigError, match="ids"):
        index.upsert(MORE, None)


def test_an_upsert_that_fails_changes_nothing(monkeypatch):
    index = copied(built())
    before = index.parts
    broken = MORE.copy()
    broken[-1, 0] = np.nan
    for x_ND, ids in ((broken, np.arange(60)), (MORE, np.arange(59)), (MORE, [5] * 60), (MORE[:, :3], np.arange(60))):
        with pytest.raises(DataError):
            index.upsert(x_ND, ids)
    monkeypatch.setattr("qinco.search.edit.extended", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.upsert(MORE, np.arange(60))
    assert index.parts is before


@pytest.mark.parametrize("kind", KINDS)
def test_merged_vectors_are_what_they_were(kind):
    index, other = copied(built(kind)), Index.build(trained(kind), MORE, None if kind == "ivf" else 3)
    with pytest.raises(DataError, match=f"add_id={NUM_VECTORS} "):
        index.merge_from(other)
    assert len(index) == NUM_VECTORS
    index.merge_from(other, add_id=NUM_VECTORS)
    assert len(index) == NUM_VECTORS + 60 == index.next_id and len(other) == 60
    np.testing.assert_array_equal(
        index.reconstruct(np.arange(NUM_VECTORS, NUM_VECTORS + 60)), other.reconstruct(range(60))
    )
    added = copied(built(kind))
    added.add(MORE)
    (merged, ids), (wanted, expected) = (one.search(MORE, 3, nprobe=NUM_LISTS) for one in (index, added))
    np.testing.assert_array_equal(ids, expected)
    assert (merged == wanted).mean() > 0.95  # what is known of a vector besides its code goes through two bytes
    np.testing.assert_allclose(merged, wanted, atol=1)


def test_lists_that_are_the_same_are_kept(monkeypatch):
    one, other = built().emptied(), copied(built())
    monkeypatch.setattr(Codec, "decode_blocks", lambda *arguments: pytest.fail("it was decoded"))
    one.merge_from(other)
    for array in ("starts", "codes", "ids"):
        np.testing.assert_array_equal(getattr(one.segments[0], array), getattr(other.segments[0], array))
    one.reset()
    assert len(one) == len(one.ids) == one.next_id == 0 and one.tables is other.tables


def test_indexes_that_do_not_fit_are_not_merged():
    index = copied(built())
    for other, error in (
        (built("ivf"), DataError), (built("plain", "cosine"), DataError), (index, DataError), (MORE, ConfigError),
    ):  # fmt: skip
        with pytest.raises(error):
            index.merge_from(other)
    for add_id in (-1, 2**63 - 1, 2**62 + 1, 0.5):
        with pytest.raises((DataError, ConfigError)):
            index.emptied().merge_from(index, add_id=add_id)


@pytest.mark.parametrize(
    ("x_ND", "ids", "message"),
    [
        (MORE, [5, *range(9000, 9059)], "id 5 "), (MORE, [9000] * 60, "9000"), (MORE, range(9000, 9059), "60, not 59"),
        (MORE, range(10**18), f"not {10**18}"), (MORE, ["a"] * 60, "integers"), (MORE, [*range(9000, 9059), -1], "-1"),
        (MORE[:, :5], None, "not 5"), (MORE[0], None, r"\(1, 6\)"), (MORE * np.nan, None, "NaN"),
        (MORE * np.float32(np.inf), None, "row 0 of vectors holds an infinite value"),
        ("nowhere.fvecs", None, "No such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_added_is_refused_before_it_is_encoded(x_ND, ids, message, monkeypatch):
    index = copied(built("plain", "cosine"))
    index.add(MORE[:1])
    with monkeypatch.context() as patch, pytest.raises(DataError, match=message):
        patch.setattr(Codec, "encode_blocks", lambda *arguments: pytest.fail("it was encoded"))
        index.add(x_ND, ids)
    assert len(index) == NUM_VECTORS + 1 and index.add(MORE[:1]).tolist() == [NUM_VECTORS + 1]


def test_a_nan_in_the_last_block_is_found_before_the_first_is_encoded():
    codec, stages = Codec(trained("plain").models[0], trained("plain").encode_options), []
    codec.block_rows, broken = 256, vectors().copy()
    broken[-1, DIM - 1] = np.nan
    build, judge = partial(Index.build, codec), partial(evaluate_decoder, codec, decoder=codec)
    for work in (codec.encode, Index(codec, built().parts).add, build, partial(evaluate, codec), judge):
        with pytest.raises(DataError, match=f"row {NUM_VECTORS - 1} "):
            work(broken, progress=lambda stage, *arguments, **fields: stages.append(stage))
    assert not [stage for stage in stages if "codi" in stage or "evaluating" in stage]


def test_a_build_that_memory_does_not_allow_encodes_nothing(monkeypatch):
    monkeypatch.setattr("qinco.decoders.pairwise.free_memory", lambda: 1000)
    monkeypatch.setattr(Codec, "encode", lambda *arguments, **options: pytest.fail("it was encoded"))
    for pairwise, error in ((True, ResourceError), ("pairs.safetensors", ConfigError)):
        with pytest.raises(error):
            Index.build(trained("plain"), vectors(), pairwise=pairwise)


def test_names_of_faiss():
    assert EditableIndex.add_with_ids is EditableIndex.add and EditableIndex.remove_ids is EditableIndex.remove
    index = copied(built())
    hashes = np.array([-7, -(2**63), 2**63 - 1])
    index.add_with_ids(MORE[:3], hashes)
    assert index.ids[[0, 1, -1]].tolist() == sorted(hashes.tolist())
    _, found = index.search(MORE[:3], k=1, filter=hashes, nprobe=NUM_LISTS)
    assert set(found[:, 0].tolist()) <= set(hashes.tolist()) and -7 in index and index.remove_ids(hashes) == 3
