"""Carrying out an experiment: begin it, resume it, or find it finished."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from .detectors.explosion import exploded
from .errors import UserError
from .experiment import Experiment, differences
from .fleet import Fleet
from .models.export import save_model, save_personal
from .models.tune import Lora
from .probes import Past, over, recorded, served, told
from .recording import Checkpoint, Parting, Updates, check_history
from .records import Record
from .rounds import rounds
from .runtime import ARITHMETIC, Runtime
from .setting import Setting, prepare, resolve
from .stock import Stock
from .store import Run, describe, move_aside, settle
from .values import Round, State

SHORT = 10.0  # seconds of training; below, nothing is worth saving


class Progress(NamedTuple):
    """Told after every round: how far a run is, and its latest loss (NaN between evaluations)."""

    run: str
    round: int
    until: int
    loss: float


Watch = Callable[[Progress], None]
Recruit = Callable[[Experiment, Setting, Run], Fleet]
"""Who trains, where that is not this machine: the fleet in place of the setting's own."""


def carry_out(experiment: Experiment, stock: Stock | None = None, watch: Watch = lambda progress: None,
              recruit: Recruit | None = None, fresh: bool = False) -> Run:
    """Run an experiment to its end, from where it stands; a finished run is returned as it is.

    Killed at any moment, it goes on from the last stored round when asked again, bit for bit as if nothing
    had happened.

    Args:
        experiment: What to run.
        stock: What runs share, and the runtime.
        watch: Told after every round.
        recruit: Who trains, where that is not this machine.
        fresh: Whether a stored run is moved aside and run anew.

    Raises:
        UserError: The stored run of this id is another experiment's, or is finished in another arithmetic than is asked for.
    """
    stock = stock or Stock()
    experiment = resolve(experiment, stock)
    run = Run(writable(stock.runtime.root), experiment.id)
    if fresh:
        replace_stored(experiment, stock)
    check_stored(experiment, run, stock.runtime)
    if run.finished:
        stock.runtime.say(f"run {run.id[:6]}: {describe_finished(run)}: not run again; --fresh runs it")
        return run
    with run.lock():
        try:
            _carry_out(experiment, run, stock, watch, recruit)
        except Exception as error:
            note_failure(run, error)
            raise
    return run


def replace_stored(experiment: Experiment, stock: Stock) -> None:
    """Move the stored run of an experiment aside, if there is one; first the experiment is prepared, so that what cannot be run
    moves nothing."""
    experiment = resolve(experiment, stock)
    run = Run(stock.runtime.root, experiment.id)
    if run.folder.exists():
        Parting.of(run, experiment)
        prepare(experiment, stock)
        stock.runtime.say(f"run {run.id[:6]}: the stored run is now in {move_aside(run)}")


def check_stored(experiment: Experiment, run: Run, runtime: Runtime) -> None:
    """Raise UserError unless a stored run answers what is asked: the same experiment and, if it is finished, in an arithmetic
    that is not ruled out."""
    if not run.finished and not (run.folder / "experiment.json").exists():
        return
    unlike = differences(experiment.stored(), run.experiment)
    if unlike:
        more = f" (and {len(unlike) - 1} more)" if len(unlike) > 1 else ""
        raise UserError(f"{run.folder} holds another experiment than its name says: {unlike[0]}{more}. --fresh moves that folder "
                        "aside and runs what is asked")
    if run.finished:
        stored = {**ARITHMETIC, **run.environment.get("engine", {})}
        for name, choice in runtime.wanted().items():
            if stored[name] != choice:
                raise UserError(f"run {run.id[:6]} is {describe_finished(run)}, with {name}={stored[name]}, and {name}={choice} "
                                f"is asked: --fresh runs it anew and keeps the old run; without {name} the old one is shown")


