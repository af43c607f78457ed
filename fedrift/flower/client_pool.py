"""The client pool that trains clients on other machines through Flower's grid.

The server sends the model and what the algorithm broadcasts. A client sends its update, and the change of its client state only if
the server needs it. A client that does not reply in time, or replies with an invalid message, has failed in this round: its weight
is 0, its state stays as it was, and a note gives the reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from ..algorithms import FedAvg
from ..algorithms.base import LOCAL_HOOKS
from ..core.errors import UserError, quote_value
from ..core.tree import Tree
from ..core.types import CohortUpdate, FederatedState
from ..simulation.simulator import ClientAlgorithm
from .wire import (
    MessageRejected,
    content_num_bytes,
    pack_message,
    read_metadata,
    read_number,
    read_plain_arrays,
    read_trees,
    to_plain_arrays,
)


def send_and_collect(
    grid: Grid, messages: dict[int, Message], timeout_s: float, poll_interval_s: float, is_complete: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Message]]:
    """Send messages and yield the first reply to each message as it arrives.

    Further replies to the same message, and replies to unknown messages, are ignored.

    Args:
        grid: Flower's grid.
        messages: The messages, each with a key of the caller's choice.
        timeout_s: The number of seconds to wait for replies.
        poll_interval_s: The number of seconds between two polls.
        is_complete: Returns True to stop waiting early.

    Yields:
        The key of a message and its reply.
    """
    keys = list(messages)
    waiting: dict[str, int] = {}
    if keys:
        ids = list(grid.push_messages([messages[key] for key in keys]))
        waiting = {message: key for message, key in zip(ids, keys, strict=False) if message}
    deadline = time.monotonic() + timeout_s
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            key = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key is not None:
                yield key, reply
        if not waiting or is_complete() or time.monotonic() >= deadline:
            return
        time.sleep(poll_interval_s)


# Locating clients: each node is asked once which client it runs.

MSG_NO_IDENTITY = "it did not report which client it runs"


class LocatedClients(NamedTuple):
    """The nodes of the located clients, and the reasons why the other clients were not found."""

    nodes: dict[int, int]
    missing: dict[int, str]


@dataclass(frozen=True, eq=False)
class NodeRegistry:
    """The clients of the known nodes, or the reasons why a node is not usable."""

    known_nodes: dict[int, int | str] = field(default_factory=dict)  # maps a node to its client, or to the reason why it is not usable
    join_timeout_s: float = 0.0  # the number of seconds to wait, once, for missing clients
    clients_with_own_documents: set[int] = field(default_factory=set)  # clients with their own documents that no note has mentioned yet
    finished_waits: list[bool] = field(default_factory=list)  # not empty after the first wait for missing clients

    def locate(self, pool: FlowerClientPool, clients: Iterable[int]) -> LocatedClients:
        """Find the nodes of some clients; new nodes are asked which client they run."""
        requested = set(clients)
        if not requested <= self.clients_on(pool.grid.get_node_ids()).keys():
            # A node that did not answer before may run the missing client, so it is asked again.
            for node in [node for node, client in self.known_nodes.items() if client == MSG_NO_IDENTITY]:
                del self.known_nodes[node]
        deadline = time.monotonic() + (0 if self.finished_waits else self.join_timeout_s)
        while True:
            online_nodes = sorted(pool.grid.get_node_ids())
            located = self.discover(pool, online_nodes, requested)
            if requested <= located.keys() or time.monotonic() >= deadline:
                break
            time.sleep(pool.poll_interval_s)
        self.finished_waits.append(True)
        unusable = [f"node {node}: {reason}" for node in online_nodes if isinstance(reason := self.known_nodes.get(node), str)]
        reason = "no node runs this client" + (f" ({'; '.join(unusable)})" if unusable else "")
        return LocatedClients(
            {client: located[client] for client in sorted(requested & located.keys())},
            dict.fromkeys(sorted(requested - located.keys()), reason),
        )

    def discover(self, pool: FlowerClientPool, online_nodes: list[int], requested: set[int]) -> dict[int, int]:
        """Ask new nodes which client they run, and map each client to its node.

        The method stops waiting when all requested clients have answered, because Flower lists a dead node for another minute.

        Args:
            pool: The client pool.
            online_nodes: The nodes that Flower lists.
            requested: The requested clients.
        """
        if pool.plain_clients:  # plain Flower clients have no number, so the position of the node numbers them
            return dict(enumerate(online_nodes))
        queries = {
            node: Message(pack_message({}, {"experiment_id": pool.experiment_id}), node, MessageType.QUERY, ttl=pool.round_timeout_s)
            for node in online_nodes
            if node not in self.known_nodes
        }
        self.known_nodes.update(dict.fromkeys(queries, MSG_NO_IDENTITY))
        answered: set[int | str] = set()
        for node, reply in send_and_collect(pool.grid, queries, pool.round_timeout_s, pool.poll_interval_s, lambda: requested <= answered):
            self.known_nodes[node] = client = parse_identity(reply, pool.experiment_id, pool.size)
            answered.add(client)
            if isinstance(client, int) and read_metadata(reply.content).get("has_own_documents"):
                self.clients_with_own_documents.add(client)
        return self.clients_on(online_nodes)

    def clients_on(self, online_nodes: Iterable[int]) -> dict[int, int]:
        """Map each known client to its node. If several nodes run a client, the node that was discovered last is used."""
        online = set(online_nodes)
        return {client: node for node, client in self.known_nodes.items() if isinstance(client, int) and node in online}


def error_reason(reply: Message) -> str:
    """Return the first line of the error in an error reply."""
    return next(iter((reply.error.reason or "").splitlines()), "")[:500] or f"error {reply.error.code}"


def parse_identity(reply: Message, experiment_id: str, num_clients: int) -> int | str:
    """Return the client that a node runs, or the reason why the node is not usable."""
    if reply.has_error():
        return error_reason(reply)
    try:
        metadata = read_metadata(reply.content)
    except MessageRejected as error:
        return str(error)
    client = metadata.get("client")
    if metadata.get("experiment_id") != experiment_id:
        return f"it was set up for experiment {str(metadata.get('experiment_id'))[:12]!r}, but this is {experiment_id!r}"
    if not isinstance(client, int) or isinstance(client, bool) or not 0 <= client < num_clients:
        return f"it reports client {str(client)[:12]!r}, but the clients are 0 to {num_clients - 1}"
    return client


# The client pool.

MSG_OWN_DOCUMENTS = "it trains on its own documents, so measures of single clients refer to the experiment's partition instead"
MSG_DOCUMENTS_NOT_AVAILABLE = (
    "client {} trains on its own documents, but {} clusters clients by the documents of the experiment's partition: "
    "use a clustering strategy that uses updates (UpdateClustering, CFL), or give no client its own documents"
)


@dataclass(frozen=True, eq=False)
class ClientAnswer:
    """The result of one client, or the reason why there is none."""

    trees: dict[str, Tree] | None = None  # delta, state_delta and mean_grad, each [1, ...]
    weight: float = 0.0
    steps: float = 0.0  # local steps
    loss: tuple[float, float] = (float("nan"), float("nan"))  # of the first step, and mean over the steps (nats per token)
    tokens: float = 0.0  # trained tokens
    failed: bool = True
    lr: float | None = None
    note: str = ""  # remark for the records, e.g. why the client failed
    state_lost: bool = False  # whether the client lost its stored state
    num_bytes: int = 0  # bytes that the client sent


@dataclass(frozen=True, eq=False)
class FlowerClientPool:
    """A pool of N clients that train on the nodes of a Flower grid.

    Attributes:
        size: The number of clients, N.
        grid: Flower's grid.
        experiment_id: The id of the experiment; nodes of other experiments are ignored.
        run_directory_id: The id of the run directory. Clients ignore state that they stored for another id.
        min_results: The minimum number of usable results per round. With fewer, the run stops and can be resumed.
        round_timeout_s: The number of seconds to wait for the results of a round.
        poll_interval_s: The number of seconds between two polls for results.
        send_gradients: Whether clients also send their mean gradients, which gradient probes need.
        plain_clients: Whether the nodes run a plain Flower client, which knows only a model and no other state. Its number of examples
            is its weight, and the records have no tokens of it.
        uniform_weights: Whether all plain clients have the weight 1 instead.
        document_strategy: The name of a clustering strategy that uses the documents of the experiment's partition, or "".
        lr_at: Maps a round to its learning rate.
        registry: The nodes that are known so far.
    """

    size: int
    grid: Grid
    experiment_id: str = ""
    run_directory_id: str = "0"
    min_results: int = 1
    round_timeout_s: float = 3600.0
    poll_interval_s: float = 0.1
    send_gradients: bool = False
    plain_clients: bool = False
    uniform_weights: bool = False
    document_strategy: str = ""
    lr_at: Callable[[int], float] = lambda round: 1.0
    registry: NodeRegistry = field(default_factory=NodeRegistry)

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """Train a cohort for one round.

        Args:
            state: The state before the round.
            algorithm: The federated algorithm.
            cohort: The clients of the round, [C].

        Returns:
            The updates of the cohort; failed clients have weight 0 and a note.

        Raises:
            UserError: If fewer than ``min_results`` results are usable, or if the clients cannot run the algorithm.
        """
        clients = cohort.tolist()
        if self.plain_clients:
            reject_for_plain_clients(state, algorithm)
        located = self.registry.locate(self, clients)
        own_document_clients = sorted(self.registry.clients_with_own_documents & set(clients)) if self.document_strategy else []
        if own_document_clients:
            raise UserError(MSG_DOCUMENTS_NOT_AVAILABLE.format(own_document_clients[0], self.document_strategy))
        bytes_down = dict.fromkeys(clients, 0)
        answers = {client: ClientAnswer(note=reason) for client, reason in located.missing.items()}
        answers |= self.send_round(state, algorithm, located.nodes, bytes_down)
        retries = {client: located.nodes[client] for client, answer in answers.items() if answer.state_lost}
        if retries:  # a client that lost its state continues from the server's copy, or starts again
            answers |= self.send_round(state, algorithm, retries, bytes_down, state_lost=True)
        for client in sorted(self.registry.clients_with_own_documents & answers.keys()):
            answers[client] = with_note(answers[client], MSG_OWN_DOCUMENTS)
        self.registry.clients_with_own_documents.difference_update(answers)
        num_usable = sum(not answer.failed for answer in answers.values())
        if num_usable < self.min_results:
            reasons = "; ".join(f"client {client}: {answer.note}" for client, answer in sorted(answers.items()) if answer.failed)
            raise UserError(
                f"round {state.round + 1}: {num_usable} of {len(clients)} clients sent a usable result, but backend.min_results "
                f"requires {self.min_results} ({reasons}). The round was discarded; repeat the same command to try it again."
            )
        return self.stack_answers(state, algorithm, cohort, [answers[client] for client in clients], bytes_down)

    def send_round(
        self, state: FederatedState, algorithm: ClientAlgorithm, nodes: dict[int, int], bytes_down: dict[int, int], state_lost: bool = False
    ) -> dict[int, ClientAnswer]:
        """Send a message to each client and collect the results.

        Args:
            state: The state before the round.
            algorithm: The federated algorithm.
            nodes: Maps each client to its node.
            bytes_down: Bytes sent to each client; this method adds to them.
            state_lost: Whether these clients reported that they lost their state.
        """
        contents = {client: self.make_message(state, algorithm, client, state_lost) for client in nodes}
        for client, content in contents.items():
            bytes_down[client] += content_num_bytes(content)
        messages = {
            client: Message(content, nodes[client], MessageType.TRAIN, ttl=self.round_timeout_s, group_id=str(state.round))
            for client, content in contents.items()
        }
        answers = {}
        for client, reply in send_and_collect(self.grid, messages, self.round_timeout_s, self.poll_interval_s):
            try:
                answers[client] = self.parse_reply(state, algorithm, client, reply)
            except MessageRejected as error:
                answers[client] = ClientAnswer(note=f"its result is not usable: {error}", num_bytes=reply_num_bytes(reply))
        timeout_note = f"no result within {self.round_timeout_s:g} seconds"
        recovery_note = "the client had lost its state; " + (
            "the server restored it" if "client_state" in algorithm.uploads else "it started from the initial state"
        )
        return {
            client: with_note(answers.get(client, ClientAnswer(note=timeout_note)), recovery_note if state_lost else "") for client in nodes
        }

    def make_message(self, state: FederatedState, algorithm: ClientAlgorithm, client: int, state_lost: bool) -> RecordDict:
        """Build the message that asks a client to train a round."""
        cluster = state.cluster_ids[client : client + 1]
        server, counted_round = state.server, int(state.last_participation[client]) if len(state.last_participation) else 0
        params = server.params.take(cluster)
        if self.plain_clients:
            return RecordDict(
                {
                    "arrays": to_plain_arrays(params),
                    "config": ConfigRecord({"lr": self.lr_at(state.round), "server-round": state.round + 1}),
                }
            )
        restores_state = state_lost and "client_state" in algorithm.uploads
        trees = {
            "params": params,
            "broadcast": server.broadcast.take(cluster),
            "merged_base": server.base_for(cluster),
            "client_state": state.client_states.gather(slice(client, client + 1)) if restores_state else Tree(),
        }
        return pack_message(
            trees,
            {
                "experiment_id": self.experiment_id,
                "run_directory_id": self.run_directory_id,
                "client": client,
                "round": state.round,
                "restores_state": restores_state,
                "counted_round": 0 if state_lost and not restores_state else counted_round,
                "send_gradients": self.send_gradients,
            },
        )

    def parse_reply(self, state: FederatedState, algorithm: ClientAlgorithm, client: int, reply: Message) -> ClientAnswer:
        """Check a reply and convert it to a result.

        Raises:
            MessageRejected: If the reply is an error or invalid.
        """
        if reply.has_error():
            raise MessageRejected(error_reason(reply))
        content = reply.content
        params = state.server.params.take(state.cluster_ids[client : client + 1]).to(torch.device("cpu"))
        if self.plain_clients:
            answer = parse_plain_reply(content, params)
            return replace(answer, weight=1.0) if self.uniform_weights and answer.weight > 0 else answer
        metadata = read_metadata(content)
        if metadata.get("client") != client:
            raise MessageRejected(f"it is from client {quote_value(metadata.get('client'))}, but client {client} was requested")
        for kind in ("rejected", "state_lost"):
            if kind in metadata:
                return ClientAnswer(note=str(metadata[kind])[:500], state_lost=kind == "state_lost", num_bytes=content_num_bytes(content))
        if metadata.get("round") != state.round:
            raise MessageRejected(f"it answers round {quote_value(metadata.get('round'))}, but round {state.round} was requested")
        client_state = state.client_states.gather(slice(client, client + 1))
        trees = read_trees(
            content,
            {
                "delta": params,
                "state_delta": client_state if "client_state" in algorithm.uploads else Tree(),
                "mean_grad": params if "mean_grad" in algorithm.uploads or self.send_gradients else Tree(),
            },
        )
        loss = metadata.get("loss")
        if not isinstance(loss, list) or len(loss) != 2:
            raise MessageRejected("it does not contain two losses")
        first_loss, mean_loss = (read_number({"loss": value}, "loss") for value in loss)
        return reject_non_finite(
            ClientAnswer(
                trees,
                read_number(metadata, "weight", 0),
                read_number(metadata, "steps", 0),
                (first_loss, mean_loss),
                read_number(metadata, "tokens", 0),
                bool(metadata.get("failed")),
                read_number(metadata, "lr", 0),
                num_bytes=content_num_bytes(content),
            )
        )

    def stack_answers(
        self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor, answers: list[ClientAnswer], bytes_down: dict[int, int]
    ) -> CohortUpdate:
        """Stack the results of a cohort to [C, ...]; failed clients have zero updates and an unchanged state."""
        server = state.server
        device = server.params.device
        failed = torch.tensor([answer.failed for answer in answers])
        zeros = server.params.take(slice(0, 1)).to(torch.device("cpu")).zeros_like()
        old_state = state.client_states.gather(cohort)

        def stack_part(name: str, default: Tree) -> Tree:
            return concat_rows([answer.trees[name] if answer.trees and not answer.failed else default for answer in answers])

        sends_state = bool("client_state" in algorithm.uploads and old_state)
        state_change = stack_part("state_delta", old_state.take(slice(0, 1)).zeros_like()) if sends_state else old_state.zeros_like()
        if any(answer.trees and answer.trees.get("mean_grad") for answer in answers):
            gradient = stack_part("mean_grad", zeros)
        else:  # gradients were not requested; NaN marks them as missing
            gradient = zeros.map(lambda leaf: leaf.new_full((1,) * leaf.ndim, torch.nan).expand(len(answers), *leaf.shape[1:]))

        def column(name: str) -> Tensor:
            return torch.tensor([getattr(answer, name) for answer in answers], dtype=torch.float64)

        lr = next((answer.lr for answer in answers if answer.lr is not None), self.lr_at(state.round))
        notes = tuple(answer.note for answer in answers)
        bytes_on_wire = [[bytes_down[client], answer.num_bytes] for client, answer in zip(cohort.tolist(), answers, strict=True)]
        return CohortUpdate(
            stack_part("delta", zeros).to(device),
            old_state + state_change,
            state_change.to(device),
            gradient.to(device),
            weight=column("weight").to(device),
            steps=column("steps"),
            loss=torch.tensor([answer.loss for answer in answers], dtype=torch.float64),
            tokens=column("tokens"),
            failed=failed,
            cluster_ids=state.cluster_ids[cohort].to(device),
            cluster_sizes=state.cluster_ids.bincount(minlength=server.num_models).to(device),
            lr=torch.tensor([lr if answer.lr is None else answer.lr for answer in answers], dtype=torch.float64),
            notes=notes if any(notes) else (),
            bytes_on_wire=torch.tensor(bytes_on_wire),
        )


# A plain client takes the local steps of FedAvg. An algorithm that changes one of these hooks needs other ones.
CLIENT_HOOKS = ("configure_clients", *LOCAL_HOOKS)


def reject_for_plain_clients(state: FederatedState, algorithm: ClientAlgorithm) -> None:
    """Raise `UserError` if plain clients cannot run an algorithm: another one would be trained without a message."""
    kind, server = type(algorithm), state.server
    frozen = algorithm.frozen_params(server.params.keys(), state.round)
    if server.broadcast or server.merged_base or state.client_states or algorithm.uploads:
        reason = "exchange only a model with the server"
    elif any(getattr(kind, hook, None) is not getattr(FedAvg, hook) for hook in CLIENT_HOOKS):
        reason = "take the local steps of FedAvg"
    elif getattr(algorithm, "reweights_clients", False):
        reason = "do not tell their local steps and losses as fedrift's clients do"
    elif frozen:
        reason = f"train all parameters, also {min(frozen)}"
    else:
        return
    aggregator = type(getattr(algorithm, "aggregator", None)).__name__
    name = f"{kind.__name__} with the aggregator {aggregator}" if server.merged_base or frozen else kind.__name__
    raise UserError(
        f"plain Flower clients {reason}, and {name} needs more: use FedAvg, FedAvgM, FedAdam, FedYogi or FedAdagrad with an aggregator "
        "that freezes nothing and keeps the base, or run fedrift's ClientApp on the nodes"
    )


def parse_plain_reply(content: RecordDict, params: Tree) -> ClientAnswer:
    """Convert the reply of a plain Flower client, which contains its model and its number of examples.

    Args:
        content: The content of the reply.
        params: The model that the client received, [1, ...].

    Raises:
        MessageRejected: If the reply is invalid.
    """
    arrays, metrics = list(content.array_records.values()), list(content.metric_records.values())
    if len(arrays) != 1 or len(metrics) != 1:
        raise MessageRejected("it does not contain exactly one record of arrays and one of metrics")
    loss = metrics[0].get("train_loss", float("nan"))
    loss = float(loss) if isinstance(loss, (int, float)) and not isinstance(loss, bool) else float("nan")
    weight = read_number(metrics[0], "num-examples", 0)
    trained = read_plain_arrays(arrays[0], params)
    return reject_non_finite(
        ClientAnswer({"delta": trained - params}, weight, math.nan, (math.nan, loss), math.nan, False, num_bytes=content_num_bytes(content))
    )


def reject_non_finite(answer: ClientAnswer) -> ClientAnswer:
    """Return the result, or a failed one if any of its numbers is not finite, whatever the client reported."""
    is_finite = all(bool(tree.is_finite().all()) for tree in (answer.trees or {}).values() if tree)
    if is_finite and answer.weight == answer.weight and not answer.failed:
        return answer
    return ClientAnswer(
        loss=answer.loss,
        tokens=answer.tokens,
        steps=answer.steps,
        lr=answer.lr,
        num_bytes=answer.num_bytes,
        note="non-finite numbers: the client is left out of the mean and keeps its state",
    )


def with_note(answer: ClientAnswer, text: str) -> ClientAnswer:
    """Return the result, with the note added if it has none."""
    return answer if answer.note or not text else ClientAnswer(**{**vars(answer), "note": text})


def reply_num_bytes(reply: Message) -> int:
    """Return the number of bytes in the tensors of a reply."""
    return content_num_bytes(reply.content) if reply.has_content() else 0


def concat_rows(trees: list[Tree]) -> Tree:
    """Concatenate C trees [1, ...] to one tree [C, ...]."""
    return Tree({name: torch.cat([tree[name] for tree in trees]) for name in trees[0]})
