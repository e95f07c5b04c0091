"""Paths to values of a payload: keys joined by dots, `[]` for every element of an array and `[2]` for one.

A key that holds dots, brackets or quotes is written as a JSON string: `"version 1.0".size`.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache

from qinco.errors import ConfigError

Step = str | int | None  # a key, a position in an array, or every element of one
_KEY = re.compile(r'"(?:[^"\\]|\\.)*"|[^."\[\]]+', re.DOTALL)
_BRACKETS = re.compile(r"\[([0-9]{0,9})\]")


@lru_cache(1024)
def path_steps(path: str) -> tuple[Step, ...]:
    """The steps of a path: keys, positions, and None for every element.

    Example:
        >>> path_steps('author.names[]."a.b"')
        ('author', 'names', None, 'a.b')
    """
    steps: list[Step] = []
    place = 0
    while True:
        found = _KEY.match(path, place)
        if found is None:
            break
        steps.append(_key(path, found[0]))
        place = found.end()
        while brackets := _BRACKETS.match(path, place):
            steps.append(int(brackets[1]) if brackets[1] else None)
            place = brackets.end()
        if place == len(path):
            return tuple(steps)
        if path[place] != ".":
            break
        place += 1
    raise ConfigError(f"{path!r:.80} is no path of a field: join keys by dots, as in a.b or tags[].x, and write "
                      f"those with dots, brackets or quotes as {quoted(path[:40])}")  # fmt: skip


def quoted(key: str) -> str:
    """The path of a field whose key is `key`, whatever is in it."""
    return json.dumps(key, ensure_ascii=False)


def _key(path: str, text: str) -> str:
    try:
        key = json.loads(text) if text[0] == '"' else text
        key.encode()  # refuses halves of surrogate pairs, which UTF-8 cannot hold
    except ValueError:
        raise ConfigError(f"{path!r:.80} is no path of a field: {text!r:.40} is no string of valid JSON") from None
    return key


def nodes(value, steps: tuple[Step, ...]) -> Iterator:
    """The values at a path: none where there is no such field, several below `[]`."""
    for place, step in enumerate(steps):
        if step is None:
            if isinstance(value, list):
                for element in value:
                    yield from nodes(element, steps[place + 1 :])
            return
        if isinstance(step, str):
            if not isinstance(value, dict) or step not in value:
                return
            value = value[step]
        else:
            if not isinstance(value, list) or step >= len(value):
                return
            value = value[step]
    yield value
