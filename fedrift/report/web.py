"""What the page asks for, as plain JSON: the state of everything, and the curves of the rows that are chosen."""

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

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..core.errors import UserError
from .data import loss_ceiling, round_value
from .figures import OKABE_ITO
from .monitor import STATE_LABELS, Monitor, RunGroup, Snapshot
from .page import vega_script

MAX_ROWS_SHOWN = 6  # rows in the chart, one a colour that can be told apart


def snapshot_to_json(snapshot: Snapshot, domains: Iterable[str], interval: float, is_exact: bool = False) -> dict[str, Any]:
    """All but the curves. ``exact``: numbers with all their digits, and infinities among them."""
    number = nan_to_none if is_exact else round_number
    return {
        "title": snapshot.title,
        "question": snapshot.question,
        "note": snapshot.note,
        "over": snapshot.is_complete,
        "done": snapshot.rounds_done,
        "total": snapshot.rounds_total,
        "left": None if math.isnan(snapshot.seconds_left) else snapshot.seconds_left,
        "counts": dict(snapshot.counts),
        "words": STATE_LABELS,
        "domains": list(domains),
        "seeds": snapshot.seeds,
        "every": interval,
        "suggested": default_rows(snapshot),
        "rows": [row_to_json(row, number) for row in snapshot.rows],
        "findings": [{**each, "strength": number(each["strength"])} for each in snapshot.findings],
    }


def row_to_json(row: RunGroup, number: Callable[[float], float | None]) -> dict[str, Any]:
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
                "round": run.round,
                "rounds": run.rounds,
                "loss": number(run.loss),
                "gap": number(run.gap),
                "why": run.failure_reason,
            }
            for run in row.runs
        ],
    }


def default_rows(snapshot: Snapshot) -> list[str]:
    """Which rows to draw before anybody chose: those that go on, then those that have begun."""
    begun = [row for row in snapshot.rows if row.has_begun and row.role != "iid_baseline"]
    return [row_id(row) for row in sorted(begun, key=lambda row: not row.is_running)[:MAX_ROWS_SHOWN]]


def curves_to_json(monitor: Monitor, snapshot: Snapshot, ids: Iterable[str], domain: str = "") -> dict[str, Any]:
    """Rows ``id, kind, run, round, value``: every seed's loss, the mean over those seeds, and the twins' mean.

    ``top``: what lies above it is left out, ``lost`` says of whom.
    """
    chosen = [row for row in snapshot.rows if row_id(row) in set(ids)]
    found: list[dict[str, Any]] = []
    for row in chosen:
        own = {f"seed {run.seed}": monitor.curve(run.run, domain) for run in row.runs}
        twins = {run.baseline_run: monitor.curve(run.baseline_run, domain) for run in row.runs if run.baseline_run}
        for name, curve in own.items():
            found += curve_points(row_id(row), row.condition, "seed", name, curve)
        found += curve_points(row_id(row), row.condition, "mean", f"mean of {len(own)}", mean_curve(own.values()))
        found += curve_points(row_id(row), row.condition, "iid_baseline", "IID baseline", mean_curve(twins.values()))
    top = loss_ceiling([{**point, "which": point["kind"], "run": (point["id"], point["run"])} for point in found])
    lost = sorted({point["condition"] for point in found if point["value"] is None or (top and point["value"] > top)})
    inside = [point for point in found if point["value"] is not None and not (top and point["value"] > top)]
    return {"domain": domain, "points": inside, "lost": lost}


def curve_points(id: str, condition: str, kind: str, run: str, curve: dict[int, float]) -> list[dict[str, Any]]:
    return [
        {"id": id, "condition": condition, "kind": kind, "run": run, "round": round, "value": round_value(value)}
        for round, value in curve.items()
    ]


def mean_curve(curves: Iterable[dict[int, float]]) -> dict[int, float]:
    """The mean in the rounds that all have that have begun."""
    begun = [curve for curve in curves if curve]
    shared = set.intersection(*(set(curve) for curve in begun)) if begun else set()
    return {round: sum(curve[round] for curve in begun) / len(begun) for round in sorted(shared)}


