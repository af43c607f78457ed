"""What a benchmark was measured on, and where its figures are written."""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_name("results")
MODELS_PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def make_parser(description: str, device: str = "") -> argparse.ArgumentParser:
    """What all scripts are asked; those for a ``device`` of choice also which."""
    ask = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        ask.add_argument("--device", default=device, help="cuda, mps or cpu")
    ask.add_argument("--small", action="store_true", help="toy sizes: does the script itself work here?")
    ask.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    return ask


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, versions and date, as every result carries them."""
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "device": card.name if card else f"{device.type}, {processor_name()}",
        "memory_gb": round(card.total_memory / 1e9, 1) if card else None,
        "cuda": torch.version.cuda if card else None,
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in ("torch", "transformers", "peft", "triton", "bitsandbytes", "torchao")},
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
    }


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def write_results(out: Path, name: str, results: dict[str, Any]) -> Path:
    """``<name>.json`` in the folder of the figures, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    partial, path = out / f".{name}.partial", out / f"{name}.json"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    return partial.replace(path)


def update_docs_table(page: Path, marker: str, rows: list[dict[str, Any]], columns: dict[str, str], footer: str = "") -> None:
    """The rows as a table of a page, a line ``under`` it, in place of what stands between ``<!-- mark -->`` and its end."""
    lines = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(format_cell(row.get(key)) for key in columns)} |" for row in rows]
    lines += ["", footer] if footer else []
    before, rest = page.read_text().split(f"<!-- {marker} -->\n")
    _, after = rest.split(f"<!-- /{marker} -->")
    page.write_text(f"{before}<!-- {marker} -->\n" + "\n".join(lines) + f"\n<!-- /{marker} -->{after}")


def format_cell(value: Any) -> str:
    """A value in a table; what is missing is empty."""
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
