"""The grammar of the command line: `qinco TASK key=value ...`, the same as `qinco task=TASK key=value ...`.

An argument is cut at its first `=`. Paths and texts are taken verbatim, except for `${...}` and the leading `~/` of a
path; everything else is parsed and checked, so that mistakes are reported before any work.

As in Hydra, `${key}` stands for the value of a key, `${oc.env:NAME}` and `${oc.env:NAME,default}` for a variable of the
environment; a plain `${` is written `\\${`.
"""

import math
import os
import re
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from qinco.cli.defaults import effective
from qinco.cli.keys import Key, Settings, Task
from qinco.cli.tasks import KEYS, SPELLINGS, TASKS, find_key, own_key
from qinco.config import MAX_INTEGER, find_preset, suggest
from qinco.errors import ConfigError

OPTIONS = ("--help", "--version", "--cfg", "--json-logs")
DATA_SET = "the name of a data set"  # what db is in the place of another key
_ASSIGNMENT = re.compile(r"([^\W\d][\w.-]*)=(.*)", re.DOTALL)
# Keys of the authors' command lines that have no meaning here, by the first part of their names.
_FOREIGN = {
    "hydra": "Hydra is not used here, so there is no run folder and no logging of its own",
    "env": "set environment variables outside, as in NAME=value qinco ...",
    "inference": "models that are not trained always run in their fast form",
    "ivf_in_use": "it is known from the model; ivf_centroids= trains an IVF codec",
}


def parse_arguments(arguments: Sequence[str], complete: bool = True) -> Settings:
    """Parse a command line without its program name and options; if `complete`, required keys must be there."""
    task_name, words = split_task(arguments)
    if task_name is None:
        raise ConfigError(f"no task given: use qinco TASK key=value ..., with one of {', '.join(TASKS)}")
    task = find_task(task_name)
    given = _GivenValues(task, _sort_words(task, words))
    defaults = {key.name: key.default for key in (*KEYS.values(), *task.keys)}
    values = defaults | dict(given)
    if values["A"] is not None and values["C"] is not None:
        raise ConfigError(f"A={values['A']} and C={values['C']} exclude each other: give one of them")
    if complete:
        _require_keys(task, values)
    return Settings(task.name, values, frozenset(given))


def split_task(arguments: Iterable[str]) -> tuple[str | None, list[str]]:
    """The name of the task, unchecked, and the other arguments; the task is `task=NAME` or the first bare word."""
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
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}. {suggest(name, list(TASKS))}There are {', '.join(TASKS)}")
    return TASKS[name]


# Words


def _sort_words(task: Task, words: Iterable[str]) -> dict[str, list[str]]:
    """The texts given to each key: several if words without a key are its values."""
    texts: dict[str, list[str]] = {}
    bare = []
    for word in words:
        assignment = _ASSIGNMENT.fullmatch(word)
        if assignment is None:
            bare.append(_bare_word(word, task))
            continue
        key = _accepted_key(assignment[1], task)
        if key.name in texts:
            raise ConfigError(f"{key.name} is given twice: keep one of them")
        texts[key.name] = [assignment[2]]
    if not bare or task.positional is None:
        return texts
    if task.positional in texts:
        given = f"{task.positional}={texts[task.positional][0]}"
        raise ConfigError(f"{given!r} and {bare[0]!r} are both given: keep one of them")
    if len(bare) > 1 and not KEYS[task.positional].is_plural:
        raise ConfigError(f"unexpected argument {bare[1]!r}: {task.positional} is already {bare[0]!r}")
    return texts | {task.positional: bare}


def _accepted_key(name: str, task: Task) -> Key:
    """The key called `name`; raises ConfigError unless the task accepts it."""
    key = find_key(name, task)
    if key is None and (reason := _FOREIGN.get(name.partition(".")[0])):
        raise ConfigError(f"{name} cannot be set ({reason}): leave it out")
    if key is None:
        found = {spelling: find_key(spelling, task) or KEYS[key] for spelling, key in SPELLINGS.items()}
        known = {spelling: key.name for spelling, key in found.items() if task.reads(key.name)}
        raise ConfigError(f"unknown key {name!r}. {suggest(name, known)}See qinco {task.name} --help")
    if not task.accepts(key.name):
        readers = [other.name for other in TASKS.values() if other.reads(key.name)]
        raise ConfigError(f"task {task.name} has no key {name}; {_join(readers)} {'have' if readers[1:] else 'has'}")
    return key


