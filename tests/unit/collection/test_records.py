"""Ids, payloads and vectors are checked before anything is written."""

import datetime
import json

import numpy as np
import pytest
import torch

from qinco.collection.records import payload_text, payload_texts, record_ids, vector_rows
from qinco.errors import DataError

D = 3


def test_ids_are_integers_and_strings():
    assert record_ids([1, "1", np.int8(2), np.uint64(7), "", "ä\n"]) == [1, "1", 2, 7, "", "ä\n"]
    assert [type(one) for one in record_ids([np.int64(3), np.str_("x")])] == [int, str]
    for given in (np.arange(3), torch.arange(3), range(3), iter([0, 1, 2])):
        assert record_ids(given) == [0, 1, 2]
    assert record_ids("abc") == ["abc"] and record_ids(5) == [5] and record_ids([]) == []
    assert record_ids([2**63 - 1, "x" * 512]) == [2**63 - 1, "x" * 512]


@pytest.mark.parametrize("wrong", [True, np.True_, 1.0, b"a", None, -1, 2**63, "x" * 513, "ä" * 257, "\ud800", (1,)])
def test_other_ids_are_refused(wrong):
    with pytest.raises(DataError):
        record_ids([3, wrong])


@pytest.mark.parametrize("wrong", ["abc", 5, {1, 2}, {"a": 1}, b"ab", None])
def test_ids_of_vectors_are_a_list(wrong):
    with pytest.raises(DataError):
        record_ids(wrong, many=True)


def test_payloads_are_objects_of_json_values():
    payload = {"a": [1, 2.5, None, True, "ä"], "b": {"c": np.float32(0.5), "d": np.arange(2), "e": (1,)}}
    assert json.loads(payload_text(payload)) == {"a": [1, 2.5, None, True, "ä"], "b": {"c": 0.5, "d": [0, 1], "e": [1]}}
    moment = datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC)
    assert json.loads(payload_text({"t": moment, "d": moment.date()})) == {
        "t": "2020-01-02T03:00:00+00:00",
        "d": "2020-01-02",
    }
    assert payload_texts(None, [1, 2]) == [None, None] and payload_texts([{}, None], [1, 2]) == ["{}", None]


@pytest.mark.parametrize("wrong", [{"a": float("nan")}, {"a": float("inf")}, {1: 2}, {"a": {2: 1}}, {"a": b"x"},
                                   {"a": {1, 2}}, {"a": "\ud800"}, {"a": "\0"}, {"a\0": 1}, [1], "text",
                                   5])  # fmt: skip
def test_other_payloads_are_refused(wrong):
    with pytest.raises(DataError):
        payload_texts([wrong], [1])


def test_a_payload_within_itself_is_refused():
    wrong: dict = {}
    wrong["a"] = wrong
    with pytest.raises(DataError):
        payload_text(wrong)


def test_vectors_of_any_kind():
    x_ND = np.arange(2 * D, dtype=np.float64).reshape(2, D)
    for given in (x_ND, x_ND.tolist(), list(x_ND), torch.tensor(x_ND), x_ND.astype(np.float16), x_ND.astype(np.int16)):
        rows, found = vector_rows(given, 2, None)
        assert rows.tolist() == [0, 1] and found.dtype == np.float32 and np.array_equal(found, x_ND)
    rows, found = vector_rows([None, x_ND[1], None], 3, D)
    assert rows.tolist() == [1] and np.array_equal(found, x_ND[1:])
    for none in (None, [None, None]):
        rows, found = vector_rows(none, 2, D)
        assert len(rows) == len(found) == 0


@pytest.mark.parametrize("wrong", [[[1.0, np.nan, 0]], [[1.0, np.inf, 0]], [[1e39, 0, 0]], [[1.0, 2]], [[1, 2, 3]] * 2,
                                   [["a", "b", "c"]], np.zeros(3)])  # fmt: skip
def test_other_vectors_are_refused(wrong):
    with pytest.raises(DataError):
        vector_rows(wrong, 1, D)
