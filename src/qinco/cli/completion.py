"""What the shell offers while the user types: `qinco completion words WORD ...`."""

from collections.abc import Sequence

from qinco.cli.grammar import OPTIONS, find_task, split_task
from qinco.cli.keys import Key
from qinco.cli.tasks import KEYS, TASKS, find_key
from qinco.datasets.catalogue import DATASETS, names
from qinco.errors import ConfigError

FILES = "<file>"  # stands for the names of files, which the shell completes itself


def candidates(words: Sequence[str]) -> list[str]:
    """What the last of `words` may become, with `FILES` first if it may be a file; nothing after a mistake."""
    *before, current = words or [""]
    try:
        found = _all_candidates(before, current)
    except ConfigError:
        return []
    return [word for word in found if word == FILES or word.startswith(current)]


def _all_candidates(before: Sequence[str], current: str) -> list[str]:
    task_name, rest = split_task(before)
    if current.startswith("-"):
        return list(OPTIONS)
    if task_name is None:
        return [f"task={name}" for name in TASKS] if current.startswith("task=") else [*TASKS, "help"]
    if task_name == "help":
        return list(TASKS)
    task, (name, equals, _) = find_task(task_name), current.partition("=")
    if equals:
        key = find_key(name)
        values = _values(key) if key is not None and task.accepts(key.name) else []
        return [value if value == FILES else f"{name}={value}" for value in values]
    given = [find_key(word.partition("=")[0]) for word in rest]
    keys = [f"{key.name}=" for key in task.keys if key not in given and key.name != task.positional]
    values = [] if task.positional is None else _values(KEYS[task.positional])
    # Any file may come next, so keys are offered only for a word that begins like one.
    if FILES in values:
        return [key for key in keys if current and key.startswith(current)] or values
    return [*(value for value in values if value not in rest), *keys]


def _values(key: Key) -> list[str]:
    if key.name == "db":
        return [FILES, *DATASETS]
    if key.name == "name":
        return names()
    if key.kind in ("path", "paths"):
        return [FILES]
    known = {"switch": ("true", "false"), "device": ("auto", "cpu", "cuda")}.get(key.kind, key.choices)
    return [*known, *(["null"] if key.accepts_null else [])]
