"""The web monitor: a local HTTP server with one page, the state of all runs as JSON, and the curves of the selected groups as JSON.

The server answers three addresses, reads no file that a request names, and changes nothing. It refuses requests whose Host header is
not a name of this machine. Otherwise a page of another origin could read the data through DNS rebinding. Numeric addresses are accepted
because they cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..core.errors import UserError
from .data import loss_ceiling, round_value
from .figures import OKABE_ITO
from .monitor import STATE_LABELS, Monitor, RunGroup, Snapshot, mean_curve, mean_known
from .page import template_environment, vega_script

MAX_ROWS_SHOWN = 6  # groups in the chart; there are six distinct colors


def snapshot_to_json(snapshot: Snapshot, domains: Iterable[str], interval: float, is_exact: bool = False) -> dict[str, Any]:
    """Return a snapshot without its curves as JSON values.

    Args:
        snapshot: The snapshot.
        domains: Names of the domains with a recorded loss.
        interval: Seconds between two requests of the page.
        is_exact: Whether numbers retain all digits, and infinities are retained too. Otherwise they are rounded to six digits.
    """
    number = float if is_exact else round_value
    return {
        "title": snapshot.title,
        "question": snapshot.question,
        "note": snapshot.note,
        "is_complete": snapshot.is_complete,
        "rounds_done": snapshot.rounds_done,
        "rounds_total": snapshot.rounds_total,
        "seconds_left": None if math.isnan(snapshot.seconds_left) else snapshot.seconds_left,
        "counts": dict(snapshot.counts),
        "state_labels": STATE_LABELS,
        "domains": list(domains),
        "seeds": snapshot.seeds,
        "interval": interval,
        "suggested": default_rows(snapshot),
        "groups": [row_to_json(row, number) for row in snapshot.groups],
        "findings": [{**each, "strength": number(each["strength"])} for each in snapshot.findings],
    }


def row_to_json(row: RunGroup, number: Callable[[float], float | None]) -> dict[str, Any]:
    """Return a group of runs as JSON values. ``number`` converts its losses and gaps."""
    return {
        "id": row_id(row),
        "condition": row.condition,
        "stage": row.stage,
        "role": row.role,
        "live": row.is_running,
        "loss": number(mean_known(run.loss for run in row.runs)),
        "gap": number(mean_known(run.gap for run in row.runs)),
        "runs": [
            {
                "run": run.run,
                "seed": run.seed,
                "state": run.state,
                "rounds_done": run.rounds_done,
                "rounds_total": run.rounds_total,
                "loss": number(run.loss),
                "gap": number(run.gap),
                "failure_reason": run.failure_reason,
            }
            for run in row.runs
        ],
    }


def default_rows(snapshot: Snapshot) -> list[str]:
    """Return the ids of the groups to draw before the user selects any: running groups first, then other started ones."""
    started = [row for row in snapshot.groups if row.has_started and row.role != "iid_baseline"]
    return [row_id(row) for row in sorted(started, key=lambda row: not row.is_running)[:MAX_ROWS_SHOWN]]


def curves_to_json(monitor: Monitor, snapshot: Snapshot, ids: Iterable[str], domain: str = "") -> dict[str, Any]:
    """Return the curves of the selected groups.

    Args:
        monitor: The monitor.
        snapshot: Its latest snapshot.
        ids: Ids of the groups.
        domain: Domain of the held-out text; ``""`` means all domains.

    Returns:
        ``points`` holds the loss of every seed, the mean over these seeds, and the mean of the IID baselines. Values that are not finite or
        that exceed the loss ceiling are left out, and ``incomplete`` names their conditions.
    """
    selected = [row for row in snapshot.groups if row_id(row) in set(ids)]
    points: list[dict[str, Any]] = []
    for row in selected:
        seed_curves = {f"seed {run.seed}": monitor.curve(run.run, domain) for run in row.runs}
        baseline_curves = {run.baseline_run: monitor.curve(run.baseline_run, domain) for run in row.runs if run.baseline_run}
        for name, curve in seed_curves.items():
            points += curve_points(row_id(row), row.condition, "seed", name, curve)
        points += curve_points(row_id(row), row.condition, "mean", f"mean of {len(seed_curves)}", mean_curve(seed_curves.values()))
        points += curve_points(row_id(row), row.condition, "iid_baseline", "IID baseline", mean_curve(baseline_curves.values()))
    ceiling = loss_ceiling([{**point, "which": point["kind"], "run": (point["id"], point["run"])} for point in points])
    incomplete = sorted({point["condition"] for point in points if point["value"] is None or (ceiling and point["value"] > ceiling)})
    shown = [point for point in points if point["value"] is not None and not (ceiling and point["value"] > ceiling)]
    return {"domain": domain, "points": shown, "incomplete": incomplete}


def curve_points(id: str, condition: str, kind: str, run: str, curve: dict[int, float]) -> list[dict[str, Any]]:
    """Return the points of one curve."""
    return [
        {"id": id, "condition": condition, "kind": kind, "run": run, "round": round, "value": round_value(value)}
        for round, value in curve.items()
    ]


def row_id(row: RunGroup) -> str:
    """Return a short id of a group that is safe in a URL."""
    return blake2b(row.key.encode(), digest_size=6).hexdigest()


DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8770
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SnapshotCache:
    """Share one monitor between all requests. A new snapshot is taken only if the last one is older than ``interval`` seconds."""

    def __init__(self, monitor: Monitor, interval: float) -> None:
        self.monitor, self.interval = monitor, interval
        self.lock, self.taken_at = Lock(), -1e9
        self.snapshot: Snapshot | None = None

    def state_json(self) -> bytes:
        """Return the current state as encoded JSON."""
        with self.lock:
            return json.dumps(snapshot_to_json(self._refresh(), self.monitor.domains, self.interval), allow_nan=False).encode()

    def curves_json(self, ids: list[str], domain: str) -> bytes:
        """Return the curves of the selected groups as encoded JSON."""
        with self.lock:
            return json.dumps(curves_to_json(self.monitor, self._refresh(), ids, domain), allow_nan=False).encode()

    def _refresh(self) -> Snapshot:
        if self.snapshot is None or monotonic() - self.taken_at >= self.interval:
            self.snapshot, self.taken_at = self.monitor.take_snapshot(), monotonic()
        return self.snapshot


class MonitorServer(ThreadingHTTPServer):
    """Serve the web monitor.

    Args:
        monitor: The monitor.
        host: Address to listen at. Requests may also use it as their Host header.
        port: Port to listen at; 0 chooses a free one.
        interval: Minimum seconds between two snapshots.

    Raises:
        UserError: The port is in use or may not be used.
    """

    daemon_threads = True

    def __init__(self, monitor: Monitor, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, interval: float = 2.0) -> None:
        self.cache, self.host = SnapshotCache(monitor, interval), host
        try:
            super().__init__((host, port), MonitorHandler)
        except OSError as error:
            raise UserError(
                f"cannot listen at {host}:{port}: {error.strerror or error}; "
                f"choose another port with --port {port + 1}, or any free one with --port 0"
            ) from None

    @property
    def address(self) -> str:
        """Return the URL of the page."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"


