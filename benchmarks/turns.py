"""Two sides of a benchmark: they take turns, must agree, and are held to what the machine can do."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from machine import machine, write
from sides import apart

from fedrift.tree import Tree


def taking_turns(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every side, each measured in every turn, so that what disturbs the machine disturbs all."""
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, run in sides.items():
            begun = perf_counter()
            run()
            spent[side].append(perf_counter() - begun)
    return spent


def compared(spent: dict[str, list[float]], slow: str, fast: str) -> dict[str, Any]:
    """How many times faster one side is, turn by turn: the median and the ends; beside it the ratio of the best turns."""
    ratios = sorted(a / b for a, b in zip(spent[slow], spent[fast], strict=True))
    return {"ratio": round(median(ratios), 2), "ratio_lowest": round(ratios[0], 2), "ratio_highest": round(ratios[-1], 2),
            "ratio_of_best": round(min(spent[slow]) / min(spent[fast]), 2)}


def peak(side: int = 1024, trials: int = 20) -> float:
    """FLOP a second of one large float32 matrix product, the best of some trials."""
    one, best = torch.ones(side, side), float("inf")
    for _ in range(trials):
        begun = perf_counter()
        one @ one
        best = min(best, perf_counter() - begun)
    return 2 * side**3 / best


def agreed(found: Tree, expected: Tree, most: float = 1e-3) -> float:
    """How far two ends lie apart, as a share of the length of what was expected; more than ``most`` ends the benchmark."""
    gap = apart(found, expected)
    if not gap <= most:
        raise SystemExit(f"the sides end {gap:.1e} apart (at most {most:.0e} is rounding): nothing to compare")
    return float(f"{gap:.1e}")


def written(out: Path, name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Keep the rows with the machine, the versions and the day."""
    print(write(out, f"{name}-{platform.machine()}", {**more, **machine(torch.device("cpu")), "rows": rows}))
