"""Every algorithm with everything that can be tuned, and every aggregate with adapters."""

from __future__ import annotations

from fedrift import algorithms
from fedrift.algorithms import FedAvg, FedPer, aggregates

TUNES = {"lora": "{is: Lora, rank: 2}", "last_k": "{is: LastK, blocks: 1}", "full": "Full"}
PAIRS = [*((name, tune) for name in algorithms.__all__ for tune in TUNES), *((name, "lora") for name in aggregates.__all__)]


def algorithm(name: str) -> FedAvg:
    """As it learns in a few rounds: FedPer keeps its queries, whatever is tuned, and the noise of Private is faint."""
    if name in aggregates.__all__:
        return FedAvg(aggregate=aggregates.Private(noise=1e-4) if name == "Private" else getattr(aggregates, name)())
    return FedPer(own=("*q_proj*",)) if name == "FedPer" else getattr(algorithms, name)()