class MonitorHandler(BaseHTTPRequestHandler):
    """Answer GET and HEAD requests for the three addresses; other paths do not exist."""

    server: MonitorServer
    server_version, sys_version = "fedrift", ""

    def do_GET(self) -> None:
        """Answer a request."""
        if not is_local_host(self.headers.get("Host", ""), self.server.host):
            self._respond(HTTPStatus.FORBIDDEN, "text/plain", b"the Host header does not name this machine\n")
            return
        url = urlsplit(self.path)
        try:
            query = parse_qs(url.query, max_num_fields=4)
        except ValueError:
            query = {}
        if url.path == "/":
            self._respond(HTTPStatus.OK, "text/html", render_page())
        elif url.path == "/state.json":
            self._respond(HTTPStatus.OK, "application/json", self.server.cache.state_json())
        elif url.path == "/curves.json":
            ids = query.get("groups", [""])[0].split(",")
            self._respond(HTTPStatus.OK, "application/json", self.server.cache.curves_json(ids, query.get("domain", [""])[0]))
        else:
            self._respond(HTTPStatus.NOT_FOUND, "text/plain", b"this address does not exist; the page is at /\n")

    do_HEAD = do_GET

    def _respond(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in SECURITY_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Discard the request log, which would fill the terminal."""


def is_local_host(host_header: str, host: str) -> bool:
    """Return whether a Host header names this machine: localhost, a numeric address, or the configured host."""
    try:
        name = urlsplit(f"//{host_header}").hostname or ""
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return bool(name) and name in ("localhost", host.lower())


@cache
def render_page() -> bytes:
    """Return the self-contained page."""
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text() for name in ("web.css", "web.js"))
    template = template_environment().get_template("web.html")
    return template.render(style=style, script=script, bundle=vega_script(), colors=list(OKABE_ITO)).lstrip().encode()
