"""The command line: parsing, a public call of the library for each task, and printing."""

from qinco.cli.app import main

__all__ = ["main"]
