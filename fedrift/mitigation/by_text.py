"""Clients whose texts are alike share a model: k-means on the mean embeddings of their documents.

The one-shot clustering of Ghosh, Hong, Yin & Ramchandran, "Robust Federated Learning in a Heterogeneous Environment", 2019,
arXiv:1906.06629, by what clients read instead of by what they learnt; embeddings as in Marfoq, Neglia, Bellet, Kameni & Vidal for
mixtures, NeurIPS 2021, arXiv:2108.10252. ``descriptor.py`` says what clients send, ``select.py`` how groups are counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Lt

from ..errors import UserError
from .decision import Decision, Ground
from .descriptor import Descriptors, describe, identified, statement
from .select import Choice, choose
from .vanilla import Vanilla

Encoder = Literal["wordllama", "minilm", "states", "hashing", "lsa"]


@dataclass(frozen=True)
class ByText(Vanilla):
    """``clusters``: how many; None counts them. ``epsilon``: a privacy budget for the descriptors; None adds no noise."""

    reads: ClassVar[bool] = True
    encoder: Encoder = "wordllama"
    clusters: Annotated[int, Ge(1)] | None = None
    documents: Annotated[int, Ge(1)] = 200
    epsilon: Annotated[float, Gt(0)] | None = None
    delta: Annotated[float, Gt(0), Lt(1)] = 1e-5

    def begin(self, ground: Ground) -> Decision:
        found, chosen = self.found(ground)
        why = {"signal": "ByText", **self.why(found, chosen, ground.seed)}
        return Decision(chosen.group, chosen.k, why, centroids=chosen.centroids)

    def found(self, ground: Ground) -> tuple[Descriptors, Choice]:
        """The clients' descriptors, and their groups."""
        if self.clusters is not None and self.clusters > ground.size:
            raise UserError(f"mitigation.clusters: {self.clusters} groups of {ground.size} clients; ask for {ground.size} at "
                            "most, or leave it out to have them counted")
        described = describe(ground, self.encoder, self.documents, self.epsilon, self.delta)
        return described, choose(described, ground.seed, self.clusters)

    def why(self, found: Descriptors, chosen: Choice, seed: int) -> dict[str, Any]:
        """The evidence, as plain JSON."""
        return {"k": chosen.k, "asked": self.clusters, "counted": chosen.counted, "p_value": chosen.p_value,
                "silhouette": chosen.silhouettes.get(chosen.k, float("nan")),
                "silhouettes": {str(k): value for k, value in chosen.silhouettes.items()},
                "stability": chosen.stability, "verdict": chosen.verdict, "encoder": self.encoder,
                "documents": [len(own) for own in found.vectors], "bytes": found.bytes,
                "identified": identified(found.vectors, seed), "chance": 1 / len(found.vectors),
                "privacy": statement(found, self.epsilon, self.delta)}

    def caveats(self) -> list[str]:
        if self.encoder == "lsa":
            return ["The encoder 'lsa' is fitted on all clients' documents together: it is not private, and no federation has it"]
        return []


__all__ = ["ByText"]
