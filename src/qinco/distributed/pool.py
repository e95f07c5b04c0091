"""A pool of actors that map a function over numbers.

Ray places the actors, starts them again when their process or machine is lost, and repeats what they were at.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from qinco.config import require_int
from qinco.distributed.cluster import connected, cores_of, import_ray, places_of
from qinco.errors import ResourceError

log = logging.getLogger(__name__)
WARNED_S = 30.0  # without any actor that has been placed
_MOST_THREADS = 8  # of an actor; more of them share a function's serial part
_IN_FLIGHT = 2  # calls of an actor: one runs, one waits
_RETRIES = 3  # of a call whose actor was lost, by Ray and then by another actor
_HEARD_S = 0.2  # Ctrl-C
_LEAST_LATE_S, _LATE = 5.0, 3.0  # a call is late after so many times the mean of the others


class WorkerPool:
    """Maps functions over numbers by actors of a cluster; an `executor` of `qinco.encode_file`.

    A function and what it refers to are sent once to each actor. It may be called again for a number, also at the same
    time, where an actor is lost or late, so its effect must be that of one call.

    Args:
        cluster: see `qinco.distributed.encode`.
        workers: actors; if None as many as the cluster has cores for, and at most one for each number.
        threads: cores of each; if None those of the smallest node, 8 at most.
        num_gpus: GPUs of each.

    Example:
        >>> pool = WorkerPool(workers=2)
        >>> for number, result, error in pool(function, [3, 1, 4]): ...
    """

    def __init__(
        self, cluster: str = "auto", workers: int | None = None, threads: int | None = None, num_gpus: float = 0
    ):
        import_ray()  # before any work
        for name, count in (("workers", workers), ("threads", threads)):
            if count is not None:
                require_int(name, count)
        self._cluster, self._workers, self._threads, self._num_gpus = cluster, workers, threads, num_gpus

    def __call__(
        self, function: Callable[[int], Any], numbers: list[int]
    ) -> Iterator[tuple[int, Any, Exception | None]]:
        """Yield (number, result, None) or (number, None, error) of each number, as they come."""
        if not numbers:
            return
        with connected(self._cluster) as ray:
            cores = list(cores_of(ray).values())
            threads = self._threads or min(_MOST_THREADS, *cores, max(1, sum(cores) // (self._workers or 1)))
            places = places_of(ray, threads, self._num_gpus)
            count = self._workers or sum(places)
            make = ray.remote(_Worker).options(
                num_cpus=threads, num_gpus=self._num_gpus, max_restarts=-1, max_task_retries=_RETRIES
            )
            actors = [make.remote(threads) for _ in range(min(count, len(numbers)))]
            try:
                yield from _Calls(ray, actors, function, numbers).results()
            finally:
                for actor in actors:
                    ray.kill(actor)


class _Worker:
    """An actor: what a function makes of numbers."""

    def __init__(self, threads: int):
        from qinco.machine import set_num_threads

        set_num_threads(threads)
        self._function: Callable[[int], Any] | None = None

    def ready(self) -> None:
        """Returns when the actor has been placed and started."""

    def call(self, shared: list, number: int) -> Any:
        """The function is what the one reference in `shared` refers to: an actor that was started again has none."""
        import ray

        function = self._function = self._function or ray.get(shared[0])
        return function(number)


class _Calls:
    """The calls of one map: which are waiting, and which are running where."""

    def __init__(self, ray, actors: list, function: Callable[[int], Any], numbers: list[int]):
        self._ray, self._shared = ray, [ray.put(function)]
        self._waiting, self._left = deque(numbers), set(numbers)
        self._running: dict[Any, tuple[Any, int, float]] = {}  # by reference: actor, number and begin
        self._starting = {actor.ready.remote(): actor for actor in actors}
        self._free: dict[Any, int] = {}  # how many calls each could take
        self._lost: Counter[int] = Counter()  # how often the actor was lost that had a number
        self._seconds, self._ended = 0.0, 0
        self._placed, self._is_warned = time.monotonic(), False

    def results(self) -> Iterator[tuple[int, Any, Exception | None]]:
        """What `WorkerPool` yields."""
        while self._left:
            self._submit()
            found, _ = self._ray.wait([*self._running, *self._starting], num_returns=1, timeout=_HEARD_S)
            self._warn_of_wait()
            for reference in found:
                result, error, is_lost = self._outcome(reference)
                if reference in self._starting:
                    self._begin(self._starting.pop(reference), error)
                    continue
                actor, number, begun = self._running.pop(reference)
                if actor in self._free:
                    self._free[actor] += 1
                if is_lost and self._free.pop(actor, None) is not None:  # Ray starts it again, if there is room
                    self._starting[actor.ready.remote()] = actor
                if number not in self._left:  # it was late, and another actor has ended it
                    continue
                self._lost[number] += is_lost
                if is_lost and self._lost[number] <= _RETRIES:
                    self._waiting.append(number)
                    continue
                self._left.remove(number)
                if error is None:
                    self._seconds, self._ended = self._seconds + time.monotonic() - begun, self._ended + 1
                yield number, result, error

    def _warn_of_wait(self) -> None:
        """Say once what no work is done for: others hold the cores or GPUs."""
        if self._free:
            self._placed = time.monotonic()
        elif not self._is_warned and time.monotonic() - self._placed > WARNED_S:
            self._is_warned = True
            log.warning("no worker has had a place on the cluster for %.0f s, since others use its cores or GPUs: it "
                        "waits until these are free", WARNED_S)  # fmt: skip

    def _begin(self, actor, error: Exception | None) -> None:
        if error is None:
            self._free[actor] = _IN_FLIGHT
        elif not self._starting and not self._free:
            raise ResourceError(f"the cluster has lost all workers; what is done is kept: {error}") from error

    def _outcome(self, reference) -> tuple[Any, Exception | None, bool]:
        """Result, error, and whether it is that of an actor which was lost."""
        try:
            return self._ray.get(reference), None, False
        except self._ray.exceptions.RayTaskError as error:
            return None, error.cause if isinstance(error.cause, Exception) else error, False
        except self._ray.exceptions.RayError as error:
            return None, error, True

    def _submit(self) -> None:
        """Give actors that are free the numbers that wait, or such as others are late with."""
        for actor in sorted(self._free, key=self._free.__getitem__, reverse=True):
            while self._free[actor]:
                number = self._next(actor)
                if number is None:
                    break
                self._free[actor] -= 1
                self._running[actor.call.remote(self._shared, number)] = actor, number, time.monotonic()

    def _next(self, actor) -> int | None:
        if self._waiting:
            return self._waiting.popleft()
        if self._free[actor] < _IN_FLIGHT or not self._ended:  # it is busy itself
            return None
        limit = time.monotonic() - max(_LEAST_LATE_S, _LATE * self._seconds / self._ended)
        calls = Counter(number for _, number, _ in self._running.values())
        late = (number for _, number, begun in self._running.values() if begun < limit and calls[number] == 1)
        return next((number for number in late if number in self._left), None)
