"""Collect the environment of a run, parts of which must not change before the run resumes."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..core.errors import UserError
from .run import Run

KERNEL_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
)  # environment variables that choose the kernels of torch, oneDNN and MKL
PACKAGES = ("fedrift", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "numpy")


def collect_environment(device: str, threads: int, engine: dict[str, Any], shares_passes: bool = False) -> dict[str, Any]:
    """Collect versions, platform, processor, device and threads.

    Args:
        device: The device.
        threads: The number of threads.
        engine: The options of the engine that change the last bits of a result, such as the number of stacked clients and the arithmetic.
            With other options a resumed run would differ from an uninterrupted one.
        shares_passes: Whether forward passes are shared with other runs, so that the last bits depend on these runs.
    """
    return {
        "python": platform.python_version(),
        "packages": {name: _get_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processor": collect_processor_info(),
        "device": device,
        "threads": threads,
        "engine": engine,
        **({"passes": "shared with other runs"} if shares_passes else {}),
    }


def collect_processor_info() -> dict[str, Any]:
    """Collect what determines the rounding of a matrix product: the processor, its instructions, and the limits set on them."""
    import torch  # imported here, because tables and reports use this module without torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "name": str(capabilities.get("cpu_name") or platform.processor() or platform.machine()),
        "capability": torch.backends.cpu.get_cpu_capability(),  # of torch's own kernels
        "instructions": " ".join(sorted(name for name, available in capabilities.items() if available is True)),
        "limits": {name: os.environ[name] for name in KERNEL_VARIABLES if name in os.environ},
    }


def check_environment(run: Run, environment: dict[str, Any]) -> list[str]:
    """Store the environment of a new run, or compare it with that of a run to be resumed.

    Args:
        run: The run.
        environment: The current environment, from ``collect_environment``.

    Returns:
        The differences in words, for the events of the run: other versions, thread counts or processors may change the last bits. Values
        that an older version did not store are not compared.

    Raises:
        UserError: The options of the engine differ.
    """
    previous = run.environment
    if not previous:
        run.write_json("environment", environment)
        return []
    differences = _list_differences(previous["engine"], environment["engine"])
    if differences:
        raise UserError(
            f"run {run.id} was started with other engine options and would not resume as the same "
            f"run: {'; '.join(differences)}. Use the old options, or remove {run.folder} to start again."
        )
    return _list_differences(_flatten(previous), _flatten(environment)) + _list_processor_differences(
        previous.get("processor", {}), environment.get("processor", {})
    )


def _list_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _list_processor_differences(previous: dict[str, Any], current: dict[str, Any]) -> list[str]:
    differences = [
        f"processor {name} was {previous[name]!r} and is {current[name]!r}"
        for name in ("name", "capability", "limits")
        if name in previous and name in current and previous[name] != current[name]
    ]
    if "instructions" in previous and "instructions" in current:
        old, new = set(previous["instructions"].split()), set(current["instructions"].split())
        differences += [
            f"the processor {verb} {', '.join(sorted(names))}"
            for verb, names in (("no longer has", old - new), ("now has", new - old))
            if names
        ]
    return differences


def _flatten(environment: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in environment.items() if name not in ("packages", "engine", "processor")}
    return {**rest, **environment["packages"]}


@lru_cache  # a search for the metadata of a package takes about 10 ms, and a study has many runs
def _get_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
