"""The outcomes of runs, the table of a study, and the verdicts on its hypotheses.

The definitions are fixed before a study is run: an outcome is the mean of the last five evaluations, never the best round. Round 0 precedes
all training, so it belongs neither to these evaluations nor to the other summaries.

- ``loss``, or any recorded metric: the mean of its last five evaluations. ``metric@domain`` is the metric of one domain, layer or
  phenomenon. A metric that is recorded only for clients is first averaged over the participating clients. The suffixes ``:mean``,
  ``:max``, ``:min`` and ``:last`` summarize all trained rounds instead.
- ``start``: the loss of the untrained model, in round 0. ``gain``: the decrease from there to the final loss. ``baseline.gain``: the gain
  of the IID baseline. A gain is minus infinity if the final loss is not finite.
- ``gap``: ``loss`` minus that of the IID baseline, over the evaluations that both have. ``gap.worst``: the largest gap of a domain.
- ``gap.relative``: G = (final loss - baseline's final loss) / (start - baseline's final loss), the lost share of the baseline's gain.
- ``loss.clients``: the mean over all clients of the loss on each client's own held-out text, under the model that it uses.
- ``absence``: how much higher a client's own loss is, relative to the mean of all clients, after rounds without it than after rounds with
  it; NaN if every client always takes part. ``baseline.absence``: the same for the IID baseline.
- ``oscillation``: the oscillation index, which is the sum of all increases of the loss after the first 30 % of the run, divided by the
  total descent.
- ``movement``: the mean absolute change of a domain's loss between evaluations in the second half of the run. A fast steady decrease also
  counts. Reports and detectors use another quantity, which subtracts the net change (``fedrift.diagnosis.finding.domain_variability``).
- ``loss.under:bytes=2e6``, ``loss.under:tokens=50000``, ``loss.under:seconds=30``: the loss at the last evaluation before the run has
  spent more than that; never the best one. Round 0 has cost nothing.
- ``bytes.to:4.2``, ``tokens.to:4.2``, ``seconds.to:4.2``: what the run had spent at its first evaluation with a loss not above 4.2;
  infinite if there is none.
- ``rounds.to:4.2``: the first evaluated round with a loss of at most 4.2, or infinity if there is none.

The metrics of costs are the two protocols of EdgeFlowerTune (Geng et al., arXiv:2605.08636). Bytes are those to and from all clients of the
rounds, tokens those that all clients trained on, and seconds those of the training phase as they were measured. The seconds of a simulation
are those of the machine that simulated.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..core.errors import UserError, quote_value, unknown_name_error
from ..core.lazy_imports import pd
from ..core.records import RecordColumns, Trajectory, final_round_indices
from ..core.registry import KINDS, extensions
from ..diagnosis.failures import DIVERGENCE_METRICS, find_training_divergence
from ..diagnosis.finding import THRESHOLDS
from ..stats import HypothesisVerdict
from ..stats.hypotheses import Hypothesis
from ..stats.selection import needs_baseline
from ..stats.verdicts import evaluate_gated
from ..storage import connect
from ..storage.query import get_read_errors
from .manifest import ManifestEntry, StudyManifest, merge_shared_baselines
from .spec import Study, build_base_config, expand_stages, parse_factors, parse_study

Cost = Literal["bytes", "tokens", "seconds"]
COSTS: tuple[Cost, ...] = get_args(Cost)
# What a trajectory must hold for them.
COST_RECORDS = ("loss", "weight", "cost.down", "cost.up", "wire.down", "wire.up", "train.tokens")
BUDGET_PREFIX = "loss.under:"


@dataclass(frozen=True)
class CostMetric:
    """A study metric about costs: the loss under a cost budget of ``value``, or the cost to a loss of ``value``."""

    cost: Cost
    value: float
    is_budget: bool


def parse_cost_metric(name: str) -> CostMetric | None:
    """Read the name of a study metric; None if it is not about costs.

    Raises:
        UserError: The cost or the number in it is not allowed.
    """
    if name.startswith(BUDGET_PREFIX):
        cost, _, text = name.removeprefix(BUDGET_PREFIX).partition("=")
        if cost not in COSTS:
            raise UserError(
                f"metrics: {quote_value(name)} has the cost {quote_value(cost)}; write loss.under:bytes=2e6, tokens= or seconds="
            )
        return CostMetric(cost, parse_positive(name, text), True)
    cost, mark, text = name.partition(".to:")
    if mark and cost in COSTS:
        return CostMetric(cost, parse_positive(name, text), False)
    return None


def parse_positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise UserError(f"metrics: {quote_value(name)} needs a number above 0, for example loss.under:bytes=2e6 or bytes.to:4.2")
    return value


def summarize_cost(metric: CostMetric, run: Trajectory, timings: Sequence[Mapping[str, Any]] = ()) -> float:
    """One metric about costs.

    Args:
        metric: What is asked.
        run: The run's records, ``COST_RECORDS`` among them.
        timings: The run's timings, which seconds are read from.

    Returns:
        The loss in nats per token, or the cost in bytes, tokens or seconds; NaN where the run did not record the cost or a loss.
    """
    spent = cumulative_cost(run, metric.cost, timings)
    if spent is None or not run.has_curve("loss"):
        return math.nan
    observed = run.observed_mask("loss")
    loss, spent = run.curve("loss")[observed], spent[observed]
    if metric.is_budget:
        within = np.flatnonzero(spent <= metric.value)
        return float(loss[within[-1]]) if len(within) else math.nan
    reached = np.flatnonzero(loss <= metric.value)
    return float(spent[reached[0]]) if len(reached) else math.inf


def cumulative_cost(run: Trajectory, cost: Cost, timings: Sequence[Mapping[str, Any]] = ()) -> np.ndarray | None:
    """What the run had spent after each of its rounds, ``[rounds]``; None if that was not recorded."""
    per_round = {"bytes": bytes_per_round, "tokens": tokens_per_round}.get(cost)
    values = seconds_per_round(run, timings) if per_round is None else per_round(run)
    return None if values is None else np.cumsum(np.nan_to_num(values))


def bytes_per_round(run: Trajectory) -> np.ndarray | None:
    """Bytes to and from all clients of each round: as they traveled, or the sizes of the tensors times the clients that took part."""
    if run.has_client_table("wire.down") and run.has_client_table("wire.up"):
        return np.nansum(run.client_table("wire.down"), axis=1) + np.nansum(run.client_table("wire.up"), axis=1)
    if not (run.has_curve("cost.down") and run.has_curve("cost.up") and run.has_client_table("weight")):
        return None
    cohort = (~np.isnan(run.client_table("weight"))).sum(axis=1)
    return (run.curve("cost.down") + run.curve("cost.up")) * cohort


def tokens_per_round(run: Trajectory) -> np.ndarray | None:
    """Tokens that all clients trained on in each round."""
    return np.nansum(run.client_table("train.tokens"), axis=1) if run.has_client_table("train.tokens") else None


def seconds_per_round(run: Trajectory, timings: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Seconds of the training phase of each round."""
    if not any("train" in row for row in timings):
        return None
    total: dict[int, float] = {}
    for row in timings:
        total[int(row["round"])] = total.get(int(row["round"]), 0.0) + float(row.get("train", 0.0))
    return np.array([total.get(int(number), 0.0) for number in run.rounds])


