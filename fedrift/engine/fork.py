"""Forks: a run that repeats the stored past of another run and differs from it from one round on.

A fork copies the records, events and state of its origin instead of computing them again. In its first round it reuses the recorded updates
of the clients, unless the change affects what clients would send.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from ..algorithms import FedAvg
from ..algorithms.base import LOCAL_HOOKS
from ..config.schema import ExperimentConfig, ForkConfig, parse_stored_config
from ..core.errors import UserError
from ..core.tree import Tree
from ..core.types import ClientStateStore, CohortUpdate, FederatedState
from ..simulation import ClientPool
from ..simulation.simulator import ClientAlgorithm
from ..storage.index import find_run
from ..storage.run import Run
from ..storage.updates import UpdateLog
from .build import RunContext

CHANGEABLE_KEYS = ("algorithm", "training", "fork")  # the keys of an experiment that a fork may change
CHANGEABLE_HINT = "exclude_clients, algorithm.*, and training.* except training.max_seq_length"


def check_fork(origin: Run, old_config: ExperimentConfig, new_config: ExperimentConfig, fork: ForkConfig) -> None:
    """Raise UserError if ``new_config`` is not a valid fork of a run.

    Args:
        origin: The run to fork.
        old_config: The experiment of the origin.
        new_config: The experiment of the fork.
        fork: The round from which the fork differs, and the excluded clients.
    """
    log = UpdateLog(origin)
    name, recorded = origin.id[:6], log.rounds
    if old_config.fork:
        raise UserError(f"run {name} is itself a fork; fork {old_config.fork.run[:6]} instead, with both changes")
    if origin.environment.get("engine", {}).get("backend") == "flower":
        raise UserError(
            f"run {name} was trained by remote clients behind Flower, which a fork cannot call again; run its "
            "experiment on this machine, in another folder: `fedrift run ... --save-updates --runs-dir ELSEWHERE`"
        )
    if len(recorded) < 2:
        raise UserError(
            f"run {name} has no stored updates, so it cannot be forked. `fedrift run EXPERIMENT.yaml --save-updates` stores them from "
            "the next round on. If the run is finished, `fedrift run EXPERIMENT.yaml --save-updates --fresh` runs it again and keeps the "
            "stored run in replaced/"
        )
    if not recorded[0] < fork.from_round <= recorded[-1]:
        raise UserError(
            f"run {name} cannot be forked at round {fork.from_round}: the round must be {recorded[0] + 1} to {recorded[-1]}, "
            "whose updates were stored"
        )
    if new_config.training.num_rounds < fork.from_round:
        raise UserError(
            f"training.num_rounds: must be at least {fork.from_round}, the first round of the fork, got {new_config.training.num_rounds}"
        )
    check_excluded_clients(name, len(log.load_params(recorded[0])[2]), fork)
    changed = [
        f.name
        for f in fields(ExperimentConfig)
        if f.name not in CHANGEABLE_KEYS and getattr(old_config, f.name) != getattr(new_config, f.name)
    ]
    if old_config.training.max_seq_length != new_config.training.max_seq_length:
        changed.append("training.max_seq_length")
    if changed:
        raise UserError(
            f"a fork cannot change {', '.join(changed)}, because the rounds before {fork.from_round} used the old value. It can "
            f"change {CHANGEABLE_HINT}. Use `fedrift run` for a new run with other changes"
        )
    check_algorithms_compatible(old_config, new_config)


def check_excluded_clients(run_id: str, num_clients: int, fork: ForkConfig) -> None:
    """Raise UserError unless the excluded clients exist, some clients remain, and ``exclude_until`` is valid."""
    unknown = [client for client in fork.exclude_clients if not 0 <= client < num_clients]
    if unknown:
        raise UserError(f"exclude_clients: run {run_id} has clients 0 to {num_clients - 1}, but not {', '.join(map(str, unknown))}")
    if num_clients <= len(set(fork.exclude_clients)):
        raise UserError(f"exclude_clients: all {num_clients} clients of run {run_id} would be excluded; keep at least one")
    if fork.exclude_until is not None and fork.exclude_until < fork.from_round:
        raise UserError(f"exclude_until: must be at least {fork.from_round}, the first round of the fork, got {fork.exclude_until}")
    if fork.exclude_until is not None and not fork.exclude_clients:
        raise UserError("exclude_until has no effect without exclude_clients; name the clients to exclude")


def check_algorithms_compatible(old_config: ExperimentConfig, new_config: ExperimentConfig) -> None:
    """Raise UserError unless both algorithms have the same participating clients and share models in the same way."""
    old_algorithm, new_algorithm = old_config.algorithm, new_config.algorithm
    comparable = (
        replace(new_algorithm, server_optimizer=old_algorithm.server_optimizer, aggregator=old_algorithm.aggregator)
        if type(old_algorithm) is type(new_algorithm)
        else new_algorithm
    )
    if comparable == old_algorithm:
        return
    num_clients = old_config.partition.num_clients
    if type(old_algorithm).configure_clients is not type(new_algorithm).configure_clients or not torch.equal(
        old_algorithm.initial_clusters(num_clients), new_algorithm.initial_clusters(num_clients)
    ):
        raise UserError(
            f"{type(old_algorithm).__name__} cannot become {type(new_algorithm).__name__} in a fork: other clients participate, or clients "
            "share models in another way. Use `fedrift run` for a new run"
        )


# Excluded clients are called and train as before, but their update is masked like that of a failed client: weight 0, delta 0, and the
# previous persistent state. So cohorts, batches and the updates of all other clients are unchanged, and the absence is the only difference.

EXCLUDED_REASON = "excluded by the fork"


@dataclass(frozen=True, eq=False)
class ForkedClientPool:
    """A client pool that excludes clients of a fork.

    ``load_recorded`` loads the cohort and the update of the first round from the update log; without it that round is trained again.
    """

    client_pool: ClientPool
    fork: ForkConfig
    load_recorded: Callable[[], tuple[Tensor, CohortUpdate]] | None = None

    @property
    def size(self) -> int:
        """Return the number of clients."""
        return self.client_pool.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """Run one round of local training and mask the excluded clients.

        Args:
            state: The state before the round.
            algorithm: The client side of the algorithm.
            cohort: The client ids, [C].
        """
        if self.load_recorded and state.round + 1 == self.fork.from_round:
            recorded, update = self.load_recorded()
            if not torch.equal(recorded, cohort):
                raise ValueError(
                    f"the recorded cohort of round {self.fork.from_round} is {recorded.tolist()}, but the cohort is {cohort.tolist()}"
                )
        else:
            update = self.client_pool.train(state, algorithm, cohort)
        is_excluded = torch.isin(cohort, torch.tensor(self.fork.excluded_clients(state.round + 1), dtype=torch.long))
        return mask_excluded(update, state.client_states.gather(cohort), is_excluded) if is_excluded.any() else update


def mask_excluded(update: CohortUpdate, previous_state: Tree, is_excluded: Tensor) -> CohortUpdate:
    """Return the update with the excluded clients marked as failed.

    Args:
        update: The update of the cohort.
        previous_state: The persistent states of the cohort before the round, [C, ...].
        is_excluded: [C] bool.
    """
    is_included = ~is_excluded.to(update.weight.device)
    zeros, notes = update.delta.zeros_like(), update.notes or ("",) * len(is_excluded)
    return replace(
        update,
        delta=update.delta.where(is_included, zeros),
        mean_grad=update.mean_grad.where(is_included, zeros),
        client_state=update.client_state.where(~is_excluded, previous_state),
        state_delta=update.state_delta.where(is_included, update.state_delta.zeros_like()),
        weight=update.weight * is_included,
        failed=update.failed | is_excluded,
        notes=tuple(EXCLUDED_REASON if excluded else note for excluded, note in zip(is_excluded.tolist(), notes, strict=True)),
    )


CLIENT_HOOKS = ("init_client_state", "frozen_params", *LOCAL_HOOKS)


@dataclass(frozen=True, eq=False)
class ForkedRun:
    """A fork and its origin, with the experiments of both."""

    run: Run
    origin: Run
    origin_config: ExperimentConfig
    config: ExperimentConfig
    fork: ForkConfig

    @staticmethod
    def from_config(run: Run, config: ExperimentConfig) -> ForkedRun | None:
        """Create the fork that an experiment describes, or return None if the experiment is not a fork.

        Args:
            run: The run of the fork.
            config: Its experiment.

        Raises:
            UserError: The origin does not exist, or cannot be forked in this way.
        """
        if config.fork is None:
            return None
        origin = find_run(run.root, config.fork.run)
        old_config = load_run_config(origin)
        check_fork(origin, old_config, config, config.fork)
        return ForkedRun(run, origin, old_config, config, config.fork)

    def copy_history(self) -> None:
        """Start the folder of the fork: copy the environment of the origin, and everything that it wrote about earlier rounds."""
        from_round, run = self.fork.from_round, self.run
        run.truncate_after(-1)
        run.write_json("environment", self.origin.environment)  # with other numeric options the last bits would differ
        run.append_records(row for row in self.origin.records() if row.round < from_round)
        for event in self.origin.events():
            if event["round"] < from_round:
                run.log_event(**event)
        for timing in self.origin.timings():
            if timing["round"] < from_round:
                run.log_timing(**timing)
        if assignments := self.origin.cluster_assignments():
            run.write_json("clustering", [assignment for assignment in assignments if assignment["round"] < from_round])
        run.log_event(
            from_round - 1, "fork", f"the run continues {self.description}; its rounds until here are those of run {self.origin.id}"
        )

    def load_origin_state(self, context: RunContext) -> FederatedState:
        """Load the state of the origin before the first round of the fork, converted for the algorithm of the fork."""
        device = context.initial_state.server.params.device
        return convert_state(
            UpdateLog(self.origin).load_state(self.fork.from_round - 1, device), self.origin_config.algorithm, self.config.algorithm
        )

    def wrap_client_pool(self, client_pool: ClientPool, context: RunContext) -> ClientPool:
        """Wrap the client pool: exclude clients, and reuse the recorded updates of the first round if they are valid."""
        load_recorded = (
            partial(UpdateLog(self.origin).load_update, self.fork.from_round, context.initial_state.server.params.device)
            if self.can_reuse_updates
            else None
        )
        return ForkedClientPool(client_pool, self.fork, load_recorded)

    @cached_property
    def can_reuse_updates(self) -> bool:
        """Return whether the clients would have sent the same updates in the first round of the fork."""
        return is_server_side_change(self.origin_config, self.config, self.fork.from_round, self.leaf_names)

    @property
    def leaf_names(self) -> Collection[str]:
        """Return the names of the trained parameters."""
        return UpdateLog(self.origin).load_params(self.fork.from_round - 1)[0].keys()

    @property
    def description(self) -> str:
        """Describe the change in words, for example ``without client 3 up to round 9, with training.max_grad_norm 0.5 instead of 1.0``."""
        excluded, until = self.fork.exclude_clients, self.fork.exclude_until
        clients = f"client{'s' if len(excluded) > 1 else ''} {', '.join(map(str, excluded))}"
        without = f"without {clients}" + (f" up to round {until}" if until else "")
        changes = [
            f"{path} {new}" + (f" instead of {old}" if old is not None else "")
            for path, old, new in list_changes(self.origin_config, self.config)
            if new is not None
        ]
        parts = ([without] if excluded else []) + ([f"with {', '.join(changes)}"] if changes else [])
        return ", ".join(parts) or "with nothing changed"


def load_run_config(run: Run) -> ExperimentConfig:
    """Load the experiment of a stored run."""
    return parse_stored_config(run.config)


def list_changes(old_config: ExperimentConfig, new_config: ExperimentConfig) -> list[tuple[str, object, object]]:
    """List (path, old value, new value) of everything that differs between two experiments, except the ``fork`` section."""
    old_values, new_values = flatten_config(old_config.to_dict()), flatten_config(new_config.to_dict())
    return [
        (path, old_values.get(path), new_values.get(path))
        for path in {**old_values, **new_values}
        if old_values.get(path) != new_values.get(path) and path.split(".")[0] != "fork"
    ]


def flatten_config(value: object, path: str = "") -> dict[str, object]:
    """Flatten nested keys to dotted paths; the class name of a value gets the path of the value."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        leaf_path: leaf
        for key, child in value.items()
        for leaf_path, leaf in flatten_config(child, path if key == "type" else f"{path}.{key}" if path else key).items()
    }


