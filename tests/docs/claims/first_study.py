"""docs/first-study.md, from the stored runs of the three studies."""

from __future__ import annotations

import numpy as np
import yaml

from fedrift.models.presets import PRESETS
from fedrift.report.study_results import diagnose_conditions
from fedrift.stats import Verdict, compare_paired, mean_ci, min_p
from fedrift.studies.outcomes import FINAL_EVALUATIONS

from .stores import ROOT, ImportedStudy, of, signed


def format_effect(one: Verdict, unit: str = " nats", digits: int = 3) -> str:
    """``+0.101 nats, +0.029 to +0.172``."""
    return f"{signed(one.effect, digits)}{unit}, {signed(one.low, digits)} to {signed(one.high, digits)}"


def p(one: Verdict, holm: bool = False) -> str:
    return f"{one.p:.3f} ({one.p_holm:.3f})" if holm else f"{one.p:.3f}"


def claims(first: ImportedStudy, failures: ImportedStudy, smollm2: ImportedStudy) -> list[str]:
    return [
        *design(first),
        *table(first),
        *behind(first),
        *detectors(first),
        *induced(failures),
        *small(smollm2),
        *averaged(first, failures, smollm2),
    ]


def design(first: ImportedStudy) -> list[str]:
    base, plan, study = first.contents["study"]["base"], first.plan, first.contents["study"]
    clients, took = base["partition"]["num_clients"], round(plan["participation_rate"] * base["partition"]["num_clients"])
    places = [first.manifest.get_run(entry.run).environment for entry in first.contents["runs"]]
    assert {place["threads"] for place in places} == {1} and not first.frame["diverged"].any()
    assert {first.manifest.get_status(entry.run) for entry in first.contents["runs"]} == {"finished"}
    (torch,) = {place["packages"]["torch"].split("+")[0] for place in places}
    (own,) = {place["packages"]["fedrift"] for place in places}
    tuning = study["tuning"]
    return [
        f"{PRESETS['pocket'].num_parameters / 1e6:.1f} M parameters, LoRA of rank {base['trainable']['r']}",
        f"There are {clients} clients, and {took} of them takes part in a round.",
        f"{plan['num_rounds']} rounds of {plan['local_steps']} steps of plain gradient descent on {plan['batch_size']} x {plan['max_seq_length']} tokens",
        "at severity {} and at {:g}".format(*study["factors"]["partition.severity"]),
        f"tuned with {tuning['trials']} trials on seed {tuning['seeds'][0]}",
        f"{len(first.runs(regime='topic', algorithm='FedAvg', severity=1.0))} paired seeds and"
        f" {len({entry.run for entry in first.contents['runs']})} runs.",
        f"fedrift {own}, torch {torch},",
        f"With {took} client of {clients} in a round a client takes part in {plan['num_rounds'] * took / clients:.1f} of"
        f" {plan['num_rounds']} rounds on average",
        f"{plan['num_rounds']} rounds are too few for the oscillation detector",
    ]


def averaged(*studies: ImportedStudy) -> list[str]:
    """That nothing was: the consensus of one update is 1, and nothing that takes two was recorded."""
    consensus, absent = set(), "'update.divergence', 'update.pairwise', 'gradient.norm.variance'"
    for study in studies:
        consensus |= {value for (value,) in study.query("SELECT DISTINCT value FROM records WHERE metric = 'update.consensus'")}
        assert not study.query(f"SELECT * FROM records WHERE metric IN ({absent}) AND NOT isnan(value) LIMIT 1")
    count = sum(len({entry.run for entry in study.contents["runs"]}) for study in studies)
    assert consensus == {1.0}
    return [f"is exactly 1 in all {count} runs of the three studies"]