FINAL_EVALUATIONS = 5  # evaluations that an outcome averages
BURN_IN = 0.3  # share of a run that the oscillation index ignores
MOMENTS: dict[str, Callable[[np.ndarray], float]] = {
    "mean": np.nanmean,
    "max": np.nanmax,
    "min": np.nanmin,
    "last": lambda values: values[-1],
}
RECORDED_AS_LOSS = ("start", "gain", "baseline.gain", "gap.relative", "loss.clients", "absence", "baseline.absence")
LOSS_METRICS = ("gap", "gap.worst", "oscillation", "movement", *RECORDED_AS_LOSS)
PARTICIPATION_METRIC = "train.loss"  # only clients that took part in a round have it


def list_recorded_metrics(metrics: Iterable[str]) -> list[str]:
    """List the recorded metrics that some outcomes need, including those that show whether a run diverged."""
    metrics = tuple(metrics)
    cost_metrics = [name for name in metrics if parse_cost_metric(name)]
    return sorted(
        {
            *DIVERGENCE_METRICS,
            *(COST_RECORDS if cost_metrics else ()),
            *([PARTICIPATION_METRIC] if {"absence", "baseline.absence"} & set(metrics) else []),
            *(
                parse_metric_name(name)[0]
                for name in metrics
                if name not in cost_metrics and name not in LOSS_METRICS and not name.startswith("rounds.to:")
            ),
        }
    )


