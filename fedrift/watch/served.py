"""What the page asks for, as plain JSON: the state of everything, and the curves of the rows that are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

from ..report.rows import brief, ceiling
from .scene import WORDS, Row, Scene
from .watcher import Watcher

SHOWN = 6  # rows in the chart, one a colour that can be told apart


def state(scene: Scene, domains: Iterable[str], every: float, exact: bool = False) -> dict[str, Any]:
    """All but the curves. ``exact``: numbers with all their digits, and infinities among them."""
    number = keep_number if exact else shorten_number
    return {"title": scene.title, "question": scene.question, "note": scene.note, "over": scene.over, "done": scene.done,
            "total": scene.total, "left": None if math.isnan(scene.left) else scene.left, "counts": dict(scene.counts),
            "words": WORDS, "domains": list(domains), "seeds": scene.seeds, "every": every, "suggested": suggested(scene),
            "rows": [row_of(row, number) for row in scene.rows],
            "findings": [{**each, "strength": number(each["strength"])} for each in scene.findings]}


def row_of(row: Row, number: Callable[[float], float | None]) -> dict[str, Any]:
    return {"id": short(row), "arm": row.arm, "stage": row.stage, "role": row.role, "live": row.live,
            "loss": number(mean(run.loss for run in row.runs)), "gap": number(mean(run.gap for run in row.runs)),
            "runs": [{"run": run.run, "seed": run.seed, "state": run.state, "round": run.round, "rounds": run.rounds,
                      "loss": number(run.loss), "gap": number(run.gap), "why": run.why} for run in row.runs]}


def suggested(scene: Scene) -> list[str]:
    """Which rows to draw before anybody chose: those that go on, then those that have begun."""
    begun = [row for row in scene.rows if row.begun and row.role != "twin"]
    return [short(row) for row in sorted(begun, key=lambda row: not row.live)[:SHOWN]]


def curves(watcher: Watcher, scene: Scene, ids: Iterable[str], domain: str = "") -> dict[str, Any]:
    """Rows ``id, kind, run, round, value``: every seed's loss, the mean over those seeds, and the twins' mean.

    ``top``: what lies above it is left out, ``lost`` says of whom.
    """
    chosen = [row for row in scene.rows if short(row) in set(ids)]
    found: list[dict[str, Any]] = []
    for row in chosen:
        own = {f"seed {run.seed}": watcher.curve(run.run, domain) for run in row.runs}
        twins = {run.twin: watcher.curve(run.twin, domain) for run in row.runs if run.twin}
        for name, curve in own.items():
            found += points(short(row), row.arm, "seed", name, curve)
        found += points(short(row), row.arm, "mean", f"mean of {len(own)}", averaged(own.values()))
        found += points(short(row), row.arm, "twin", "IID twin", averaged(twins.values()))
    top = ceiling([{**point, "arm": point["kind"], "run": (point["id"], point["run"])} for point in found])
    lost = sorted({point["arm"] for point in found if point["value"] is None or (top and point["value"] > top)})
    inside = [point for point in found if point["value"] is not None and not (top and point["value"] > top)]
    return {"domain": domain, "points": inside, "lost": lost}


def points(id: str, arm: str, kind: str, run: str, curve: dict[int, float]) -> list[dict[str, Any]]:
    return [{"id": id, "arm": arm, "kind": kind, "run": run, "round": round, "value": brief(value)}
            for round, value in curve.items()]


def averaged(curves: Iterable[dict[int, float]]) -> dict[int, float]:
    """The mean in the rounds that all have that have begun."""
    begun = [curve for curve in curves if curve]
    shared = set.intersection(*(set(curve) for curve in begun)) if begun else set()
    return {round: sum(curve[round] for curve in begun) / len(begun) for round in sorted(shared)}


def mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def shorten_number(value: float) -> float | None:
    """Six digits; None where the number is not finite."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def keep_number(value: float) -> float | None:
    """The number as it is; None where it is NaN."""
    return None if math.isnan(value) else float(value)


def short(row: Row) -> str:
    """A row's name in an address."""
    return blake2b(row.key.encode(), digest_size=6).hexdigest()
