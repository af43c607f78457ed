"""Peak memory of a round: clients stacked over one base, beside a copy of the model for each client.

    python benchmarks/memory.py [--clients 20]

Each line is measured in a process of its own (the highest resident set, less what the libraries take): DistilGPT2's shape with
random weights, LoRA r = 8, 8 x 64 tokens a client, one step.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
from typing import Any

import torch
from loop import batches_of
from transformers import GPT2Config, GPT2LMHeadModel
from turns import written

from fedrift.algorithms import FedAvg, Scaffold
from fedrift.fleet import SimulatedFleet
from fedrift.fleet.micro import micro_cohort
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora
from fedrift.optimizers import AdamW, Sgd
from fedrift.rounds import begin
from fedrift.runtime import keep_pages

SIZES = {"distilgpt2": dict(n_layer=6, n_embd=768, n_head=12, vocab_size=50257),
         "tiny": dict(n_layer=2, n_embd=64, n_head=2, vocab_size=503)}


def resident() -> float:
    """MB of the highest resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "darwin" else 1024) / (
        1e6 if sys.platform == "darwin" else 1)


def stacked(network: Any, clients: int, cohort: int) -> None:
    keep_pages()
    model, algorithm = StackedModel(network, Lora()), Scaffold() if clients > cohort else FedAvg()
    batches = batches_of(cohort, 8, 64, 1, network.config.vocab_size)
    micro = micro_cohort(network, cohort, 8, 64, torch.device("cpu"))

    def read(round: int, who: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [{leaf: values[who % cohort] for leaf, values in batch.items()} for batch in batches]

    fleet = SimulatedFleet(clients, model, read, Sgd(0.1) if clients > cohort else AdamW(), micro=micro)
    state = begin(algorithm, model.template(), clients)
    fleet.train(state, algorithm, torch.arange(cohort))


def copies(network: Any, clients: int, cohort: int) -> None:
    models = [StackedModel(copy.deepcopy(network), Lora(), lean=False) for _ in range(clients)]
    for number, batch in enumerate(batches_of(clients, 8, 64, 1, network.config.vocab_size)[0]["tokens"]):
        fleet = SimulatedFleet(1, models[number], lambda round, who, batch=batch: [
            {"tokens": batch[None], "keep": torch.ones_like(batch[None], dtype=torch.bool)}], AdamW())
        fleet.train(begin(FedAvg(), models[number].template(), 1), FedAvg(), torch.arange(1))


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--clients", type=int, default=20)
    ask.add_argument("--size", choices=SIZES, default="distilgpt2")
    ask.add_argument("--one", nargs=3, metavar=("SIDE", "CLIENTS", "COHORT"), help=argparse.SUPPRESS)
    said = ask.parse_args()
    if said.one:
        side, clients, cohort = said.one[0], int(said.one[1]), int(said.one[2])
        before = resident()
        network = GPT2LMHeadModel(GPT2Config(**SIZES[said.size]))
        {"stacked": stacked, "copies": copies}[side](network, clients, cohort)
        print(resident() - before)
        return
    rows: list[dict[str, Any]] = []
    cases = [("copies", said.clients, said.clients), ("stacked", 1, 1), ("stacked", said.clients, said.clients),
             ("stacked", said.clients, 10), ("stacked", 1000, 10)]
    for side, clients, cohort in cases:
        out = subprocess.run([sys.executable, __file__, "--size", said.size, "--one", side, str(clients), str(cohort)],
                             check=True, capture_output=True, text=True).stdout
        rows.append({"side": side, "clients": clients, "cohort": cohort, "peak_mb": round(float(out.split()[-1]))})
        print("{side:8s} {clients:5d} clients, {cohort:3d} a round   {peak_mb:6,d} MB".format(**rows[-1]), flush=True)
    print(f"a copy each takes {rows[0]['peak_mb'] / rows[2]['peak_mb']:.1f} times as much")
    written("memory", rows, size=said.size)


if __name__ == "__main__":
    main()
