"""What a run cannot be forked into, and the way out of each."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from ..errors import UserError
from ..experiment import Experiment, Fork
from ..store import Run
from .updates import Updates

OPEN = ("algorithm", "plan", "fork")  # of an experiment, that a fork may change
MAY = "drop_client, algorithm.*, and of the plan all but seq_len"


def refused(origin: Run, old: Experiment, new: Experiment, fork: Fork) -> None:
    """Raise UserError where ``new`` is no fork of the ``origin``, of which ``old`` was asked."""
    record = Updates(origin)
    name, kept = origin.id[:6], record.rounds
    if old.fork:
        raise UserError(f"run {name} is a fork of {old.fork.run[:6]} itself; replay {old.fork.run[:6]}, with both changes")
    if origin.environment.get("engine", {}).get("fleet") == "flower":
        raise UserError(f"run {name} was trained by clients behind Flower, who cannot be asked again from here; run its "
                        "experiment on this machine, in another folder: `fedrift run ... --keep-updates --runs ELSEWHERE`")
    if len(kept) < 2:
        raise UserError(f"run {name} kept no updates, so there is nothing to replay. `fedrift run EXPERIMENT.yaml "
                        "--keep-updates` keeps them from its next round on; of a finished run in another folder (--runs), "
                        f"or once {origin.folder} is removed")
    if not kept[0] < fork.round <= kept[-1]:
        raise UserError(f"round {fork.round} of run {name} cannot be replayed: wanted {kept[0] + 1} to {kept[-1]}, the rounds "
                        "whose updates it kept")
    if new.plan.rounds < fork.round:
        raise UserError(f"plan.rounds: {new.plan.rounds} rounds end before round {fork.round}, where the fork begins")
    clients_there(name, len(record.params(kept[0])[2]), fork)
    closed = [f.name for f in fields(Experiment) if f.name not in OPEN and getattr(old, f.name) != getattr(new, f.name)]
    if old.plan.seq_len != new.plan.seq_len:
        closed.append("plan.seq_len")
    if closed:
        raise UserError(f"a replay cannot change {', '.join(closed)}: the rounds before {fork.round} were made with it. It may "
                        f"change {MAY}. `fedrift run` makes a run of its own with anything")
    algorithms_agree(old, new)


def clients_there(name: str, size: int, fork: Fork) -> None:
    """Those to be left out are clients, and some are left."""
    odd = [client for client in fork.drop_client if not 0 <= client < size]
    if odd:
        raise UserError(f"drop_client: run {name} has clients 0 to {size - 1}, and no {', '.join(map(str, odd))}")
    if size <= len(set(fork.drop_client)):
        raise UserError(f"drop_client: all {size} clients of run {name} would be left out; leave one in")
    if fork.drop_until is not None and fork.drop_until < fork.round:
        raise UserError(f"drop_until: wanted a round from {fork.round} on, where the fork begins, got {fork.drop_until}")
    if fork.drop_until is not None and not fork.drop_client:
        raise UserError("drop_until says how long clients are left out: say which with drop_client")


def algorithms_agree(old: Experiment, new: Experiment) -> None:
    """The same clients take part, and share models in the same way."""
    one, two = old.algorithm, new.algorithm
    same = replace(two, server=one.server, aggregate=one.aggregate) if type(one) is type(two) else two
    if same == one:
        return
    clients = old.partition.clients
    if type(one).enroll is not type(two).enroll or not torch.equal(one.groups(clients), two.groups(clients)):
        raise UserError(f"{type(one).__name__} cannot become {type(two).__name__} half-way: other clients take part, or they "
                        "share models in another way. `fedrift run` makes a run of its own")
