import pytest

from qinco.errors import differences


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1, "b": "x"}, {"b": "y", "a": 2}, ["another b", "a=1 there, 2 here"]),
        ({"a": 1}, {"c": 2}, ["c=null there, 2 here", "a=1 there, null here"]),
    ],
)
def test_differences_are_named_in_the_order_of_what_is_asked_for(there, here, expected):
    assert differences(there, here, {"b": "another b"}) == expected
