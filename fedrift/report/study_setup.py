"""Sections of a study's report on its setup: partitions, tuning, cost, methods and provenance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .. import __version__
from ..core.records import Trajectory
from ..partition.heterogeneity import normalized_jsd
from ..stats import default_worst_end
from ..studies.outcomes import COST_RECORDS, COSTS, Cost, CostMetric, cumulative_cost, load_trajectories, summarize_cost
from . import charts, figures
from .data import round_value
from .document import Figure, LegendKey, MissingSection, Panel, Section, Table
from .figures import assign_colors
from .format import DASH, format_bytes, format_number, format_signed, pluralize, seed_mean_ci
from .study_data import Condition, StageView, StudyData
from .study_figures import condition_name

MAX_PARTITIONS_SHOWN = 9  # partitions with a heat map
MAX_PARTITION_DOMAINS = 12  # domains per heat map


def partitions_section(study_data: StudyData) -> Section | MissingSection:
    """Draw the training tokens of each client in each domain, and list the heterogeneity of every condition."""
    partitions = distinct_partitions(study_data)
    if not partitions:
        return MissingSection("Partitions", "no run has started yet, or the corpus has no domains")
    panels = tuple(
        Panel(f"{name}, seed {seed}", partial(partition_chart, table)) for name, seed, table in partitions[:MAX_PARTITIONS_SHOWN]
    )
    note = (
        f" Only the first {MAX_PARTITIONS_SHOWN} of {len(partitions)} different partitions are shown."
        if len(partitions) > MAX_PARTITIONS_SHOWN
        else ""
    )
    return Section(
        "partitions",
        "Partitions",
        (
            (
                "A run and its IID baseline use the same documents; the IID baseline assigns them to clients at random. Domain divergence"
                " is the Jensen-Shannon divergence between the clients' domains by training tokens, divided by its maximum (0: all equal,"
                " 1: no shared domain). It only measures topics; `fedrift partition show` also measures words and style."
            ),
        ),
        (
            Figure(
                "partitions",
                "Training tokens of each client (rows) in each domain, for one seed." + note,
                panels,
                columns=min(3, len(panels)),
            ),
            *(heterogeneity_table(study_data, stage) for stage in study_data.stages),
        ),
    )


def distinct_partitions(study_data: StudyData) -> list[tuple[str, int, dict[str, list[object]]]]:
    """Return every distinct partition, for the first seed that has started: its name, the seed and its table of tokens.

    Partitions of one name also name their stage: a centralized run and a homogeneous control have partitions of their own.
    """
    partitions: dict[str, tuple[str, str, int, dict[str, list[object]]]] = {}
    for condition in study_data.conditions:
        for kind, runs in (("", condition.runs), ("IID", condition.baselines)):
            seed = next((seed for seed, run in sorted(runs.items()) if run in study_data.experiments), None)
            if seed is None:
                continue
            config = study_data.experiments[runs[seed]]
            table = config.get("partition_table") or {}
            if not table.get("tokens") or not table.get("domains"):
                continue
            partition = config["partition"]
            name = (
                f"{partition['type']} {partition['severity']:g}"
                if not kind and "severity" in partition
                else f"{partition['type']}, {kind}"
                if kind
                else partition["type"]
            )
            partitions.setdefault(json.dumps([table["tokens"]]), (name, condition.stage, seed, table))
    names = [name for name, *_ in partitions.values()]
    return [(name if names.count(name) == 1 else f"{name}, {stage}", seed, table) for name, stage, seed, table in partitions.values()]


def partition_chart(table: dict[str, list[object]]) -> figures.Chart:
    """Draw the training tokens of each client in the largest domains."""
    tokens = np.asarray(table["tokens"], dtype=np.float64)
    domains = np.sort(np.argsort(-tokens.sum(axis=0), kind="stable")[:MAX_PARTITION_DOMAINS])
    names = [str(table["domains"][index]) for index in domains]
    return figures.partition_heatmap(names, tokens[:, domains].tolist())


def heterogeneity_table(study_data: StudyData, stage: StageView) -> Table:
    """Return the table of the heterogeneity of every condition and of its IID baseline."""
    rows, conditions = [], []
    for condition in stage.conditions:
        divergences: list[float] = []
        baseline_divergences: list[float] = []
        client_tokens: list[float] = []
        clients = 0
        for runs, target in ((condition.runs, divergences), (condition.baselines, baseline_divergences)):
            for run in runs.values():
                table = study_data.experiments.get(run, {}).get("partition_table") or {}
                if table.get("tokens"):
                    tokens = np.asarray(table["tokens"], dtype=np.float64)
                    target.append(normalized_jsd(tokens))
                    clients, client_tokens = len(tokens), [*client_tokens, *tokens.sum(axis=1)]
        if divergences:
            rows.append(
                (
                    condition_name(stage, condition),
                    str(clients),
                    f"{min(client_tokens):,.0f} to {max(client_tokens):,.0f}",
                    format_number(seed_mean_ci(divergences)[0]),
                    format_number(seed_mean_ci(baseline_divergences)[0]),
                    str(len(divergences)),
                )
            )
            conditions.append(condition.index)
    return Table(
        f"deals-{stage.name}",
        "Heterogeneity of the clients, mean over seeds. The IID baseline gives the heterogeneity by chance.",
        ("condition", "clients", "tokens per client", "domain divergence", "IID baseline", "seeds"),
        tuple(rows),
        frozenset({1, 2, 3, 4, 5}),
        tuple(conditions),
        is_long=len(rows) > 12,
    )


def tuning_section(study_data: StudyData) -> Section | MissingSection:
    """List the hyperparameters that tuning selected, and every trial."""
    choices, tuning = study_data.manifest_values["tuning_results"], study_data.study_config.get("tuning") or {}
    if not choices:
        return MissingSection(
            "Tuned hyperparameters",
            (
                "tuning is not finished yet"
                if tuning.get("trials")
                else "the study does not tune; all conditions use the settings of the study file, and `tuning:` would add trials"
            ),
        )
    metric = tuning.get("metric", "loss")
    best = "highest" if default_worst_end(metric) == "low" else "lowest"
    selected_rows = tuple(
        (
            choice["group"],
            format_settings(choice["settings"]) or f"none, because no trial finished with a finite {metric}",
            format_number(to_float(choice["score"])),
            str(len(choice["trials"])),
            ", ".join(choice["at_search_boundary"]) or DASH,
        )
        for choice in choices
    )
    edges = [choice["group"] for choice in choices if choice["at_search_boundary"]]
    text = [
        f"Each group gets {tuning.get('trials')} trials on {tuning.get('split', 'validation')} text, with seeds"
        f" ({', '.join(map(str, tuning.get('seeds', ())))}) that the study does not use. The settings with the {best} mean {metric} are"
        " used in all runs."
    ]
    if edges:
        text.append(f"The best value of {'; '.join(edges)} lies at the edge of the grid, so a wider grid may contain better values.")
    trials = [(choice["group"], trial) for choice in choices for trial in choice["trials"]]
    rows = tuple(
        (
            group,
            format_settings(trial["settings"]),
            *(format_number(to_float(trial["scores"].get(seed, trial["scores"].get(str(seed))))) for seed in tuning.get("seeds", ())),
            format_number(to_float(trial["mean"])),
        )
        for group, trial in trials
    )
    figure = trials_figure(choices)
    return Section(
        "tuning",
        "Tuned hyperparameters",
        tuple(text),
        (
            *([figure] if figure else []),
            Table(
                "tuning",
                "Selected settings. The column “edge” lists settings whose best value is the largest or smallest of the grid.",
                ("group", "selected", "score", "trials", "edge"),
                selected_rows,
                frozenset({2, 3}),
            ),
            Table(
                "trials",
                "All trials.",
                ("group", "settings", *(f"seed {seed}" for seed in tuning.get("seeds", ())), "mean"),
                rows,
                frozenset(range(2, 3 + len(tuning.get("seeds", ())))),
                is_long=True,
            ),
        ),
    )


def trials_figure(choices: list[dict[str, Any]]) -> Figure | None:
    """Draw the score of every trial against the learning rate, or return None if it was not tuned."""
    path = next((path for choice in choices for trial in choice["trials"] for path in trial["settings"] if path.endswith("lr")), None)
    if not path:
        return None
    colors = assign_colors([choice["group"] for choice in choices])
    rows = [
        {
            "condition": -1,
            "level": choice["group"],
            "x": trial["settings"][path],
            "seed": format_settings(trial["settings"]),
            "value": round_value(to_float(trial["mean"])),
        }
        for choice in choices
        for trial in choice["trials"]
        if path in trial["settings"] and math.isfinite(to_float(trial["mean"]))
    ]
    if not rows:
        return None
    selected_rows = [
        {
            "condition": -1,
            "level": choice["group"],
            "x": choice["settings"][path],
            "value": round_value(to_float(choice["score"])),
            "low": None,
            "high": None,
            "seeds": len(choice["trials"]),
        }
        for choice in choices
        if path in choice["settings"]
    ]
    keys = tuple(LegendKey(group, color, "dot") for group, color in colors.items())
    return Figure(
        "tuning",
        f"Validation loss of every trial against {path}. The large dot marks the selected value.",
        (Panel("", charts.parameter_chart(rows, selected_rows, colors, x=path, y="validation loss", zero=False)),),
        keys,
        columns=1,
    )


def format_settings(settings: dict[str, Any]) -> str:
    """Format settings as ``path value, path value``."""
    return ", ".join(f"{path} {setting:g}" if isinstance(setting, float) else f"{path} {setting}" for path, setting in settings.items())


def to_float(number: Any) -> float:
    """Convert a score from JSON, in which NaN is null."""
    return math.nan if number is None else float(number)


def cost_section(study_data: StudyData) -> Section | MissingSection:
    """List the tokens, seconds and bytes of every condition."""
    if not study_data.finished:
        return MissingSection("Cost", "no run has ended yet")
    seconds = [sum((end.get("seconds") or {}).values()) for end in study_data.finished.values()]
    tokens = [float(end.get("train_tokens") or math.nan) for end in study_data.finished.values()]
    total = (
        f"{len(study_data.finished)} runs, including IID baselines and tuning trials, trained on {np.nansum(tokens):,.0f} tokens in"
        f" {np.nansum(seconds) / 3600:.2f} hours, evaluation included. Seconds depend on the machine and its load; tokens and bytes"
        " do not."
    )
    note = () if study_data.has_metric("cost.up") else ("Bytes are not recorded: add `cost` to `evaluation.probes`.",)
    return Section("cost", "Cost", (total, *note), tuple(cost_table(study_data, stage) for stage in study_data.stages))


def cohort_size(config: Mapping[str, Any]) -> int:
    """Return the number of clients that train in a round of a stored experiment."""
    training, num_clients = config["training"], config["partition"]["num_clients"]
    count = training.get("num_clients_per_round")
    return int(max(1, round(training["participation_rate"] * num_clients)) if count is None else count)


def cost_table(study_data: StudyData, stage: StageView) -> Table:
    """Return the table of the cost of every condition."""
    traffic = {direction: study_data.metric_by_run(f"cost.{direction}") for direction in ("down", "up")}
    rows = []
    for condition in stage.conditions:
        finished = [(run, study_data.finished[run]) for run in condition.runs.values() if run in study_data.finished]
        if not finished:
            rows.append((condition_name(stage, condition), *[DASH] * 6, f"0/{len(condition.runs)}"))
            continue
        config = study_data.experiments[finished[0][0]]
        cohort = cohort_size(config)
        tokens = float(np.mean([end.get("train_tokens") or math.nan for _, end in finished]))
        train = float(np.mean([(end.get("seconds") or {}).get("train", math.nan) for _, end in finished]))
        total = float(np.mean([sum((end.get("seconds") or {}).values()) for _, end in finished]))
        down, up = (float(np.mean([traffic[direction].get(run, math.nan) for run, _ in finished])) for direction in ("down", "up"))
        rows.append(
            (
                condition_name(stage, condition),
                f"{tokens:,.0f}",
                format_number(train, 1),
                format_number(total, 1),
                format_bytes(down),
                format_bytes(up),
                format_bytes((down + up) * cohort * float(np.mean([end["rounds"] for _, end in finished]))),
                f"{len(finished)}/{len(condition.runs)}",
            )
        )
    return Table(
        f"cost-{stage.name}",
        "Cost of a run, means over seeds. Bytes down and up are per client and round; total bytes are summed over cohorts and rounds.",
        ("condition", "training tokens", "training s", "total s", "down", "up", "total bytes", "runs"),
        tuple(rows),
        frozenset(range(1, 8)),
        tuple(condition.index for condition in stage.conditions),
        is_long=len(rows) > 30,
    )


def methods_section(study_data: StudyData) -> Section | MissingSection:
    """Describe the setup of the study from its file and from the configuration of its first run."""
    config = next(
        (
            study_data.experiments[run]
            for condition in study_data.conditions
            for run in condition.runs.values()
            if run in study_data.experiments
        ),
        None,
    )
    if config is None:
        return MissingSection("Methods", "no run has started yet")
    training, dataset, partition, evaluation = config["training"], config["dataset"], config["partition"], config["evaluation"]
    clients = partition["num_clients"]
    cohort = cohort_size(config)
    local_training = (
        f"{training['local_epochs']:g} local epochs" if training.get("local_epochs") else pluralize(training["local_steps"], "local step")
    )
    limit = f", the first {dataset['limit']} documents" if dataset.get("limit") else ""
    interval = "round" if evaluation["interval"] == 1 else pluralize(evaluation["interval"], "round")
    factors = ", ".join(study_data.manifest_values["factors"]) or "(none)"
    sentences = [
        (
            f"The study has {pluralize(len(study_data.conditions), 'condition')} over the factors {factors}; all conditions have"
            " the same seeds. A seed determines the initial weights, the partition, the cohorts and the order of batches, so conditions"
            " of one seed differ only in their factors. The following paragraphs describe the first condition."
        ),
        (
            f"The model {config['model']} is fine-tuned with {describe_component(config['trainable'])} on the corpus"
            f" {dataset['name']}{limit}. The partition is {describe_component(partition)}. In each of {training['num_rounds']} rounds,"
            f" {cohort} of {clients} clients train for {local_training} with batches of {training['batch_size']} sequences of"
            f" {training['max_seq_length']} tokens. The client optimizer is {describe_component(training['client_optimizer'])}, the maximum"
            f" gradient norm is {training['max_grad_norm'] or 'unlimited'}, and the client weighting is {training['client_weighting']}."
        ),
        f"The models are evaluated every {interval} on {evaluation['blocks_per_domain']} held-out blocks per domain of the"
        f" {evaluation['split']} split"
        + (
            f", and on {evaluation['final_blocks_per_domain']} blocks per domain after the last round."
            if evaluation.get("final_blocks_per_domain")
            else "."
        )
        + (
            f" At most {pluralize(per_document, 'block length')} of a document {'is' if per_document == 1 else 'are'} read."
            if (per_document := evaluation.get("max_blocks_per_document"))
            else " Blocks are cut from documents one after another, so that a few blocks may come from one long document."
        )
        + " The held-out text is the same for all seeds: intervals do not cover its choice.",
        (
            "Each run is compared with its IID baseline, which is the same experiment with the same documents, assigned to clients at"
            " random. An effect that the IID baseline shows too is not caused by heterogeneity."
        ),
        (
            "The unit of replication is the seed. Intervals are 95 % paired t-intervals over seeds. The p-values are from exact"
            " sign-flip tests (Page's L for trends over three or more levels, exact tests for rates), with Holm correction"
            " within a family. No p-value is given if the number of seeds is too small for a significant one. Diverged runs are"
            " included and get the worst rank. A seed in which both runs of a comparison diverged is left out of it and counted."
            " The minimum detectable effect is the one that is significant with 80 % probability."
        ),
    ]
    for stage, design in study_data.manifest_values["designs"].items():
        if design["aliases"]:
            aliases = "; ".join(
                f"{alias['factor']} is confounded with {100 * alias['share']:.0f} % of {' x '.join(alias['pair'])}"
                for alias in design["aliases"]
            )
            sentences.append(f"Stage {stage} is a fraction of the full grid, so main effects are confounded with interactions: {aliases}.")
    return Section("methods", "Methods", tuple(sentences))


def describe_component(settings: dict[str, Any]) -> str:
    """Describe a component with its settings, such as ``Lora (r 8, alpha 16)``."""
    rest = ", ".join(
        (f"{key} {value:g}" if isinstance(value, float) else f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
        for key, value in settings.items()
        if key != "type" and value not in (0.0, None, [], "") and not isinstance(value, dict)
    )
    return f"{settings['type']} ({rest})" if rest else str(settings["type"])


def provenance_section(study_data: StudyData) -> Section:
    """List the versions, the machines and all runs behind the report."""
    entries = pluralize(len(study_data.manifest_values["runs"]), "entry", "entries")
    text = [
        f"This report was made by fedrift {__version__} from {entries} of the study's manifest."
        f" `fedrift export {study_data.manifest.name}` writes a single file from which another machine can reproduce this report."
        " `fedrift study` with the study file runs the missing runs."
    ]
    failures = [(entry.run, study_data.manifest.get_failure(entry.run)) for entry in study_data.manifest_values["runs"]]
    failed = {run: message for run, message in failures if message}
    if failed:
        text.append(
            f"{pluralize(len(failed), 'run')} failed: "
            + "; ".join(f"{run[:6]}: {message.splitlines()[0]}" for run, message in failed.items())
            + "."
        )
    return Section("provenance", "Provenance", tuple(text), (machines_table(study_data), runs_table(study_data)))


def machines_table(study_data: StudyData) -> Table:
    """Return the table of the versions and machines of all runs."""
    counts: dict[tuple[tuple[str, str], ...], int] = {}
    for environment in study_data.environments.values():
        counts[tuple(flatten_environment(environment).items())] = counts.get(tuple(flatten_environment(environment).items()), 0) + 1
    names = list(dict.fromkeys(name for environment in counts for name, _ in environment))
    rows = tuple((name, *(dict(environment).get(name, DASH) for environment in counts)) for name in names)
    return Table(
        "machines",
        "Versions and machines." + (" There is one column per kind of machine." if len(counts) > 1 else ""),
        ("", *(pluralize(count, "run") for count in counts.values())),
        rows,
    )


def flatten_environment(environment: dict[str, Any]) -> dict[str, str]:
    """Return an environment as a flat mapping of names to text."""
    rest = {name: value for name, value in environment.items() if name not in ("packages", "engine", "processor")}
    return {name: str(value) for name, value in {**rest, **environment.get("packages", {})}.items()} | {
        f"{part}: {name}": str(value)
        for part in ("processor", "engine")
        for name, value in environment.get(part, {}).items()
        if value != {}
    }


def runs_table(study_data: StudyData) -> Table:
    """Return the table of all runs of the study."""
    indices = {run: condition.index for condition in study_data.conditions for run in condition.runs.values()}
    frame = study_data.frame
    loss, gap = (dict(zip(frame["run"], frame[name], strict=True)) if name in frame else {} for name in ("loss", "gap"))
    has_diverged = {row["run"]: row["diverged"] for row in study_data.frame[["run", "diverged"]].to_dict("records")}
    status = {row["run"]: row["status"] for row in study_data.frame[["run", "status"]].to_dict("records")}
    rows = {}
    for entry in study_data.manifest_values["runs"]:
        run_status = status.get(entry.run) or study_data.manifest.get_status(entry.run)
        outcome = "diverged" if has_diverged.get(entry.run) else run_status
        name = f"{entry.stage}: {entry.condition}" if len(study_data.stages) > 1 or entry.role == "trial" else entry.condition
        settings = ", ".join(f"{path} {value}" for path, value in (entry.settings or {}).items())
        final_loss = loss.get(entry.run, study_data.finished.get(entry.run, {}).get("loss"))
        rows[entry.role, entry.stage, entry.condition, entry.seed, entry.run] = (
            entry.run,
            entry.role,
            name,
            settings or DASH,
            str(entry.seed),
            outcome,
            format_number(math.nan if final_loss is None else float(final_loss)),
            format_signed(gap.get(entry.run, math.nan)),
        )
    return Table(
        "runs",
        "All runs, including IID baselines and tuning trials.",
        ("id", "role", "condition", "tuned", "seed", "status", "final loss", "gap"),
        tuple(rows.values()),
        frozenset({4, 6, 7}),
        tuple(indices.get(key[4], -1) if key[0] == "run" else -1 for key in rows),
        is_long=True,
    )


Timings = dict[str, list[dict[str, float]]]


def cost_protocols_section(study_data: StudyData) -> Section | MissingSection:
    """Every condition at one budget and to one target, so that methods of different cost can be compared."""
    title = "Quality under a budget, cost to a target"
    runs = finished_runs(study_data, study_data.conditions)
    if not runs:
        return MissingSection(title, "no run has ended yet")
    entries = [entry for entry in study_data.manifest_values["runs"] if entry.run in runs]
    trajectories = load_trajectories(study_data.manifest, entries, COST_RECORDS)
    timings: Timings = {run: study_data.manifest.get_run(run).timings() for run in trajectories}
    known = [cost for cost in COSTS if any(cumulative_cost(run, cost, timings[name]) is not None for name, run in trajectories.items())]
    tables = [protocol_table(study_data, stage, trajectories, timings, known) for stage in study_data.stages]
    found = tuple(table for table in tables if table)
    if not found:
        return MissingSection(title, "add `cost` to `evaluation.probes`, and evaluate the loss")
    text = (
        "Protocols of EdgeFlowerTune (arXiv:2605.08636). The budget of a stage is the least that one of its runs spent in all, so that "
        "every run has a loss within it. The target is the highest mean final loss of the stage's conditions, so that most runs reach "
        "it. Seconds are those of training as measured, on the machine that simulated the clients."
    )
    return Section("cost-protocols", title, (text,), found)


def finished_runs(study_data: StudyData, conditions: Iterable[Condition]) -> set[str]:
    return {run for condition in conditions for run in condition.runs.values() if run in study_data.finished}


def protocol_table(
    study_data: StudyData, stage: StageView, trajectories: dict[str, Trajectory], timings: Timings, costs: list[Cost]
) -> Table | None:
    """One row per condition: its loss within the budget and its cost to the target, for each cost; None where nothing is known."""
    runs = [run for run in sorted(finished_runs(study_data, stage.conditions)) if run in trajectories]
    budgets = {cost: smallest_total(cost, [(trajectories[run], timings[run]) for run in runs]) for cost in costs}
    budgets = {cost: value for cost, value in budgets.items() if value > 0}
    target = highest_mean_loss(study_data, stage)
    if not budgets or not math.isfinite(target):
        return None
    rows = []
    for condition in stage.conditions:
        own = [run for run in condition.runs.values() if run in trajectories]
        cells = []
        for cost, budget in budgets.items():
            for metric in (CostMetric(cost, budget, True), CostMetric(cost, target, False)):
                values = [summarize_cost(metric, trajectories[run], timings[run]) for run in own]
                cells.append(format_outcome(metric, values))
        rows.append((condition_name(stage, condition), *cells, f"{len(own)}/{len(condition.runs)}"))
    titles = [
        title for cost, budget in budgets.items() for title in (f"loss within {format_cost(cost, budget)}", f"{cost} to {target:.3f}")
    ]
    return Table(
        f"cost-protocols-{stage.name}",
        "Loss within the budget (nats per token, mean over seeds; a dash if a seed has none) and cost to the target loss (median over "
        "seeds that reach it; in brackets how many did).",
        ("condition", *titles, "runs"),
        tuple(rows),
        frozenset(range(1, len(titles) + 2)),
        tuple(condition.index for condition in stage.conditions),
        is_long=len(rows) > 30,
    )


def smallest_total(cost: Cost, runs: Iterable[tuple[Trajectory, list[dict[str, float]]]]) -> float:
    """The least that a run spent in all; NaN if no run recorded it."""
    spent = [curve[-1] for run, timings in runs if (curve := cumulative_cost(run, cost, timings)) is not None and len(curve)]
    return float(min(spent)) if spent else math.nan


def highest_mean_loss(study_data: StudyData, stage: StageView) -> float:
    """The highest mean final loss of the stage's conditions; NaN if there is none."""
    losses = study_data.outcome_by_run("loss")
    means = [np.mean(own) for arm in stage.conditions if (own := [losses[run] for run in arm.runs.values() if run in losses])]
    return float(max((mean for mean in means if math.isfinite(mean)), default=math.nan))


def format_outcome(metric: CostMetric, values: list[float]) -> str:
    """The mean loss, or the median cost and how many seeds reached the target."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return DASH
    if metric.is_budget:  # a mean over the seeds that have a loss would be over other seeds than that of the next condition
        return format_number(float(np.mean(values))) if len(known) == len(values) else DASH
    reached = [value for value in known if math.isfinite(value)]
    return (
        f"{format_cost(metric.cost, float(np.median(reached)))} ({len(reached)}/{len(known)})"
        if reached
        else f"not reached (0/{len(known)})"
    )


def format_cost(cost: Cost, value: float) -> str:
    """A cost with its unit."""
    return {"bytes": format_bytes(value), "tokens": f"{value:,.0f} tokens", "seconds": f"{format_number(value, 1)} s"}[cost]
