"""The page as HTML: one that asks a server, or one file that holds all it shows.

Scripts and styles run only from files of the server or by their hash, and every value of a record becomes text of the
document, never markup.
"""

import base64
import hashlib
import json
from pathlib import Path

from qinco.atomic import check_output, write_atomically
from qinco.collection.collection import Collection
from qinco.collection.named import NamedCollection
from qinco.errors import needs_extra
from qinco.page.data import collection_data, examples, shown
from qinco.version import __version__

ASSETS = Path(__file__).parent / "assets"
_SCRIPTS, _STYLES = ("uplot.js", "page.js"), ("uplot.css", "page.css")


def render_page(data: dict | None = None) -> str:
    """The HTML of the page.

    Args:
        data: all that it shows, for a page of its own; None: it asks the server that it comes from.

    Raises:
        ConfigError: Jinja2 is not installed.
    """
    with needs_extra("the page", "jinja2", "server"):
        import jinja2

    loader = jinja2.FileSystemLoader(ASSETS)
    template = jinja2.Environment(loader=loader, autoescape=True).get_template("page.html")
    if data is None:
        return template.render(version=__version__, scripts=_SCRIPTS, styles=_STYLES, frozen=None)
    scripts, styles = ([(ASSETS / name).read_text("utf-8") for name in names] for names in (_SCRIPTS, _STYLES))
    # No text may end the element that holds it
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; base-uri 'none'; "
        "form-action 'none'"
    )
    frozen = {"data": text, "scripts": scripts, "styles": styles, "policy": policy}
    return template.render(version=__version__, scripts=(), styles=(), frozen=frozen)


def write_page(collection: Collection | NamedCollection, output, *, overwrite: bool = False) -> Path:
    """Write a page about a collection as one HTML file, which needs no server and no network.

    Args:
        collection: open.
        output: .html file.
        overwrite: replace a file that is there.

    Returns:
        The path of the file.

    Example:
        >>> qinco.page.write_page(docs, "docs.html")
    """
    path = check_output(output, suffixes=(".html", ".htm"), overwrite=overwrite)
    parts = shown(collection, collection.folder.stem).items()
    text = render_page(
        {"collections": [collection_data(one, name) | {"examples": examples(one)} for name, one in parts]}
    )
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _hashes(texts: list[str]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
