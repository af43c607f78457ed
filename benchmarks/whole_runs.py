"""Measure the processor time of whole commands, with start-up, evaluation and storage, before and after the work on speed.

    python benchmarks/whole_runs.py [--work demo study clustering report] [--repeats 3]

The side ``before`` is the package of commit 39ea3b5, which git unpacks into a temporary folder and which runs with the libraries that are
installed now. The side ``after`` is the installed package in float32. On processors with bfloat16 products a third side, ``fastest``, has
the option ``--dtype fastest``. The sides take turns, each in processes of its own with one thread and in a folder of its own. The processor
time is the user and system time of all processes of a command. ``report`` is the report of the study, as a page and as a paper.

All sides do the same work: both versions have the same settings below, in the words of each. They must finish equally many runs, and the
mean final losses are stored beside the times. The comparison of clusterings leaves out clusters by text and random clusters of the same
sizes, because the old version cannot embed text with the present WordLlama.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import yaml
from comparison import write_rows
from machine import make_parser
from startup import processor_seconds

BEFORE = "39ea3b5"
REPOSITORY = Path(__file__).parents[1]
WORK = ("demo", "study", "clustering", "report")
# The conditions of the comparison of clusterings, in the words of each version.
OLD_CONDITIONS = "vanilla,iid,oracle,update,ifca,local,tuned,pooled"
CONDITIONS = "unclustered,iid,oracle,update,ifca,local-only,fine-tuned,centralized"
ARRANGEMENT = {"rounds": 8, "steps": 30, "batch": 4, "clients": 5, "participation": 0.4}  # of the demo at the commit


class Measurement(NamedTuple):
    """Hold what one side needed for one work: processor seconds, number of runs that ended, and mean final loss of these runs."""

    seconds: float
    runs: int
    loss: float


@dataclass(frozen=True)
class Side:
    """A version of the package and its options.

    Attributes:
        name: The name of the side.
        is_old: Whether this is the version of the commit, which uses other keys and options.
        package: The folder that contains the package ``fedrift``.
        options: Options of the commands that train.
    """

    name: str
    is_old: bool
    package: Path
    options: tuple[str, ...] = ()

    def run(self, folder: Path, *arguments: str, trains: bool = True) -> float:
        """Run a fedrift command in a folder, and return its processor seconds."""
        start = f"import sys; from fedrift.cli{'' if self.is_old else '.app'} import main; sys.exit(main())"
        command = [sys.executable, "-c", start, *arguments, *(self.options if trains else ())]
        return processor_seconds(command, folder, PYTHONPATH=str(self.package))  # workers inherit it


def make_experiment(is_old: bool, small: bool, **changes: Any) -> dict[str, Any]:
    """Return an experiment in the keys of one version: BBC News with one topic per client, `pocket` and LoRA on all linear maps."""
    size = {**ARRANGEMENT, "sequence": 64, "sgd": 1.0, "targets": ["all"], **changes}
    size |= {"rounds": 2, "steps": 1} if small else {}
    if is_old:
        return {
            "corpus": "bbc",
            "model": "pocket",
            "tune": {"is": "Lora", "rank": 8, "targets": size["targets"]},
            "partition": {"is": "TopicMix", "clients": size["clients"], "severity": 1.0},
            "plan": {
                "rounds": size["rounds"],
                "participation": size["participation"],
                "steps": size["steps"],
                "batch": size["batch"],
                "seq_len": size["sequence"],
                "optimizer": {"is": "Sgd", "lr": size["sgd"]},
                "clip": 1.0,
                "weighting": "uniform",
            },
            "evaluate": {"blocks": 6, "own": 2, "final": 40, "panel": ["language", "updates", "fairness", "cost"]},
        }
    return {
        "dataset": "bbc",
        "model": "pocket",
        "trainable": {"type": "Lora", "r": 8, "target_modules": size["targets"]},
        "partition": {"type": "TopicMix", "num_clients": size["clients"], "severity": 1.0},
        "training": {
            "num_rounds": size["rounds"],
            "participation_rate": size["participation"],
            "local_steps": size["steps"],
            "batch_size": size["batch"],
            "max_seq_length": size["sequence"],
            "client_optimizer": {"type": "Sgd", "lr": size["sgd"]},
            "max_grad_norm": 1.0,
            "client_weighting": "uniform",
        },
        "evaluation": {
            "blocks_per_domain": 6,
            "blocks_per_client": 2,
            "final_blocks_per_domain": 40,
            "probes": ["language", "updates", "fairness", "cost"],
        },
    }


def make_study(is_old: bool, small: bool) -> dict[str, Any]:
    """Return a study of 20 short runs: FedAvg and SCAFFOLD over five seeds, each with its IID baseline."""
    kind, metrics = ("is", "outcomes") if is_old else ("type", "metrics")
    return {
        "name": "twenty",
        "question": "How long do twenty runs take?",
        "base": make_experiment(is_old, small, rounds=6, steps=4, batch=2, sequence=32, targets=["q_proj", "v_proj"]),
        "factors": {"algorithm": ["FedAvg", {kind: "Scaffold"}]},
        "seeds": 1 if small else 5,
        metrics: ["loss", "final.loss", "gap"],
    }


def measure_side(side: Side, folder: Path, work: tuple[str, ...], small: bool) -> dict[str, Measurement]:
    """Run all work of one side once in an empty folder; return what each part needed."""
    runs = "--runs" if side.is_old else "--runs-dir"
    out = "--out" if side.is_old else "--output"
    found = {}
    for name, content in (
        ("demo", make_experiment(side.is_old, small)),
        ("clustering", make_experiment(side.is_old, small, clients=10, participation=1.0, rounds=5, steps=4, batch=2)),
        ("study", make_study(side.is_old, small)),
    ):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    if "demo" in work:
        seconds = side.run(folder, "run", "demo.yaml", runs, "demo")
        found["demo"] = Measurement(seconds, *final_losses(folder / "demo"))
    if "study" in work or "report" in work:
        parallel = ["executor=processes", "executor.workers=2" if side.is_old else "executor.num_workers=2"]
        seconds = side.run(folder, "study", "study.yaml", *parallel, runs, "study")
        found["study"] = Measurement(seconds, *final_losses(folder / "study"))
    if "report" in work:
        seconds = side.run(folder, "report", "twenty", "--html", "--pdf", runs, "study", out, "report", trains=False)
        found["report"] = Measurement(seconds, *final_losses(folder / "study"))
    if "clustering" in work:
        command = ["mitigate", "--arms", OLD_CONDITIONS] if side.is_old else ["compare-clustering", "--conditions", CONDITIONS]
        seconds = side.run(folder, *command, "clustering.yaml", "--seeds", "1", runs, "clustering")
        found["clustering"] = Measurement(seconds, *final_losses(folder / "clustering"))
    return {name: found[name] for name in work}


def final_losses(runs: Path) -> tuple[int, float]:
    """Return the number of runs that have a loss of the federation, and the mean over them of the last one."""
    last = []
    for path in sorted(runs.glob("*/records.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        losses = [record for record in records if record[1:4] == ["loss", "", -1]]
        last += [float(losses[-1][4])] if losses else []
    return len(last), fmean(last) if last else math.nan


def unpack_before(folder: Path) -> Path:
    """Unpack the package of the commit, and return the folder that contains it.

    Raises:
        SystemExit: This is no clone of the repository with its history.
    """
    done = subprocess.run(["git", "-C", str(REPOSITORY), "archive", BEFORE, "fedrift"], capture_output=True)
    if done.returncode:
        raise SystemExit(
            f"commit {BEFORE} is not in this clone ({done.stderr.decode().strip()}); get the whole history, e.g. git fetch --unshallow"
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def make_rows(found: dict[str, list[dict[str, Measurement]]], work: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return one row per work, with the ratios of the turns.

    Args:
        found: The results of ``measure_side`` in every turn, by side.
        work: The names of the rows.

    Raises:
        SystemExit: The sides finished different numbers of runs.
    """
    rows = []
    for name in work:
        counts = {side: {turn[name].runs for turn in turns} for side, turns in found.items()}
        if len(set.union(*counts.values())) > 1:
            raise SystemExit(f"{name}: the sides did not finish equally many runs, so that their times cannot be compared: {counts}")
        row: dict[str, Any] = {"work": name, "runs": found["before"][0][name].runs}
        for side, turns in found.items():
            row[f"{side}_s"] = round(median(turn[name].seconds for turn in turns), 2)
            row[f"{side}_loss"] = round(turns[0][name].loss, 4)
        for side in list(found)[1:]:
            ratios = [before[name].seconds / after[name].seconds for before, after in zip(found["before"], found[side], strict=True)]
            prefix = "ratio" if side == "after" else f"{side}_ratio"
            row |= {prefix: round(median(ratios), 2), f"{prefix}_lowest": round(min(ratios), 2), f"{prefix}_highest": round(max(ratios), 2)}
        rows.append(row)
    return rows


