"""Servers of published files on this machine, which misbehave as told: one over HTTP(S), one over FTP."""

import re
import socket
import socketserver
import ssl
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Misbehaviour:
    """What goes wrong with one answer."""

    status: int | None = None  # is answered instead of a file
    headers: dict = field(default_factory=dict)  # replace those of the answer; None: left out
    send: int | None = None  # so many bytes of the body are sent
    stall: bool = False  # the connection then stays open, silent
    ignore_range: bool = False
    change: object = None  # is called before the request is looked at


@dataclass
class Server:
    address: str = ""  # without a slash at the end
    files: dict = field(default_factory=dict)  # path to content
    tags: dict = field(default_factory=dict)  # path to ETag, by default the checksum; None: no version is told
    plans: list = field(default_factory=list)  # one for each answer to come
    requests: list = field(default_factory=list)  # (path, headers) over HTTP, (command, argument) over FTP
    released: threading.Event = field(default_factory=threading.Event)

    def ranges(self) -> list:
        """The Range header of every request so far; None where there was none."""
        return [headers.get("Range") for _, headers in self.requests]


class _HttpHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        server: Server = self.server.published
        plan = server.plans.pop(0) if server.plans else Misbehaviour()
        if plan.change is not None:
            plan.change()
        server.requests.append((self.path, dict(self.headers)))
        content = server.files.get(self.path)
        status = plan.status or (200 if content is not None else 404)
        tag = server.tags.get(self.path, f'"{zlib.crc32(content or b"")}"')
        headers = {"Content-Length": "0"} if status != 200 else {"Content-Length": str(len(content)), "ETag": tag}
        body = content if status == 200 else b""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if status == 200 and wanted and not plan.ignore_range and self.headers.get("If-Range") in (None, tag):
            start = int(wanted[1])
            if start >= len(content):
                status, body, headers = 416, b"", {"Content-Range": f"bytes */{len(content)}"}
            else:
                status, body = 206, content[start:]
                headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
                headers |= {"Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in (headers | plan.headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: plan.send])
        self.wfile.flush()
        if plan.stall:
            server.released.wait(30)

    def log_message(self, *arguments):
        pass


@contextmanager
def http_server(certificate=None, key=None):
    """A `Server` over HTTP, or over HTTPS with the files of a certificate and its key."""
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _HttpHandler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        scheme = "https"
    listener.handle_error = lambda *arguments: None  # clients that leave early are no error
    with _serving(listener, scheme) as server:
        yield server


class _FtpHandler(socketserver.StreamRequestHandler):
    def handle(self):
        with suppress(ConnectionError):
            self._converse()

    def _converse(self):
        server: Server = self.server.published
        rest, data = 0, None
        self.answer("220 Serveur priv\xe9")
        for line in self.rfile:
            command, _, argument = line.decode().strip().partition(" ")
            server.requests.append((command, argument))
            content = server.files.get(argument)
            if command == "QUIT":
                break
            if command == "PASV":
                data = socket.create_server(("127.0.0.1", 0))
                high, low = divmod(data.getsockname()[1], 256)
                self.answer(f"227 Entering (127,0,0,1,{high},{low})")
            elif command == "REST":
                rest = int(argument)
                self.answer("350 ok")
            elif command in ("SIZE", "MDTM", "RETR") and (content is None or command in server.tags):
                if command == "RETR":
                    data.close()
                self.answer("550 no")
            elif command == "SIZE":
                self.answer(f"213 {len(content)}")
            elif command == "MDTM":
                self.answer(f"213 {20200101000000 + zlib.crc32(content) % 10**6}")
            elif command == "RETR":
                plan = server.plans.pop(0) if server.plans else Misbehaviour()
                self.answer("150 here it comes")
                with data, data.accept()[0] as connection, suppress(ConnectionError):
                    connection.sendall(content[rest:][: plan.send])
                rest = 0
                self.answer("226 done" if plan.send is None else "426 broken")
            else:
                self.answer({"USER": "331 who", "PASS": "230 in", "TYPE": "200 ok"}.get(command, "502 unknown"))

    def answer(self, line: str):
        self.wfile.write(f"{line}\r\n".encode("latin-1"))


class _ThreadingServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def ftp_server():
    """A `Server` over FTP. Commands that are keys of its `tags` (SIZE, MDTM) are unknown to it."""
    with _serving(_ThreadingServer(("127.0.0.1", 0), _FtpHandler), "ftp") as server:
        yield server


@contextmanager
def _serving(listener, scheme: str):
    server = Server(f"{scheme}://127.0.0.1:{listener.server_address[1]}")
    listener.published = server
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        listener.shutdown()
        thread.join()
        listener.server_close()
