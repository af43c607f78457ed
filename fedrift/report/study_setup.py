"""What was dealt: who holds how much of which domain, and how different clients are by that."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np

from .. import __version__
from ..partition.divergence import normalized_jsd
from . import charts, figures
from .document import Figure, LegendKey, MissingSection, Panel, Section, Table
from .format import DASH, format_bytes, format_number, format_signed, pluralize, seed_mean_ci
from .study_data import StageView, StudyData, assign_level_colors
from .study_figures import condition_name

MAX_PARTITIONS_SHOWN = 9  # deals that are drawn
MAX_PARTITION_DOMAINS = 12


def partitions_section(study_data: StudyData) -> Section | MissingSection:
    deals = distinct_partitions(study_data)
    if not deals:
        return MissingSection("What was dealt", "no run has begun, or the corpus has no domains")
    panels = tuple(Panel(f"{name}, seed {seed}", partial(partition_chart, table)) for name, seed, table in deals[:MAX_PARTITIONS_SHOWN])
    more = f" The first {MAX_PARTITIONS_SHOWN} of {len(deals)} different deals are drawn." if len(deals) > MAX_PARTITIONS_SHOWN else ""
    return Section(
        "deals",
        "What was dealt",
        (
            (
                "Both runs of a pair hold the same documents: an IID baseline is the same pool dealt by chance. Domain divergence"
                " is the Jensen-Shannon divergence of the clients' domains over its most (0: all alike, 1: nothing shared), by"
                " training tokens. It sees topics only: for words and styles `fedrift partition show` measures more."
            ),
        ),
        (
            Figure(
                "deals", "Training tokens of each client (rows) in each domain, of one seed." + more, panels, columns=min(3, len(panels))
            ),
            *(heterogeneity_table(study_data, stage) for stage in study_data.stages),
        ),
    )


def distinct_partitions(study_data: StudyData) -> list[tuple[str, int, dict[str, list[object]]]]:
    """Every different deal of the first seed that is there: what it is called, its seed, its table."""
    found: dict[str, tuple[str, int, dict[str, list[object]]]] = {}
    for arm in study_data.conditions:
        for kind, runs in (("", arm.runs), ("IID", arm.baselines)):
            seed = next((seed for seed, run in sorted(runs.items()) if run in study_data.experiments), None)
            if seed is None:
                continue
            asked = study_data.experiments[runs[seed]]
            table = asked.get("partition_table") or {}
            if not table.get("tokens") or not table.get("domains"):
                continue
            said = asked["partition"]
            name = (
                f"{said['type']} {said['severity']:g}"
                if not kind and "severity" in said
                else f"{said['type']}, {kind}"
                if kind
                else said["type"]
            )
            found.setdefault(json.dumps([table["tokens"]]), (name, seed, table))
    return list(found.values())


def partition_chart(table: dict[str, list[object]], width: figures.Width) -> figures.Chart:
    tokens = np.asarray(table["tokens"], dtype=np.float64)
    domains = np.sort(np.argsort(-tokens.sum(axis=0), kind="stable")[:MAX_PARTITION_DOMAINS])
    names = [str(table["domains"][place]) for place in domains]
    return figures.partition_heatmap(names, tokens[:, domains].tolist(), width=width)


def heterogeneity_table(study_data: StudyData, stage: StageView) -> Table:
    rows, arms = [], []
    for arm in stage.conditions:
        mine: list[float] = []
        theirs: list[float] = []
        held: list[float] = []
        clients = 0
        for runs, into in ((arm.runs, mine), (arm.baselines, theirs)):
            for run in runs.values():
                table = study_data.experiments.get(run, {}).get("partition_table") or {}
                if table.get("tokens"):
                    tokens = np.asarray(table["tokens"], dtype=np.float64)
                    into.append(normalized_jsd(tokens))
                    clients, held = len(tokens), [*held, *tokens.sum(axis=1)]
        if mine:
            rows.append(
                (
                    condition_name(stage, arm),
                    str(clients),
                    f"{min(held):,.0f} to {max(held):,.0f}",
                    format_number(seed_mean_ci(mine)[0]),
                    format_number(seed_mean_ci(theirs)[0]),
                    str(len(mine)),
                )
            )
            arms.append(arm.index)
    return Table(
        f"deals-{stage.name}",
        "How different the clients are, mean over seeds, and by chance alone (the IID baselines).",
        ("condition", "clients", "tokens of a client", "domain divergence", "of its IID baseline", "seeds"),
        tuple(rows),
        frozenset({1, 2, 3, 4, 5}),
        tuple(arms),
        is_long=len(rows) > 12,
    )


# What tuning chose, at what budget, and every trial.


def tuning_section(study_data: StudyData) -> Section | MissingSection:
    choices, tuning = study_data.manifest_values["choices"], study_data.study_config.get("tuning") or {}
    if not choices:
        return MissingSection(
            "Tuned hyperparameters",
            (
                "tuning is not over yet"
                if tuning.get("trials")
                else "nothing was tuned: every condition ran at the settings of the study's file; add `tuning:`"
            ),
        )
    chosen = tuple(
        (
            each["group"],
            format_settings(each["settings"]) or "nothing: no trial ended well",
            format_number(to_float(each["score"])),
            str(len(each["trials"])),
            ", ".join(each["at_grid_edge"]) or DASH,
        )
        for each in choices
    )
    edges = [each["group"] for each in choices if each["at_grid_edge"]]
    text = [
        f"Each gets {tuning.get('trials')} trials on {tuning.get('split', 'validation')} text and on seeds"
        f" ({', '.join(map(str, tuning.get('seeds', ())))}) that the study does not use; the lowest mean loss wins, and its"
        " settings go into all runs."
    ]
    if edges:
        text.append(f"The best value of {'; '.join(edges)} lies at the edge of what was tried: a wider grid may find better ones.")
    tried = [(each["group"], trial) for each in choices for trial in each["trials"]]
    rows = tuple(
        (
            of,
            format_settings(trial["settings"]),
            *(format_number(to_float(trial["scores"].get(seed, trial["scores"].get(str(seed))))) for seed in tuning.get("seeds", ())),
            format_number(to_float(trial["mean"])),
        )
        for of, trial in tried
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
                "What was chosen. Edge: settings whose best value is the largest or smallest that was tried.",
                ("for", "chosen", "score", "trials", "edge"),
                chosen,
                frozenset({2, 3}),
            ),
            Table(
                "trials",
                "Every trial.",
                ("for", "settings", *(f"seed {seed}" for seed in tuning.get("seeds", ())), "mean"),
                rows,
                frozenset(range(2, 3 + len(tuning.get("seeds", ())))),
                is_long=True,
            ),
        ),
    )


def trials_figure(choices: list[dict[str, Any]]) -> Figure | None:
    """Every trial's score against the learning rate."""
    path = next((path for each in choices for trial in each["trials"] for path in trial["settings"] if path.endswith("lr")), None)
    if not path:
        return None
    colours = assign_level_colors([each["group"] for each in choices])
    rows = [
        {
            "condition": -1,
            "of": each["group"],
            "x": trial["settings"][path],
            "seed": format_settings(trial["settings"]),
            "value": charts.to_plot_value(to_float(trial["mean"])),
        }
        for each in choices
        for trial in each["trials"]
        if path in trial["settings"] and math.isfinite(to_float(trial["mean"]))
    ]
    if not rows:
        return None
    best = [
        {
            "condition": -1,
            "of": each["group"],
            "x": each["settings"][path],
            "value": charts.to_plot_value(to_float(each["score"])),
            "low": None,
            "high": None,
            "seeds": len(each["trials"]),
        }
        for each in choices
        if path in each["settings"]
    ]
    keys = tuple(LegendKey(of, colour, "dot") for of, colour in colours.items())
    return Figure(
        "tuning",
        f"Every trial's validation loss against {path}; the large dot is the choice.",
        (Panel("", charts.parameter_chart(rows, best, colours, x=path, y="validation loss", zero=False)),),
        keys,
        columns=1,
    )


