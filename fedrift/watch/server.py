"""The page on a local port. It answers three addresses, reads no file that is asked for by name, and changes nothing.

A page of another origin could point a domain of its own at this machine and read along (DNS rebinding): so what is asked for
under a name that is not this machine's is refused. Addresses in digits cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import json
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from time import monotonic
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import UserError
from ..report.figures import OKABE_ITO
from ..report.page import bundle
from .scene import Scene
from .served import curves, state
from .watcher import Watcher

HOST, PORT = "127.0.0.1", 8770
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
                               "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin"}


class Desk:
    """One watcher for all who ask: looked at again only when the last look is ``every`` seconds old."""

    def __init__(self, watcher: Watcher, every: float) -> None:
        self.watcher, self.every = watcher, every
        self.lock, self.at = Lock(), -1e9
        self.scene: Scene | None = None

    def state(self) -> bytes:
        with self.lock:
            return json.dumps(state(self._look(), self.watcher.domains, self.every), allow_nan=False).encode()

    def curves(self, ids: list[str], domain: str) -> bytes:
        with self.lock:
            return json.dumps(curves(self.watcher, self._look(), ids, domain), allow_nan=False).encode()

    def _look(self) -> Scene:
        if self.scene is None or monotonic() - self.at >= self.every:
            self.scene, self.at = self.watcher.look(), monotonic()
        return self.scene


class Server(ThreadingHTTPServer):
    """``host`` is also the one name beside ``localhost`` that it may be asked under."""

    daemon_threads = True

    def __init__(self, watcher: Watcher, host: str = HOST, port: int = PORT, every: float = 2.0) -> None:
        self.desk, self.host = Desk(watcher, every), host
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise UserError(f"cannot listen at {host}:{port}: {error.strerror or error}; another port: --port {port + 1}, "
                            "any free one: --port 0") from None

    @property
    def address(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of what is in ``do_GET``; anything else is not there."""

    server: Server
    server_version, sys_version = "fedrift", ""

    def do_GET(self) -> None:
        if not known(self.headers.get("Host", ""), self.server.host):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"asked for under a name that is not this machine's\n")
            return
        asked = urlsplit(self.path)
        try:
            said = parse_qs(asked.query, max_num_fields=4)
        except ValueError:
            said = {}
        if asked.path == "/":
            self._answer(HTTPStatus.OK, "text/html", page())
        elif asked.path == "/state.json":
            self._answer(HTTPStatus.OK, "application/json", self.server.desk.state())
        elif asked.path == "/curves.json":
            ids = said.get("rows", [""])[0].split(",")
            self._answer(HTTPStatus.OK, "application/json", self.server.desk.curves(ids, said.get("domain", [""])[0]))
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"only / is here\n")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """The terminal is not filled with requests."""


def known(asked: str, host: str) -> bool:
    """Whether a Host header names this machine: localhost, digits, or the name that was chosen."""
    try:
        name = urlsplit(f"//{asked}").hostname or ""
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return bool(name) and name in ("localhost", host.lower())


@cache
def page() -> bytes:
    """The page, with all that it needs inside."""
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text() for name in ("page.css", "page.js"))
    templates = Environment(loader=PackageLoader("fedrift.watch", "."), autoescape=True, undefined=StrictUndefined)
    template = templates.get_template("page.html")
    return template.render(style=style, script=script, bundle=bundle(), colours=list(OKABE_ITO)).lstrip().encode()
