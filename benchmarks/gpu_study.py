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

from machine import machine, options, write

from fedrift.experiment import Experiment
from fedrift.runtime import Runtime
from fedrift.stock import Stock
from fedrift.study import Book, Study, judged, load_study, pack
from fedrift.study.conduct import conduct
from fedrift.study.executors import Executor, Local, Stacked
from fedrift.study.work import unsettled

GRID = Path(__file__).parents[1] / "studies" / "gpu.yaml"
SMALL = ("seeds=1", "base.plan.rounds=2", "base.plan.seq_len=16", "base.evaluate.final=1", "base.evaluate.own=0",
         "base.partition.clients=10", "base.corpus={name: bbc, limit: 400}")
FEW = {"algorithm": ["FedAvg", "Scaffold"], "plan.steps": [1, 2]}


def time_is_up(signal: int, frame: object) -> None:
    raise KeyboardInterrupt


def until(minutes: float, study: Study, stock: Stock, executor: Executor) -> tuple[Book, int]:
    """Conduct the study until it is done or the time is up; how many runs are left."""
    every: list[Experiment] = []
    begun = perf_counter()

    def begin(what: str, experiments: Sequence[Experiment]) -> Any:
        every[:] = experiments
        signal.setitimer(signal.ITIMER_REAL, max(0.1, 60 * minutes - (perf_counter() - begun)))  # once it is known what to do
        return lambda run, round: None

    signal.signal(signal.SIGALRM, time_is_up)
    try:
        conduct(study, stock, executor, begin)
    except KeyboardInterrupt:
        print("the time is up; the same command goes on from here", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    book = Book(stock.runtime.root, study.name)
    return book, len(unsettled(every, book))


def main(words: list[str] | None = None) -> int:
    ask = options(__doc__ or "", "cuda")
    ask.add_argument("--minutes", type=float, default=9.0)
    ask.add_argument("--together", type=int, default=8, help="runs trained in one pass; 1: one run after another")
    ask.add_argument("--runs", type=Path, default=Path("runs"), help="the folder that holds the runs")
    said = ask.parse_args(words)
    begun, runtime = perf_counter(), Runtime(said.runs, device=said.device)
    study = load_study(GRID, SMALL if said.small else ())
    if said.small:
        study = replace(study, factors=FEW, hypotheses=())
    executor = Stacked(runs=said.together) if said.together > 1 else Local()
    book, left = until(said.minutes, study, Stock(runtime), executor)
    frame, verdicts = judged(book)
    ended = frame[frame.status == "finished"]
    means = ended.groupby("arm", sort=False)[list(study.outcomes)].mean(numeric_only=True)
    name = f"gpu-study-{runtime.torch_device().type}{'-small' if said.small else ''}"
    print(means.to_string(float_format=lambda value: f"{value:.3f}"))
    for verdict in verdicts:
        print(verdict.sentence)
    print(write(said.out, name, {
        **machine(runtime.torch_device()), "small": said.small, "together": said.together,
        "seconds_of_this_piece": round(perf_counter() - begun, 1), "runs": len(frame), "finished": len(ended), "left": left,
        "failed": frame[frame.status == "failed"].failure.tolist(), "means": json.loads(means.to_json(orient="index")),
        "verdicts": [verdict.sentence for verdict in verdicts]}))
    print(pack(book, said.out / f"{name}.zip"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
