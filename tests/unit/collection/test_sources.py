"""Every kind of source gives the same blocks as the plain arrays that it is made of."""

import datetime
import json
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch

from qinco.collection.sources import open_rows
from qinco.errors import ConfigError, DataError
from qinco.vectors.formats import write_vectors

N, D = 700, 5
X_ND = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
IDS = [f"doc-{row}" for row in range(N)]
PAYLOADS = [{"year": 1900 + row % 100, "title": f"t{row}"} for row in range(N)]


def table(first=0, stop=N, **more):
    rows = range(first, stop)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X_ND[first:stop].ravel()), D)
    columns = {"id": [IDS[row] for row in rows], "year": [PAYLOADS[row]["year"] for row in rows],
               "title": [PAYLOADS[row]["title"] for row in rows], "embedding": lists}  # fmt: skip
    return pa.table(columns | more)


def read(source, start=0, rows=64):
    ids, vectors, payloads = [], [np.empty((0, D), np.float32)], []
    for block in source.blocks(start, rows):
        assert 0 < len(block[0]) <= rows and block[1].dtype == np.float32
        ids += list(block[0])
        vectors.append(block[1])
        payloads += [None] * len(block[0]) if block[2] is None else block[2]
    return ids, np.concatenate(vectors), payloads


def check(source, start=0, ids=IDS, payloads=PAYLOADS):
    found = read(source, start)
    assert found[0] == list(ids[start:])
    np.testing.assert_array_equal(found[1], X_ND[start:])
    assert found[2] == payloads[start:]


class HuggingFace:
    """What is used of a datasets.Dataset, of which some rows are selected."""

    def __init__(self):
        self.data: Any = SimpleNamespace(table=pa.concat_tables([table(), table()]))
        self._indices = pa.table({"indices": pa.array(range(N, 2 * N), pa.uint64())})
        self.column_names = self.data.table.column_names

    def __iter__(self):
        raise AssertionError("rows are not read one by one")

    def __len__(self):
        return N


def parquet(path):
    pq.write_table(table(), path / "a.parquet", row_group_size=150)
    return str(path / "a.parquet")


def folder(path):
    (path / "parts").mkdir()
    for number, first in enumerate(range(0, N, 70)):
        pq.write_table(table(first, first + 70), path / "parts" / f"part-{number}.parquet")
    return path / "parts"


def json_lines(path):
    lines = [json.dumps({"id": id, "embedding": x_D.tolist(), **payload}) for id, x_D, payload in
             zip(IDS, X_ND, PAYLOADS, strict=True)]  # fmt: skip
    (path / "a.jsonl").write_text("\n".join(lines[:300]) + "\n\n" + "\n".join(lines[300:]))
    return path / "a.jsonl"


def dicts(path=None):
    return [{"id": id, "embedding": x_D, **payload} for id, x_D, payload in zip(IDS, X_ND, PAYLOADS, strict=True)]


