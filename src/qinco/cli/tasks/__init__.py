"""The tasks of the command line, in a module for each or for those of one kind. New modules are named here."""

from importlib import import_module

from qinco.cli.keys import OPTIONS, Key, Task
from qinco.config import KEYS_OF_ARGUMENTS, MULTIPLE, field_keys

# In the order of the help.
_MODULES = (
    "collection_write", "collection_read", "serve", "train", "eval", "search", "encode", "decode", "info", "centroids",
    "index", "pairwise", "convert", "download", "doctor", "bench", "compare", "plan", "completion",
)  # fmt: skip

TASKS: dict[str, Task] = {
    value.name: value
    for module in _MODULES
    for value in vars(import_module(f"{__name__}.{module}")).values()
    if isinstance(value, Task)
}
# Where tasks have keys of one name that differ, that of the first; a task reads its own.
KEYS: dict[str, Key] = {}
for _task in TASKS.values():
    KEYS |= {key.name: key for key in _task.keys if key.name not in KEYS}
ALIASES = {name.removeprefix("search."): name for name in KEYS if name.startswith("search.")}
# Keys may be called as in Python, by the field or the argument that they stand for.
_SAME = {name: key for name, key in (KEYS_OF_ARGUMENTS | field_keys(*OPTIONS)).items() if key != MULTIPLE}
ALIASES |= {name: ALIASES.get(key, key) for name, key in _SAME.items() if name not in KEYS}
# What is suggested for a misspelled one, and so also by the last part of its name.
SPELLINGS = {name.rpartition(".")[2].lower(): name for name in reversed(KEYS)} | ALIASES
SPELLINGS |= {name.lower(): name for name in KEYS}


def find_key(name: str, task: Task | None = None) -> Key | None:
    """The key called `name`, with or without the prefix `search.` (first if a task reads that), or as in Python."""
    if task is None:
        return KEYS.get(ALIASES.get(name, name))
    return task.key(f"search.{name}") or task.key(name) or own_key(ALIASES.get(name, name), task)


def own_key(name: str, task: Task) -> Key | None:
    """The key of exactly this name: the task's own, or that of others."""
    return task.key(name) or KEYS.get(name)
