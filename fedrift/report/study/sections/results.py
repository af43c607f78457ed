"""The numbers of every arm, and each arm against the first level of what is compared."""

from __future__ import annotations

import math

from ....statistics import ALPHA, P, against
from ..arms import Stage, short, text
from ..document import Figure, Missing, Section, Table
from ..dossier import Dossier
from ..numbers import between, many, mean, p_value, plain, signed
from ..parts import full_name, strip_figure
from .verdicts import smallest

TITLES = {"loss": "end loss", "final.loss": "final loss", "gap": "gap to twin", "gap.worst": "worst domain's gap"}


def section(dossier: Dossier) -> Section | Missing:
    if not dossier.endings or not dossier.arms:
        return Missing("Results", "no run has ended yet")
    blocks: list[Figure | Table] = []
    gap = dossier.outcome("gap")
    every: list[P] = []
    for stage in dossier.stages:
        made = (
            strip_figure(
                dossier,
                stage,
                "results",
                gap,
                "What the skew costs at the end, by arm: loss above the IID twin, dots are seeds, the diamond is the "
                "mean with its 95 % t-interval.",
                x="nats above the twin",
                zero=True,
            )
            if gap
            else None
        )
        blocks += [*([made] if made else []), table(dossier, stage)]
        compared, ps = comparison(dossier, stage)
        blocks += [compared] if compared else []
        every += ps
    text = ["End: mean of the last five evaluations, never the best one. Final: the larger evaluation after the last round."]
    called = sum(p.below(ALPHA) for p in every)
    if every:
        text.append(
            f"Of {many(len(every), 'comparison')} below {called} {'has' if called == 1 else 'have'} a Holm p of at most"
            f" {ALPHA:g}; the others are no finding, and the column “smallest” says what would have been one."
        )
    return Section("results", "Results", tuple(text), tuple(blocks))


def table(dossier: Dossier, stage: Stage) -> Table:
    outcomes = [name for name in dossier.study["outcomes"] if name in dossier.frame]
    broke = dict(zip(dossier.frame["run"], dossier.frame["diverged"], strict=True))
    rows = []
    for arm in stage.arms:
        cells = []
        ended = sum(run in dossier.endings for run in arm.runs.values())
        for name in outcomes:
            of = dossier.outcome(name)
            middle, low, high, count = mean(of.get(run, math.nan) for run in arm.runs.values())
            form = signed if name.startswith("gap") else plain
            half = (high - low) / 2
            fewer = f" (n = {count})" if math.isfinite(middle) and count != ended else ""
            cells.append((f"{form(middle)} ± {plain(half)}" if math.isfinite(half) else form(middle)) + fewer)
        rows.append(
            (
                full_name(stage, arm),
                *cells,
                f"{ended}/{len(arm.runs)}",
                str(sum(bool(broke.get(run)) for run in arm.runs.values())),
            )
        )
    return Table(
        f"results-{stage.name}",
        "Every arm: mean over seeds ± half of its 95 % t-interval; no mean where a run diverged, or where one has no finite "
        "number; n: seeds that have the number, where they are fewer.",
        ("arm", *(TITLES.get(name, name) for name in outcomes), "seeds", "diverged"),
        tuple(rows),
        frozenset(range(1, len(outcomes) + 3)),
        tuple(arm.place for arm in stage.arms),
        long=len(rows) > 30,
    )


def comparison(dossier: Dossier, stage: Stage) -> tuple[Table | None, list[P]]:
    """Every level against the first, and above it what the skew alone does: the difference in differences against the twins.

    Beside the table the Holm p of each of its rows.
    """
    axis = stage.colour
    frame = dossier.of_stage(stage)
    if axis is None or "loss" not in frame or frame["loss"].isna().all():
        return None, []
    factors = [name for name in dossier.said["factors"] if name in frame]
    by = [each.name for each in stage.rest]
    reference = next(iter(stage.arms)).values[axis.name]
    places = {(stage.shade(arm), tuple(arm.levels[name] for name in by)): arm.place for arm in stage.arms}
    rows, arms, ps = [], [], []
    paired = bool(any(arm.twins for arm in stage.arms))
    for contrast, title in (("none", "end loss"), *((("twin", "gap to twin"),) if paired else ())):
        found = against(frame, "loss", axis.name, reference, factors, by, contrast=contrast)  # type: ignore[arg-type]
        for row in found.to_dict("records"):
            where = ", ".join(
                text(row[name]) if isinstance(row[name], str) else f"{short(str(name))} {text(row[name])}" for name in by
            )
            level = text(row[axis.name])
            ps.append(P(row["holm"], row["attainable"], row["seeds"], "Holm"))
            rows.append(
                (
                    title,
                    f"{level} less {text(reference)}",
                    where or "all",
                    signed(row["effect"]),
                    between(row["low"], row["high"], sign=True),
                    plain(row["g"], 2),
                    p_value(row["holm"], row["attainable"]),
                    smallest(row["detectable"]),
                    str(row["seeds"]),
                    str(row["diverged"]),
                )
            )
            arms.append(places.get((level, tuple(text(row[name]) for name in by)), -1))
    return (
        Table(
            f"against-{stage.name}",
            f"Every {axis.label} less {text(reference)}, paired by seed; “gap to twin” is the difference in differences against"
            " the IID twins. g: paired Hedges g; p: exact, Holm over all rows of one outcome. Diverged: runs that "
            "did; where both sides diverged the seed is left out, else it counts as the worst.",
            ("outcome", "comparison", "where", "effect", "95 % interval", "g", "Holm p", "smallest", "seeds", "diverged"),
            tuple(rows),
            frozenset(range(3, 10)),
            tuple(arms),
            long=len(rows) > 30,
        )
        if rows
        else None,
        ps,
    )
