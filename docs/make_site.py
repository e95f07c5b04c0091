"""Write build/pages, of which Zensical builds the site, or finish the site that it built: `make docs` does all.

    python docs/make_site.py         pages of docs/, of the root and of benchmarks/results, and those that are made here
    python docs/make_site.py finish  adds sources to build/site, and checks that it loads nothing from elsewhere

Made here: the reference of the command line, the page about installation, and llms.txt and llms-full.txt.
"""

import inspect
import posixpath
import re
import shutil
import sys
import tomllib
from pathlib import Path

import qinco
from qinco.cli.defaults import resolve
from qinco.cli.grammar import list_needed
from qinco.cli.keys import Key, Task
from qinco.cli.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
# What is not in docs/, and the page that shows it. `README.md` stands for its section about installation.
OTHERS = {
    "README.md": "install.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "examples/notebooks/README.md": "notebooks.md",
    "benchmarks/papers.md": "papers.md",
    "benchmarks/README.md": "making.md",
    "benchmarks/results": "results/index.md",
}
ABOUT = "Compress embeddings to a few bytes per vector with neural residual quantization, and search them compressed."
KINDS = {
    "path": "path", "paths": "paths", "text": "text", "texts": "texts", "integer": "integer", "integers": "integers",
    "names": "names", "number": "number", "positive": "number", "signed": "number", "switch": "true, false",
    "device": "device", "share": "i/n",
}  # fmt: skip
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|modulepreload|icon|manifest))[^>]*"
    r"\bhref=[\"']?(?:https?:)?//[^>]*>"
    r"|class=[\"']?mermaid"  # whose script comes from elsewhere
)


def sources() -> dict[str, str]:
    """Files of the repository that the site shows, and where in it."""
    found = {path: page for path, page in OTHERS.items() if path.endswith(".md")}
    for folder, target in (("docs", ""), ("benchmarks/results", "results/")):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".md", ".svg", ".png"):
                found[path.relative_to(ROOT).as_posix()] = target + path.relative_to(ROOT / folder).as_posix()
    return found


def relinked(text: str, source: str, page: str, places: dict[str, str]) -> str:
    """A page's text with its links between files of the repository made into links between pages.

    What the site does not have, such as a script, is not linked.
    """

    def link(match: re.Match) -> str:
        name, mark, anchor = match[2].partition("#")
        if re.match(r"[a-z]+:", match[2]) or not name:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        if target not in places and not (ROOT / target).exists():
            raise SystemExit(f"{source} links to {name}, which is not there")
        if target not in places:
            return match[1]
        return f"[{match[1]}]({posixpath.relpath(places[target], posixpath.dirname(page) or '.')}{mark}{anchor})"

    pieces = re.split(f"({FENCE.pattern})", text, flags=FENCE.flags)
    return "".join(f"{piece}\n" if piece.startswith("```") else spaced(LINK.sub(link, piece)) for piece in pieces)


def spaced(text: str) -> str:
    """A text with an empty line before each list and table, which GitHub does without, and Python-Markdown not."""
    lines: list[str] = []
    within = ""  # "list" or "table"
    for line in text.split("\n"):
        kind = "table" if line.startswith("|") else "list" if re.match(r"([-*]|\d+\.) ", line) else ""
        if not line.strip():
            within = ""
        elif kind and kind != within:
            lines += [""] if lines and lines[-1].strip() else []
            within = kind
        lines.append(line)
    return "\n".join(lines)


def installation() -> str:
    """The section of the README."""
    section = re.search(r"^## Install\n(.*?)(?=^## )", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert section, "README.md has no section Install"
    return f"# Install\n\n{section[1]}"


def results() -> str:
    """A list of the reports of measurements."""
    reports = sorted((ROOT / "benchmarks/results").glob("*.md"))
    rows = [f"- [{title_of(path.read_text())}]({path.name})" for path in reports]
    return "\n".join(["# Results", "", "Reports with machine, commit, command and all figures.", "", *rows, ""])


def commands() -> str:
    """The reference of the command line: every task with its keys."""
    parts = [
        "# Tasks and keys\n",
        "Every task of `qinco` with all its keys, as `qinco TASK --help` shows them. How they are written and what "
        "tasks are for is in the [manual of the command line](../cli.md).\n",
        "| task | |\n|---|---|",
        *(f"| [`{name}`](#{name}) | {cell(task.help)} |" for name, task in TASKS.items()),
        "",
        *(section(task) for task in TASKS.values()),
    ]
    return "\n".join(parts)


def section(task: Task) -> str:
    """A task: what it does, needs and reads."""
    resolved = resolve(task, {})
    rows = [
        f"| `{key.name}` | {values(key)} | {default(resolved[key.name].value)} | {cell(key.help)} |"
        for key in task.keys
    ]
    needed = f"Needs {list_needed(task.required)}.\n\n" if task.required else ""
    head = f"## {task.name}\n{task.help[0].upper()}{task.help[1:]}.\n\n{needed}"
    return f"{head}| key | values | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n" if rows else head


def values(key: Key) -> str:
    return cell(", ".join(key.choices) if key.choices else KINDS.get(key.kind, key.kind))


def default(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "&#124;").replace("<", "&lt;")


def title_of(text: str) -> str:
    found = re.search(r"^# (.*)$", text, re.MULTILINE)
    assert found, text[:80]
    return found[1]


def summary_of(text: str) -> str:
    """The first sentence of a page, if it begins with a paragraph, without links."""
    first = next((one for one in text.split("\n\n")[1:] if not one.startswith("![")), "#")
    if first[0] in "#|-`:*":
        return ""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(first.split("\n```")[0].split()))
    return re.split(r"(?<=[.:]) (?=[A-Z`])", plain)[0].rstrip(":")


