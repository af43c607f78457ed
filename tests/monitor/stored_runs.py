"""Stored runs of a study with given values: finished, partial, failed and not started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrift.core.records import Record
from fedrift.storage import Run
from fedrift.studies import ManifestEntry, StudyManifest
from tests.studies.small import study

ROUNDS = 6


def make_config(algorithm: str = "FedAvg", severity: float = 1.0, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "made"},
        "model": "pocket",
        "algorithm": {"type": algorithm},
        "partition": {"type": "TopicMix", "num_clients": 2, "severity": severity},
        "training": {"num_rounds": ROUNDS, "local_steps": 2},
        "seed": seed,
        "evaluation": {"blocks_per_domain": 2},
        **more,
    }


def make_rows(upto: int, start: float = 5.0, first: int = 0) -> list[Record]:
    """Return records of a loss that falls by a tenth per round, in two domains and for two clients."""
    return [
        Record(round, "loss", domain, client, start - 0.1 * round)
        for round in range(first, upto + 1)
        for domain, client in (("", -1), ("sport", -1), ("tech", -1), ("", 0), ("", 1))
    ]


def start_run(root: Path, id: str, upto: int, start: float = 5.0, **settings: Any) -> Run:
    run = Run(root, id)
    run.write_json(
        "experiment", {**make_config(**settings), "id": id, "partition_table": {"domains": ["sport", "tech"], "tokens": [[10, 0], [0, 10]]}}
    )
    run.append_records(make_rows(upto, start))
    if upto == ROUNDS:
        run.mark_finished({"rounds": ROUNDS, "loss": 4.4, "final_loss": 4.4, "train_tokens": 10, "seconds": {"train": 1.0}})
    return run


def make_manifest(root: Path, folder: Path, complete: bool = True) -> StudyManifest:
    """Store a manifest with two seeds of one condition and their IID baselines; the runs are not stored."""
    manifest = StudyManifest(root, "tiny")
    condition, levels = "algorithm=FedAvg", {"algorithm": "FedAvg"}
    entries = [ManifestEntry(f"run{seed}", "run", "main", condition, seed, False, f"twin{seed}", levels, None, "") for seed in (0, 1)]
    entries += [ManifestEntry(f"twin{seed}", "iid_baseline", "main", condition, seed, True, "", levels, None, "") for seed in (0, 1)]
    manifest.write(
        {
            "study": study(folder).to_dict(),
            "factors": ["algorithm"],
            "complete": complete,
            "designs": {},
            "tuning_results": [],
            "runs": entries,
        }
    )
    return manifest
