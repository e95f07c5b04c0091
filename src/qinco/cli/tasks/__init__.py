"""The tasks of the command line: a module for each. A new task is a new module, named here."""

from importlib import import_module

from qinco.cli.keys import OPTIONS, Key, Task
from qinco.config import field_keys

# In the order of the help.
_MODULES = (
    "train", "eval", "search", "encode", "decode", "info", "centroids", "index", "pairwise", "convert", "download",
    "doctor", "bench", "completion",
)  # fmt: skip

TASKS: dict[str, Task] = {
    value.name: value
    for module in _MODULES
    for value in vars(import_module(f"{__name__}.{module}")).values()
    if isinstance(value, Task)
}
KEYS: dict[str, Key] = {key.name: key for task in TASKS.values() for key in task.keys}
ALIASES = {name.removeprefix("search."): name for name in KEYS if name.startswith("search.")}
# What a key may also be called: by the last part of its name, and by the field that it stands for.
SPELLINGS = {name.rpartition(".")[2].lower(): name for name in reversed(KEYS)}
SPELLINGS |= {field: ALIASES.get(key, key) for field, key in reversed(field_keys(*OPTIONS).items())}
SPELLINGS |= {name.lower(): name for name in KEYS}


def find_key(name: str) -> Key | None:
    """The key called `name`, with or without the prefix `search.`."""
    return KEYS.get(ALIASES.get(name, name))
