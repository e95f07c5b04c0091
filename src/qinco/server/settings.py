"""What a server is told at its start: where it listens, who may call, and how much of everything."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinco.atomic import user_path
from qinco.config import require_bool, require_int, require_number
from qinco.errors import ConfigError
from qinco.machine import usable_cores

PORT = 6333  # Qdrant's
KEY, READ_ONLY_KEY = "QINCO_API_KEY", "QINCO_READ_ONLY_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `qinco serve`.

    Attributes:
        host, port: where it listens; port 0 is any that is free. Other hosts than loopback need a key.
        api_key: who sends it may do everything; None: everybody may.
        read_only_api_key: who sends it may search and read.
        insecure: listen on other hosts without a key.
        read_only: refuse changes; another process may write meanwhile.
        readers: threads that search and read; each call uses as many cores as `qinco.set_num_threads` allows.
        max_body_bytes: of a request; only streams of `/v1/{collection}/points` may be longer, of which no batch may be.
        max_k, max_queries: results of a query, and queries of a request.
        max_payload_bytes: of a point, as JSON.
        timeout: seconds of a request, of which one that is in progress then is answered with 503.
        receive_timeout: seconds between two pieces of a request, after which its connection is closed.
        max_waiting: requests that wait for a thread; more are answered with 503.
        max_connections: more are closed at once.
        drain: seconds that requests have to end after SIGTERM.
        optimize: compress fresh vectors when there are many, without being asked.
        log_requests: log every request.
        qdrant_version: of which clients are told that this server speaks its protocol.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    api_key: str | None = field(default=None, repr=False)
    read_only_api_key: str | None = field(default=None, repr=False)
    insecure: bool = False
    read_only: bool = False
    readers: int = field(default_factory=lambda: max(4, 2 * usable_cores()))
    max_body_bytes: int = 32 << 20
    max_k: int = 10_000
    max_queries: int = 1024
    max_payload_bytes: int = 64 << 10
    timeout: float = 60.0
    receive_timeout: float = 20.0
    max_waiting: int = 256
    max_connections: int = 10_000
    drain: float = 30.0
    optimize: bool = True
    log_requests: bool = False
    qdrant_version: str = "1.20.0"

    def __post_init__(self):
        for name in ("insecure", "read_only", "optimize", "log_requests"):
            require_bool(name, getattr(self, name))
        require_int("port", self.port, 0, 65535)
        sizes = ("readers", "max_body_bytes", "max_k", "max_queries", "max_payload_bytes", "max_waiting",
                 "max_connections")  # fmt: skip
        for name in sizes:
            require_int(name, getattr(self, name))
        for name in ("timeout", "receive_timeout", "drain"):
            require_number(name, getattr(self, name), 0)
        for name in ("api_key", "read_only_api_key"):
            _check_key(name, getattr(self, name))
        if self.read_only_api_key is not None and self.api_key is None:
            raise ConfigError(f"a key for reading alone leaves writing to everybody: set {KEY}, too")
        if self.read_only_api_key is not None and self.read_only_api_key == self.api_key:
            raise ConfigError(f"{KEY} and {READ_ONLY_KEY} are the same: give two different keys")
        if not (self.is_local or self.has_keys or self.insecure):
            raise ConfigError(f"host={self.host} would let everybody on the network read and write: set {KEY} or "
                              "api_key_file=, or give insecure=true")  # fmt: skip

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        return self.host in LOOPBACK

    @property
    def has_keys(self) -> bool:
        return self.api_key is not None

    @classmethod
    def from_environment(cls, api_key_file: str | Path | None = None, **settings: Any) -> "ServerSettings":
        """Settings with the keys of a file, its first line and perhaps a second for reading alone, or of variables."""
        keys = [os.environ.get(name) or None for name in (KEY, READ_ONLY_KEY)]
        if api_key_file is not None:
            keys = _keys_of(Path(user_path(api_key_file)))
        return cls(api_key=keys[0], read_only_api_key=keys[1], **settings)


def _keys_of(path: Path) -> list[str | None]:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(
            f"cannot read api_key_file={path} ({reason}): give a text file whose first line is the key"
        ) from None
    keys = [line for line in lines if line]
    if not 1 <= len(keys) <= 2:
        raise ConfigError(f"api_key_file={path} must hold a key in its first line, and perhaps one for reading in "
                          f"its second, not {len(keys)} lines")  # fmt: skip
    return [*keys, None][:2]


def _check_key(name: str, key: str | None) -> None:
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"{name} must be ASCII letters, digits and signs without spaces, for it is sent in a header")
