"""The grounds that whole runs are planted on: the sandbox with a model raised in seconds, and `pocket` on news.

The sandbox's language is known exactly: its model is raised on documents that no client has, until it decides nine of ten minimal
pairs rightly. Other documents that no client has are its general text.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..corpus import Source
from ..corpus.sandbox import Sandbox, document, language
from ..detectors.finding import Case
from ..experiment import Experiment, edit, parse
from ..models.export import save_model
from ..models.seedling import plant
from ..rounds import rounds
from ..setting import prepare
from ..stock import Stock
from .kept import code, kept
from .whole import Asked, carry_out

SANDBOX = {"domains": 4, "documents": 1600, "overlap": 0.2, "concept": 0.4, "words": 20, "sentences": 4, "seed": 7}
RAISED = {"steps": 350, "batch": 32, "seq_len": 32, "rounds": 1, "optimizer": {"is": "AdamW", "lr": 0.003}}
PANEL = ["updates", "hidden", "adapters", "general", "syntax"]


@dataclass(frozen=True, eq=False)
class Ground:
    """Where plants grow: ``base`` is a healthy skewed experiment, ``folder`` where runs are kept (None: nowhere)."""

    name: str
    base: Experiment
    stock: Stock
    hard: float  # AdamW's learning rate that leaves its mark in a few dozen steps
    harder: float  # that which costs what it was not trained on
    folder: Path | None = None
    longer: int = 1  # times the steps that leave their mark on the sandbox

    def case(self, run: Asked, twin: Asked, seed: int, ladder: Iterable[Asked] = (), **anchors: Asked) -> Case:
        """A run beside its control, and anchors by their field in ``Case``; all of one seed."""
        made, facts = self.grown(run, seed)
        others = {field: self.grown(asked, seed)[0] for field, asked in {"twin": twin, **anchors}.items()}
        rungs = {asked.experiment.plan.steps: self.grown(asked, seed)[0] for asked in ladder}
        return Case(made, **others, ladder=rungs, facts=facts, seed=seed)

    def grown(self, asked: Asked, seed: int) -> Any:
        """One run and its facts."""
        seeded = replace(asked, experiment=edit(asked.experiment, {"seed": seed}))
        return kept(self.folder, (self.name, seeded), lambda: carry_out(seeded, self.stock))

    def asked(self, **changes: Any) -> Experiment:
        """The base with some changes, by path with ``__`` for dots."""
        changed: Experiment = edit(self.base, changes)
        return changed


def sandbox(stock: Stock, folder: Path | None = None) -> Ground:
    """Four domains of a made-up language, four clients of one domain each, and a model that knows the language roughly."""
    place = stock.runtime.cache / "calibration" / f"sandbox {code()[:12]}"
    if not (place / "model" / "config.json").exists():
        raise_model(place, stock)
    return Ground("sandbox", parse({
        "corpus": {"name": "sandbox", "sandbox": SANDBOX}, "model": str(place / "model"),
        "tune": {"is": "Lora", "rank": 4, "targets": ["all"]}, "partition": {"is": "TopicMix", "clients": 4, "severity": 1.0},
        "plan": {"rounds": 10, "steps": 4, "batch": 4, "seq_len": 32, "optimizer": {"is": "Sgd", "lr": 0.3}, "clip": None,
                 "weighting": "uniform"},
        "evaluate": {"panel": PANEL, "deep": 5, "blocks": 8, "own": 0, "final": 0, "general": str(place / "general.csv")},
    }), stock, 0.005, 0.005, folder)


def news(stock: Stock, folder: Path | None = None) -> Ground:
    """Three topics of BBC News, three clients of one topic each, and `pocket`; the other two topics are the general text."""
    base = {"corpus": {"name": "bbc", "domains": ["entertainment", "sports", "tech"]}, "model": "pocket"}
    place = stock.runtime.cache / "calibration" / "news.csv"
    if not place.exists():
        others = stock.corpus(Source("bbc", domains=("business", "politics")), "pocket")
        write(place, [(text, "general") for text in others.text[:40]])
    return Ground("lm", parse({
        **base, "tune": {"is": "Lora", "rank": 4}, "partition": {"is": "TopicMix", "clients": 3, "severity": 1.0},
        "plan": {"rounds": 10, "steps": 4, "batch": 2, "seq_len": 32, "optimizer": {"is": "Sgd", "lr": 0.3}, "clip": None,
                 "weighting": "uniform"},
        "evaluate": {"panel": PANEL, "deep": 5, "blocks": 6, "own": 0, "final": 0, "general": str(place)},
    }), stock, 0.003, 0.015, folder, longer=2)


def write(place: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Texts with their labels as a corpus file."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def raise_model(place: Path, stock: Stock) -> None:
    """Plant a model that knows the sandbox's words and train it on documents that no client will have."""
    dials = Sandbox(**SANDBOX)  # type: ignore[arg-type]
    grammar = language(dials).grammars
    words = {word for each in grammar for choices in each.rules.values() for _, said in choices for word in said
             if word not in each.rules}
    seed = plant(place / "seed", words)
    for name, first, count in (("raised", 100_000, 400), ("general", 200_000, 60)):
        write(place / f"{name}.csv", [(document(dials, domain, first + number), str(domain)) for number in range(count)
                                      for domain in range(dials.domains)])
    experiment = parse({
        "corpus": str(place / "raised.csv"), "model": str(seed), "tune": "Full",
        "partition": {"is": "TopicMix", "clients": 1, "severity": 0.0}, "plan": RAISED,
        "evaluate": {"panel": [], "own": 0, "final": 0}})
    setting = prepare(experiment, stock)
    done, = rounds(setting.state, setting.fleet, experiment.algorithm, until=1, cohort=1, seed=0)
    model = setting.model
    stock.language_model(str(seed), experiment.tune).tokenizer.save_pretrained(str(place / "model"))
    save_model(place / "model", model, experiment.tune, str(seed), done.after.server)


GROUNDS = {"sandbox": sandbox, "lm": news}
