"""Write docs/api/index.md: every public name with its signature and the first sentence of its docstring.

python docs/make_api.py
"""

import dataclasses
import inspect
import re
from pathlib import Path

import qinco

PAGE = Path(__file__).parent / "api" / "index.md"
# Sections, and the packages whose names they hold.
SECTIONS = {
    "Vectors": ("vectors", "datasets"),
    "Codecs": ("codec", "store", "training"),
    "Collections": ("collection",),
    "Search": ("search", "decoders", "maths"),
    "Comparisons": ("comparison",),
    "Options": ("config",),
    "Files and machine": ("description", "installation", "machine", "progress", "engines"),
    "Errors": ("errors",),
}
HEAD = """# Python API

Every name of `qinco`, as `python docs/make_api.py` lists it. `help(qinco.Codec.fit)` shows the arguments, shapes and
examples of each.

- Vectors are (N, D) arrays, memory maps, torch tensors, paths or a `VectorSource`, of any float or integer type.
- Long calls take `progress=`: `None` shows a bar on a terminal or in Jupyter, `False` nothing, `True` also lines where
  there is no terminal, and a function `report(stage, done, total, unit, **fields)` is called.
- Messages go to the standard `logging` module, under `qinco`.
- A mistake raises a `QincoError`: `ConfigError` (a setting), `DataError` (a file or array) or `ResourceError` (memory
  or disk). The first two are also `ValueError`s.
"""


def summary(value) -> str:
    """The first sentence of a docstring, in one line."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0]


def signature(value) -> str:
    """Names and defaults of the arguments, without annotations."""
    try:
        parameters = list(inspect.signature(value).parameters.values())
    except (TypeError, ValueError):
        return "()"
    if parameters and parameters[0].name in ("self", "cls"):
        parameters = parameters[1:]
    words, is_starred = [], False
    for one in parameters:
        if one.kind is one.VAR_POSITIONAL:
            words.append(f"*{one.name}")
            is_starred = True
            continue
        if one.kind is one.KEYWORD_ONLY and not is_starred:
            words.append("*")
            is_starred = True
        name = f"**{one.name}" if one.kind is one.VAR_KEYWORD else one.name
        words.append(name if one.default is one.empty else f"{name}={default(one.default)}")
    return f"({', '.join(words)})"


def default(value) -> str:
    return value.__name__ if callable(value) else repr(value)


def members(value: type) -> list[tuple[str, str]]:
    """Public methods and properties of a class: how each is written, and its summary."""
    found = []
    for name in sorted({name for kind in value.__mro__ if kind.__module__.startswith("qinco") for name in vars(kind)}):
        member = inspect.getattr_static(value, name)
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            found.append((f"`.{name}`", summary(member)))
        elif isinstance(member, classmethod | staticmethod) or inspect.isroutine(member):
            found.append((f"`.{name}{signature(getattr(value, name))}`", summary(getattr(value, name))))
    return found


def entry(name: str, value) -> str:
    if inspect.isclass(value) and issubclass(value, Exception):
        return f"- **`{name}`**: {summary(value)}\n"
    if inspect.isclass(value):
        arguments = "" if value.__init__ is object.__init__ else signature(value)  # else it is no one's to construct
        text = f"### `{name}{arguments}`\n{summary(value)}\n"
        if dataclasses.is_dataclass(value):
            return text
        rows = "".join(f"| {written.replace('|', '&#124;')} | {told} |\n" for written, told in members(value))
        return f"{text}\n| | |\n|---|---|\n{rows}" if rows else text
    if callable(value):
        return f"### `{name}{signature(value)}`\n{summary(value)}\n"
    told = f"one of {', '.join(f'`{key!r}`' for key in value)}" if isinstance(value, dict) else f"`{value!r}`"
    return f"### `{name}`\n{told}\n"


def home(name: str) -> str:
    """The first package below `qinco` that a name comes from."""
    module = qinco._HOMES.get(name) or getattr(getattr(qinco, name), "__module__", "qinco.config")
    return module.split(".")[1]


def page() -> str:
    """The whole page."""
    names = [name for name in qinco.__all__ if not name.startswith("__")]
    parts, listed = [HEAD], set()
    for section, rooms in SECTIONS.items():
        here = [name for name in names if home(name) in rooms]
        listed |= set(here)
        if here:
            parts.append(f"## {section}\n" + "\n".join(entry(name, getattr(qinco, name)) for name in here))
    missing = set(names) - listed
    assert not missing, f"no section of docs/make_api.py takes {', '.join(sorted(missing))}"
    parts.append(
        "## Integrations\n"
        "### `qinco.integrations.sklearn.QincoTransformer`\n"
        "A scikit-learn transformer that fits a codec and gives codes; it must be imported: "
        "`from qinco.integrations.sklearn import QincoTransformer`.\n\n"
        "Stores of frameworks, late interaction and figures for model cards: [integrations](../integrations.md).\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
