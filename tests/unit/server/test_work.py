"""Threads of a server: searches are answered together as they are alone, and writes are in order."""

import asyncio
import threading

import numpy as np
import pytest
from small_indexes import trained, vectors

from qinco.collection.collection import Collection
from qinco.errors import DataError
from qinco.server.settings import ServerSettings
from qinco.server.work import MAX_BATCH, Unavailable, Work


@pytest.fixture
def docs(tmp_path):
    with Collection.create(tmp_path / "docs.qinco", metric="l2", codec=trained("plain")) as docs:
        docs.upsert(range(600), vectors(600), [{"n": n} for n in range(600)])
        docs.optimize()
        docs.upsert(range(600, 700), vectors(100, seed=1))
        yield docs


@pytest.fixture
def work():
    work = Work(ServerSettings(readers=2, max_waiting=100))
    yield work
    work.close()


def test_searches_that_wait_are_answered_together_as_alone(docs, work):
    queries, sizes = vectors(90, seed=2), []
    work.on_batch = sizes.append

    async def ask():
        return await asyncio.gather(*(work.search("docs", docs, query.tolist(), 5) for query in queries))

    found = asyncio.run(ask())
    assert sizes == [MAX_BATCH, 90 - MAX_BATCH]
    alone = [docs.search(query, 5) for query in queries]
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in alone]
    assert [[hit.payload for hit in hits] for hits in found] == [[hit.payload for hit in hits] for hits in alone]
    np.testing.assert_allclose([[hit.score for hit in hits] for hits in found],
                               [[hit.score for hit in hits] for hits in alone], rtol=1e-5, atol=1e-5)  # fmt: skip


def test_searches_that_come_a_moment_later_join_the_batch(docs, work):
    queries, sizes = vectors(3, seed=2), []
    work.on_batch = sizes.append

    async def ask():
        first = asyncio.create_task(work.search("docs", docs, queries[0], 5))
        await asyncio.sleep(0)
        return await asyncio.gather(first, *(work.search("docs", docs, query, 5) for query in queries[1:]))

    found = asyncio.run(ask())
    assert sizes == [3]
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in docs.search(x, 5)] for x in queries]


def test_searches_with_other_options_or_filters_keep_them(docs, work):
    query = vectors(1, seed=2)[0]

    async def ask():
        return await asyncio.gather(
            work.search("docs", docs, query, 3), work.search("docs", docs, query, 7),
            work.search("docs", docs, query, 3, where={"n": {"lt": 5}}),
            work.search("docs", docs, query, 3, with_payload=False), work.search("docs", docs, query, 3, exact=True),
        )  # fmt: skip

    found = asyncio.run(ask())
    assert [len(hits) for hits in found] == [3, 7, 3, 3, 3]
    assert all(hit.id < 5 for hit in found[2]) and all(hit.payload is None for hit in found[3])
    assert found[4] == docs.search(query, 3, exact=True)


@pytest.mark.parametrize("query", [[1.0], [float("nan")] * 6, ["a"] * 6, [[1.0] * 6, [1.0]], [], None])
def test_a_wrong_query_fails_alone(docs, work, query):
    good = vectors(2, seed=2)

    async def ask():
        calls = [work.search("docs", docs, one, 3) for one in (good[0], query, good[1])]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, wrong, last = asyncio.run(ask())
    assert isinstance(wrong, DataError)
    assert len(first) == len(last) == 3


def test_calls_that_are_cancelled_while_they_wait_are_not_begun(work):
    gate, begun = threading.Event(), []

    def wait(number):
        begun.append(number)
        gate.wait(10)

    async def ask():
        calls = [asyncio.create_task(work.read(wait, number)) for number in range(10)]
        await asyncio.sleep(0.05)
        for call in calls[5:]:
            call.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*calls, return_exceptions=True)
        await work.read(wait, 10)

    asyncio.run(ask())
    assert sorted(begun) == [0, 1, 2, 3, 4, 10]


def test_writes_of_a_collection_are_in_order_and_those_of_others_beside_them(work):
    order, gate = [], threading.Event()

    async def ask():
        first = asyncio.create_task(work.write("a", lambda: (gate.wait(10), order.append("a1"))))
        second = asyncio.create_task(work.write("a", order.append, "a2"))
        await work.write("b", order.append, "b")
        gate.set()
        await asyncio.gather(first, second)
        work.forget("a")
        await work.write("a", order.append, "a3")

    asyncio.run(ask())
    assert order == ["b", "a1", "a2", "a3"]


def test_after_its_end_nothing_is_begun(docs):
    work = Work(ServerSettings())
    work.close()

    async def ask():
        for call in (work.read(docs.count), work.search("docs", docs, vectors(1)[0])):
            with pytest.raises(Unavailable):
                await call

    asyncio.run(ask())
