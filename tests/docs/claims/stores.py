"""The committed stores and results from which claims are computed."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedrift.report.study_data import StudyData, load_study_data
from fedrift.stats import HypothesisVerdict
from fedrift.storage import connect
from fedrift.studies import StudyManifest

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class StoredStudy:
    """A study of ``studies/results``, extracted into a folder of runs."""

    manifest: StudyManifest

    @cached_property
    def study_data(self) -> StudyData:
        """The data that reports use."""
        return load_study_data(self.manifest)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per run or IID baseline, with the additional columns ``start`` and ``base.*``.

        ``start`` is the loss before training, and ``base.*`` are the outcomes of the IID baseline.
        """
        frame = self.study_data.frame
        first = dict(
            self.query_records("SELECT run, value FROM records WHERE metric = 'loss' AND domain = '' AND client < 0 AND round = 0")
        )
        outcomes = frame.set_index("run")
        return frame.assign(
            start=frame["run"].map(first), **{f"base.{name}": frame["iid_baseline"].map(outcomes[name]) for name in ("loss", "movement")}
        )

    def query_records(self, query: str) -> list[Any]:
        """Query the records of all runs, including tuning trials."""
        runs = {entry.run: self.manifest.get_run(entry) for entry in self.content["runs"]}
        with connect(self.manifest.root, runs.values()) as connection:
            return list(connection.execute(query).fetchall())

    @cached_property
    def verdicts(self) -> dict[str, HypothesisVerdict]:
        """The verdicts by the name of their hypothesis."""
        return {verdict.name: verdict for verdict in self.study_data.verdicts}

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of the study manifest."""
        return self.manifest.read()

    @cached_property
    def training(self) -> dict[str, Any]:
        """The training section of the base experiment."""
        return dict(self.content["study"]["base"]["training"])

    def runs(self, role: str = "run", **levels: Any) -> pd.DataFrame:
        """Return the rows at some levels, sorted by seed.

        Args:
            role: "run" or "iid_baseline".
            levels: Factor -> level; ``severity`` is ``partition.severity``, and ``rate`` is the learning rate.
        """
        names = {"severity": "partition.severity", "rate": "training.client_optimizer.lr"}
        rows = self.frame[self.frame["role"] == role]
        for name, level in levels.items():
            rows = rows[rows[names.get(name, name)] == level]
        return rows.set_index("seed").sort_index()


def extract_study(root: Path, name: str) -> StoredStudy:
    """Extract one of the project's own archives; other tests cover what ``fedrift import`` checks in foreign archives."""
    with zipfile.ZipFile(ROOT / "studies" / "results" / f"{name}.zip") as archive:
        archive.extractall(root)
    return StoredStudy(StudyManifest(root, name))


def load_result(name: str) -> dict[str, Any]:
    """Load a file of ``benchmarks/results``."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def signed(value: float, digits: int = 3) -> str:
    """Format a number with its sign."""
    return f"{value:+.{digits}f}"


def to_array(values: Any) -> np.ndarray:
    """Convert values to an array of float64."""
    return np.asarray(values, dtype=np.float64)