def format_settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{path} {setting:g}" if isinstance(setting, float) else f"{path} {setting}" for path, setting in settings.items())


def to_float(number: Any) -> float:
    """A score as JSON has it."""
    return math.nan if number is None else float(number)


# What it took: tokens, seconds, bytes.


def cost_section(study_data: StudyData) -> Section | MissingSection:
    if not study_data.finished:
        return MissingSection("Cost", "no run has ended yet")
    seconds = [sum((end.get("seconds") or {}).values()) for end in study_data.finished.values()]
    tokens = [float(end.get("train_tokens") or math.nan) for end in study_data.finished.values()]
    total = (
        f"{len(study_data.finished)} runs, IID baselines and trials among them, trained on {np.nansum(tokens):,.0f} tokens in"
        f" {np.nansum(seconds) / 3600:.2f} hours of running time, evaluation included. Seconds depend on the machine and on what"
        " else it did; tokens and bytes do not."
    )
    note = () if study_data.has_metric("cost.up") else ("Bytes are not recorded: add `cost` to `evaluation.probes`.",)
    return Section("cost", "Cost", (total, *note), tuple(cost_table(study_data, stage) for stage in study_data.stages))


def cost_table(study_data: StudyData, stage: StageView) -> Table:
    traffic = {way: study_data.metric_by_run(f"cost.{way}") for way in ("down", "up")}
    rows = []
    for arm in stage.conditions:
        ended = [(run, study_data.finished[run]) for run in arm.runs.values() if run in study_data.finished]
        if not ended:
            rows.append((condition_name(stage, arm), *[DASH] * 6, f"0/{len(arm.runs)}"))
            continue
        plan = study_data.experiments[ended[0][0]]
        cohort = max(1, round(plan["training"]["participation_rate"] * plan["partition"]["num_clients"]))
        tokens = float(np.mean([end.get("train_tokens") or math.nan for _, end in ended]))
        train = float(np.mean([(end.get("seconds") or {}).get("train", math.nan) for _, end in ended]))
        whole = float(np.mean([sum((end.get("seconds") or {}).values()) for _, end in ended]))
        down, up = (float(np.mean([traffic[way].get(run, math.nan) for run, _ in ended])) for way in ("down", "up"))
        rows.append(
            (
                condition_name(stage, arm),
                f"{tokens:,.0f}",
                format_number(train, 1),
                format_number(whole, 1),
                format_bytes(down),
                format_bytes(up),
                format_bytes((down + up) * cohort * float(np.mean([end["rounds"] for _, end in ended]))),
                f"{len(ended)}/{len(arm.runs)}",
            )
        )
    return Table(
        f"cost-{stage.name}",
        "Cost of a run, means over seeds. Bytes down and up are of one client in one round; in all: of the whole cohort over all rounds.",
        ("condition", "tokens trained", "s training", "s in all", "down", "up", "in all", "runs"),
        tuple(rows),
        frozenset(range(1, 8)),
        tuple(arm.index for arm in stage.conditions),
        is_long=len(rows) > 30,
    )


