"""Sections of a study's report on its outcomes: verdicts, results, dose-response curves, stability, diagnoses and clustering."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..diagnosis import Diagnosis, diagnose
from ..diagnosis.cases import RunIndex
from ..diagnosis.finding import GRADES
from ..stats import ALPHA, HypothesisVerdict, PValue, compare_to_reference
from . import charts
from .data import Row, round_value
from .document import Claim, Figure, LegendKey, MissingSection, Panel, Section, Table
from .format import DASH, format_interval, format_number, format_p_value, format_signed, pluralize, seed_mean_ci
from .study_data import Condition, FactorAxis, StageView, StudyData, condition_label, format_level, short_name
from .study_figures import MAX_PANELS, condition_name, panel_limit_note, parameter_figure, stage_caption, strip_figure

VERDICT_COLORS = {"supported": "#009E73", "refuted": "#D55E00", "inconclusive": "#0072B2", "void": "#999999"}
EFFECT_UNITS = {"difference": "difference", "ratio": "ratio", "slope": "slope", "share": "share recovered", "rate": "difference of rates"}


def build_claims(study_data: StudyData) -> tuple[Claim, ...]:
    """Return the hypotheses with their verdicts for the top of the report."""
    return tuple(
        Claim(verdict.name, verdict.claim or verdict.metric, verdict.verdict, verdict.sentence, verdict.notes)
        for verdict in study_data.verdicts
    )


def verdicts_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the effect of every hypothesis and list all verdicts."""
    if not study_data.verdicts:
        return MissingSection("Verdicts", "the study states no hypotheses; list them under `hypotheses:` before the study is run")
    panels = tuple(
        Panel(
            f"{verdict.name}: {verdict.verdict}",
            charts.forest_chart(
                [(seed, value) for seed, value in verdict.points if math.isfinite(value)],
                verdict.low,
                verdict.high,
                verdict.effect,
                color=VERDICT_COLORS[verdict.verdict],
                unit=f"{verdict.metric}, {EFFECT_UNITS.get(verdict.unit, verdict.unit)}",
                null_value=1.0 if verdict.unit == "ratio" else 0.0,
            ),
        )
        for verdict in study_data.verdicts
        if math.isfinite(verdict.effect)
    )
    blocks: list[Figure | Table] = []
    if panels:
        blocks.append(
            Figure(
                "verdicts",
                "Effect of every hypothesis. Rings are seeds, the diamond is the estimate with its interval, and the gray "
                "rule marks no effect. Each panel has its own scale.",
                panels,
                columns=2,
            )
        )
    blocks.append(verdicts_table(study_data.verdicts))
    return Section("verdicts", "Verdicts", (), tuple(blocks))


def verdicts_table(verdicts: tuple[HypothesisVerdict, ...]) -> Table:
    """Return the table of all hypotheses."""
    rows = tuple(
        (
            verdict.name,
            verdict.claim or verdict.metric,
            verdict.verdict,
            f"{verdict.metric}, weighted sum" if verdict.kind == "LinearContrast" else verdict.metric,
            format_signed(verdict.effect),
            format_interval(verdict.low, verdict.high, is_signed=True) + format_other_level(verdict.confidence_level),
            format_p_value(verdict.p, verdict.min_attainable_p),
            format_p_value(verdict.p_holm, verdict.min_attainable_p),
            format_detectable(verdict.detectable),
            str(verdict.seeds),
            str(verdict.diverged),
        )
        for verdict in verdicts
    )
    return Table(
        "verdicts",
        "The hypotheses. The interval has a confidence level of 95 % unless another one is given. The p-value is from an exact sign-flip "
        "test over paired seeds; for an equivalence it is from two one-sided t-tests, for a trend from Page's L. Holm's correction is "
        "within the family, after each p-value is raised to the smallest that the seeds allow. The minimum detectable effect is the "
        "smallest effect that would be significant with 80 % probability. An inconclusive verdict is no evidence for the absence of an "
        "effect.",
        ("hypothesis", "claim", "verdict", "metric", "effect", "interval", "p", "Holm p", "detectable", "seeds", "diverged"),
        rows,
        frozenset(range(4, 11)),
    )