def table(first: ImportedStudy) -> list[str]:
    v = first.verdicts
    assert {name: one.verdict for name, one in v.items() if one.verdict != "inconclusive"} == {
        "H1 style": "supported",
        "swing": "supported",
        "H6 FedProx": "supported",
    }
    low, high = first.contents["study"]["factors"]["partition.severity"]
    return [
        "effect, 95 % interval",
        f"larger at severity {high:g} than at {low}, topic | inconclusive | {format_effect(v['H1 topic'])} | {p(v['H1 topic'])} |",
        f"| **supported** | {format_effect(v['H1 style'])} | {p(v['H1 style'])} |",
        f"| the same, tokens | inconclusive | {format_effect(v['H1 tokens'])} | {p(v['H1 tokens'])} |",
        f"| inconclusive | {format_effect(v['H1 cost'])} | {p(v['H1 cost'])} |",
        f"move more than IID | **supported** | {format_effect(v['swing'])} | {p(v['swing'])} |",
        f"than token skew | inconclusive | {format_effect(v['H4 worst'])} | {p(v['H4 worst'], holm=True)} |",
        f"than topic skew | inconclusive | {format_effect(v['H4 style'])} | {p(v['H4 style'], holm=True)} |",
        f"by its learning rate** (below) | {format_effect(v['H6 FedProx'], digits=4)} | {p(v['H6 FedProx'], holm=True)} |",
        f"SCAFFOLD's domains move less than FedAvg's | inconclusive | {format_effect(v['H6 Scaffold'])} | {p(v['H6 Scaffold'], holm=True)} |",
        f"over {v['swing'].seeds} seeds; the smallest that they can give is {min_p(v['swing'].seeds):.3f}.",
    ]


def behind(first: ImportedStudy) -> list[str]:
    v = first.verdicts
    style = {name: first.runs(stage="main", regime="style", algorithm=name, severity=1.0) for name in ("FedAvg", "FedProx", "Scaffold")}
    above = {name: f"{int((rows['loss'] > rows['start']).sum())} of {len(rows)}" for name, rows in style.items()}
    bases = first.runs("iid_baseline")
    assert not (bases["loss"] > bases["start"]).any()
    topic = {name: first.runs(stage="main", regime="topic", algorithm=name, severity=1.0) for name in ("FedAvg", "FedProx")}
    alike, fed = first.runs(stage="control"), style["FedAvg"]
    times = {name: rows["movement"].mean() / rows["base.movement"].mean() for name, rows in topic.items()}
    ratios = [np.log(of(rows["movement"]) / of(rows["base.movement"])) for rows in topic.values()]
    behind_fedavg = [
        float(
            (
                first.runs(stage="main", regime=regime, algorithm="FedProx", severity=severity)["loss"]
                - first.runs(stage="main", regime=regime, algorithm="FedAvg", severity=severity)["loss"]
            ).mean()
        )
        for regime in ("topic", "tokens")
        for severity in (0.5, 1.0)
    ]
    choices = {choice["group"].split("=")[1]: choice for choice in first.contents["tuning_results"]}
    rates = [trial["settings"]["training.client_optimizer.lr"] for trial in choices["FedProx"]["trials"]]
    rate = choices["FedAvg"]["settings"]["training.client_optimizer.lr"]
    assert rate not in rates and sorted(rates) == [0.25, 0.5, 0.5, 2.0]
    assert choices["Scaffold"]["at_search_boundary"] == ["algorithm.server_optimizer.lr"]
    plain, control = mean_ci(of(fed["loss"] - fed["base.loss"])), mean_ci(of(alike["loss"] - fed["base.loss"]))
    left = mean_ci(of(fed["loss"] - alike["loss"]))
    assert left.low < 0 < left.high
    return [
        f"At severity 1 FedAvg ends at {fed['loss'].mean():.3f} nats per token. The untrained model has {fed['start'].mean():.3f}.",
        f"In {above['FedAvg']} seeds the run ends above where it began (FedProx: {above['FedProx']}, SCAFFOLD: {above['Scaffold']}).",
        f"IID baseline wins {(topic['FedAvg']['start'] - topic['FedAvg']['base.loss']).mean():.3f} nats over the untrained model in all"
        f" {first.plan['num_rounds']} rounds",
        f"One topic a client costs {v['H1 cost'].effect:.3f} nats at the end, which {v['H1 cost'].seeds} seeds cannot tell from"
        f" nothing; an effect of {v['H1 cost'].detectable:.3f} nats would have been called with 80 % probability.",
        f"each moves {topic['FedAvg']['movement'].mean():.3f} nats between evaluations, {topic['FedAvg']['base.movement'].mean():.3f} under IID.",
        f"between the two severities an effect of {v['H1 tokens'].detectable:.3f} nats would have been called",
        f"FedAvg at severity 1 ends {plain.estimate:.3f} nats above the IID baseline ({plain.low:.3f} to {plain.high:.3f}).",
        f"it ends {control.estimate:.3f} above it ({control.low:.3f} to {control.high:.3f}).",
        f"The difference between the two is {left.estimate:.3f} nats ({left.low:.3f} to {left.high:.3f})",
        f"Its {len(rates)} trials were drawn at rates 0.25, 0.5, 0.5 and 2. A rate of {rate:g}, which FedAvg was tuned to",
        f"It ran at {choices['FedProx']['settings']['training.client_optimizer.lr']} with mu {choices['FedProx']['settings']['algorithm.mu']}",
        f"{times['FedProx']:.2f} times as much, FedAvg {times['FedAvg']:.2f} times. The two ratios are not told apart"
        f" (p = {compare_paired(ratios[1] - ratios[0]).p.value:.3f}).",
        f"end losses are {min(behind_fedavg):.3f} to {max(behind_fedavg):.3f} nats above FedAvg's under topic and token skew",
        f"edge of what was tried ({choices['Scaffold']['settings']['algorithm.server_optimizer.lr']:g})",
        f"a movement of {v['swing'].effect:.3f} nats beyond the IID baseline is real, and small; swings, which are movement without the net"
        f" change, are called from {limit()} nats on",
    ]


