"""A collection of named vectors does what a dictionary of records does, whatever happens in whatever order."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from small_indexes import trained, vectors

from qinco.collection.named import NamedCollection

X = {"image": vectors(300, 4), "text": vectors(300, 7)[:, :4], "empty": vectors(300, 8)}
NAMES = ["image", "text"]  # the third name has no vectors
IDS = st.integers(0, 30) | st.sampled_from(["a", "b", "1"])
ROWS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 299))
NUMBERS = st.integers(0, 3)
BATCHES = st.lists(st.tuples(IDS, ROWS, NUMBERS), max_size=30)


def columns(rows) -> dict:
    return {name: [X[name][one[name]] if name in one else None for one in rows] for name in NAMES}


class Machine(RuleBasedStateMachine):
    """Records are [n, {name: row of X}] by id."""

    @initialize(metric=st.sampled_from(["l2", "cosine", "inner_product"]))
    def create(self, metric):
        self.place, self.records, self.copies = Path(tempfile.mkdtemp()), {}, 0
        kinds = {"image": {"codec": trained("plain"), "metric": metric}, "text": {"metric": "l2"}, "empty": {}}
        self.docs = NamedCollection.create(self.place / "c", kinds)
        self.reader = NamedCollection.open(self.place / "c", read_only=True)

    @rule(new=BATCHES, mode=st.sampled_from(["upsert", "insert", "update"]), least=st.none() | NUMBERS)
    def upsert(self, new, mode, least):
        where = None if least is None else {"n": {"gte": least}}
        payloads = [{"n": n} for *_, n in new]
        self.docs.upsert([id for id, *_ in new], columns([rows for _, rows, _ in new]), payloads, mode=mode,
                         only_where=where)  # fmt: skip
        for id, rows, n in new:
            if id in self.records:
                if mode != "insert" and (least is None or self.records[id][0] >= least):
                    self.records[id] = [n, rows]
            elif mode != "update":
                self.records[id] = [n, rows]

    @rule(first=st.integers(0, 299), count=st.integers(1, 150))
    def upsert_many(self, first, count):
        rows = [dict.fromkeys(NAMES[: 1 + number % 2], (first + number) % 300) for number in range(count)]
        self.docs.upsert(range(100, 100 + count), columns(rows), [{"n": 9}] * count)
        self.records |= {100 + number: [9, one] for number, one in enumerate(rows)}

    @rule(new=st.lists(st.tuples(IDS | st.integers(100, 250), ROWS), max_size=20))
    def update_vectors(self, new):
        new = [(id, rows) for id, rows in new if id in self.records]
        self.docs.update_vectors([id for id, _ in new], columns([rows for _, rows in new]))
        for id, rows in new:
            self.records[id][1] = self.records[id][1] | rows

    @rule(ids=st.lists(IDS | st.integers(100, 250), max_size=20), names=st.sets(st.sampled_from(NAMES), min_size=1))
    def delete_vectors(self, ids, names):
        having = {id for id in ids if id in self.records and names & self.records[id][1].keys()}
        assert self.docs.delete_vectors(names, ids) == len(having)
        for id in having:
            self.records[id][1] = {name: row for name, row in self.records[id][1].items() if name not in names}

    @rule(n=NUMBERS, name=st.sampled_from(NAMES))
    def delete(self, n, name):
        chosen = [id for id, (own, rows) in self.records.items() if own == n and name in rows]
        assert self.docs.delete(where={"n": n, "$vector": name}) == len(chosen)
        for id in chosen:
            del self.records[id]

    @rule(n=NUMBERS, new=NUMBERS)
    def change_payloads(self, n, new):
        chosen = [id for id, (own, _) in self.records.items() if own == n]
        assert self.docs.update_payload({"n": new}, where={"n": n}) == len(chosen)
        for id in chosen:
            self.records[id][0] = new

    @rule()
    def optimize(self):
        self.docs.optimize(progress=False)
        assert self.docs.stats()["vectors"]["image"]["fresh"] == 0

    @rule()
    def clear(self):
        self.docs.clear()
        self.records = {}

    @rule()
    def reopen(self):
        self.docs.close()
        self.docs = NamedCollection.open(self.place / "c")

    @rule()
    def snapshot(self):
        self.copies += 1
        self.docs.snapshot(self.place / f"copy{self.copies}")
        with NamedCollection.open(self.place / f"copy{self.copies}") as copy:
            assert copy.get() == self.docs.get() and copy.verify() == []

    @invariant()
    def records_are_there(self):
        for docs in (self.docs, self.reader):
            assert len(docs) == len(self.records)
            found = {one.id: (one.payload, set(one.vector)) for one in docs.get(with_vectors=True)}
            assert found == {id: ({"n": n}, set(rows)) for id, (n, rows) in self.records.items()}
            for name in NAMES:
                assert docs.count({"$vector": name}) == sum(name in rows for _, rows in self.records.values())
        for one in self.docs.get(with_vectors=["text"]):  # which is never compressed
            if one.vector:
                np.testing.assert_array_equal(one.vector["text"], X["text"][self.records[one.id][1]["text"]])

    @invariant()
    def searches_find_all(self):
        for docs in (self.docs, self.reader):
            for name in X:
                having = {id: n for id, (n, rows) in self.records.items() if name in rows}
                options = {"using": name, "nprobe": 100, "num_short": 1000}
                assert {hit.id for hit in docs.search(X[name][0], 1000, **options)} == set(having)
                found = {hit.id for hit in docs.search(X[name][0], 1000, {"n": 1}, **options)}
                assert found == {id for id, n in having.items() if n == 1}

    def teardown(self):
        assert self.docs.verify() == [] == self.reader.verify()
        self.reader.close()
        self.docs.close()
        shutil.rmtree(self.place)


Machine.TestCase.settings = settings(max_examples=6, stateful_step_count=12, deadline=None, database=None,
                                     suppress_health_check=list(HealthCheck))  # fmt: skip
TestNamedCollection = Machine.TestCase
