"""`qinco doctor`: check the installation."""

from collections.abc import Iterator

import qinco
from qinco.cli.console import format_value
from qinco.cli.keys import task
from qinco.errors import QincoError


@task("doctor", "check the installation", keys=[], imports=("qinco.codec",))
def doctor(settings, console) -> None:
    facts = qinco.check_installation()
    if settings["json"]:
        console.print_result(facts, True)
    else:
        console.print_table(list(_rows(facts)), ("about", "what", "value"))
    if facts["self_check"] != "ok":
        raise QincoError(f"{facts['problems'][-1]}; do not trust codes that are made here")


def _rows(facts: dict) -> Iterator[tuple[str, str, str]]:
    for section, content in facts.items():
        parts = content if isinstance(content, list) else [content]
        entries = list(content.items()) if isinstance(content, dict) else [("", part) for part in parts]
        for i, (name, value) in enumerate(entries or [("", "none")]):
            yield "" if i else section.replace("_", " "), name.removesuffix("_bytes"), _text(name, value)


def _text(name: str, value) -> str:
    if isinstance(value, dict):
        shown = {inner: part for inner, part in value.items() if part not in (None, [])}
        return ", ".join(f"{inner.removesuffix('_bytes')} {_text(inner, part)}" for inner, part in shown.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value / 2**30:,.1f} GiB" if name.endswith("_bytes") and value else format_value(value)
