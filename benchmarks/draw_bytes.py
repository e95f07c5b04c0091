"""Draw the README's picture of recall against bytes from reports of `qinco compare`.

    python benchmarks/draw_bytes.py text=text/report.json sift=sift/report.json [output=docs/recall-vs-bytes.svg]

It is the report's own picture of each data set, one beside the other.
"""

import json
import re
import sys
from pathlib import Path

from qinco.comparison.plots import recall_by_bytes
from qinco.comparison.reading import groups

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "recall-vs-bytes.svg"
TITLES = {"text": "sentence embeddings, 384 dimensions", "sift": "SIFT descriptors, 128 dimensions"}
COLOURS = {
    "text": "#16202c", "quiet": "#566171", "line": "#d9dde3", "ours": "#0062a3", "ours2": "#3b93d0", "rival": "#bf4f00",
    "other": "#9aa3ae", "card": "#ffffff",
}  # fmt: skip
TOP, GAP = 34, 12


def panel(name: str, report: dict) -> tuple[str, float, float]:
    """The picture of a report's first group, its width and its height."""
    svg = recall_by_bytes(f"{name}-bytes", report, groups(report)[0])
    if svg is None:
        raise SystemExit(f"{name}: the report has no figures")
    for role, colour in COLOURS.items():
        svg = svg.replace(f"var(--{role})", colour)
    _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    return svg.replace("<svg ", f'<svg width="{width}" height="{height}" ', 1), width, height


def draw(reports: dict[str, dict]) -> str:
    """The picture as SVG."""
    parts, left, bottom = [], 0.0, 0.0
    for name, report in reports.items():
        svg, width, height = panel(name, report)
        title = TITLES.get(name, name)
        parts.append(f'<text x="{left + 8}" y="22" font-size="14" font-weight="bold">{title}</text>')
        parts.append(f'<g transform="translate({left} {TOP})">{svg}</g>')
        left, bottom = left + width + GAP, max(bottom, height + TOP)
    size = f'viewBox="0 0 {left - GAP:g} {bottom:g}" width="{left - GAP:g}" height="{bottom:g}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    back = f'<rect width="{left - GAP:g}" height="{bottom:g}" fill="#fff"/>'
    return "\n".join([begin, back, *parts, "</svg>"]) + "\n"


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    output = Path(given.pop("output", PICTURE))
    output.write_text(draw({name: json.loads(Path(path).read_text()) for name, path in given.items()}))


if __name__ == "__main__":
    main(sys.argv[1:])
