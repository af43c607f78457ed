"""Sections of a study's report on the course of training: loss, drift, layers, forgetting and the LoRA aggregation error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from . import charts
from .data import Row, round_value
from .document import Figure, MissingSection, Panel, Section
from .study_data import StageView, StudyData, iter_rows
from .study_figures import condition_name, curve_figures, panel_limit_note, parameter_figure, stage_caption


def losses_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the loss of every condition against rounds, and its gap to the IID baseline."""
    loss = curve_figures(
        study_data,
        "loss",
        "loss",
        "Test loss against rounds: mean over seeds with its 95 % t-interval. IID baselines are dashed.",
        title="nats per token",
        is_loss=True,
    )
    if not loss:
        return MissingSection("Loss curves", "no run has been evaluated yet")
    gaps = curve_figures(
        study_data,
        "gap",
        "loss",
        "Cost of heterogeneity: loss minus the loss of the run's own IID baseline, paired by seed, mean with its "
        "95 % t-interval. At the horizontal rule, heterogeneity has no cost.",
        title="gap to IID baseline, nats per token",
        is_gap=True,
        is_loss=True,
    )
    text = [
        "Losses are in nats per token on held-out text, on which no client trains. A band that is wide in the first figure but narrow"
        " in the second shows a difference between seeds, not between conditions. Runs with the same seed share the model, the"
        " documents and the cohorts."
    ]
    if study_data.is_thinned:
        text.append("The curves show only some of the evaluated rounds; the tables are computed from all of them.")
    return Section("loss", "Loss and IID baseline", tuple(text), (*loss, *gaps))


DRIFT_PARAMETERS = (
    "training.local_steps",
    "training.local_epochs",
    "training.participation_rate",
    "partition.num_clients",
    "training.batch_size",
)
DRIFT_METRICS = {"update.consensus": "consensus of updates", "update.pairwise": "mean pairwise cosine of updates"}


def drift_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the agreement between the clients' updates against rounds, local steps and participation."""
    if not any(study_data.has_metric(metric) for metric in DRIFT_METRICS):
        return MissingSection("Drift", "no run has finished a round yet, so no update has been recorded")
    figures: list[Figure] = []
    numbers = {title: study_data.metric_by_run(metric) for metric, title in DRIFT_METRICS.items() if study_data.has_metric(metric)}
    gap = study_data.outcome_by_run("gap")
    outcomes = {**numbers, **({"gap to IID baseline, nats per token": gap} if gap else {})}
    varied = False
    for stage in study_data.stages:
        for axis in (axis for axis in stage.numeric_axes if axis.name in DRIFT_PARAMETERS):
            figure = parameter_figure(
                study_data,
                stage,
                axis,
                "drift",
                outcomes,
                f"Agreement of the clients' updates, and cost of heterogeneity, against {axis.label}.",
                zero=False,
            )
            figures += [figure] if figure else []
            varied = True
    if study_data.has_metric("update.consensus"):
        figures += curve_figures(
            study_data,
            "consensus",
            "update.consensus",
            "Consensus of the clients' updates: norm of the mean update divided by the mean norm. It is 1 if all "
            "updates are equal, and about 1/√C if they are orthogonal. IID baselines are dashed.",
            title="consensus",
            trivial=1.0,
        )
    text = [
        "Small batches make updates noisy, and noise alone lowers the consensus. Only the distance to the IID baseline is informative."
        " With one client per round the consensus is 1 by definition; figures that would show only this are left out."
    ]
    if not varied:
        text.append(
            "This study does not vary local steps or participation; the factors are `training.local_steps` and"
            " `training.participation_rate`."
        )
    return Section("drift", "Drift", tuple(text), tuple(figures))


MAX_LAYER_CONDITIONS = 12
LAYER_METRICS = {
    "hidden.cka.pretrained": "Linear CKA between hidden states and those of the pretrained model (1: unchanged)",
    "hidden.cka.clients": "Linear CKA between the hidden states of the clients of a round (1: identical)",
    "attention.entropy": "Attention entropy divided by its maximum (1: uniform)",
}


