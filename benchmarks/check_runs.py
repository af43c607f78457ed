"""What whole short runs must come to: interrupted, and trained together, they are the same runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from check_steps import Found, Where

from fedrift.experiment import Experiment, parse
from fedrift.run import Progress, carry_out
from fedrift.runtime import Runtime
from fedrift.setting import resolve
from fedrift.stock import Stock
from fedrift.store.tensors import load_state
from fedrift.study import Book
from fedrift.study.executors import Stacked


def little(where: Where, *more: str) -> Experiment:
    """A short run on text that is made here: no file needed."""
    few = {"rounds": 2, "steps": 2, "batch": 2, "seq_len": 16}
    if not where.small:
        few = {"rounds": 6, "steps": 5, "batch": 4, "seq_len": 64}
    return parse({"corpus": {"name": "sandbox", "limit": 300}, "model": "pocket",
                  "partition": {"is": "TopicMix", "clients": 4, "severity": 1.0}, "algorithm": "Scaffold",
                  "plan": {**few, "participation": 0.5, "optimizer": {"is": "Sgd", "lr": 0.5}, "weighting": "uniform"},
                  "evaluate": {"blocks": 2, "own": 1, "final": 2, "panel": ["updates"]}}, more)


class Killed(Exception):
    pass


def resumes(where: Where) -> Iterator[Found]:
    """Interrupted after a round and asked again, a run ends with the same bits."""
    def kill(progress: Progress) -> None:
        if progress.round == 1:
            raise Killed

    for dtype in ("float32",) if where.small else ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(Path(folder), device=str(where.device), dtype=dtype, micro=4)  # type: ignore[arg-type]
            unbroken = carry_out(little(where), Stock(replace(runtime, root=runtime.root / "unbroken")))
            broken = Stock(replace(runtime, root=runtime.root / "broken"))
            with suppress(Killed):
                carry_out(little(where), broken, kill)
            resumed = carry_out(little(where), Stock(broken.runtime))  # with everything loaded anew
            (one, _), (two, _) = (load_state(run.state_path) for run in (unbroken, resumed))
            differ = sum(not torch.equal(one[leaf], two[leaf]) for leaf in one)
            differ += (unbroken.folder / "records.jsonl").read_bytes() != (resumed.folder / "records.jsonl").read_bytes()
            yield Found(f"a run that resumed, {dtype}: parts that differ", float(differ), 0.0)


def together_is_alone(where: Where) -> Iterator[Found]:
    """Three runs trained in one pass have the losses that they have alone."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(Path(folder), device=str(where.device), dtype="float32", micro=4)
        alone, there = (Stock(replace(runtime, root=runtime.root / name)) for name in ("alone", "together"))
        every = [resolve(little(where, *more), alone) for more in (("seed=0",), ("seed=1",), ("algorithm=FedAvg", "seed=0"))]
        book = Book(there.runtime.root, "check")
        Stacked(runs=3)(every, there, book, lambda run, round: None)
        pairs = [tuple(run.trajectory().curve("loss") for run in (book.run(each.id), carry_out(each, alone))) for each in every]
        yield Found("runs trained together have their own losses", max(float(abs(a / b - 1).max()) for a, b in pairs), 1e-4)
