"""The grid for a GPU (studies/gpu.yaml), as far as the time goes: every run of it once, several trained in one pass.

    make gpu-study            (python benchmarks/gpu_study.py [--device cuda] [--minutes 9] [--together 8])

Asked again it goes on; where it ends does not matter. What was found so far is written after each piece: seconds, means of every
arm, and what the hypotheses say; and the study as one file that `fedrift import` takes in elsewhere.
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
from fedrift.studies import Study, StudyManifest, export_study, judge_hypotheses, load_study
from fedrift.studies.executors import Executor, Local, Stacked
from fedrift.studies.run import run_study
from fedrift.studies.worker import list_pending

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
    raise KeyboardInterrupt


def run_for_minutes(minutes: float, study: Study, resources: ResourceCache, executor: Executor) -> tuple[StudyManifest, int]:
    """Conduct the study until it is done or the time is up; how many runs are left."""
    every: list[ExperimentConfig] = []
    begun = perf_counter()

    def begin(what: str, experiments: Sequence[ExperimentConfig]) -> Any:
        every[:] = experiments
        signal.setitimer(signal.ITIMER_REAL, max(0.1, 60 * minutes - (perf_counter() - begun)))  # once it is known what to do
        return lambda run, round: None

    signal.signal(signal.SIGALRM, stop_on_alarm)
    try:
        run_study(study, resources, executor, begin)
    except KeyboardInterrupt:
        print("the time is up; the same command goes on from here", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    book = StudyManifest(resources.runtime.runs_dir, study.name)
    return book, len(list_pending(every, book))


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "", "cuda")
    ask.add_argument("--minutes", type=float, default=9.0)
    ask.add_argument("--together", type=int, default=8, help="runs trained in one pass; 1: one run after another")
    ask.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that holds the runs")
    said = ask.parse_args(words)
    begun, runtime = perf_counter(), Runtime(said.runs, device=said.device)
    study = load_study(STUDY_FILE, SMALL_OVERRIDES if said.small else ())
    if said.small:
        study = replace(study, factors=SMALL_FACTORS, hypotheses=())
    executor = Stacked(num_concurrent_runs=said.together) if said.together > 1 else Local()
    book, left = run_for_minutes(said.minutes, study, ResourceCache(runtime), executor)
    frame, verdicts = judge_hypotheses(book)
    ended = frame[frame.status == "finished"]
    means = ended.groupby("condition", sort=False)[list(study.metrics)].mean(numeric_only=True)
    name = f"gpu-study-{runtime.resolve_device().type}{'-small' if said.small else ''}"
    print(means.to_string(float_format=lambda value: f"{value:.3f}"))
    for verdict in verdicts:
        print(verdict.sentence)
    print(
        write_results(
            said.out,
            name,
            {
                **describe_machine(runtime.resolve_device()),
                "small": said.small,
                "together": said.together,
                "seconds_of_this_piece": round(perf_counter() - begun, 1),
                "runs": len(frame),
                "finished": len(ended),
                "left": left,
                "failed": frame[frame.status == "failed"].failure.tolist(),
                "means": json.loads(means.to_json(orient="index")),
                "verdicts": [verdict.sentence for verdict in verdicts],
            },
        )
    )
    print(export_study(book, said.out / f"{name}.zip"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