def format_other_level(level: float) -> str:
    """Return the confidence level of an interval in parentheses if it is not 95 %, as for equivalence tests; else an empty text."""
    return "" if math.isnan(level) or round(100 * level, 6) == 95 else f" ({100 * level:.4g} %)"


def format_detectable(value: float) -> str:
    """Format the minimum detectable effect. ``none`` means that with so few seeds no effect can be significant."""
    return "none" if math.isinf(value) else DASH if math.isnan(value) else format_number(value)


OUTCOME_TITLES = {
    "loss": "final loss",
    "final.loss": "loss of the final evaluation",
    "gap": "gap to IID baseline",
    "gap.worst": "worst-domain gap",
}


def results_section(study_data: StudyData) -> Section | MissingSection:
    """Draw and list the outcomes of every condition, and compare each level with the first one."""
    if not study_data.finished or not study_data.conditions:
        return MissingSection("Results", "no run has ended yet")
    blocks: list[Figure | Table] = []
    gap = study_data.outcome_by_run("gap")
    p_values: list[PValue] = []
    for stage in study_data.stages:
        figure = (
            strip_figure(
                study_data,
                stage,
                "results",
                gap,
                "Cost of heterogeneity at the end of training: loss minus that of the IID baseline. Dots are seeds, the diamond is the "
                "mean with its 95 % t-interval.",
                x="gap to IID baseline, nats per token",
                zero=True,
            )
            if gap
            else None
        )
        blocks += [*([figure] if figure else []), results_table(study_data, stage)]
        comparison, stage_p_values = comparison_table(study_data, stage)
        blocks += [comparison] if comparison else []
        p_values += stage_p_values
    text = [
        "The final loss is the mean of the last five evaluations, not the best one. The final evaluation, after the last"
        " round, uses more text."
    ]
    num_significant = sum(p.is_significant(ALPHA) for p in p_values)
    if p_values:
        others = " The others are not significant; the column “detectable” gives the effect that would have been."
        text.append(
            f"Of {pluralize(len(p_values), 'comparison')} below {num_significant} {'has' if num_significant == 1 else 'have'} a Holm"
            f" p of at most {ALPHA:g}.{others if num_significant < len(p_values) else ''}"
        )
    return Section("results", "Results", tuple(text), tuple(blocks))


def results_table(study_data: StudyData, stage: StageView) -> Table:
    """Return the table of all outcomes of a stage's conditions."""
    outcomes = [name for name in study_data.study_config["metrics"] if name in study_data.frame]
    has_diverged = dict(zip(study_data.frame["run"], study_data.frame["diverged"], strict=True))
    rows = []
    for condition in stage.conditions:
        cells = []
        num_ended = sum(run in study_data.finished for run in condition.runs.values())
        for name in outcomes:
            outcome = study_data.outcome_by_run(name)
            mean, low, high, count = seed_mean_ci(outcome.get(run, math.nan) for run in condition.runs.values())
            formatter = format_signed if name.startswith("gap") else format_number
            half_width = (high - low) / 2
            count_note = f" (n = {count})" if math.isfinite(mean) and count != num_ended else ""
            cells.append(
                (f"{formatter(mean)} ± {format_number(half_width)}" if math.isfinite(half_width) else formatter(mean)) + count_note
            )
        rows.append(
            (
                condition_name(stage, condition),
                *cells,
                f"{num_ended}/{len(condition.runs)}",
                str(sum(bool(has_diverged.get(run)) for run in condition.runs.values())),
            )
        )
    return Table(
        f"results-{stage.name}",
        "Outcomes of every condition. Cells give the mean over seeds ± half the width of its 95 % t-interval. There is no mean if a "
        "run diverged or has an infinite value. n is the number of seeds with a value, if it is smaller than the number of runs.",
        ("condition", *(OUTCOME_TITLES.get(name, name) for name in outcomes), "seeds", "diverged"),
        tuple(rows),
        frozenset(range(1, len(outcomes) + 3)),
        tuple(condition.index for condition in stage.conditions),
        is_long=len(rows) > 30,
    )


