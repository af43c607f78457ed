"""Claims of docs/first-study.md, computed from the stored runs of the three studies."""

from __future__ import annotations

import numpy as np
import yaml

from fedrift.models.presets import PRESETS
from fedrift.report.study_results import diagnose_conditions
from fedrift.stats import HypothesisVerdict, compare_paired, mean_ci, min_p
from fedrift.studies.outcomes import FINAL_EVALUATIONS

from .stores import ROOT, StoredStudy, signed, to_array


def effect(verdict: HypothesisVerdict, unit: str = " nats", digits: int = 3) -> str:
    """Format the effect of a verdict with its interval, such as ``+0.101 nats, +0.029 to +0.172``."""
    return f"{signed(verdict.effect, digits)}{unit}, {signed(verdict.low, digits)} to {signed(verdict.high, digits)}"


def p(verdict: HypothesisVerdict, holm: bool = False) -> str:
    """Format the p-value of a verdict, with Holm's in parentheses if it is requested."""
    return f"{verdict.p:.3f} ({verdict.p_holm:.3f})" if holm else f"{verdict.p:.3f}"


def claims(first: StoredStudy, failures: StoredStudy, smollm2: StoredStudy) -> list[str]:
    """Return all claims of the page."""
    return [
        *design(first),
        *table(first),
        *findings(first),
        *detectors(first),
        *induced_failures(failures),
        *smollm2_study(smollm2),
        *no_averaging(first, failures, smollm2),
    ]


def design(first: StoredStudy) -> list[str]:
    """Return the claims about the settings of the study."""
    base, training, study = first.content["study"]["base"], first.training, first.content["study"]
    clients, cohort_size = base["partition"]["num_clients"], round(training["participation_rate"] * base["partition"]["num_clients"])
    environments = [first.manifest.get_run(entry.run).environment for entry in first.content["runs"]]
    assert {environment["threads"] for environment in environments} == {1} and not first.frame["diverged"].any()
    assert {first.manifest.get_status(entry.run) for entry in first.content["runs"]} == {"finished"}
    (torch_version,) = {environment["packages"]["torch"].split("+")[0] for environment in environments}
    (fedrift_version,) = {environment["packages"]["fedrift"] for environment in environments}
    tuning = study["tuning"]
    return [
        f"{PRESETS['pocket'].num_parameters / 1e6:.1f} M parameters, LoRA of rank {base['trainable']['r']}",
        f"There are {clients} clients, and {cohort_size} of them takes part in a round.",
        f"{training['num_rounds']} rounds of {training['local_steps']} steps of plain gradient descent on {training['batch_size']} x"
        f" {training['max_seq_length']} tokens",
        "at severity {} and at {:g}".format(*study["factors"]["partition.severity"]),
        f"tuned with {tuning['trials']} trials on seed {tuning['seeds'][0]}",
        f"{len(first.runs(regime='topic', algorithm='FedAvg', severity=1.0))} paired seeds and"
        f" {len({entry.run for entry in first.content['runs']})} runs.",
        f"fedrift {fedrift_version}, torch {torch_version},",
        f"With {cohort_size} client of {clients} in a round a client takes part in {training['num_rounds'] * cohort_size / clients:.1f} of"
        f" {training['num_rounds']} rounds on average",
        f"{training['num_rounds']} rounds are too few for the oscillation detector",
    ]


def no_averaging(*studies: StoredStudy) -> list[str]:
    """Return the claim that no updates were averaged.

    The consensus of a single update is 1, and metrics that need two updates were not recorded.
    """
    consensus, undefined = set(), "'update.divergence', 'update.pairwise', 'gradient.norm.variance'"
    for study in studies:
        consensus |= {value for (value,) in study.query_records("SELECT DISTINCT value FROM records WHERE metric = 'update.consensus'")}
        assert not study.query_records(f"SELECT * FROM records WHERE metric IN ({undefined}) AND NOT isnan(value) LIMIT 1")
    count = sum(len({entry.run for entry in study.content["runs"]}) for study in studies)
    assert consensus == {1.0}
    return [f"is exactly 1 in all {count} runs of the three studies"]


