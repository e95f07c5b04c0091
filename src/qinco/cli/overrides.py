"""Until the tasks have moved to `qinco.cli.tasks`."""

from qinco.cli.keys import Settings

__all__ = ["Settings"]
