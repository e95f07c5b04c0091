"""Exceptions, one class for each exit code, and wording that several messages share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class QincoError(Exception):
    """Base of every error that qinco raises on purpose. Its message is one sentence: what, which value, what to do."""

    exit_code = 2


class ConfigError(QincoError, ValueError):
    """A setting, a key or a combination of settings is wrong."""


class DataError(QincoError, ValueError):
    """A file or an array does not hold what it should: truncated, not finite, of the wrong dimension."""

    exit_code = 3


class ResourceError(QincoError):
    """Memory or disk is exhausted, or cannot be written."""

    exit_code = 4


@contextmanager
def needs_extra(what: str, package: str, extra: str) -> Iterator[None]:
    """Raise ConfigError with the command to type where `what` imports a package that is not installed."""
    try:
        yield
    except ImportError as error:
        if (error.name or package).partition(".")[0] != package:
            raise
        raise ConfigError(f"{what} needs the package {package}: pip install 'qinco[{extra}]'") from None


def differences(there: Mapping, here: Mapping, labels: Mapping[str, str] | None = None) -> list[str]:
    """What differs between saved work and the work asked for, a phrase for each name; `labels` are phrases of names.

    Values are written as on the command line and in JSON: null for None.

    Example:
        >>> differences({"dim": 3, "codec": "ab"}, {"dim": 4, "codec": "cd"}, {"codec": "another codec"})
        ['dim=3 there, 4 here', 'another codec']
    """
    names = [*here, *(name for name in there if name not in here)]
    words = {"None": "null", "True": "true", "False": "false"}
    old, new = ({name: words.get(str(of.get(name)), of.get(name)) for name in names} for of in (there, here))
    return [
        (labels or {}).get(name, f"{name}={old[name]} there, {new[name]} here")
        for name in names
        if there.get(name) != here.get(name)
    ]