def parse_metric_name(name: str) -> tuple[str, str, str]:
    """Split ``metric@domain:moment`` into its three parts; missing parts are ""."""
    path, _, moment = name.partition(":")
    metric, _, domain = path.partition("@")
    if moment and moment not in MOMENTS:
        raise UserError(
            f"metrics: {name!r} has the unknown suffix {moment!r}; use {', '.join(MOMENTS)}, or no suffix for the mean of the last "
            "five evaluations"
        )
    return metric, domain, moment


def summarize_metric(
    name: str, run: Trajectory, iid_baseline: Trajectory | None = None, timings: Sequence[Mapping[str, Any]] = ()
) -> float:
    """Compute one outcome of a run.

    Args:
        name: The name of the outcome, as the module docstring defines it.
        run: The trajectory of the run.
        iid_baseline: The trajectory of its IID baseline, which ``gap`` and ``gap.worst`` need.
        timings: The stored timings of the run, which costs in seconds need.

    Returns:
        The outcome, or NaN if the run does not have it.

    Raises:
        UserError: ``name`` has an unknown suffix or an invalid threshold.
    """
    if cost_metric := parse_cost_metric(name):
        return summarize_cost(cost_metric, run, timings)
    if name == "gap":
        return compute_gap(run, iid_baseline)
    if name == "gap.worst":
        gaps = [compute_gap(run, iid_baseline, domain) for domain in (run.domains_of("loss") if "loss" in run.metrics else ())]
        return max((value for value in gaps if not math.isnan(value)), default=math.nan)
    if name in RELATIVE_OUTCOMES:
        return RELATIVE_OUTCOMES[name](run, iid_baseline)
    if name == "oscillation":
        return compute_oscillation_index(get_loss_series(run)[1])
    if name == "movement":
        return compute_movement(run)
    if name.startswith("rounds.to:"):
        return find_round_below(run, parse_threshold(name))
    metric, domain, moment = parse_metric_name(name)
    rounds, values = get_series(run, metric, domain)
    if not len(values):
        return math.nan
    if moment:
        trained = values[final_round_indices(rounds, len(rounds))]
        return float(MOMENTS[moment](trained)) if not np.isnan(trained).all() else math.nan
    return float(values[final_round_indices(rounds, FINAL_EVALUATIONS)].mean())


