"""Interpolation as in Hydra: `${key}`, `${oc.env:NAME}` and `${oc.env:NAME,default}`; `\\${` is a plain `${`."""

import os
import re
from collections.abc import Callable

from qinco.errors import ConfigError

_MARKS = re.compile(r"\\\$\{|\$\{|\}")
_MOST_LEVELS = 20


def interpolate(text: str, look_up: Callable[[str], str | None], where: str, null: str | None = "null") -> str:
    """`text` with every interpolation in it replaced.

    look_up: the text that a key's name stands for, None for null; it raises ConfigError for an unknown name
    where:   the name of the key that `text` is a value of, for error messages
    null:    what null becomes; None where it has no place, as in a path

    Raises ConfigError for null without a place, a missing environment variable, an unknown resolver and a missing `}`.
    """
    return _expand(text, look_up, where, null, 0)


def _expand(text: str, look_up, where: str, null: str | None, level: int) -> str:
    if level > _MOST_LEVELS:
        raise ConfigError(f"{where}: more than {_MOST_LEVELS} levels of ${{ }} within each other")
    pieces, position = [], 0
    while mark := _MARKS.search(text, position):
        pieces.append(text[position : mark.start()])
        position = mark.end()
        if mark[0] == "${":
            inside = text[position : _closing(text, position, where)]
            position += len(inside) + 1
            value = _value(inside, look_up, where, null, level)
            if value is None:
                raise ConfigError(f"{where}: {inside.strip()} has no value to stand for ${{{inside}}}: give it one")
            pieces.append(value)
        else:
            pieces.append("${" if mark[0].startswith("\\") else "}")
    return "".join(pieces) + text[position:]


def _closing(text: str, start: int, where: str) -> int:
    """Where the `}` stands that belongs to the `${` before `start`."""
    depth = 1
    for mark in _MARKS.finditer(text, start):
        depth += {"${": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.start()
    raise ConfigError(f"{where}: a ${{ is not closed by a }}; a plain one is written \\${{")


def _value(inside: str, look_up, where: str, null: str | None, level: int) -> str | None:
    resolver, colon, argument = inside.partition(":")
    if not colon:
        value = look_up(inside.strip())
        return null if value is None else value
    if resolver.strip() != "oc.env":
        raise ConfigError(f"{where}: ${{{inside}}} is unknown: there are ${{key}} and ${{oc.env:NAME,default}}")
    name, comma, default = (part.strip() for part in argument.partition(","))
    if name in os.environ:
        return os.environ[name]
    if not comma:
        raise ConfigError(
            f"{where}: there is no environment variable {name!r}: set it, or give a default, ${{oc.env:{name},default}}"
        )
    return null if default in ("null", "None") else _expand(unquoted(default), look_up, where, null, level + 1)


def unquoted(text: str) -> str:
    """`text` without the matching quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
