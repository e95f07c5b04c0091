"""Suites of clients and frameworks: `make test-integrations`, which fails where one of them was skipped."""

import os
import shutil
from types import SimpleNamespace

import pytest

# Before the libraries are imported: nothing is sent anywhere.
os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_sessionfinish(session, exitstatus):
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("QINCO_NO_SKIPS") and terminal is not None and terminal.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        terminal.write_line("QINCO_NO_SKIPS: tests were skipped, where none may be", red=True)


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def pages(browser):
    """`open` opens an address; `asked` are pairs of it and of what was requested; in the end nothing has failed."""
    problems, contexts = [], []
    pages = SimpleNamespace(asked=[], messages=[])

    def open_page(address, scheme="light", width=1280):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: pages.messages.append((message.type, message.text)))
        page.on("request", lambda request: pages.asked.append((address, request.url)))
        page.goto(address)
        return page

    pages.open = open_page
    yield pages
    assert problems == [] and [text for kind, text in pages.messages if kind == "error"] == []
    for context in contexts:
        context.close()
