"""Where and with what a run is computed: nothing in here is part of the experiment, and nothing is global."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch

from ..core.errors import UserError, default_cache_dir

Dtype = Literal["auto", "float32", "bfloat16"]
NUMERIC_DEFAULTS = {"dtype": "float32", "tf32": False, "compiled": False, "deterministic": True}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MIN_BF16_SPEEDUP = 1.5  # bfloat16 rounds 2^16 times coarser: it must be that much faster


@dataclass(frozen=True)
class Runtime:
    """``root`` holds the runs, ``data`` local corpora by name. ``micro`` clients train in one forward pass (None:
    as many as memory and the processor's cache like; 0: those or one, by a trial). ``checkpoint``: the state is stored every
    so many rounds. ``keep_updates``: every round's report is kept, for ``fedrift fork``.

    ``dtype``: what the frozen base computes in; ``auto`` is float32 on CPUs and what is faster on GPUs. Adapters, gradients
    and the server are float32 whatever it is. ``tf32``: coarser float32 products on NVIDIA GPUs. ``deterministic``: kernels
    that give the same bits twice, where there are any. ``compiled``: torch.compile for every block: slow to start, then
    faster. ``canary``: compute a step again on the CPU first and compare (None: on Apple's GPU).
    """

    runs_dir: Path = Path("runs")
    cache_dir: Path = field(default_factory=default_cache_dir)
    data_dir: Path | None = None
    device: str = "auto"
    threads: int | None = None
    clients_per_pass: int | None = None
    checkpoint_interval: int = 1
    save_updates: bool = False
    dtype: Dtype = "auto"
    tf32: bool = False
    deterministic: bool = True
    compiled: bool = False
    check_device: bool | None = None
    on_message: Callable[[str], None] = lambda message: None

    def resolve_device(self) -> torch.device:
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

    def numeric_options(self) -> dict[str, Any]:
        """The choices of arithmetic that must be the same for a run to resume as the same run, but for defaults."""
        device = self.resolve_device()
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" or measure_bf16_speedup(device) < MIN_BF16_SPEEDUP else "bfloat16"
        said = {"dtype": dtype, "tf32": self.tf32, "compiled": self.compiled, "deterministic": self.deterministic}
        return {name: choice for name, choice in said.items() if choice != NUMERIC_DEFAULTS[name]}

    def explicit_numeric_options(self) -> dict[str, Any]:
        """The choices of arithmetic that were made, not left to the default."""
        return {name: choice for name in NUMERIC_DEFAULTS if (choice := getattr(self, name)) != getattr(type(self), name)}

    def should_check_device(self) -> bool:
        """Whether the canary is to be asked."""
        return self.resolve_device().type == "mps" if self.check_device is None else self.check_device

    def configure_torch(self) -> None:
        """Settle what torch keeps per process."""
        configure_malloc()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.resolve_device().type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
            if self.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS gives the same bits twice only with it
            torch.use_deterministic_algorithms(self.deterministic, warn_only=True)


def configure_malloc() -> None:
    """Have glibc keep freed memory for the next step: given back, every page of it is fetched and zeroed again at every step.

    Ten pocket clients of 8 x 64 tokens touch 30,000 such pages a step, a tenth of its time. Larger tensors than 256 MiB
    are given back as before.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libraries of C have none, and may need none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, 1 << 28)
            mallopt(M_TRIM_THRESHOLD, 1 << 30)


def measure_bf16_speedup(device: torch.device, size: int = 1024) -> float:
    """How many times faster a device multiplies matrices in bfloat16 than in float32; the best of some trials each.

    0 where it cannot at all, as older Apple GPUs.
    """
    took = {}
    for dtype in (torch.float32, torch.bfloat16):
        try:
            one = torch.ones(size, size, dtype=dtype, device=device)
        except (TypeError, RuntimeError):
            return 0.0
        trials = []
        for _ in range(5):
            begun = perf_counter()
            (one @ one)[0, 0].item()  # waits for the device
            trials.append(perf_counter() - begun)
        took[dtype] = min(trials)
    return took[torch.float32] / took[torch.bfloat16]
