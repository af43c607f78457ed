"""The tidy frame of a study: one row a run, with its place in the design and what it came to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..records import Columns, Trajectory
from ..store import connected
from ..store.query import find_faults
from .book import Book, Entry, shared_twins
from .outcomes import diverged, needed, outcome

PLACE = ("run", "study", "role", "stage", "arm", "seed", "iid", "twin", "status", "failure", "diverged")


def table(book: Book, outcomes: Sequence[str] = (), roles: Sequence[str] = ("run", "twin")) -> pd.DataFrame:
    """``run, study, role, stage, arm, seed, iid, twin, status, failure, diverged``, a column a factor, a column an outcome.

    ``outcomes``: those of the study if none are named. A twin that serves several arms is one row with the levels that
    they agree on, its severity 0. What is not finished has NaN outcomes; a run that failed counts as diverged only if
    its loss did. A run that cannot be read has failed, whatever it was.
    """
    said = book.read()
    names = list(outcomes or said["study"]["outcomes"])
    entries = [entry for entry in shared_twins(said["runs"]) if entry.role in roles]
    trajectories = curves(book, entries, needed(names))
    faults = find_faults(kept for entry in entries if ((kept := book.run(entry)).folder / "experiment.json").exists())
    rows = []
    for entry in entries:
        fault = f"it cannot be read: {faults[entry.run]}" if entry.run in faults else ""
        state, run = "failed" if fault else book.state(entry.run), trajectories.get(entry.run)
        ended, twin = state in ("finished", "failed"), trajectories.get(entry.twin)
        row = {"run": entry.run, "study": book.name, "role": entry.role, "stage": entry.stage, "arm": entry.arm,
               "seed": entry.seed, "iid": entry.iid, "twin": entry.twin, "status": state,
               "failure": fault or book.failure(entry.run), "diverged": bool(ended and run and diverged(run))}
        row |= {factor: entry.factors.get(factor) for factor in said["factors"]}
        row |= {name: outcome(name, run, twin) if state == "finished" and run else math.nan for name in names}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*PLACE, *said["factors"], *names])
    return frame.astype({"iid": bool, "diverged": bool, **{name: "float64" for name in names}})


def curves(book: Book, entries: Iterable[Entry], metrics: Sequence[str]) -> dict[str, Trajectory]:
    """The trajectories of some runs, with these metrics only; all files are read in one query."""
    runs = {entry.run: book.run(entry) for entry in entries}
    there = [run for run in runs.values() if (run.folder / "experiment.json").exists()]
    with connected(Path(book.root), there) as connection:
        marks = ", ".join("?" * len(metrics))
        frame = connection.execute(
            f"SELECT run, round, metric, domain, client, value FROM records WHERE metric IN ({marks}) "
            "ORDER BY run, round", list(metrics)).df()
    codes = {column: pd.factorize(frame[column].astype("object")) for column in ("metric", "domain")}
    ends: list[int] = (np.flatnonzero(np.diff(pd.factorize(frame["run"].astype("object"))[0], append=-1)) + 1).tolist()
    found = {}
    for begin, end in zip([0, *ends], ends, strict=False):
        rows = slice(begin, end)
        numbers = [frame[column].to_numpy()[rows] for column in ("round", "client", "value")]
        found[str(frame["run"].iloc[begin])] = Trajectory(Columns(
            numbers[0], codes["metric"][0][rows], codes["domain"][0][rows], numbers[1], numbers[2],
            tuple(map(str, codes["metric"][1])), tuple(map(str, codes["domain"][1]))))
    return found
