"""What it took: tokens, seconds, bytes."""

from __future__ import annotations

import math

import numpy as np

from ..arms import Stage
from ..document import Missing, Section, Table
from ..dossier import Dossier
from ..numbers import NONE, plain, size
from ..parts import full_name


def section(dossier: Dossier) -> Section | Missing:
    if not dossier.endings:
        return Missing("Cost", "no run has ended yet")
    seconds = [sum((end.get("seconds") or {}).values()) for end in dossier.endings.values()]
    tokens = [float(end.get("train_tokens") or math.nan) for end in dossier.endings.values()]
    total = (
        f"{len(dossier.endings)} runs, IID twins and trials among them, trained on {np.nansum(tokens):,.0f} tokens in"
        f" {np.nansum(seconds) / 3600:.2f} hours of running time, evaluation included. Seconds depend on the machine and on what"
        " else it did; tokens and bytes do not."
    )
    note = () if dossier.has("cost.up") else ("Bytes are not recorded: add `cost` to `evaluate.panel`.",)
    return Section("cost", "Cost", (total, *note), tuple(table(dossier, stage) for stage in dossier.stages))


def table(dossier: Dossier, stage: Stage) -> Table:
    traffic = {way: dossier.per_run(f"cost.{way}") for way in ("down", "up")}
    rows = []
    for arm in stage.arms:
        ended = [(run, dossier.endings[run]) for run in arm.runs.values() if run in dossier.endings]
        if not ended:
            rows.append((full_name(stage, arm), *[NONE] * 6, f"0/{len(arm.runs)}"))
            continue
        plan = dossier.experiments[ended[0][0]]
        cohort = max(1, round(plan["plan"]["participation"] * plan["partition"]["clients"]))
        tokens = float(np.mean([end.get("train_tokens") or math.nan for _, end in ended]))
        train = float(np.mean([(end.get("seconds") or {}).get("train", math.nan) for _, end in ended]))
        whole = float(np.mean([sum((end.get("seconds") or {}).values()) for _, end in ended]))
        down, up = (float(np.mean([traffic[way].get(run, math.nan) for run, _ in ended])) for way in ("down", "up"))
        rows.append(
            (
                full_name(stage, arm),
                f"{tokens:,.0f}",
                plain(train, 1),
                plain(whole, 1),
                size(down),
                size(up),
                size((down + up) * cohort * float(np.mean([end["rounds"] for _, end in ended]))),
                f"{len(ended)}/{len(arm.runs)}",
            )
        )
    return Table(
        f"cost-{stage.name}",
        "Cost of a run, means over seeds. Bytes down and up are of one client in one round; in all: of the whole cohort over all"
        " rounds.",
        ("arm", "tokens trained", "s training", "s in all", "down", "up", "in all", "runs"),
        tuple(rows),
        frozenset(range(1, 8)),
        tuple(arm.place for arm in stage.arms),
        long=len(rows) > 30,
    )
