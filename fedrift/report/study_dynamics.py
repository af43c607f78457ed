"""Loss against the round beside the IID baseline, and what the skew costs in each round."""

from __future__ import annotations

import pandas as pd

from . import charts
from .data import Row
from .document import Figure, MissingSection, Panel, Section
from .study_data import StageView, StudyData, iter_rows
from .study_figures import condition_name, curve_figures, panel_limit_note, parameter_figure, stage_caption


def losses_section(study_data: StudyData) -> Section | MissingSection:
    loss = curve_figures(
        study_data,
        "loss",
        "loss",
        "Test loss against the round: mean over seeds with its 95 % t-interval, their IID baselines dashed.",
        title="nats per token",
        is_loss=True,
    )
    if not loss:
        return MissingSection("Loss curves", "no run has been evaluated yet")
    gaps = curve_figures(
        study_data,
        "gap",
        "loss",
        "What the skew costs: loss above the run's own IID baseline, paired by seed, mean with its "
        "95 % t-interval. At the rule the skew costs nothing.",
        title="nats above the IID baseline",
        is_gap=True,
        is_loss=True,
    )
    text = [
        "Losses are nats per token on held-out text that no client trains on. A band that is wide in the first figure and narrow"
        " in the second is a difference between seeds, not between conditions: runs of one seed share model, documents and"
        " cohorts."
    ]
    if study_data.is_thinned:
        text.append("Curves are thinned to fewer rounds than were evaluated; all numbers in tables are from all rounds.")
    return Section("loss", "Loss beside the IID baseline", tuple(text), (*loss, *gaps))


# How far clients pull apart, round by round and against local work and participation.

DRIFT_PARAMETERS = (
    "training.local_steps",
    "training.local_epochs",
    "training.participation_rate",
    "partition.num_clients",
    "training.batch_size",
)
DRIFT_METRICS = {"update.consensus": "consensus of updates", "update.pairwise": "mean pairwise cosine of updates"}


def drift_section(study_data: StudyData) -> Section | MissingSection:
    if not any(study_data.has_metric(metric) for metric in DRIFT_METRICS):
        return MissingSection("Drift", "no update has been recorded: no run has finished a round")
    figures: list[Figure] = []
    numbers = {title: study_data.metric_by_run(metric) for metric, title in DRIFT_METRICS.items() if study_data.has_metric(metric)}
    gap = study_data.outcome_by_run("gap")
    outcomes = {**numbers, **({"gap to IID baseline, nats": gap} if gap else {})}
    varied = False
    for stage in study_data.stages:
        for axis in (axis for axis in stage.numeric_axes if axis.name in DRIFT_PARAMETERS):
            made = parameter_figure(
                study_data,
                stage,
                axis,
                "drift",
                outcomes,
                f"Agreement of the clients' updates and cost of the skew against {axis.label}.",
                zero=False,
            )
            figures += [made] if made else []
            varied = True
    if study_data.has_metric("update.consensus"):
        figures += curve_figures(
            study_data,
            "consensus",
            "update.consensus",
            "Consensus of the clients' updates, |mean| over mean |.|: 1 if all "
            "agree, about 1/√C where they have nothing in common. IID baselines dashed.",
            title="consensus",
        )
    text = ["Small batches make updates noisy, and noise alone lowers consensus: what counts is the distance to the IID baseline."]
    if not varied:
        text.append(
            "Local steps and participation are not varied here; `training.local_steps` and `training.participation_rate` are the factors."
        )
    return Section("drift", "Drift", tuple(text), tuple(figures))


# Layer by layer: representations against the pretrained ones and each other's, and the entropy of attention.

MAX_LAYER_CONDITIONS = 12
LAYER_METRICS = {
    "hidden.cka.pretrained": "Linear CKA of hidden states with the pretrained model's (1: unchanged)",
    "hidden.cka.clients": "Linear CKA between clients of a round (1: alike)",
    "attention.entropy": "Attention entropy over its most (1: uniform)",
}


def layers_section(study_data: StudyData) -> Section | MissingSection:
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
        "Layer by layer",
        ("Each map is a condition minus its IID baseline, mean over paired seeds: what the skew alone did to the layer.",),
        tuple(figures),
    )


