"""What users write as `where=`: a mapping of fields, or a filter of Qdrant as a dict."""

from collections.abc import Mapping

import numpy as np

from qinco.collection import operands
from qinco.collection.filters import (
    And,
    Element,
    Empty,
    Eq,
    Exists,
    Filter,
    HasVector,
    In,
    Not,
    Null,
    Or,
    Text,
    check_size,
)
from qinco.collection.instants import parsed_time
from qinco.collection.paths import quoted
from qinco.collection.qdrant_filter import CLAUSES, is_qdrant, parse_qdrant
from qinco.config import suggest
from qinco.errors import ConfigError

_LOGIC = "$and", "$or", "$nor", "$not", "$id", "$vector"
_OPERATORS = "eq", "ne", "in", "nin", *operands.BOUNDS, "exists", "null", "empty", "count", "text", "any", "not"
_OTHER_NAMES = {
    "not_in": "nin", "contains": "text", "elemMatch": "any", "size": "count",
    "==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte",
}  # fmt: skip


def parse(where: Mapping | Filter, fields: Mapping[str, str] | None = None) -> Filter:
    """A filter from a mapping or from a filter of Qdrant; raises ConfigError with the place in it and a remedy.

    Args:
        where: Fields and what they must be, all of it; or a Qdrant Filter as a dict; or a filter already.
        fields: The kinds of declared fields: text that is compared with those of kind datetime is RFC 3339.

    Example:
        >>> parse({"lang": "de", "year": {"gte": 2010}, "$not": {"tag": ["draft", "spam"]}})
    """
    if isinstance(where, Filter):
        filter = where
    elif not isinstance(where, Mapping):
        raise ConfigError(f'where is {operands.short(where)}: write a mapping, as in {{"year": {{"gte": 2010}}}}')
    else:
        filter = (
            parse_qdrant(where, "where", 0) if is_qdrant(where) else _Parser(fields or {}).mapping(where, "where", 0)
        )
    check_size(filter)
    return filter


class _Parser:
    """Reads mappings of fields; `fields` are the kinds of those that are declared."""

    def __init__(self, fields: Mapping[str, str]):
        self.fields = fields

    def mapping(self, where, place: str, depth: int) -> Filter:
        if isinstance(where, Filter):
            return where
        if not isinstance(where, Mapping):
            raise ConfigError(f'{place} is {operands.short(where)}: write a mapping, as in {{"year": {{"gte": 2010}}}}')
        depth = operands.deeper(depth)
        parts = [self.entry(name, wanted, place, depth) for name, wanted in where.items()]
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def entry(self, name, wanted, place: str, depth: int) -> Filter:
        here = f"{place}[{name!r:.60}]"
        if not isinstance(name, str):
            raise ConfigError(f"{here}: names of fields are strings, such as {str(name)!r:.40}")
        if name.startswith("$"):
            return self.logic(name, wanted, here, depth)
        if isinstance(wanted, list | tuple) and wanted and all(isinstance(one, Mapping) for one in wanted):
            if name in CLAUSES:
                raise ConfigError(f"{here} is of a Qdrant filter, which has no other fields: put those into must")
            known = suggest(f"${name}", _LOGIC, 0.6)
            raise ConfigError(f"{here} is a list of mappings, as no field is. {known}Write $and or $or for filters, "
                              f"and {name}[].key for elements of a list")  # fmt: skip
        return self.field(name, wanted, here, depth)

    def logic(self, name: str, wanted, here: str, depth: int) -> Filter:
        if name not in _LOGIC:
            known = f"{suggest(name, _LOGIC, 0.6)}There are {', '.join(_LOGIC)}"
            raise ConfigError(
                f"{here}: there is no {name}. {known}; a field of this name is written {quoted(name)!r:.60}"
            )
        if name == "$id":
            return operands.ids(wanted if operands.is_list(wanted) else [wanted], here)
        if name == "$vector":
            return self.vector(wanted, here)
        if name == "$not" and not operands.is_list(wanted):
            return Not(self.mapping(wanted, here, depth))
        given = enumerate(operands.listed(wanted, here))
        parts = tuple(self.mapping(part, f"{here}[{number}]", depth) for number, part in given)
        if name == "$and":
            return And(parts)
        return Or(parts) if name == "$or" else Not(Or(parts))

    def vector(self, wanted, here: str) -> Filter:
        if isinstance(wanted, bool | np.bool_):
            return HasVector() if wanted else Not(HasVector())
        if not isinstance(wanted, str):
            raise ConfigError(f"{here} is {operands.short(wanted)}: give true, false, or the name of a vector")
        return HasVector(wanted)

    def field(self, path: str, wanted, here: str, depth: int) -> Filter:
        if wanted is None:
            return Null(path)
        if operands.is_list(wanted):
            return self.one_of(path, wanted, here)
        if not isinstance(wanted, Mapping):
            return Eq(path, self.value(path, wanted, here))
        if not wanted:
            raise ConfigError(f'{here} is an empty mapping: give an operator, as in {{"gte": 2010}}, or no such field')
        depth = operands.deeper(depth)
        bounds, parts = {}, []
        for operator, operand in wanted.items():
            name = str(operator).removeprefix("$")
            name = _OTHER_NAMES.get(name, name)
            at = f"{here}[{operator!r:.40}]"
            if name in operands.BOUNDS:
                bounds[name] = self.value(path, operand, at)
            else:
                parts.append(self.operator(path, name, operand, at, depth))
        if bounds:
            parts.append(operands.range_of(path, bounds, here))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def operator(self, path: str, name: str, operand, at: str, depth: int) -> Filter:
        if name in ("eq", "ne"):
            if operands.is_list(operand) or isinstance(operand, Mapping):
                raise ConfigError(f"{at} is {operands.short(operand)}: give one value, or use in or nin with a list")
            found = self.field(path, operand, at, depth)
            return found if name == "eq" else Not(found)
        if name in ("in", "nin"):
            found = self.one_of(path, operands.listed(operand, at), at)
            return found if name == "in" else Not(found)
        if name in ("exists", "null", "empty"):
            if not isinstance(operand, bool | np.bool_):
                raise ConfigError(f"{at} is {operands.short(operand)}: give true or false")
            found = {"exists": Exists, "null": Null, "empty": Empty}[name](path)
            return found if operand else Not(found)
        if name == "text":
            return Text(path, operands.text(operand, at))
        if name == "not":
            return Not(self.field(path, operand, at, depth))
        if name == "any":
            return Element(path, self.mapping(operand, at, depth))
        if name == "count":
            bounds = operand if isinstance(operand, Mapping) else {"gte": operand, "lte": operand}
            return operands.count_of(path, bounds, at)
        known = f"{suggest(name, _OPERATORS, 0.6)}There are {', '.join(_OPERATORS)}"
        raise ConfigError(f"{at}: there is no operator {name!r:.40}. {known}; a key of an object is written "
                          f"{f'{path}.{name}'!r:.80}")  # fmt: skip

    def one_of(self, path: str, wanted, here: str) -> Filter:
        values = list(wanted)
        found = In(path, tuple(self.value(path, one, here) for one in values if one is not None))
        return Or((Null(path), found)) if any(one is None for one in values) else found

    def value(self, path: str, value, here: str):
        value = operands.scalar(value, here)
        if isinstance(value, str) and self.fields.get(path) == "datetime":
            return parsed_time(value, here)
        return value
