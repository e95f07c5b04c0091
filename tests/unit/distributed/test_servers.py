"""Calls of actors that are lost, for a while or for good, and the room that a cluster has."""

import logging
import sys
import time

import pytest
from fake_ray import Actor, ActorDiedError, FakeRay, RayError, RayTaskError

from qinco.distributed.cluster import connected, places_of
from qinco.distributed.pool import WorkerPool
from qinco.distributed.servers import Servers
from qinco.errors import ConfigError, DataError, ResourceError

DIED = ActorDiedError("the creation task:\n  File x\nqinco.errors.DataError: /index has been replaced: reload() it")
AWAY = RayError("unavailable")


def servers(*groups, ray=None):
    return Servers(ray or FakeRay(), list(map(list, groups)), [range(10 * n, 10 * n + 10) for n in range(len(groups))])


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_replica_answers_for_an_actor_that_is_dead(timeout):
    dead, other = Actor(DIED), Actor("answer")
    asked = servers([dead, other])
    for _ in range(3):
        assert asked.ask("scan", timeout=timeout) == ["answer"]
    assert len(dead.calls) == 1 and asked.lost_for_good(0) is None


def test_without_a_living_actor_a_search_that_waits_is_an_error_and_says_why():
    asked = servers([Actor("answer")], [Actor(DIED), Actor(DIED)])
    for _ in range(2):
        with pytest.raises(ResourceError, match=r"rows 10 to 19 .*/index has been replaced"):
            asked.ask("scan")
    assert "/index has been replaced" in str(asked.lost_for_good(1)) and asked.lost_for_good(0) is None


def test_without_a_living_actor_a_search_in_time_has_no_answer_at_once():
    begun = time.monotonic()
    assert servers([Actor("answer")], [Actor(DIED)]).ask("scan", timeout=30.0) == ["answer", None]
    assert time.monotonic() - begun < 5


def test_an_actor_that_ray_starts_again_is_called_again_after_pauses():
    actor = Actor(AWAY, AWAY, AWAY, "answer")
    begun = time.monotonic()
    assert servers([actor]).ask("scan") == ["answer"]
    assert len(actor.calls) == 4 and time.monotonic() - begun > 0.2
    away = Actor(AWAY)
    assert servers([away]).ask("scan", timeout=0.5) == [None]
    assert len(away.calls) < 20


def test_a_replica_that_was_lost_is_called_again_after_a_while(monkeypatch):
    monkeypatch.setattr("qinco.distributed.servers.LOST_S", 0.2)
    back, other = Actor(AWAY, "back"), Actor("answer")
    asked = servers([back, other])
    assert asked.ask("scan") == ["answer"] and asked.ask("scan") == ["answer"]
    time.sleep(0.25)
    assert asked.ask("scan") == ["back"] and len(back.calls) == 2


def test_calls_of_late_actors_are_cancelled_and_do_not_count_as_theirs():
    ray, late, other = FakeRay(), Actor("late", seconds=60.0), Actor("answer")
    asked = servers([late, other], ray=ray)
    assert asked.ask("scan", timeout=0.1) == [None] and len(ray.cancelled) == 1
    assert asked.ask("scan", timeout=0.1) == [None]  # it has no more to do than the other


def test_the_error_of_a_function_is_raised_and_other_calls_end():
    ray = FakeRay()
    with pytest.raises(DataError, match="damaged"):
        servers([Actor(RayTaskError(DataError("damaged")))], [Actor("late", seconds=60.0)], ray=ray).ask("scan")
    assert len(ray.cancelled) == 1


def test_an_actor_that_cannot_open_the_folder_is_named_at_the_start():
    ray = FakeRay({"CPU": 4.0}, made=[Actor("sizes", seconds=60.0), Actor(DIED)])
    ray.init()
    begun = time.monotonic()
    with pytest.raises(ResourceError, match="/index has been replaced"):
        Servers.start(ray, "/index", "token", [[0], [1]], [range(5), range(5, 9)], 1)
    assert len(ray.killed) == 2 and time.monotonic() - begun < 30


def test_replicas_are_on_machines_in_turn_with_all_their_cores_and_reserve_none():
    ray = FakeRay({"CPU": 4.0}, {"memory": 1.0}, {"CPU": 8.0}, made=[Actor("sizes") for _ in range(8)])
    ray.init()
    for threads in (None, 3):
        Servers.start(ray, "/index", "token", [[0], [1]], [range(5), range(5, 9)], 2, threads)
    nodes = [settings["scheduling_strategy"].node_id for settings, _ in ray.started]
    assert len(set(nodes)) == 2 and nodes == nodes[:2] * 4
    assert [given[:3] for _, given in ray.started] == [
        ("/index", numbers, threads or cores)
        for threads in (None, 3) for numbers in ([0], [1]) for cores in (4, 8)
    ]  # fmt: skip
    assert {settings["num_cpus"] for settings, _ in ray.started} == {0}


def test_places_are_what_nodes_have_room_for():
    ray = FakeRay({"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0}, {"memory": 1.0})
    assert sum(places_of(ray, 1)) == 12 and sum(places_of(ray, 4)) == 3 and sum(places_of(ray, 5)) == 1
    assert sum(places_of(ray, 1, 1)) == 1 and sum(places_of(ray, 1, 0.5)) == 2
    for given in ((16,), (1, 2), (8, 1)):
        with pytest.raises(ConfigError, match=f"threads={given[0]}"):
            places_of(ray, *given)
    with pytest.raises(ConfigError, match="no cores"):
        places_of(FakeRay({"memory": 1.0}), 1)


def test_a_connection_lasts_until_its_last_user_ends(monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    first, second = connected(), connected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert ray.is_initialized() and not ray.ended
    second.__exit__(None, None, None)
    assert not ray.is_initialized() and ray.ended == 1
    ray.init()  # by the caller
    with connected(), connected():
        pass
    assert ray.is_initialized() and ray.ended == 1


def test_workers_that_no_node_has_room_for_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", FakeRay({"CPU": 8.0}, {"CPU": 8.0}))
    for given in ({"threads": 16}, {"num_gpus": 1}):
        with pytest.raises(ConfigError, match="8 cores"):
            list(WorkerPool(**given)(abs, [1]))


def test_a_pool_says_once_that_it_waits_for_cores(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ray", FakeRay({"CPU": 8.0}, made=[Actor(7, seconds=1.0)]))
    monkeypatch.setattr("qinco.distributed.pool.WARNED_S", 0.1)
    with caplog.at_level(logging.WARNING, "qinco.distributed.pool"):
        assert list(WorkerPool()(abs, [-7])) == [(-7, 7, None)]
    assert len(caplog.records) == 1
    caplog.clear()
    monkeypatch.setitem(sys.modules, "ray", FakeRay({"CPU": 8.0}, made=[Actor(7)]))
    assert list(WorkerPool()(abs, [-7])) == [(-7, 7, None)] and not caplog.records
