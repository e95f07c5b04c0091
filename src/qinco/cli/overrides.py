"""The grammar of the command line: `qinco TASK key=value ...`, the same as `qinco task=TASK key=value ...`.

An argument is cut at its first `=`. Paths and texts are taken verbatim, whatever they hold but `${...}` and the `~/`
that a path begins with; everything else is parsed and checked, so that a mistake is reported before any work. Nothing
heavier than the standard library is imported.
"""

import re
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qinco.cli.interpolation import interpolate
from qinco.cli.keys import ALIASES, KEYS, Key
from qinco.cli.tasks import TASKS, Task
from qinco.cli.values import parse_value, to_text
from qinco.errors import ConfigError

_ASSIGNMENT = re.compile(r"([^\W\d][\w.-]*)=(.*)", re.DOTALL)
OPTIONS = ("--help", "--version", "--cfg", "--json-logs")
# What command lines of the authors' code may hold that has no meaning here, by the first part of its name.
_FOREIGN = {
    "hydra": "there is no Hydra here, hence no run folder and no logging of its own",
    "env": "the environment is set outside, as in NAME=value qinco ...",
    "inference": "models that are not trained always run in their fast form",
    "ivf_in_use": "it is known from the model; ivf_centroids= trains an IVF codec",
}


@dataclass(frozen=True)
class Settings:
    """What one command line asks for.

    `settings["ds.db"]` is the value of a key, by its full name: the given one or its default. Integers, floats, bools
    and strings are Python's; lists, the words of `file` and `name`, and `shard`, (i, n), are tuples. `A=null` is given
    as 0, `B=null` and `B=0` as 1, any other null as None.
    """

    task: str
    values: Mapping[str, Any]
    given_keys: frozenset[str]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def given(self, key: str) -> bool:
        """Whether the command line names `key`, with whatever value."""
        return key in self.given_keys

    @property
    def given_values(self) -> dict[str, Any]:
        """The values of the keys that the command line names."""
        return {name: self.values[name] for name in self.values if name in self.given_keys}


def parse_arguments(arguments: Sequence[str], complete: bool = True) -> Settings:
    """Settings of a command line without its program name and options; raises ConfigError at the first mistake in it.

    complete: whether a required key that is missing is a mistake
    """
    task_name, rest = split_task(arguments)
    if task_name is None:
        raise ConfigError(f"no task is given: write qinco TASK key=value ..., with one of {', '.join(TASKS)}")
    task = find_task(task_name)
    given = _Given(task, _sort_words(task, rest))
    values = {name: key.default for name, key in KEYS.items()} | dict(given)
    if values["A"] is not None and values["C"] is not None:
        raise ConfigError(f"A={values['A']} and C={values['C']} exclude each other: give one of them")
    if complete:
        _require_keys(task, values)
    return Settings(task.name, values, frozenset(given))


def _sort_words(task: Task, words: Iterable[str]) -> dict[str, list[str]]:
    """The texts that `words` give to each key: several where words without a key are its values."""
    texts: dict[str, list[str]] = {}
    bare = []
    for word in words:
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment is None:
            bare.append(_positional(word, task))
            continue
        key = _find_key(assignment[1], task)
        if key.name in texts:
            raise ConfigError(f"{key.name} is given twice: keep one of them")
        texts[key.name] = [assignment[2]]
    if not bare:
        return texts
    if task.positional in texts:
        first = f"{task.positional}={texts[task.positional][0]}"
        raise ConfigError(f"{first!r} and {bare[0]!r} are both given: keep one way of saying it")
    if len(bare) > 1 and not KEYS[task.positional].is_plural:
        raise ConfigError(f"unexpected argument {bare[1]!r}: {task.positional} is {bare[0]!r} already")
    return texts | {task.positional: bare}


