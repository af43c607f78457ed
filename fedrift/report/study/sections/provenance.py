"""What made these numbers: versions, machines, ids, seeds, and every run with how it ended."""

from __future__ import annotations

import math
from typing import Any

from .... import __version__
from ..document import Section, Table
from ..dossier import Dossier
from ..numbers import NONE, many, plain, signed


def section(dossier: Dossier) -> Section:
    text = [
        f"Made by fedrift {__version__} from {many(len(dossier.said['runs']), 'entry', 'entries')} of the study's book. `fedrift"
        f" export {dossier.book.name}` writes the one file from which this report is the same elsewhere; `fedrift study` with the"
        " study's file runs what is missing."
    ]
    failed = [(entry.run, dossier.book.failure(entry.run)) for entry in dossier.said["runs"]]
    stopped = {run: message for run, message in failed if message}
    if stopped:
        text.append(
            f"{many(len(stopped), 'run')} stopped: "
            + "; ".join(f"{run[:6]}: {message.splitlines()[0]}" for run, message in stopped.items())
            + "."
        )
    return Section("provenance", "Provenance", tuple(text), (machines(dossier), runs(dossier)))


def machines(dossier: Dossier) -> Table:
    found: dict[tuple[tuple[str, str], ...], int] = {}
    for place in dossier.places.values():
        found[tuple(flat(place).items())] = found.get(tuple(flat(place).items()), 0) + 1
    names = list(dict.fromkeys(name for place in found for name, _ in place))
    rows = tuple((name, *(dict(place).get(name, NONE) for place in found)) for name in names)
    return Table(
        "machines",
        "Versions and machines." + (" A column for each kind of machine that took part." if len(found) > 1 else ""),
        ("", *(many(count, "run") for count in found.values())),
        rows,
    )


def flat(place: dict[str, Any]) -> dict[str, str]:
    rest = {name: value for name, value in place.items() if name not in ("packages", "engine", "processor")}
    return {name: str(value) for name, value in {**rest, **place.get("packages", {})}.items()} | {
        f"{part}: {name}": str(value)
        for part in ("processor", "engine")
        for name, value in place.get(part, {}).items()
        if value != {}
    }


def runs(dossier: Dossier) -> Table:
    places = {run: arm.place for arm in dossier.arms for run in arm.runs.values()}
    frame = dossier.frame
    loss, gap = (dict(zip(frame["run"], frame[name], strict=True)) if name in frame else {} for name in ("loss", "gap"))
    broke = {row["run"]: row["diverged"] for row in dossier.frame[["run", "diverged"]].to_dict("records")}
    status = {row["run"]: row["status"] for row in dossier.frame[["run", "status"]].to_dict("records")}
    rows = {}
    for entry in dossier.said["runs"]:
        state = status.get(entry.run) or dossier.book.state(entry.run)
        how = "diverged" if broke.get(entry.run) else state
        name = f"{entry.stage}: {entry.arm}" if len(dossier.stages) > 1 or entry.role == "trial" else entry.arm
        settings = ", ".join(f"{path} {value}" for path, value in (entry.settings or {}).items())
        end = loss.get(entry.run, dossier.endings.get(entry.run, {}).get("loss"))
        rows[entry.role, entry.stage, entry.arm, entry.seed, entry.run] = (
            entry.run,
            entry.role,
            name,
            settings or NONE,
            str(entry.seed),
            how,
            plain(math.nan if end is None else float(end)),
            signed(gap.get(entry.run, math.nan)),
        )
    return Table(
        "runs",
        "Every run, its IID twins and the trials of tuning among them.",
        ("id", "role", "arm", "tuned", "seed", "ended", "end loss", "gap"),
        tuple(rows.values()),
        frozenset({4, 6, 7}),
        tuple(places.get(key[4], -1) if key[0] == "run" else -1 for key in rows),
        long=True,
    )
