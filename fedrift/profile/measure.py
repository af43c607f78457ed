"""Some rounds of an experiment, as they are, by the clock; then one of them again under torch's profiler and counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..experiment import Experiment
from ..fleet.fleet import Fleet, Rule
from ..probes import Look, Past, recorded
from ..probes.cost import Traffic
from ..probes.panel import due
from ..recording import Checkpoint
from ..rounds import rounds
from ..run import decided, finish, named, observe
from ..setting import Setting, prepare, resolve
from ..stock import Stock
from ..store import Run
from ..values import Report, Round, State
from .hints import hints
from .inside import bytes_of, flops_of, kinds_of, ranged
from .memory import holdings, why
from .peak import gemm_peak, resident_peak
from .trials import tried

STEPS = 4  # of a round that the profiler and the counter see
Say = Callable[[str], None]


@dataclass(frozen=True)
class Profile:
    """Seconds, FLOPs and bytes of one experiment on one machine. Bytes and seconds that could not be had are NaN."""

    experiment: str
    id: str
    machine: dict[str, Any]  # device, threads and how many were at work, dtype, GEMM peak in GFLOP/s
    phases: list[dict[str, Any]]  # name, seconds each time, times in a run, seconds in a run, share, per: "run" or "round"
    training: dict[str, Any]  # seconds by kind, their sum, shares; what the profiler slowed down
    compute: dict[str, float]  # FLOPs a token, GFLOP/s, share of peak, tokens a second, padding
    memory: dict[str, Any]  # peak, bytes by what they are, bytes of the device
    passes: dict[str, Any]  # clients in one pass, why, what others gave
    traffic: dict[str, float]  # bytes that a client sends and receives a round
    hints: list[str]

    def said(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Clocked:
    """A fleet, and the seconds that each of its rounds took, by the clock and of processors."""

    fleet: Fleet
    device: torch.device
    seconds: list[float]
    worked: list[float]

    @property
    def size(self) -> int:
        return self.fleet.size

    def train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        begun, worked = perf_counter(), process_time()
        report = self.fleet.train(state, algorithm, cohort)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(perf_counter() - begun)
        self.worked.append(process_time() - worked)
        return report


def profiled(experiment: Experiment, stock: Stock, measured: int = 2, trace: Path | None = None, say: Say = lambda told: None,
             folder: Path | None = None) -> Profile:
    """Profile an experiment: a round to warm up, ``measured`` rounds, replays. What it stores goes into ``folder``, else away."""
    if experiment.plan.rounds < 1:
        raise UserError("an experiment of 0 rounds has nothing to profile: plan.rounds=3, say")
    if folder is None:
        with TemporaryDirectory() as away:
            return profiled(experiment, stock, measured, trace, say, Path(away))
    once: dict[str, float] = {}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        say(name)
        begun = perf_counter()
        made = do()
        once[name] = perf_counter() - begun
        return made

    stock.runtime.begin()
    experiment = timed("load corpus", lambda: resolve(experiment, stock))
    made = experiment.model, experiment.tune
    timed("load model", lambda: stock.stacked(*made))
    words = stock.corpus(experiment.corpus, experiment.model)
    timed("load tokens", lambda: stock.tokens(words, *made))
    setting: Setting = timed("deal, pack, prepare", lambda: prepare(experiment, stock))
    run, clock = Run(folder, experiment.id), Clocked(setting.work.fleet(setting.fleet), stock.runtime.torch_device(), [], [])
    peaks = [gemm_peak(clock.device, dtype_of(setting))]
    done, took, seen = some_rounds(experiment, setting, run, clock, measured, say, timed)
    timed("final evaluation, models saved", lambda: finish(experiment, run, setting, done.after, stock, here=True))
    inside = looked_into(experiment, setting, done, clock.device, trace, say)
    peaks.append(gemm_peak(clock.device, dtype_of(setting)))

    rate = float(done.report.tokens.sum()) / took["training"]
    flops = inside["flops_per_token"]
    compute = {"flops_per_token": flops, "gflops": flops * rate / 1e9, "share_of_peak": flops * rate / max(peaks),
               "tokens_per_second": rate, "padding": inside["padding"]}
    say("passes of other sizes")
    one = next(first(setting, done), None)
    trials = tried(setting, done, one) if one else []
    phases = whole(experiment, setting, once, took, seen)
    traffic = Traffic(experiment.algorithm)(done)
    plan, kept = experiment.plan, 2 if experiment.algorithm.penalty() else 1
    return Profile(
        experiment.name, experiment.id,
        {"device": str(clock.device), "threads": torch.get_num_threads(), "dtype": str(dtype_of(setting)).removeprefix("torch."),
         "gemm_peak_gflops": max(peaks) / 1e9, "threads_at_work": sum(clock.worked) / sum(clock.seconds)},
        phases, inside["training"], compute,
        remembered(setting, done, inside["step_peak"], clock.device),
        {"micro": setting.fleet.micro, "cohort": len(done.cohort), "trials": trials,
         "why": why(setting, stock.runtime, plan.batch, plan.seq_len, kept)},
        {"up": float(traffic["cost.up"]), "down": float(traffic["cost.down"])},
        hints(phases, experiment, inside["padding"], trials, compute["share_of_peak"]))


def some_rounds(experiment: Experiment, setting: Setting, run: Run, clock: Clocked, measured: int, say: Say,
                timed: Callable[..., Any]) -> tuple[Round, dict[str, float], dict[str, float]]:
    """The last round, the mean seconds of a round's phases, and of each look when it is taken. The first round warms up."""
    past, state, work, checkpoint = Past(), setting.state, setting.work, Checkpoint(run)
    until = min(experiment.plan.rounds, 1 + measured)
    reading, _ = timed("round 0: evaluation", lambda: setting.panel.first(work.worn(state), past))
    run.write_json("experiment", {**experiment.stored(), "id": experiment.id, "partition_table": setting.table})
    run.append(recorded(reading, 0, [], setting.fleet.size))
    past.note(run.records())
    loop = rounds(state, clock, experiment.algorithm, until=until, cohort=setting.cohort, seed=experiment.seed,
                  regroup=work.regroup, draw=work.draw)
    spent: dict[str, list[float]] = {"training": [], "aggregation": [], "records and state": []}
    looks: dict[str, list[float]] = {}
    for number in range(1, until + 1):
        say(f"round {number} of {until}" + (", to warm up" if number == 1 and until > 1 else ""))
        begun = perf_counter()
        done = next(loop)
        trained = perf_counter() - begun
        rows, each = observe(done, setting, past)
        begun = perf_counter()
        run.append(rows)
        decided(run, setting)
        checkpoint.save(done.after)
        run.timing(done.after.round, train=trained, **named(each))
        stored = perf_counter() - begun
        if number == 1 and until > 1:
            continue
        spent["training"].append(clock.seconds[-1])
        spent["aggregation"].append(trained - clock.seconds[-1])
        spent["records and state"].append(stored)
        for name, seconds in each.items():
            looks.setdefault(name, []).append(seconds)
    say("looks of rarer rounds")
    for look in setting.panel.looks:
        if isinstance(look, Look) and look.name not in looks:
            begun = perf_counter()
            look.probe(work.seen(done))
            looks[look.name] = [perf_counter() - begun]
    return done, {name: mean(seconds) for name, seconds in spent.items()}, {name: mean(each) for name, each in looks.items()}


