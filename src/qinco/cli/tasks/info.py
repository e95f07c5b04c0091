"""`qinco info`: what files hold."""

from collections.abc import Iterator, Mapping
from dataclasses import fields

import qinco
from qinco.cli.keys import OPTIONS, Key, task
from qinco.config import field_keys
from qinco.errors import DataError

_ORDER = {field.name: place for place, field in enumerate(field for options in OPTIONS for field in fields(options))}


@task(
    "info",
    "what a file holds: qinco info FILE ...",
    keys=[Key("file", "paths", None, "files to describe")],
    required=("file",),
    positional="file",
)
def info(settings, console) -> None:
    results, errors = [], []
    for path in settings["file"]:
        try:
            results.append(qinco.describe(path))
        except DataError as error:
            errors.append(error)
    if settings["json"] and len(settings["file"]) > 1:
        console.print_result({result["file"]: result for result in results}, True)
    else:
        for result in results:
            console.print_result(result if settings["json"] else dict(_flat(result)), settings["json"])
    for error in errors[:-1]:
        console.warn(str(error))
    if errors:
        raise errors[-1]


def _flat(described: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """A line for each value: `model.num_steps (M)`; options in the order of their declaration, whatever the file's."""
    keys = field_keys(*OPTIONS)
    for name in sorted(described, key=lambda name: _ORDER.get(name, -1) if prefix else 0):
        value = described[name]
        if isinstance(value, Mapping) and not all(str(inner).isdigit() for inner in value):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + (name if keys.get(name, name) == name else f"{name} ({keys[name]})"), value