def limit() -> float:
    """Of swings of domains."""
    return float(yaml.safe_load((ROOT / "fedrift" / "diagnosis" / "thresholds.yaml").read_text())["oscillation"]["domain_floor"])


def detectors(first: ImportedStudy) -> list[str]:
    judged = diagnose_conditions(first.data)
    graded = {
        (
            condition.values.get("regime"),
            condition.values.get("algorithm"),
            condition.values.get("partition.severity"),
            each.failure,
        ): each.grade
        for condition in first.data.conditions
        for each in judged.get(condition.index, ())
        if each.grade in ("confirmed", "suspected")
    }
    swings = {key[:3] for key, grade in graded.items() if key[3] == "domain oscillation" and grade == "confirmed"}
    assert swings == {("style", name, severity) for name in ("FedAvg", "FedProx", "Scaffold") for severity in (0.5, 1.0)}
    rest = {key: grade for key, grade in graded.items() if key[3] != "domain oscillation"}
    assert rest == {
        ("style", "Scaffold", 1.0, "loss gap"): "confirmed",
        ("style", "FedAvg", 1.0, "divergence"): "suspected",
        ("style", "FedProx", 1.0, "divergence"): "confirmed",
        ("style", "Scaffold", 1.0, "divergence"): "confirmed",
    }
    return [
        f"`domain oscillation` is confirmed in all {len(swings)} style arms, and in no other. `loss gap` is confirmed in 1 (SCAFFOLD,"
        " severity 1).",
        "is confirmed for FedProx and SCAFFOLD at severity 1 and suspected for FedAvg",
    ]


