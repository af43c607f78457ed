"""Messages out, first replies in: over any of Flower's grids, waiting no longer than was said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

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
    read_stock_arrays,
    read_trees,
    to_stock_arrays,
)


def send_and_collect(
    grid: Grid, messages: dict[int, Message], timeout_s: float, poll_interval_s: float, is_complete: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Message]]:
    """Send, and yield each addressee's first reply as it comes; those after it, and replies to nothing, are not looked at.

    Nobody is waited for any longer once ``is_complete()``.
    """
    order = list(messages)
    waiting: dict[str, int] = {}
    if order:
        ids = list(grid.push_messages([messages[key] for key in order]))
        waiting = {message: key for message, key in zip(ids, order, strict=False) if message}
    end = time.monotonic() + timeout_s
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            key = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key is not None:
                yield key, reply
        if not waiting or is_complete() or time.monotonic() >= end:
            return
        time.sleep(poll_interval_s)


# Which client lives on which node: asked of the nodes themselves, once each, and again when nodes come and go.

MSG_NO_IDENTITY = "it did not say who it is"


class LocatedClients(NamedTuple):
    """Of the clients that were called: the nodes of those that are there, and why the others are not."""

    nodes: dict[int, int]
    missing: dict[int, str]


@dataclass(frozen=True, eq=False)
class NodeRegistry:
    """What is known of the nodes so far: their clients, or why a node is none."""

    known_nodes: dict[int, int | str] = field(default_factory=dict)  # node -> client, or why not
    join_timeout_s: float = 0.0  # seconds to wait, once, for nodes that are not there yet
    clients_with_own_documents: set[int] = field(default_factory=set)  # those not told of yet
    finished_waits: list[bool] = field(default_factory=list)

    def locate(self, pool: FlowerClientPool, clients: Iterable[int]) -> LocatedClients:
        """Where the clients are now. Nodes not asked before are asked who they are."""
        wanted = set(clients)
        if not wanted <= self.clients_on(pool.grid.get_node_ids()).keys():  # whoever did not say who it is may be the one missed
            for node in [node for node, client in self.known_nodes.items() if client == MSG_NO_IDENTITY]:
                del self.known_nodes[node]
        end = time.monotonic() + (0 if self.finished_waits else self.join_timeout_s)
        while True:
            here = sorted(pool.grid.get_node_ids())
            found = self.discover(pool, here, wanted)
            if wanted <= found.keys() or time.monotonic() >= end:
                break
            time.sleep(pool.poll_interval_s)
        self.finished_waits.append(True)
        odd = [f"node {node}: {why}" for node in here if isinstance(why := self.known_nodes.get(node), str)]
        nobody = "no node says that it is this client" + (f" ({'; '.join(odd)})" if odd else "")
        return LocatedClients(
            {client: found[client] for client in sorted(wanted & found.keys())}, dict.fromkeys(sorted(wanted - found.keys()), nobody)
        )

    def discover(self, pool: FlowerClientPool, online_nodes: list[int], wanted: set[int]) -> dict[int, int]:
        """client -> node, of the nodes that are there. To Flower a dead node is there for a minute more: once all that are wanted
        have answered, nobody else is waited for."""
        if pool.stock_clients:  # plain clients have no numbers: theirs is their place among the nodes
            return dict(enumerate(online_nodes))
        new = {
            node: Message(pack_message({}, {"experiment_id": pool.experiment_id}), node, MessageType.QUERY, ttl=pool.round_timeout_s)
            for node in online_nodes
            if node not in self.known_nodes
        }
        self.known_nodes.update(dict.fromkeys(new, MSG_NO_IDENTITY))
        heard: set[int | str] = set()
        for node, reply in send_and_collect(pool.grid, new, pool.round_timeout_s, pool.poll_interval_s, lambda: wanted <= heard):
            self.known_nodes[node] = client = parse_identity(reply, pool.experiment_id, pool.size)
            heard.add(client)
            if isinstance(client, int) and read_metadata(reply.content).get("has_own_documents"):
                self.clients_with_own_documents.add(client)
        return self.clients_on(online_nodes)

    def clients_on(self, online_nodes: Iterable[int]) -> dict[int, int]:
        """client -> node, of those known: in the order of meeting them, so that who came back takes its place again."""
        there = set(online_nodes)
        return {client: node for node, client in self.known_nodes.items() if isinstance(client, int) and node in there}


def error_reason(reply: Message) -> str:
    """The first line of the error that came in place of an answer."""
    return next(iter((reply.error.reason or "").splitlines()), "")[:500] or f"error {reply.error.code}"


def parse_identity(reply: Message, experiment_id: str, num_clients: int) -> int | str:
    """The client that a node says it is, or why it is none of ours."""
    if reply.has_error():
        return error_reason(reply)
    try:
        told = read_metadata(reply.content)
    except MessageRejected as error:
        return str(error)
    client = told.get("client")
    if told.get("experiment_id") != experiment_id:
        return f"it was set up for experiment {str(told.get('experiment_id'))[:12]!r}, this is {experiment_id!r}"
    if not isinstance(client, int) or isinstance(client, bool) or not 0 <= client < num_clients:
        return f"it says that it is client {str(client)[:12]!r}; there are clients 0 to {num_clients - 1}"
    return client


# A fleet whose clients live on other machines, asked through Flower's grid.
#
# The server sends the model that a client shares, and what the algorithm sends beside it; the client sends how the model
# changed, and of its memory only how that changed, and only where the algorithm's server half needs it. Whoever does not answer,
# answers late, or answers something else than was agreed has failed in this round: weight 0, memory as it was, and the report
# says why.

MSG_OWN_DOCUMENTS = "it trains on documents of its own; what is measured of single clients speaks of the experiment's deal"
MSG_DOCUMENTS_NOT_AVAILABLE = (
    "client {} trains on documents of its own, and {} decides by documents that it would have by the experiment's deal: "
    "use a clustering that goes by updates (UpdateClustering, CFL), or no documents of their own"
)


@dataclass(frozen=True, eq=False)
class ClientAnswer:
    """What came of one client: its numbers, or why there are none."""

    trees: dict[str, Tree] | None = None
    weight: float = 0.0
    steps: float = 0.0
    loss: tuple[float, float] = (float("nan"), float("nan"))
    tokens: float = 0.0
    failed: bool = True
    lr: float | None = None
    note: str = ""
    state_lost: bool = False
    num_bytes: int = 0


@dataclass(frozen=True, eq=False)
class FlowerClientPool:
    """N clients behind a grid.

    ``min_results``: a round with fewer usable answers is not counted, the run stops and can be resumed. ``round_timeout_s``:
    seconds that a round waits. ``send_gradients``: whether clients send their mean gradients too, for those who measure them.
    ``stock_clients``: the nodes run a plain Flower client, which knows models and nothing else. ``document_strategy``: a
    clustering that looks at the clients' documents as the experiment deals them, "" if there is none.
    """

    size: int
    grid: Grid
    experiment_id: str = ""  # its id; clients of another one are not asked
    run_incarnation: str = "0"  # of this run's folder: what clients kept for another life of it does not count
    min_results: int = 1
    round_timeout_s: float = 3600.0
    poll_interval_s: float = 0.1  # between two looks for answers
    send_gradients: bool = False
    stock_clients: bool = False
    document_strategy: str = ""
    lr_at: Callable[[int], float] = lambda round: 1.0
    registry: NodeRegistry = field(default_factory=NodeRegistry)

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """One round of local training, ``cohort [C] -> CohortUpdate``."""
        clients = cohort.tolist()
        if self.stock_clients and (state.server.broadcast or state.server.merged_base or state.client_states):
            raise UserError(f"plain Flower clients know a model and nothing beside it; {type(algorithm).__name__} needs more")
        nodes = self.registry.locate(self, clients)
        unknown = sorted(self.registry.clients_with_own_documents & set(clients)) if self.document_strategy else []
        if unknown:
            raise UserError(MSG_DOCUMENTS_NOT_AVAILABLE.format(unknown[0], self.document_strategy))
        down = dict.fromkeys(clients, 0)
        answers = {client: ClientAnswer(note=why) for client, why in nodes.missing.items()}
        answers |= self.send_round(state, algorithm, nodes.nodes, down)
        again = {client: nodes.nodes[client] for client, answer in answers.items() if answer.state_lost}
        if again:  # a client that lost its memory goes on with what is known of it, or begins anew
            answers |= self.send_round(state, algorithm, again, down, state_lost=True)
        for client in sorted(self.registry.clients_with_own_documents & answers.keys()):
            answers[client] = with_note(answers[client], MSG_OWN_DOCUMENTS)
        self.registry.clients_with_own_documents.difference_update(answers)
        heard = sum(not answer.failed for answer in answers.values())
        if heard < self.min_results:
            reasons = "; ".join(f"client {client}: {answer.note}" for client, answer in sorted(answers.items()) if answer.failed)
            raise UserError(
                f"round {state.round + 1}: {heard} of {len(clients)} clients sent what can be used, at least "
                f"{self.min_results} must ({reasons}). Nothing of the round was taken; the same command goes on with "
                "it."
            )
        return self.stack_answers(state, algorithm, cohort, [answers[client] for client in clients], down)

    def send_round(
        self, state: FederatedState, algorithm: ClientAlgorithm, nodes: dict[int, int], bytes_down: dict[int, int], state_lost: bool = False
    ) -> dict[int, ClientAnswer]:
        """Send a message to each client and collect what comes back."""
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
                answers[client] = ClientAnswer(note=f"its answer cannot be used: {error}", num_bytes=reply_num_bytes(reply))
        silent = f"no answer within {self.round_timeout_s:g} seconds"
        anew = "it had lost what it kept, and " + ("got it back" if "client_state" in algorithm.uploads else "began anew")
        return {client: with_note(answers.get(client, ClientAnswer(note=silent)), anew if state_lost else "") for client in nodes}

    def make_message(self, state: FederatedState, algorithm: ClientAlgorithm, client: int, state_lost: bool) -> RecordDict:
        """What a client is sent."""
        group = state.cluster_ids[client : client + 1]
        server, counted = state.server, int(state.last_round_seen[client]) if len(state.last_round_seen) else 0
        params = server.params.take(group)
        if self.stock_clients:
            return RecordDict(
                {
                    "arrays": to_stock_arrays(params),
                    "config": ConfigRecord({"lr": self.lr_at(state.round), "server-round": state.round + 1}),
                }
            )
        back = state_lost and "client_state" in algorithm.uploads
        trees = {
            "params": params,
            "broadcast": server.broadcast.take(group),
            "merged_base": server.base_for(group),
            "client_state": state.client_states.gather(slice(client, client + 1)) if back else Tree(),
        }
        return pack_message(
            trees,
            {
                "experiment_id": self.experiment_id,
                "run_incarnation": self.run_incarnation,
                "client": client,
                "round": state.round,
                "restores_state": back,
                "counted_round": 0 if state_lost and not back else counted,
                "send_gradients": self.send_gradients,
            },
        )

    def parse_reply(self, state: FederatedState, algorithm: ClientAlgorithm, client: int, reply: Message) -> ClientAnswer:
        """A reply, checked."""
        if reply.has_error():
            raise MessageRejected(error_reason(reply))
        content = reply.content
        params = state.server.params.take(state.cluster_ids[client : client + 1]).to(torch.device("cpu"))
        if self.stock_clients:
            return parse_stock_reply(content, params)
        told = read_metadata(content)
        if told.get("client") != client:
            raise MessageRejected(f"it is from client {quote_value(told.get('client'))}, and client {client} was asked")
        for kind in ("rejected", "state_lost"):
            if kind in told:
                return ClientAnswer(note=str(told[kind])[:500], state_lost=kind == "state_lost", num_bytes=content_num_bytes(content))
        if told.get("round") != state.round:
            raise MessageRejected(f"it answers round {quote_value(told.get('round'))}, and round {state.round} was asked")
        memory = state.client_states.gather(slice(client, client + 1))
        found = read_trees(
            content,
            {
                "delta": params,
                "state_delta": memory if "client_state" in algorithm.uploads else Tree(),
                "mean_grad": params if "mean_grad" in algorithm.uploads or self.send_gradients else Tree(),
            },
        )
        loss = told.get("loss")
        if not isinstance(loss, list) or len(loss) != 2:
            raise MessageRejected("it does not say its losses")
        first, mean = (read_number({"loss": value}, "loss") for value in loss)
        return reject_non_finite(
            ClientAnswer(
                found,
                read_number(told, "weight", 0),
                read_number(told, "steps", 0),
                (first, mean),
                read_number(told, "tokens", 0),
                bool(told.get("failed")),
                read_number(told, "lr", 0),
                num_bytes=content_num_bytes(content),
            )
        )

    def stack_answers(
        self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor, answers: list[ClientAnswer], bytes_down: dict[int, int]
    ) -> CohortUpdate:
        """The answers stacked, ``[C, ...]``; those that failed are zeros, and their memories what they were."""
        server = state.server
        device = next(iter(server.params.values())).device
        failed = torch.tensor([answer.failed for answer in answers])
        none = server.params.take(slice(0, 1)).to(torch.device("cpu")).zeros_like()
        old = state.client_states.gather(cohort)

        def part(name: str, instead: Tree) -> Tree:
            return concat_rows([answer.trees[name] if answer.trees and not answer.failed else instead for answer in answers])

        sends_state = bool("client_state" in algorithm.uploads and old)
        news = part("state_delta", old.take(slice(0, 1)).zeros_like()) if sends_state else old.zeros_like()
        if any(answer.trees and answer.trees.get("mean_grad") for answer in answers):
            gradient = part("mean_grad", none)
        else:  # nobody was asked for it: missing is NaN
            gradient = none.map(lambda leaf: leaf.new_full((1,) * leaf.ndim, torch.nan).expand(len(answers), *leaf.shape[1:]))

        def column(name: str) -> Tensor:
            return torch.tensor([getattr(answer, name) for answer in answers], dtype=torch.float64)

        lr = next((answer.lr for answer in answers if answer.lr is not None), self.lr_at(state.round))
        why = tuple(answer.note for answer in answers)
        travelled = [[bytes_down[client], answer.num_bytes] for client, answer in zip(cohort.tolist(), answers, strict=True)]
        return CohortUpdate(
            part("delta", none).to(device),
            old + news,
            news.to(device),
            gradient.to(device),
            weight=column("weight").to(device),
            steps=column("steps"),
            loss=torch.tensor([answer.loss for answer in answers], dtype=torch.float64),
            tokens=column("tokens"),
            failed=failed,
            cluster_ids=state.cluster_ids[cohort].to(device),
            cluster_sizes=state.cluster_ids.bincount(minlength=server.num_models).to(device),
            lr=torch.tensor([lr if answer.lr is None else answer.lr for answer in answers], dtype=torch.float64),
            notes=why if any(why) else (),
            bytes_on_wire=torch.tensor(travelled),
        )


def parse_stock_reply(content: RecordDict, params: Tree) -> ClientAnswer:
    """The answer of a plain Flower client: its model, and how many examples it counts."""
    arrays, metrics = list(content.array_records.values()), list(content.metric_records.values())
    if len(arrays) != 1 or len(metrics) != 1:
        raise MessageRejected("it brings no model as arrays with its metrics")
    loss = metrics[0].get("train_loss", float("nan"))
    loss = float(loss) if isinstance(loss, (int, float)) and not isinstance(loss, bool) else float("nan")
    weight = read_number(metrics[0], "num-examples", 0)
    end = read_stock_arrays(arrays[0], params)
    return reject_non_finite(
        ClientAnswer(
            {"delta": end - params}, weight, float("nan"), (float("nan"), loss), weight, False, num_bytes=content_num_bytes(content)
        )
    )


def reject_non_finite(answer: ClientAnswer) -> ClientAnswer:
    """The answer, or a failed one if any of its numbers is not finite: what a client says of itself is not believed."""
    finite = all(bool(tree.is_finite().all()) for tree in (answer.trees or {}).values() if tree)
    if finite and answer.weight == answer.weight and not answer.failed:
        return answer
    return ClientAnswer(
        loss=answer.loss,
        tokens=answer.tokens,
        steps=answer.steps,
        lr=answer.lr,
        num_bytes=answer.num_bytes,
        note="non-finite numbers: left out of the mean, its memory kept",
    )


def with_note(answer: ClientAnswer, text: str) -> ClientAnswer:
    """The answer, with a note where it has none."""
    return answer if answer.note or not text else ClientAnswer(**{**vars(answer), "note": text})


def reply_num_bytes(reply: Message) -> int:
    return content_num_bytes(reply.content) if reply.has_content() else 0


def concat_rows(trees: list[Tree]) -> Tree:
    """Rows ``[1, ...]`` as one tree ``[C, ...]``."""
    return Tree({name: torch.cat([tree[name] for tree in trees]) for name in trees[0]})


__all__ = ["FlowerClientPool", "LocatedClients", "NodeRegistry"]
