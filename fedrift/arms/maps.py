"""Where clustering cannot help: regimes and severities, each with vanilla, clusters of like text and random ones; and what
smaller clusters cost where all clients are alike.

The clusters are forced (k is said), for where they would not be chosen their gain is zero by definition; whether they would have
been, and whether the descriptors can tell the clients apart at all, stands beside the gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..errors import UserError, unknown
from ..statistics import against
from ..study import Book, Study, parse_study
from ..study.outcomes import diverged
from .contest import Contest
from .numbers import first, numbers

REGIMES = {"topic": "TopicMix", "style": "Style", "token": "TokenTilt", "quantity": "Quantity"}
SEVERITIES = (0.0, 0.5, 1.0)
GAIN = "next"  # token skew is in the clients' own text alone: held-out text is drawn by domain


@dataclass(frozen=True)
class Map:
    """``contest`` has the base experiment, the encoder and the seeds."""

    contest: Contest
    regimes: tuple[str, ...] = tuple(REGIMES)
    severities: tuple[float, ...] = SEVERITIES

    def study(self) -> Study:
        """Two stages: ``map``, and ``starved``, random clusters of ever fewer clients on IID deals."""
        base, asked = self.contest.base, self.contest.asked
        clients, k = base.partition.clients, asked.clusters or min(4, base.partition.clients // 2)
        text = {"is": "ByText", "encoder": asked.encoder, "clusters": k}
        regimes: dict[str, dict[str, Any]] = {}
        for name in self.regimes:
            if name not in REGIMES:
                raise unknown("regime", name, REGIMES)
            regimes[name] = {"partition": {"is": REGIMES[name], "clients": clients}}
        arms: dict[str, dict[str, Any]] = {
            "vanilla": {}, "text": {"mitigation": text}, "random": {"mitigation": {"is": "AtRandom", "like": text}}}
        counts = [k for k in (2, 3, 5, 10, 20, 50) if k < clients] + [clients]
        starved: dict[str, Any] = {"1 cluster": {}}
        starved |= {f"{k} clusters": {"mitigation": {"is": "AtRandom", "sizes": sizes(clients, k)}} for k in counts}
        name = self.contest.study().name.replace("mitigate-", "mitigate-map-", 1)
        if not self.severities:
            raise UserError("no severity to go through")
        return parse_study({
            "name": name, "base": self.contest.said, "question": "Where does clustering clients by their text help?",
            "seeds": list(self.contest.seeds), "twins": False, "outcomes": ["final.loss", "loss"],
            "set": {"evaluate.panel": ["updates"], "evaluate.every": max(base.plan.rounds, 1), "partition.severity": 0.0},
            "stages": [
                {"name": "map", "factors": {"regime": regimes, "partition.severity": list(self.severities), "arm": arms},
                 "set": {"partition": {"is": "TopicMix", "clients": clients}}},
                {"name": "starved", "factors": {"arm": starved}}]})


def sizes(clients: int, k: int) -> list[int]:
    """k sizes as equal as can be."""
    return [clients // k + (place < clients % k) for place in range(k)]


def mapped(book: Book) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The map, one row a regime and severity, and the cost of starvation, one row a number of clusters.

    ``gain``: loss of text clusters less that of random ones of the same sizes, on the text that clients train on next; its
    t-interval and exact p. ``p``: of the permutation of documents, the median over seeds; ``identified``: how often a document
    is nearest to its own client's mean; ``counted``: how many clusters would have been chosen.
    """
    rows = []
    for entry in book.read()["runs"]:
        run = book.run(entry)
        if run.finished:
            told, level = first(run), entry.factors
            rows.append({"run": run.id, "stage": entry.stage, "arm": level["arm"], "regime": level.get("regime"), "twin": "",
                         "severity": level.get("partition.severity"), "seed": entry.seed, "iid": False,
                         "diverged": diverged(run.trajectory()), **numbers(run, run),
                         **{name: told.get(name) for name in ("p_value", "identified", "chance", "counted")}})
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame, frame
    return gains(frame[frame["stage"] == "map"]), starvation(frame[frame["stage"] == "starved"])


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    found = []
    for (regime, severity), cell in frame.groupby(["regime", "severity"], sort=False):
        row: dict[str, Any] = {"regime": regime, "severity": severity}
        for reference in ("random", "vanilla"):
            table = against(cell, GAIN, "arm", reference, ["arm"]).set_index("arm")
            if "text" in table.index:
                told = table.loc["text"]
                row |= {f"{reference}.{name}": told[name] for name in ("effect", "low", "high", "p", "attainable", "seeds")}
        own = against(cell, "own", "arm", "random", ["arm"]).set_index("arm")
        row["own"] = own.loc["text", "effect"] if "text" in own.index else float("nan")
        text = cell[cell["arm"] == "text"].astype({"p_value": float, "identified": float, "chance": float, "counted": float})
        row |= {"p": text["p_value"].median(), "identified": text["identified"].mean(), "chance": text["chance"].mean(),
                "counted": text["counted"].median()}
        found.append(row)
    return pd.DataFrame(found)


def starvation(frame: pd.DataFrame) -> pd.DataFrame:
    """What each number of random clusters loses against one, on IID deals."""
    if frame.empty:
        return frame
    table = against(frame, "own", "arm", "1 cluster", ["arm"])
    table["k"] = [int(str(arm).split(" ", 1)[0]) for arm in table["arm"]]
    return table.sort_values("k", ignore_index=True)[["k", "effect", "low", "high", "p", "attainable", "seeds"]]


__all__ = ["REGIMES", "SEVERITIES", "Map", "mapped", "sizes"]