def table(first: StoredStudy) -> list[str]:
    """Return the rows of the table of hypotheses."""
    v = first.verdicts
    assert {name: verdict.verdict for name, verdict in v.items() if verdict.verdict != "inconclusive"} == {
        "H1 style": "supported",
        "swing": "supported",
        "H6 FedProx": "supported",
    }
    low, high = first.content["study"]["factors"]["partition.severity"]
    return [
        "effect, 95 % interval",
        f"larger at severity {high:g} than at {low}, topic skew | inconclusive | {effect(v['H1 topic'])} | {p(v['H1 topic'])} |",
        f"| the same, style skew | **supported** | {effect(v['H1 style'])} | {p(v['H1 style'])} |",
        f"| the same, token skew | inconclusive | {effect(v['H1 tokens'])} | {p(v['H1 tokens'])} |",
        f"at a higher loss than its IID baseline | inconclusive | {effect(v['H1 cost'])} | {p(v['H1 cost'])} |",
        f"move more than its IID baseline | **supported** | {effect(v['swing'])} | {p(v['swing'])} |",
        f"than token skew | inconclusive | {effect(v['H4 worst'])} | {p(v['H4 worst'], holm=True)} |",
        f"than topic skew | inconclusive | {effect(v['H4 style'])} | {p(v['H4 style'], holm=True)} |",
        f"because of its learning rate** (below) | {effect(v['H6 FedProx'], digits=4)} | {p(v['H6 FedProx'], holm=True)} |",
        f"The domain losses of SCAFFOLD move less than those of FedAvg | inconclusive | {effect(v['H6 Scaffold'])} |"
        f" {p(v['H6 Scaffold'], holm=True)} |",
        f"over {v['swing'].seeds} seeds; the smallest possible value is {min_p(v['swing'].seeds):.3f}.",
    ]


def findings(first: StoredStudy) -> list[str]:
    """Return the claims of the section on findings, except those about detectors."""
    v = first.verdicts
    style = {name: first.runs(stage="main", regime="style", algorithm=name, severity=1.0) for name in ("FedAvg", "FedProx", "Scaffold")}
    above = {name: f"{int((rows['loss'] > rows['start']).sum())} of {len(rows)}" for name, rows in style.items()}
    baselines = first.runs("iid_baseline")
    assert not (baselines["loss"] > baselines["start"]).any()
    topic = {name: first.runs(stage="main", regime="topic", algorithm=name, severity=1.0) for name in ("FedAvg", "FedProx")}
    control_runs, style_runs = first.runs(stage="control"), style["FedAvg"]
    ratios = {name: rows["movement"].mean() / rows["base.movement"].mean() for name, rows in topic.items()}
    log_ratios = [np.log(to_array(rows["movement"]) / to_array(rows["base.movement"])) for rows in topic.values()]
    fedprox_excess = [
        float(
            (
                first.runs(stage="main", regime=regime, algorithm="FedProx", severity=severity)["loss"]
                - first.runs(stage="main", regime=regime, algorithm="FedAvg", severity=severity)["loss"]
            ).mean()
        )
        for regime in ("topic", "tokens")
        for severity in (0.5, 1.0)
    ]
    choices = {choice["group"].split("=")[1]: choice for choice in first.content["tuning_results"]}
    rates = [trial["settings"]["training.client_optimizer.lr"] for trial in choices["FedProx"]["trials"]]
    rate = choices["FedAvg"]["settings"]["training.client_optimizer.lr"]
    assert rate not in rates and sorted(rates) == [0.25, 0.5, 0.5, 2.0]
    assert choices["Scaffold"]["at_search_boundary"] == ["algorithm.server_optimizer.lr"]
    style_gap = mean_ci(to_array(style_runs["loss"] - style_runs["base.loss"]))
    control_gap = mean_ci(to_array(control_runs["loss"] - style_runs["base.loss"]))
    difference = mean_ci(to_array(style_runs["loss"] - control_runs["loss"]))
    assert difference.low < 0 < difference.high
    return [
        f"At severity 1 FedAvg ends at {style_runs['loss'].mean():.3f} nats per token. The untrained model has"
        f" {style_runs['start'].mean():.3f}.",
        f"In {above['FedAvg']} seeds the run ends above its initial loss (FedProx: {above['FedProx']}, SCAFFOLD: {above['Scaffold']}).",
        f"the IID baseline of FedAvg gains {(topic['FedAvg']['start'] - topic['FedAvg']['base.loss']).mean():.3f} nats over the untrained"
        f" model in all {first.training['num_rounds']} rounds",
        f"One topic per client costs {v['H1 cost'].effect:.3f} nats at the end, which {v['H1 cost'].seeds} seeds cannot distinguish from"
        f" zero. An effect of {v['H1 cost'].detectable:.3f} nats would have been detected with 80 % probability.",
        f"each domain moves {topic['FedAvg']['movement'].mean():.3f} nats between evaluations, and"
        f" {topic['FedAvg']['base.movement'].mean():.3f} nats in the IID baseline.",
        f"Between the two severities an effect of {v['H1 tokens'].detectable:.3f} nats would have been detected",
        f"FedAvg at severity 1 ends {style_gap.estimate:.3f} nats above the IID baseline ({style_gap.low:.3f} to {style_gap.high:.3f}).",
        f"It ends {control_gap.estimate:.3f} nats above the baseline ({control_gap.low:.3f} to {control_gap.high:.3f}).",
        f"The difference between the two is {difference.estimate:.3f} nats ({difference.low:.3f} to {difference.high:.3f})",
        f"Its {len(rates)} trials were drawn at rates 0.25, 0.5, 0.5 and 2. A rate of {rate:g}, which FedAvg was tuned to",
        f"It ran at {choices['FedProx']['settings']['training.client_optimizer.lr']} with mu {choices['FedProx']['settings']['algorithm.mu']}",
        f"{ratios['FedProx']:.2f} times as much, FedAvg {ratios['FedAvg']:.2f} times. The two ratios are not distinguishable"
        f" (p = {compare_paired(log_ratios[1] - log_ratios[0]).p.value:.3f}).",
        f"Its final losses are {min(fedprox_excess):.3f} to {max(fedprox_excess):.3f} nats above those of FedAvg under topic and token skew",
        f"at the edge of the grid ({choices['Scaffold']['settings']['algorithm.server_optimizer.lr']:g})",
        f"A movement of {v['swing'].effect:.3f} nats beyond the IID baseline is real but small. The detector uses variability, which is"
        f" movement without the net change, and requires at least {min_variability()} nats.",
    ]


