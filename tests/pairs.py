"""Every algorithm with every trainable, and every aggregator with adapters."""

from __future__ import annotations

from fedrift import algorithms
from fedrift.algorithms import FedAvg, FedPer, aggregators

TUNES = {"lora": "{type: Lora, r: 2}", "last_k": "{type: LastBlocks, num_blocks: 1}", "full": "All"}
PAIRS = [*((name, tune) for name in algorithms.__all__ for tune in TUNES), *((name, "lora") for name in aggregators.__all__)]


def algorithm(name: str) -> FedAvg:
    """Return an algorithm that learns within a few rounds: FedPer personalizes its queries, and the noise of DPMean is small."""
    if name in aggregators.__all__:
        return FedAvg(aggregator=aggregators.DPMean(noise_multiplier=1e-4) if name == "DPMean" else getattr(aggregators, name)())
    return FedPer(personal_params=("*q_proj*",)) if name == "FedPer" else getattr(algorithms, name)()
