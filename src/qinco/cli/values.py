"""A single value of the command line: from its text, and back."""

import math
import os
import re
from collections.abc import Callable

from qinco.cli.interpolation import unquoted
from qinco.cli.keys import Key
from qinco.config import find_preset
from qinco.errors import ConfigError

_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(e[+-]?[0-9]+)?", re.IGNORECASE)
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:[0-9]{1,4}")
_SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_LARGEST_INTEGER = 2**63 - 1


def parse_value(key: Key, text: str):
    """The value that `text` means for `key`, or one of the values where it is plural.

    Raises ConfigError naming the key, the text and what is expected.
    """
    if text and not key.is_verbatim:
        text = unquoted(text)
    if not text:
        raise ConfigError(f"{key.name}= has no value: it must be {_expectation(key)}")
    if key.is_verbatim:
        # Shells expand a ~ where a word begins, but not behind the `=` of key=~/x.
        begins_at_home = key.kind in ("path", "paths") and text.startswith("~/")
        return os.path.expanduser(text) if begins_at_home else text  # noqa: PTH111 (a Path forgets a last slash)
    if key.accepts_null and (text in ("null", "None") or (text == "0" and key.zero_is_null)):
        return key.null_value
    if key.kind == "preset":
        find_preset(text)
        return text
    try:
        return _PARSERS[key.kind](key, text)
    except ValueError:
        raise ConfigError(f"{key.name} must be {_expectation(key)}, not {text!r}") from None
    except OverflowError:
        raise ConfigError(f"{key.name} must be at most {_LARGEST_INTEGER}, not {text!r}") from None


def to_text(key: Key, value) -> str:
    """`value` as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and value < 1e15 else repr(value)
    if isinstance(value, tuple):
        start, between, end = {"share": ("", "/", ""), "integers": ("[", ",", "]")}.get(key.kind, ("", " ", ""))
        return f"{start}{between.join(map(str, value))}{end}"
    return str(value)


def _integer(key: Key, text: str) -> int:
    if _INTEGER.fullmatch(text):
        value = int(text)
    else:  # 1e6 is an integer too
        number = _number(key, text)
        value = int(number)
        if value != number:
            raise ValueError
    if value < key.minimum:
        raise ValueError
    if value > _LARGEST_INTEGER:
        raise OverflowError
    return value


def _integers(key: Key, text: str) -> tuple[int, ...]:
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if inside is text and "," in text:
        raise ValueError
    return tuple(_integer(key, element.strip()) for element in inside.split(","))


def _number(key: Key, text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    value = float(text)
    if not math.isfinite(value) or value < 0 or (key.kind == "positive" and value == 0):
        raise ValueError
    return value


def _switch(key: Key, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _choice(key: Key, text: str) -> str:
    if text not in key.choices:
        raise ValueError
    return text


def _device(key: Key, text: str) -> str:
    if not _DEVICE.fullmatch(text):
        raise ValueError
    return text


def _share(key: Key, text: str) -> tuple[int, int]:
    match = _SHARE.fullmatch(text)
    if match is None or not 1 <= int(match[2]) >= int(match[1]):
        raise ValueError
    return int(match[1]), int(match[2])


_PARSERS: dict[str, Callable[[Key, str], object]] = {
    "integer": _integer,
    "integers": _integers,
    "number": _number,
    "positive": _number,
    "switch": _switch,
    "choice": _choice,
    "device": _device,
    "share": _share,
}


def _expectation(key: Key) -> str:
    phrase = {
        "path": "a path",
        "paths": "a path",
        "text": "a text",
        "texts": "a text",
        "integer": f"an integer of at least {key.minimum}",
        "integers": f"a list, such as [4,10], of integers of at least {key.minimum}",
        "number": "a number of at least 0",
        "positive": "a number above 0",
        "switch": "true or false",
        "choice": f"one of {', '.join(key.choices)}",
        "preset": f"one of {', '.join(key.choices)}",
        "device": "auto, cpu, cuda or cuda:N",
        "share": "a share i/n of n, such as 1/4",
    }[key.kind]
    return f"{phrase}, or null" if key.accepts_null else phrase
