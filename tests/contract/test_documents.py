"""The commands and examples of the README and the manual run as printed, links lead somewhere, and every public name is
listed."""

import importlib.util
import re
import shutil
from itertools import product
from pathlib import Path

import pytest
from document_blocks import (
    DOCUMENTS,
    FENCED,
    IN_A_TEST_OF_ITS_OWN,
    IN_INTEGRATIONS,
    Page,
    blocks,
    name_of,
    write_files,
)

import qinco
from qinco.datasets import catalogue

ROOT = Path(__file__).parents[2]
SLOW = {"cli.md", "compare.md", "concepts/drift.md", "guides/from-qdrant.md", "guides/checkpoints.md", "quickstart.md",
        "guides/parquet-to-served.md", "how-to-choose.md", "server.md", "start.md"}  # fmt: skip
HERE = [path for path in DOCUMENTS if blocks(path) and name_of(path) not in IN_INTEGRATIONS | IN_A_TEST_OF_ITS_OWN]


def script(path: Path):
    """A script of the project as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch) -> Path:
    """A folder of files that the examples name, in which the test is."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [pytest.param(path, marks=pytest.mark.slow if name_of(path) in SLOW else ()) for path in HERE],
    ids=name_of,
)
@pytest.mark.filterwarnings("ignore:Failed to obtain server version")  # the client asks beside, and may not wait
def test_commands_and_examples_run(page, folder):
    names = Page(page, folder).run()
    if page.name == "quickstart.md":
        assert names["codes"].shape == (50, 8)
        assert names["y_4"].shape == names["y_hat"].shape == (50, 8)
        assert len(names["index"]) == 60 and names["ids"].shape == (5,) and names["vector"].shape == (8,)


def test_every_block_of_code_is_run_or_said_not_to_be():
    languages = {language for path in DOCUMENTS for language, _ in FENCED.findall(path.read_text())}
    assert languages <= {"sh", "python", "text"}
    assert {name_of(path) for path in DOCUMENTS} >= IN_INTEGRATIONS | IN_A_TEST_OF_ITS_OWN
    code = re.compile(r"^ *(qinco [a-z_]+ |pip install|docker |import |from \w+ import|>>> )", re.MULTILINE)
    for path in DOCUMENTS:
        text = path.read_text()
        others = [block for language, block in FENCED.findall(text) if language == "text"]
        indented = re.findall(r"(?:^\n(?: {4}.*\n)+)", FENCED.sub("", text), re.MULTILINE)
        assert not [block for block in others + indented if code.search(block)], path


def test_the_first_pages_have_examples():
    languages = {name_of(path): [language for language, _ in blocks(path)] for path in HERE}
    assert "python" in languages["README.md"] and languages["README.md"].count("sh") >= 3
    assert languages["quickstart.md"].count("python") == 2 and languages["quickstart.md"].count("sh") == 2
    assert {"python", "sh"} <= set(languages["start.md"])
    for path in [*(ROOT / "docs" / "guides").glob("*.md"), *(ROOT / "docs" / "concepts").glob("*.md")]:
        assert blocks(path) or path == ROOT / "docs" / "guides" / "index.md", f"{path} has nothing to copy"


def test_the_test_command_of_the_readme_is_that_of_continuous_integration():
    for path in (".ci/run", ".github/workflows/ci.yml"):
        assert re.search(r"\bmake test$", (ROOT / path).read_text(), re.MULTILINE), path
    assert re.search(r"^make test$", (ROOT / "README.md").read_text(), re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The names that headings are linked by."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(
        r"\]\((.*?)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    ):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_of_the_package_exist(page):
    for name in re.findall(r"`qinco((?:\.\w+)+)", page.read_text()):
        value = qinco
        for part in name[1:].split("."):
            if not hasattr(value, part):
                importlib.import_module(f"{value.__name__}.{part}")
            value = getattr(value, part)


def test_every_document_is_linked_from_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "docs").rglob("*.md"):
        name = name_of(path)
        assert name == "index.md" or f"]({name})" in index or name.startswith("api/"), name


def test_the_manual_lists_what_is_published():
    listed = set()
    for pattern in re.findall(r"`([\w{},-]+(?:\.pt|\.npy|\.faissindex)?)`", (ROOT / "docs" / "cli.md").read_text()):
        listed |= set(map("".join, product(*(piece.split(",") for piece in re.split(r"[{}]", pattern)))))
    assert set(catalogue.names()) <= listed


def test_the_architecture_names_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = re.search(r"^\| package \|.*?\n\n", text, re.DOTALL | re.MULTILINE)[0].strip()
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = {name.rstrip("/") for cell in cells for name in re.findall(r"`(.*?)`", cell)}
    source = Path(qinco.__file__).parent
    for name in named:
        assert (source / name).exists() or (ROOT / name).exists(), name
    there = {path.name for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - named == {"__init__.py", "__main__.py", "version.py"}


def test_places_to_extend_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("## Where to add") :]
    paths = re.findall(r"`([a-z_]+/[a-z_./]*)`", table)
    assert len(paths) > 15
    for path in paths:
        assert (Path(qinco.__file__).parent / path).exists() or (ROOT / path).exists(), path


def test_the_reference_has_every_public_name_once():
    pages = (ROOT / "docs" / "api").glob("*.md")
    shown = [name for path in pages for name in re.findall(r"^::: (\S+)$", path.read_text(), re.MULTILINE)]
    public = {f"qinco.{name}" for name in qinco.__all__ if not name.startswith("__")}
    assert len(shown) == len(set(shown)) and {name for name in shown if name.count(".") == 1} == public


def test_screenshots_are_small_and_told_in_words():
    shown = {}
    for path in DOCUMENTS:
        for words, name in re.findall(r"!\[([^\]]*)\]\(([^)]+\.(?:png|svg))\)", path.read_text()):
            assert len(words) > 20, f"{path}: {name} needs words for those who do not see it"
            shown[(path.parent / name).resolve()] = words
    pictures = sorted((ROOT / "docs" / "screenshots").glob("*.png"))
    assert len(pictures) >= 3 and set(pictures) <= set(shown)
    assert all(path.stat().st_size < 150_000 for path in pictures)


def test_the_picture_shows_what_was_measured():
    drawing = script(ROOT / "benchmarks" / "draw_recall.py")
    assert drawing.PICTURE.read_text() == drawing.draw(drawing.RESULTS.read_text())
    assert f"({drawing.PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
