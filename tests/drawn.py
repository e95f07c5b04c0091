"""Tests whose input hypothesis draws: a little of it by default, and much in a slow test."""

import inspect
from collections.abc import Callable
from functools import wraps

import pytest
from hypothesis import given, settings


def drawn(few: int, many: int, **strategies) -> Callable:
    """`given(**strategies)` with the same examples in every run; what else the test takes are fixtures."""

    def decorate(test: Callable) -> Callable:
        def with_examples(count: int) -> Callable:
            return settings(deadline=None, max_examples=count, derandomize=True)(given(**strategies)(test))

        by_number = {count: with_examples(count) for count in (few, many)}

        @wraps(test)
        def run(examples: int, **others) -> None:
            by_number[examples](**others)

        own = [one for name, one in inspect.signature(test).parameters.items() if name not in strategies]
        number = inspect.Parameter("examples", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([number, *own])
        return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])(run)

    return decorate
