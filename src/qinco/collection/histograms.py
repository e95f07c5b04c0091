"""Histograms of a collection: errors of the vectors of each segment, and sizes of inverted lists.

Errors are measured when a segment is written, of a sample of its vectors, and kept in the table `meta`: their shares in
bins, four an octave from 2^-10 to 2, with one below for smaller errors and one above for larger ones.
"""

import sqlite3
from collections.abc import Mapping, Sequence

import numpy as np

from qinco.collection.moments import View
from qinco.collection.schema import set_value, value_of

_EDGES = np.concatenate([[0.0], 2.0 ** (np.arange(45) / 4 - 10)])  # lower ends
_LIST_BINS = 40
_NAME = "error_shares"


def shares_of(errors_n: np.ndarray) -> list[float] | None:
    """The share of errors in each bin; None without any."""
    if not len(errors_n):
        return None
    counts = np.bincount(np.searchsorted(_EDGES, errors_n, side="right") - 1, minlength=len(_EDGES))
    return [round(share, 5) for share in (counts / len(errors_n)).tolist()]


def merged(connection: sqlite3.Connection, rows: Mapping[str, int]) -> list[float] | None:
    """The shares of segments together, whose rows are given by token."""
    known = value_of(connection, _NAME, {})
    pairs = [(known[token], count) for token, count in rows.items() if token in known]
    if not sum(count for _, count in pairs):
        return None
    mean = np.average([shares for shares, _ in pairs], axis=0, weights=[count for _, count in pairs])
    return [round(share, 5) for share in mean.tolist()]


def keep(connection: sqlite3.Connection, token: str, shares: list[float] | None, replaced: Sequence[str]) -> None:
    """Note the shares of a segment instead of those that it replaces."""
    known = value_of(connection, _NAME, {})
    left = {name: value for name, value in known.items() if name not in replaced}
    set_value(connection, _NAME, left if shares is None else left | {token: shares})


def forget(connection: sqlite3.Connection, tokens: Sequence[str]) -> None:
    set_value(connection, _NAME, {k: v for k, v in value_of(connection, _NAME, {}).items() if k not in tokens})


def of_view(view: View) -> dict:
    """What `Collection.histograms` returns."""
    moment, shares = view.moment, value_of(view.connection, _NAME, {})
    edges = [float(f"{edge:.4g}") for edge in _EDGES]
    errors = [
        {"token": one.token, "vectors": len(one), "shares": shares[one.token]}
        for one in moment.segments if one.token in shares
    ]  # fmt: skip
    if not moment.segments:
        return {"error": {"edges": edges, "segments": []}, "list_size": None}
    sizes = sum(np.diff(lists.starts) for lists in moment.lists)
    counts, bounds = np.histogram(sizes, bins=_LIST_BINS)
    sizes_found = {"edges": [round(bound, 2) for bound in bounds[:-1].tolist()], "lists": counts.tolist()}
    return {"error": {"edges": edges, "segments": errors}, "list_size": sizes_found}
