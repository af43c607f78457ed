"""FedPer: some leaves are shared, the others stay with the client for good.

Arivazhagan, Aggarwal, Singh & Choudhary, "Federated Learning with Personalization Layers", 2019,
arXiv:1912.00818 (Algorithms 1 and 2): base layers are averaged, personalisation layers are not.

``own`` names the leaves that stay, by patterns. The default keeps B and shares A of every adapter, as in Guo et al.,
"Selective Aggregation for Low-Rank Adaptation in Federated Learning" (FedSA-LoRA), ICLR 2025, arXiv:2410.01463.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

from annotated_types import MinLen

from ..optimizers import Optimizer
from ..tree import Tree
from ..values import Local, Report, Server
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedPer(FedAvg):
    personal: ClassVar[bool] = True
    own: Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)] = ("*.B",)

    def stays(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.own)

    def memory(self, params: Tree) -> Tree:
        return Tree({name: leaf for name, leaf in params.items() if self.stays(name)})

    def start(self, params: Tree, memory: Tree) -> Tree:
        return Tree({**params, **memory})

    def finish(self, at: Local) -> Tree:
        return Tree({name: at.start[name] if self.stays(name) else leaf for name, leaf in at.params.items()})

    def remember(self, at: Local) -> Tree:
        return self.memory(at.params)

    def wear(self, params: Tree, memory: Tree) -> Tree:
        return self.start(params, memory)

    def absorb(self, server: Server, report: Report) -> Server:
        after = super().absorb(server, report)  # its noise or its decay would move what nobody shares
        return replace(after, params=Tree({**after.params, **self.memory(server.params)}))

    def refusals(self, optimizer: Optimizer, weighting: str, leaves: Collection[str]) -> list[str]:
        said = super().refusals(optimizer, weighting, leaves)
        trained = set(leaves) - (self.frozen(leaves, 0) & self.frozen(leaves, 1))
        if len({self.stays(name) for name in trained}) < 2:
            said.append(f"FedPer must share some trained leaves and keep others; own={self.own} splits none of these: "
                        f"{', '.join(sorted(trained)[:4])}, ...; name the leaves to keep, or use LocalOnly or FedAvg")
        return said
