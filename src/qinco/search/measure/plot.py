"""Fronts of recall against time, drawn to a file."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qinco.atomic import check_output, write_atomically
from qinco.search.measure.explore import pareto_front
from qinco.vectors.block_rows import library

SUFFIXES = (".png", ".svg")
# Told apart in colour-blindness (Okabe and Ito's colours), and by shape where there is no colour.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P")


def check_plot_path(path: str | os.PathLike, overwrite: bool = True, inputs: Iterable = ()) -> Path:
    """`check_output` for a plot; raises ConfigError without matplotlib, too."""
    path = check_output(path, suffixes=SUFFIXES, overwrite=overwrite, inputs=inputs)
    with library("matplotlib", "plot", path):
        import matplotlib  # noqa: F401
    return path


def plot_fronts(path: str | os.PathLike, fronts: Mapping[str, Sequence[tuple[float, float]]], title: str = "") -> None:
    """Draw points of recall@1 against time to a .png or .svg file, with a step line along each label's front.

    `fronts` has the (microseconds a query, recall) of each label's settings; those off the front are drawn pale. The
    same points give the same file with the same matplotlib.
    """
    suffix = check_plot_path(path).suffix.lower()
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Names of parts in an SVG are random, and styles a user's own, unless told otherwise.
    with matplotlib.rc_context({"svg.hashsalt": "qinco", "font.family": ["DejaVu Sans"]}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xscale="log")
        for i, points in enumerate(fronts.values()):
            colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
            best = pareto_front(points)
            front, rest = [points[j] for j in best], [points[j] for j in range(len(points)) if j not in best]
            # A time buys the recall of the last point that needs no more.
            axes.plot(*_columns(front), drawstyle="steps-post", color=colour, marker=marker, markersize=5)
            axes.scatter(*_columns(rest), color=colour, marker=marker, s=12, alpha=0.25, linewidths=0)
        axes.set(xlabel="microseconds per query", ylabel="recall@1")
        axes.grid(True, which="both", color="#dddddd", linewidth=0.5)
        axes.set_axisbelow(True)
        for text in (axes.set_title(title), *axes.legend(axes.get_lines(), list(fronts)).get_texts()):
            text.set_parse_math(False)  # a label may be a file's name, with any number of dollars
        with write_atomically(path) as temporary:
            figure.savefig(temporary, format=suffix[1:], dpi=150, metadata={"Date": None} if suffix == ".svg" else None)


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
