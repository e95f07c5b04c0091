"""A Hugging Face hub of one process, on loopback: what its client calls to make, fill and download repositories."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """`repositories` are files by path, by name; the other attributes say what was asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.messages: list[str] = []
        self.agents: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def commit_of(self, name: str) -> str:
        files = sorted(self.repositories[name].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self._resolve()

    def do_GET(self):
        self.server.agents.add(self.headers.get("user-agent", ""))
        path = unquote(urlsplit(self.path).path)
        if not path.startswith("/api/models/"):
            return self._resolve()
        name, kind, *_ = _split(path.removeprefix("/api/models/"))
        if name not in self.server.repositories:
            return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = self.server.repositories[name]
        if kind == "tree":
            return self._answer([{"type": "file", "path": file, "size": len(content), "oid": _sha(content)}
                                 for file, content in files.items()])  # fmt: skip
        siblings = [{"rfilename": file} for file in files]
        self._answer({"id": name, "sha": self.server.commit_of(name), "private": False, "siblings": siblings,
                      "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.server.repositories:
                return self._answer({"error": "there already", "url": f"{self.server.url}/{name}"}, 409)
            self.server.created.append(asked)
            self.server.repositories[name] = {".gitattributes": b""}
            return self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        name, kind, *_ = _split(path.removeprefix("/api/models/"))
        if kind == "preupload":
            files = json.loads(body)["files"]
            return self._answer({"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                                           for one in files]})  # fmt: skip
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                self.server.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.server.repositories[name][value["path"]]
        commit = self.server.commit_of(name)
        self._answer({"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"})

    def _resolve(self):
        name, _, file = unquote(urlsplit(self.path).path).strip("/").partition("/resolve/")
        content = self.server.repositories.get(name, {}).get(file.partition("/")[2])
        if content is None:
            return self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_sha(content)}"', "X-Repo-Commit": self.server.commit_of(name)}
        self._answer(content, 200, headers)

    def _answer(self, content, status: int = 200, headers: dict | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)),
                            **(headers or {})}.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _split(path: str) -> list[str]:
    """The name of a repository, and what is asked of it."""
    owner, name, *rest = path.split("/")
    return [f"{owner}/{name}", *(rest or [""])]


def _sha(content: bytes) -> str:
    """As git has it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