def mean_known(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def round_number(value: float) -> float | None:
    """Six digits; None where the number is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def nan_to_none(value: float) -> float | None:
    """The number as it is; None where it is NaN."""
    return None if math.isnan(value) else float(value)


def row_id(row: RunGroup) -> str:
    """A row's name in an address."""
    return blake2b(row.key.encode(), digest_size=6).hexdigest()


# The page on a local port. It answers three addresses, reads no file that is asked for by name, and changes nothing.
#
# A page of another origin could point a domain of its own at this machine and read along (DNS rebinding): so what is asked for
# under a name that is not this machine's is refused. Addresses in digits cannot be rebound.

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
    """One watcher for all who ask: looked at again only when the last look is ``every`` seconds old."""

    def __init__(self, monitor: Monitor, interval: float) -> None:
        self.monitor, self.interval = monitor, interval
        self.lock, self.taken_at = Lock(), -1e9
        self.snapshot: Snapshot | None = None

    def state_json(self) -> bytes:
        with self.lock:
            return json.dumps(snapshot_to_json(self._refresh(), self.monitor.domains, self.interval), allow_nan=False).encode()

    def curves_json(self, ids: list[str], domain: str) -> bytes:
        with self.lock:
            return json.dumps(curves_to_json(self.monitor, self._refresh(), ids, domain), allow_nan=False).encode()

    def _refresh(self) -> Snapshot:
        if self.snapshot is None or monotonic() - self.taken_at >= self.interval:
            self.snapshot, self.taken_at = self.monitor.take_snapshot(), monotonic()
        return self.snapshot


class MonitorServer(ThreadingHTTPServer):
    """``host`` is also the one name beside ``localhost`` that it may be asked under."""

    daemon_threads = True

    def __init__(self, monitor: Monitor, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, interval: float = 2.0) -> None:
        self.cache, self.host = SnapshotCache(monitor, interval), host
        try:
            super().__init__((host, port), MonitorHandler)
        except OSError as error:
            raise UserError(
                f"cannot listen at {host}:{port}: {error.strerror or error}; another port: --port {port + 1}, any free one: --port 0"
            ) from None

    @property
    def address(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{self.server_address[1]}/"


class MonitorHandler(BaseHTTPRequestHandler):
    """GET and HEAD of what is in ``do_GET``; anything else is not there."""

    server: MonitorServer
    server_version, sys_version = "fedrift", ""

    def do_GET(self) -> None:
        if not is_local_host(self.headers.get("Host", ""), self.server.host):
            self._respond(HTTPStatus.FORBIDDEN, "text/plain", b"asked for under a name that is not this machine's\n")
            return
        asked = urlsplit(self.path)
        try:
            said = parse_qs(asked.query, max_num_fields=4)
        except ValueError:
            said = {}
        if asked.path == "/":
            self._respond(HTTPStatus.OK, "text/html", render_page())
        elif asked.path == "/state.json":
            self._respond(HTTPStatus.OK, "application/json", self.server.cache.state_json())
        elif asked.path == "/curves.json":
            ids = said.get("rows", [""])[0].split(",")
            self._respond(HTTPStatus.OK, "application/json", self.server.cache.curves_json(ids, said.get("domain", [""])[0]))
        else:
            self._respond(HTTPStatus.NOT_FOUND, "text/plain", b"only / is here\n")

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
        """The terminal is not filled with requests."""


def is_local_host(host_header: str, host: str) -> bool:
    """Whether a Host header names this machine: localhost, digits, or the name that was chosen."""
    try:
        name = urlsplit(f"//{host_header}").hostname or ""
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return bool(name) and name in ("localhost", host.lower())


@cache
def render_page() -> bytes:
    """The page, with all that it needs inside."""
    folder = Path(__file__).parent
    style, script = ((folder / name).read_text() for name in ("web.css", "web.js"))
    templates = Environment(loader=PackageLoader("fedrift.report", "."), autoescape=True, undefined=StrictUndefined)
    template = templates.get_template("web.html")
    return template.render(style=style, script=script, bundle=vega_script(), colours=list(OKABE_ITO)).lstrip().encode()
