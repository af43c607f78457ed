"""Sections and tables of the paper of the study that rest on stored values alone: outcomes, map, main effects, failures and tuning."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedrift.diagnosis.finding import load_thresholds
from fedrift.report import study_dynamics, study_outcomes, study_results, study_setup
from fedrift.report.document import Figure, MissingSection, Section, Table, is_number
from fedrift.report.format import DASH, format_interval, format_number, format_signed, pluralize, seed_mean_ci
from fedrift.report.study_data import Condition, StudyData, build_stage, short_name
from fedrift.stats.verdicts import Gate, evaluate_gated, find_void_conditions
from fedrift.studies import parse_study
from fedrift.studies.designs import find_dependent_pair
from scripts.study_values import mean_of_finite


def finished_conditions(study_data: StudyData) -> list[int]:
    """Return the indices of the conditions all of whose runs are finished; the paper shows no others, so that no result is seen early."""
    return [
        condition.index
        for condition in study_data.conditions
        if study_data.manifest_values.get("complete", True) and study_data.finished.keys() >= set(condition.runs.values())
    ]


def void_conditions(study_data: StudyData) -> set[int]:
    """Return the indices of the conditions that do not pass the gate of their study, as the verdicts apply it."""
    gate = study_data.study_config.get("gate")
    void = find_void_conditions(study_data.frame, Gate(**gate)) if gate else {}
    return {condition.index for condition in study_data.conditions if (condition.stage, condition.name) in void}


def question_figures(key: str, studies: Mapping[str, StudyData]) -> list[Figure | Table]:
    """Return the figures of the runs themselves that belong to a question."""
    sources: dict[str, tuple[str, Callable[[StudyData], Section | MissingSection], str]] = {
        "recency": ("recency", study_dynamics.losses_section, "participation"),
        "dose": ("dose", study_results.dose_response_section, ""),
        "drift": ("drift", study_dynamics.drift_section, ""),
        "induced": ("induced", study_results.stability_section, "map"),
    }
    if key not in sources or sources[key][0] not in studies:
        return []
    study, build, stage = sources[key]
    if key == "recency":  # a panel for each regime, since the losses of the two have other scales
        return [
            replace(
                block,
                key=f"{key}-{regime}-{block.key}",
                caption=f"{REGIMES.get(regime, regime)}, by the clients in a round. {block.caption}",
            )
            for regime, data in split_stage(studies[study], stage, "regime")
            for block in getattr(build(data), "blocks", ())
        ]
    section = build(studies[study])
    if isinstance(section, MissingSection):
        return []
    found = [block for block in section.blocks if isinstance(block, Figure) and stage in block.key][:2]
    return [replace(block, key=f"{key}-{block.key}", caption=name_stage(block.caption)) for block in found]


REGIMES = {"style": "Rewritten styles", "sandbox": "Synthetic corpus"}


STAGES = {
    "main": "FedAvg",
    "others": "FedProx and SCAFFOLD",
    "topic": "Topics",
    "style": "Rewritten styles",
    "map": "The map of rate, local steps and participation",
}


def name_stage(caption: str) -> str:
    """Write the name of a stage in a caption in words."""
    return re.sub(r"^Stage ([^.]+)\.", lambda match: f"{STAGES.get(match[1], match[1])}.", caption)


def split_stage(data: StudyData, name: str, factor: str) -> list[tuple[str, StudyData]]:
    """Return the study with one stage and one level of a factor only, for each level; empty without the stage or the factor."""
    found = []
    for stage in data.stages:
        axis = stage.find_axis(factor)
        if stage.name == name and axis:
            for level in axis.levels:
                conditions = [condition for condition in stage.conditions if condition.levels[factor] == level]
                found.append((level, replace(data, stages=(build_stage(name, conditions, data.manifest_values["factors"]),))))
    return found


def rate_map(data: StudyData) -> tuple[str, Table] | None:
    """Return the map of rate, local steps and participation: one sentence, and what skewed and IID data gain in every cell.

    A cell in which only skewed data fail is one whose skewed runs end above the untrained model, in the mean, while its IID baseline ends
    below it. None: no condition of the stage is finished.
    """
    gains, baseline_gains = data.outcome_by_run("gain"), data.outcome_by_run("baseline.gain")
    limit = (data.study_config.get("gate") or {}).get("min", -math.inf)
    shown, void = set(finished_conditions(data)), void_conditions(data)
    stages = [stage for stage in data.stages if stage.name == "map"]
    rows, only_skewed, num_void = [], 0, 0
    for condition in (each for stage in stages for each in stage.conditions if each.index in shown):
        runs = list(condition.runs.values())
        # The plain mean, so that a diverged run makes it infinitely negative.
        skewed, iid = (sum(values.get(run, math.nan) for run in runs) / len(runs) for values in (gains, baseline_gains))
        fails = "both fail" if iid < 0 else "only skewed data fail" if skewed < 0 else ""
        only_skewed += fails == "only skewed data fail"
        is_void = condition.index in void
        num_void += fails == "only skewed data fail" and is_void
        levels = [str(level) for level in condition.levels.values()]
        rows.append((*levels, format_signed(skewed), format_signed(iid), str(len(runs)), fails, "void" if is_void else ""))
    if not rows:
        return None
    table = Table(
        "induced-map",
        "The map: what skewed and IID data gain over the untrained model, in nats per token (means over seeds; negative: the end is above"
        " the untrained model). Nothing is tested here.",
        (*map(short_name, stages[0].conditions[0].levels), "gain, skewed", "gain, IID", "seeds", "reading", "gate"),
        tuple(rows),
        frozenset(range(1, len(rows[0]) - 2)),
    )
    sentence = (
        f"On the map of rate, local steps and participation, skewed data end above the untrained model and the IID baseline below it in "
        f"{only_skewed} of {pluralize(len(rows), 'cell')}. In {'all' if num_void == only_skewed else num_void} of these the IID baseline"
        f" gains less than the {limit} nats of the gate, so that the map describes where training on IID data is slow and training on"
        " skewed data fails; it is no test."
    )
    return sentence, table


def name_condition(data: StudyData, condition: Condition) -> str:
    """Describe a condition by its levels of all factors that vary in its study, whether or not they vary in its stage."""
    levels = {factor: {each.levels[factor] for each in data.conditions} for factor in condition.levels}
    varying = [(factor, level) for factor, level in condition.levels.items() if len(levels[factor]) > 1]
    name = ", ".join(level if not is_number(level) else f"{short_name(factor)} {level}" for factor, level in varying) or "all"
    is_repeated = sum(each.levels == condition.levels for each in data.conditions) > 1
    return f"{name} ({condition.stage})" if is_repeated else name


def outcome_section(studies: Mapping[str, StudyData]) -> Section:
    """Tabulate, for every condition of every study: where it starts and ends, and where its IID baseline ends."""
    rows: list[tuple[str, ...]] = []
    void = diverged = total = 0
    for name, data in studies.items():
        numbers = {metric: data.outcome_by_run(metric) for metric in ("start", "loss", "loss.clients", "gap", "gap.relative")}
        numbers["own start"] = study_outcomes.find_outcome(data, "loss.clients in round 0") if "loss.clients" in data.frame else {}
        has_diverged = dict(zip(data.frame["run"], data.frame["diverged"], strict=True))
        shown, outside = set(finished_conditions(data)), void_conditions(data)
        for stage in data.stages:
            for condition in stage.conditions:
                runs = list(condition.runs.values())
                if condition.index not in shown:
                    continue
                cells = {metric: seed_mean_ci(values.get(run, math.nan) for run in runs) for metric, values in numbers.items()}
                total += 1
                is_void = condition.index in outside
                void += is_void
                count = sum(bool(has_diverged.get(run)) for run in runs)
                diverged += count
                rows.append(
                    (
                        name,
                        name_condition(data, condition),
                        *describe_training(data, runs[0]),
                        format_number(cells["start"][0]),
                        format_number(cells["loss"][0]),
                        format_number(cells["own start"][0]) if math.isfinite(cells["own start"][0]) else DASH,
                        format_number(cells["loss.clients"][0]) if math.isfinite(cells["loss.clients"][0]) else DASH,
                        f"{format_signed(cells['gap'][0])} ({format_interval(cells['gap'][1], cells['gap'][2], is_signed=True)})"
                        if math.isfinite(cells["gap"][0])
                        else DASH,
                        format_number(cells["gap.relative"][0]) if math.isfinite(cells["gap.relative"][0]) and not is_void else DASH,
                        str(len(runs)),
                        str(count),
                        "void" if is_void else "",
                    )
                )
    table = Table(
        "outcomes",
        "Every condition: the loss of the untrained model and of the trained one (nats per token, means over seeds), that of every"
        " client's model on the client's own held-out text where a study measures it, the gap to the IID baseline with its 95 %"
        " t-interval, and the gap relative to what the baseline gained (not shown for void conditions, whose baseline gained too little).",
        (
            *("study", "condition", "client rate", "clients in a round", "rounds", "untrained", "end", "untrained, own text"),
            *("end, own text", "gap", "relative", "seeds", "diverged", "gate"),
        ),
        tuple(rows),
        frozenset(range(2, 13)),
        is_long=True,
    )
    text = f"{pluralize(total, 'condition')} have finished runs; {void} are void and {pluralize(diverged, 'run')} diverged."
    return Section("outcomes", "All conditions", (text, describe_broken(studies)), (table,))


@dataclass(frozen=True)
class SharedCondition:
    """Hold a condition with one shared model that can be judged by whether its training breaks.

    Attributes:
        study: The name of the study.
        name: The name of the condition.
        gain: The mean gain over the untrained model, in nats per token, with the ends of its 95 % t-interval.
        baseline_gain: The mean gain of the IID baseline; NaN without one.
        is_void: Whether the IID baseline gains less than the gate requires.
        has_diverged: Whether a run diverged.
    """

    study: str
    name: str
    gain: tuple[float, float, float]
    baseline_gain: float
    is_void: bool
    has_diverged: bool

    @property
    def is_broken(self) -> bool:
        """Return whether the mean end is no lower than the untrained model, or a run diverged."""
        return self.gain[0] <= 0 or self.has_diverged


def list_shared_conditions(studies: Mapping[str, StudyData]) -> list[SharedCondition]:
    """List the finished conditions with one shared model.

    Models for clusters of clients and local training do not count: they are judged on clients' own text.
    """
    found = []
    for name, data in studies.items():
        start, end = data.outcome_by_run("start"), data.outcome_by_run("loss")
        baseline = data.outcome_by_run("baseline.gain") if "baseline.gain" in data.frame else {}
        has_diverged = dict(zip(data.frame["run"], data.frame["diverged"], strict=True))
        shown, void = set(finished_conditions(data)), void_conditions(data)
        for condition in data.conditions:
            runs = list(condition.runs.values())
            config = data.experiments.get(runs[0], {})
            is_shared = config.get("clustering", {}).get("type", "NoClustering") == "NoClustering"
            if condition.index in shown and is_shared and config.get("algorithm", {}).get("type") != "LocalOnly":
                mean, low, high, _ = seed_mean_ci(start.get(run, math.nan) - end.get(run, math.nan) for run in runs)
                gains = [baseline.get(run, math.nan) for run in runs]
                found.append(
                    SharedCondition(
                        name,
                        name_condition(data, condition),
                        (mean, low, high),
                        mean_of_finite(gains),
                        condition.index in void,
                        any(has_diverged.get(run) for run in runs),
                    )
                )
    return found


def judged_conditions(studies: Mapping[str, StudyData]) -> list[SharedCondition]:
    """List the conditions with one shared model whose IID baseline passes the gate."""
    return [each for each in list_shared_conditions(studies) if math.isfinite(each.baseline_gain) and not each.is_void]


def summarize_broken(studies: Mapping[str, StudyData]) -> str:
    """Say in a sentence in how many conditions training breaks, of those whose IID baseline passes the gate."""
    judged = judged_conditions(studies)
    broken = sum(each.is_broken for each in judged)
    return (
        f"Training ends no lower than the untrained model, or diverges, in {broken or 'none'} of the"
        f" {pluralize(len(judged), 'shared-model condition')} whose IID baseline learns enough."
    )


def describe_broken(studies: Mapping[str, StudyData]) -> str:
    """Say in how many conditions training breaks, and in which, also where no IID baseline or a void one stands beside it."""
    shared, judged = list_shared_conditions(studies), judged_conditions(studies)
    broken = [each for each in judged if each.is_broken]
    text = (
        f"Training breaks, in that the mean end is no lower than the untrained model or a run diverges, in {len(broken) or 'none'} of the"
        f" {pluralize(len(judged), 'condition')} with one shared model whose IID baseline passes the gate{_list_names(broken)}."
    )
    if judged:
        least = min(judged, key=lambda each: math.inf if math.isnan(each.gain[0]) else each.gain[0])
        text += (
            f" The smallest mean gain among them is {format_signed(least.gain[0])}"
            f" ({format_interval(*least.gain[1:], is_signed=True)}){_list_names([least])}."
        )
    alone = [each for each in shared if not math.isfinite(each.baseline_gain) and not each.is_void and each.is_broken]
    if alone:
        text += (
            f" It also breaks in {pluralize(len(alone), 'condition')} without an IID baseline, which nothing ties to heterogeneity"
            f"{_list_names(alone)}."
        )
    void = [each for each in shared if each.is_void and math.isfinite(each.baseline_gain)]
    only = [each for each in void if each.is_broken and each.baseline_gain > 0]
    if only:
        low, high = min(each.baseline_gain for each in only), max(each.baseline_gain for each in only)
        text += (
            f" In {len(only)} of {pluralize(len(void), 'void condition')} the skewed runs end above the untrained model or diverge while"
            f" the IID baseline gains {format_number(low)} to {format_number(high)} nats on average, less than the gate requires."
        )
    return text


def _list_names(conditions: Sequence[SharedCondition]) -> str:
    return f": {'; '.join(f'{each.name} (`{each.study}`)' for each in conditions)}" if conditions else ""


def describe_training(data: StudyData, run: str) -> tuple[str, str, str]:
    """Return the client learning rate of a run, how many of how many clients train in a round, and the number of rounds."""
    config = data.experiments.get(run)
    if config is None or "training" not in config:
        return DASH, DASH, DASH
    training, total = config["training"], config["partition"]["num_clients"]
    return f"{training['client_optimizer']['lr']:g}", f"{study_setup.cohort_size(config)} of {total}", str(training["num_rounds"])


def describe_windows(data: StudyData) -> str:
    """Return which rounds the registered outcome of a study averages: ``rounds 12 to 16 of 16, 6 to 10 of 10``."""
    windows = {}
    for run in study_outcomes.trajectories(data).values():
        rounds = [int(number) for number in study_outcomes.get_series(run, "loss")[0] if number > 0][-5:]
        if rounds:
            windows[f"{rounds[0]} to {rounds[-1]} of {run.rounds.max()}" + (f" ({len(rounds)} evaluations)" if len(rounds) < 5 else "")] = (
                None
            )
    return f"rounds {', '.join(sorted(windows))}"


def main_effects_section(data: StudyData, key: str = "grid", title: str = "The grid: main effects") -> Section | MissingSection:
    """Estimate the main effects of the grid: the mean of every outcome at each level of each factor, over the conditions that have it.

    Void conditions do not count. If all are void, the section describes them without the gate and says so.
    """
    metrics = [metric for metric in data.study_config["metrics"] if metric in data.frame and metric not in ("start", "baseline.gain")]
    limit = (data.study_config.get("gate") or {}).get("min", -math.inf)
    void = void_conditions(data)
    conditions = [condition for condition in data.conditions if condition.index not in void]
    is_void = bool(data.finished) and not conditions
    if is_void:
        conditions = list(data.conditions)
    rows = []
    outcomes = {metric: data.outcome_by_run(metric) for metric in metrics}
    for factor in data.manifest_values["factors"]:
        for level in dict.fromkeys(condition.levels[factor] for condition in conditions):
            chosen = [condition for condition in conditions if condition.levels[factor] == level]
            cells = []
            for metric in metrics:
                by_seed: dict[int, list[float]] = {}
                for condition in chosen:
                    for seed, run in condition.runs.items():
                        by_seed.setdefault(seed, []).append(outcomes[metric].get(run, math.nan))
                means = [mean_of_finite(values) for values in by_seed.values()]
                # without a seed whose run diverged, the mean would be over other seeds than that of the next level
                mean, low, high, _ = seed_mean_ci([] if any(map(math.isnan, means)) else means)
                cells.append(
                    f"{format_number(mean)} ± {format_number((high - low) / 2)}" if math.isfinite(high - low) else format_number(mean)
                )
            rows.append((f"{factor}: {level}", str(len(chosen)), *cells))
    if not rows or not data.finished:
        return MissingSection(title, f"the study `{key}` has not been run")
    half = math.ceil(len(metrics) / 3)
    tables = [
        Table(
            f"main-effects-{key}-{index}",
            f"Main effects of `{key}`: the mean over the conditions at each level, ± half the width of the 95 % t-interval over three"
            " seeds. A dash: a run diverged, or does not have the outcome.",
            ("level", "conditions", *metrics[start : start + half]),
            tuple((*row[:2], *row[2 + start : 2 + start + half]) for row in rows),
            frozenset(range(1, 2 + half)),
        )
        for index, start in enumerate(range(0, len(metrics), half))
    ]
    dropped = len(data.conditions) - len(conditions)
    methods = study_setup.methods_section(data)
    aliases = [sentence for sentence in getattr(methods, "text", ()) if "confounded" in sentence]
    pairs = [find_dependent_pair([condition.levels for condition in chosen]) for chosen in (data.conditions, conditions)]
    unbalanced = (
        f"The conditions that count are not balanced: {pairs[1][0]} and {pairs[1][1]} are confounded, so that a difference between levels"
        " contains effects of other factors."
        if pairs[1] and not pairs[0]
        else ""
    )
    gate = (
        describe_ungated(data, limit)
        if is_void
        else f"All {len(conditions)} conditions pass the gate. Three seeds give estimates with intervals, and no verdict."
        if not dropped
        else f"{pluralize(len(conditions), 'condition')} of {len(data.conditions)} count; the others are void because their IID baseline"
        f" gained less than {limit} nats ({dropped}). Three seeds give estimates with intervals, and no verdict."
    )
    return Section(key, title, (gate, *filter(None, (unbalanced,)), *aliases), tuple(tables))


def describe_ungated(data: StudyData, limit: float) -> str:
    """Say that all conditions of a study are void, and state its contrasts without the gate, as a description."""
    gains = data.outcome_by_run("baseline.gain")
    means = [mean_of_finite([gains.get(run, math.nan) for run in condition.runs.values()]) for condition in data.conditions]
    baselines = study_outcomes.find_baselines(data).values()
    curves = [study_outcomes.get_series(study_outcomes.trajectories(data)[run], "loss")[1] for run in baselines]
    early = sum(int(curve.argmin()) < len(curve) - 5 for curve in curves)
    study = parse_study(data.manifest_values["study"], is_stored=True)
    found = evaluate_gated(study.hypotheses, data.frame, data.manifest_values["factors"], None)
    contrasts = [
        f"{each.name} {format_signed(each.effect)} ({format_interval(each.low, each.high, is_signed=True)})"
        for each in found
        if math.isfinite(each.effect)
    ]
    return (
        f"All {len(means)} conditions are void: no IID baseline gains {limit} nats (the largest mean gain is {format_signed(max(means))}),"
        f" and in {sum(mean < 0 for mean in means)} of them the IID baseline ends above the untrained model. In"
        f" {early} of {len(curves)} IID baselines the lowest loss lies before the last five evaluations, as with overfitting: the clients"
        " read the same text many times. By the registered rule nothing here counts, and whether heterogeneity has these"
        " effects where something is learned is open. The tables show the means without the gate as a description, not as a result."
        f" The contrasts of the hypotheses without the gate, with their intervals over seeds: {'; '.join(contrasts)}."
    )


def failure_section(studies: Mapping[str, StudyData]) -> Section:
    """List the failures that the detectors confirm, by study and condition: the failure atlas."""
    rows = []
    judged = 0
    measured: Counter[str] = Counter()
    for name, data in studies.items():
        conditions = {condition.index: condition for condition in data.conditions}
        shown, void = set(finished_conditions(data)), void_conditions(data)
        for index, diagnoses in study_results.diagnose_conditions(data).items():
            if index not in shown:
                continue
            condition = conditions[index]
            if not condition.baselines:
                continue  # a detector without a baseline cannot tell what heterogeneity causes
            judged += 1
            measured.update(diagnosis.failure for diagnosis in diagnoses if diagnosis.grade != "not measured")
            rows += [
                (
                    name,
                    name_condition(data, condition) + (" (void)" if index in void else ""),
                    diagnosis.failure,
                    DASH if diagnosis.first_round is None else str(diagnosis.first_round),
                    format_signed(diagnosis.excess),
                    diagnosis.sentence,
                )
                for diagnosis in diagnoses
                if diagnosis.grade == "confirmed"
            ]
    counts = Counter(row[2] for row in rows)
    summary = ", ".join(f"{failure} in {count} of {measured[failure]}" for failure, count in counts.most_common())
    text = (
        f"The detectors judged the {pluralize(judged, 'condition')} that have IID baselines, over their seeds. Confirmed, of"
        " those conditions that have what a detector needs:"
        f" {summary or 'nothing'}. Conditions marked as void have an IID baseline that gains less than the gate requires."
        " Some conditions of different studies share their runs, so that a count is not a number of independent findings."
        " A failure that is not listed was not found or could not be judged, which is no proof of its"
        " absence. The detectors and their limits are those of `docs/detectors.md`. Divergence includes a run that ends above the untrained"
        " model, unlike the column “diverged” of the other tables, which counts the runs that are dead or diverge by the other rules."
        " Forgetting during absence is about domains"
        " that are absent for many rounds, so that it does not repeat P2."
    )
    rules = describe_rules(counts)
    return Section(
        "atlas", "The failure atlas", (text, *((rules,) if rules else ())), (failure_matrix(rows), failure_rows(rows)) if rows else ()
    )


def describe_rules(failures: Iterable[str]) -> str:
    """State by which rule and threshold each of these failures is confirmed; empty if there is none."""
    limits = load_thresholds()
    gap, above, forgetting = limits["gap"], limits["divergence"]["above"], limits["forgetting"]
    rules = {
        "loss gap": f"loss gap: the mean loss of the last five evaluations is more than {gap['all']:g} nats above that of the IID baseline,"
        " and by more than the noise of these evaluations",
        "domain gap": f"domain gap: the same in one domain, by more than {gap['domain']:g} nats",
        "domain oscillation": "domain oscillation: the mean absolute change of the domain losses between evaluations, less their net"
        f" change, is more than {limits['oscillation']['domain_floor']:g} nats and {limits['oscillation']['ratio']:g} times that of the"
        " IID baseline",
        "divergence": f"divergence: the mean loss of the last five evaluations is more than {above:g} nats above the untrained model, or"
        " the loss or the server's steps grow without bound",
        "forgetting during absence": "forgetting during absence: the loss of a domain rises by more than"
        f" {forgetting['absent']:g} nats while none of its clients takes part, beyond the IID baseline in the same rounds, in at least"
        f" {forgetting['episodes']} absences, and rises with the rounds of absence (p < {forgetting['p']:g})",
    }
    found = [rules.get(failure, f"{failure}: see `docs/detectors.md`") for failure in failures]
    return (
        f"A failure is confirmed if there are {limits['common']['seeds']} or more seeds with an IID baseline, if most of them show it, if"
        " the IID baselines do not show it, and if the 95 % t-interval of the excess over them lies above zero. The rules and thresholds"
        f" are older than the registration: {'; '.join(found)}."
        if found
        else ""
    )


def failure_matrix(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return the confirmed failures as a matrix of conditions and failures; a cell is the round in which the failure is first seen."""
    failures = list(dict.fromkeys(row[2] for row in rows))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for study, condition, failure, since, *_ in rows:
        cells.setdefault((study, condition), {})[failure] = "yes" if since == DASH else since
    return Table(
        "atlas",
        "The failure atlas: the round in which each confirmed failure is first seen (median over seeds; yes: no round). An empty cell: not"
        " confirmed.",
        ("study", "condition", *failures),
        tuple((*key, *(found.get(failure, "") for failure in failures)) for key, found in cells.items()),
        frozenset(range(2, 2 + len(failures))),
        is_long=True,
    )


