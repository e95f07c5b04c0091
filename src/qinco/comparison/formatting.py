"""Figures and names of a report as people read them; what was not measured says so."""

import math
from typing import Any

NOT_MEASURED = "not measured"
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def measured(value: Any) -> float | None:
    """A finite number, or the first of [number, standard error]; None for anything else."""
    value = value[0] if isinstance(value, list | tuple) and value else value
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def number(value: Any, digits: int = 3) -> str:
    """A number with at least `digits` significant digits, and commas between thousands.

    Example:
        >>> number(12345.6), number(0.98765), number(None)
        ('12,346', '0.988', 'not measured')
    """
    found = measured(value)
    if found is None:
        return NOT_MEASURED
    size = 0 if found == 0 else math.floor(math.log10(abs(found)))
    text = f"{found:,.{min(max(digits - 1 - size, 0), 12)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: Any) -> str:
    """An integer with commas between thousands."""
    found = measured(value)
    return NOT_MEASURED if found is None else f"{found:,.0f}"


def seconds(value: Any) -> str:
    """Seconds, and no digits that no clock tells."""
    found = measured(value)
    return "under 0.01" if found is not None and 0 <= found < 0.01 else number(found)


def share(value: Any) -> str:
    """A share of 1 with three decimals, and its standard error if it comes with one: .953 ± .005."""
    found = measured(value)
    if found is None:
        return NOT_MEASURED
    error = measured(value[1]) if isinstance(value, list | tuple) and len(value) > 1 else None
    return _decimals(found) + ("" if error is None else f" ± {_decimals(error)}")


def with_error(value: Any, error: Any) -> str:
    """A number and its standard error, with as many decimals as tell the error to two digits."""
    found, spread = measured(value), measured(error)
    if found is None or spread is None or spread <= 0:
        return number(found, 4)
    places = min(max(1 - math.floor(math.log10(spread)), 0), 12)
    return f"{found:,.{places}f} ± {spread:,.{places}f}"


def memory(value: Any) -> str:
    """Bytes in the unit that suits them, each a thousand of the one before.

    Example:
        >>> memory(14e9)
        '14 GB'
    """
    found = measured(value)
    if found is None:
        return NOT_MEASURED
    power = 0 if abs(found) < 1 else min(int(math.log10(abs(found)) / 3 + 1e-9), len(_UNITS) - 1)
    return f"{number(found / 1000**power)} {_UNITS[power]}"


def money(value: Any) -> str:
    """An amount with cents below 100, and never 0.00 for what costs something."""
    found = measured(value)
    if found is None:
        return NOT_MEASURED
    if 0 < found < 0.01:
        return "under 0.01"
    return f"{found:,.2f}" if found < 100 else f"{found:,.0f}"


def words(value: Any, limit: int | None = None) -> str:
    """A text on one line without control characters, cut at `limit` characters; None is what was not measured."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOT_MEASURED
    text = "".join(char if char.isprintable() else " " for char in str(value))
    text = " ".join(text.split()) or NOT_MEASURED
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def column(name: str) -> tuple[str, str]:
    """The heading of a key such as `train_seconds`, and its unit: ("train", "s")."""
    for suffix, unit in (("_seconds", "s"), ("_us", "µs"), ("_bytes", "bytes")):
        if name.endswith(suffix):
            return name.removesuffix(suffix).replace("_", " "), unit
    return name.replace("_", " "), ""


def _decimals(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
