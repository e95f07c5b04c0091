"""The commands and examples of the README and the manual run as printed, links lead somewhere, and every public name is
listed."""

import importlib.util
import re
import shlex
import tomllib
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import qinco
from qinco.cli import main
from qinco.datasets import catalogue
from qinco.vectors.formats import write_vectors

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The decoder printed in formats.md has a test of its own, and so have the examples of integrations.md.
BLOCKS = {
    path: re.findall(r"^```(sh|python)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    for path in DOCUMENTS
    if path.name not in ("formats.md", "integrations.md")
}
PAGES = [path for path, blocks in BLOCKS.items() if blocks]
SMALLER_COMMAND = ["epochs=1", "K=4", "L=1", "dh=8"]
SMALLER_CALL = "epochs=1, codebook_size=4, num_blocks=1, hidden_dim=8"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def script(path: Path):
    """A script of the project as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for all pages: they are read, and pasted, one after another."""
    folder, generator = tmp_path_factory.mktemp("pages"), np.random.default_rng(0)
    for name, count in (("train", 200), ("base", 50), ("query", 5)):
        write_vectors(folder / f"{name}.fvecs", generator.standard_normal((count, 8)).astype(np.float32))
    x_ND = generator.standard_normal((50, 8)).astype(np.float32)
    columns = {"id": [f"text-{row}" for row in range(50)], "year": list(range(1980, 2030))}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(x_ND.ravel()), 8)
    pq.write_table(pa.table(columns), folder / "text.parquet")
    write_vectors(folder / "gt.ivecs", generator.integers(0, 50, (5, 10)).astype(np.int32))
    return folder


def check_command(line: str, capsys) -> None:
    """Run a line of a shell block with a tiny model, or check what it asks of `make` and `pip`."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["make"]:
        assert set(words[1:]) <= TARGETS, line
    elif words[:2] == ["pip", "install"]:
        assert all(extra in EXTRAS for extra in re.findall(r"\[(.*?)\]", line)), line
    elif "qinco" in words:  # behind torchrun, too, which is left out
        words = words[words.index("qinco") + 1 :]
        if words[0] == "train":
            replaced = tuple(f"{word.split('=')[0]}=" for word in [*SMALLER_COMMAND, "minutes"])
            words = [word for word in words if not word.startswith(replaced)] + SMALLER_COMMAND
        assert main(words) == 0, (line, capsys.readouterr().err)
    else:
        assert not words, f"what does this line do? {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_examples_run(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    names: dict = {}
    for language, block in BLOCKS[page]:
        if language == "python":
            exec(compile(block.replace("minutes=10", SMALLER_CALL), page.name, "exec"), names)
        else:
            for line in block.splitlines():
                check_command(line, capsys)
    if page.name == "quickstart.md":
        assert names["codes"].shape == (50, 8)
        assert names["y_4"].shape == names["y_hat"].shape == (50, 8)
        assert len(names["index"]) == 60 and names["ids"].shape == (5,) and names["vector"].shape == (8,)


def test_the_first_pages_have_examples():
    languages = {path.name: [language for language, _ in BLOCKS[path]] for path in PAGES}
    assert "python" in languages["README.md"] and languages["README.md"].count("sh") >= 3
    assert languages["quickstart.md"].count("python") == 2 and languages["quickstart.md"].count("sh") == 2
    assert "cli.md" in languages and "from-the-authors-code.md" in languages


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
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "index.md" or f"]({path.name})" in index, path.name


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


def test_public_names_are_listed_and_import():
    page = (ROOT / "docs" / "api" / "index.md").read_text()
    listed = set(re.findall(r"^(?:### |- \*\*)`(\w+)", page, re.MULTILINE)) - {"qinco"}
    public = {name for name in qinco.__all__ if not name.startswith("__")}
    assert listed == public, "run python docs/make_api.py"
    for name in re.findall(r"^### `qinco\.([\w.]+)`", page, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"qinco.{module}"), attribute), name
    assert (
        set(re.findall(r"^### `(\w+)", script(ROOT / "docs" / "make_api.py").page(), re.MULTILINE)) - {"qinco"}
        <= public
    )


def test_the_picture_shows_what_was_measured():
    drawing = script(ROOT / "benchmarks" / "draw_recall.py")
    assert drawing.PICTURE.read_text() == drawing.draw(drawing.RESULTS.read_text())
    assert f"({drawing.PICTURE.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