def comparison_table(study_data: StudyData, stage: StageView) -> tuple[Table | None, list[PValue]]:
    """Compare every level of the compared factor with the first level, paired by seed.

    The second outcome of the table is the difference of the gaps to the IID baselines (a difference in differences).

    Returns:
        The table, or None if there is nothing to compare, and the Holm-adjusted p-value of each of its rows.
    """
    axis = stage.color_axis
    frame = study_data.stage_frame(stage)
    if axis is None or "loss" not in frame or frame["loss"].isna().all():
        return None, []
    factors = [name for name in study_data.manifest_values["factors"] if name in frame]
    by = [panel_axis.name for panel_axis in stage.panel_axes]
    reference = next(iter(stage.conditions)).values[axis.name]
    indices = {
        (stage.color_level(condition), tuple(condition.levels[name] for name in by)): condition.index for condition in stage.conditions
    }
    rows, conditions, p_values = [], [], []
    has_baselines = bool(any(condition.baselines for condition in stage.conditions))
    for contrast, title in (("none", "final loss"), *((("iid_baseline", "gap to IID baseline"),) if has_baselines else ())):
        comparisons = compare_to_reference(frame, "loss", axis.name, reference, factors, by, contrast=contrast)  # type: ignore[arg-type]
        for row in comparisons.to_dict("records"):
            context = ", ".join(
                format_level(row[name]) if isinstance(row[name], str) else f"{short_name(str(name))} {format_level(row[name])}"
                for name in by
            )
            level = format_level(row[axis.name])
            p_values.append(PValue(row["p_holm"], row["min_attainable_p"], row["seeds"], "Holm"))
            rows.append(
                (
                    title,
                    f"{level} minus {format_level(reference)}",
                    context or "all",
                    format_signed(row["effect"]),
                    format_interval(row["low"], row["high"], is_signed=True),
                    format_number(row["g"], 2),
                    format_p_value(row["p_holm"], row["min_attainable_p"]),
                    format_detectable(row["detectable"]),
                    str(row["seeds"]),
                    str(row["diverged"]),
                )
            )
            conditions.append(indices.get((level, tuple(format_level(row[name]) for name in by)), -1))
    return (
        Table(
            f"comparisons-{stage.name}",
            f"Every {axis.label} minus {format_level(reference)}, paired by seed. The outcome “gap to IID baseline” is a difference in"
            " differences. g is the paired Hedges g. The p-value is exact, with Holm correction over all rows of an outcome. A diverged "
            "run counts as the worst outcome; a seed is left out if both of its runs diverged.",
            ("outcome", "comparison", "context", "effect", "95 % interval", "g", "Holm p", "detectable", "seeds", "diverged"),
            tuple(rows),
            frozenset(range(3, 10)),
            tuple(conditions),
            is_long=len(rows) > 30,
        )
        if rows
        else None,
        p_values,
    )


GAP_TITLES = {"gap": "gap to IID baseline, nats per token", "gap.worst": "gap of the worst domain, nats per token"}