def documented(match: re.Match) -> str:
    """In the place of `::: qinco.NAME`, its signature and docstring, and those of its public methods."""
    value = getattr(qinco, match[1], None) if "." not in match[1] else None
    if value is None or isinstance(value, dict):
        return f"## qinco.{match[1]}"
    parts = {f"qinco.{match[1]}": value}
    if inspect.isclass(value):
        parts |= {f"{match[1]}.{name}": getattr(value, name) for name in dir(value) if name[0] != "_"}
    shown = [f"## {name}{signature(of)}\n{inspect.getdoc(of)}" for name, of in parts.items() if inspect.getdoc(of)]
    return "\n\n".join(shown)


def signature(value: object) -> str:
    """With names and defaults of arguments, as far as it is known."""
    try:
        found = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    empty = inspect.Parameter.empty
    return str(found.replace(parameters=[one.replace(annotation=empty) for one in found.parameters.values()],
                             return_annotation=empty))  # fmt: skip


def navigation() -> list[tuple[str, list[str]]]:
    """The sections of the site, and their pages in order."""

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        entries = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
        return [page for one in entries for page in pages(one)]

    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    return [(title, pages(entry)) for part in nav for title, entry in part.items()]


def list_for_models(texts: dict[str, str]) -> tuple[str, str]:
    """llms.txt, a list of all pages, and llms-full.txt, all of them in one text."""
    lines, full = ["# qinco", "", f"> {ABOUT}"], []
    for title, pages in navigation():
        lines += ["", f"## {title}", ""]
        for page in pages:
            told = summary_of(texts[page])
            lines.append(f"- [{title_of(texts[page])}]({page}){f': {told}' if told else ''}")
            whole = re.sub(r"^::: qinco\.(\S+)$", documented, texts[page].strip(), flags=re.MULTILINE)
            full.append(f"<!-- {page} -->\n{whole}\n")
    return "\n".join(lines) + "\n", "\n".join(full)


def write_pages(folder: Path = PAGES) -> None:
    """Write all that Zensical reads."""
    shutil.rmtree(folder, ignore_errors=True)
    files = sources()
    places = files | OTHERS
    texts, listed = {}, {page for _, pages in navigation() for page in pages}
    for source, page in files.items():
        if page.endswith(".md") and page not in listed and not page.startswith("results/"):
            raise SystemExit(f"nav in zensical.toml lacks {page}")
        if page.endswith(".md"):
            text = installation() if page == "install.md" else (ROOT / source).read_text()
            texts[page] = relinked(text, source, page, places)
        else:
            (folder / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / source, folder / page)
    texts |= {"reference/commands.md": commands(), "results/index.md": results()}
    texts["llms.txt"], texts["llms-full.txt"] = list_for_models(texts)
    for page, text in texts.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text)


def loaded_from_elsewhere(html: str) -> list[str]:
    """The elements of a page that load something from another host."""
    return LOADED.findall(html)


def finish() -> None:
    """Add the pages' sources to the site, which llms.txt names, and check that none of its pages needs a network."""
    pages = sorted(SITE.rglob("*.html"))
    if not pages:
        raise SystemExit(f"{SITE} has no pages: build it first")
    for path in PAGES.rglob("*.md"):
        shutil.copyfile(path, SITE / path.relative_to(PAGES))
    wrong = {path: found for path in pages if (found := loaded_from_elsewhere(path.read_text()))}
    for path, found in wrong.items():
        print(f"{path.relative_to(ROOT)} loads {found[0]}", file=sys.stderr)
    if wrong:
        raise SystemExit(f"{len(wrong)} pages need a network")
    print(f"{len(pages)} pages in {SITE}, none of which needs a network")


if __name__ == "__main__":
    finish() if sys.argv[1:] == ["finish"] else write_pages()
