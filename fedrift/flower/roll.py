"""Which client lives on which node: asked of the nodes themselves, once each, and again when nodes come and go."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flwr.app import Message, MessageType

from .asking import collect
from .wire import Refused, said, write

SILENT = "it did not say who it is"


class Found(NamedTuple):
    """Of the clients that were called: the nodes of those that are there, and why the others are not."""

    found: dict[int, int]
    missing: dict[int, str]


@dataclass(frozen=True, eq=False)
class Roll:
    """What is known of the nodes so far: their clients, or why a node is none."""

    known: dict[int, int | str] = field(default_factory=dict)  # node -> client, or why not
    wait: float = 0.0  # seconds to wait, once, for nodes that are not there yet
    own: set[int] = field(default_factory=set)  # clients that train on documents of their own, until that was told
    waited: list[bool] = field(default_factory=list)

    def call(self, fleet: Any, clients: Iterable[int]) -> Found:
        """Where the clients are now. Nodes not asked before are asked who they are."""
        wanted = set(clients)
        if not wanted <= self.of(fleet.grid.get_node_ids()).keys():  # whoever did not say who it is may be the one missed
            for node in [node for node, client in self.known.items() if client == SILENT]:
                del self.known[node]
        end = time.monotonic() + (0 if self.waited else self.wait)
        while True:
            here = sorted(fleet.grid.get_node_ids())
            found = self.claimed(fleet, here, wanted)
            if wanted <= found.keys() or time.monotonic() >= end:
                break
            time.sleep(fleet.pause)
        self.waited.append(True)
        odd = [f"node {node}: {why}" for node in here if isinstance(why := self.known.get(node), str)]
        nobody = "no node says that it is this client" + (f" ({'; '.join(odd)})" if odd else "")
        return Found({client: found[client] for client in sorted(wanted & found.keys())},
                     dict.fromkeys(sorted(wanted - found.keys()), nobody))

    def claimed(self, fleet: Any, here: list[int], wanted: set[int]) -> dict[int, int]:
        """client -> node, of the nodes that are there. To Flower a dead node is there for a minute more: once all that are wanted
        have answered, nobody else is waited for."""
        if fleet.plain:  # plain clients have no numbers: theirs is their place among the nodes
            return dict(enumerate(here))
        new = {node: Message(write({}, {"id": fleet.experiment}), node, MessageType.QUERY, ttl=fleet.patience)
               for node in here if node not in self.known}
        self.known.update(dict.fromkeys(new, SILENT))
        heard: set[int | str] = set()
        for node, reply in collect(fleet.grid, new, fleet.patience, fleet.pause, lambda: wanted <= heard):
            self.known[node] = client = who(reply, fleet.experiment, fleet.size)
            heard.add(client)
            if isinstance(client, int) and said(reply.content).get("own"):
                self.own.add(client)
        return self.of(here)

    def of(self, here: Iterable[int]) -> dict[int, int]:
        """client -> node, of those known: in the order of meeting them, so that who came back takes its place again."""
        there = set(here)
        return {client: node for node, client in self.known.items() if isinstance(client, int) and node in there}


def reason(reply: Message) -> str:
    """The first line of the error that came in place of an answer."""
    return next(iter((reply.error.reason or "").splitlines()), "")[:500] or f"error {reply.error.code}"


def who(reply: Message, experiment: str, size: int) -> int | str:
    """The client that a node says it is, or why it is none of ours."""
    if reply.has_error():
        return reason(reply)
    try:
        told = said(reply.content)
    except Refused as error:
        return str(error)
    client = told.get("client")
    if told.get("id") != experiment:
        return f"it was set up for experiment {str(told.get('id'))[:12]!r}, this is {experiment!r}"
    if not isinstance(client, int) or isinstance(client, bool) or not 0 <= client < size:
        return f"it says that it is client {str(client)[:12]!r}; there are clients 0 to {size - 1}"
    return client


__all__ = ["Found", "Roll"]
