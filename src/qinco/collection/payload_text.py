"""Payloads as the JSON text that a collection stores, such that filters find in it what is there."""

import json

from qinco.errors import DataError


def payload_text(payload: dict | None) -> str | None:
    """A payload of JSON values as the text that `points` holds; raises DataError for what JSON or SQLite has not.

    SQLite before 3.45 ends a string at an escaped NUL, and compares keys as they are written: so there is no NUL, and
    nothing that can be is escaped.
    """
    if payload is None:
        return None
    try:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 20) : error.end]
        raise DataError(f"a payload holds half of a surrogate pair in {around!r}: give valid Unicode") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"a payload is no JSON ({error}): give text, numbers, lists and dicts") from None
    if "\\u0000" in text and (found := _with_nul(payload)) is not None:
        raise DataError(f"a payload holds the character NUL in {found!r:.60}, which SQLite's JSON has not: remove it")
    return text


def _with_nul(value) -> str | None:
    if isinstance(value, str):
        return value if "\0" in value else None
    inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((found for one in inside if (found := _with_nul(one)) is not None), None)