def is_server_side_change(old_config: ExperimentConfig, new_config: ExperimentConfig, round: int, leaf_names: Collection[str]) -> bool:
    """Return whether a change leaves the updates of the clients in this round unchanged.

    This is the case if the clients train the same steps at the same learning rate with the same hooks. What the server sends them is equal
    in any case, because the state is equal.

    Args:
        old_config: The experiment of the origin.
        new_config: The experiment of the fork.
        round: The first round of the fork.
        leaf_names: The names of the trained parameters.
    """
    same_training = (
        replace(new_config.training, num_rounds=old_config.training.num_rounds, lr_schedule=old_config.training.lr_schedule)
        == old_config.training
    )
    if not same_training or old_config.training.lr_factor(round - 1) != new_config.training.lr_factor(round - 1):
        return False
    old_algorithm, new_algorithm = old_config.algorithm, new_config.algorithm
    if old_algorithm.frozen_params(leaf_names, round - 1) != new_algorithm.frozen_params(leaf_names, round - 1):
        return False
    if type(old_algorithm) is type(new_algorithm):
        return replace(new_algorithm, server_optimizer=old_algorithm.server_optimizer, aggregator=old_algorithm.aggregator) == old_algorithm
    return all(
        getattr(type(algorithm), hook) is getattr(FedAvg, hook)
        for algorithm in (old_algorithm, new_algorithm)
        for hook in CLIENT_HOOKS
        if hook != "frozen_params"
    )


