"""A whole federation on this machine: Flower's simulation, or a SuperLink with a SuperNode a client on loopback."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..errors import UserError
from ..experiment import Experiment
from ..run import Progress, Watch, check_stored, describe_finished, last_loss, writable
from ..runtime import Runtime
from ..setting import resolve
from ..stock import Stock
from ..store import Run
from .commands import Tls, private, register, submit, superlink, supernode, write_app, write_connection
from .processes import Processes, free_port, processes, wait_for
from .terms import ARITHMETIC, Terms

LOOK = 1.0  # seconds between two looks at a run's records
ASK = 10.0  # and between two questions to Flower how it stands


def simulate(experiment: Experiment, stock: Stock, terms: Terms, watch: Watch = lambda progress: None) -> Run:
    """Carry an experiment out over Flower's simulation (Ray), one client after the other on each processor."""
    with (tempfile.TemporaryDirectory(prefix="fedrift-flower-", ignore_cleanup_errors=True) as folder,
          processes(Path(folder)) as made):
        return together(experiment, stock, terms, watch, made, simulation=True)


def deploy(experiment: Experiment, stock: Stock, terms: Terms, folder: Path, watch: Watch = lambda progress: None,
           data: Mapping[int, str] | None = None, tls: Tls | None = None, keys: Path | None = None) -> Run:
    """Carry an experiment out over real SuperNodes on loopback; Flower's files and logs are left in ``folder``.

    ``keys``: the folder of the nodes' keys, where only those may join."""
    with processes(folder.resolve()) as made:
        return together(experiment, stock, terms, watch, made, data=data or {}, tls=tls, keys=keys)


def together(experiment: Experiment, stock: Stock, terms: Terms, watch: Watch, made: Processes, *, simulation: bool = False,
             data: Mapping[int, str] | None = None, tls: Tls | None = None, keys: Path | None = None) -> Run:
    """Start everything, watch the run's records until it is over, and leave nothing behind."""
    if stock.runtime.micro is not None:
        raise UserError("--micro: over Flower every client trains in a process of its own, one in a pass; leave it out")
    experiment = resolve(experiment, stock)
    run = Run(writable(stock.runtime.root), experiment.id)
    check_stored(experiment, run, stock.runtime)
    if run.finished:
        stock.runtime.say(f"run {run.id[:6]}: {describe_finished(run)}: not run again; --fresh runs it")
        return run
    clients = experiment.partition.clients
    port, home = free_port(), made.folder / "flwr"
    address = f"127.0.0.1:{port}"
    app = write_app(made.folder / "app", experiment.written(), {
        **configured(stock.runtime, terms), "keeps": str((run.folder / "clients").resolve())})
    write_connection(home, address, tls)
    link = made.start("superlink", superlink("127.0.0.1", port, tls, authenticate=bool(keys), simulation=simulation))
    if not wait_for(port, link):
        raise UserError(f"Flower's SuperLink did not start:\n{made.log('superlink')}")
    if not simulation:
        for client in range(clients):
            key = private(keys, client)
            if key:
                made.ask(register(f"{key}.pub"))
            made.start(f"client-{client}",
                       supernode(client, address, free_port(), tls, data=(data or {}).get(client, ""), key=key))
    number = made.submit(submit(app, clients if simulation else None))
    watched(run, experiment.plan.rounds, watch, made, number)
    return run


def configured(runtime: Runtime, terms: Terms) -> dict[str, str | int | float | bool]:
    """What server and nodes read of the run's configuration."""
    said: dict[str, str | int | float | bool] = {
        "runs": str(runtime.root.resolve()), "cwd": os.getcwd(), "device": runtime.device, "dtype": runtime.dtype,
        **asdict(terms)}
    said |= {name: value for name in ARITHMETIC if (value := getattr(runtime, name)) != getattr(Runtime(), name)}
    if runtime.threads:
        said["threads"] = runtime.threads
    if runtime.keep_updates:
        said["keep_updates"] = True
    if runtime.data:
        said["corpora"] = str(runtime.data.resolve())
    return said


def watched(run: Run, until: int, watch: Watch, made: Processes, number: int) -> None:
    """Tell how far the run is, until it is over; UserError with what Flower logged if it fails."""
    asked, told = time.monotonic(), -1
    while not run.finished:
        time.sleep(LOOK)
        rows = run.records() if (run.folder / "records.jsonl").exists() else []
        reached = max((row.round for row in rows), default=-1)
        if reached > told:
            watch(Progress(run.id, reached, until, last_loss(rows)))
            told = reached
        if time.monotonic() - asked > ASK:
            status, asked = made.status(number), time.monotonic()
            if status.startswith("finished") and not run.finished:
                known = (run.folder / "failed.json").exists()
                failed = run.read_json("failed")["message"] if known else made.log("superlink", 25)
                raise UserError(f"the run ended as {status} before it was done: {failed}")
    watch(Progress(run.id, until, until, last_loss(run.records())))


__all__ = ["deploy", "simulate", "together"]