def dose_response_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the cost of heterogeneity against its severity."""
    outcomes = {title: study_data.outcome_by_run(name) for name, title in GAP_TITLES.items() if study_data.outcome_by_run(name)}
    figures: list[Figure] = []
    for stage in study_data.stages:
        axis = stage.find_axis("partition.severity", "partition.alpha", "partition.bits")
        figure = (
            parameter_figure(
                study_data,
                stage,
                axis,
                "dose",
                outcomes,
                "Gap to the IID baseline at the end of training against the severity of "
                "the partition. Dots are seeds, the line is their mean with its 95 % t-interval.",
            )
            if axis and outcomes
            else None
        )
        if figure:
            figures.append(figure)
    if not figures:
        return MissingSection("Dose-response", "vary `partition.severity`, set `iid_baselines: true`, and list `gap` in `metrics`")
    return Section("dose", "Dose-response", (), tuple(figures))


LEARNING_RATES = ("training.client_optimizer.lr", "algorithm.server_optimizer.lr")


def stability_section(study_data: StudyData) -> Section | MissingSection:
    """Draw where training diverges: the learning rate against another factor."""
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
            "vary `training.client_optimizer.lr` together with `partition.severity`, `training.local_steps` or `algorithm`",
        )
    return Section(
        "stability",
        "Stability",
        (
            (
                "A run counts as diverged if its loss is not finite, or if it exceeds 1.5 times the initial loss and ln 4 above its "
                "minimum for three evaluations. A cross marks a condition without a mean because a seed diverged."
            ),
        ),
        tuple(figures),
    )


def stability_figures(study_data: StudyData, stage: StageView, rate: FactorAxis, other: FactorAxis) -> list[Figure]:
    """Draw the share of diverged seeds and the final loss, by learning rate and another factor."""
    loss = study_data.outcome_by_run("loss")
    has_diverged = dict(zip(study_data.frame["run"], study_data.frame["diverged"], strict=True))
    axes = [axis for axis in stage.axes if axis not in (rate, other)]
    by_panel: dict[str, list[Condition]] = {}
    for condition in stage.conditions:
        by_panel.setdefault(condition_label(condition, axes), []).append(condition)
    losses = [
        value
        for value in (seed_mean_ci(loss.get(run, math.nan) for run in condition.runs.values())[0] for condition in stage.conditions)
        if math.isfinite(value)
    ]
    figures = []
    for title, key in (("share of seeds that diverged", "diverged"), ("final loss, mean over seeds", "loss")):
        panels = []
        for name, conditions in list(by_panel.items())[:MAX_PANELS]:
            rows = []
            for condition in conditions:
                ended = [run for run in condition.runs.values() if run in study_data.finished]
                value = (
                    (sum(bool(has_diverged.get(run)) for run in ended) / len(ended) if ended else math.nan)
                    if key == "diverged"
                    else seed_mean_ci(loss.get(run, math.nan) for run in condition.runs.values())[0]
                )
                rows.append(
                    {
                        "condition": condition.index,
                        "x": condition.levels[rate.name],
                        "y": condition.levels[other.name],
                        "value": round_value(value),
                        "note": "no value",
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
                        style=charts.HeatmapStyle(
                            step=34,
                            value_range=(0.0, 1.0) if key == "diverged" else (min(losses), max(losses)) if losses else None,
                            number_format=".0%" if key == "diverged" else ".3f",
                        ),
                    ),
                )
            )
        figures.append(
            Figure(
                f"stability-{key}-{stage.name}",
                stage_caption(study_data, stage, f"{title[0].upper()}{title[1:]}, by {rate.label} and {other.label}."),
                tuple(panels),
                columns=min(3, len(panels)),
                note=panel_limit_note(len(by_panel)),
            )
        )
    return figures


GRADE_KEYS = tuple(LegendKey(grade, color, "dot") for grade, (color, _) in charts.GRADE_MARKS.items())


def failure_heatmap_section(study_data: StudyData) -> Section | MissingSection:
    """Draw and list the diagnosis of every failure in every condition, over seeds and relative to the IID baselines."""
    diagnoses = diagnose_conditions(study_data)
    if not diagnoses:
        return MissingSection("Failure overview", "no run has ended yet")
    blocks: list[Figure | Table] = []
    for stage in study_data.stages:
        panels = []
        by_level: dict[str, list[Condition]] = {}
        for condition in stage.conditions:
            if condition.index in diagnoses:
                by_level.setdefault(stage.color_level(condition), []).append(condition)
        failures = measured_failures([diagnosis for condition in stage.conditions for diagnosis in diagnoses.get(condition.index, ())])
        x_axes = stage.panel_axes or ((stage.color_axis,) if stage.color_axis else ())
        if not stage.panel_axes:  # with one factor, a single panel shows its levels side by side
            by_level = {"": [condition for conditions in by_level.values() for condition in conditions]}
        for level, conditions in by_level.items():
            rows: list[Row] = [
                {
                    "condition": condition.index,
                    "x": condition_label(condition, x_axes) or "all",
                    "y": diagnosis.failure,
                    "grade": diagnosis.grade,
                    "sentence": diagnosis.sentence[:240],
                }
                for condition in conditions
                for diagnosis in diagnoses[condition.index]
                if diagnosis.failure in failures
            ]
            if rows:
                panels.append(
                    Panel(
                        level if len(by_level) > 1 else "",
                        charts.failure_heatmap(rows, x=list(dict.fromkeys(row["x"] for row in rows)), y=failures),
                    )
                )
        if panels:
            blocks.append(
                Figure(
                    f"diagnoses-{stage.name}",
                    stage_caption(
                        study_data,
                        stage,
                        "Diagnoses of each condition over its seeds. Confirmed: most of at least three seeds show the failure, and their "
                        "IID baselines do not. Suspected: there is weaker evidence. None: no evidence, which is no proof of absence.",
                    ),
                    tuple(panels),
                    GRADE_KEYS,
                    columns=min(2, len(panels)),
                )
            )
    all_diagnoses = [
        (stage, condition, diagnosis)
        for stage in study_data.stages
        for condition in stage.conditions
        for diagnosis in diagnoses.get(condition.index, ())
    ]
    positive = [
        (stage, condition, diagnosis) for stage, condition, diagnosis in all_diagnoses if diagnosis.grade in ("confirmed", "suspected")
    ]
    positive.sort(key=lambda item: (item[2].grade != "confirmed", item[1].index))
    if positive:
        blocks.append(
            Table(
                "findings",
                "All confirmed and suspected failures. The excess is the detector's value minus that of the IID baseline, with its "
                "paired interval.",
                ("condition", "failure", "grade", "since round", "excess", "interval", "diagnosis"),
                tuple(
                    (
                        condition_name(stage, condition),
                        diagnosis.failure,
                        diagnosis.grade,
                        DASH if diagnosis.first_round is None else str(diagnosis.first_round),
                        format_signed(diagnosis.excess),
                        format_interval(diagnosis.low, diagnosis.high, is_signed=True),
                        diagnosis.sentence,
                    )
                    for stage, condition, diagnosis in positive
                ),
                frozenset({3, 4, 5}),
                tuple(condition.index for _, condition, _ in positive),
                is_long=len(positive) > 10,
            )
        )
    confirmed, suspected = ([item for item in positive if item[2].grade == grade] for grade in ("confirmed", "suspected"))
    unmeasured = {diagnosis.failure for _, _, diagnosis in all_diagnoses if diagnosis.grade == "not measured"} - {
        diagnosis.failure for _, _, diagnosis in all_diagnoses if diagnosis.grade != "not measured"
    }
    failures_judged = len({diagnosis.failure for _, _, diagnosis in all_diagnoses})
    text = [
        f"Of {len(all_diagnoses)} diagnoses ({len(diagnoses)} conditions, {failures_judged} failures) {len(confirmed)}"
        f" are confirmed and {len(suspected)} suspected."
    ]
    if not positive:
        text.append(
            "No failure was found in any condition. Each diagnosis states the smallest effect that it would have detected; smaller"
            " effects are possible."
        )
    if unmeasured:
        text.append(f"Not measured in any condition: {', '.join(sorted(unmeasured))}.")
    return Section("diagnoses", "Failure overview", tuple(text), tuple(blocks))


def diagnose_conditions(study_data: StudyData) -> dict[int, list[Diagnosis]]:
    """Diagnose every condition with a finished run. The result is keyed by the index of the condition."""
    run_ids = {run for condition in study_data.conditions for run in (*condition.runs.values(), *condition.baselines.values())}
    run_index = RunIndex.from_runs(study_data.manifest.get_run(run) for run in sorted(run_ids) if run in study_data.finished)
    diagnoses = {}
    for count, condition in enumerate(study_data.conditions):
        evidence = []
        for seed, run in sorted(condition.runs.items()):
            if run in study_data.finished:
                baseline = condition.baselines.get(seed, "")
                evidence.append(
                    run_index.build_evidence(
                        study_data.manifest.get_run(run), study_data.manifest.get_run(baseline) if baseline in study_data.finished else None
                    )
                )
        if evidence:
            diagnoses[condition.index] = diagnose(evidence)
        study_data.on_progress(f"diagnosing condition {count + 1} of {len(study_data.conditions)}")
    return diagnoses


def measured_failures(diagnoses: Iterable[Diagnosis]) -> list[str]:
    """Return the failures that were measured in some condition, the gravest first."""
    worst: dict[str, int] = {}
    for diagnosis in diagnoses:
        worst[diagnosis.failure] = max(worst.get(diagnosis.failure, 0), GRADES.index(diagnosis.grade))
    return sorted((failure for failure, grade in worst.items() if grade > 0), key=lambda failure: -worst[failure])


CLUSTERING_METRICS = (  # title, metric, whether it is per client, whether the last round counts
    ("own text", "loss.personalized", True, True),
    ("ARI", "cluster.ari", False, True),
    ("NMI", "cluster.nmi", False, True),
    ("worst client", "fair.worst10", False, True),
)


def clustering_section(study_data: StudyData) -> Section | MissingSection:
    """Compare the clustering strategies of clients, where the study varies them."""
    stages = [stage for stage in study_data.stages if stage.find_axis("clustering")]
    if not stages:
        return MissingSection(
            "Clustering",
            "vary `clustering`, e.g. [NoClustering, TextClustering, {type: RandomClustering, sizes_from: {type: TextClustering}}]",
        )
    blocks: list[Figure | Table] = []
    loss = study_data.outcome_by_run("loss") or {run: result["loss"] for run, result in study_data.finished.items()}
    for stage in stages:
        figure = strip_figure(
            study_data,
            stage,
            "clustering",
            loss,
            "Final loss by clustering strategy. Dots are seeds, the diamond is the mean with its interval.",
            x="final loss, nats per token",
        )
        blocks += [*([figure] if figure else []), clustering_table(study_data, stage, loss)]
    return Section(
        "clustering",
        "Clustering",
        (
            (
                "ARI and NMI compare the clusters with the clients' true main domains (0: chance, 1: identical). If clustering beats a "
                "single model, it must also beat random clusters of the same sizes."
            ),
        ),
        tuple(blocks),
    )


def clustering_table(study_data: StudyData, stage: StageView, loss: dict[str, float]) -> Table:
    """Return the table of the clustering metrics of every condition."""
    metrics = [
        (title, study_data.metric_by_run(metric, clients, last))
        for title, metric, clients, last in CLUSTERING_METRICS
        if any(domain == "" for domain in study_data.metrics.get(metric, ()))
    ]
    rows = []
    for condition in stage.conditions:
        means = [
            seed_mean_ci(values.get(run, math.nan) for run in condition.runs.values())
            for values in (loss, *(values for _, values in metrics))
        ]
        rows.append((condition_name(stage, condition), *(format_number(number[0]) for number in means), str(means[0][3])))
    return Table(
        f"clustering-{stage.name}",
        "Clustering strategies, means over seeds. “Own text” is the loss of each client on its own mixture of domains, with its own model.",
        ("condition", "final loss", *(title for title, _ in metrics), "seeds"),
        tuple(rows),
        frozenset(range(1, len(metrics) + 3)),
        tuple(condition.index for condition in stage.conditions),
        is_long=len(rows) > 12,
    )
