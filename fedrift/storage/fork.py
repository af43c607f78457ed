"""What a run cannot be forked into, and the way out of each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..algorithms import FedAvg
from ..config.schema import ExperimentConfig, ForkConfig, parse_stored_config
from ..core.errors import UserError
from ..core.tree import Tree
from ..core.types import ClientStateStore, CohortUpdate, FederatedState
from ..engine.build import RunContext
from ..simulation import ClientPool
from ..simulation.simulator import ClientAlgorithm
from .checkpoint import Checkpoint, check_history, get_device, load_checkpoint
from .index import find_run
from .run import Run
from .updates import UpdateLog

CHANGEABLE_KEYS = ("algorithm", "training", "fork")  # of an experiment, that a fork may change
CHANGEABLE_HINT = "exclude_clients, algorithm.*, and of training all but max_seq_length"


def check_fork(origin: Run, old_config: ExperimentConfig, new_config: ExperimentConfig, fork: ForkConfig) -> None:
    """Raise UserError where ``new`` is no fork of the ``origin``, of which ``old`` was asked."""
    record = UpdateLog(origin)
    name, kept = origin.id[:6], record.rounds
    if old_config.fork:
        raise UserError(f"run {name} is a fork of {old_config.fork.run[:6]} itself; fork {old_config.fork.run[:6]}, with both changes")
    if origin.environment.get("engine", {}).get("backend") == "flower":
        raise UserError(
            f"run {name} was trained by clients behind Flower, who cannot be asked again from here; run its "
            "experiment on this machine, in another folder: `fedrift run ... --save-updates --runs-dir ELSEWHERE`"
        )
    if len(kept) < 2:
        raise UserError(
            f"run {name} kept no updates, so there is nothing to fork from. `fedrift run EXPERIMENT.yaml "
            "--save-updates` keeps them from its next round on; of a finished run in another folder (--runs-dir), "
            f"or once {origin.folder} is removed"
        )
    if not kept[0] < fork.from_round <= kept[-1]:
        raise UserError(
            f"run {name} cannot be forked at round {fork.from_round}: wanted {kept[0] + 1} to {kept[-1]}, the rounds whose updates it kept"
        )
    if new_config.training.num_rounds < fork.from_round:
        raise UserError(
            f"training.num_rounds: {new_config.training.num_rounds} rounds end before round {fork.from_round}, where the fork begins"
        )
    check_excluded_clients(name, len(record.load_params(kept[0])[2]), fork)
    closed = [
        f.name
        for f in fields(ExperimentConfig)
        if f.name not in CHANGEABLE_KEYS and getattr(old_config, f.name) != getattr(new_config, f.name)
    ]
    if old_config.training.max_seq_length != new_config.training.max_seq_length:
        closed.append("training.max_seq_length")
    if closed:
        raise UserError(
            f"a fork cannot change {', '.join(closed)}: the rounds before {fork.from_round} were made with it. It may "
            f"change {CHANGEABLE_HINT}. `fedrift run` makes a run of its own with anything"
        )
    check_algorithms_compatible(old_config, new_config)


def check_excluded_clients(run_id: str, num_clients: int, fork: ForkConfig) -> None:
    """Those to be left out are clients, and some are left."""
    odd = [client for client in fork.exclude_clients if not 0 <= client < num_clients]
    if odd:
        raise UserError(f"exclude_clients: run {run_id} has clients 0 to {num_clients - 1}, and no {', '.join(map(str, odd))}")
    if num_clients <= len(set(fork.exclude_clients)):
        raise UserError(f"exclude_clients: all {num_clients} clients of run {run_id} would be left out; leave one in")
    if fork.exclude_until is not None and fork.exclude_until < fork.from_round:
        raise UserError(f"exclude_until: wanted a round from {fork.from_round} on, where the fork begins, got {fork.exclude_until}")
    if fork.exclude_until is not None and not fork.exclude_clients:
        raise UserError("exclude_until says how long clients are left out: say which with exclude_clients")


def check_algorithms_compatible(old_config: ExperimentConfig, new_config: ExperimentConfig) -> None:
    """The same clients take part, and share models in the same way."""
    one, two = old_config.algorithm, new_config.algorithm
    same = replace(two, server_optimizer=one.server_optimizer, aggregator=one.aggregator) if type(one) is type(two) else two
    if same == one:
        return
    clients = old_config.partition.num_clients
    if type(one).configure_clients is not type(two).configure_clients or not torch.equal(
        one.initial_clusters(clients), two.initial_clusters(clients)
    ):
        raise UserError(
            f"{type(one).__name__} cannot become {type(two).__name__} half-way: other clients take part, or they "
            "share models in another way. `fedrift run` makes a run of its own"
        )


# Clients left out by a fork: they are called and train as before, and what they send counts for nothing.
#
# Cohorts, batches and everybody else's work stay what they were, so that what differs is the absence and nothing beside it. Before
# the server such a client is one that failed: weight 0, delta 0, its memory as it was.

EXCLUDED_REASON = "excluded by the fork"


@dataclass(frozen=True, eq=False)
class ForkedClientPool:
    """A fleet from a fork on. ``sent``: the cohort and report that the first round takes from the record, if it does."""

    client_pool: ClientPool
    fork: ForkConfig
    load_recorded: Callable[[], tuple[Tensor, CohortUpdate]] | None = None

    @property
    def size(self) -> int:
        return self.client_pool.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """One round of local training, ``cohort [C] -> CohortUpdate``."""
        if self.load_recorded and state.round + 1 == self.fork.from_round:
            recorded, report = self.load_recorded()
            if not torch.equal(recorded, cohort):
                raise ValueError(f"round {self.fork.from_round} was recorded of {recorded.tolist()}, and {cohort.tolist()} are called")
        else:
            report = self.client_pool.train(state, algorithm, cohort)
        gone = torch.isin(cohort, torch.tensor(self.fork.excluded_clients(state.round + 1), dtype=torch.long))
        return mask_excluded(report, state.client_states.gather(cohort), gone) if gone.any() else report


def mask_excluded(report: CohortUpdate, previous_state: Tree, is_excluded: Tensor) -> CohortUpdate:
    """The report in which those who are ``gone [C]`` failed; ``old [C, ...]``: what they remembered before."""
    here = ~is_excluded.to(report.weight.device)
    zeros, said = report.delta.zeros_like(), report.notes or ("",) * len(is_excluded)
    return replace(
        report,
        delta=report.delta.where(here, zeros),
        mean_grad=report.mean_grad.where(here, zeros),
        client_state=report.client_state.where(~is_excluded, previous_state),
        state_delta=report.state_delta.where(here, report.state_delta.zeros_like()),
        weight=report.weight * here,
        failed=report.failed | is_excluded,
        notes=tuple(EXCLUDED_REASON if out else why for out, why in zip(is_excluded.tolist(), said, strict=True)),
    )


# A fork: a run that resumes from the past of another, changed from one round on.
#
# What it shares with its origin it does not compute again: records, events and state are the origin's. In the first round that may
# differ the clients' own reports are taken from the record, unless the change touches what they would have sent.

CLIENT_HOOKS = (
    "init_client_state",
    "frozen_params",
    "init_local",
    "local_regularizer",
    "transform_grad",
    "after_step",
    "on_step_end",
    "client_update",
    "personal_algorithm",
    "update_client_state",
)


@dataclass(frozen=True, eq=False)
class ForkedRun:
    """A fork ``run`` and the run that it parts from, with what was asked of both."""

    run: Run
    origin: Run
    origin_config: ExperimentConfig
    config: ExperimentConfig
    fork: ForkConfig

    @staticmethod
    def from_config(run: Run, config: ExperimentConfig) -> ForkedRun | None:
        """None where the experiment is no fork. Raises UserError where the run it names cannot be forked so."""
        if config.fork is None:
            return None
        origin = find_run(run.root, config.fork.run)
        old = load_run_config(origin)
        check_fork(origin, old, config, config.fork)
        return ForkedRun(run, origin, old, config, config.fork)

    def copy_history(self) -> None:
        """Begin the fork's folder: all that its origin wrote of the rounds before, and its environment."""
        before, run = self.fork.from_round, self.run
        run.truncate_after(-1)
        run.write_json("environment", self.origin.environment)  # the same choices of arithmetic, or the last bits differ
        run.append_records(row for row in self.origin.records() if row.round < before)
        for event in self.origin.events():
            if event["round"] < before:
                run.log_event(**event)
        for took in self.origin.timings():
            if took["round"] < before:
                run.log_timing(**took)
        if decisions := self.origin.cluster_assignments():
            run.write_json("clustering", [said for said in decisions if said["round"] < before])
        run.log_event(before - 1, "fork", f"it goes on {self.description} from here; so far it is run {self.origin.id}")

    def load_origin_state(self, context: RunContext) -> FederatedState:
        """The origin's state before the fork's first round, as the fork's algorithm has it."""
        where = get_device(context.initial_state)
        return convert_state(
            UpdateLog(self.origin).load_state(self.fork.from_round - 1, where), self.origin_config.algorithm, self.config.algorithm
        )

    def wrap_client_pool(self, client_pool: ClientPool, context: RunContext) -> ClientPool:
        """The fleet, with the record in place of the first round where that is right, and without those left out."""
        sent = (
            partial(UpdateLog(self.origin).load_update, self.fork.from_round, get_device(context.initial_state))
            if self.can_reuse_updates
            else None
        )
        return ForkedClientPool(client_pool, self.fork, sent)

    @cached_property
    def can_reuse_updates(self) -> bool:
        """Whether the clients would have sent the same in the fork's first round."""
        return is_server_side_change(self.origin_config, self.config, self.fork.from_round, self.leaf_names)

    @property
    def leaf_names(self) -> Collection[str]:
        return UpdateLog(self.origin).load_params(self.fork.from_round - 1)[0].keys()

    @property
    def description(self) -> str:
        """What is changed, in words: ``without client 3 up to round 9, with training.max_grad_norm 0.5 instead of 1.0``."""
        gone, until = self.fork.exclude_clients, self.fork.exclude_until
        without = f"without client{'s' if len(gone) > 1 else ''} {', '.join(map(str, gone))}" + (f" up to round {until}" if until else "")
        other = [
            f"{path} {new}" + (f" instead of {old}" if old is not None else "")
            for path, old, new in list_changes(self.origin_config, self.config)
            if new is not None
        ]
        words = ([without] if gone else []) + ([f"with {', '.join(other)}"] if other else [])
        return ", ".join(words) or "with nothing changed"


