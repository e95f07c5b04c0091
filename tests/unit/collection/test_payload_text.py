import json
import sqlite3

import pytest

from qinco.collection.payload_text import payload_text
from qinco.errors import DataError


def test_payloads_are_json_that_sqlite_finds_its_way_in():
    payload = {"é": "\U0001f600 \\u0000 \x7f\n", "large": 2**53 + 1, "list": [1.5, None, {"a": "'"}]}
    text = payload_text(payload)
    assert text is not None and json.loads(text) == payload and payload_text(None) is None
    (found,) = sqlite3.connect(":memory:").execute("SELECT json_extract(?, '$.\"é\"')", (text,)).fetchone()
    assert found == payload["é"]


@pytest.mark.parametrize(
    "payload", [{"a": ["x\0"]}, {"\0": 1}, {"a": float("nan")}, {"a": b"x"}, {"a": "\ud800"}, {"a": {1, 2}}]
)
def test_what_json_or_sqlite_has_not_is_refused(payload):
    with pytest.raises(DataError, match="a payload"):
        payload_text(payload)