def describe_finished(run: Run) -> str:
    """``finished on 2026-11-29, float32 on cpu, fedrift 0.1.0``: when, and with what, a run was made."""
    environment, date = run.environment, str(run.read_json("finished").get("date", ""))
    engine = {**ARITHMETIC, **environment.get("engine", {})}
    rest = [name for name in ("tf32", "compiled") if engine[name]] + ([] if engine["deterministic"] else ["not deterministic"])
    version = environment.get("packages", {}).get("fedrift") or "of an unknown version"
    when = f"finished on {date[:10]}" if date else "finished on a day that was not stored"
    how = f"{engine['dtype']} on {environment.get('device', 'an unknown device')}"
    return ", ".join([when, how, *rest, f"fedrift {version}"])


def note_failure(run: Run, error: Exception) -> None:
    """Store why a run stopped, with the traceback. What goes wrong in that is added to the error and hides nothing."""
    unforeseen = not isinstance(error, UserError)
    if not unforeseen and not (run.folder / "experiment.json").exists():
        return  # nothing has begun that could have failed
    try:
        reached = int(run.trajectory().rounds.max(initial=0))
    except Exception:  # its rows may be what is wrong
        reached = 0
    try:
        run.fail(reached, f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
    except Exception as second:
        error.add_note(f"This could not be stored in {run.folder / 'failed.json'}: {second}")
    else:
        if unforeseen:
            error.add_note(f"The traceback is stored in {run.folder / 'failed.json'}")


def writable(root: Path) -> Path:
    """The folder of the runs, made if it is not there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"runs cannot be kept in {root}: {error.strerror}; name another folder (--runs)") from error
    return root


def _carry_out(experiment: Experiment, run: Run, stock: Stock, watch: Watch, recruit: Recruit | None) -> None:
    plan, algorithm, parting = experiment.plan, experiment.algorithm, Parting.of(run, experiment)
    check_history(run)
    if parting and not run.state_path.exists():
        parting.inherit()
    setting = prepare(experiment, stock, run.environment.get("engine"), worn=recruit is None or "memory" in algorithm.tells)
    run.write_json("experiment", {**experiment.stored(), "id": experiment.id, "partition_table": setting.table})
    engine = {name: choice for name, choice in setting.engine.items() if name != "fleet"}
    if recruit:
        engine["fleet"] = "flower"  # half of what such a run remembers is elsewhere: it cannot go on without
    changed = settle(run, describe(
        str(stock.runtime.torch_device()), torch.get_num_threads(), engine, together=stock.meeting is not None))
    checkpoint, updates = Checkpoint(run), Updates(run)
    state = checkpoint.load(setting.state)
    if state is None and parting:
        state = parting.state(setting)
        checkpoint.save(state)
    run.rewind(state.round if state else -1)
    past = Past()
    if state is None:
        state = setting.state
        for caveat in setting.caveats:
            run.event(0, "caveat", caveat)
        reading, looks = setting.panel.first(setting.work.worn(state), past)
        reading |= setting.grouping.of(state) if setting.grouping else {}
        run.append(recorded(reading, 0, [], setting.fleet.size))
        decided(run, setting)
        run.timing(0, **named(looks))
        checkpoint.save(state)
    recording = bool(stock.runtime.keep_updates or updates.rounds or parting)  # a record that was begun has no gaps
    if recording:
        updates.begin(state)
    setting.work.told.clear()  # what a run that resumes decided at its beginning is written down
    for difference in changed:
        run.event(state.round, "resumed elsewhere", difference)
    earlier = run.records()
    past.note(earlier)
    watch(Progress(run.id, state.round, plan.rounds, last_loss(earlier)))
    del earlier

    fleet = recruit(experiment, setting, run) if recruit else setting.fleet
    work = setting.work
    hands = parting.fleet(work.fleet(fleet), setting) if parting else work.fleet(fleet)
    loop = rounds(state, hands, algorithm, until=plan.rounds, cohort=setting.cohort, seed=experiment.seed,
                  regroup=work.regroup, draw=work.draw)
    for done, spent in timed(loop):
        begun = perf_counter()
        rows, looks = observe(done, setting, past)
        measured = perf_counter()
        state = done.after
        for client, kind, why in remarks(done):
            run.event(state.round, kind, why, client)
        for client, why in exploded(rows):
            run.event(state.round, "update exploded", why, client)
        run.append(rows)
        decided(run, setting)
        if recording:
            updates.add(done)
        if state.round % stock.runtime.checkpoint == 0 or state.round == plan.rounds:
            checkpoint.save(state)  # rows first, state second: a crash between them repeats the round
        run.timing(state.round, train=spent, evaluate=measured - begun, store=perf_counter() - measured, **named(looks))
        watch(Progress(run.id, state.round, plan.rounds, last_loss(rows)))
    finish(experiment, run, setting, state, stock, here=recruit is None)


def observe(done: Round, setting: Setting, past: Past) -> tuple[list[Record], dict[str, float]]:
    """What the panel sees in a round, noted in the ``past`` of the next, and the seconds of each look."""
    reading, looks = setting.panel(setting.work.seen(done), past)
    reading |= setting.grouping(done) if setting.grouping else {}
    rows = recorded(reading, done.after.round, done.cohort.tolist(), setting.fleet.size)
    past.note(rows)
    return rows, looks


def remarks(done: Round) -> Iterator[tuple[int, str, str]]:
    """What is to be said of single clients: number, kind, and in words."""
    for row, client in enumerate(done.cohort.tolist()):
        why = done.report.why[row] if done.report.why else ""
        if done.report.failed[row]:
            yield client, "client failed", why or "non-finite numbers: left out of the mean, its memory kept"
        elif why:
            yield client, "client", why


def decided(run: Run, setting: Setting) -> None:
    """Write down what the mitigation has decided since: an event each, and the whole of it in mitigation.json."""
    for round, decision in setting.work.told:
        run.write_json("mitigation", [*(said for said in run.decisions() if said["round"] < round), decision.said(round)])
        run.event(round, "mitigation", decision.sentence())
    setting.work.told.clear()


def named(looks: dict[str, float]) -> dict[str, float]:
    """The seconds of each look, as the timings call them."""
    return {f"probe.{name}": seconds for name, seconds in looks.items()}


def finish(experiment: Experiment, run: Run, setting: Setting, state: State, stock: Stock, here: bool) -> None:
    """The larger evaluation, the models, and the word that the run is over. ``here``: whether clients' memories are."""
    begun = perf_counter()
    records = run.records()
    rows = [row for row in records if row.metric.startswith("final.")]  # there already if it was killed below
    if setting.final and not rows:
        used = setting.work.worn(state)
        reading = setting.final.at_the_end(used) | served(setting.final, used)
        rows = recorded(reading, state.round, [], setting.fleet.size)
        run.append(rows)
    save_model(run.folder / "model", setting.model, experiment.tune, experiment.model, state.server)
    algorithm, tune = experiment.algorithm, experiment.tune
    if here and algorithm.personal and isinstance(tune, Lora) and not state.server.base:
        own = state.server.params.rows(state.group)
        save_personal(run.folder / "model" / "clients", setting.model, tune, experiment.model,
                      algorithm.wear(own, state.memory.whole().to(next(iter(own.values())).device)))
    run.timing(state.round, final=perf_counter() - begun)
    timings = run.timings()
    spent = {phase: sum(row.get(phase, 0.0) for row in timings) for phase in ("train", "evaluate", "store", "final")}
    tokens = sum(row.value for row in records if row.metric == "train.tokens")
    panel = told(timings, setting.panel)
    warning = over(panel, spent["train"], setting.panel)
    if warning and spent["train"] > SHORT:
        run.event(state.round, "panel over budget", warning)
    run.finish({"rounds": state.round, "date": datetime.now(UTC).isoformat(timespec="seconds"), "loss": last_loss(records),
                "final_loss": last_loss(rows, "final.loss"), "seconds": spent, "panel": panel, "train_tokens": tokens,
                "caveats": setting.caveats, **kept(Updates(run))})


def kept(updates: Updates) -> dict[str, dict[str, int]]:
    """How large the record of the clients' updates is, where there is one."""
    return {"updates": {"rounds": len(updates.rounds) - 1, "bytes": updates.bytes}} if updates.rounds else {}


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
