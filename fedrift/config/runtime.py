"""Runtime options: where and with which numerics a run is computed. They are not part of the experiment and its id."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from ..core.errors import UserError, default_cache_dir
from ..core.lazy_imports import torch

Dtype = Literal["auto", "float32", "bfloat16", "fastest"]
NUMERIC_DEFAULTS = {"dtype": "float32", "tf32": False, "compiled": False, "deterministic": True}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # constants of malloc.h of glibc
MIN_BF16_SPEEDUP = 1.5  # below this speedup, float32 is preferred because bfloat16 rounds 2^16 times more coarsely


@dataclass(frozen=True)
class Runtime:
    """The runtime options of a run.

    Args:
        runs_dir: The folder of the runs.
        cache_dir: The folder for downloaded models, tokenized datasets and embeddings.
        data_dir: A folder with local copies of datasets, by name. None: no such folder.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``. ``auto`` prefers CUDA, then the Apple GPU, then the CPU.
        threads: CPU threads of torch. None: the default of torch.
        clients_per_pass: Clients that train in one forward pass. None: chosen from the free memory and the CPU cache. 0: that number or
            1, whichever is faster in a measurement.
        checkpoint_interval: Rounds between two checkpoints.
        save_updates: Whether the updates of every round are stored, which ``fedrift fork`` needs.
        dtype: Data type of the frozen base weights and their computations. ``auto`` is float32 on CPUs, and the faster of float32 and
            bfloat16 on GPUs. ``fastest`` times training steps of the run in both and uses bfloat16 if it is at least 1.3 times as fast.
            Adapters, gradients and the server always use float32.
        trial: The result of the trial for ``fastest``, if all runs of a study share it: a data type, and the time of a step in float32
            divided by that in bfloat16 (None: a stored run decided). None: no trial has been made.
        tf32: Whether NVIDIA GPUs may compute float32 products in TF32, which rounds more coarsely.
        deterministic: Whether to use deterministic kernels where they exist.
        compiled: Whether to compile every block with torch.compile, which makes the start slow and the rounds faster.
        check_device: Whether to compare a training step with the same step on the CPU before the run. None: on the Apple GPU only.
        on_message: Called with messages for the user.

    Example:
        >>> Runtime(device="cpu").resolve_device()
        device(type='cpu')
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
    trial: tuple[Literal["float32", "bfloat16"], float | None] | None = None
    tf32: bool = False
    deterministic: bool = True
    compiled: bool = False
    check_device: bool | None = None
    on_message: Callable[[str], None] = lambda message: None

    def resolve_device(self) -> torch.device:
        """Return the torch device that ``device`` denotes.

        Raises:
            UserError: The device is not available on this machine.
        """
        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(self.device.split(":")[0], False):
            names = ", ".join(["auto", *(device for device, is_available in available.items() if is_available)])
            raise UserError(f"device {self.device!r} is not available on this machine; choose one of {names}")
        return torch.device(self.device)

    def numeric_options(self) -> dict[str, Any]:
        """Return the numeric options that differ from their defaults. A run can only continue with the same numeric options.

        Raises:
            UserError: The data type is ``fastest``, which only a run can replace by the result of its trial.
        """
        device = self.resolve_device()
        dtype = self.dtype
        if dtype == "fastest":
            raise UserError("--dtype fastest is decided by a trial when a run starts; use --dtype float32 or --dtype bfloat16 here")
        if dtype == "auto":
            dtype = "float32" if device.type == "cpu" or measure_bf16_speedup(device) < MIN_BF16_SPEEDUP else "bfloat16"
        options = {"dtype": dtype, "tf32": self.tf32, "compiled": self.compiled, "deterministic": self.deterministic}
        return {name: value for name, value in options.items() if value != NUMERIC_DEFAULTS[name]}

    def explicit_numeric_options(self) -> dict[str, Any]:
        """Return the numeric options that were set explicitly to another value than the default of the class.

        ``fastest`` is not included, because a finished run in either data type satisfies it.
        """
        options = {name: getattr(self, name) for name in NUMERIC_DEFAULTS}
        return {name: value for name, value in options.items() if value not in (getattr(type(self), name), "fastest")}

    def should_check_device(self) -> bool:
        """Return whether a training step is compared with the CPU before the run."""
        return self.resolve_device().type == "mps" if self.check_device is None else self.check_device

    def configure_torch(self) -> None:
        """Apply the options to the global settings of torch in this process."""
        configure_malloc()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.resolve_device().type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
            if self.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this setting
            torch.use_deterministic_algorithms(self.deterministic, warn_only=True)


def configure_malloc() -> None:
    """Configure glibc to keep freed memory for the next step instead of returning it to the operating system.

    The operating system must provide and zero every returned page again in the next step. A step of ten clients with 8 x 64 tokens
    each on the model ``pocket`` uses 30,000 such pages, which take a tenth of its time. Memory of tensors above 256 MiB is still
    returned, and so is, by each call, all memory that the runs before have freed: their tensors leave gaps that those of the next run
    do not fit, so that a process with many runs would otherwise need more memory with each of them.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):  # only glibc provides them
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 28)
            libc.mallopt(M_TRIM_THRESHOLD, -1)
            libc.malloc_trim(0)


def measure_bf16_speedup(device: torch.device, size: int = 1024) -> float:
    """Measure the speedup of matrix products in bfloat16 over float32, from the fastest of five trials of each.

    Args:
        device: The device to measure.
        size: Rows and columns of the matrices.

    Returns:
        The time in float32 divided by the time in bfloat16; 0 if the device does not support bfloat16, as older Apple GPUs.
    """
    fastest = {}
    for dtype in (torch.float32, torch.bfloat16):
        try:
            matrix = torch.ones(size, size, dtype=dtype, device=device)
        except (TypeError, RuntimeError):
            return 0.0
        trials = []
        for _ in range(5):
            start = perf_counter()
            (matrix @ matrix)[0, 0].item()  # item() waits until the device has finished
            trials.append(perf_counter() - start)
        fastest[dtype] = min(trials)
    return fastest[torch.float32] / fastest[torch.bfloat16]
