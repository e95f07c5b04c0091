"""A stand-in for Ray of a cluster that exists in the memory of a test alone."""

import time
from dataclasses import dataclass
from types import SimpleNamespace


class RayError(Exception): ...


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class ActorDiedError(RayError): ...


class Reference:
    """Of a call: an answer or an error, which comes at a time."""

    def __init__(self, answer, at: float = 0.0):
        self.answer, self.at = answer, at


class Actor:
    """Answers each call of a method by what `answers` gives in turn, the last one again and again."""

    def __init__(self, *answers, seconds: float = 0.0):
        self.answers, self.calls, self._seconds = list(answers), [], seconds

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *given: self._called(method, given))

    def _called(self, method, given):
        self.calls.append((method, given))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return Reference(answer, time.monotonic() + self._seconds)


@dataclass
class Placed:
    """The strategy of Ray that has the same arguments."""

    node_id: str
    soft: bool


class FakeRay:
    """The functions of the module that are used; `nodes` are the resources of each."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, ActorDiedError=ActorDiedError)
    util = SimpleNamespace(scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=Placed))

    def __init__(self, *nodes: dict, made=()):
        self._nodes, self._is_initialized, self.ended = nodes, False, 0
        self._made, self.started, self.killed, self.cancelled = list(made), [], [], []

    def init(self, **settings):
        assert not self._is_initialized
        self._is_initialized = True

    def is_initialized(self):
        return self._is_initialized

    def shutdown(self):
        self._is_initialized, self.ended = False, self.ended + 1

    def nodes(self):
        return [
            {"NodeID": f"{n:056x}", "Alive": True, "Resources": resources} for n, resources in enumerate(self._nodes)
        ]

    def put(self, value):
        return value

    def wait(self, references, num_returns=1, timeout=None):
        end = time.monotonic() + (1e9 if timeout is None else timeout)
        while True:
            now = time.monotonic()
            done = [reference for reference in references if reference.at <= now]
            if len(done) >= num_returns or now >= end:
                return done, [reference for reference in references if reference not in done]
            time.sleep(0.001)

    def get(self, reference):
        if isinstance(reference, list):
            return [self.get(one) for one in reference]
        if isinstance(reference.answer, Exception):
            raise reference.answer
        return reference.answer

    def cancel(self, reference):
        self.cancelled.append(reference)

    def kill(self, actor):
        self.killed.append(actor)

    def remote(self, kind):
        def options(**settings):
            def make(*given):
                self.started.append((settings, given))
                return self._made.pop(0)

            return SimpleNamespace(remote=make)

        return SimpleNamespace(options=options)
