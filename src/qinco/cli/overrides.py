"""The grammar of the command line: `qinco TASK key=value ...`, the same as `qinco task=TASK key=value ...`.

An argument is cut at its first `=`. Paths and texts are taken verbatim, whatever they hold; everything else is parsed
and checked here, so that a mistake is reported before any work. Nothing heavier than the standard library is imported.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from qinco.cli.keys import ALIASES, KEYS, TASKS, Key, Task
from qinco.config import find_preset
from qinco.errors import ConfigError

_ASSIGNMENT = re.compile(r"([^\W\d][\w.-]*)=(.*)", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(e[+-]?[0-9]+)?", re.IGNORECASE)
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:[0-9]{1,4}")
_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Settings:
    """What one command line asks for.

    `settings["ds.db"]` is the value of a key, by its full name: the given one or its default. Integers, floats, bools
    and strings are Python's; lists and the paths of `file` are tuples. `A=null` is given as 0, any other null as None.
    """

    task: str
    values: Mapping[str, object]
    given_keys: frozenset[str]

    def __getitem__(self, key: str):
        return self.values[key]

    def given(self, key: str) -> bool:
        """Whether the command line names `key`, with whatever value."""
        return key in self.given_keys


def parse_arguments(arguments: Sequence[str]) -> Settings:
    """Settings of a command line without its program name; raises ConfigError at the first mistake in it."""
    task_name, rest = split_task(arguments)
    if task_name is None:
        raise ConfigError(f"no task is given: write qinco TASK key=value ..., with one of {_available_tasks()}")
    task = find_task(task_name)
    if not task.available:
        raise ConfigError(f"task {task.name} is not in this version yet; there are {_available_tasks()}")
    given: dict[str, object] = {}
    files = []
    for argument in rest:
        assignment = _ASSIGNMENT.fullmatch(argument)
        if assignment is None:
            files.append(_positional_file(argument, task))
            continue
        key = _find_key(assignment[1], task)
        if key.name in given:
            raise ConfigError(f"{key.name} is given twice: keep one of them")
        given[key.name] = parse_value(key, assignment[2])
    if files:
        if "file" in given:
            raise ConfigError(
                f"file={given['file'][0]!r} and {files[0]!r} are both given: keep one way of naming files"
            )
        given["file"] = tuple(files)
    values = {name: key.default for name, key in KEYS.items()} | given
    _require_keys(task, values)
    return Settings(task.name, values, frozenset(given))


def split_task(arguments: Iterable[str]) -> tuple[str | None, list[str]]:
    """The task's name, not checked, and the other arguments; the task is `task=NAME` or else the first bare word."""
    arguments = list(arguments)
    named = [argument for argument in arguments if argument.startswith("task=")]
    bare = [word for word in arguments if not _ASSIGNMENT.fullmatch(word) and not word.startswith(("-", "+"))]
    if len(named) > 1 or (named and bare and bare[0] in TASKS):
        other = named[1] if len(named) > 1 else bare[0]
        raise ConfigError(f"the task is given twice, {named[0]!r} and {other!r}: keep one of them")
    if not named and not bare:
        return None, arguments
    chosen = (named or bare)[0]
    arguments.remove(chosen)
    return chosen.removeprefix("task="), arguments


def find_task(name: str) -> Task:
    """The task called `name`; raises ConfigError with the nearest name."""
    if name in TASKS:
        return TASKS[name]
    raise ConfigError(f"unknown task {name!r}: {_did_you_mean(name, TASKS)}there are {_available_tasks()}")


def parse_value(key: Key, text: str):
    """The value that `text` means for `key`; raises ConfigError naming the key, the text and what is expected."""
    if not text:
        raise ConfigError(f"{key.name}= has no value: it must be {_expectation(key)}")
    if key.kind in ("path", "text"):
        return text
    if key.kind == "paths":
        return (text,)
    if key.accepts_null and text in ("null", "None"):
        return key.null_value
    if key.kind == "preset":
        find_preset(text)
        return text
    try:
        return _PARSERS[key.kind](key, text)
    except ValueError:
        raise ConfigError(f"{key.name} must be {_expectation(key)}, not {text!r}") from None


def _integer(key: Key, text: str) -> int:
    if _INTEGER.fullmatch(text):
        value = int(text)
    else:  # 1e6 is an integer too
        number = _number(key, text)
        value = int(number)
        if value != number:
            raise ValueError
    if not key.minimum <= value <= _LARGEST_INTEGER:
        raise ValueError
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


_PARSERS: dict[str, Callable[[Key, str], object]] = {
    "integer": _integer,
    "integers": _integers,
    "number": _number,
    "positive": _number,
    "switch": _switch,
    "choice": _choice,
    "device": _device,
}


def _expectation(key: Key) -> str:
    phrase = {
        "path": "a path",
        "paths": "a path",
        "text": "text",
        "integer": f"an integer of at least {key.minimum}",
        "integers": f"a list, such as [4,10], of integers of at least {key.minimum}",
        "number": "a number of at least 0",
        "positive": "a number above 0",
        "switch": "true or false",
        "choice": f"one of {', '.join(key.choices)}",
        "preset": f"one of {', '.join(key.choices)}",
        "device": "auto, cpu, cuda or cuda:N",
    }[key.kind]
    return f"{phrase}, or null" if key.accepts_null and key.kind not in ("path", "paths", "text") else phrase


def _find_key(name: str, task: Task) -> Key:
    """The key that the user calls `name`, if `task` accepts it."""
    key = KEYS.get(ALIASES.get(name, name))
    if key is None:
        suggestion = _did_you_mean(name, KEYS)
        raise ConfigError(f"unknown key {name!r}: {suggestion}qinco {task.name} --help lists the keys")
    if not key.available:
        raise ConfigError(f"key {key.name} is not in this version yet: leave it out")
    if not key.is_accepted_by(task.name):
        readers = [reader for reader in TASKS if reader in key.tasks]
        raise ConfigError(f"task {task.name} has no key {name}; {_join(readers)} {'have' if readers[1:] else 'has'}")
    return key


def _positional_file(argument: str, task: Task) -> str:
    """`argument`, which has no key, as a file of `info`; anywhere else a ConfigError that says how to mend it."""
    bare = argument.lstrip("-+")
    if argument.startswith(("-", "+")) and _ASSIGNMENT.fullmatch(bare):
        raise ConfigError(f"write {bare!r}, not {argument!r}: settings are written key=value")
    if argument.startswith("-"):
        raise ConfigError(
            f"unknown option {argument!r}: there are --help and --version, and settings are written key=value"
        )
    if task.name != "info" or not argument:
        raise ConfigError(f"unexpected argument {argument!r}: settings are written key=value")
    return argument


def _require_keys(task: Task, values: Mapping[str, object]) -> None:
    """Raise ConfigError naming every required key that has no value, with what it is for."""
    required = task.required
    if task.name == "encode" and values["encode_trainset"]:
        required = ("model", "trainset|db", "output")
    missing = [names for names in required if all(values[name] is None for name in names.split("|"))]
    if missing:
        wishes = [" or ".join(f"{name}= ({KEYS[name].summary})" for name in names.split("|")) for names in missing]
        raise ConfigError(f"task {task.name} needs {_join(wishes)}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    by_spelling = {}
    for full in known:
        by_spelling.setdefault(full.rpartition(".")[2].lower(), full)
        by_spelling[full.lower()] = full
    near = get_close_matches(name.lower(), by_spelling, 1, 0.6)
    return f"did you mean {by_spelling[near[0]]}? " if near else ""


def _available_tasks() -> str:
    return ", ".join(task.name for task in TASKS.values() if task.available)


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
