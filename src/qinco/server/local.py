"""Servers without a key, for programs of their machine: what web pages send to them by a browser is refused.

A page may send requests to 127.0.0.1, and by DNS rebinding even read the answers as those of its own host.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from qinco.server.auth import OPEN, reads
from qinco.server.envelope import refusal
from qinco.server.settings import LOOPBACK


class LocalCheck:
    """ASGI middleware that lets requests pass that name this machine, and no changes that other pages ask for."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and (message := _fault(scope)) is not None:
            await refusal(403, message)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _fault(scope: Scope) -> str | None:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]
               if name in (b"host", b"origin", b"sec-fetch-site")}  # fmt: skip
    host = headers.get(b"host", "localhost")
    if _name(host) not in LOOPBACK:
        return (f"the server is for programs of its machine, and the request is for the host {host:.60}: call it "
                "127.0.0.1, or set a key")  # fmt: skip
    if reads(scope["method"], scope["path"]):
        return None
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    is_own = (
        site in ("same-origin", "none") if site is not None else origin in (None, f"http://{host}", f"https://{host}")
    )
    return None if is_own else "a page of another site asks for a change: set a key, and send it along"


def _name(host: str) -> str:
    """A host without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
