"""Fine-tuning of whole blocks: what the kept frozen prefix and the fused optimiser save.

    python benchmarks/tuning.py [--model pocket] [--repeats 5]

The last 1 and 2 blocks with and without the prefix (from the second time on that blocks of text are read; the first is shown
apart), and full fine-tuning, one client after another, with torch's fused AdamW kernel and with the rule as it is written. Sides
take turns and must end at the same weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from loop import batches_of
from torch import Tensor
from turns import apart, compared, taking_turns, written

from fedrift.algorithms import FedAvg
from fedrift.fleet import SimulatedFleet
from fedrift.models.load import load_model
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Full, LastK, Tune
from fedrift.optimizers import AdamW
from fedrift.rounds import begin
from fedrift.runtime import cache_folder, keep_pages
from fedrift.tree import Tree


@dataclass(frozen=True)
class Written(AdamW):
    """AdamW as the rule is written."""

    def fused(self, params: Tree, grad: Tree, moments: Tree, count: Tensor) -> tuple[Tree, Tree]:
        return self.written(params, grad, moments, count)


def side(name: str, tune: Tune, batches: list[dict[str, Tensor]], optimizer: AdamW, micro: int,
         prefix: bool) -> tuple[Callable[[], Tree], StackedModel]:
    model = StackedModel(load_model(name, cache=cache_folder()).network, tune, prefix=prefix)
    clients = len(batches[0]["tokens"])

    def read(round: int, cohort: Tensor) -> list[dict[str, Tensor]]:
        return [{leaf: values[cohort] for leaf, values in batch.items()} for batch in batches]

    fleet = SimulatedFleet(clients, model, read, optimizer, micro=micro)
    state = begin(FedAvg(), model.template(), clients)
    return lambda: fleet.train(state, FedAvg(), torch.arange(clients)).delta, model


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="pocket")
    ask.add_argument("--repeats", type=int, default=5)
    ask.add_argument("--shape", default="4,8,64,3", help="clients,sequences,tokens,steps")
    said = ask.parse_args()
    clients, sequences, tokens, steps = map(int, said.shape.split(","))
    keep_pages()
    vocabulary = load_model(said.model, cache=cache_folder()).network.config.vocab_size
    batches = batches_of(clients, sequences, tokens, steps, vocabulary)
    rows: list[dict[str, Any]] = []
    cases: list[tuple[str, Tune, dict[str, tuple[AdamW, bool]]]] = [
        *((f"last {blocks}: prefix kept", LastK(blocks), {"plain": (AdamW(1e-4), False), "fast": (AdamW(1e-4), True)})
          for blocks in (1, 2)),
        ("full: fused optimiser", Full(), {"plain": (Written(1e-4), False), "fast": (AdamW(1e-4), False)})]
    for case, tune, how in cases:
        made = {name: side(said.model, tune, batches, optimizer, 1, prefix) for name, (optimizer, prefix) in how.items()}
        begun = perf_counter()
        ends = {"fast": made["fast"][0]()}
        first = perf_counter() - begun
        ends["plain"] = made["plain"][0]()
        # Adam divides by the gradient's size: where that is all rounding, so is the step.
        difference = apart(ends["plain"], ends["fast"], most=0.1)
        spent = taking_turns({name: run for name, (run, _) in made.items()}, said.repeats)
        rows.append({"case": case, "first_round_s": round(first, 2), "round_s": round(min(spent["fast"]), 2),
                     **compared(spent, "plain", "fast"), "largest_difference": difference})
        print("{case:24s} {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})   first round {first_round_s} s, "
              "later {round_s} s   weights differ by {largest_difference:.0e}".format(**rows[-1]), flush=True)
    written(f"tuning-{said.model}", rows, model=said.model, shape=said.shape)


if __name__ == "__main__":
    main()
