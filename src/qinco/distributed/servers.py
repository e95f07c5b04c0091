"""Actors that hold the shards of an index, in groups of replicas, and calls that reach one of each group."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from qinco.distributed.shard import ShardServer
from qinco.errors import ResourceError

_HEARD_S = 0.2  # Ctrl-C
_INLINE_BYTES = 1 << 16  # larger arguments are stored once for all actors
_START_S = 120.0


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
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def start(
        cls, ray, folder: str, shards: list[list[int]], rows: list[range], num_replicas: int, threads: int
    ) -> "Servers":
        """Start the actors of a folder's shards, and wait until they have opened them."""
        make = ray.remote(ShardServer).options(num_cpus=threads, max_restarts=-1, scheduling_strategy="SPREAD")
        groups = [[make.remote(folder, numbers, threads) for _ in range(num_replicas)] for numbers in shards]
        servers = cls(ray, groups, rows)
        references = [actor.sizes.remote() for group in groups for actor in group]
        done, waiting = ray.wait(references, num_returns=len(references), timeout=_START_S)
        if waiting:
            servers.stop()
            cores = int(ray.cluster_resources().get("CPU", 0))
            raise ResourceError(f"{len(done)} of {len(references)} actors have started in {_START_S:.0f} s, each takes "
                                f"{threads} of the cluster's {cores} cores: give fewer actors or replicas")  # fmt: skip
        try:
            ray.get(done)
        except BaseException:
            servers.stop()
            raise
        return servers

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
        calls = [self._call(number, method, given) for number, given in enumerate(arguments)]
        answers: list = [None] * len(calls)
        waiting = dict(zip((reference for _, reference in calls), range(len(calls)), strict=True))
        actors = {reference: actor for actor, reference in calls}
        while waiting:
            left = _HEARD_S if end is None else min(_HEARD_S, end - time.monotonic())
            if left <= 0:
                break
            done, _ = self.ray.wait(list(waiting), num_returns=len(waiting), timeout=left)
            if not done:
                continue
            for reference in done:
                number, actor = waiting.pop(reference), actors.pop(reference)
                self._end(actor)
                try:
                    answers[number] = self.ray.get(reference)
                    self._lost.pop(actor, None)
                except self.ray.exceptions.RayTaskError as error:
                    raise error.cause if isinstance(error.cause, Exception) else error from None
                except self.ray.exceptions.RayError:
                    self._lost[actor] = time.monotonic()
                    actor, again = self._call(number, method, arguments[number])
                    waiting[again], actors[again] = number, actor
        for reference, actor in actors.items():
            self._end(actor)
            self.ray.cancel(reference)
        return answers

    def _shared(self, argument):
        return self.ray.put(argument) if getattr(argument, "nbytes", 0) > _INLINE_BYTES else argument

    def _call(self, number: int, method: str, arguments: Sequence) -> tuple[Any, Any]:
        with self._lock:
            actor = min(self.groups[number], key=lambda one: (self._lost.get(one, 0.0), self._busy[one]))
            self._busy[actor] += 1
        return actor, getattr(actor, method).remote(*arguments)

    def _end(self, actor) -> None:
        with self._lock:
            self._busy[actor] -= 1