def layer_figures(study_data: StudyData, stage: StageView, metric: str, title: str) -> list[Figure]:
    frame = study_data.gap_curves(metric)
    places = [arm.index for arm in stage.conditions]
    frame = frame[frame["domain"].str.startswith("layer") & frame["condition"].isin(places)]
    known = frame["mean"].dropna()
    if not len(known):
        return []
    most = float(known.abs().max())
    panels = []
    there = [arm for arm in stage.conditions if (frame["condition"] == arm.index).any()]
    for arm in there[:MAX_LAYER_CONDITIONS]:
        part = frame[frame["condition"] == arm.index]
        panels.append(
            Panel(
                condition_name(stage, arm),
                charts.heatmap(
                    layer_rows(part, arm.index),
                    x=list(map(str, sorted(part["round"].unique()))),
                    y=sorted(part["domain"].unique(), reverse=True),
                    x_title="round",
                    value=f"{metric} minus the IID baseline's",
                    scheme=charts.DIVERGING,
                    value_range=(-most, most),
                    number_format="+.2g",
                    show_numbers=part["round"].nunique() <= 6,
                    step=20,
                ),
            )
        )
    more = f" The first {MAX_LAYER_CONDITIONS} of {len(there)} conditions." if len(there) > MAX_LAYER_CONDITIONS else ""
    return [
        Figure(
            f"{metric.replace('.', '-')}-{stage.name}",
            stage_caption(
                study_data,
                stage,
                f"{title}, less the IID baseline's: orange above, blue below, up to ±{most:.2g}.{more}".replace(
                    "orange above, blue below", "blue below 0, orange above"
                ),
            ),
            tuple(panels),
            columns=min(3, len(panels)),
            note=panel_limit_note(len(panels)),
        )
    ]


def layer_rows(part: pd.DataFrame, condition: int) -> list[Row]:
    return [
        {
            "condition": condition,
            "x": str(int(each.round)),
            "y": each.domain,
            "value": charts.to_plot_value(each.mean),
            "note": "no finite number",
        }
        for each in iter_rows(part)
    ]


# Which domains lose what, and when: the loss of each above its twin round by round, and what was forgotten at the end.

MAX_FORGETTING_CONDITIONS = 12
MAX_FORGETTING_DOMAINS = 16


def forgetting_section(study_data: StudyData) -> Section | MissingSection:
    if not study_data.has_metric("loss", domains=True):
        return MissingSection("Forgetting by domain", "the corpus has no domains, or no run has been evaluated")
    figures: list[Figure] = []
    gaps = study_data.gap_curves("loss")
    for stage in study_data.stages:
        figures += domain_gap_figures(study_data, stage, gaps)
    text = [
        "Averages hide forgetting: a domain whose clients sit out rises and falls back. Stripes are that; a column that stays"
        " orange is lost for good."
    ]
    if study_data.has_metric("forgetting", domains=True):
        curves = study_data.mean_curves("forgetting")
        for stage in study_data.stages:
            figures += final_forgetting_figures(study_data, stage, curves)
    else:
        text.append(
            "Not recorded: `forgetting`, the loss of a domain above its own lowest so far; it comes with `language` in `evaluation.probes`."
        )
    if not figures:
        return MissingSection("Forgetting by domain", "a run beside its IID baseline with losses by domain")
    return Section("forgetting", "Forgetting", tuple(text), tuple(figures))