def layers_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the change of representations and attention per layer, relative to the IID baseline."""
    figures = [
        figure
        for metric, title in LAYER_METRICS.items()
        if study_data.has_metric(metric, domains=True)
        for stage in study_data.stages
        for figure in layer_figures(study_data, stage, metric, title)
    ]
    if not figures:
        return MissingSection("Layers: CKA and attention entropy", "add `hidden` and `attention` to `evaluation.probes`")
    return Section(
        "layers",
        "Layers",
        (
            "Each map shows a condition minus its IID baseline, as a mean over paired seeds. It isolates the effect of heterogeneity on"
            " each layer.",
        ),
        tuple(figures),
    )


def layer_figures(study_data: StudyData, stage: StageView, metric: str, title: str) -> list[Figure]:
    """Draw one heat map per condition: layers against rounds, minus the IID baseline."""
    frame = study_data.gap_curves(metric)
    indices = [condition.index for condition in stage.conditions]
    frame = frame[frame["domain"].str.startswith("layer") & frame["condition"].isin(indices)]
    known = frame["mean"].dropna()
    if not len(known):
        return []
    limit = float(known.abs().max())
    panels = []
    recorded = [condition for condition in stage.conditions if (frame["condition"] == condition.index).any()]
    for condition in recorded[:MAX_LAYER_CONDITIONS]:
        values = frame[frame["condition"] == condition.index]
        panels.append(
            Panel(
                condition_name(stage, condition),
                charts.heatmap(
                    heatmap_rows(values, x=lambda cell: str(int(cell.round)), y=lambda cell: cell.domain),
                    x=list(map(str, sorted(values["round"].unique()))),
                    y=sorted(values["domain"].unique(), reverse=True),
                    x_title="round",
                    value=f"{metric} minus the IID baseline",
                    style=charts.HeatmapStyle(
                        scheme=charts.DIVERGING,
                        value_range=(-limit, limit),
                        number_format="+.2g",
                        show_numbers=values["round"].nunique() <= 6,
                        step=20,
                    ),
                ),
            )
        )
    note = (
        f" Only the first {MAX_LAYER_CONDITIONS} of {len(recorded)} conditions are shown." if len(recorded) > MAX_LAYER_CONDITIONS else ""
    )
    return [
        Figure(
            f"{metric.replace('.', '-')}-{stage.name}",
            stage_caption(study_data, stage, f"{title}, minus the IID baseline: blue below 0, orange above, up to ±{limit:.2g}.{note}"),
            tuple(panels),
            columns=min(3, len(panels)),
            note=panel_limit_note(len(panels)),
        )
    ]


def heatmap_rows(frame: pd.DataFrame, x: Callable[[Any], str], y: Callable[[Any], str]) -> list[Row]:
    """Return the cells of a heat map from rows with ``condition`` and ``mean``; ``x`` and ``y`` name the column and row of a cell."""
    return [
        {"condition": int(cell.condition), "x": x(cell), "y": y(cell), "value": round_value(cell.mean), "note": "no finite value"}
        for cell in iter_rows(frame)
    ]


MAX_FORGETTING_CONDITIONS = 12
MAX_FORGETTING_DOMAINS = 16


def forgetting_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the loss gap of each domain against rounds, and the forgetting at the end of training."""
    if not study_data.has_metric("loss", domains=True):
        return MissingSection("Forgetting by domain", "the corpus has no domains, or no run has been evaluated")
    figures: list[Figure] = []
    gaps = study_data.gap_curves("loss")
    for stage in study_data.stages:
        figures += domain_gap_figures(study_data, stage, gaps)
    text = [
        "Averages hide forgetting: the loss of a domain rises while its clients do not participate, and falls when they return. This"
        " appears as stripes. A column that stays orange shows permanent forgetting."
    ]
    if study_data.has_metric("forgetting", domains=True):
        curves = study_data.mean_curves("forgetting")
        for stage in study_data.stages:
            figures += final_forgetting_figures(study_data, stage, curves)
    else:
        text.append(
            "The metric `forgetting` (a domain's loss minus its own minimum so far) is not recorded; add `language` to `evaluation.probes`."
        )
    if not figures:
        return MissingSection("Forgetting by domain", "this section needs a run with an IID baseline and losses per domain")
    return Section("forgetting", "Forgetting", tuple(text), tuple(figures))


