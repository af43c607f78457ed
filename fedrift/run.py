"""Carrying out an experiment: begin it, resume it, or find it finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from .errors import UserError
from .experiment import Experiment
from .models.export import save_model
from .probes import recorded
from .records import Record
from .rounds import rounds
from .setting import Setting, prepare, resolve
from .stock import Stock
from .store import Run, describe, settle
from .store.tensors import load_state, save_state
from .tree import Tree
from .values import Round, Server, State


class Progress(NamedTuple):
    """Told after every round: how far a run is, and its latest loss (NaN between evaluations)."""

    run: str
    round: int
    until: int
    loss: float


Watch = Callable[[Progress], None]


def carry_out(experiment: Experiment, stock: Stock | None = None, watch: Watch = lambda progress: None) -> Run:
    """Run an experiment to its end, from where it stands; a finished run is returned as it is.

    Killed at any moment, it goes on from the last stored round when asked again, bit for bit as if nothing
    had happened.
    """
    stock = stock or Stock()
    experiment = resolve(experiment, stock)
    run = Run(writable(stock.runtime.root), experiment.id)
    if run.finished:
        return run
    with run.lock():
        try:
            _carry_out(experiment, run, stock, watch)
        except Exception as error:
            if (run.folder / "experiment.json").exists():  # before that nothing has begun that could have failed
                run.fail(int(run.trajectory().rounds.max(initial=0)), f"{type(error).__name__}: {error}")
            raise
    return run


def writable(root: Path) -> Path:
    """The folder of the runs, made if it is not there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs cannot be kept in {root}: {error.strerror}; name another folder (--runs)") from error
    return root


def _carry_out(experiment: Experiment, run: Run, stock: Stock, watch: Watch) -> None:
    plan, algorithm = experiment.plan, experiment.algorithm
    setting = prepare(experiment, stock, run.environment.get("engine"))
    run.write_json("experiment", {**experiment.written(), "id": experiment.id, "partition_table": setting.table})
    changed = settle(run, describe(str(stock.runtime.torch_device()), torch.get_num_threads(), setting.engine))
    state = restored(run, setting)
    run.rewind(state.round if state else -1)
    if state is None:
        state = setting.state
        for caveat in setting.caveats:
            run.event(0, "caveat", caveat)
        run.append(recorded(setting.losses.of(state), 0, [], setting.fleet.size))
        keep(run, state)
    for difference in changed:
        run.event(state.round, "resumed elsewhere", difference)
    watch(Progress(run.id, state.round, plan.rounds, last_loss(run.records())))

    loop = rounds(state, setting.fleet, algorithm, until=plan.rounds, cohort=setting.cohort, seed=experiment.seed)
    for done, spent in timed(loop):
        begun = perf_counter()
        rows = observe(done, setting)
        measured = perf_counter()
        state = done.after
        for client in done.cohort[done.report.failed].tolist():
            run.event(state.round, "client failed", "non-finite numbers: left out of the mean, its memory kept", client)
        run.append(rows)
        if state.round % stock.runtime.checkpoint == 0 or state.round == plan.rounds:
            keep(run, state)  # rows first, state second: a crash between them repeats the round
        run.timing(state.round, train=spent, evaluate=measured - begun, store=perf_counter() - measured)
        watch(Progress(run.id, state.round, plan.rounds, last_loss(rows)))
    finish(experiment, run, setting, state, stock)


def observe(done: Round, setting: Setting) -> list[Record]:
    """What all probes see in a round."""
    cohort = done.cohort.tolist()
    return [row for probe in setting.probes for row in recorded(probe(done), done.after.round, cohort, setting.fleet.size)]


def finish(experiment: Experiment, run: Run, setting: Setting, state: State, stock: Stock) -> None:
    """The larger evaluation, the models, and the word that the run is over."""
    begun = perf_counter()
    rows = [row for row in run.records() if row.metric.startswith("final.")]  # there already if it was killed below
    if setting.final and not rows:
        rows = recorded(setting.final.at_the_end(state), state.round, [], setting.fleet.size)
        run.append(rows)
    save_model(run.folder / "model", setting.losses.model, experiment.tune, experiment.model, state.server)  # type: ignore[arg-type]
    run.timing(state.round, final=perf_counter() - begun)
    timings = run.timings()
    spent = {phase: sum(row.get(phase, 0.0) for row in timings) for phase in ("train", "evaluate", "store", "final")}
    tokens = sum(row.value for row in run.records() if row.metric == "train.tokens")
    run.finish({"rounds": state.round, "loss": last_loss(run.records()), "final_loss": last_loss(rows, "final.loss"),
                "seconds": spent, "train_tokens": tokens, "caveats": setting.caveats})


def timed(loop: Iterator[Round]) -> Iterator[tuple[Round, float]]:
    """The rounds, and the seconds that each took."""
    while True:
        begun = perf_counter()
        done = next(loop, None)
        if done is None:
            return
        yield done, perf_counter() - begun


def last_loss(rows: list[Record], metric: str = "loss") -> float:
    """The federation's latest loss in some records, NaN if there is none."""
    return next((row.value for row in reversed(rows) if row[1:4] == (metric, "", -1)), float("nan"))


def keep(run: Run, state: State) -> None:
    """Store all that a run is between two rounds."""
    trees: dict[str, Any] = {f"server.{f.name}": getattr(state.server, f.name) for f in fields(Server)}
    tensors = {f"{part}/{name}": leaf for part, tree in {**trees, "memory": state.memory, "moved": state.moved}.items()
               for name, leaf in tree.items()}
    tensors["group"] = state.group
    save_state(run.state_path, tensors, {"round": state.round, "leaves": list(tensors)})


def restored(run: Run, setting: Setting) -> State | None:
    """The state that was stored last, None if none was."""
    if not run.state_path.exists():
        return None
    stored, said = load_state(run.state_path)
    # In the order they were in, for sums over leaves; and cloned: numbers read from a file may lie at odd addresses,
    # where matrix products round differently.
    tensors = {name: stored[name].clone() for name in said["leaves"]}
    device = next(iter(setting.state.server.params.values())).device

    def tree(part: str) -> Tree:
        start = part + "/"
        return Tree({name[len(start):]: leaf for name, leaf in tensors.items() if name.startswith(start)})

    server = replace(setting.state.server, **{f.name: tree(f"server.{f.name}").to(device) for f in fields(Server)})
    return State(said["round"], server, tree("memory"), tensors["group"], tree("moved").to(device))