# How it was done, from the study's own file and the experiments as they were run.


def methods_section(study_data: StudyData) -> Section | MissingSection:
    asked = next(
        (study_data.experiments[run] for arm in study_data.conditions for run in arm.runs.values() if run in study_data.experiments), None
    )
    if asked is None:
        return MissingSection("Methods", "no run has begun yet")
    training, dataset, partition, evaluation = asked["training"], asked["dataset"], asked["partition"], asked["evaluation"]
    clients = partition["num_clients"]
    cohort = max(1, round(training["participation_rate"] * clients))
    work = (
        f"{training['local_epochs']:g} local epochs" if training.get("local_epochs") else pluralize(training["local_steps"], "local step")
    )
    limit = f", the first {dataset['limit']} documents" if dataset.get("limit") else ""
    often = "round" if evaluation["interval"] == 1 else pluralize(evaluation["interval"], "round")
    factors = ", ".join(study_data.manifest_values["factors"]) or "(none)"
    said = [
        (
            f"{pluralize(len(study_data.conditions), 'condition')} over the factors {factors}; each condition has"
            " the same seeds. A seed decides the start, the deal, the cohorts and the order of batches, so conditions of one seed"
            " differ in nothing but their factors. What follows is the first condition; the factors change it."
        ),
        (
            f"Model {asked['model']}, tuned with {describe_component(asked['trainable'])}, on the corpus"
            f" {dataset['name']}{limit}. {clients} clients dealt by {describe_component(partition)}; {cohort}"
            f" of them take part in each of {training['num_rounds']} rounds, with {work} of {training['batch_size']} sequences of"
            f" {training['max_seq_length']} tokens, {describe_component(training['client_optimizer'])}, gradients clipped at"
            f" {training['max_grad_norm'] or 'nothing'}, updates weighted by {training['client_weighting']}."
        ),
        f"Evaluated every {often} on {evaluation['blocks_per_domain']} held-out blocks a domain of the {evaluation['split']}"
        " split"
        + (f", and on {evaluation['final_blocks_per_domain']} after the last round." if evaluation.get("final_blocks_per_domain") else "."),
        (
            "Each run is held against its IID baseline: the same experiment and the same documents, dealt by chance. A difference"
            " that the IID baseline shows too is not caused by the skew."
        ),
        (
            "The unit of replication is the seed. Intervals are 95 % paired t-intervals over seeds; p are from exact"
            " sign-flip tests (Page's L for trends over three or more levels, exact tests for rates), corrected by Holm"
            " inside a family. A p that so many seeds cannot give is not given. Diverged runs are kept and count as the"
            " worst of ranks; seeds in which both sides of a comparison diverged have no difference, are left out of it"
            " and counted. The smallest effect is the one that the test would call with 80 % probability."
        ),
    ]
    for stage, design in study_data.manifest_values["designs"].items():
        if design["aliases"]:
            mixed = "; ".join(
                f"{alias['factor']} is read with {alias['share']:.0%} of {' x '.join(alias['pair'])}" for alias in design["aliases"]
            )
            said.append(f"Stage {stage} is a fraction of the full grid, so main effects are mixed with interactions: {mixed}.")
    return Section("methods", "Methods", tuple(said))


