"""What a run was made with, and what must not change before it resumes."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..errors import UserError
from .run import Run

PACKAGES = ("fedrift", "torch", "transformers", "tokenizers", "peft", "datasets", "safetensors", "numpy")


def describe(device: str, threads: int, engine: dict[str, Any], together: bool = False) -> dict[str, Any]:
    """Versions, platform, device and threads; ``engine``: choices that change the last bits of a result.
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
        "device": device,
        "threads": threads,
        "engine": engine,
        **({"passes": "shared with other runs"} if together else {}),
    }


def settle(run: Run, environment: dict[str, Any]) -> list[str]:
    """Write the environment of a new run, or compare it with that of one to be resumed.

    Returns what differs, in words, for a note in the run's events: another version or thread count may
    change the last bits. Raises UserError where the engine's choices differ.
    """
    before = run.environment
    if not before:
        run.write_json("environment", environment)
        return []
    odd = _differences(before["engine"], environment["engine"])
    if odd:
        raise UserError(f"run {run.id} was begun with other engine choices and would not resume as the same "
                        f"run: {'; '.join(odd)}. Ask for those, or remove {run.folder} to begin again.")
    return _differences(_flat(before), _flat(environment))


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]


def _flat(environment: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in environment.items() if name not in ("packages", "engine")}
    return {**rest, **environment["packages"]}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
