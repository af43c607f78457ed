"""The question and what its hypotheses came to."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..diagnosis import Diagnosis, diagnose
from ..diagnosis.cases import RunIndex
from ..diagnosis.finding import GRADES
from ..stats import ALPHA, PValue, Verdict, compare_to_reference
from . import charts
from .data import Row
from .document import Claim, Figure, LegendKey, MissingSection, Panel, Section, Table
from .format import DASH, format_interval, format_number, format_p_value, format_signed, pluralize, seed_mean_ci
from .study_data import Condition, FactorAxis, StageView, StudyData, condition_label, format_level, short_name
from .study_figures import MAX_PANELS, condition_name, panel_limit_note, parameter_figure, stage_caption, strip_figure

VERDICT_COLORS = {"supported": "#009E73", "refuted": "#D55E00", "inconclusive": "#0072B2", "void": "#999999"}
EFFECT_UNITS = {"difference": "difference", "ratio": "ratio", "slope": "slope", "share": "share recovered", "rate": "difference of rates"}


def build_claims(study_data: StudyData) -> tuple[Claim, ...]:
    return tuple(Claim(one.name, one.claim or one.metric, one.verdict, one.sentence, one.notes) for one in study_data.verdicts)


def verdicts_section(study_data: StudyData) -> Section | MissingSection:
    if not study_data.verdicts:
        return MissingSection("Verdicts", "the study states no hypotheses; write them under `hypotheses:` before it is run")
    panels = tuple(
        Panel(
            f"{one.name}: {one.verdict}",
            charts.forest_chart(
                [(seed, value) for seed, value in one.points if math.isfinite(value)],
                one.low,
                one.high,
                one.effect,
                color=VERDICT_COLORS[one.verdict],
                unit=f"{one.metric}, {EFFECT_UNITS.get(one.unit, one.unit)}",
                null_value=1.0 if one.unit == "ratio" else 0.0,
            ),
        )
        for one in study_data.verdicts
        if math.isfinite(one.effect)
    )
    blocks: list[Figure | Table] = []
    if panels:
        blocks.append(
            Figure(
                "verdicts",
                "Every hypothesis: rings are seeds, the diamond is the estimate with its interval, the grey "
                "rule is no effect. Hypotheses have scales of their own.",
                panels,
                columns=2,
            )
        )
    blocks.append(verdicts_table(study_data.verdicts))
    return Section("verdicts", "Verdicts", (), tuple(blocks))


def verdicts_table(verdicts: tuple[Verdict, ...]) -> Table:
    rows = tuple(
        (
            one.name,
            one.claim or one.metric,
            one.verdict,
            format_signed(one.effect),
            format_interval(one.low, one.high, is_signed=True),
            format_p_value(one.p, one.min_attainable_p),
            format_p_value(one.holm, one.min_attainable_p),
            format_detectable(one.detectable),
            str(one.seeds),
            str(one.diverged),
        )
        for one in verdicts
    )
    return Table(
        "verdicts",
        "The hypotheses. p: exact test over paired seeds, Holm inside the family; smallest: the effect that would "
        "have been called with 80 % probability. An inconclusive verdict says no more than that.",
        ("hypothesis", "claim", "verdict", "effect", "interval", "p", "Holm p", "smallest", "seeds", "diverged"),
        rows,
        frozenset(range(3, 10)),
    )


def format_detectable(value: float) -> str:
    """The minimum detectable effect; infinite where so few seeds can call nothing."""
    return "none" if math.isinf(value) else DASH if math.isnan(value) else format_number(value)


# The numbers of every arm, and each arm against the first level of what is compared.

OUTCOME_TITLES = {
    "loss": "final loss",
    "final.loss": "loss of the final large evaluation",
    "gap": "gap to IID baseline",
    "gap.worst": "worst-domain gap",
}


def results_section(study_data: StudyData) -> Section | MissingSection:
    if not study_data.finished or not study_data.conditions:
        return MissingSection("Results", "no run has ended yet")
    blocks: list[Figure | Table] = []
    gap = study_data.outcome_by_run("gap")
    every: list[PValue] = []
    for stage in study_data.stages:
        made = (
            strip_figure(
                study_data,
                stage,
                "results",
                gap,
                "What the skew costs at the end, by condition: loss above the IID baseline, dots are seeds, the diamond is the "
                "mean with its 95 % t-interval.",
                x="nats above the IID baseline",
                zero=True,
            )
            if gap
            else None
        )
        blocks += [*([made] if made else []), results_table(study_data, stage)]
        compared, ps = comparison_table(study_data, stage)
        blocks += [compared] if compared else []
        every += ps
    text = ["End: mean of the last five evaluations, never the best one. Final: the larger evaluation after the last round."]
    called = sum(p.is_significant(ALPHA) for p in every)
    if every:
        text.append(
            f"Of {pluralize(len(every), 'comparison')} below {called} {'has' if called == 1 else 'have'} a Holm p of at most"
            f" {ALPHA:g}; the others are no finding, and the column “smallest” says what would have been one."
        )
    return Section("results", "Results", tuple(text), tuple(blocks))


def results_table(study_data: StudyData, stage: StageView) -> Table:
    outcomes = [name for name in study_data.study_config["metrics"] if name in study_data.frame]
    broke = dict(zip(study_data.frame["run"], study_data.frame["diverged"], strict=True))
    rows = []
    for arm in stage.conditions:
        cells = []
        ended = sum(run in study_data.finished for run in arm.runs.values())
        for name in outcomes:
            of = study_data.outcome_by_run(name)
            middle, low, high, count = seed_mean_ci(of.get(run, math.nan) for run in arm.runs.values())
            form = format_signed if name.startswith("gap") else format_number
            half = (high - low) / 2
            fewer = f" (n = {count})" if math.isfinite(middle) and count != ended else ""
            cells.append((f"{form(middle)} ± {format_number(half)}" if math.isfinite(half) else form(middle)) + fewer)
        rows.append(
            (condition_name(stage, arm), *cells, f"{ended}/{len(arm.runs)}", str(sum(bool(broke.get(run)) for run in arm.runs.values())))
        )
    return Table(
        f"results-{stage.name}",
        "Every condition: mean over seeds ± half of its 95 % t-interval; no mean where a run diverged, or where one has no "
        "finite number; n: seeds that have the number, where they are fewer.",
        ("condition", *(OUTCOME_TITLES.get(name, name) for name in outcomes), "seeds", "diverged"),
        tuple(rows),
        frozenset(range(1, len(outcomes) + 3)),
        tuple(arm.index for arm in stage.conditions),
        is_long=len(rows) > 30,
    )


def comparison_table(study_data: StudyData, stage: StageView) -> tuple[Table | None, list[PValue]]:
    """Every level against the first, and above it what the skew alone does: the difference in differences against the baselines.

    Beside the table the Holm p of each of its rows.
    """
    axis = stage.color_axis
    frame = study_data.stage_frame(stage)
    if axis is None or "loss" not in frame or frame["loss"].isna().all():
        return None, []
    factors = [name for name in study_data.manifest_values["factors"] if name in frame]
    by = [each.name for each in stage.panel_axes]
    reference = next(iter(stage.conditions)).values[axis.name]
    places = {(stage.color_level(arm), tuple(arm.levels[name] for name in by)): arm.index for arm in stage.conditions}
    rows, arms, ps = [], [], []
    paired = bool(any(arm.baselines for arm in stage.conditions))
    for contrast, title in (("none", "final loss"), *((("iid_baseline", "gap to IID baseline"),) if paired else ())):
        found = compare_to_reference(frame, "loss", axis.name, reference, factors, by, contrast=contrast)  # type: ignore[arg-type]
        for row in found.to_dict("records"):
            where = ", ".join(
                format_level(row[name]) if isinstance(row[name], str) else f"{short_name(str(name))} {format_level(row[name])}"
                for name in by
            )
            level = format_level(row[axis.name])
            ps.append(PValue(row["holm"], row["attainable"], row["seeds"], "Holm"))
            rows.append(
                (
                    title,
                    f"{level} less {format_level(reference)}",
                    where or "all",
                    format_signed(row["effect"]),
                    format_interval(row["low"], row["high"], is_signed=True),
                    format_number(row["g"], 2),
                    format_p_value(row["holm"], row["attainable"]),
                    format_detectable(row["detectable"]),
                    str(row["seeds"]),
                    str(row["diverged"]),
                )
            )
            arms.append(places.get((level, tuple(format_level(row[name]) for name in by)), -1))
    return (
        Table(
            f"against-{stage.name}",
            f"Every {axis.label} less {format_level(reference)}, paired by seed; “gap to IID baseline” is the difference in"
            " differences against the IID baselines. g: paired Hedges g; p: exact, Holm over all rows of one outcome. Diverged: "
            "runs that did; where both sides diverged the seed is left out, else it counts as the worst.",
            ("outcome", "comparison", "where", "effect", "95 % interval", "g", "Holm p", "smallest", "seeds", "diverged"),
            tuple(rows),
            frozenset(range(3, 10)),
            tuple(arms),
            is_long=len(rows) > 30,
        )
        if rows
        else None,
        ps,
    )


# Dose and response: what the skew costs against how strong it is.

GAP_TITLES = {"gap": "gap to IID baseline, nats", "gap.worst": "gap of the worst domain, nats"}


def dose_response_section(study_data: StudyData) -> Section | MissingSection:
    outcomes = {title: study_data.outcome_by_run(name) for name, title in GAP_TITLES.items() if study_data.outcome_by_run(name)}
    figures: list[Figure] = []
    for stage in study_data.stages:
        axis = stage.find_axis("partition.severity", "partition.alpha", "partition.bits")
        made = (
            parameter_figure(
                study_data,
                stage,
                axis,
                "dose",
                outcomes,
                "Loss above the IID baseline at the end of training against the strength of "
                "the skew: dots are seeds, the line is their mean with its 95 % t-interval.",
            )
            if axis and outcomes
            else None
        )
        if made:
            figures.append(made)
    if not figures:
        return MissingSection("Dose-response", "vary `partition.severity`, and keep `gap` among the `metrics` with `iid_baselines: true`")
    return Section("dose", "Dose and response", (), tuple(figures))


# Where training holds and where it breaks: learning rate against another dial.

LEARNING_RATES = ("training.client_optimizer.lr", "algorithm.server_optimizer.lr")


def stability_section(study_data: StudyData) -> Section | MissingSection:
    figures = []
    for stage in study_data.stages:
        rate = stage.find_axis(*LEARNING_RATES)
        other = next((axis for axis in stage.numeric_axes if rate and axis != rate), None) or (
            stage.color_axis if rate != stage.color_axis else None
        )
        if rate and other:
            figures += stability_figures(study_data, stage, rate, other)
    if not figures:
        return MissingSection(
            "Stability maps",
            "vary `training.client_optimizer.lr` together with `partition.severity`, `training.local_steps` or the algorithm",
        )
    return Section(
        "stability",
        "Stability",
        (
            (
                "A run counts as diverged where its loss is not finite, or stays above both 1.5 times its start and ln 4 "
                "over its lowest for three evaluations. A cross: a seed diverged, and there is no mean."
            ),
        ),
        tuple(figures),
    )


def stability_figures(study_data: StudyData, stage: StageView, rate: FactorAxis, other: FactorAxis) -> list[Figure]:
    loss = study_data.outcome_by_run("loss")
    broke = dict(zip(study_data.frame["run"], study_data.frame["diverged"], strict=True))
    axes = [axis for axis in stage.axes if axis not in (rate, other)]
    cells: dict[str, list] = {}  # type: ignore[type-arg]
    for arm in stage.conditions:
        cells.setdefault(
            ", ".join(arm.levels[axis.name] if not axis.is_numeric else f"{axis.label} {arm.levels[axis.name]}" for axis in axes), []
        ).append(arm)
    ends = [
        value
        for value in (seed_mean_ci(loss.get(run, math.nan) for run in arm.runs.values())[0] for arm in stage.conditions)
        if math.isfinite(value)
    ]
    found = []
    for title, what in (("share of seeds that diverged", "diverged"), ("final loss, mean over seeds", "loss")):
        panels = []
        for name, arms in list(cells.items())[:MAX_PANELS]:
            rows = []
            for arm in arms:
                ended = [run for run in arm.runs.values() if run in study_data.finished]
                value = (
                    (sum(bool(broke.get(run)) for run in ended) / len(ended) if ended else math.nan)
                    if what == "diverged"
                    else seed_mean_ci(loss.get(run, math.nan) for run in arm.runs.values())[0]
                )
                rows.append(
                    {
                        "condition": arm.index,
                        "x": arm.levels[rate.name],
                        "y": arm.levels[other.name],
                        "value": charts.to_plot_value(value),
                        "note": "none",
                    }
                )
            panels.append(
                Panel(
                    name,
                    charts.heatmap(
                        rows,
                        x=rate.levels,
                        y=other.levels[::-1],
                        x_title=rate.label,
                        y_title=other.label,
                        value=title,
                        step=34,
                        value_range=(0.0, 1.0) if what == "diverged" else (min(ends), max(ends)) if ends else None,
                        number_format=".0%" if what == "diverged" else ".3f",
                    ),
                )
            )
        found.append(
            Figure(
                f"stability-{what}-{stage.name}",
                stage_caption(study_data, stage, f"{title[0].upper()}{title[1:]}, by {rate.label} and {other.label}."),
                tuple(panels),
                columns=min(3, len(panels)),
                note=panel_limit_note(len(cells)),
            )
        )
    return found


# The failure atlas: every detector against every arm, graded over seeds beside the IID baselines.

GRADE_KEYS = tuple(LegendKey(grade, colour, "dot") for grade, (colour, _) in charts.GRADE_MARKS.items())


def failure_atlas_section(study_data: StudyData) -> Section | MissingSection:
    found = diagnose_conditions(study_data)
    if not found:
        return MissingSection("Failure overview", "no run has ended yet")
    blocks: list[Figure | Table] = []
    for stage in study_data.stages:
        panels = []
        by_colour: dict[str, list[Condition]] = {}
        for arm in stage.conditions:
            if arm.index in found:
                by_colour.setdefault(stage.color_level(arm), []).append(arm)
        failures = measured_failures([each for arm in stage.conditions for each in found.get(arm.index, ())])
        across = stage.panel_axes or ((stage.color_axis,) if stage.color_axis else ())
        if not stage.panel_axes:  # one axis: its levels side by side in one panel
            by_colour = {"": [arm for arms in by_colour.values() for arm in arms]}
        for level, arms in by_colour.items():
            rows: list[Row] = [
                {
                    "condition": arm.index,
                    "x": condition_label(arm, across) or "all",
                    "y": each.failure,
                    "grade": each.grade,
                    "said": each.sentence[:240],
                }
                for arm in arms
                for each in found[arm.index]
                if each.failure in failures
            ]
            if rows:
                panels.append(
                    Panel(
                        level if len(by_colour) > 1 else "",
                        charts.failure_atlas(rows, x=list(dict.fromkeys(row["x"] for row in rows)), y=failures),
                    )
                )
        if panels:
            blocks.append(
                Figure(
                    f"atlas-{stage.name}",
                    stage_caption(
                        study_data,
                        stage,
                        "What the detectors say of each condition over its seeds. Confirmed: in most of three "
                        "seeds or more, and not in their IID baselines. Suspected: worth a look. None is no certificate.",
                    ),
                    tuple(panels),
                    GRADE_KEYS,
                    columns=min(2, len(panels)),
                )
            )
    every = [(stage, arm, each) for stage in study_data.stages for arm in stage.conditions for each in found.get(arm.index, ())]
    called = [(stage, arm, each) for stage, arm, each in every if each.grade in ("confirmed", "suspected")]
    called.sort(key=lambda item: (item[2].grade != "confirmed", item[1].index))
    if called:
        blocks.append(
            Table(
                "findings",
                "Everything that is confirmed or suspected. Excess: the detector's number above the IID baseline's, with its "
                "paired interval.",
                ("condition", "failure", "grade", "since", "excess", "interval", "what"),
                tuple(
                    (
                        condition_name(stage, arm),
                        each.failure,
                        each.grade,
                        DASH if each.first_round is None else str(each.first_round),
                        format_signed(each.excess),
                        format_interval(each.low, each.high, is_signed=True),
                        each.sentence,
                    )
                    for stage, arm, each in called
                ),
                frozenset({3, 4, 5}),
                tuple(arm.index for _, arm, _ in called),
                is_long=len(called) > 10,
            )
        )
    confirmed, suspected = ([item for item in called if item[2].grade == grade] for grade in ("confirmed", "suspected"))
    silent = {each.failure for _, _, each in every if each.grade == "not measured"} - {
        each.failure for _, _, each in every if each.grade != "not measured"
    }
    failures_judged = len({each.failure for _, _, each in every})
    text = [
        f"Of {len(every)} judgements ({len(found)} conditions, {failures_judged} failures) {len(confirmed)}"
        f" are confirmed and {len(suspected)} suspected."
    ]
    if not called:
        text.append(
            "No failure was found in any condition. Each judgement names the smallest effect that it would have called; smaller"
            " ones may be there."
        )
    if silent:
        text.append(f"Not measured in any condition: {', '.join(sorted(silent))}.")
    return Section("atlas", "Failure overview", tuple(text), tuple(blocks))


def diagnose_conditions(study_data: StudyData) -> dict[int, list[Diagnosis]]:
    """What the detectors say of each arm with a run that has ended, by the arm's place."""
    wanted = {run for arm in study_data.conditions for run in (*arm.runs.values(), *arm.baselines.values())}
    shelf = RunIndex.from_runs(study_data.manifest.get_run(run) for run in sorted(wanted) if run in study_data.finished)
    found = {}
    for count, arm in enumerate(study_data.conditions):
        cases = []
        for seed, run in sorted(arm.runs.items()):
            if run in study_data.finished:
                twin = arm.baselines.get(seed, "")
                cases.append(
                    shelf.build_evidence(
                        study_data.manifest.get_run(run), study_data.manifest.get_run(twin) if twin in study_data.finished else None
                    )
                )
        if cases:
            found[arm.index] = diagnose(cases)
        study_data.on_progress(f"diagnosing condition {count + 1} of {len(study_data.conditions)}")
    return found


