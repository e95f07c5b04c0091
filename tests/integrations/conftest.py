"""Suites of clients and frameworks: `make test-integrations`, which fails where one of them was skipped."""

import os

import pytest

# Before the libraries are imported: nothing is sent anywhere.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_sessionfinish(session, exitstatus):
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("QINCO_NO_SKIPS") and terminal is not None and terminal.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        terminal.write_line("QINCO_NO_SKIPS: tests were skipped, where none may be", red=True)
