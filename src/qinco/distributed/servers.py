"""Actors that hold the shards of an index, in groups of replicas, and calls that reach one of each group."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from threading import Lock
from typing import Any

from qinco.distributed.cluster import cores_of
from qinco.distributed.shard import ShardServer
from qinco.errors import DataError, ResourceError

_HEARD_S = 0.2  # Ctrl-C
_INLINE_BYTES = 1 << 16  # larger arguments are stored once for all actors
_START_S = 120.0
LOST_S = 30.0  # so long after it was lost an actor is called only where no other is left
_PAUSE_S = 0.1  # before an actor that was lost is called again: Ray takes a while to start it


@dataclass(eq=False)
class Servers:
    """Groups of actors. Those of a group hold the same shards, and a call goes to the one with the least to do.

    Attributes:
        ray: the module, connected.
        groups: actors.
        rows: that each group's shards hold.
    """

    ray: Any
    groups: list[list]
    rows: list[range]
    _busy: Counter = field(default_factory=Counter)  # calls of each actor
    _lost: dict = field(default_factory=dict)  # actors that were lost, and when: Ray starts them again
    _dead: dict = field(default_factory=dict)  # actors that Ray does not start again, and why
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def start(
        cls, ray, folder: str, generation: str, shards: list[list[int]], rows: list[range], num_replicas: int,
        threads: int | None = None,
    ) -> "Servers":  # fmt: skip
        """Start the actors of a folder's shards, on each machine in turn, and wait until they have opened them.

        They reserve no cores: those of a new version start before the old ones end.

        Args:
            threads: of an actor; None: the cores of its machine.
        """
        make, nodes = ray.remote(ShardServer), cycle(cores_of(ray).items())
        on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy

        def start(numbers: list[int]):
            node, cores = next(nodes)
            placed = make.options(num_cpus=0, max_restarts=-1, scheduling_strategy=on(node, soft=True))
            return placed.remote(folder, numbers, threads or cores, generation)

        servers = cls(ray, [[start(numbers) for _ in range(num_replicas)] for numbers in shards], rows)
        try:
            servers._await(folder)
        except BaseException:
            servers.stop()
            raise
        return servers

    def _await(self, folder: str) -> None:
        """Return once all actors have opened their shards; ResourceError where one cannot."""
        waiting, end = [actor.sizes.remote() for group in self.groups for actor in group], time.monotonic() + _START_S
        count = len(waiting)
        while waiting and (left := end - time.monotonic()) > 0:
            done, waiting = self.ray.wait(waiting, num_returns=1, timeout=min(_HEARD_S, left))
            try:
                self.ray.get(done)
            except self.ray.exceptions.RayError as error:
                raise ResourceError(f"an actor could not open {folder}, which all machines must see at the same path: "
                                    f"{_reason(error)}") from error  # fmt: skip
        if waiting:
            raise ResourceError(f"{count - len(waiting)} of {count} actors have started in {_START_S:.0f} s: see what "
                                "`ray status` and the log of the cluster say")  # fmt: skip

    def stop(self) -> None:
        """End the actors."""
        if not self.ray.is_initialized():
            return
        for group in self.groups:
            for actor in group:
                self.ray.kill(actor)

    def ask(self, method: str, *arguments, timeout: float | None = None) -> list:
        """What one actor of each group answers to the same call; None where none does within `timeout` seconds."""
        shared = [self._shared(argument) for argument in arguments]
        return self.ask_each(method, [shared] * len(self.groups), timeout=timeout)

    def ask_each(self, method: str, arguments: Sequence[Sequence], timeout: float | None = None) -> list:
        """What one actor of each group answers to a call of its own; None where none does within `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        answers: list = [None] * len(arguments)
        due = dict.fromkeys(range(len(arguments)), 0.0)  # when a group is called
        waiting: dict[Any, tuple[int, Any]] = {}  # by reference: the number of a group, and the actor
        try:
            while waiting or due:
                self._call_due(due, waiting, method, arguments, must_answer=end is None)
                now = time.monotonic()
                left = min(now + _HEARD_S, end or math.inf, *due.values()) - now
                if end is not None and now >= end:
                    break
                if not waiting:
                    time.sleep(max(0.0, left))
                    continue
                for reference in self.ray.wait(list(waiting), num_returns=len(waiting), timeout=max(0.0, left))[0]:
                    number, actor = waiting.pop(reference)
                    self._end(actor)
                    if self._is_lost(reference, actor, number, answers):
                        due[number] = self._next_call(number)
        finally:
            for reference, (_, actor) in waiting.items():
                self._end(actor)
                self.ray.cancel(reference)
        return answers

    def _call_due(self, due: dict, waiting: dict, method: str, arguments: Sequence[Sequence], must_answer: bool):
        """Call an actor of each group that is due; of one without any there is no answer, which is an error if it must.

        An actor whose class cannot be made again, as where the folder holds another index, is not started any more.
        """
        for number in [number for number, at in due.items() if at <= time.monotonic()]:
            del due[number]
            if (actor := self._free_actor(number)) is not None:
                waiting[getattr(actor, method).remote(*arguments[number])] = number, actor
            elif must_answer:
                raise ResourceError(f"{self.lost_for_good(number)}: reload() starts new actors")

    def lost_for_good(self, number: int) -> str | None:
        """Why no actor of a group can answer any more; None where one may."""
        reasons = [self._dead.get(actor) for actor in self.groups[number]]
        if None in reasons:
            return None
        rows = self.rows[number]
        return f"no actor holds rows {rows.start} to {rows.stop - 1} of the index any more ({reasons[-1]})"

    def _is_lost(self, reference, actor, number: int, answers: list) -> bool:
        """Put the answer of a call in its place; whether there is none, since the actor was lost."""
        try:
            answers[number] = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except self.ray.exceptions.ActorDiedError as error:
            self._dead[actor] = _reason(error)
            return True
        except self.ray.exceptions.RayError:
            self._lost[actor] = time.monotonic()
            return True
        self._lost.pop(actor, None)
        return False

    def _next_call(self, number: int) -> float:
        """When a group is called again: after a pause where all its actors that may come back were just lost."""
        living = [actor for actor in self.groups[number] if actor not in self._dead]
        return time.monotonic() + _PAUSE_S if living and all(actor in self._lost for actor in living) else 0.0

    def _shared(self, argument):
        return self.ray.put(argument) if getattr(argument, "nbytes", 0) > _INLINE_BYTES else argument

    def _free_actor(self, number: int) -> Any:
        """The actor of a group with the least to do, for one more call; None where all are dead."""
        with self._lock:
            living = [actor for actor in self.groups[number] if actor not in self._dead]
            if not living:
                return None
            recently = {one: at for one, at in self._lost.items() if time.monotonic() - at < LOST_S}
            actor = min(living, key=lambda one: (recently.get(one, 0.0), self._busy[one]))
            self._busy[actor] += 1
        return actor

    def _end(self, actor) -> None:
        with self._lock:
            self._busy[actor] -= 1


def _reason(error: Exception) -> str:
    """The last line of what Ray says of an error: before it is a traceback."""
    last = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return last.strip().rstrip(".").removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")