def measure(args: argparse.Namespace) -> None:
    """Let all sides take turns, and write the results after every turn."""
    from fedrift.models.fused import has_bfloat16_products

    repeats, work = 1 if args.small else args.repeats, tuple(name for name in WORK if name in args.work)
    with tempfile.TemporaryDirectory() as temporary:
        sides = [Side("before", True, unpack_before(Path(temporary) / "before")), Side("after", False, REPOSITORY)]
        if has_bfloat16_products():
            sides.append(Side("fastest", False, REPOSITORY, ("--dtype", "fastest")))
        found: dict[str, list[dict[str, Measurement]]] = {side.name: [] for side in sides}
        for turn in range(repeats):
            for side in sides:
                folder = Path(temporary) / f"{side.name}-{turn}"
                folder.mkdir()
                found[side.name].append(measure_side(side, folder, work, args.small))
                print(f"turn {turn + 1} of {repeats}, {side.name}:", found[side.name][-1], file=sys.stderr, flush=True)
            rows = make_rows(found, work)
            write_rows(args.out, "whole-runs", rows, repeats=turn + 1, commit=BEFORE, bfloat16_products=has_bfloat16_products())
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


def main(arguments: list[str] | None = None) -> int:
    """Measure all work."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=WORK, help="the work to measure")
    parser.add_argument("--repeats", type=int, default=3, help="the number of turns")
    measure(parser.parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
