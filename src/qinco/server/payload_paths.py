"""Parts of payloads by their paths: which of them are returned, and how they are set and removed."""

from collections.abc import Callable, Sequence
from typing import Any

from qinco.collection.paths import Step, path_steps

Tree = dict[Any, Any]  # by the steps of paths; True: everything below


def tree_of(paths: Sequence[str]) -> Tree:
    """Paths as a tree of their steps.

    Example:
        >>> tree_of(["a.b", "c[]"])
        {'a': {'b': True}, 'c': {None: True}}
    """
    tree: Tree = {}
    for path in paths:
        *parents, last = path_steps(path)
        node = tree
        for step in parents:
            node = node.setdefault(step, {})
            if node is True:  # a shorter path has all that is below
                break
        else:
            node[last] = True
    return tree


def included(value: Any, tree: Tree) -> Any:
    """The parts of a value that paths lead to; of an array only those of `[]`, for all of its elements."""
    if isinstance(value, dict):
        found = {name: part for name, part in value.items() if name in tree}
        return {name: part if tree[name] is True else included(part, tree[name]) for name, part in found.items()}
    if isinstance(value, list):
        below = tree.get(None, {})
        return value if below is True else [included(part, below) for part in value] if None in tree else []
    return value


def excluded(value: Any, tree: Tree) -> Any:
    """A value without the parts that paths lead to."""
    if isinstance(value, dict):
        kept = {name: part for name, part in value.items() if tree.get(name) is not True}
        return {name: excluded(part, tree[name]) if name in tree else part for name, part in kept.items()}
    if isinstance(value, list) and None in tree:
        return [] if tree[None] is True else [excluded(part, tree[None]) for part in value]
    return value


def merged(old: Any, new: dict) -> dict:
    """An object with the fields of another one, of which null removes a field."""
    fields = (old if isinstance(old, dict) else {}) | new
    return {name: value for name, value in fields.items() if name not in new or value is not None}


def changed_at(value: Any, steps: tuple[Step, ...], change: Callable[[Any], Any]) -> Any:
    """A value with another one at a path; objects that the path needs are made, and elements of arrays are not."""
    if not steps:
        return change(value)
    step, rest = steps[0], steps[1:]
    if isinstance(step, str):
        fields = value if isinstance(value, dict) else {}
        return fields | {step: changed_at(fields.get(step), rest, change)}
    elements = value if isinstance(value, list) else []
    return [
        changed_at(one, rest, change) if step is None or step == place else one for place, one in enumerate(elements)
    ]


def without(value: Any, steps: tuple[Step, ...]) -> Any:
    """A value without what a path leads to; `[]` at its end empties an array, and a position there removes nothing."""
    step, rest = steps[0], steps[1:]
    if isinstance(step, str):
        if not isinstance(value, dict) or step not in value:
            return value
        if rest:
            return value | {step: without(value[step], rest)}
        return {name: part for name, part in value.items() if name != step}
    if not isinstance(value, list):
        return value
    if not rest:
        return [] if step is None else value
    return [without(one, rest) if step is None or step == place else one for place, one in enumerate(value)]
