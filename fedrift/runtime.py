"""Where and with what a run is computed: nothing in here is part of the experiment, and nothing is global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .errors import UserError
from .folders import cache_folder


@dataclass(frozen=True)
class Runtime:
    """``root`` holds the runs, ``data`` local corpora by name. ``micro`` clients train in one forward pass (None:
    as many as memory and the processor's cache like). ``checkpoint``: the state is stored every so many rounds."""

    root: Path = Path("runs")
    cache: Path = field(default_factory=cache_folder)
    data: Path | None = None
    device: str = "auto"
    threads: int | None = None
    micro: int | None = None
    checkpoint: int = 1
    say: Callable[[str], None] = lambda message: None

    def torch_device(self) -> torch.device:
        """``auto`` is CUDA, else Apple's GPU, else the CPU."""
        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not there.get(self.device.split(":")[0], False):
            has = ", ".join(["auto", *(device for device, ok in there.items() if ok)])
            raise UserError(f"device {self.device!r} is not here; there are {has}")
        return torch.device(self.device)

    def begin(self) -> None:
        """Settle what torch keeps per process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