def whole(experiment: Experiment, setting: Setting, once: dict[str, float], took: dict[str, float],
          seen: dict[str, float]) -> list[dict[str, Any]]:
    """A run of all its rounds, by phase: what is done once, and what in how many rounds."""
    last = experiment.plan.rounds
    phases = [(name, "run", seconds, 1) for name, seconds in once.items()]
    phases += [(name, "round", seconds, last) for name, seconds in took.items()]
    for name, seconds in seen.items():
        when = [look.when for look in setting.panel.looks if isinstance(look, Look) and look.name == name] or [1]
        times = sum(any(due(each, now, last, setting.panel.deep) for each in when) for now in range(1, last + 1))
        phases.append((f"probe {name}", "round", seconds, times))
    total = sum(seconds * times for _, _, seconds, times in phases)
    return [{"name": name, "per": per, "seconds": seconds, "times": times, "total": seconds * times,
             "share": seconds * times / total} for name, per, seconds, times in phases]


def looked_into(experiment: Experiment, setting: Setting, done: Round, device: torch.device, trace: Path | None,
                say: Say) -> dict[str, Any]:
    """The replays: by kind of work, by FLOPs, by bytes of a step."""
    state, micro = done.before, setting.fleet.micro or len(done.cohort)

    def replay(cohort: Tensor, steps: int | None) -> Callable[[], Report]:
        fleet = setting.work.fleet(ranged(setting.fleet, steps))
        return partial(fleet.train, state, experiment.algorithm, cohort)

    train = replay(done.cohort, None if trace else STEPS)
    say("a round under the profiler")
    begun = perf_counter()
    train()
    plain = perf_counter() - begun
    kinds, total, _ = kinds_of(train, device, trace)
    say("counting FLOPs and bytes")
    flops, report = flops_of(replay(done.cohort, STEPS))
    tokens = float(report.tokens.sum())
    step_peak = bytes_of(replay(done.cohort[:micro], 2), device)
    positions = sum(batch["tokens"][:, :, 1:].numel() for batch in first(setting, done))
    learnt = sum(float(batch["weight"].sum()) for batch in first(setting, done))
    return {"training": {"seconds": kinds, "total": total, "shares": {kind: seconds / total for kind, seconds in kinds.items()},
                         "steps": None if trace else STEPS, "slower_under_the_profiler": total / plain},
            "flops_per_token": flops / tokens, "step_peak": step_peak, "padding": 1 - learnt / positions}


def first(setting: Setting, done: Round) -> Iterator[dict[str, Tensor]]:
    """The first batches of a round, of the whole cohort."""
    for number, batch in enumerate(setting.fleet.batches(done.before.round, done.cohort)):
        if number == STEPS:
            return
        yield batch


def remembered(setting: Setting, done: Round, step_peak: float, device: torch.device) -> dict[str, Any]:
    """Bytes by what they are, and the most that the process, and the device, held."""
    held = holdings(setting, done.after, done.report, min(setting.fleet.micro or setting.cohort, len(done.cohort)), step_peak)
    peak = resident_peak() if device.type == "cpu" else torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    known = sum(each for each in held.values() if each == each)
    rest = {"the rest: Python, libraries, loading" if device.type == "cpu" else "the rest": max(0, peak - known)}
    return {"resident_peak": resident_peak(), "device_peak": peak if device.type == "cuda" else None, "bytes": {**held, **rest}}


def dtype_of(setting: Setting) -> torch.dtype:
    model = setting.model
    return model.head.weight.dtype  # type: ignore[no-any-return]


__all__ = ["Profile", "profiled"]
