"""A fleet whose clients live on other machines, asked through Flower's grid.

The server sends the model that a client shares, and what the algorithm sends beside it; the client sends how the model
changed, and of its memory only how that changed, and only where the algorithm's server half needs it. Whoever does not answer,
answers late, or answers something else than was agreed has failed in this round: weight 0, memory as it was, and the report
says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from ..errors import UserError, quote
from ..fleet.fleet import Rule
from ..tree import Tree
from ..values import Report, State
from .asking import collect
from .roll import Roll, reason
from .wire import Refused, number, plain, read, read_plain, said, size, write

OWN = "it trains on documents of its own; what is measured of single clients speaks of the experiment's deal"
BLIND = ("client {} trains on documents of its own, and {} decides by documents that it would have by the experiment's deal: "
         "use a mitigation that goes by updates (ByUpdate, Bipartition), or no documents of their own")


@dataclass(frozen=True, eq=False)
class Answer:
    """What came of one client: its numbers, or why there are none."""

    trees: dict[str, Tree] | None = None
    weight: float = 0.0
    steps: float = 0.0
    loss: tuple[float, float] = (float("nan"), float("nan"))
    tokens: float = 0.0
    failed: bool = True
    lr: float | None = None
    why: str = ""
    lost: bool = False
    bytes: int = 0


@dataclass(frozen=True, eq=False)
class FlowerFleet:
    """N clients behind a grid.

    ``least``: a round with fewer usable answers is not counted, the run stops and can be resumed. ``patience``: seconds that
    a round waits. ``gradients``: whether clients send their mean gradients too, for those who measure them. ``plain``: the
    nodes run a plain Flower client, which knows models and nothing else. ``reader``: a mitigation that looks at the clients'
    documents as the experiment deals them, "" if there is none.
    """

    size: int
    grid: Grid
    experiment: str = ""  # its id; clients of another one are not asked
    life: str = "0"  # of this run's folder: what clients kept for another life of it does not count
    least: int = 1
    patience: float = 3600.0
    pause: float = 0.1  # between two looks for answers
    gradients: bool = False
    plain: bool = False
    reader: str = ""
    lr: Callable[[int], float] = lambda round: 1.0
    roll: Roll = field(default_factory=Roll)

    def train(self, state: State, algorithm: Rule, cohort: Tensor) -> Report:
        """One round of local training, ``cohort [C] -> Report``."""
        clients = cohort.tolist()
        if self.plain and (state.server.shared or state.server.base or state.memory):
            raise UserError(f"plain Flower clients know a model and nothing beside it; {type(algorithm).__name__} needs more")
        nodes = self.roll.call(self, clients)
        unknown = sorted(self.roll.own & set(clients)) if self.reader else []
        if unknown:
            raise UserError(BLIND.format(unknown[0], self.reader))
        down = dict.fromkeys(clients, 0)
        answers = {client: Answer(why=why) for client, why in nodes.missing.items()}
        answers |= self.ask(state, algorithm, nodes.found, down)
        again = {client: nodes.found[client] for client, answer in answers.items() if answer.lost}
        if again:  # a client that lost its memory goes on with what is known of it, or begins anew
            answers |= self.ask(state, algorithm, again, down, lost=True)
        for client in sorted(self.roll.own & answers.keys()):
            answers[client] = with_why(answers[client], OWN)
        self.roll.own.difference_update(answers)
        heard = sum(not answer.failed for answer in answers.values())
        if heard < self.least:
            reasons = "; ".join(f"client {client}: {answer.why}" for client, answer in sorted(answers.items()) if answer.failed)
            raise UserError(f"round {state.round + 1}: {heard} of {len(clients)} clients sent what can be used, at least "
                            f"{self.least} must ({reasons}). Nothing of the round was taken; the same command goes on with it.")
        return self.report(state, algorithm, cohort, [answers[client] for client in clients], down)

    def ask(self, state: State, algorithm: Rule, nodes: dict[int, int], down: dict[int, int],
            lost: bool = False) -> dict[int, Answer]:
        """Send a message to each client and collect what comes back."""
        contents = {client: self.message(state, algorithm, client, lost) for client in nodes}
        for client, content in contents.items():
            down[client] += size(content)
        messages = {client: Message(content, nodes[client], MessageType.TRAIN, ttl=self.patience, group_id=str(state.round))
                    for client, content in contents.items()}
        answers = {}
        for client, reply in collect(self.grid, messages, self.patience, self.pause):
            try:
                answers[client] = self.opened(state, algorithm, client, reply)
            except Refused as error:
                answers[client] = Answer(why=f"its answer cannot be used: {error}", bytes=reply_size(reply))
        silent = f"no answer within {self.patience:g} seconds"
        anew = "it had lost what it kept, and " + ("got it back" if "memory" in algorithm.tells else "began anew")
        return {client: with_why(answers.get(client, Answer(why=silent)), anew if lost else "") for client in nodes}

    def message(self, state: State, algorithm: Rule, client: int, lost: bool) -> RecordDict:
        """What a client is sent."""
        group = state.group[client:client + 1]
        server, counted = state.server, int(state.last[client]) if len(state.last) else 0
        params = server.params.rows(group)
        if self.plain:
            return RecordDict({"arrays": plain(params), "config": ConfigRecord(
                {"lr": self.lr(state.round), "server-round": state.round + 1})})
        back = lost and "memory" in algorithm.tells
        trees = {"params": params, "shared": server.shared.rows(group), "base": server.under(group),
                 "memory": state.memory.rows(slice(client, client + 1)) if back else Tree()}
        return write(trees, {"id": self.experiment, "life": self.life, "client": client, "round": state.round, "restores": back,
                             "counted": 0 if lost and not back else counted, "gradients": self.gradients})

    def opened(self, state: State, algorithm: Rule, client: int, reply: Message) -> Answer:
        """A reply, checked."""
        if reply.has_error():
            raise Refused(reason(reply))
        content = reply.content
        params = state.server.params.rows(state.group[client:client + 1]).to(torch.device("cpu"))
        if self.plain:
            return opened_plain(content, params)
        told = said(content)
        if told.get("client") != client:
            raise Refused(f"it is from client {quote(told.get('client'))}, and client {client} was asked")
        for kind in ("refused", "lost"):
            if kind in told:
                return Answer(why=str(told[kind])[:500], lost=kind == "lost", bytes=size(content))
        if told.get("round") != state.round:
            raise Refused(f"it answers round {quote(told.get('round'))}, and round {state.round} was asked")
        memory = state.memory.rows(slice(client, client + 1))
        found = read(content, {"delta": params, "news": memory if "memory" in algorithm.tells else Tree(),
                               "gradient": params if "gradient" in algorithm.tells or self.gradients else Tree()})
        loss = told.get("loss")
        if not isinstance(loss, list) or len(loss) != 2:
            raise Refused("it does not say its losses")
        first, mean = (number({"loss": value}, "loss") for value in loss)
        return sound(Answer(found, number(told, "weight", 0), number(told, "steps", 0), (first, mean), number(told, "tokens", 0),
                            bool(told.get("failed")), number(told, "lr", 0), bytes=size(content)))

    def report(self, state: State, algorithm: Rule, cohort: Tensor, answers: list[Answer], down: dict[int, int]) -> Report:
        """The answers stacked, ``[C, ...]``; those that failed are zeros, and their memories what they were."""
        server = state.server
        device = next(iter(server.params.values())).device
        failed = torch.tensor([answer.failed for answer in answers])
        none = server.params.rows(slice(0, 1)).to(torch.device("cpu")).zeros()
        old = state.memory.rows(cohort)

        def part(name: str, instead: Tree) -> Tree:
            return stacked([answer.trees[name] if answer.trees and not answer.failed else instead for answer in answers])

        news = part("news", old.rows(slice(0, 1)).zeros()) if "memory" in algorithm.tells and old else old.zeros()
        if any(answer.trees and answer.trees.get("gradient") for answer in answers):
            gradient = part("gradient", none)
        else:  # nobody was asked for it: missing is NaN
            gradient = none.map(lambda leaf: leaf.new_full((1,) * leaf.ndim, torch.nan).expand(len(answers), *leaf.shape[1:]))

        def column(name: str) -> Tensor:
            return torch.tensor([getattr(answer, name) for answer in answers], dtype=torch.float64)

        lr = next((answer.lr for answer in answers if answer.lr is not None), self.lr(state.round))
        why = tuple(answer.why for answer in answers)
        return Report(
            part("delta", none).to(device), old + news, news.to(device), gradient.to(device),
            weight=column("weight").to(device), steps=column("steps"),
            loss=torch.tensor([answer.loss for answer in answers], dtype=torch.float64), tokens=column("tokens"), failed=failed,
            group=state.group[cohort].to(device), population=state.group.bincount(minlength=server.models).to(device),
            lr=torch.tensor([lr if answer.lr is None else answer.lr for answer in answers], dtype=torch.float64),
            why=why if any(why) else (),
            wire=torch.tensor([[down[client], answer.bytes] for client, answer in zip(cohort.tolist(), answers, strict=True)]))


def opened_plain(content: RecordDict, params: Tree) -> Answer:
    """The answer of a plain Flower client: its model, and how many examples it counts."""
    arrays, metrics = list(content.array_records.values()), list(content.metric_records.values())
    if len(arrays) != 1 or len(metrics) != 1:
        raise Refused("it brings no model as arrays with its metrics")
    loss = metrics[0].get("train_loss", float("nan"))
    loss = float(loss) if isinstance(loss, (int, float)) and not isinstance(loss, bool) else float("nan")
    weight = number(metrics[0], "num-examples", 0)
    end = read_plain(arrays[0], params)
    return sound(Answer({"delta": end - params}, weight, float("nan"), (float("nan"), loss), weight, False, bytes=size(content)))


def sound(answer: Answer) -> Answer:
    """The answer, or a failed one if any of its numbers is not finite: what a client says of itself is not believed."""
    finite = all(bool(tree.finite().all()) for tree in (answer.trees or {}).values() if tree)
    if finite and answer.weight == answer.weight and not answer.failed:
        return answer
    return Answer(loss=answer.loss, tokens=answer.tokens, steps=answer.steps, lr=answer.lr, bytes=answer.bytes,
                  why="non-finite numbers: left out of the mean, its memory kept")


def with_why(answer: Answer, note: str) -> Answer:
    """The answer, with a note where it has none."""
    return answer if answer.why or not note else Answer(**{**vars(answer), "why": note})


def reply_size(reply: Message) -> int:
    return size(reply.content) if reply.has_content() else 0


def stacked(trees: list[Tree]) -> Tree:
    """Rows ``[1, ...]`` as one tree ``[C, ...]``."""
    return Tree({name: torch.cat([tree[name] for tree in trees]) for name in trees[0]})


__all__ = ["FlowerFleet"]
