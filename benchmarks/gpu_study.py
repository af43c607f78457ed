"""Run the study for one GPU (studies/gpu.yaml) for a limited time; several runs train in one forward pass.

    make gpu-study            (python benchmarks/gpu_study.py [--device cuda] [--minutes 9] [--together 8])

Repeat the command to continue the study. After each part, the script writes the results so far: seconds, the mean metrics of each
condition, and the verdicts on the hypotheses. It also exports the study as an archive for `fedrift import`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import describe_machine, make_parser, write_results

from fedrift.config.runtime import Runtime
from fedrift.config.schema import ExperimentConfig
from fedrift.engine.cache import ResourceCache
from fedrift.studies import Study, StudyManifest, evaluate_study_hypotheses, export_study, load_study
from fedrift.studies.executors import Executor, Local, Stacked, list_pending
from fedrift.studies.run import run_study

STUDY_FILE = Path(__file__).parents[1] / "studies" / "gpu.yaml"
SMALL_OVERRIDES = (
    "seeds=1",
    "base.training.num_rounds=2",
    "base.training.max_seq_length=16",
    "base.evaluation.final_blocks_per_domain=1",
    "base.evaluation.blocks_per_client=0",
    "base.partition.num_clients=10",
    "base.dataset={name: bbc, limit: 400}",
)
SMALL_FACTORS = {"algorithm": ["FedAvg", "Scaffold"], "training.local_steps": [1, 2]}


def stop_on_alarm(signal: int, frame: object) -> None:
    """Stop the study as ctrl-C does."""
    raise KeyboardInterrupt


def run_for_minutes(minutes: float, study: Study, resources: ResourceCache, executor: Executor) -> tuple[StudyManifest, int]:
    """Run a study until it is finished or the time is over.

    Returns:
        The manifest of the study and the number of runs that are left.
    """
    configs: list[ExperimentConfig] = []
    started = perf_counter()

    def on_start(label: str, experiments: Sequence[ExperimentConfig]) -> Any:
        configs[:] = experiments
        signal.setitimer(signal.ITIMER_REAL, max(0.1, 60 * minutes - (perf_counter() - started)))  # the time starts after planning
        return lambda run, round: None

    signal.signal(signal.SIGALRM, stop_on_alarm)
    try:
        run_study(study, resources, executor, on_start)
    except KeyboardInterrupt:
        print("the time is over; repeat the same command to continue", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    manifest = StudyManifest(resources.runtime.runs_dir, study.name)
    return manifest, len(list_pending(configs, manifest))


def main(arguments: list[str] | None = None) -> int:
    """Run a part of the study, print its results and write them."""
    parser = make_parser(__doc__ or "", "cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="the time limit")
    parser.add_argument(
        "--together", type=int, default=8, help="the number of runs that train in one forward pass; 1 trains them one after another"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the runs directory")
    args = parser.parse_args(arguments)
    started, runtime = perf_counter(), Runtime(args.runs, device=args.device)
    study = load_study(STUDY_FILE, SMALL_OVERRIDES if args.small else ())
    if args.small:
        study = replace(study, factors=SMALL_FACTORS, hypotheses=())
    executor = Stacked(num_concurrent_runs=args.together) if args.together > 1 else Local()
    manifest, left = run_for_minutes(args.minutes, study, ResourceCache(runtime), executor)
    frame, verdicts = evaluate_study_hypotheses(manifest)
    finished = frame[frame.status == "finished"]
    means = finished.groupby("condition", sort=False)[list(study.metrics)].mean(numeric_only=True)
    name = f"gpu-study-{runtime.resolve_device().type}{'-small' if args.small else ''}"
    print(means.to_string(float_format=lambda value: f"{value:.3f}"))
    for verdict in verdicts:
        print(verdict.sentence)
    print(
        write_results(
            args.out,
            name,
            {
                **describe_machine(runtime.resolve_device()),
                "small": args.small,
                "together": args.together,
                "seconds_of_this_piece": round(perf_counter() - started, 1),
                "runs": len(frame),
                "finished": len(finished),
                "left": left,
                "failed": frame[frame.status == "failed"].failure.tolist(),
                "means": json.loads(means.to_json(orient="index")),
                "verdicts": [verdict.sentence for verdict in verdicts],
            },
        )
    )
    print(export_study(manifest, args.out / f"{name}.zip"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