def min_variability() -> float:
    """Return the smallest variability of domain losses that the detector of domain oscillation reports, in nats."""
    return float(yaml.safe_load((ROOT / "fedrift" / "diagnosis" / "thresholds.yaml").read_text())["oscillation"]["domain_floor"])


def detectors(first: StoredStudy) -> list[str]:
    """Return the claims about confirmed and suspected failures."""
    diagnoses = diagnose_conditions(first.study_data)
    grades = {
        (
            condition.values.get("regime"),
            condition.values.get("algorithm"),
            condition.values.get("partition.severity"),
            diagnosis.failure,
        ): (diagnosis.grade)
        for condition in first.study_data.conditions
        for diagnosis in diagnoses.get(condition.index, ())
        if diagnosis.grade in ("confirmed", "suspected")
    }
    oscillating = {key[:3] for key, grade in grades.items() if key[3] == "domain oscillation" and grade == "confirmed"}
    assert oscillating == {("style", name, severity) for name in ("FedAvg", "FedProx", "Scaffold") for severity in (0.5, 1.0)}
    others = {key: grade for key, grade in grades.items() if key[3] != "domain oscillation"}
    assert others == {
        ("style", "Scaffold", 1.0, "loss gap"): "confirmed",
        ("style", "FedAvg", 1.0, "divergence"): "suspected",
        ("style", "FedProx", 1.0, "divergence"): "confirmed",
        ("style", "Scaffold", 1.0, "divergence"): "confirmed",
    }
    return [
        f"`domain oscillation` is confirmed in all {len(oscillating)} style conditions, and in no other. `loss gap` is confirmed in 1"
        " (SCAFFOLD, severity 1).",
        "is confirmed for FedProx and SCAFFOLD at severity 1 and suspected for FedAvg",
    ]


