"""A collection does what a dictionary of records does, whatever happens in whatever order.

Fresh vectors are compared with exact ones, and compressed ones with what their codes decode to.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from small_indexes import trained, vectors

from qinco.collection.collection import Collection

X = vectors(600, 4)
QUERIES = vectors(3, 8)
ROWS = st.integers(0, len(X) - 1)
IDS = st.integers(0, 30)
TEXTS = st.sampled_from(["a", "b", "1", "2", "ä"])
PAYLOADS = st.none() | st.fixed_dictionaries({"n": st.integers(0, 3)})


class Machine(RuleBasedStateMachine):
    """Records are (payload, row of X or None) by id."""

    @initialize(payload=st.booleans(), multi=st.booleans(), metric=st.sampled_from(["l2", "cosine", "inner_product"]))
    def create(self, payload, multi, metric):
        self.place = Path(tempfile.mkdtemp())
        self.records, self.has_payload, self.copies, self.is_multi = {}, payload, 0, payload and multi
        kind = {"payload": payload, "metric": metric, "multi": self.is_multi}
        self.docs = Collection.create(self.place / "c", codec=trained("plain"), **kind)
        self.reader = Collection.open(self.place / "c", read_only=True)

    @rule(new=st.lists(st.tuples(IDS | TEXTS, ROWS | st.none(), PAYLOADS), max_size=40))
    def upsert(self, new):
        if not self.has_payload:
            new = [(id, row, None) for id, row, _ in new if isinstance(id, int) and row is not None]
        given = [None if row is None else self.vectors(row) for _, row, _ in new]
        self.docs.upsert([id for id, *_ in new], given, [payload for *_, payload in new])
        self.records |= {id: (payload, row) for id, row, payload in new}

    @rule(first=ROWS, count=st.integers(1, 150))
    def upsert_many(self, first, count):
        rows = np.arange(first, first + count) % len(X)
        self.docs.upsert(range(100, 100 + count), [self.vectors(row) for row in rows])
        self.records |= {100 + number: (None, int(row)) for number, row in enumerate(rows)}

    @rule(new=st.lists(st.tuples(IDS | TEXTS, ROWS, PAYLOADS), max_size=20), mode=st.sampled_from(["insert", "update"]))
    def upsert_if(self, new, mode):
        if not self.has_payload:
            new = [(id, row, None) for id, row, _ in new if isinstance(id, int)]
        payloads = [payload for *_, payload in new]
        self.docs.upsert([id for id, *_ in new], [self.vectors(row) for _, row, _ in new], payloads, mode=mode)
        for id, row, payload in new:
            if (id in self.records) == (mode == "update"):
                self.records[id] = payload, row

    @rule(new=st.lists(st.tuples(IDS | TEXTS | st.integers(100, 250), ROWS | st.none()), max_size=20))
    def update_vectors(self, new):
        new = [(id, row) for id, row in new if id in self.records and (self.has_payload or row is not None)]
        given = [None if row is None else self.vectors(row) for _, row in new]
        self.docs.update_vectors([id for id, _ in new], given)
        self.records |= {id: (self.records[id][0], row) for id, row in new}

    @rule(ids=st.lists(IDS | TEXTS | st.integers(100, 250), max_size=20))
    def delete_vectors(self, ids):
        if self.has_payload:
            having = {id for id in ids if self.records.get(id, (None, None))[1] is not None}
            assert self.docs.delete_vectors(ids) == len(having)
            self.records |= {id: (self.records[id][0], None) for id in having}

    @rule(ids=st.lists(IDS | TEXTS | st.integers(100, 250), max_size=20))
    def delete(self, ids):
        assert self.docs.delete(ids) == sum(self.records.pop(id, None) is not None for id in set(ids))

    @rule(start=st.integers(100, 200), count=st.integers(1, 100))
    def delete_many(self, start, count):
        self.docs.delete(range(start, start + count))
        self.records = {id: one for id, one in self.records.items() if id not in range(start, start + count)}

    @rule(n=st.integers(0, 3), new=st.integers(0, 3))
    def change_payloads(self, n, new):
        if self.has_payload:
            chosen = [id for id, (payload, _) in self.records.items() if payload and payload["n"] == n]
            assert self.docs.update_payload({"n": new}, where={"n": n}) == len(chosen)
            self.records |= {id: ({"n": new}, self.records[id][1]) for id in chosen}

    @rule()
    def optimize(self):
        self.docs.optimize(progress=False)
        assert self.docs.stats()["fresh"] == 0 and len(self.docs.stats()["segments"]) <= 8

    @rule()
    def clear(self):
        self.docs.clear()
        self.records = {}

    @rule()
    def reopen(self):
        self.docs.close()
        self.docs = Collection.open(self.place / "c")

    @rule()
    def snapshot(self):
        self.copies += 1
        self.docs.snapshot(self.place / f"copy{self.copies}")
        with Collection.open(self.place / f"copy{self.copies}") as copy:
            assert copy.get() == self.docs.get() and copy.verify() == []

    @rule(n=st.integers(0, 3))
    def filter(self, n):
        if self.has_payload:
            wanted = {id for id, (payload, _) in self.records.items() if payload and payload["n"] == n}
            assert {one.id for one in self.docs.get(where={"n": n})} == wanted and self.docs.count({"n": n}) == len(
                wanted
            )
            found = {hit.id for hit in self.docs.search(QUERIES[0], 1000, where={"n": n})}
            assert found == {id for id in wanted if self.records[id][1] is not None}

    @rule(ids=st.lists(IDS | TEXTS | st.integers(100, 250), max_size=20))
    def search_among_ids(self, ids):
        wanted = {id for id in ids if self.records.get(id, (None, None))[1] is not None}
        assert {hit.id for hit in self.docs.search(QUERIES[0], 1000, filter=ids)} == wanted

    @invariant()
    def records_are_there(self):
        for docs in (self.docs, self.reader):
            assert len(docs) == len(self.records)
            assert {one.id: one.payload for one in docs.get()} == {id: one[0] for id, one in self.records.items()}

    @invariant()
    def searches_find_the_nearest(self):
        """Of all decoded vectors, or exact ones where they are fresh."""
        have = {id: row for id, (_, row) in self.records.items() if row is not None}
        options = {"nprobe": 100, "num_short": 1000} | ({"candidates": 1000} if self.is_multi else {})
        for exact in (True, False):
            for docs in (self.docs, self.reader):
                for hits in docs.search(QUERIES, 1000, exact=exact, **options):
                    assert {hit.id for hit in hits} == set(have)
                    scores = [hit.score for hit in hits]
                    assert scores == sorted(scores, reverse=docs.metric != "l2")
        records = self.docs.get(list(have), with_vectors=True)
        assert len(records) == len(have)
        if len(have) < 30:
            return
        pairs = [(self.prepared(one.vector), self.prepared(self.vectors(have[one.id]))) for one in records]
        errors = [np.square(x - wanted).sum(-1).mean() for x, wanted in pairs]
        assert np.mean(errors) < 0.5 * np.square(self.prepared(X) - self.prepared(X).mean(0)).sum(1).mean()

    def vectors(self, row):
        """What a record of a row of X holds: its vector, or with several the next ones, too."""
        return X[row : row + 1 + row % 4] if self.is_multi else X[row]

    def prepared(self, x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True) if self.docs.metric == "cosine" else x

    def teardown(self):
        assert self.docs.verify() == []
        self.reader.close()
        self.docs.close()
        shutil.rmtree(self.place)


Machine.TestCase.settings = settings(max_examples=8, stateful_step_count=12, deadline=None, database=None,
                                     suppress_health_check=list(HealthCheck))  # fmt: skip
TestCollection = Machine.TestCase
