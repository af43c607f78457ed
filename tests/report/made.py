"""A study as it would be stored, made of numbers: no model, no training."""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fedrift.experiment import identify
from fedrift.records import Record
from fedrift.store import Run
from fedrift.study import Book, Entry, parse_study

DOMAINS = ("business", "sport")
CLIENTS = 4
HYPOTHESES = [
    {
        "is": "Greater",
        "name": "H1",
        "says": "The skew costs loss",
        "metric": "loss",
        "contrast": "twin",
        "of": {"algorithm": "FedAvg", "partition.severity": 1.0},
    },
    {
        "is": "Less",
        "name": "H2",
        "says": "SCAFFOLD costs less",
        "metric": "loss",
        "contrast": "twin",
        "of": {"algorithm": "Scaffold"},
        "than": {"algorithm": "FedAvg"},
        "family": "other",
    },
]


def made(
    root: Path,
    name: str = "made",
    *,
    algorithms=("FedAvg", "Scaffold"),
    severities=(0.5, 1.0),
    seeds: int = 6,
    rounds: int = 6,
    effect: float = 0.3,
    noise: float = 0.01,
    deep: bool = False,
    ended=lambda place: True,
    hypotheses=HYPOTHESES,
    more: dict[str, list[Any]] | None = None,
    choices: list[dict[str, Any]] | None = None,
) -> Book:
    """FedAvg's loss rises with severity by ``effect``; Scaffold's does not. ``ended``: whether the run of that number has."""
    more = more or {}
    said = {
        "name": name,
        "question": "Does skew cost loss?",
        "base": {},
        "seeds": seeds,
        "factors": {"algorithm": list(algorithms), "partition.severity": list(severities), **more},
        "hypotheses": hypotheses,
    }
    book, entries, place = Book(root, name), [], 0
    extras: list[dict[str, Any]] = [{}]
    for path, levels in more.items():
        extras = [{**extra, path: level} for extra in extras for level in levels]
    twins: dict[str, Entry] = {}
    for seed in range(seeds):
        for algorithm in algorithms:
            for extra in extras:
                iid = run(root, algorithm, 0.0, seed, rounds, 0.0, noise, deep, ended(place), extra)
                place += 1
                for severity in severities:
                    own = run(
                        root,
                        algorithm,
                        severity,
                        seed,
                        rounds,
                        effect * severity * (algorithm == "FedAvg"),
                        noise,
                        deep,
                        ended(place),
                        extra,
                    )
                    place += 1
                    levels = {"algorithm": algorithm, "partition.severity": severity, **extra}
                    arm = ", ".join(f"{key}={value}" for key, value in levels.items())
                    entries.append(Entry(own, "run", "main", arm, seed, False, iid, levels, None, arm))
                levels = {**levels, "partition.severity": 0.0}
                twins[iid] = Entry(iid, "twin", "main", f"twin of {arm}", seed, True, "", levels, None, "twin")
    book.write(
        {
            "study": parse_study(said).written(),
            "factors": list(said["factors"]),
            "complete": True,
            "designs": {"main": {"cells": 4, "aliases": []}},
            "choices": choices or [],
            "runs": [*entries, *twins.values()],
        }
    )
    return book


def run(
    root: Path,
    algorithm: str,
    severity: float,
    seed: int,
    rounds: int,
    lift: float,
    noise: float,
    deep: bool,
    ended: bool,
    extra: dict[str, Any],
) -> str:
    """One run's folder; without its end, and with half of its rounds, if it has not ended."""
    draw = np.random.default_rng(int(sha256(repr((algorithm, severity, seed, extra)).encode()).hexdigest()[:12], 16))
    rows = [[900.0, 100.0], [100.0, 900.0]] * 2 if severity else [[500.0, 500.0]] * 4
    experiment = {
        "corpus": {"name": "bbc"},
        "model": "pocket",
        "tune": {"is": "Lora", "rank": 4},
        "algorithm": {"is": algorithm},
        "partition": {"is": "TopicMix", "clients": CLIENTS, "severity": severity},
        "seed": seed,
        "mitigation": {"is": "Vanilla"},
        "plan": {
            "rounds": rounds,
            "participation": 0.5,
            "steps": extra.get("plan.steps", 3),
            "epochs": None,
            "batch": 2,
            "seq_len": 32,
            "optimizer": {"is": "Sgd", "lr": extra.get("plan.optimizer.lr", 1.0)},
            "clip": 1.0,
            "weighting": "uniform",
        },
        "evaluate": {"every": 1, "blocks": 2, "split": "test", "final": 4},
        "schema": 1,
        "extra": repr(extra),
    }
    id = identify(experiment)
    kept = Run(root, id)
    kept.write_json(
        "experiment", {**experiment, "id": id, "partition_table": {"domains": list(DOMAINS), "tokens": rows}}
    )
    kept.write_json(
        "environment",
        {
            "python": "3.11.7",
            "packages": {"fedrift": "0", "torch": "2.13"},
            "platform": "Linux",
            "machine": "x86_64",
            "cores": 2,
            "device": "cpu",
            "threads": 1,
            "engine": {"micro": 2},
        },
    )
    records = []
    shared = np.random.default_rng(seed).normal(0, 0.2)
    broken = extra.get("plan.optimizer.lr", 1.0) > 50
    for round in range((rounds if ended else rounds // 2) + 1):
        loss = 5.0 + shared - 0.1 * round + lift * round / rounds + draw.normal(0, noise)
        loss = math.nan if broken and round > 2 else loss
        records.append(Record(round, "loss", "", -1, loss))
        records += [Record(round, "loss", domain, -1, loss * (1 + 0.2 * place)) for place, domain in enumerate(DOMAINS)]
        records += [Record(round, "loss", "", client, loss) for client in range(CLIENTS)]
        if round:
            records += [Record(round, "update.norm", "", client, 1 / round) for client in range(CLIENTS)]
            records += [
                Record(round, name, "", -1, 0.5 - 0.1 * severity + draw.normal(0, 0.01))
                for name in ("update.consensus", "update.pairwise", "adapters.error.update")
            ]
            records += [Record(round, "cost.up", "", -1, 4e4), Record(round, "cost.down", "", -1, 4e4)]
        if deep:
            records += [
                Record(round, metric, f"layer {layer:02d}", -1, 0.9 - 0.1 * layer * severity)
                for layer in range(3)
                for metric in ("hidden.cka.pretrained", "attention.entropy")
            ]
            records += [Record(round, "forgetting", domain, -1, 0.05 * round) for domain in DOMAINS]
    kept.append(records)
    if ended:
        losses = [record.value for record in records if record.metric == "loss" and not record.domain and record.client < 0]
        kept.finish(
            {
                "rounds": rounds,
                "loss": losses[-1] if math.isfinite(losses[-1]) else None,
                "final_loss": None,
                "train_tokens": 1e4,
                "seconds": {"train": 2.0, "evaluate": 1.0, "store": 0.1, "final": 0.2},
            }
        )
    return id