def induced(failures: ImportedStudy) -> list[str]:
    v, study = failures.verdicts, failures.contents["study"]
    stages = {stage["name"]: stage["overrides"] for stage in study["stages"]}
    swing, syntax, general, divergence = (v[name] for name in ("oscillation", "syntax", "general text", "divergence"))
    assert (swing.verdict, syntax.verdict, general.verdict) == ("supported", "inconclusive", "inconclusive")
    pairs = [100 * failures.runs(role, stage="forgetting")["syntax.accuracy"].mean() for role in ("run", "iid_baseline")]
    swings = [failures.runs(role, stage="oscillation")["movement"].mean() for role in ("run", "iid_baseline")]
    broke = {
        (role, rate): failures.runs(role, stage="divergence", rate=rate)["diverged"]
        for role in ("run", "iid_baseline")
        for rate in (0.5, 1.0, 2.0)
    }
    assert all(struck.all() if rate == 2.0 else not struck.any() for (_, rate), struck in broke.items())
    assert divergence.both_diverged == 3 and divergence.diverged == 6 and np.isnan(divergence.effect)
    base, clients = study["base"], study["base"]["partition"]["num_clients"]
    return [
        f"has {len({entry.run for entry in failures.contents['runs']})} runs on the same model and text, one topic a client,"
        f" {round(base['training']['participation_rate'] * clients)} of {clients} clients a round",
        f"It began with {swing.seeds - 2} seeds. Those cannot reach p < 0.05 whatever happens, so 2 were added",
        f"{stages['oscillation']['training.num_rounds']} rounds of {stages['oscillation']['training.local_steps']} steps",
        f"domains move {swings[0]:.3f} nats between evaluations, {swings[1]:.3f} in the IID baseline: {signed(swing.effect)}"
        f" ({signed(swing.low)} to {signed(swing.high)}), p = {swing.p:.3f}, **supported**. The detector calls nothing: swings are called"
        f" from {limit()} nats on",
        f"{stages['forgetting']['training.num_rounds']} rounds of {stages['forgetting']['training.local_steps']} steps",
        f"{pairs[0]:.1f} % of minimal pairs are right, {pairs[1]:.1f} % in the IID baseline (p = {syntax.p:.3f}, {syntax.p_holm:.3f} by"
        f" Holm; {100 * syntax.detectable:.1f} percentage points would have been called).",
        f"General text costs {signed(general.effect)} nats beyond the IID baseline ({signed(general.low)} to {signed(general.high)}),"
        f" p = {general.p:.3f}, {general.p_holm:.3f} by Holm: inconclusive",
        "rates 0.5, 1, 2",
        f"at 2 all {int(broke['run', 2.0].sum())} runs diverge, and so do all {int(broke['iid_baseline', 2.0].sum())} IID baselines: a failure,"
        " and not the skew's. At 0.5 and at 1 none does.",
        earlier(failures),
        "a grid of factors of 2 can miss",
    ]


def earlier(failures: ImportedStudy) -> str:
    """The two numbers as they were printed once: means over rounds 0 and 8."""
    found = {}
    for metric in ("syntax.accuracy", "general.loss"):
        for role in ("run", "iid_baseline"):
            curves = [failures.manifest.get_run(run).trajectory() for run in failures.runs(role, stage="forgetting")["run"]]
            found[metric, role] = of([seen.curve(metric)[seen.observed_mask(metric)][-FINAL_EVALUATIONS:].mean() for seen in curves])
    pairs = [100 * found["syntax.accuracy", role].mean() for role in ("run", "iid_baseline")]
    general = (found["general.loss", "run"] - found["general.loss", "iid_baseline"]).mean()
    return (
        f"averaged the untrained model into the two numbers of forgetting: {pairs[0]:.1f} and {pairs[1]:.1f} %, and {signed(general)} nats."
    )


def small(smollm2: ImportedStudy) -> list[str]:
    cost, plan = smollm2.verdicts["cost"], smollm2.plan
    swings = [smollm2.runs(role)["movement"].mean() for role in ("run", "iid_baseline")]
    return [
        f"has {cost.seeds} seeds and {plan['num_rounds']} rounds of {plan['local_steps']} AdamW steps of {plan['batch_size']} x {plan['max_seq_length']} tokens.",
        f"One topic a client ends {cost.effect:.3f} nats above its IID baseline ({cost.low:.3f} to {cost.high:.3f}); {cost.seeds} seeds"
        f" cannot give a p below {cost.min_attainable_p:.2f}.",
        f"Domains move {swings[0]:.3f} nats, {swings[1]:.3f} in the IID baseline.",
    ]
