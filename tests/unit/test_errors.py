import sys
from importlib import import_module

import pytest

from qinco.errors import ConfigError, differences, needs_extra


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


@pytest.mark.parametrize("module", ["torch", "torch.nn"])
def test_a_missing_package_is_one_line_with_the_command(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught, needs_extra("training", "torch", "train"):
        import_module(module)
    assert str(caught.value) == "training needs the package torch: pip install 'qinco[train]'"
    assert caught.value.__suppress_context__


def test_other_packages_that_are_missing_keep_their_error():
    with pytest.raises(ModuleNotFoundError, match="nosuchpackage"), needs_extra("training", "torch", "train"):
        import_module("nosuchpackage.core")
    with pytest.raises(ValueError, match="7"), needs_extra("training", "torch", "train"):
        raise ValueError(7)
