"""What the machine can do at best: a large matrix product, and the most bytes that were in use."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

import torch

SIDES = {"cpu": (512, 1024, 1536), "cuda": (4096, 8192), "mps": (1024, 2048)}


def gemm_peak(device: torch.device, dtype: torch.dtype = torch.float32, trials: int = 8) -> float:
    """FLOP a second of a square matrix product, the best of some sizes and trials, with the threads that torch has now."""
    best = 0.0
    for side in SIDES.get(device.type, SIDES["cuda"]):
        one = torch.ones(side, side, dtype=dtype, device=device)
        for _ in range(trials):
            begun = perf_counter()
            (one @ one)[0, 0].item()  # waits for the device
            best = max(best, 2 * side**3 / (perf_counter() - begun))
    return best


def resident_peak() -> int:
    """The most bytes of memory that this process has held so far. 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it started us
        return next((int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")), 0)
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