KINDS = {
    "parquet": parquet,
    "parquet column": lambda path: parquet(path) + ":embedding",
    "folder": folder,
    "pattern": lambda path: f"{folder(path)}/*.parquet",
    "pattern column": lambda path: f"{folder(path)}/*.parquet:embedding",
    "list of files": lambda path: sorted(folder(path).iterdir(), key=lambda file: int(file.stem[5:])),
    "dataset": lambda path: pyarrow.dataset.dataset(parquet(path)),
    "table": lambda path: table(),
    "batch": lambda path: table().to_batches()[0],
    "pandas": lambda path: pandas.DataFrame({"embedding": list(X_ND), "id": IDS, **pandas.DataFrame(PAYLOADS)}),
    "polars": lambda path: polars.DataFrame(table()),
    "hugging face": lambda path: HuggingFace(),
    "columns": lambda path: {"id": IDS, "year": [one["year"] for one in PAYLOADS],
                             "title": [one["title"] for one in PAYLOADS], "embedding": X_ND},
    "json lines": json_lines,
    "dicts": dicts,
}  # fmt: skip
READ_ONCE = {
    "reader": lambda: table().to_reader(90),
    "tables": lambda: (table(first, first + 70) for first in range(0, N, 70)),
    "frames": lambda: (polars.DataFrame(table(first, first + 70)) for first in range(0, N, 70)),
    "dicts": lambda: iter(dicts()),
    "lists of dicts": lambda: (dicts()[first : first + 100] for first in range(0, N, 100)),
    "tuples": lambda: ((IDS[first : first + 50], X_ND[first : first + 50], PAYLOADS[first : first + 50])
                       for first in range(0, N, 50)),
    "columns": lambda: ({name: column if name != "embedding" else X_ND[first : first + 70] for name, column in
                         table(first, first + 70).to_pydict().items()} for first in range(0, N, 70)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_arrays_from_any_row_on(kind, tmp_path):
    given = KINDS[kind](tmp_path)
    source = open_rows(given)
    assert (source.dim, source.metric, source.id_column, source.vector_column) == (D, "l2", "id", "embedding")
    assert set(source.payload_columns) == {"year", "title"}
    assert source.num_rows == (None if kind == "json lines" else N) and not source.has_integer_ids
    for start in (0, 1, 149, 150, 333, N - 1, N):
        check(source, start)
    check(source)
    assert source.fingerprint() == open_rows(given).fingerprint()
    assert source.fingerprint() != open_rows(given, payload=False).fingerprint()
    assert read(open_rows(given, payload=False))[2] == [None] * N
    assert read(open_rows(given, ids=False, payload="year"))[0] == list(range(N))
    assert read(open_rows(given, payload="year"))[2] == [{"year": one["year"]} for one in PAYLOADS]


@pytest.mark.parametrize("kind", READ_ONCE)
def test_what_is_read_once_gives_the_same(kind):
    source = open_rows(READ_ONCE[kind]())
    assert source.is_read_once and source.fingerprint() is None and source.dim == D
    with pytest.raises(ConfigError, match="read once"):
        next(source.blocks(1))
    check(source)


def test_vectors_have_row_numbers_and_what_is_given(tmp_path):
    none, numbers = [None] * N, list(range(N))
    for suffix in ("fvecs", "npy", "fbin"):
        write_vectors(tmp_path / f"a.{suffix}", X_ND)
        for start in (0, 1, 333, N):
            check(open_rows(tmp_path / f"a.{suffix}"), start, numbers, none)
    pq.write_table(table().select(["embedding"]), tmp_path / "b.parquet")
    check(open_rows(tmp_path / "b.parquet"), 3, numbers, none)
    for given in (X_ND, torch.from_numpy(X_ND), X_ND.tolist(), polars.Series(X_ND), table()["embedding"]):
        check(open_rows(given), 7, numbers, none)
        check(open_rows(given, ids=IDS, payload=PAYLOADS), 7)
    others = [{"id": id, **one} for id, one in zip(IDS, PAYLOADS, strict=True)]
    check(open_rows(table(), ids=range(5, N + 5)), 3, list(range(5, N + 5)), others)
    batches = (X_ND[first : first + 50] for first in range(0, N, 50))
    check(open_rows(batches), 0, numbers, none)
    check(open_rows((None, X_ND[first : first + 100]) for first in range(0, N, 100)), 0, numbers, none)
    integers = open_rows((X_ND * 10).astype(np.int8))
    assert np.asarray(next(integers.blocks())[1]).dtype == np.float32


def test_integer_ids_stay_arrays_and_vectors_views():
    source = table().set_column(0, "id", pa.array(range(N), pa.int32())).combine_chunks()
    rows = open_rows(source)
    ids, vectors, _ = next(rows.blocks(0, 1000))
    assert isinstance(ids, np.ndarray) and ids.dtype == np.int64 and rows.has_integer_ids
    assert np.shares_memory(vectors, source["embedding"].chunk(0).values.to_numpy())


def test_ids_are_guessed_by_names_and_values():
    def chosen(**columns):
        source = open_rows(table(**columns).drop_columns(["id"]))
        return source.id_column, " ".join(source.guesses)

    names, same = [f"n{row}" for row in range(N)], ["a"] * N
    assert chosen(uuid=names, key=names)[0] == "uuid" and "'key'" in chosen(uuid=names, key=names)[1]
    assert chosen(uuid=same, key=names)[0] == "key" and "rows 0 and 1 have the same, 'a'" in chosen(uuid=same)[1]
    assert chosen(uuid=same)[0] is None and "row numbers" in chosen(uuid=same)[1]
    assert chosen(pk=[*range(N - 1), -1])[0] is None and "-1" in chosen(pk=[*range(N - 1), -1])[1]
    assert chosen(pk=[*names[1:], None])[0] is None and f"row {N - 1} is null" in chosen(pk=[*names[1:], None])[1]
    assert chosen(ids=np.random.default_rng(0).random(N))[0] is None


def test_payloads_are_json():
    when = datetime.datetime(2020, 1, 2, 3, 4, 5, 250000, datetime.UTC)
    more = {
        "score": [float("nan"), 0.5] * (N // 2), "price": [Decimal("1.25")] * N, "day": [datetime.date(2020, 1, 2)] * N,
        "when": [when] * N, "image": [{"bytes": b"x", "path": "a"}] * N, "raw": [b"x"] * N, "none": [None] * N,
        "tags": [["a", "b"]] * N, "text": ["ab"] * N,
        "other": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(N * 99)), 99),
    }  # fmt: skip
    source = open_rows(table(**more), vector="embedding")
    assert all(f"'{name}'" in " ".join(source.guesses) for name in ("image", "raw", "other"))
    payloads = read(source)[2]
    expected = PAYLOADS[0] | {"price": 1.25, "day": "2020-01-02", "when": "2020-01-02T03:04:05.25Z", "tags": ["a", "b"],
                              "text": "ab"}  # fmt: skip
    assert payloads[0] == expected and payloads[1]["score"] == 0.5
    json.dumps(payloads, allow_nan=False)
    rows = [{"vector": X_ND[0], **{name: column[0] for name, column in more.items() if name in expected}}]
    found = read(open_rows(rows))[2][0]
    assert found == {name: value for name, value in expected.items() if name not in PAYLOADS[0]}
    with pytest.raises(DataError, match="bytes"):
        open_rows(table(**more), payload=["raw"])


def test_the_metric_is_cosine_for_unit_vectors():
    unit_ND = X_ND / np.linalg.norm(X_ND, axis=1, keepdims=True)
    unit_ND[:3] *= 5  # less than 1 %
    for given in (
        unit_ND,
        {"vector": unit_ND.astype(np.float16)},
        [{"vector": x_D} for x_D in unit_ND],
        iter([unit_ND]),
    ):
        assert open_rows(given).metric == "cosine"
    unit_ND[:8] *= 5
    assert open_rows(unit_ND).metric == open_rows({"vector": unit_ND}).metric == "l2"


@pytest.mark.parametrize("is_file", [True, False])
def test_null_vectors_are_records_without_one_where_they_may_be(is_file, tmp_path):
    lists = [None if row in (3, 130) else x_D.tolist() for row, x_D in enumerate(X_ND)]
    source = table(embedding=pa.array(lists, pa.list_(pa.float32())))
    pq.write_table(source, tmp_path / "a.parquet", row_group_size=100)
    given = tmp_path / "a.parquet" if is_file else source
    with pytest.raises(DataError, match="row 0 or one of the next 100 is null" if is_file else "row 3 of .* is null"):
        read(open_rows(given))
    for one in (given, source.to_pylist()):
        rows = open_rows(one, missing=True)
        found = [x_D for _, vectors, _ in rows.blocks(100, 64) for x_D in vectors]
        assert [row for row, x_D in enumerate(found) if x_D is None] == [30] and rows.missing_vectors == 1
        np.testing.assert_array_equal(np.array(found[31:]), X_ND[131:])


RAGGED = pa.array([[1.0, 2], [1.0]])
WRONG = [
    (lambda: {"vector": np.empty((0, 3))}, {}, "no rows"),
    (lambda: [], {}, "no rows"),
    (lambda: iter([]), {}, "no rows"),
    (lambda: {"a": [1.0, 2], "b": ["x", "y"]}, {}, "no column of lists of numbers"),
    (lambda: {"a": X_ND, "b": X_ND}, {}, "several columns of vectors, 'a', 'b'"),
    (lambda: {"vector": X_ND}, {"vector": "vektor"}, "Did you mean vector"),
    (lambda: table(), {"ids": "idd"}, "Did you mean id"),
    (lambda: table(), {"payload": ["yaer"]}, "Did you mean year"),
    (lambda: table(), {"vector": "year"}, "'year' of .* int64, not lists"),
    (lambda: table(), {"ids": "year"}, "rows 0 and 100 have the same, 1900"),
    (lambda: table(), {"dim": 6}, "dimension 6, and has them of 5"),
    (lambda: table(), {"ids": IDS[1:]}, "as many ids"),
    (lambda: X_ND, {"ids": "id"}, "without columns"),
    (lambda: X_ND, {"ids": [1] * N}, "rows 0 and 1 have the same, 1"),
    (lambda: X_ND, {"ids": range(-1, N - 1)}, "-1"),
    (lambda: X_ND, {"payload": PAYLOADS[1:]}, "as many payloads"),
    (lambda: pa.table({"vector": RAGGED}), {}, "row 1"),
    (lambda: [{"vector": [1.0, 2]}, {"vector": [1.0]}], {}, "row 1"),
    (lambda: [{"vector": [1.0, 2]}, {"vector": [1.0, "a"]}], {}, "numbers"),
    (lambda: [{"vector": [1.0, 2]}, {"vector": [1.0, np.nan]}], {}, "row 1 .* NaN"),
    (lambda: [{"vector": [1.0, 2]}, 5], {}, "row 1"),
    (lambda: {"vector": np.array([[1.0, np.inf]])}, {}, "row 0 .* infinite"),
    (lambda: pandas.DataFrame({"vector": list(X_ND), 3: IDS}), {}, "named 3 of type int"),
    (lambda: pa.table([RAGGED, RAGGED], ["a", "a"]), {}, "two columns named 'a'"),
    (lambda: "/nowhere/a.parquet", {}, "No such file"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_wrong_is_said(number):
    make, options, message = WRONG[number]
    with pytest.raises(DataError, match=message) as caught:
        read(open_rows(make(), **options))
    assert "\n" not in str(caught.value)


def test_files_that_differ_or_change_are_errors(tmp_path):
    pq.write_table(table(0, 70), tmp_path / "a-0.parquet")
    pq.write_table(table(70, 140).drop_columns(["year"]), tmp_path / "a-1.parquet")
    with pytest.raises(DataError, match=r"a-1.parquet has no column 'year'"):
        read(open_rows(f"{tmp_path}/a-*.parquet"))
    source = open_rows(tmp_path / "a-0.parquet")
    pq.write_table(table(0, 69), tmp_path / "a-0.parquet")
    with pytest.raises(DataError, match="changed"):
        read(source)
    (tmp_path / "a.jsonl").write_text('{"vector": [1.0, 2.0]}\n{"vector": [1.0,\n')
    with pytest.raises(DataError, match="line 2"):
        open_rows(tmp_path / "a.jsonl")