def _bare_word(word: str, task: Task) -> str:
    """A word without a key, if the task takes such."""
    bare = word.lstrip("-+")
    if word.startswith(("-", "+")) and _ASSIGNMENT.fullmatch(bare):
        raise ConfigError(f"write {bare!r}, not {word!r}: settings are written key=value")
    if word.startswith("-"):
        raise ConfigError(f"unknown option {word!r}: there are {', '.join(OPTIONS)}; settings are written key=value")
    if word.startswith("hydra/"):
        raise ConfigError(f"{word.partition('=')[0]} cannot be set ({_FOREIGN['hydra']}): leave it out")
    if task.positional is None or not word:
        raise ConfigError(f"unexpected argument {word!r}: settings are written key=value")
    return word


def _require_keys(task: Task, values: Mapping[str, object]) -> None:
    missing = [names for names in task.required if all(values[name] in (None, False) for name in names.split("|"))]
    if missing:
        raise ConfigError(f"task {task.name} needs {list_needed(missing)}")


def list_needed(required: Iterable[str]) -> str:
    """Keys that a task needs, and what they are: `output= (file to write); either trainset= (...) or db= (...)`."""
    wishes = []
    for names in required:
        keys = [KEYS[name] for name in names.split("|")]
        helps = [DATA_SET if key.name == "db" and key is not keys[0] else key.help for key in keys]
        texts = [f"{key.name}= ({help})" for key, help in zip(keys, helps, strict=True)]
        wishes.append("either " * (len(texts) > 1) + " or ".join(texts))
    return "; ".join(wishes)


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# Values


class _GivenValues(Mapping):
    """The values of the given keys. Each is interpolated and parsed when it is first asked for, by another perhaps."""

    def __init__(self, task: Task, texts: Mapping[str, Sequence[str]]):
        self._task, self._texts = task, texts
        self._values: dict[str, object] = {}
        self._pending: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __contains__(self, name) -> bool:
        return name in self._texts

    def __getitem__(self, name: str):
        texts, key = self._texts[name], self._own(name)
        if name not in self._values:
            if name in self._pending:
                circle = [*self._pending[self._pending.index(name) :], name]
                raise ConfigError(f"{name} refers to itself: {' -> '.join(circle)}")
            self._pending.append(name)
            parsed = [parse_value(key, self._interpolated(name, text)) for text in texts]
            self._values[name] = tuple(parsed) if key.is_plural else parsed[0]
            self._pending.pop()
        return self._values[name]

    def _interpolated(self, name: str, text: str) -> str:
        return interpolate(text, self._look_up, name, null=None if self._own(name).is_verbatim else "null")

    def _own(self, name: str) -> Key:
        return own_key(name, self._task) or KEYS[name]

    def _look_up(self, name: str) -> str | None:
        """The text that `${name}` stands for."""
        if name == "task":
            return self._task.name
        key, referrer = find_key(name, self._task), self._pending[-1]
        if key is None:
            raise ConfigError(f"{referrer}: ${{{name}}} is no key. {suggest(name, SPELLINGS)}A plain ${{ is \\${{")
        if key.name in self:
            value = self[key.name]
        elif key.name in self._own(referrer).open_references:
            return f"${{{name}}}"
        else:
            # Defaults depend on the suffix of output, which may itself be named after them.
            output = {"output": self._texts["output"][0]} if "output" in self else {}
            known = ChainMap(output, self)  # pyright: ignore[reportArgumentType]  (which is only read)
            value = effective(key.name, self._task, known).value
            value = self._interpolated(key.name, value) if isinstance(value, str) else value
        return None if value is None else to_text(key, value)


def interpolate(text: str, look_up: Callable[[str], str | None], where: str, null: str | None = "null") -> str:
    """Replace every `${...}` in the value of the key `where`, from the inside out.

    `look_up` gives the text that the name of a key stands for, None for null. Null becomes `null`, or is an error if
    that is None, as in a path.
    """
    done: list[str] = []  # finished pieces, which may hold ${ themselves; in the text, their number between NULs

    def keep(piece: str) -> str:
        done.append(piece)
        return f"\0{len(done) - 1}\0"

    def restored(text: str) -> str:
        return _KEPT.sub(lambda mark: done[int(mark[1])], text)

    text = text.replace("\0", keep("\0")).replace("\\${", keep("${"))
    while reference := _REFERENCE.search(text):
        inside = restored(reference[1])
        value = _variable(inside, where) if ":" in inside else look_up(inside.strip())
        value = null if value is None else value
        if value is None:
            raise ConfigError(f"{where}: {inside.strip()} has no value for ${{{inside}}}: give it one")
        text = text[: reference.start()] + keep(value) + text[reference.end() :]
    if "${" in text:
        raise ConfigError(f"{where}: a ${{ is not closed by a }}; a plain one is written \\${{")
    return restored(text)


_REFERENCE = re.compile(r"\$\{((?:(?!\$\{)[^}])*)\}")
_KEPT = re.compile("\0([0-9]+)\0")


