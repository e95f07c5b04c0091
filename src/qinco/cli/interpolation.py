"""Until the tasks have moved to `qinco.cli.tasks`."""

from qinco.cli.grammar import interpolate

__all__ = ["interpolate"]
