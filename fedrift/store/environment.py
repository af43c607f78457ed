"""What a run was made with, and what must not change before it resumes."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import UserError
from .run import Run

LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_CBWR",
          "MKL_ENABLE_INSTRUCTIONS")  # environment variables that choose the kernels of torch, oneDNN and MKL
PACKAGES = ("fedrift", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "numpy")


def describe(device: str, threads: int, engine: dict[str, Any], together: bool = False) -> dict[str, Any]:
    """Versions, platform, processor, device and threads; ``engine``: choices that change the last bits of a result.
    ``together``: passes are shared with other runs, so the last bits are those of the company.

    Of the engine are, say, how many clients are stacked and the arithmetic: with other choices a resumed
    run would not be the unbroken one bit for bit.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processor": describe_processor(),
        "device": device,
        "threads": threads,
        "engine": engine,
        **({"passes": "shared with other runs"} if together else {}),
    }


def describe_processor() -> dict[str, Any]:
    """Describe what decides the rounding of a matrix product: the processor, its instructions and the limits set on them."""
    import torch  # here, for tables and reports read environments without it

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "name": str(known.get("cpu_name") or platform.processor() or platform.machine()),
        "capability": torch.backends.cpu.get_cpu_capability(),  # of torch's own kernels
        "instructions": " ".join(sorted(name for name, has in known.items() if has is True)),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
    }


def settle(run: Run, environment: dict[str, Any]) -> list[str]:
    """Write the environment of a new run, or compare it with that of one to be resumed.

    Returns what differs, in words, for a note in the run's events: another version, thread count or processor may
    change the last bits. What an older version did not write is not compared. Raises UserError where the engine's choices differ.
    """
    before = run.environment
    if not before:
        run.write_json("environment", environment)
        return []
    odd = _differences(before["engine"], environment["engine"])
    if odd:
        raise UserError(f"run {run.id} was begun with other engine choices and would not resume as the same "
                        f"run: {'; '.join(odd)}. Ask for those, or remove {run.folder} to begin again.")
    return _differences(_flat(before), _flat(environment)) + _processor_differences(
        before.get("processor", {}), environment.get("processor", {}))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]


def _processor_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    said = [f"processor {name} was {before[name]!r} and is {now[name]!r}" for name in ("name", "capability", "limits")
            if name in before and name in now and before[name] != now[name]]
    if "instructions" in before and "instructions" in now:
        old, new = set(before["instructions"].split()), set(now["instructions"].split())
        said += [f"the processor {verb} {', '.join(sorted(names))}"
                 for verb, names in (("no longer has", old - new), ("now has", new - old)) if names]
    return said


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in environment.items() if name not in ("packages", "engine", "processor")}
    return {**rest, **environment["packages"]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