def domain_gap_figures(study_data: StudyData, stage: StageView, gaps: pd.DataFrame) -> list[Figure]:
    """Draw one heat map per condition: rounds against domains, as the gap to the IID baseline."""
    frame = gaps[(gaps["domain"] != "") & gaps["condition"].isin([condition.index for condition in stage.conditions])]
    known = frame["mean"].dropna()
    if not len(known):
        return []
    limit = float(known.abs().quantile(0.99)) or 1.0
    recorded = [condition for condition in stage.conditions if (frame["condition"] == condition.index).any()]
    domains = sorted(frame["domain"].unique())[:MAX_FORGETTING_DOMAINS]
    panels = []
    for condition in recorded[:MAX_FORGETTING_CONDITIONS]:
        values = frame[(frame["condition"] == condition.index) & frame["domain"].isin(domains)]
        rows = heatmap_rows(values, x=lambda cell: cell.domain, y=lambda cell: str(int(cell.round)))
        rounds = sorted(values["round"].unique())
        panels.append(
            Panel(
                condition_name(stage, condition),
                charts.heatmap(
                    rows,
                    x=domains,
                    y=list(map(str, rounds)),
                    y_title="round",
                    value="gap to IID baseline, nats per token",
                    style=charts.HeatmapStyle(
                        scheme=charts.DIVERGING,
                        value_range=(-limit, limit),
                        number_format="+.2f",
                        show_numbers=len(rounds) <= 12,
                        step=20 if len(rounds) <= 12 else max(5, 200 // len(rounds)),
                        label_angle=-40,
                    ),
                ),
            )
        )
    note = (
        f" Only the first {MAX_FORGETTING_CONDITIONS} of {len(recorded)} conditions are shown."
        if len(recorded) > MAX_FORGETTING_CONDITIONS
        else ""
    )
    return [
        Figure(
            f"domains-{stage.name}",
            stage_caption(
                study_data,
                stage,
                "Loss of each domain minus that of the IID baseline in each round, mean over paired seeds; blue below 0, "
                f"orange above, up to ±{limit:.2g} nats per token.{note}",
            ),
            tuple(panels),
            columns=min(3, len(panels)),
        )
    ]


def final_forgetting_figures(study_data: StudyData, stage: StageView, curves: pd.DataFrame) -> list[Figure]:
    """Draw the forgetting of each domain in the last round, for the conditions and for their IID baselines."""
    frame = curves[(curves["domain"] != "") & curves["condition"].isin([condition.index for condition in stage.conditions])]
    frame = frame[frame["round"] == frame.groupby(["condition", "kind"])["round"].transform("max")]
    # The domains of one corpus stay together.
    domains = list(dict.fromkeys(frame.sort_values(["condition", "domain"])["domain"]))[:MAX_FORGETTING_DOMAINS]
    names = {condition.index: condition_name(stage, condition) for condition in stage.conditions}
    known = frame["mean"].dropna()
    if not len(known):
        return []
    panels = []
    for kind, title in (("run", "the conditions"), ("iid_baseline", "their IID baselines")):
        values = frame[(frame["kind"] == kind) & frame["domain"].isin(domains)]
        if len(values):
            rows = heatmap_rows(values, x=lambda cell: cell.domain, y=lambda cell: names[cell.condition])
            panels.append(
                Panel(
                    title,
                    charts.heatmap(
                        rows,
                        x=domains,
                        y=[name for index, name in names.items() if (values["condition"] == index).any()],
                        value="nats per token",
                        style=charts.HeatmapStyle(value_range=(0.0, float(known.max())), number_format=".2f", label_angle=-40),
                    ),
                )
            )
    return [
        Figure(
            f"forgetting-{stage.name}",
            stage_caption(
                study_data,
                stage,
                "Forgetting at the end: final loss of each domain minus its own minimum, nats per token, mean over seeds.",
            ),
            tuple(panels),
            columns=1 if len(names) > 8 else len(panels),
        )
    ]


LORA_PARAMETERS = ("training.local_steps", "training.local_epochs", "partition.severity", "trainable.r", "training.participation_rate")


def lora_aggregation_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the error of averaging the LoRA factors A and B separately."""
    if not study_data.has_metric("adapters.error.update"):
        return MissingSection("LoRA aggregation error", "this section needs runs with LoRA, which record the error by default")
    figures: list[Figure] = curve_figures(
        study_data,
        "adapters",
        "adapters.error.update",
        "Error of averaging A and B separately, as a share of the round's update. Runs are solid, IID baselines dashed.",
        title="share of the update",
        trivial=0.0,
    )
    numbers = {"share of the update": study_data.metric_by_run("adapters.error.update")}
    for stage in study_data.stages:
        for axis in (axis for axis in stage.numeric_axes if axis.name in LORA_PARAMETERS):
            figure = parameter_figure(
                study_data, stage, axis, "adapters-parameter", numbers, f"Mean of this error over rounds, against {axis.label}.", zero=False
            )
            figures += [figure] if figure else []
    return Section(
        "adapters",
        "LoRA aggregation error",
        (
            "The mean of the products B A differs from the product of the means of B and A. This section shows the difference."
            " With one client per round the two are equal; figures that would show only this are left out.",
        ),
        tuple(figures),
    )
