"""A stored study with given values, without a model and without training."""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fedrift.config.schema import compute_id
from fedrift.core.records import Record
from fedrift.storage import Run
from fedrift.studies import ManifestEntry, StudyManifest, parse_study

DOMAINS = ("business", "sport")
CLIENTS = 4
HYPOTHESES = [
    {
        "type": "Greater",
        "name": "H1",
        "claim": "The skew costs loss",
        "metric": "loss",
        "contrast": "iid_baseline",
        "group": {"algorithm": "FedAvg", "partition.severity": 1.0},
    },
    {
        "type": "Less",
        "name": "H2",
        "claim": "SCAFFOLD costs less",
        "metric": "loss",
        "contrast": "iid_baseline",
        "group": {"algorithm": "Scaffold"},
        "reference": {"algorithm": "FedAvg"},
        "family": "other",
    },
]


def make_study(
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
) -> StudyManifest:
    """Store a study. The loss of FedAvg rises with severity by ``effect``, and that of Scaffold does not. ``ended``: whether the run of
    that number has ended.
    """
    more = more or {}
    study = {
        "name": name,
        "question": "Does skew cost loss?",
        "base": {},
        "seeds": seeds,
        "factors": {"algorithm": list(algorithms), "partition.severity": list(severities), **more},
        "hypotheses": hypotheses,
    }
    manifest, entries, place = StudyManifest(root, name), [], 0
    extras: list[dict[str, Any]] = [{}]
    for path, levels in more.items():
        extras = [{**extra, path: level} for extra in extras for level in levels]
    baselines: dict[str, ManifestEntry] = {}
    for seed in range(seeds):
        for algorithm in algorithms:
            for extra in extras:
                iid = store_run(root, algorithm, 0.0, seed, rounds, 0.0, noise, deep, ended(place), extra)
                place += 1
                for severity in severities:
                    own = store_run(
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
                    condition = ", ".join(f"{key}={value}" for key, value in levels.items())
                    entries.append(ManifestEntry(own, "run", "main", condition, seed, False, iid, levels, None, condition))
                levels = {**levels, "partition.severity": 0.0}
                baselines[iid] = ManifestEntry(iid, "iid_baseline", "main", f"twin of {condition}", seed, True, "", levels, None, "twin")
    manifest.write(
        {
            "study": parse_study(study).to_dict(),
            "factors": list(study["factors"]),
            "complete": True,
            "designs": {"main": {"cells": 4, "aliases": []}},
            "tuning_results": choices or [],
            "runs": [*entries, *baselines.values()],
        }
    )
    return manifest


def store_run(
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
    """Store one run; if it has not ended, only half of its rounds."""
    draw = np.random.default_rng(int(sha256(repr((algorithm, severity, seed, extra)).encode()).hexdigest()[:12], 16))
    rows = [[900.0, 100.0], [100.0, 900.0]] * 2 if severity else [[500.0, 500.0]] * 4
    experiment = {
        "dataset": {"name": "bbc"},
        "model": "pocket",
        "trainable": {"type": "Lora", "r": 4},
        "algorithm": {"type": algorithm},
        "partition": {"type": "TopicMix", "num_clients": CLIENTS, "severity": severity},
        "seed": seed,
        "clustering": {"type": "NoClustering"},
        "training": {
            "num_rounds": rounds,
            "participation_rate": 0.5,
            "local_steps": extra.get("training.local_steps", 3),
            "local_epochs": None,
            "batch_size": 2,
            "max_seq_length": 32,
            "client_optimizer": {"type": "Sgd", "lr": extra.get("training.client_optimizer.lr", 1.0)},
            "max_grad_norm": 1.0,
            "client_weighting": "uniform",
        },
        "evaluation": {"interval": 1, "blocks_per_domain": 2, "split": "test", "final_blocks_per_domain": 4},
        "schema": 1,
        "extra": repr(extra),
    }
    id = compute_id(experiment)
    stored_run = Run(root, id)
    stored_run.write_json("experiment", {**experiment, "id": id, "partition_table": {"domains": list(DOMAINS), "tokens": rows}})
    stored_run.write_json(
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
    broken = extra.get("training.client_optimizer.lr", 1.0) > 50
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
    stored_run.append_records(records)
    if ended:
        losses = [record.value for record in records if record.metric == "loss" and not record.domain and record.client < 0]
        stored_run.mark_finished(
            {
                "rounds": rounds,
                "loss": losses[-1] if math.isfinite(losses[-1]) else None,
                "final_loss": None,
                "train_tokens": 1e4,
                "seconds": {"train": 2.0, "evaluate": 1.0, "store": 0.1, "final": 0.2},
            }
        )
    return id
