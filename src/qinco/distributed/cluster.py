"""Connecting to a cluster of Ray, or to one that is started on this machine."""

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import RLock
from typing import Any
from urllib.parse import urlsplit

from qinco.errors import ConfigError, ResourceError, needs_extra
from qinco.machine import num_threads
from qinco.progress import counted

_STORE_BYTES = 256 << 20  # for objects that processes of this machine share: a codec, and results
_REACHED_S = 5.0


@dataclass(eq=False)
class _Shared:
    """The connection that was made here, if any: how many use it. A generator may end while another one connects."""

    lock: RLock = field(default_factory=RLock)
    users: int = 0


_shared = _Shared()


@contextmanager
def connected(cluster: str = "auto") -> Iterator[Any]:
    """The module ray, connected to a cluster until the block ends.

    Blocks share a connection that was made here, and the last one ends it.

    Args:
        cluster: an address, as of `ray.init`; "auto": the one that this process is connected to, that RAY_ADDRESS names
            or that runs on this machine, or else a new one with as many cores as `num_threads`.
    """
    ray = import_ray()
    with _shared.lock:
        is_own = _shared.users > 0 or not ray.is_initialized()  # else it is the caller's, which stays
        if not ray.is_initialized():
            _connect(ray, cluster)
        _shared.users += is_own
    try:
        yield ray
    finally:
        with _shared.lock:
            _shared.users -= is_own
            if is_own and not _shared.users:
                ray.shutdown()


def import_ray() -> Any:
    """The module; ConfigError where it is not installed."""
    with needs_extra("a cluster", "ray", "ray"):
        import ray
    return ray


def _connect(ray, cluster: str) -> None:
    quiet = {"configure_logging": False, "log_to_driver": False}
    if cluster == "auto":
        with suppress(ConnectionError):
            ray.init(address="auto", **quiet)
            return
        ray.init(
            address="local", num_cpus=num_threads(), include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet
        )
        return
    try:
        _reach(cluster)  # Ray itself tries for minutes
        ray.init(address=cluster, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ResourceError(f"no cluster of Ray answers at {cluster}: {reason}. Start one with `ray start --head`, or "
                            "give cluster=auto") from error  # fmt: skip


def _reach(cluster: str) -> None:
    """Raise OSError where nothing listens at an address that names host and port."""
    address = urlsplit(cluster if "://" in cluster else f"//{cluster}")
    if address.hostname and address.port:
        socket.create_connection((address.hostname, address.port), _REACHED_S).close()


def cores_of(ray) -> dict[str, int]:
    """The cores of each node that is alive, by its id; ConfigError where a cluster has none."""
    return {node: int(resources["CPU"]) for node, resources in _nodes(ray).items()}


def places_of(ray, threads: int, num_gpus: float = 0) -> list[int]:
    """How many actors of so many cores and GPUs each node has room for; ConfigError where none has, nor ever will."""
    nodes = list(_nodes(ray).values())
    places = [
        int(min(node["CPU"] // threads, node.get("GPU", 0) // num_gpus if num_gpus else math.inf)) for node in nodes
    ]
    if not any(places):
        largest = max(nodes, key=lambda node: (node.get("GPU", 0) >= num_gpus, node["CPU"]))
        cores, gpus = int(largest["CPU"]), largest.get("GPU", 0)
        asked = f"threads={threads}" + (f", num_gpus={num_gpus:g}" if num_gpus else "")
        raise ConfigError(f"{asked}: no node of the cluster has as much, the largest has {counted(cores, 'core')} and "
                          f"{gpus:g} GPUs: give no more than it has")  # fmt: skip
    return places


def _nodes(ray) -> dict[str, dict]:
    """What each node has that is alive and has cores, by its id; ConfigError where none has."""
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    nodes = {node: resources for node, resources in nodes.items() if resources.get("CPU", 0) >= 1}
    if not nodes:
        raise ConfigError("the cluster has no cores: start its nodes with --num-cpus")
    return nodes
