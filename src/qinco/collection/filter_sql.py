"""Filters as SQL."""

from collections.abc import Mapping

_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def to_sql(where: Mapping) -> tuple[str, tuple]:
    """An expression over `points` that is 0 or 1, and its parameters."""
    parts, parameters = [], []
    for path, wanted in where.items():
        value = f"json_extract(payload, '$.\"{path}\"')"
        if isinstance(wanted, Mapping):
            for name, bound in wanted.items():
                parts.append(f"COALESCE({value} {_SIGNS[name]} ?, 0)")
                parameters.append(bound)
        else:
            values = wanted if isinstance(wanted, list) else [wanted]
            parts.append(f"COALESCE({value} IN ({','.join('?' * len(values))}), 0)")
            parameters += values
    return " AND ".join(parts) or "1", tuple(parameters)