def load_run_config(run: Run) -> ExperimentConfig:
    """The experiment of a stored run."""
    return parse_stored_config(run.config)


def list_changes(old_config: ExperimentConfig, new_config: ExperimentConfig) -> list[tuple[str, object, object]]:
    """Path, old and new value of everything that is not the same in two experiments, but for the fork."""
    one, two = flatten_config(old_config.to_dict()), flatten_config(new_config.to_dict())
    return [
        (path, one.get(path), two.get(path)) for path in {**one, **two} if one.get(path) != two.get(path) and path.split(".")[0] != "fork"
    ]


def flatten_config(value: object, path: str = "") -> dict[str, object]:
    """Nested keys as dotted paths; the class of a value goes by the path of the value."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        at: leaf
        for key, part in value.items()
        for at, leaf in flatten_config(part, path if key == "type" else f"{path}.{key}" if path else key).items()
    }


def is_server_side_change(old_config: ExperimentConfig, new_config: ExperimentConfig, round: int, leaf_names: Collection[str]) -> bool:
    """Whether a change leaves what the clients send in this round: they train the same steps at the same rate by the same
    hooks. (What is sent to them is the same in any case: the state is.)"""
    alike = (
        replace(new_config.training, num_rounds=old_config.training.num_rounds, lr_schedule=old_config.training.lr_schedule)
        == old_config.training
    )
    if not alike or old_config.training.lr_factor(round - 1) != new_config.training.lr_factor(round - 1):
        return False
    one, two = old_config.algorithm, new_config.algorithm
    if one.frozen_params(leaf_names, round - 1) != two.frozen_params(leaf_names, round - 1):
        return False
    if type(one) is type(two):
        return replace(two, server_optimizer=one.server_optimizer, aggregator=one.aggregator) == one
    return all(
        getattr(type(each), hook) is getattr(FedAvg, hook) for each in (one, two) for hook in CLIENT_HOOKS if hook != "frozen_params"
    )


def convert_state(state: FederatedState, old_algorithm: FedAvg, new_algorithm: FedAvg) -> FederatedState:
    """The state under another algorithm: the models stay; what the new one keeps and the old one did not begins anew.

    A server rule that stays of its class keeps its moments, an algorithm that stays of its class what it shares and remembers.
    What was merged under the adapters stays, for it is part of the model.
    """
    if old_algorithm == new_algorithm:
        return state
    server, params = state.server, state.server.params
    fresh = new_algorithm.server_optimizer.init(params)
    same, rule = (
        type(old_algorithm) is type(new_algorithm),
        type(old_algorithm.server_optimizer) is type(new_algorithm.server_optimizer) and fresh.keys() == server.opt_state.keys(),
    )
    shared = server.broadcast if same else new_algorithm.init_broadcast(params)
    kept = new_algorithm.init_client_state(params.to(torch.device("cpu")).take(state.cluster_ids.cpu()))
    averages = state.client_means if same else Tree()  # of another memory: the round loop computes them anew
    return replace(
        state,
        client_states=state.client_states if same else ClientStateStore.from_rows(kept, len(state.cluster_ids)),
        client_means=averages,
        server=replace(
            server,
            broadcast=shared,
            opt_state=server.opt_state if rule else fresh,
            merged_base=server.merged_base or new_algorithm.aggregator.init_merged_base(params),
        ),
    )


__all__ = [
    "Checkpoint",
    "ForkedClientPool",
    "ForkedRun",
    "UpdateLog",
    "check_history",
    "convert_state",
    "is_server_side_change",
    "list_changes",
    "load_checkpoint",
    "load_run_config",
    "mask_excluded",
]
