"""Which column of a table holds ids, which one vectors, and which ones the payload: as named, or guessed."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qinco.config import suggest
from qinco.errors import ConfigError, DataError
from qinco.vectors.block_rows import list_names

ID_NAMES = ("id", "_id", "ids", "uuid", "doc_id", "document_id", "key", "pk")  # the first that can be is taken
VECTOR_NAMES = ("embedding", "embeddings", "vector", "vectors", "emb")  # of several columns of vectors
SAMPLED_ROWS = 1000  # that are looked at before all are read
MAX_NUMBERS, MAX_BYTES = 64, 1 << 14  # of a value of the payload, on average, unless its column is named
_UNNAMED_INDEX = re.compile(r"__index_level_[0-9]+__")  # what pandas' index without a name becomes
_MAX_SUSPECTS = 1000


@dataclass(frozen=True)
class Column:
    """What a column could be.

    Args:
        name: its name.
        vectors: "floats" or "integers" where it holds lists of them.
        is_id: whether its values are of a type that ids have.
        what: what its values are, for messages.
        left_out: why it is not part of the payload unless it is named, or None.
        never: whether it cannot be payload even if it is named.
        is_null: whether it has no values, as far as is known.
    """

    name: str
    vectors: str | None = None
    is_id: bool = False
    what: str = "other values"
    left_out: str | None = None
    never: bool = False
    is_null: bool = False


@dataclass(frozen=True)
class Choice:
    """The columns of ids (None: ids are row numbers), of vectors by name and of the payload; and what was guessed."""

    id: str | None
    vectors: dict[str | None, str]
    payload: list[str]
    guesses: list[str] = field(default_factory=list)


def choose_columns(
    columns: Sequence[Column], name: str, ids: str | bool | None, vectors: Mapping[str | None, str | None], payload,
    fault: Callable[[str], str | None],
) -> Choice:  # fmt: skip
    """Choose columns; `fault` says why the ids of a column are none, as a clause, or gives None. `ids` False: none.

    `vectors` are columns by name, and of None the column of those without; None where it is to be guessed.

    Raises DataError for columns that are missing or hold something else, or where several could hold the vectors.
    """
    known, guesses = {column.name: column for column in columns}, []
    found: dict[str | None, str]
    if None in vectors:
        found = {None: _choose_vectors(known, name, vectors[None], guesses)}
    else:
        found = _choose_named(known, name, {str(one): column for one, column in vectors.items()}, guesses)
    if ids is False:
        id_column = None
    elif ids is not None:
        _find(known, ids, name, "ids")
        assert isinstance(ids, str)
        reason = (
            fault(ids) if known[ids].is_id else f"its values are {known[ids].what}, and ids are integers or strings"
        )
        if reason is not None:
            raise DataError(f"column {ids!r} of {name} cannot be ids, as {reason}: name another, or take row "
                            "numbers, by ids=false (id=false in the shell)")  # fmt: skip
        id_column = ids
    else:
        id_column = _choose_ids(known, found.values(), fault, guesses)
    chosen = _choose_payload(known, name, payload, {id_column, *found.values()}, guesses)
    return Choice(id_column, found, chosen, guesses)


def _named_lists(known: Mapping[str, Column], name: str, vector: str, may_be_null: bool) -> str:
    """The column of vectors that is named."""
    column = _find(known, vector, name, "vector")
    if column.vectors is None and not (may_be_null and column.is_null):
        lists = [column.name for column in known.values() if column.vectors]
        others = f"{list_names(lists)} {'holds' if len(lists) == 1 else 'hold'}" if lists else "no column holds"
        raise DataError(f"column {vector!r} of {name} holds {column.what}, not lists of numbers, which {others}")
    return vector


def _choose_named(
    known: Mapping[str, Column], name: str, vectors: Mapping[str, str | None], guesses: list[str]
) -> dict[str | None, str]:
    """The columns of vectors by name: those that are given, and else those of the names, or such as NAME_embedding."""
    found: dict[str | None, str] = {}
    for one, column in vectors.items():
        if column is not None:
            found[one] = _named_lists(known, name, column, True)
        elif (column := _named_like(known, one)) is not None:
            found[one] = column
            guesses.append(f"vectors {one!r} are in the column {column!r}")
    if missing := [one for one in vectors if one not in found]:
        lists = [column.name for column in known.values() if column.vectors]
        shown = found or {missing[0]: lists[0] if lists else f"{missing[0]}_embedding"}
        words = ",".join(f"{one}:{column}" for one, column in shown.items())
        raise DataError(f"{name} has no column of vectors {missing[0]!r}, and lists of numbers in "
                        f"{list_names(lists) or 'none'}: name the columns of those that it has, as in vector={shown} "
                        f"(vector={words} in the shell and over HTTP)")  # fmt: skip
    return found


def _named_like(known: Mapping[str, Column], name: str) -> str | None:
    """The column that the vectors of a name seem to be in."""
    wanted = [name, *(f"{name}_{one}" for one in VECTOR_NAMES), *(f"{one}_{name}" for one in VECTOR_NAMES)]
    fits = [one.name for one in known.values() if one.vectors or (one.is_null and one.name == name)]
    return next((one for each in wanted for one in fits if one.lower() == each.lower()), None)


def _choose_vectors(known: Mapping[str, Column], name: str, vector: str | None, guesses: list[str]) -> str:
    if vector is not None:
        return _named_lists(known, name, vector, False)
    found: list[str] = []
    for kind in ("floats", "integers"):
        found = found or [column.name for column in known.values() if column.vectors == kind]
    named = [one for one in found if one.lower() in VECTOR_NAMES]
    if len(found) > 1 and len(named) != 1:
        raise DataError(f"{name} has several columns of vectors, {list_names(found)}: choose one, as in "
                        f"vector={(named or found)[0]!r}")  # fmt: skip
    if not found:
        raise DataError(f"{name} has no column of lists of numbers, but {list_names(known) or 'no columns at all'}")
    if len(found) == 1:
        guesses.append(f"vectors are in the column {found[0]!r}, the only one of lists of {known[found[0]].vectors}")
        return found[0]
    others = list_names([one for one in found if one != named[0]])
    guesses.append(f"vectors are in the column {named[0]!r}; {others} could be others: give vector=NAME for those")
    return named[0]


def _choose_ids(
    known: Mapping[str, Column], vectors: Collection[str], fault: Callable, guesses: list[str]
) -> str | None:
    candidates = [column for wanted in ID_NAMES for column in known.values()
                  if column.name.lower() == wanted and column.name not in vectors and column.is_id]  # fmt: skip
    refused = []
    for column in candidates:
        if (reason := fault(column.name)) is None:
            others = [other.name for other in candidates if other.name not in (column.name, *refused)]
            more = f"; for {list_names(others)} give ids=NAME (id=NAME in the shell)" if others else ""
            guesses.append(f"ids are those of the column {column.name!r}{more}")
            return column.name
        refused.append(column.name)
        guesses.append(f"the column {column.name!r} holds no ids, as {reason}")
    guesses.append("ids are row numbers" + ("" if refused else f": no column of them is named {', '.join(ID_NAMES)}"))
    return None


def _choose_payload(known: Mapping[str, Column], name: str, payload, taken: set, guesses: list[str]) -> list[str]:
    if payload is False:
        return []
    if isinstance(payload, str):
        payload = [payload]
    if payload is not None and payload is not True:
        for one in payload:
            if _find(known, one, name, "payload").never:
                raise DataError(f"column {one!r} of {name} holds {known[one].left_out}, which payloads of JSON cannot: "
                                "leave it out of payload")  # fmt: skip
        return list(payload)
    others = [column for column in known.values() if column.name not in taken]
    chosen = [column.name for column in others if column.left_out is None]
    left_out = [f"{column.name!r} holds {column.left_out}" for column in others if column.left_out is not None]
    if chosen:
        guesses.append(f"the payload is of the columns {list_names(chosen)}")
    if left_out:
        guesses.append(f"columns left out of the payload: {', '.join(left_out)}")
    return chosen


def _find(known: Mapping[str, Column], column, name: str, argument: str) -> Column:
    if not isinstance(column, str):
        raise ConfigError(f"{argument} must be names of columns, not {column!r:.80}")
    if column not in known:
        raise DataError(f"{name} has no column {column!r}. {suggest(column, list(known), 0.6)}There are "
                        f"{list_names(known) or 'none'}")  # fmt: skip
    return known[column]


def named_columns(text: str) -> str | dict[str, str]:
    """Columns of vectors by name, as words such as image:image_embedding,text:text_embedding, or as a JSON object.

    A text without a colon is one column.

    Example:
        >>> named_columns("image:image_embedding,text:text_embedding")
        {'image': 'image_embedding', 'text': 'text_embedding'}
    """
    if ":" not in text:
        return text
    try:
        pairs = list(json.loads(text).items()) if text[:1] == "{" else [word.split(":") for word in text.split(",")]
    except ValueError:
        pairs = []
    if not pairs or not all(len(pair) == 2 and all(isinstance(one, str) and one for one in pair) for pair in pairs):
        raise ConfigError("vector= names columns by name, as in vector=image:image_embedding,text:text_embedding or "
                          f'vector=\'{{"image": "image_embedding"}}\', and not {text!r:.80}')  # fmt: skip
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ConfigError(f"vector={text:.80} has a name twice: give each one column")
    return found


def check_names(names: Iterable, name: str) -> None:
    """Raise DataError unless the names of columns are different strings."""
    seen = set()
    for one in names:
        if not isinstance(one, str):
            raise DataError(
                f"{name} has a column named {one!r:.40} of type {type(one).__name__}: rename it to a string"
            )
        if one in seen:
            raise DataError(f"{name} has two columns named {one!r:.40}: rename one of them")
        if "\0" in one:
            raise DataError(f"{name} has a column named {one!r:.40}, with the character NUL: rename it")
        seen.add(one)


def is_index(name: str) -> bool:
    """Whether a column is pandas' index, which has no name."""
    return _UNNAMED_INDEX.fullmatch(name) is not None


def repeated_id(read: Callable[[], Iterator[Sequence]]) -> str | None:
    """Which id is there twice, as a clause, or None; `read` gives the ids in blocks, and is called twice.

    Eight bytes a row are held: integers themselves, or the hashes of strings.
    """
    keys = [_keys(block) for block in read()]
    if not keys:
        return None
    keys_N = np.concatenate(keys)
    if (keys_N[1:] > keys_N[:-1]).all():
        return None
    keys_N.sort()
    suspects = keys_N[1:][keys_N[1:] == keys_N[:-1]][:_MAX_SUSPECTS]
    if not suspects.size:
        return None
    row, seen = 0, {}
    for block in read():
        for place in np.flatnonzero(np.isin(_keys(block), suspects)):
            value = block[int(place)]
            value = int(value) if isinstance(value, np.integer) else value
            if value in seen:
                return f"rows {seen[value]} and {row + int(place)} have the same, {value!r:.80}"
            seen[value] = row + int(place)
        row += len(block)
    return None  # different strings of one hash


def _keys(block: Sequence) -> np.ndarray:
    return block if isinstance(block, np.ndarray) else np.fromiter(map(hash, block), np.int64, len(block))
