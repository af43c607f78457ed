"""All arms of one experiment over paired seeds, as a study: resumable, one run once, on any executor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import overridden
from ..errors import UserError, unknown
from ..experiment import Experiment, parse
from ..stock import Stock
from ..study import Study, parse_study
from ..study.study import NAMES
from .arms import ALWAYS, ARMS, DEFAULT, Asked, levels

PANEL = ["updates", "fairness", "cost", "general", "syntax"]


@dataclass(frozen=True)
class Contest:
    """``said``: the base experiment as plain YAML, without a mitigation of its own."""

    said: dict[str, Any]
    asked: Asked
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def base(self) -> Experiment:
        return parse(self.said)

    def study(self, name: str = "") -> Study:
        """The study whose one factor is the arm. Its name is made of the experiment, so that the same question finds it."""
        base = self.base
        plain = "".join(letter if letter in NAMES else "-" for letter in Path(base.corpus.name).stem)
        name = name or f"mitigate-{plain}-{base.partition.clients}-{replace(base, seed=0).id[:6]}"
        return parse_study({"name": name, "base": self.said, "question": "Does it help to cluster the clients?",
                            "factors": {"arm": levels(self.arms, self.asked)}, "seeds": list(self.seeds), "twins": False,
                            "outcomes": ["final.loss", "loss"]})


def contest(said: dict[str, Any], overrides: Iterable[str] = (), *, arms: Sequence[str] = (), seeds: Sequence[int] = (),
            encoder: str = "wordllama", clusters: int | None = None, restarts: int = 5, draws: int = 1,
            stock: Stock | None = None) -> Contest:
    """The contest of an experiment's YAML. ``arms``: some of them (``vanilla`` and ``iid`` are always there).

    IFCA must be told how many models: ``clusters``, or as many as the corpus has domains, at most half as many as clients.
    """
    said = overridden(said, overrides)
    for name in arms:
        if name not in ARMS:
            raise unknown("arm", name, ARMS)
    experiment = parse(said)
    if type(experiment.mitigation).__name__ != "Vanilla":
        raise UserError(f"mitigation: the experiment has {type(experiment.mitigation).__name__} already; leave it out, the arms "
                        "bring their own")
    if experiment.partition.clients < 4:
        raise UserError(f"partition.clients: {experiment.partition.clients}; clusters of clients take 4 clients or more")
    if experiment.partition.severity == 0:
        raise UserError("partition.severity: 0 deals IID, and every arm would be its own control; say partition.severity=1.0, or "
                        "ask for the map (--map), which goes through severities")
    said = {key: value for key, value in said.items() if key not in ("mitigation", "seed")}
    watched = {"panel": PANEL, "deep": max(experiment.plan.rounds, 1), **said.get("evaluate", {})}
    said = {**said, "evaluate": watched}
    plain = parse(said).written()
    domains = len((stock or Stock()).corpus(replace(experiment.corpus, content=""), experiment.model).domains)
    guess = clusters or min(domains if domains > 1 else 4, experiment.partition.clients // 2)
    asked = Asked(encoder, clusters, guess, restarts, draws, plain["algorithm"])
    chosen = tuple(dict.fromkeys([*ALWAYS, *(arms or DEFAULT)]))
    return Contest(said, asked, chosen, tuple(seeds) or (0, 1, 2, 3, 4, 5))


__all__ = ["PANEL", "Contest", "contest"]
