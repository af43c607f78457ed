"""What was dealt: who holds how much of which domain, and how different clients are by that."""

from __future__ import annotations

import json
from functools import partial

import numpy as np

from ....partition.divergence import normalised_jsd
from ... import figures
from ..arms import Stage
from ..document import Figure, Missing, Panel, Section, Table
from ..dossier import Dossier
from ..numbers import mean, plain
from ..parts import full_name

SHOWN = 9  # deals that are drawn
DOMAINS = 12


def section(dossier: Dossier) -> Section | Missing:
    deals = dealt(dossier)
    if not deals:
        return Missing("What was dealt", "no run has begun, or the corpus has no domains")
    panels = tuple(
        Panel(f"{name}, seed {seed}", partial(drawn, table)) for name, seed, table in deals[:SHOWN]
    )
    more = f" The first {SHOWN} of {len(deals)} different deals are drawn." if len(deals) > SHOWN else ""
    return Section(
        "deals",
        "What was dealt",
        (
            (
                "Both arms of a pair hold the same documents: an IID twin is the same pool dealt by chance. Domain divergence is"
                " the Jensen-Shannon divergence of the clients' domains over its most (0: all alike, 1: nothing shared), by"
                " training tokens. It sees topics only: for words and styles `fedrift partition report` measures more."
            ),
        ),
        (
            Figure(
                "deals",
                "Training tokens of each client (rows) in each domain, of one seed." + more,
                panels,
                columns=min(3, len(panels)),
            ),
            *(heterogeneity(dossier, stage) for stage in dossier.stages),
        ),
    )


def dealt(dossier: Dossier) -> list[tuple[str, int, dict[str, list[object]]]]:
    """Every different deal of the first seed that is there: what it is called, its seed, its table."""
    found: dict[str, tuple[str, int, dict[str, list[object]]]] = {}
    for arm in dossier.arms:
        for kind, runs in (("", arm.runs), ("IID", arm.twins)):
            seed = next((seed for seed, run in sorted(runs.items()) if run in dossier.experiments), None)
            if seed is None:
                continue
            asked = dossier.experiments[runs[seed]]
            table = asked.get("partition_table") or {}
            if not table.get("tokens") or not table.get("domains"):
                continue
            said = asked["partition"]
            name = (
                f"{said['is']} {said['severity']:g}"
                if not kind and "severity" in said
                else f"{said['is']}, {kind}" if kind else said["is"]
            )
            found.setdefault(json.dumps([table["tokens"]]), (name, seed, table))
    return list(found.values())


def drawn(table: dict[str, list[object]], width: figures.Width) -> figures.Chart:
    tokens = np.asarray(table["tokens"], dtype=np.float64)
    domains = np.sort(np.argsort(-tokens.sum(axis=0), kind="stable")[:DOMAINS])
    names = [str(table["domains"][place]) for place in domains]
    return figures.heat_map(names, tokens[:, domains].tolist(), width=width)


def heterogeneity(dossier: Dossier, stage: Stage) -> Table:
    rows, arms = [], []
    for arm in stage.arms:
        mine: list[float] = []
        theirs: list[float] = []
        held: list[float] = []
        clients = 0
        for runs, into in ((arm.runs, mine), (arm.twins, theirs)):
            for run in runs.values():
                table = dossier.experiments.get(run, {}).get("partition_table") or {}
                if table.get("tokens"):
                    tokens = np.asarray(table["tokens"], dtype=np.float64)
                    into.append(normalised_jsd(tokens))
                    clients, held = len(tokens), [*held, *tokens.sum(axis=1)]
        if mine:
            rows.append(
                (
                    full_name(stage, arm),
                    str(clients),
                    f"{min(held):,.0f} to {max(held):,.0f}",
                    plain(mean(mine)[0]),
                    plain(mean(theirs)[0]),
                    str(len(mine)),
                )
            )
            arms.append(arm.place)
    return Table(
        f"deals-{stage.name}",
        "How different the clients are, mean over seeds, and by chance alone (the IID twins).",
        ("arm", "clients", "tokens of a client", "domain divergence", "of its IID twin", "seeds"),
        tuple(rows),
        frozenset({1, 2, 3, 4, 5}),
        tuple(arms),
        long=len(rows) > 12,
    )
