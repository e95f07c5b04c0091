"""What the stores of the frameworks share: the collections they open, and their filters as those of collections.

A framework's filter is decided in two stages: SQL chooses records, all that the filter is true for, and the framework's
own function decides among them. The second is left out where SQL says exactly the same.
"""

import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qinco.atomic import user_path
from qinco.collection.collection import Collection
from qinco.collection.filters import And, AtLeast, Exists, Filter, Has, HasVector, In, Not, Or, Range, check_size
from qinco.collection.paths import quoted
from qinco.collection.records import Record
from qinco.collection.schema import FILE
from qinco.collection.where import parse
from qinco.errors import ConfigError
from qinco.forking import new_lock

_PAGE = 4096  # records that are read at once
_opening = new_lock()
_open: weakref.WeakValueDictionary[tuple[int, int], Collection] = weakref.WeakValueDictionary()


def open_store(folder: Any, read_only: bool, create: dict[str, Any]) -> Collection:
    """The collection in a folder, made with settings of `Collection.create` if there is none.

    Stores of one process share a collection, of which only one may be open for writing. Without a folder there is a
    temporary one, which goes when the collection does.
    """
    if folder is None:
        if read_only:
            raise ConfigError("read_only=true is for a collection that is there: give its folder")
        parent = tempfile.mkdtemp(prefix="qinco-")
        collection = Collection.create(Path(parent) / "store.qinco", **create)
        weakref.finalize(collection, shutil.rmtree, parent, ignore_errors=True)
        return collection
    folder = Path(user_path(folder))
    if read_only:
        return Collection.open(folder, read_only=True)
    with _opening:
        collection = _open.get(_place(folder)) if (folder / FILE).is_file() else None
        if collection is None or collection.closed:
            collection = Collection.open(folder) if (folder / FILE).is_file() else Collection.create(folder, **create)
            _open[_place(folder)] = collection
    if create.get("metric") not in (None, collection.metric):
        raise ConfigError(f"{folder} has metric={collection.metric!r}, not {create['metric']!r}: leave metric= out, or "
                          "give another folder")  # fmt: skip
    return collection


def _place(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def similarity(collection: Collection, score: float) -> float:
    """A score of which larger is nearer, whatever the metric."""
    return -score if collection.metric == "l2" else score


def relevance(collection: Collection, score: float, scale: float = 1.0) -> float:
    """A score as a number from 0 to 1, of which larger is nearer; inner products are divided by `scale`."""
    if collection.metric == "l2":
        return 1 / (1 + score)
    if collection.metric == "cosine":
        return min(1.0, max(0.0, (1 + score) / 2))  # rounding may exceed 1
    return (1 + math.tanh(score / scale / 2)) / 2


def matching(
    collection: Collection, where: Filter | None, accepts: Callable[[Record], bool], *, with_vectors: bool = False
) -> Iterator[Record]:
    """Records that a filter is true for and a function accepts, read page by page."""
    after = None
    while True:
        page = collection.get(where=where, limit=_PAGE, after=after, with_vectors=with_vectors)
        yield from filter(accepts, page)
        if len(page) < _PAGE:
            return
        after = page[-1].id


def below(where, name: str, fields: dict[str, str]) -> Filter:
    """A filter of `where=` on the fields of an object in the payload. `fields` are the kinds of the collection's."""
    inside = {path.removeprefix(f"{name}."): kind for path, kind in fields.items() if path.startswith(f"{name}.")}

    def moved(filter: Filter) -> Filter:
        if isinstance(filter, And | Or | AtLeast):
            return replace(filter, parts=tuple(map(moved, filter.parts)))
        if isinstance(filter, Not):
            return Not(moved(filter.part))
        return filter if isinstance(filter, Has | HasVector) else replace(filter, path=f"{name}.{filter.path}")

    return moved(parse(where, inside))


@dataclass(frozen=True)
class Part:
    """What SQL can say of a framework's filter: true wherever that is, and nowhere else if it `is_exact`."""

    filter: Filter
    is_exact: bool = True

    @property
    def where(self) -> Filter | None:
        """As `Collection` takes it; None for all records."""
        if self.filter == And(()):
            return None
        try:
            check_size(self.filter)
        except ConfigError:
            if self.is_exact:
                raise
            return None
        return self.filter

    def widened(self) -> "Part":
        """The same, of which the framework decides."""
        return Part(self.filter, False)


EVERYTHING, UNKNOWN = Part(And(())), Part(And(()), False)


def all_of(parts: Iterable[Part]) -> Part:
    parts = list(parts)
    said = tuple(part.filter for part in parts if part.filter != And(()))
    return Part(said[0] if len(said) == 1 else And(said), all(part.is_exact for part in parts))


def any_of(parts: Iterable[Part]) -> Part:
    parts = list(parts)
    if And(()) in [part.filter for part in parts]:
        return Part(And(()), all(part.is_exact for part in parts))
    return Part(Or(tuple(part.filter for part in parts)), all(part.is_exact for part in parts))


def complement(part: Part) -> Part:
    return Part(Not(part.filter)) if part.is_exact else UNKNOWN


def path_of(keys: Iterable[str]) -> str:
    """The path to a value below these keys, whatever is in them."""
    return ".".join(map(quoted, keys))


def said(condition: Callable[..., Filter], *values: Any, **bounds: Any) -> Part:
    """A condition, if SQL has it: not of NaN, nor of text that is no Unicode."""
    try:
        return Part(condition(*values, **bounds))
    except ConfigError:
        return UNKNOWN


def not_array(path: str) -> Part:
    """The value is no array with elements: a condition on the elements of one is not what frameworks ask."""
    return said(lambda: Not(Exists(f"{path}[]")))


def one_of(path: str, values: Iterable[Any]) -> Part:
    """The value, or an array's element, equals one of these as Python compares: 1, 1.0 and True are equal."""
    wanted: list[Any] = []
    for value in values:
        if not isinstance(value, str | int | float) or not _is_compared_exactly(value):
            return UNKNOWN
        wanted += [value] if value not in (0, 1) else [int(value), bool(value)]
    return said(In, path, tuple(wanted))


def ordered(path: str, bound: str, value: Any) -> Part:
    """The value is beyond a number or text, as Python compares: bools are numbers. bound: "gt", "gte", "lt", "lte"."""
    if isinstance(value, str):
        return all_of([said(Range, path, **{bound: value}), not_array(path)])
    if not isinstance(value, int | float) or not _is_compared_exactly(value):
        return UNKNOWN
    value = int(value) if isinstance(value, bool) else value
    beyond = {"gt": value.__lt__, "gte": value.__le__, "lt": value.__gt__, "lte": value.__ge__}[bound]
    bools = tuple(one for one in (False, True) if beyond(int(one)) is True)
    return all_of([any_of([said(Range, path, **{bound: value}), said(In, path, bools)]), not_array(path)])


def _is_compared_exactly(value: str | int | float) -> bool:
    """SQLite has integers of 64 bits."""
    return isinstance(value, str) or (math.isfinite(value) and abs(value) < 2**63)
