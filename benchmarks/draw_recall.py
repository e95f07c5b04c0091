"""Draw the picture of the README from the measured table of results/search-speed.md.

    python benchmarks/draw_recall.py [output=docs/recall-vs-time.svg]

Each line is the best recall@1 that an index reached within a time per query.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "search-speed.md"
PICTURE = ROOT / "docs" / "recall-vs-time.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 340, 58, 118, 54, 52
FIRST_US, LAST_US, MAX_RECALL = 40, 12_000, 0.6


class Line(NamedTuple):
    row: str  # first cell of its row of the table
    label: str
    colour: str  # from Okabe and Ito's palette for colour-blind readers
    dash: str
    below: float  # shift of the label, to keep labels apart


LINES = (
    Line("QINCo2, 8 bytes", "qinco", "#0072B2", "none", 0),
    Line("faiss IVF1024,RQ8x8_Nqint8, 300,000 training vectors", "faiss IVF-RQ", "#D55E00", "7 3", 0),
    Line("faiss IVF1024,LSQ8x8_Nqint8, 20,000 training vectors", "faiss IVF-LSQ", "#009E73", "2 3", 2),
    Line("faiss IVF1024,PQ8x8, 300,000 training vectors", "faiss IVF-PQ", "#000000", "9 3 2 3", 8),
)


def measured(text: str) -> dict[str, list[tuple[float, float]]]:
    """(microseconds, recall@1) of each index in the table `recall@1 within`."""
    lines = iter(text.splitlines())
    head = next(line for line in lines if line.startswith("| recall@1 within |"))
    times = [float(cell.strip().removesuffix(" us").replace(",", "")) for cell in head.split("|")[2:-1]]
    next(lines)
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        found[name] = [(time, float(cell)) for time, cell in zip(times, cells, strict=True) if cell != "–"]
    return found


def x_of(us: float) -> float:
    share = math.log(us / FIRST_US) / math.log(LAST_US / FIRST_US)
    return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)


def y_of(recall: float) -> float:
    return round(HEIGHT - BOTTOM - recall / MAX_RECALL * (HEIGHT - TOP - BOTTOM), 1)


def draw(text: str) -> str:
    """The picture as SVG, from the text of the report."""
    table, parts = measured(text), []
    for recall in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        y = y_of(recall)
        parts += [
            f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{recall:g}</text>',
        ]
    for us, name in ((50, "50 µs"), (100, "100 µs"), (200, "200 µs"), (1000, "1 ms"), (10_000, "10 ms")):
        parts.append(f'<text x="{x_of(us)}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{name}</text>')
    for line in LINES:
        points = table[line.row]
        path = "L".join(f"{x_of(us)} {y_of(recall)}" for us, recall in points)
        x, y = x_of(points[-1][0]), y_of(points[-1][1])
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{line.colour}" stroke-width="2.5" stroke-dasharray="{line.dash}"/>'
        )
        parts += [f'<circle cx="{x_of(us)}" cy="{y_of(r)}" r="3.5" fill="{line.colour}"/>' for us, r in points]
        parts.append(
            f'<text x="{x + 10}" y="{y + 4 + line.below}" fill="{line.colour}" font-weight="bold">{line.label}</text>'
        )
    parts += [
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">Recall@1 within a time per query</text>',
        f'<text x="{LEFT}" y="40" fill="#555">200,000 SIFT descriptors, 8-byte codes, 1,024 lists, one thread</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">time per query</text>',
    ]
    begin = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="13">'
    )
    return "\n".join([begin, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *parts, "</svg>"]) + "\n"


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    Path(given.get("output", PICTURE)).write_text(draw(RESULTS.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