def domain_gap_figures(study_data: StudyData, stage: StageView, gaps: pd.DataFrame) -> list[Figure]:
    frame = gaps[(gaps["domain"] != "") & gaps["condition"].isin([arm.index for arm in stage.conditions])]
    known = frame["mean"].dropna()
    if not len(known):
        return []
    most = float(known.abs().quantile(0.99)) or 1.0
    there = [arm for arm in stage.conditions if (frame["condition"] == arm.index).any()]
    domains = sorted(frame["domain"].unique())[:MAX_FORGETTING_DOMAINS]
    panels = []
    for arm in there[:MAX_FORGETTING_CONDITIONS]:
        part = frame[(frame["condition"] == arm.index) & frame["domain"].isin(domains)]
        rows = [
            {
                "condition": arm.index,
                "x": each.domain,
                "y": str(int(each.round)),
                "value": charts.to_plot_value(each.mean),
                "note": "no finite number",
            }
            for each in iter_rows(part)
        ]
        rounds = sorted(part["round"].unique())
        panels.append(
            Panel(
                condition_name(stage, arm),
                charts.heatmap(
                    rows,
                    x=domains,
                    y=list(map(str, rounds)),
                    y_title="round",
                    value="nats above the IID baseline",
                    scheme=charts.DIVERGING,
                    value_range=(-most, most),
                    number_format="+.2f",
                    show_numbers=len(rounds) <= 12,
                    step=20 if len(rounds) <= 12 else max(5, 200 // len(rounds)),
                    label_angle=-40,
                ),
            )
        )
    more = f" The first {MAX_FORGETTING_CONDITIONS} of {len(there)} conditions." if len(there) > MAX_FORGETTING_CONDITIONS else ""
    return [
        Figure(
            f"domains-{stage.name}",
            stage_caption(
                study_data,
                stage,
                "Loss of each domain above the IID baseline's, round by round, mean over paired seeds; blue below 0, "
                f"orange above, up to ±{most:.2g} nats.{more}",
            ),
            tuple(panels),
            columns=min(3, len(panels)),
        )
    ]


def final_forgetting_figures(study_data: StudyData, stage: StageView, curves: pd.DataFrame) -> list[Figure]:
    frame = curves[(curves["domain"] != "") & curves["condition"].isin([arm.index for arm in stage.conditions])]
    frame = frame[frame["round"] == frame.groupby(["condition", "kind"])["round"].transform("max")]
    domains = sorted(frame["domain"].unique())[:MAX_FORGETTING_DOMAINS]
    names = {arm.index: condition_name(stage, arm) for arm in stage.conditions}
    known = frame["mean"].dropna()
    if not len(known):
        return []
    panels = []
    for kind, title in (("run", "the conditions"), ("iid_baseline", "their IID baselines")):
        part = frame[(frame["kind"] == kind) & frame["domain"].isin(domains)]
        if len(part):
            rows = [
                {
                    "condition": int(each.condition),
                    "x": each.domain,
                    "y": names[each.condition],
                    "value": charts.to_plot_value(each.mean),
                    "note": "no finite number",
                }
                for each in iter_rows(part)
            ]
            panels.append(
                Panel(
                    title,
                    charts.heatmap(
                        rows,
                        x=domains,
                        y=[name for place, name in names.items() if (part["condition"] == place).any()],
                        value="nats",
                        value_range=(0.0, float(known.max())),
                        number_format=".2f",
                        label_angle=-40,
                    ),
                )
            )
    return [
        Figure(
            f"forgetting-{stage.name}",
            stage_caption(
                study_data, stage, "What was forgotten at the end: loss of each domain above its own lowest, nats, mean over seeds."
            ),
            tuple(panels),
            columns=1 if len(names) > 8 else len(panels),
        )
    ]


# What separate means of the two factors of an adapter lose.

LORA_PARAMETERS = ("training.local_steps", "training.local_epochs", "partition.severity", "trainable.r", "training.participation_rate")


def lora_aggregation_section(study_data: StudyData) -> Section | MissingSection:
    if not study_data.has_metric("adapters.error.update"):
        return MissingSection("LoRA aggregation error", "runs that tune LoRA record it by themselves; there are none yet")
    figures: list[Figure] = curve_figures(
        study_data,
        "adapters",
        "adapters.error.update",
        "Error of averaging A and B apart, as a share of the round's update: runs solid, IID baselines dashed.",
        title="share of the update",
    )
    numbers = {"share of the update": study_data.metric_by_run("adapters.error.update")}
    for stage in study_data.stages:
        for axis in (axis for axis in stage.numeric_axes if axis.name in LORA_PARAMETERS):
            made = parameter_figure(
                study_data, stage, axis, "adapters-dial", numbers, f"The same, mean over rounds, against {axis.label}.", zero=False
            )
            figures += [made] if made else []
    return Section(
        "adapters",
        "LoRA aggregation error",
        ("The mean of products B A is not the product of the means; this is the difference.",),
        tuple(figures),
    )
