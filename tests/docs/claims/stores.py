"""The committed stores and results from which claims are computed."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from fedrift.studies.comparison import EARLIER_LABELS

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results"


def extract_study(root: Path, name: str) -> None:
    """Extract one of the project's own archives; other tests cover what ``fedrift import`` checks in foreign archives."""
    with zipfile.ZipFile(ROOT / "studies" / "results" / f"{name}.zip") as archive:
        archive.extractall(root)


def load_result(name: str) -> dict[str, Any]:
    """Load a file of ``benchmarks/results``."""
    text = (RESULTS / f"{name}.json").read_text()
    if name.startswith("clustering-"):  # results of 2026-11-25 have earlier names of some conditions
        for earlier, present in EARLIER_LABELS.items():
            text = text.replace(f'"{earlier}"', f'"{present}"').replace(f'"{earlier}.', f'"{present}.')
    return dict(json.loads(text))


def signed(value: float, digits: int = 3) -> str:
    """Format a number with its sign."""
    return f"{value:+.{digits}f}"
