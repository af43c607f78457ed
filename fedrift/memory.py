"""What each client of a fleet keeps between rounds.

One small tree a client, not one large one: a round then costs what its cohort keeps, however many clients wait, and the
states before and after it share everything that did not change. Clients that never took part share one tree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .tree import Tree


@dataclass(frozen=True, eq=False)
class Memory:
    """``clients [N]``, each a tree ``[1, ...]``. A value, as a tree is: ``put`` gives another and writes into none."""

    clients: tuple[Tree, ...]

    @classmethod
    def alike(cls, first: Tree, size: int) -> Memory:
        """Of ``size`` clients that all keep ``first [1, ...]``."""
        return cls((first,) * size)

    @classmethod
    def of(cls, whole: Tree, size: int) -> Memory:
        """Of the rows of ``whole [N, ...]``, or of N clients that keep nothing."""
        return cls.alike(Tree(), size).put(torch.arange(size), whole)

    def __bool__(self) -> bool:
        """Whether clients keep anything."""
        return bool(self.clients) and bool(self.clients[0])  # all keep the same leaves

    def __len__(self) -> int:
        return len(self.clients)

    def rows(self, index: Tensor | slice) -> Tree:
        """What some clients keep, ``[len(index), ...]``."""
        some = self.clients[index] if isinstance(index, slice) else [self.clients[client] for client in index.tolist()]
        return Tree({name: torch.cat([client[name] for client in some]) for name in some[0]}) if some else Tree()

    def whole(self) -> Tree:
        """What all clients keep, ``[N, ...]``: a copy of all of it."""
        return self.rows(slice(None))

    def put(self, index: Tensor, rows: Tree) -> Memory:
        """The memory in which the clients at ``index`` keep ``rows``; this one stays as it was."""
        if not rows:
            return self
        clients = list(self.clients)
        for place, client in enumerate(index.tolist()):  # cloned: a view would keep the whole cohort's rows
            clients[client] = rows.rows(slice(place, place + 1)).map(torch.clone)
        return Memory(tuple(clients))

    def bytes(self) -> int:
        """Bytes of all that is kept; what several clients share counts once."""
        apart = {id(client): client for client in self.clients}
        return sum(leaf.numel() * leaf.element_size() for client in apart.values() for leaf in client.values())


__all__ = ["Memory"]
