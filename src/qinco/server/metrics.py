"""What Prometheus reads at `/metrics`."""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from qinco.errors import QincoError
from qinco.server.catalog import Catalog
from qinco.server.totals import parts_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_OPTIMIZE_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


class Metrics:
    """Counters of a server, in a registry of their own.

    Attributes:
        requests: by route, method and code.
        seconds: of requests, by route.
        batch_size: queries that one search answers.
        optimize_seconds: of each optimization.
    """

    def __init__(self, catalog: Catalog):
        self._registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("qinco_requests", "Requests.", ("route", "method", "code"), **named)
        self.seconds = Histogram("qinco_request_seconds", "Seconds of requests.", ("route",), buckets=_SECONDS, **named)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch_size = Histogram(
            "qinco_search_batch_size", "Queries that are answered together.", buckets=sizes, **named
        )
        self.optimize_seconds = Histogram(
            "qinco_optimize_seconds", "Seconds of optimizations.", buckets=_OPTIMIZE_SECONDS, **named
        )
        self._registry.register(_Collections(catalog))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self) -> bytes:
        """All of them, in the format of Prometheus; it reads the collections."""
        return generate_latest(self._registry)


class _Collections(Collector):
    """Numbers of the collections, as of now."""

    def __init__(self, catalog: Catalog):
        self._catalog = catalog

    def describe(self) -> Iterable:
        return ()  # or the registry would collect them when it begins

    def collect(self) -> Iterable:
        points = GaugeMetricFamily("qinco_points", "Vectors.", labels=("collection", "state"))
        sizes = GaugeMetricFamily("qinco_bytes", "Bytes on disk.", labels=("collection", "kind"))
        errors = GaugeMetricFamily(
            "qinco_quantization_error", "Mean relative squared error of the newest codes.", labels=("collection",)
        )
        for name in self._catalog.names():
            try:
                stats = self._catalog.get(name).stats()
            except QincoError:  # it was dropped just now, or is damaged
                continue
            for state, number in (("fresh", "fresh"), ("compressed", "compressed"), ("dead", "deleted")):
                points.add_metric((name, state), sum(part[number] for part in parts_of(stats)))
            for kind, size in sizes_of(stats).items():
                sizes.add_metric((name, kind), size)
            found = [
                one["error"] for part in parts_of(stats) for one in part["segments"][-1:] if one["error"] is not None
            ]
            if found:
                errors.add_metric((name,), max(found))
        return points, sizes, errors


def sizes_of(stats: dict) -> dict[str, int]:
    """Bytes of a collection's codes, of its codec and tables, of exact vectors, and of payloads with all else."""
    found = stats["bytes"]
    fresh = min(found["database"], sum(4 * (part["dim"] or 0) * part["fresh"] for part in parts_of(stats)))
    return {
        "codes": found["codes"], "model": found["codec"] + found["tables"], "fresh": fresh,
        "payload": found["database"] - fresh,
    }  # fmt: skip
