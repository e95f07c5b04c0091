"""What a comparison is asked for, checked before any work."""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from qinco.comparison.options import FAMILIES, LEAST_BYTES, LIMIT_MINUTES, MINUTES, MOST_BYTES
from qinco.config import METRICS, PRESETS, find_preset, require_int, require_number, suggest
from qinco.errors import ConfigError, needs_extra
from qinco.search.metric import Metric

_PACKAGES = (("faiss", "compare"), ("torch", "train"))  # and the extras that bring them


@dataclass(frozen=True)
class Request:
    """The settings of a comparison.

    Attributes:
        sizes: bytes of a vector, ascending.
        budget: of each of our trainings: `minutes` or `epochs`, and `seed`.
        metrics: names, or None: those that tell the vectors apart.
        presets, families: ours, and the rivals'.
        limit_minutes: of each job.
    """

    sizes: tuple[int, ...]
    budget: dict
    metrics: tuple[str, ...] | None
    presets: tuple[str, ...] = tuple(PRESETS)
    families: tuple[str, ...] = FAMILIES
    limit_minutes: float = LIMIT_MINUTES

    @classmethod
    def of(cls, bytes, minutes, epochs, metrics, presets, rivals, limit_minutes, seed) -> "Request":
        """Check arguments as they are given; raises ConfigError."""
        sizes = listed("bytes", bytes, Integral)
        for size in sizes:
            require_int("bytes", size, LEAST_BYTES, MOST_BYTES)
        if epochs is not None and minutes is not None:
            raise ConfigError(f"epochs={epochs} and minutes={minutes} exclude each other: give one of them")
        if epochs is not None:
            require_int("epochs", epochs)
            budget = {"epochs": epochs}
        else:
            minutes = MINUTES if minutes is None else minutes
            require_number("minutes", minutes, above=0)
            budget = {"minutes": minutes}
        require_int("seed", seed, 0)
        require_number("limit_minutes", limit_minutes, above=0)
        names = None if metrics is None else tuple(Metric(name).name for name in listed("metrics", metrics, str))
        chosen = tuple(PRESETS) if presets is None else listed("presets", presets, str, may_be_empty=True)
        for name in chosen:
            find_preset(name)
        known = {name.lower(): name for name in FAMILIES}
        others = FAMILIES if rivals is None else listed("rivals", rivals, str, may_be_empty=True)
        for name in others:
            if name.lower() not in known:
                near = suggest(name, FAMILIES, 0.4)
                raise ConfigError(f"unknown rival {name!r}. {near}There are {', '.join(FAMILIES)}")
        if not chosen and not others:
            raise ConfigError("presets and rivals are both empty: name one of them")
        for package, extra in _PACKAGES:
            with needs_extra("a comparison", package, extra):
                __import__(package)
        return cls(
            tuple(sorted(set(map(int, sizes)))), budget | {"seed": seed},
            None if names is None else tuple(name for name in METRICS if name in names),
            tuple(dict.fromkeys(chosen)), tuple(dict.fromkeys(known[name.lower()] for name in others)), limit_minutes,
        )  # fmt: skip


def listed(name: str, values: Any, kind: type, may_be_empty: bool = False) -> tuple:
    """One value or several as a tuple."""
    if isinstance(values, kind) and not isinstance(values, bool):
        return (values,)
    if isinstance(values, str) or not isinstance(values, Iterable):
        noun = "an integer" if kind is Integral else "a name"
        raise ConfigError(f"{name} must be {noun} or a list of such, not {values!r}")
    found = tuple(values)
    if not found and not may_be_empty:
        raise ConfigError(f"{name} must not be empty: give one value or more")
    for value in found:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(
                f"{name} must be a list of {'integers' if kind is Integral else 'names'}, not of {value!r}"
            )
    return found
