"""What the arms came to: means over paired seeds, each arm less random clusters and less vanilla, the share of the oracle's
gain, and what the failure detectors say before and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..detectors.finding import Case
from ..diagnose import Judgement, diagnose
from ..diagnose.cases import facts
from ..statistics import against, as_perplexity, fieller, paired_t, smallest_p
from ..statistics.evidence import Interval
from ..store import Run
from ..study import Book, Entry
from ..study.outcomes import diverged
from .arms import ARMS, arm_of
from .numbers import METRICS, first, numbers

PRIMARY, REFERENCES = "own", ("random", "vanilla")
COMPARED = ("own", "cross", "worst")
BEST = "ifca best"  # of the starts by training loss, all starts paid for


@dataclass(frozen=True, eq=False)
class Found:
    """``rows``: one a run, with its numbers. ``decisions``: what text k-means decided in each seed."""

    name: str
    rows: pd.DataFrame  # run, arm, number, seed, iid, diverged, and METRICS
    decisions: tuple[dict[str, object], ...]
    judgements: dict[str, list[Judgement]]  # by arm
    failures: tuple[str, ...]  # runs that stopped, and why

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.rows["seed"])))

    @property
    def arms(self) -> list[str]:
        """In the order of the table."""
        order = [*(name for name in ARMS if name != "ifca"), "ifca", BEST]
        return [name for name in order if name in set(self.rows["arm"])]

    def means(self) -> pd.DataFrame:
        """One row an arm: each metric's mean over seeds (repeats of a seed first averaged), its t-interval, diverged runs.

        An arm of which a run diverged has no mean: one over the runs that are left would hide it.
        """
        every = []
        for arm in self.arms:
            mine = self.rows[self.rows["arm"] == arm]
            row: dict[str, object] = {"arm": arm, "title": title(arm), "seeds": mine["seed"].nunique(),
                                      "diverged": int(mine["diverged"].sum())}
            for metric in METRICS:
                values = mine.groupby("seed")[metric].mean().to_numpy(dtype=np.float64)
                found = paired_t(values[~np.isnan(values)] if not row["diverged"] else np.full(1, math.nan))
                row |= {metric: found.estimate, f"{metric}.low": found.low, f"{metric}.high": found.high}
            every.append(row)
        return pd.DataFrame(every)

    def contrasts(self, metric: str, reference: str) -> pd.DataFrame:
        """Each arm less a reference, paired by seed; the repeats of a seed averaged. Holm over the rows of the table."""
        averaged = self.averaged(metric)
        if reference not in set(averaged["arm"]):
            return pd.DataFrame()
        order = {arm: place for place, arm in enumerate(self.arms)}
        told = against(averaged, metric, "arm", reference, ["arm"])
        return told.sort_values("arm", key=lambda names: names.map(order), ignore_index=True)

    def averaged(self, metric: str) -> pd.DataFrame:
        """One row an arm and seed; diverged if one of its runs did."""
        found = self.rows[self.rows["arm"] != "iid"].groupby(["arm", "seed"], as_index=False).agg(
            run=("run", "first"), diverged=("diverged", "any"), value=(metric, "mean"))
        return found.rename(columns={"value": metric}).assign(iid=False, twin="")

    def recovered(self, arm: str = "text") -> Interval:
        """(vanilla - arm) / (vanilla - oracle) on own text, with Fieller's interval: without bounds where the oracle may gain
        nothing."""
        wide = self.averaged(PRIMARY).pivot(index="seed", columns="arm", values=PRIMARY)
        if not {"vanilla", "oracle", arm} <= set(wide.columns):
            return Interval(math.nan, math.nan, math.nan, math.nan)
        wide = wide[["vanilla", "oracle", arm]].replace([np.inf, -np.inf], np.nan).dropna()
        return fieller((wide["vanilla"] - wide[arm]).to_numpy(), (wide["vanilla"] - wide["oracle"]).to_numpy())

    def limits(self) -> str:
        """What so many seeds can show."""
        least, count = smallest_p(len(self.seeds)), len(self.seeds)
        if least > 0.05:
            return (f"{count} paired seed{'s' if count > 1 else ''}: no exact p below {least:.3g} is possible, whatever the "
                    "effect. Read the intervals; nothing here is significant at .05, nor could it be.")
        arms = len(self.arms) - 2
        needed = math.ceil(1 - math.log2(0.05 / max(arms, 1)))
        more = "" if count >= needed else (f" Corrected for all {arms} arms of a table (Holm) nothing can be: that takes "
                                           f"{needed} seeds. The two primary comparisons, text against random and against "
                                           "vanilla, stand by themselves.")
        return f"{count} paired seeds: the smallest exact p is {least:.3g}.{more}"


def found(book: Book) -> Found:
    """Everything that the runs of a contest say; runs that are not finished are left out and named."""
    said = book.read()
    entries = {(entry.seed, str(entry.factors["arm"])): entry for entry in said["runs"]}
    vanilla = {seed: book.run(entry) for (seed, label), entry in entries.items() if label == "vanilla"}
    rows: list[dict[str, Any]] = []
    cases: dict[str, list[Case]] = {}
    decisions, failures = [], []
    for (seed, label), entry in entries.items():
        run, (arm, number) = book.run(entry), arm_of(label)
        if not run.finished or not vanilla[seed].finished:
            failures.append(f"{label}, seed {seed}: {book.failure(entry.run) or book.state(entry.run)}".splitlines()[0])
            continue
        seen = run.trajectory()
        rows.append({"run": run.id, "arm": arm, "number": number, "seed": seed, "iid": False, "diverged": diverged(seen),
                     **numbers(run, vanilla[seed])})
        if arm == "text":
            decisions.append({"seed": seed, **{key: value for key, value in first(run).items() if key != "centroids"}})
        if number == 0 and arm not in ("iid", "pooled"):
            cases.setdefault(arm, []).append(case(run, seed, entries, book))
    frame = pd.DataFrame(rows, columns=["run", "arm", "number", "seed", "iid", "diverged", *METRICS, "train"])
    if frame.loc[frame["arm"] == "ifca", "number"].nunique() > 1:  # of one start the best is the mean
        frame = pd.concat([frame, best(frame)], ignore_index=True)
    base = frame[frame["arm"] == "vanilla"].set_index("seed")["compute"]
    frame["compute"] = frame["compute"] / frame["seed"].map(base)
    return Found(book.name, frame, tuple(decisions), {arm: diagnose(every) for arm, every in cases.items()}, tuple(failures))


def best(frame: pd.DataFrame) -> pd.DataFrame:
    """IFCA as its paper runs it: of all starts of a seed the one of least training loss, and the cost of all of them."""
    chosen = []
    for _, starts in frame[frame["arm"] == "ifca"].groupby("seed"):
        least = int(starts["train"].fillna(np.inf).to_numpy(dtype=np.float64).argmin())
        chosen.append(starts.iloc[least].to_dict() | {
            "arm": BEST, "compute": starts["compute"].sum(), "traffic": starts["traffic"].sum()})
    return pd.DataFrame(chosen)


def case(run: Run, seed: int, entries: dict[tuple[int, str], Entry], book: Book) -> Case:
    """A run beside vanilla's IID twin, everybody alone, and the pooled run of its seed."""
    def beside(label: str) -> Run | None:
        entry = entries.get((seed, label))
        other = book.run(entry) if entry is not None else None
        return other if other and other.finished and other.id != run.id else None

    twin, central, local = (other.trajectory() if (other := beside(label)) else None for label in ("iid", "pooled", "local"))
    return Case(run.trajectory(), twin, central, local, facts=facts(run.experiment), seed=seed)