class _Given(Mapping):
    """The values of the given keys, each parsed, with what it interpolates in place, when it is first asked for."""

    def __init__(self, task: Task, texts: Mapping[str, Sequence[str]]):
        self._task, self._texts = task, texts
        self._values: dict[str, object] = {}
        self._under_way: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, name) -> bool:
        return name in self._texts

    def __getitem__(self, name: str):
        texts = self._texts[name]
        if name not in self._values:
            if name in self._under_way:
                circle = [*self._under_way[self._under_way.index(name) :], name]
                raise ConfigError(f"{name} refers to itself: {' -> '.join(circle)}")
            self._under_way.append(name)
            parsed = [parse_value(KEYS[name], self._interpolated(name, text)) for text in texts]
            self._values[name] = tuple(parsed) if KEYS[name].is_plural else parsed[0]
            self._under_way.pop()
        return self._values[name]

    def _interpolated(self, name: str, text: str) -> str:
        if "${" not in text:
            return text
        return interpolate(text, self._look_up, name, null=None if KEYS[name].is_verbatim else "null")

    def _look_up(self, name: str) -> str | None:
        """What `${name}` stands for."""
        if name == "task":
            return self._task.name
        key = KEYS.get(ALIASES.get(name, name))
        if key is None:
            suggestion = _did_you_mean(name, KEYS) or "give the name of a key, or write a plain ${ as \\${"
            raise ConfigError(f"{self._under_way[-1]}: ${{{name}}} names no key: {suggestion}".rstrip())
        if key.name in self:
            value = self[key.name]
        elif key.name in KEYS[self._under_way[-1]].left_open:
            return f"${{{name}}}"
        else:
            from qinco.cli.resolved import effective

            # A rule's default depends on the form of output, which may itself be named after the rule.
            looked_at = ChainMap({"output": self._texts["output"][0]} if "output" in self else {}, self)
            value = effective(key.name, self._task.name, looked_at).value
            if isinstance(value, str):
                value = self._interpolated(key.name, value)
        return None if value is None else to_text(key, value)


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
    raise ConfigError(f"unknown task {name!r}: {_did_you_mean(name, TASKS)}there are {', '.join(TASKS)}")


def required_keys(task: Task, given: Mapping[str, object]) -> tuple[str, ...]:
    """The keys that `task` cannot do without; "a|b" is satisfied by either."""
    if task.name == "encode" and given.get("encode_trainset"):
        return ("model", "trainset|db", "output")
    return task.required


def _find_key(name: str, task: Task) -> Key:
    """The key that the user calls `name`, if `task` accepts it."""
    key = KEYS.get(ALIASES.get(name, name))
    if key is None and (reason := _FOREIGN.get(name.partition(".")[0])):
        raise ConfigError(f"{name} cannot be set, {reason}: leave it out")
    if key is None:
        suggestion = _did_you_mean(name, KEYS)
        raise ConfigError(f"unknown key {name!r}: {suggestion}qinco {task.name} --help lists the keys")
    if not key.is_accepted_by(task.name):
        readers = [reader for reader in TASKS if reader in key.tasks]
        raise ConfigError(f"task {task.name} has no key {name}; {_join(readers)} {'have' if readers[1:] else 'has'}")
    return key


def _positional(word: str, task: Task) -> str:
    """`word`, which has no key, where `task` takes such; anywhere else a ConfigError that says how to mend it."""
    bare = word.lstrip("-+")
    if word.startswith(("-", "+")) and _ASSIGNMENT.fullmatch(bare):
        raise ConfigError(f"write {bare!r}, not {word!r}: settings are written key=value")
    if word.startswith("-"):
        raise ConfigError(
            f"unknown option {word!r}: there are {', '.join(OPTIONS)}, and settings are written key=value"
        )
    if word.startswith("hydra/"):
        raise ConfigError(f"{word.partition('=')[0]} cannot be set, {_FOREIGN['hydra']}: leave it out")
    if task.positional is None or not word:
        raise ConfigError(f"unexpected argument {word!r}: settings are written key=value")
    return word


def _require_keys(task: Task, values: Mapping[str, object]) -> None:
    """Raise ConfigError naming every required key that has no value, with what it is for."""
    required = required_keys(task, values)
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


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