def failure_rows(rows: Sequence[tuple[str, ...]]) -> Table:
    """Return the confirmed failures in rows, each with its excess and its diagnosis."""
    return Table(
        "atlas-rows",
        "The diagnoses behind the atlas. The excess over the IID baseline is a mean over seeds, in nats for loss gap, domain gap and"
        " forgetting and without a unit for the others; the diagnosis quotes the median of the seeds that show the failure.",
        ("study", "condition", "failure", "since round", "excess", "diagnosis"),
        tuple(rows),
        frozenset({3, 4}),
        is_long=True,
    )


def tuning_section(studies: Mapping[str, StudyData]) -> Section:
    """Tabulate the tuned settings of all studies, with the settings at the edge of their grid."""
    rows = [
        (
            name,
            choice["group"],
            study_setup.format_settings(choice["settings"]) or "none",
            format_number(study_setup.to_float(choice["score"])),
            str(len(choice["trials"])),
            ", ".join(choice["at_search_boundary"]) or DASH,
        )
        for name, data in studies.items()
        for choice in data.manifest_values["tuning_results"]
    ]
    trials = tuple(
        (name, choice["group"], study_setup.format_settings(trial["settings"]), format_number(study_setup.to_float(trial["mean"])))
        for name, data in studies.items()
        for choice in data.manifest_values["tuning_results"]
        for trial in choice["trials"]
    )
    edges = sum(row[-1] != DASH for row in rows)
    text = (
        "Trials are compared by the registered loss on validation text, on one tuning seed, which no run has."
        f" In {edges} of {len(rows)} groups a best value lies at an edge of its grid."
    )
    table = Table(
        "tuned",
        "Tuned settings. The column “edge” names settings whose best value is the largest or smallest of the grid.",
        ("study", "group", "selected", "loss", "trials", "edge"),
        tuple(rows),
        frozenset({3, 4}),
    )
    every = Table("trials", "Every tuning trial.", ("study", "group", "settings", "loss"), trials, frozenset({3}), is_long=True)
    return Section("tuned", "Tuned settings", (text,), (table, every)) if rows else Section("tuned", "Tuned settings")


def describe_evaluation(studies: Mapping[str, StudyData]) -> str:
    """Say on how much held-out text each study evaluates."""
    sizes = []
    for name, data in studies.items():
        found = {}
        for condition in data.conditions:
            config = data.experiments.get(next(iter(condition.runs.values())), {})
            if "partition_table" in config and "evaluation" in config:
                blocks, length = config["evaluation"]["blocks_per_domain"], config["training"]["max_seq_length"]
                domains = len(config["partition_table"]["domains"])
                found[f"{blocks} x {length} for each of {domains} domains ({blocks * length * domains:,} in all)"] = None
        sizes += [f"`{name}` {', '.join(found)}"] if found else []
    return (
        f"Every evaluation is on the same held-out tokens for all seeds, blocks x tokens: {'; '.join(sizes)}. These are small test sets: an"
        " interval over seeds does not cover the choice of these texts."
        if sizes
        else ""
    )
