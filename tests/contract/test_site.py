"""The pages that the documentation's site is built of: links, what is made from the command line, and llms.txt."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from qinco.cli.tasks import TASKS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs" / "make_site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(site, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    site.write_pages(folder)
    return folder


def test_links_between_pages_lead_somewhere(site, pages):
    for path in pages.rglob("*.md"):
        for _, link in site.LINK.findall(site.FENCE.sub("", path.read_text())):
            if not re.match(r"[a-z]+:", link) and link.partition("#")[0]:
                assert (path.parent / link.partition("#")[0]).is_file(), (path, link)


def test_lists_and_tables_begin_after_an_empty_line(site):
    text = "Text:\n- one\n  more\n- two\n\nText\n| a | b |\n|---|---|\n| 1 | 2 |\n1. one\n"
    assert site.spaced(text) == ("Text:\n\n- one\n  more\n- two\n\nText\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n1. one\n")


def test_every_page_is_in_the_navigation_or_in_the_list_of_results(site, pages):
    listed = [page for _, names in site.navigation() for page in names]
    there = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert len(listed) == len(set(listed)) and set(listed) <= there
    results = set(re.findall(r"\]\(([\w-]+\.md)\)", (pages / "results" / "index.md").read_text()))
    assert {f"results/{name}" for name in results} == there - set(listed)


def test_the_reference_has_every_task_and_key(pages):
    text = (pages / "reference" / "commands.md").read_text()
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    assert list(sections) == list(TASKS)
    for name, task in TASKS.items():
        assert re.findall(r"^\| `([^`]+)` \|", sections[name], re.MULTILINE) == [key.name for key in task.keys]
    assert "`[16]`" in sections["query"] and "l2, inner_product, cosine" in sections["build_index"]


def test_a_page_that_is_forgotten_is_told(site, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "navigation", lambda: [("Start", ["index.md"])])
    with pytest.raises(SystemExit, match=r"nav in zensical\.toml lacks"):
        site.write_pages(tmp_path / "pages")


def test_links_are_moved_with_their_pages(site):
    with pytest.raises(SystemExit, match=r"docs/x\.md links to \.\./none\.py"):
        site.relinked("[a](../none.py)", "docs/x.md", "x.md", site.sources())
    assert site.relinked("[`a`](../setup.py)", "docs/x.md", "x.md", site.sources()) == "`a`"
    text = "[a](../SECURITY.md#x) [b](https://x.invalid/y) [c](#d)\n```python\nf[x](../y.md)\n```\n"
    moved = site.relinked(text, "docs/guides/x.md", "guides/x.md", {"docs/SECURITY.md": "security.md"})
    assert moved == text.replace("../SECURITY.md", "../security.md").replace("```\n", "```\n\n")


def test_lists_for_language_models_have_all_pages(site, pages):
    listed, full = (pages / "llms.txt").read_text(), (pages / "llms-full.txt").read_text()
    assert listed.startswith("# qinco\n\n> ")
    links = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", listed, re.MULTILINE)
    assert links == [page for _, names in site.navigation() for page in names]
    for page in links:
        text = (pages / page).read_text()
        assert text.splitlines()[0] in full and (":::" in text or text.strip() in full)
    assert ":::" not in full and "## Codec.encode(self, x" in full and "## qinco.open_vectors(path" in full


@pytest.mark.parametrize(
    ("html", "is_wrong"),
    [
        ('<script src="https://unpkg.com/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.googleapis.com/css">', True),
        ("<link href=https://x.invalid/a.css rel=stylesheet>", True),
        ('<img alt="" src="http://x.invalid/a.png">', True),
        ('<pre class="mermaid">', True),
        ('<a href="https://x.invalid/">x</a><script src="../assets/x.js"></script>', False),
        ('<link rel="canonical" href="https://x.invalid/">', False),
    ],
)
def test_what_is_loaded_from_elsewhere_is_seen(site, html, is_wrong):
    assert bool(site.loaded_from_elsewhere(html)) == is_wrong