def title(arm: str) -> str:
    """An arm in words."""
    return "IFCA, best of its starts" if arm == BEST else "IFCA, mean of its starts" if arm == "ifca" else ARMS[arm].title


def grades(judgements: dict[str, list[Judgement]]) -> pd.DataFrame:
    """Failure by arm: what was found. Failures that no arm shows, and that were measured nowhere, are left out."""
    by_arm = {arm: {each.failure: each for each in every} for arm, every in judgements.items()}
    names = list(dict.fromkeys(name for every in by_arm.values() for name in every))
    rows = []
    for name in names:
        row = {arm: every[name].grade if name in every else "not measured" for arm, every in by_arm.items()}
        if set(row.values()) - {"none", "not measured"}:
            rows.append({"failure": name, **row})
    return pd.DataFrame(rows)


def percent(nats: float) -> float:
    """A difference of losses as a change of perplexity, %."""
    return as_perplexity(nats)


def silent(judgements: Sequence[Judgement]) -> tuple[list[str], list[str]]:
    """Failures looked for and not found; failures not measured."""
    return ([each.failure for each in judgements if each.grade == "none"],
            [each.failure for each in judgements if each.grade == "not measured"])


__all__ = ["BEST", "COMPARED", "PRIMARY", "REFERENCES", "Found", "found", "grades", "percent", "silent", "title"]