def _variable(inside: str, where: str) -> str | None:
    resolver, _, argument = inside.partition(":")
    if resolver.strip() != "oc.env":
        raise ConfigError(f"{where}: unknown ${{{inside}}}: there are ${{key}} and ${{oc.env:NAME,default}}")
    name, comma, default = (part.strip() for part in argument.partition(","))
    if name not in os.environ and not comma:
        raise ConfigError(f"{where}: environment variable {name!r} is not set: set it, or give a default, "
                          f"${{oc.env:{name},default}}")  # fmt: skip
    return os.environ.get(name, None if default in ("null", "None") else _unquoted(default))


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def parse_value(key: Key, text: str):
    """The value that a text means for a key, or one of the values if it is plural; raises ConfigError."""
    if text and not key.is_verbatim:
        text = _unquoted(text)
    if not text:
        raise ConfigError(f"{key.name}= has no value: it must be {_expectation(key)}")
    if key.is_verbatim:
        # Shells expand a ~ at the start of a word, but not after the `=` of key=~/x.
        is_home = key.kind in ("path", "paths") and text.startswith("~/")
        return os.path.expanduser(text) if is_home else text  # noqa: PTH111 (a Path drops a trailing slash)
    if key.accepts_null and (text in ("null", "None") or (text == "0" and key.zero_is_null)):
        return key.null_value
    if key.kind == "preset":
        find_preset(text)
        return text
    try:
        return _parse(key, text)
    except (ValueError, KeyError):
        raise ConfigError(f"{key.name} must be {_expectation(key)}, not {text!r}") from None
    except OverflowError:
        raise ConfigError(f"{key.name} must be at most {MAX_INTEGER}, not {text!r}") from None


def to_text(key: Key, value) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and value < 1e15 else repr(value)
    if isinstance(value, tuple):
        start, between, end = {"share": ("", "/", ""), "integers": ("[", ",", "]"), "names": ("[", ",", "]")}.get(
            key.kind, ("", " ", "")
        )
        return f"{start}{between.join(map(str, value))}{end}"
    return next((text for text, meaning in key.spellings.items() if meaning == value), str(value))


_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(e[+-]?[0-9]+)?", re.IGNORECASE)
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:[0-9]{1,4}")
_SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def _parse(key: Key, text: str):
    """The value of a text that is neither verbatim nor null; raises ValueError, KeyError or OverflowError."""
    match key.kind:
        case "integer":
            return _integer(key, text)
        case "integers":
            is_list = text.startswith("[") and text.endswith("]")
            elements = text[1:-1].split(",") if is_list else [text]
            return tuple(_integer(key, element.strip()) for element in elements)
        case "names":
            is_list = text.startswith("[") and text.endswith("]")
            return tuple(_name(key, word.strip()) for word in (text[1:-1] if is_list else text).split(",") if word)
        case "number" | "positive" | "signed":
            return _number(key, text)
        case "switch":
            return {"true": True, "false": False}[text.lower()]
        case "choice":
            values = {name: name for name in (*key.choices, *key.spellings.values())} | dict(key.spellings)
            return values[text if text in values else text.lower()]
        case "share" if match := _SHARE.fullmatch(text):
            share = int(match[1]), int(match[2])
            if 1 <= share[1] >= share[0]:
                return share
        case "device" if _DEVICE.fullmatch(text):
            return text
    raise ValueError


def _name(key: Key, text: str) -> str:
    """One of the choices, however it is capitalised; any name without choices."""
    values = {name.lower(): name for name in key.choices} | dict(key.spellings)
    return values[text.lower()] if values else text


def _integer(key: Key, text: str) -> int:
    number = int(text) if _INTEGER.fullmatch(text) else _number(key, text)  # 1e6 is an integer too
    if number != int(number) or number < key.minimum:
        raise ValueError
    if number > MAX_INTEGER:
        raise OverflowError
    return int(number)


def _number(key: Key, text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    least = -math.inf if key.kind == "signed" else 0
    if not least <= value < math.inf or math.isinf(value) or (key.kind == "positive" and value == 0):
        raise ValueError
    return value


def _expectation(key: Key) -> str:
    phrase = {
        "path": "a path", "paths": "a path", "text": "a text", "texts": "a text",
        "integer": f"an integer of at least {key.minimum}",
        "integers": f"a list, such as [4,10], of integers of at least {key.minimum}",
        "names": f"a list, such as [{','.join(key.choices[:2]) or 'a,b'}], of {', '.join(key.choices) or 'names'}",
        "number": "a number of at least 0", "positive": "a number above 0", "signed": "a number",
        "switch": "true or false",
        "choice": f"one of {', '.join(key.choices)}", "preset": f"one of {', '.join(key.choices)}",
        "device": "auto, cpu, cuda or cuda:N", "share": "a share i/n of n, such as 1/4",
    }[key.kind]  # fmt: skip
    return f"{phrase}, or null" if key.accepts_null else phrase