def induced_failures(failures: StoredStudy) -> list[str]:
    """Return the claims about the study that induces three failures."""
    v, study = failures.verdicts, failures.content["study"]
    overrides = {stage["name"]: stage["overrides"] for stage in study["stages"]}
    oscillation, syntax, general, divergence = (v[name] for name in ("oscillation", "syntax", "general text", "divergence"))
    assert (oscillation.verdict, syntax.verdict, general.verdict) == ("supported", "inconclusive", "inconclusive")
    pairs = [100 * failures.runs(role, stage="forgetting")["syntax.accuracy"].mean() for role in ("run", "iid_baseline")]
    movements = [failures.runs(role, stage="oscillation")["movement"].mean() for role in ("run", "iid_baseline")]
    diverged = {
        (role, rate): failures.runs(role, stage="divergence", rate=rate)["diverged"]
        for role in ("run", "iid_baseline")
        for rate in (0.5, 1.0, 2.0)
    }
    assert all(flags.all() if rate == 2.0 else not flags.any() for (_, rate), flags in diverged.items())
    assert divergence.both_diverged == 3 and divergence.diverged == 6 and np.isnan(divergence.effect)
    base, clients = study["base"], study["base"]["partition"]["num_clients"]
    return [
        f"has {len({entry.run for entry in failures.content['runs']})} runs on the same model and text: one topic per client,"
        f" {round(base['training']['participation_rate'] * clients)} of {clients} clients per round",
        f"It started with {oscillation.seeds - 2} seeds. These cannot reach p < 0.05 whatever happens, so 2 were added",
        f"{overrides['oscillation']['training.num_rounds']} rounds of {overrides['oscillation']['training.local_steps']} steps",
        f"**supported**: domains move {movements[0]:.3f} nats between evaluations, {movements[1]:.3f} in the IID baseline:"
        f" {signed(oscillation.effect)} ({signed(oscillation.low)} to {signed(oscillation.high)}), p = {oscillation.p:.3f}. The detector"
        f" finds nothing, because it requires a variability of at least {min_variability()} nats",
        f"{overrides['forgetting']['training.num_rounds']} rounds of {overrides['forgetting']['training.local_steps']} steps",
        f"inconclusive: {pairs[0]:.1f} % of minimal pairs are correct, {pairs[1]:.1f} % in the IID baseline (p = {syntax.p:.3f},"
        f" {syntax.p_holm:.3f} by Holm; {100 * syntax.detectable:.1f} percentage points would have been detected).",
        f"General text costs {signed(general.effect)} nats beyond the IID baseline ({signed(general.low)} to {signed(general.high)}),"
        f" p = {general.p:.3f}, {general.p_holm:.3f} by Holm",
        "rates 0.5, 1, 2",
        f"at rate 2 all {int(diverged['run', 2.0].sum())} runs diverge, and so do all {int(diverged['iid_baseline', 2.0].sum())} IID"
        " baselines, so skew is not the cause. At rates 0.5 and 1 none does",
        earlier_numbers(failures),
        "a grid of factors of 2 can miss",
    ]


def earlier_numbers(failures: StoredStudy) -> str:
    """Return the claim on the numbers of an earlier version of the page, which were means over rounds 0 and 8."""
    means = {}
    for metric in ("syntax.accuracy", "general.loss"):
        for role in ("run", "iid_baseline"):
            trajectories = [failures.manifest.get_run(run).trajectory() for run in failures.runs(role, stage="forgetting")["run"]]
            means[metric, role] = to_array(
                [run.curve(metric)[run.observed_mask(metric)][-FINAL_EVALUATIONS:].mean() for run in trajectories]
            )
    pairs = [100 * means["syntax.accuracy", role].mean() for role in ("run", "iid_baseline")]
    general = (means["general.loss", "run"] - means["general.loss", "iid_baseline"]).mean()
    return (
        f"averaged the untrained model into the two numbers of forgetting: {pairs[0]:.1f} and {pairs[1]:.1f} %, and {signed(general)} nats."
    )


def smollm2_study(smollm2: StoredStudy) -> list[str]:
    """Return the claims about the study of SmolLM2-135M."""
    cost, training = smollm2.verdicts["cost"], smollm2.training
    movements = [smollm2.runs(role)["movement"].mean() for role in ("run", "iid_baseline")]
    return [
        f"has {cost.seeds} seeds and {training['num_rounds']} rounds of {training['local_steps']} AdamW steps of {training['batch_size']} x"
        f" {training['max_seq_length']} tokens.",
        f"One topic per client ends {cost.effect:.3f} nats above its IID baseline ({cost.low:.3f} to {cost.high:.3f}); {cost.seeds} seeds"
        f" cannot give a p below {cost.min_attainable_p:.2f}.",
        f"Domains move {movements[0]:.3f} nats, {movements[1]:.3f} in the IID baseline.",
    ]