def describe_component(settings: dict[str, Any]) -> str:
    """A class with its settings: ``Lora (rank 8, alpha 16)``."""
    rest = ", ".join(
        (f"{key} {value:g}" if isinstance(value, float) else f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}")
        for key, value in settings.items()
        if key != "type" and value not in (0.0, None, [], "") and not isinstance(value, dict)
    )
    return f"{settings['type']} ({rest})" if rest else str(settings["type"])


# What made these numbers: versions, machines, ids, seeds, and every run with how it ended.


def provenance_section(study_data: StudyData) -> Section:
    entries = pluralize(len(study_data.manifest_values["runs"]), "entry", "entries")
    text = [
        f"Made by fedrift {__version__} from {entries} of the study's"
        f" book. `fedrift export {study_data.manifest.name}` writes the one file from which this report is the same elsewhere;"
        " `fedrift study` with the study's file runs what is missing."
    ]
    failed = [(entry.run, study_data.manifest.get_failure(entry.run)) for entry in study_data.manifest_values["runs"]]
    stopped = {run: message for run, message in failed if message}
    if stopped:
        text.append(
            f"{pluralize(len(stopped), 'run')} stopped: "
            + "; ".join(f"{run[:6]}: {message.splitlines()[0]}" for run, message in stopped.items())
            + "."
        )
    return Section("provenance", "Provenance", tuple(text), (machines_table(study_data), runs_table(study_data)))


def machines_table(study_data: StudyData) -> Table:
    found: dict[tuple[tuple[str, str], ...], int] = {}
    for place in study_data.environments.values():
        found[tuple(flatten_environment(place).items())] = found.get(tuple(flatten_environment(place).items()), 0) + 1
    names = list(dict.fromkeys(name for place in found for name, _ in place))
    rows = tuple((name, *(dict(place).get(name, DASH) for place in found)) for name in names)
    return Table(
        "machines",
        "Versions and machines." + (" A column for each kind of machine that took part." if len(found) > 1 else ""),
        ("", *(pluralize(count, "run") for count in found.values())),
        rows,
    )


def flatten_environment(environment: dict[str, Any]) -> dict[str, str]:
    rest = {name: value for name, value in environment.items() if name not in ("packages", "engine", "processor")}
    return {name: str(value) for name, value in {**rest, **environment.get("packages", {})}.items()} | {
        f"{part}: {name}": str(value)
        for part in ("processor", "engine")
        for name, value in environment.get(part, {}).items()
        if value != {}
    }


def runs_table(study_data: StudyData) -> Table:
    places = {run: arm.index for arm in study_data.conditions for run in arm.runs.values()}
    frame = study_data.frame
    loss, gap = (dict(zip(frame["run"], frame[name], strict=True)) if name in frame else {} for name in ("loss", "gap"))
    broke = {row["run"]: row["diverged"] for row in study_data.frame[["run", "diverged"]].to_dict("records")}
    status = {row["run"]: row["status"] for row in study_data.frame[["run", "status"]].to_dict("records")}
    rows = {}
    for entry in study_data.manifest_values["runs"]:
        state = status.get(entry.run) or study_data.manifest.get_status(entry.run)
        how = "diverged" if broke.get(entry.run) else state
        name = f"{entry.stage}: {entry.condition}" if len(study_data.stages) > 1 or entry.role == "trial" else entry.condition
        settings = ", ".join(f"{path} {value}" for path, value in (entry.settings or {}).items())
        end = loss.get(entry.run, study_data.finished.get(entry.run, {}).get("loss"))
        rows[entry.role, entry.stage, entry.condition, entry.seed, entry.run] = (
            entry.run,
            entry.role,
            name,
            settings or DASH,
            str(entry.seed),
            how,
            format_number(math.nan if end is None else float(end)),
            format_signed(gap.get(entry.run, math.nan)),
        )
    return Table(
        "runs",
        "Every run, its IID baselines and the trials of tuning among them.",
        ("id", "role", "condition", "tuned", "seed", "ended", "final loss", "gap"),
        tuple(rows.values()),
        frozenset({4, 6, 7}),
        tuple(places.get(key[4], -1) if key[0] == "run" else -1 for key in rows),
        is_long=True,
    )