def get_series(run: Trajectory, metric: str, domain: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return the rounds in which a metric was recorded, and its values; client metrics are averaged over the participating clients."""
    if run.has_curve(metric, domain):
        mask = run.observed_mask(metric, domain)
        return run.rounds[mask], run.curve(metric, domain)[mask]
    if domain or not run.has_client_table(metric):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    table = run.client_table(metric)
    observed: np.ndarray = ~np.isnan(table).all(axis=1)
    return run.rounds[observed], np.nanmean(table[observed], axis=1) if observed.any() else np.zeros(0)


def get_loss_series(run: Trajectory, domain: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Return the evaluated rounds and their losses, including recorded NaN."""
    if not run.has_curve("loss", domain):
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    observed = run.observed_mask("loss", domain)
    return run.rounds[observed], run.curve("loss", domain)[observed]


def compute_gap(run: Trajectory, iid_baseline: Trajectory | None, domain: str = "") -> float:
    """Return the final loss minus that of the IID baseline, over the last evaluations that both have, in nats per token."""
    if iid_baseline is None:
        return math.nan
    (rounds, loss), (baseline_rounds, baseline_loss) = get_loss_series(run, domain), get_loss_series(iid_baseline, domain)
    shared = np.intersect1d(rounds, baseline_rounds)
    shared = shared[final_round_indices(shared, FINAL_EVALUATIONS)]
    if not len(shared):
        return math.nan
    return float(loss[np.searchsorted(rounds, shared)].mean() - baseline_loss[np.searchsorted(baseline_rounds, shared)].mean())


def compute_start(run: Trajectory | None) -> float:
    """The loss before any training; NaN where round 0 was not evaluated."""
    rounds, loss = get_loss_series(run) if run is not None else (np.zeros(0, dtype=np.int64), np.zeros(0))
    return float(loss[0]) if len(rounds) and rounds[0] == 0 else math.nan


def compute_gain(run: Trajectory | None) -> float:
    """What a run won from its start to the mean of its last five losses; minus infinity where its end is no number."""
    start = compute_start(run)
    if run is None or math.isnan(start):
        return math.nan
    end = summarize_metric("loss", run)
    return start - end if math.isfinite(end) else -math.inf


def compute_relative_gap(run: Trajectory, iid_baseline: Trajectory | None) -> float:
    """G = (end - baseline end) / (start - baseline end); NaN where the baseline won nothing."""
    won = compute_gain(iid_baseline)
    return compute_gap(run, iid_baseline) / won if won > 0 else math.nan


def compute_client_loss(run: Trajectory) -> float:
    """The mean over clients, and over the last five evaluations, of each client's loss on its own held-out text."""
    if "loss" not in run.metrics or not run.has_client_table("loss"):
        return math.nan
    table = run.client_table("loss")
    seen: np.ndarray = ~np.isnan(table).all(axis=1)
    means = table[seen].mean(axis=1)
    return float(means[final_round_indices(run.rounds[seen], FINAL_EVALUATIONS)].mean()) if len(means) else math.nan


def compute_absence(run: Trajectory) -> float:
    """How much higher a client's own loss lies when it sat out of the last rounds, in nats.

    Each client's loss is taken beside the mean of all clients in the same round, and beside its own mean over the rounds after the
    burn-in; the outcome is the mean where the client did not take part in the last round less the mean where it did.
    """
    if not {"loss", PARTICIPATION_METRIC} <= set(run.metrics) or not run.has_client_table("loss"):
        return math.nan
    loss, took_part = run.client_table("loss"), ~np.isnan(run.client_table(PARTICIPATION_METRIC))
    width = min(loss.shape[1], took_part.shape[1])
    seen = ~np.isnan(loss).any(axis=1) & (run.rounds > BURN_IN * run.rounds.max())
    loss, took_part = loss[seen][:, :width], took_part[seen][:, :width]
    if not took_part.any() or took_part.all():
        return math.nan
    beside = loss - loss.mean(axis=1, keepdims=True)
    beside = beside - beside.mean(axis=0, keepdims=True)
    return float(beside[~took_part].mean() - beside[took_part].mean())


RELATIVE_OUTCOMES: dict[str, Callable[[Trajectory, Trajectory | None], float]] = {
    "start": lambda run, baseline: compute_start(run),
    "gain": lambda run, baseline: compute_gain(run),
    "baseline.gain": lambda run, baseline: compute_gain(baseline),
    "gap.relative": compute_relative_gap,
    "loss.clients": lambda run, baseline: compute_client_loss(run),
    "absence": lambda run, baseline: compute_absence(run),
    "baseline.absence": lambda run, baseline: compute_absence(baseline) if baseline is not None else math.nan,
}


def compute_oscillation_index(loss: np.ndarray) -> float:
    """Return the oscillation index of a loss curve [evaluations], or NaN if the loss never decreased."""
    if len(loss) < 3 or not np.isfinite(loss).all() or loss[0] <= loss.min():
        return math.nan
    late = loss[int(BURN_IN * len(loss)) :]
    return float(np.maximum(np.diff(late), 0).sum() / (loss[0] - loss.min()))


def compute_movement(run: Trajectory) -> float:
    """Return the mean absolute change of a domain's loss between evaluations, in the second half of a run."""
    rounds, _ = get_loss_series(run)
    late = np.isin(run.rounds, rounds[len(rounds) // 2 :])
    changes = [np.abs(np.diff(run.curve("loss", domain)[late])) for domain in (run.domains_of("loss") if len(rounds) else ())]
    all_changes = np.concatenate(changes) if changes else np.zeros(0)
    all_changes = all_changes[np.isfinite(all_changes)]
    return float(all_changes.mean()) if len(all_changes) else math.nan


def find_round_below(run: Trajectory, threshold: float) -> float:
    """Return the first evaluated round with a loss of at most ``threshold``, or infinity if there is none."""
    rounds, loss = get_loss_series(run)
    rounds_below = rounds[loss <= threshold]
    return float(rounds_below[0]) if len(rounds_below) else math.inf if len(rounds) else math.nan


def parse_threshold(name: str) -> float:
    """Parse the loss in ``rounds.to:4.2``."""
    try:
        return float(name.removeprefix("rounds.to:"))
    except ValueError:
        raise UserError(f"metrics: {name!r} needs a loss after the colon, e.g. rounds.to:4.2") from None


def has_diverged(run: Trajectory) -> bool:
    """Return whether a run diverged or its model died, by the rules and thresholds of the detectors.

    A run that ends with a loss above its initial loss has not diverged for that reason alone; the table contains its final loss.
    """
    return bool(find_training_divergence(run, THRESHOLDS)[0])


# The table of a study: one row per run, with its factors and outcomes.

METADATA_COLUMNS = ("run", "study", "role", "stage", "condition", "seed", "iid", "iid_baseline", "status", "failure", "diverged")


def build_study_table(manifest: StudyManifest, metrics: Sequence[str] = (), roles: Sequence[str] = ("run", "iid_baseline")) -> pd.DataFrame:
    """Build the table of a study, with one row per run.

    The columns are ``run, study, role, stage, condition, seed, iid, iid_baseline, status, failure, diverged``, one column per factor, and
    one column per metric. Unfinished runs have NaN outcomes. A failed run counts as diverged only if its loss diverged. A run whose files
    cannot be read counts as failed. An IID baseline that serves several conditions is one row: it has the levels that these conditions
    share, and severity 0.

    Args:
        manifest: The manifest of the study.
        metrics: The outcomes; the default is those of the study.
        roles: The roles of the runs to include: "run", "iid_baseline" or "trial".
    """
    content = manifest.read()
    names = list(metrics or content["study"]["metrics"])
    entries = [entry for entry in merge_shared_baselines(content["runs"]) if entry.role in roles]
    trajectories = load_trajectories(manifest, entries, list_recorded_metrics(names))
    faults = get_read_errors(stored for entry in entries if ((stored := manifest.get_run(entry)).folder / "experiment.json").exists())
    baselines = {entry.run: entry.iid_baseline for entry in entries if entry.iid_baseline}
    rows = []
    for entry in entries:
        baseline_id = baselines.get(entry.run, "")  # also in a stage without IID baselines, if another stage has the same run with one
        fault = f"it cannot be read: {faults[entry.run]}" if entry.run in faults else ""
        status, run = "failed" if fault else manifest.get_status(entry.run), trajectories.get(entry.run)
        has_ended, baseline = status in ("finished", "failed"), trajectories.get(baseline_id)
        row = {
            "run": entry.run,
            "study": manifest.name,
            "role": entry.role,
            "stage": entry.stage,
            "condition": entry.condition,
            "seed": entry.seed,
            "iid": entry.iid,
            "iid_baseline": baseline_id,
            "status": status,
            "failure": fault or manifest.get_failure(entry.run),
            "diverged": bool(has_ended and run and has_diverged(run)),
        }
        row |= {factor: entry.factors.get(factor) for factor in content["factors"]}
        needs_timings = status == "finished" and any("seconds" in name for name in names)
        timings = manifest.get_run(entry).timings() if needs_timings else ()
        row |= {name: summarize_metric(name, run, baseline, timings) if status == "finished" and run else math.nan for name in names}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=[*METADATA_COLUMNS, *content["factors"], *names])
    return frame.astype({"iid": bool, "diverged": bool, **{name: "float64" for name in names}})


def load_trajectories(manifest: StudyManifest, entries: Iterable[ManifestEntry], metrics: Sequence[str]) -> dict[str, Trajectory]:
    """Load the given metrics of some runs in one query.

    Args:
        manifest: The manifest of the study.
        entries: The runs. Those without stored files are skipped.
        metrics: The recorded metrics to load.

    Returns:
        Run id -> trajectory. Runs without any of these metrics are missing.
    """
    runs = {entry.run: manifest.get_run(entry) for entry in entries}
    stored = [run for run in runs.values() if (run.folder / "experiment.json").exists()]
    with connect(Path(manifest.root), stored) as connection:
        placeholders = ", ".join("?" * len(metrics))
        frame = connection.execute(
            f"SELECT run, round, metric, domain, client, value FROM records WHERE metric IN ({placeholders}) ORDER BY run, round",
            list(metrics),
        ).df()
    codes = {column: pd.factorize(frame[column].astype("object")) for column in ("metric", "domain")}
    ends: list[int] = (np.flatnonzero(np.diff(pd.factorize(frame["run"].astype("object"))[0], append=-1)) + 1).tolist()
    trajectories = {}
    for start, end in zip([0, *ends], ends, strict=False):
        rows = slice(start, end)
        columns = [frame[column].to_numpy()[rows] for column in ("round", "client", "value")]
        trajectories[str(frame["run"].iloc[start])] = Trajectory(
            RecordColumns(
                columns[0],
                codes["metric"][0][rows],
                codes["domain"][0][rows],
                columns[1],
                columns[2],
                tuple(map(str, codes["metric"][1])),
                tuple(map(str, codes["domain"][1])),
            )
        )
    return trajectories


def evaluate_study_hypotheses(manifest: StudyManifest) -> tuple[pd.DataFrame, tuple[HypothesisVerdict, ...]]:
    """Return the table of a study and the verdict on each of its hypotheses; outcomes that only hypotheses use are columns too."""
    content = manifest.read()
    study = parse_study(content["study"], is_stored=True)
    hypothesis_metrics = [metric for hypothesis in study.hypotheses for metric in list_hypothesis_metrics(hypothesis)]
    gate_metrics = [study.gate.metric] if study.gate else []
    frame = build_study_table(manifest, tuple(dict.fromkeys([*study.metrics, *hypothesis_metrics, *gate_metrics])))
    return frame, evaluate_gated(study.hypotheses, frame, content["factors"], study.gate) if study.hypotheses else ()


def list_hypothesis_metrics(hypothesis: Hypothesis) -> list[str]:
    """List the outcomes of a hypothesis and its parts, except the columns that every table has."""
    parts = [metric for part in getattr(hypothesis, "parts", ()) for metric in list_hypothesis_metrics(part)]
    return [metric for metric in (hypothesis.metric, getattr(hypothesis, "match", ""), *parts) if metric and metric not in METADATA_COLUMNS]


# Metrics that no run can have are refused before the study is run. A misspelled one would otherwise be noticed after all runs.

# First word of a recorded metric -> the group of probes that records it; "" stands for every run. A probe, an algorithm or a clustering
# strategy of the user's own may record others.
RECORDED_BY = {
    **dict.fromkeys(("train", "weight", "failed", "wire", "loss", "perplexity", "final", "update", "model", "gradient", "cluster"), ""),
    **dict.fromkeys(("adapters", "server", "control"), ""),
    **{"bits": "language", "forgetting": "language", "fair": "fairness", "cost": "cost", "product": "updates", "hidden": "hidden"},
    **{"attention": "attention", "barrier": "barriers", "general": "general", "syntax": "syntax", "text": "text"},
    "classification": "classification",
}
IMPORT_PATH = re.compile(r"""['"][\w./\\-]+:\w+['"]""")


def check_metrics(study: Study) -> None:
    """Refuse the metrics of a study that none of its runs can have.

    Raises:
        UserError: A metric has an invalid form, needs IID baselines that no stage has, or a group of probes that no run has; or the trials
            of the tuning stage cannot have ``tuning.metric``.
    """
    for name in study.metrics:
        split_metric(name, "metrics")
    probes = None if has_own_parts(study) else list_probes(study)
    has_baselines = any(stage.iid_baselines for stage in expand_stages(study))
    for index, hypothesis in enumerate(study.hypotheses):
        for part in (hypothesis, *getattr(hypothesis, "parts", ())):
            for name in list_hypothesis_metrics(part):
                place = f"hypotheses[{index}].metric"
                check_recorded(name, place, probes)
                if not has_baselines and needs_baseline(name, part.contrast):
                    raise UserError(f"{place}: {quote_value(name)} is relative to the IID baseline, but no stage has iid_baselines: true")
    if study.gate:
        check_recorded(study.gate.metric, "gate.metric", probes)
    if study.tuning.trials:
        name, cost_metric = study.tuning.metric, parse_cost_metric(study.tuning.metric)
        if needs_baseline(name) or name in METADATA_COLUMNS or (cost_metric and cost_metric.cost == "seconds"):
            raise UserError(
                f"tuning.metric: a trial does not have {quote_value(name)}, since it has no IID baseline and its seconds are not "
                "repeatable; use loss or another outcome of the run itself"
            )
        own = study.tuning.overrides.get("evaluation.probes")
        check_recorded(name, "tuning.metric", probes if own is None or probes is None else set(own))


def split_metric(name: str, place: str) -> str:
    """Return the recorded metric that an outcome needs, or "" if the outcome is computed from the losses or the costs.

    Args:
        name: The outcome.
        place: Where the study names it, for the message of an error.

    Raises:
        UserError: The name has an invalid form.
    """
    if name in METADATA_COLUMNS or parse_cost_metric(name):
        return ""
    if name.startswith("rounds.to:"):
        parse_threshold(name)
        return ""
    metric, domain, moment = parse_metric_name(name)
    if metric in LOSS_METRICS and (domain or moment):
        raise UserError(f"{place}: {quote_value(name)} does not exist, because {metric} is one number per run; write {metric}")
    return "" if metric in LOSS_METRICS else metric


def check_recorded(name: str, place: str, probes: set[str] | None) -> None:
    """Raise UserError if no run records a metric; ``probes`` are the groups of the runs, or None if they may record any metric."""
    metric = split_metric(name, place)
    if not metric or probes is None:
        return
    word = metric.split(".")[0]
    if word not in RECORDED_BY:
        raise unknown_name_error(f"metric ({place})", name, [*LOSS_METRICS, *RECORDED_BY])
    if RECORDED_BY[word] not in ("", *probes):
        raise UserError(f"{place}: no run records {quote_value(name)}; add {RECORDED_BY[word]} to evaluation.probes, or use another metric")


def list_probes(study: Study) -> set[str]:
    """Return the groups of probes that any run of the study has."""
    from ..config.schema import EvaluationConfig  # imports every algorithm, which a report does not need

    found: set[str] = set()
    for stage in expand_stages(study):
        changes = [change for factor in parse_factors(stage.factors).values() for change in factor.levels.values()]
        for evaluation in [build_base_config(stage).get("evaluation"), *(change.get("evaluation") for change in changes)]:
            own = evaluation.get("probes") if isinstance(evaluation, Mapping) else None
            found.update(EvaluationConfig().probes if own is None else own)
        found.update(name for change in changes for name in change.get("evaluation.probes") or ())
    return found


def has_own_parts(study: Study) -> bool:
    """Return whether a run may have parts that are not of fedrift, which may record any metric."""
    text = repr((study.base, study.overrides, study.factors, study.stages))
    return bool(IMPORT_PATH.search(text)) or any(repr(name) in text for kind in KINDS for name in extensions(kind))
