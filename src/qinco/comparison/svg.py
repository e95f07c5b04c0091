"""Figures of matplotlib as SVG inside HTML: coloured by the page's style, with ids that no other figure has."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

# What matplotlib draws with, and the page's variables that stand there in the end.
COLOURS = {
    name: f"#0{i}0{i}0{i}"
    for i, name in enumerate(("text", "quiet", "line", "ours", "ours2", "rival", "other", "card"), 1)
}
_SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "qinco",  # ids are random unless told otherwise
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may hold dollars
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["quiet"],
    "axes.labelcolor": COLOURS["quiet"],
    "text.color": COLOURS["text"],
    "xtick.color": COLOURS["quiet"],
    "ytick.color": COLOURS["quiet"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
}
_NAMESPACES = re.compile(r"\{[^}]*\}")


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Any], None]) -> str:
    """An <svg> element with what `paint` puts on a figure.

    Args:
        name: begins its ids, unique in the page.
        alt: what it shows, for who does not see it.
        size: width and height in inches; it is as wide as its place in the end.
        paint: takes the figure.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_SETTINGS}
    settings.pop("backend", None)  # which would import pyplot
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has other fonts
        figure = Figure(figsize=size)
        canvas = FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        paint(figure)
        file = io.BytesIO()
        canvas.print_svg(file, metadata={"Date": None})
    return _inline(ElementTree.fromstring(file.getvalue()), name, alt)


def _inline(root: ElementTree.Element, name: str, alt: str) -> str:
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', ElementTree.tostring(root, "unicode")))
    for parent in list(root.iter()):
        parent.tag = _NAMESPACES.sub("", parent.tag)
        for child in list(parent):
            if _NAMESPACES.sub("", child.tag) in ("metadata", "style"):
                parent.remove(child)
        parent.attrib = dict(filter(None, (_attribute(key, value, name, used) for key, value in parent.attrib.items())))
        if parent.tag not in ("text", "tspan"):
            parent.text = None
        parent.tail = None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt, "class": "plot"}
    return ElementTree.tostring(root, "unicode")


def _attribute(key: str, value: str, name: str, used: set[str]) -> tuple[str, str] | None:
    key = _NAMESPACES.sub("", key)
    if key == "id":
        return (key, f"{name}-{value}") if value in used else None
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    if key == "href":
        value = value.replace("#", f"#{name}-", 1)
    if key == "style":
        value = re.sub(r"font: (\d+(?:\.\d+)?px)[^;]*", r"font-size: \1", value)
        value = re.sub(r"font-family:[^;]*;?", "", value)
    for role, colour in COLOURS.items():
        value = value.replace(colour, f"var(--{role})")
    return key, value
