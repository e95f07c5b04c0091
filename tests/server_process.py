"""Servers in processes of their own, for tests that kill them, fill their disk, or keep them waiting.

python tests/server_process.py FOLDER SETTINGS serves a folder with settings, as JSON, of `ServerSettings`.
"""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1] / "src"
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


class ServerProcess:
    """A server that runs; its log is what it wrote until now."""

    def __init__(self, command: list[str], **options):
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "QINCO_NUM_THREADS": "1"}
        for name in ("QINCO_API_KEY", "QINCO_READ_ONLY_API_KEY"):
            environment.pop(name, None)
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                                        env=environment, **options)  # fmt: skip
        self.lines: list[str] = []
        self.port, self._is_up = 0, threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._is_up.wait(60) or not self.port:
            self.kill()
            raise AssertionError(f"the server did not start:\n{self.log}")

    @classmethod
    def of(cls, folder: Path, **settings) -> "ServerProcess":
        limits = {name: settings.pop(name) for name in ("preexec_fn",) if name in settings}
        return cls([sys.executable, __file__, str(folder), json.dumps({"port": 0} | settings)], **limits)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *error) -> None:
        self.kill()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if not self.port and (found := _ADDRESS.search(line)):
                self.port = int(found[1])
                self._is_up.set()
        self._is_up.set()

    def kill(self) -> None:
        self.process.kill()
        self._ended()

    def end(self, seconds: float = 60) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(seconds)
        return self._ended()

    def _ended(self) -> int:
        code = self.process.wait()
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def memory(self, name: str = "VmHWM") -> int:
        """Bytes of memory that are resident, or were at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) << 10  # type: ignore[index]

    def connect(self, seconds: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)

    def ask(self, method: str, path: str, body: Any = None, headers: dict | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer, on a connection of its own."""
        connection = self.connect()
        try:
            return ask(connection, method, path, body, headers)
        finally:
            connection.close()


def ask(connection, method: str, path: str, body: Any = None, headers: dict | None = None) -> tuple[int, Any]:
    """The status of an answer, and its JSON, or text if it is none."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection.request(method, path, body, {"Content-Type": "application/json"} | (headers or {}))
    response = connection.getresponse()
    text = response.read().decode()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


def main(folder: str, settings: str) -> None:
    import logging

    from qinco.server.catalog import Catalog
    from qinco.server.run import serve
    from qinco.server.settings import ServerSettings

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with Catalog.open(folder) as catalog:
        serve(catalog, ServerSettings(**json.loads(settings)))


if __name__ == "__main__":
    main(*sys.argv[1:])
