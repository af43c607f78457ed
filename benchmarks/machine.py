"""Describe the machine of a benchmark, parse common options and write results."""

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
    """Return a parser with the options of all benchmarks.

    Args:
        description: The help text.
        device: The default device; "" omits the option ``--device``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if device:
        parser.add_argument("--device", default=device, help="the device: cuda, mps or cpu")
    parser.add_argument("--small", action="store_true", help="use toy sizes, to check that the script works")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for the results")
    return parser


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return device, versions and date, which are stored with every result."""
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
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """Return the number and the name of the CPUs."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def write_results(out: Path, name: str, results: dict[str, Any]) -> Path:
    """Write ``NAME.json`` to the results folder atomically, and return its path."""
    out.mkdir(parents=True, exist_ok=True)
    partial, path = out / f".{name}.partial", out / f"{name}.json"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    return partial.replace(path)


def update_docs_table(page: Path, marker: str, rows: list[dict[str, Any]], columns: dict[str, str], footer: str = "") -> None:
    """Replace the table between ``<!-- marker -->`` and ``<!-- /marker -->`` in a page.

    Args:
        page: The Markdown file.
        marker: The name of the region.
        rows: The rows of the table.
        columns: Maps keys of the rows to column titles.
        footer: A line below the table; "" for none.
    """
    lines = [f"| {' | '.join(columns.values())} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(format_cell(row.get(key)) for key in columns)} |" for row in rows]
    lines += ["", footer] if footer else []
    before, remainder = page.read_text().split(f"<!-- {marker} -->\n")
    _, after = remainder.split(f"<!-- /{marker} -->")
    page.write_text(f"{before}<!-- {marker} -->\n" + "\n".join(lines) + f"\n<!-- /{marker} -->{after}")


def format_cell(value: Any) -> str:
    """Format a value for a table; None becomes an empty cell."""
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
