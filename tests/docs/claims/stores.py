"""The committed stores and results that claims are made from."""

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
from fedrift.stats import Verdict
from fedrift.storage import connect
from fedrift.studies import StudyManifest

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class ImportedStudy:
    """A study of ``studies/results``, imported into a folder."""

    manifest: StudyManifest

    @cached_property
    def data(self) -> StudyData:
        return load_study_data(self.manifest)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a run or IID baseline; ``start``: the loss before any training; ``base``: the IID baseline's outcomes."""
        frame = self.data.frame
        first = dict(self.query("SELECT run, value FROM records WHERE metric = 'loss' AND domain = '' AND client < 0 AND round = 0"))
        known = frame.set_index("run")
        return frame.assign(
            start=frame["run"].map(first), **{f"base.{name}": frame["iid_baseline"].map(known[name]) for name in ("loss", "movement")}
        )

    def query(self, sql: str) -> list[Any]:
        """Rows of a query over the records of all runs, the trials of tuning among them."""
        runs = {entry.run: self.manifest.get_run(entry) for entry in self.contents["runs"]}
        with connect(self.manifest.root, runs.values()) as connection:
            return list(connection.execute(sql).fetchall())

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        return {one.name: one for one in self.data.verdicts}

    @cached_property
    def contents(self) -> dict[str, Any]:
        return self.manifest.read()

    @cached_property
    def plan(self) -> dict[str, Any]:
        return dict(self.contents["study"]["base"]["training"])

    def runs(self, role: str = "run", **levels: Any) -> pd.DataFrame:
        """Rows at some levels, by seed; ``severity`` is ``partition.severity``, ``rate`` the learning rate."""
        names = {"severity": "partition.severity", "rate": "training.client_optimizer.lr"}
        rows = self.frame[self.frame["role"] == role]
        for name, level in levels.items():
            rows = rows[rows[names.get(name, name)] == level]
        return rows.set_index("seed").sort_index()


def imported(root: Path, name: str) -> ImportedStudy:
    """The project's own archive; what `fedrift import` makes sure of a stranger's is tested elsewhere."""
    with zipfile.ZipFile(ROOT / "studies" / "results" / f"{name}.zip") as archive:
        archive.extractall(root)
    return ImportedStudy(StudyManifest(root, name))


def result(name: str) -> dict[str, Any]:
    """A file of ``benchmarks/results``."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}"


def of(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