def measured_failures(diagnoses: Iterable[Diagnosis]) -> list[str]:
    """The failures that were measured in some arm, the gravest first."""
    worst: dict[str, int] = {}
    for each in diagnoses:
        worst[each.failure] = max(worst.get(each.failure, 0), GRADES.index(each.grade))
    return sorted((failure for failure, grade in worst.items() if grade > 0), key=lambda failure: -worst[failure])


# Sharing one model against sharing by group, where the clustering is varied.

CLUSTERING_METRICS = (  # title, metric, of clients, last
    ("own text", "loss.worn", True, True),
    ("ARI", "cluster.ari", False, True),
    ("NMI", "cluster.nmi", False, True),
    ("worst client", "fair.worst10", False, True),
)


def clustering_section(study_data: StudyData) -> Section | MissingSection:
    chosen = [stage for stage in study_data.stages if stage.find_axis("clustering")]
    if not chosen:
        return MissingSection(
            "Clustering", "vary `clustering`, e.g. [NoClustering, TextClustering, {type: RandomClustering, like: {type: TextClustering}}]"
        )
    blocks: list[Figure | Table] = []
    loss = study_data.outcome_by_run("loss") or {run: end["loss"] for run, end in study_data.finished.items()}
    for stage in chosen:
        made = strip_figure(
            study_data,
            stage,
            "clustering",
            loss,
            "Final loss by who shares a model with whom: dots are seeds, the diamond is the mean with its interval.",
            x="final loss, nats per token",
        )
        blocks += [*([made] if made else []), clustering_table(study_data, stage, loss)]
    return Section(
        "clustering",
        "Clustering",
        (
            (
                "ARI and NMI hold the groups against the clients' true main domains (0: chance, 1: the same). Groups that "
                "win over one model must also win over random groups of the same sizes."
            ),
        ),
        tuple(blocks),
    )


def clustering_table(study_data: StudyData, stage: StageView, loss: dict[str, float]) -> Table:
    more = [
        (title, study_data.metric_by_run(metric, clients, last))
        for title, metric, clients, last in CLUSTERING_METRICS
        if any(domain == "" for domain in study_data.metrics.get(metric, ()))
    ]
    rows = []
    for arm in stage.conditions:
        numbers = [seed_mean_ci(of.get(run, math.nan) for run in arm.runs.values()) for of in (loss, *(of for _, of in more))]
        rows.append((condition_name(stage, arm), *(format_number(number[0]) for number in numbers), str(numbers[0][3])))
    return Table(
        f"clustering-{stage.name}",
        "Groups compared, means over seeds; own text: loss of each client on its own mixture under the model that it uses.",
        ("condition", "final loss", *(title for title, _ in more), "seeds"),
        tuple(rows),
        frozenset(range(1, len(more) + 3)),
        tuple(arm.index for arm in stage.conditions),
        is_long=len(rows) > 12,
    )