def convert_state(state: FederatedState, old_algorithm: FedAvg, new_algorithm: FedAvg) -> FederatedState:
    """Convert a state for another algorithm: the models stay, and state that only the new algorithm has is initialized.

    A server optimizer of the same class keeps its moments. An algorithm of the same class keeps its broadcast values and the persistent
    states of its clients. The merged base weights stay, because they are part of the model.
    """
    if old_algorithm == new_algorithm:
        return state
    server, params = state.server, state.server.params
    initial_opt_state = new_algorithm.server_optimizer.init(params)
    same_algorithm, same_optimizer = (
        type(old_algorithm) is type(new_algorithm),
        type(old_algorithm.server_optimizer) is type(new_algorithm.server_optimizer)
        and initial_opt_state.keys() == server.opt_state.keys(),
    )
    broadcast = server.broadcast if same_algorithm else new_algorithm.init_broadcast(params)
    initial_states = new_algorithm.init_client_state(params.to(torch.device("cpu")).take(state.cluster_ids.cpu()))
    client_means = state.client_means if same_algorithm else Tree()  # the round loop computes them again for new client states
    return replace(
        state,
        client_states=state.client_states if same_algorithm else ClientStateStore.from_rows(initial_states, len(state.cluster_ids)),
        client_means=client_means,
        server=replace(
            server,
            broadcast=broadcast,
            opt_state=server.opt_state if same_optimizer else initial_opt_state,
            merged_base=server.merged_base or new_algorithm.aggregator.init_merged_base(params),
        ),
    )
