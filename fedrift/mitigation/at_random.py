"""The control: random groups of the same sizes as another mitigation's, for what grouping does without any likeness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from ..errors import UserError
from ..seeds import numpy_stream
from .by_text import ByText
from .decision import Decision, Ground
from .vanilla import Vanilla


@dataclass(frozen=True)
class AtRandom(Vanilla):
    """``like``: whose sizes; or ``sizes`` themselves, largest first or not. ``draw``: the number of the shuffle, for several."""

    like: Vanilla = ByText()
    sizes: tuple[Annotated[int, Ge(1)], ...] = ()
    draw: Annotated[int, Ge(0)] = 0

    def begin(self, ground: Ground) -> Decision:
        sizes = self.sizes
        if not sizes:
            model = self.like.begin(ground)
            if model is None:
                raise UserError(f"mitigation.like: {type(self.like).__name__} does not say its groups before the first round; "
                                "say mitigation.sizes, e.g. [3, 3, 4]")
            sizes = tuple(np.bincount(model.group, minlength=model.models).tolist())
        if sum(sizes) != ground.size:
            raise UserError(f"mitigation.sizes: {list(sizes)} are {sum(sizes)} clients, and there are {ground.size}")
        group = numpy_stream(ground.seed, "random groups", self.draw).permutation(np.repeat(np.arange(len(sizes)), sizes))
        why = {"signal": "AtRandom", "k": len(sizes), "sizes": list(sizes), "draw": self.draw, "bytes": 0}
        return Decision(group, len(sizes), why)


__all__ = ["AtRandom"]
