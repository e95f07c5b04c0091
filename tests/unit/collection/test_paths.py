import pytest

from qinco.collection.paths import nodes, path_steps, quoted
from qinco.errors import ConfigError


@pytest.mark.parametrize(("path", "steps"), [
    ("a", ("a",)), ("a.b", ("a", "b")), ("a[].b", ("a", None, "b")), ("a[2][]", ("a", 2, None)), ('"a.b"', ("a.b",)),
    ('a."b[0]"[].c', ("a", "b[0]", None, "c")), ('""', ("",)), ("it's", ("it's",)), ("größe 1", ("größe 1",)),
    ('"\\u00e9\\"\\n"', ('é"\n',)),
])  # fmt: skip
def test_steps(path, steps):
    assert path_steps(path) == steps


@pytest.mark.parametrize(
    "path", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a]b", "[]", 'a"b', '"a', '"a"b', "\ud800", '"\\ud800"']
)
def test_other_paths_are_refused(path):
    with pytest.raises(ConfigError, match="no path of a field"):
        path_steps(path)


@pytest.mark.parametrize("key", ["a", "a.b", "", '"', "\\", "[]", "\0", "é", "$x"])
def test_any_key_can_be_quoted(key):
    assert path_steps(quoted(key)) == (key,)


def test_nodes():
    value = {"a": [{"b": 1}, {"b": [2, 3]}, 4], "c": {"0": 5}}
    assert list(nodes(value, ("a", None, "b"))) == [1, [2, 3]]
    assert list(nodes(value, ("a", None, "b", None))) == [2, 3]
    assert list(nodes(value, ("a", 1, "b", 0))) == [2]
    assert list(nodes(value, ("a", "b"))) == list(nodes(value, ("c", 0))) == list(nodes(None, ("a",))) == []
