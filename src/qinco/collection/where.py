"""Filters as users write them."""

from collections.abc import Mapping

from qinco.errors import ConfigError


def parse(where: Mapping) -> Mapping:
    """A filter, checked."""
    if not isinstance(where, Mapping):
        raise ConfigError(f"where must be a mapping of fields and conditions, not {where!r:.60}")
    return where
