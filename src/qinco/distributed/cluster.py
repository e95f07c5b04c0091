"""Connecting to a cluster of Ray, or to one that is started on this machine."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from qinco.errors import ConfigError, ResourceError, needs_extra
from qinco.machine import num_threads

_STORE_BYTES = 256 << 20  # for objects that processes of this machine share: a codec, and results
_REACHED_S = 5.0


@contextmanager
def connected(cluster: str = "auto") -> Iterator[Any]:
    """The module ray, connected to a cluster until the block ends.

    Args:
        cluster: an address, as of `ray.init`; "auto": the one that this process is connected to, that RAY_ADDRESS names
            or that runs on this machine, or else a new one with as many cores as `num_threads`.
    """
    ray = import_ray()
    if ray.is_initialized():  # by the caller, whose connection stays
        yield ray
        return
    _connect(ray, cluster)
    try:
        yield ray
    finally:
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


def cores_of(ray) -> list[int]:
    """The cores of each node that is alive; ConfigError where a cluster has none."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if not any(cores):
        raise ConfigError("the cluster has no cores: start its nodes with --num-cpus")
    return [count for count in cores if count]
