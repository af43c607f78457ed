"""Forgetting of what was there before: general text, and grammar.

General text is in no client's pool; its loss rises above its start, and above what the baseline's rose. Grammar is asked by
minimal pairs: the share decided rightly, or the margin of their log-probabilities, falls more than in the baseline. A rise of the
loss alone is no loss of grammar.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..core.records import Trajectory
from .curves import align_curves, client_table, find_last_layer, noise_interval, read_curve
from .failures import find_runaway
from .finding import Finding, RunEvidence, domain_holders, make_finding, make_not_measured, make_series


def forgetting_general_text(case: RunEvidence) -> list[Finding]:
    rounds, loss = read_curve(case.run, "general.loss")
    if len(loss) < 2 or find_runaway(case.run, case.thresholds)[0]:
        return make_not_measured("forgetting of general text", "`general.loss`, text that no client holds, and no divergence")
    limit, base = case.thresholds["forgetting"]["general"], net_increase(case.iid_baseline, "general.loss", case)
    rise = net_increase(case.run, "general.loss", case)
    positive = rise > limit and not rise - base <= max(limit, baseline_noise(case, "general.loss"))
    said = (
        f"text that no client holds costs {rise:.3f} nats a token more than before training"
        + (f" ({base:.3f} in the baseline)" if math.isfinite(base) else "")
        if positive
        else "general text is not forgotten"
    )
    over = np.flatnonzero(loss - loss[0] > limit)
    return [
        make_finding(
            "forgetting of general text",
            rise,
            base,
            limit,
            "nats",
            is_positive=positive,
            message=said,
            in_baseline=None if math.isnan(base) else base > limit,
            first_round=int(rounds[over[0]]) if positive and len(over) else None,
            evidence=(make_series("general.loss", rounds, loss),),
        )
    ]


def forgetting_syntax(case: RunEvidence) -> list[Finding]:
    rounds, right = read_curve(case.run, "syntax.accuracy")
    at, margin = read_curve(case.run, "syntax.margin")
    if len(right) < 2 and len(margin) < 2:
        return make_not_measured("forgetting of syntax", "`syntax.accuracy` or `syntax.margin`: minimal pairs")
    limit = case.thresholds["forgetting"]
    pairs = {
        name: (-net_increase(case.run, f"syntax.{name}", case), -net_increase(case.iid_baseline, f"syntax.{name}", case))
        for name in ("accuracy", "margin")
    }
    first = abs(float(margin[0])) or math.nan if len(margin) else math.nan
    scaled = {"accuracy": pairs["accuracy"], "margin": (pairs["margin"][0] / first, pairs["margin"][1] / first)}
    noise = {"accuracy": baseline_noise(case, "syntax.accuracy"), "margin": baseline_noise(case, "syntax.margin") / first}
    called = {name: is_beyond_baseline(*scaled[name], limit[name], noise[name]) for name in scaled}
    worst = max(scaled, key=lambda name: -math.inf if math.isnan(scaled[name][0]) else scaled[name][0] / limit[name])
    (drop, base), positive = scaled[worst], any(called.values())
    what = {"accuracy": "of the minimal pairs are lost", "margin": "of the minimal pairs' margin is lost"}[worst]
    said = f"{drop:.1%} {what}" if positive else "syntax is not forgotten"
    said += f" ({base:.1%} in the baseline)" if positive and math.isfinite(base) else ""
    curves = {"accuracy": (rounds, right), "margin": (at, margin / first)}
    shown = None if math.isnan(base) else any(scaled[name][1] > limit[name] for name in scaled)
    return [
        make_finding(
            "forgetting of syntax",
            drop,
            base,
            limit[worst],
            f"share of {worst}",
            is_positive=positive,
            message=said,
            in_baseline=shown,
            locations=most_forgotten_phenomena(case, limit["accuracy"]) if positive else (),
            first_round=first_round_below(*curves[worst], limit[worst]) if positive else None,
            evidence=(make_series("syntax.accuracy", rounds, right), make_series("syntax.margin", at, margin)),
        )
    ]


def first_round_below(rounds: np.ndarray, values: np.ndarray, threshold: float) -> int | None:
    """The first round in which a curve lies below its beginning by a limit."""
    under = np.flatnonzero(values < values[0] - threshold) if len(values) else np.zeros(0, dtype=int)
    return int(rounds[under[0]]) if len(under) else None


def is_beyond_baseline(drop: float, baseline: float, threshold: float, noise: float) -> bool:
    """Whether something was lost, and more than in the baseline where there is one, by more than chance."""
    return drop > threshold and not drop - baseline <= (threshold if math.isnan(noise) else max(threshold, noise))


def baseline_noise(case: RunEvidence, metric: str) -> float:
    """What the differences from the baseline at the end give by chance."""
    _, ours, theirs = align_curves(case.run, case.iid_baseline, metric)
    return noise_interval(ours - theirs, min(int(case.thresholds["common"]["last"]), max(1, len(ours) // 4)))


def most_forgotten_phenomena(case: RunEvidence, threshold: float) -> tuple[str, ...]:
    """The phenomena that lost most, the worst first."""
    drops = (
        {name: -net_increase(case.run, "syntax.accuracy", case, name) for name in case.run.domains_of("syntax.accuracy")}
        if "syntax.accuracy" in case.run.metrics
        else {}
    )
    return tuple(sorted((name for name in drops if drops[name] > threshold), key=lambda name: -drops[name]))


def net_increase(run: Trajectory | None, metric: str, case: RunEvidence, domain: str = "") -> float:
    """How much a curve rose from its first value to the mean of its last (one where there are few)."""
    values = read_curve(run, metric, domain)[1]
    if len(values) < 2:
        return math.nan
    last = min(int(case.thresholds["common"]["last"]), max(1, len(values) // 4))
    return float(values[-last:].mean() - values[0])


# Forgetting of absent domains: a domain gets worse while none of its holders takes part, and better when one returns.
#
# An absence is a stretch of evaluated rounds in which no client of the cohort holds the domain; a client holds it if its share
# of it is at least half the pool's. The rise of the domain's loss from the last round with a holder to the end of the absence,
# less the baseline's over the same rounds, is averaged over the absences; and it must grow with their length: the slope of rise
# against rounds absent, after each domain's own mean (a regression with domains as fixed effects), one-sided.

FORGETTING_DURING_ABSENCE = "forgetting during absence"


class Absence(NamedTuple):
    domain: str
    last_present_round: int  # the last round in which a holder took part
    rounds: int  # of absence
    rise: float  # nats since then


def forgetting_during_absence(case: RunEvidence) -> list[Finding]:
    limit = case.thresholds["forgetting"]
    if find_runaway(case.run, case.thresholds)[0]:
        return make_not_measured(FORGETTING_DURING_ABSENCE, "a run that has not diverged")
    if not case.info.domains or not len(participation_mask(case.run)):
        return make_not_measured(FORGETTING_DURING_ABSENCE, "who holds which domain, and who took part (`train.steps` or `update.norm`)")
    held = domain_holders(case.info, limit["holder"])
    every = list_absences(case.run, case.info.domains, held, case.iid_baseline)
    ends = [
        absence
        for number, absence in enumerate(every)  # of each stretch the last: it is followed by a return or the end
        if number + 1 == len(every) or every[number + 1][:2] != absence[:2]
    ]
    if len(ends) < limit["episodes"]:
        return make_not_measured(
            FORGETTING_DURING_ABSENCE, f"{limit['episodes']:.0f} absences of a domain's holders; there are {len(ends)}"
        )
    rise = float(np.mean([absence.rise for absence in ends]))
    slope, p = fit_trend(every)
    positive = rise > limit["absent"] and p < limit["p"]
    worst = {
        name: np.mean([absence.rise for absence in ends if absence.domain == name]) for name in sorted({absence.domain for absence in ends})
    }
    order = tuple(sorted((name for name in worst if worst[name] > limit["absent"]), key=lambda name: -worst[name]))
    mine = {client for name in order for client in np.flatnonzero(held[:, case.info.domains.index(name)])}
    beyond = " beyond the baseline" if case.iid_baseline is not None else ""
    said = (
        f"a domain loses {rise:.3f} nats{beyond} while its holders sit out, {slope:.3f} a round of absence"
        if positive
        else f"domains lose {rise:.3f} nats{beyond} while their holders sit out"
    )
    base = math.nan if case.iid_baseline is None else 0.0
    return [
        make_finding(
            FORGETTING_DURING_ABSENCE,
            rise,
            base,
            limit["absent"],
            "nats",
            is_positive=positive,
            message=said,
            in_baseline=None if case.iid_baseline is None else False,
            first_round=ends[0].last_present_round if positive else None,
            clients=tuple(sorted(map(int, mine))) if positive else (),
            locations=order if positive else (),
            evidence=(
                make_series("rounds absent", [a.last_present_round + a.rounds for a in every], [a.rounds for a in every]),
                make_series("rise", [a.last_present_round + a.rounds for a in every], [a.rise for a in every]),
            ),
        )
    ]


def participation_mask(run: Trajectory) -> np.ndarray:
    """Who took part in which round, ``[rounds, N]`` bool; no rounds if that was not recorded."""
    for metric in ("train.steps", "update.norm", "train.loss"):
        seen = client_table(run, metric)
        if len(seen):
            return np.isfinite(seen) & (seen > 0)
    return np.zeros((0, 0), dtype=bool)


def list_absences(run: Trajectory, domains: tuple[str, ...], is_holder: np.ndarray, baseline: Trajectory | None) -> list[Absence]:
    """Every evaluated round of every absence, in order of domain and round."""
    there, found = participation_mask(run), []
    there = (
        there[:, : len(is_holder)] if there.shape[1] >= len(is_holder) else np.pad(there, ((0, 0), (0, len(is_holder) - there.shape[1])))
    )
    for number, name in enumerate(domains):
        if not run.has_curve("loss", name):
            continue
        loss = run.curve("loss", name)
        if baseline is not None:
            loss = loss - losses_at_rounds(baseline, name, run.rounds)
        last, value, gone = -1, math.nan, 0
        for row in range(len(run.rounds)):
            if (there[row] & is_holder[:, number]).any():
                last, value, gone = int(run.rounds[row]), loss[row], 0
            elif last >= 0:
                gone += 1
                if math.isfinite(loss[row]) and math.isfinite(value):
                    found.append(Absence(name, last, gone, float(loss[row] - value)))
    return found


def losses_at_rounds(baseline: Trajectory, name: str, rounds: np.ndarray) -> np.ndarray:
    """The twin's loss of a domain in some rounds, NaN where it has none."""
    values = np.full(len(rounds), np.nan)
    if baseline.has_curve("loss", name):
        _, ours, theirs = np.intersect1d(rounds, baseline.rounds, return_indices=True)
        values[ours] = baseline.curve("loss", name)[theirs]
    return values


def fit_trend(absences: list[Absence]) -> tuple[float, float]:
    """Slope of the rise in the rounds of absence within domains, and its one-sided p."""
    names = sorted({absence.domain for absence in absences})
    x, y = [np.array([getattr(absence, field) for absence in absences], dtype=float) for field in ("rounds", "rise")]
    for name in names:
        rows = np.array([absence.domain == name for absence in absences])
        x[rows], y[rows] = x[rows] - x[rows].mean(), y[rows] - y[rows].mean()
    freedom = len(absences) - len(names) - 1
    if freedom < 1 or not (x @ x) > 0:
        return 0.0, 1.0
    slope = float(x @ y / (x @ x))
    spread = float(np.sqrt(((y - slope * x) ** 2).sum() / freedom / (x @ x)))
    return slope, float(stats.t.sf(slope / spread, freedom)) if spread > 0 else float(slope <= 0)


# Collapse of the representation: the last layer's states crowd into few directions, or into one.
#
# The effective rank of the hidden states falls below .7 of the pretrained model's, or their mean cosine rises by .15; and both
# more than in the anchor that trained on everything, or in the baseline. Fine-tuning alone narrows a model too.


def representation_collapse(case: RunEvidence) -> list[Finding]:
    if not {"hidden.rank.ratio", "hidden.anisotropy"} & set(case.run.metrics):
        return make_not_measured("representation collapse", "`hidden.rank.ratio` or `hidden.anisotropy`")
    limit = case.thresholds["collapse"]
    other = case.centralized if case.centralized is not None else case.iid_baseline
    mine, theirs = measure_collapse(case.run), measure_collapse(other)
    lacking = [math.nan if other is None else theirs[name] for name in ("rank", "anisotropy")]
    over = [
        name
        for name, base in zip(("rank", "anisotropy"), lacking, strict=True)
        if mine[name] > limit[name] and not mine[name] - base <= limit[name] / 2
    ]
    worst = max(over or mine, key=lambda name: float(np.nanmax([mine[name] / limit[name], theirs[name] / limit[name], -np.inf])))
    words = {
        "rank": f"the last layer has lost {mine['rank']:.0%} of its effective rank",
        "anisotropy": f"hidden states of the last layer have come {mine['anisotropy']:.2f} closer in cosine",
    }
    base = theirs[worst] if other is not None else math.nan
    metric = {"rank": "hidden.rank.ratio", "anisotropy": "hidden.anisotropy"}[worst]
    layer = find_last_layer(case.run, metric)
    rounds, values = read_curve(case.run, metric, layer)
    unit = {"rank": "share of rank", "anisotropy": "cosine"}[worst]
    said = " and ".join(words[name] for name in over) or "the representation has not collapsed"
    return [
        make_finding(
            "representation collapse",
            mine[worst],
            base,
            limit[worst],
            unit,
            is_positive=bool(over),
            message=said,
            in_baseline=None if other is None else any(theirs[name] > limit[name] for name in theirs),
            first_round=first_collapsed_round(rounds, values, worst, limit[worst]) if over else None,
            locations=(layer,) if layer else (),
            evidence=(make_series(metric, rounds, values),),
        )
    ]


def measure_collapse(run: Trajectory | None) -> dict[str, float]:
    """How much rank the last layer has lost and how much cosine it has won, at the end."""
    found = {"rank": math.nan, "anisotropy": math.nan}
    if run is None:
        return found
    for name, metric in (("rank", "hidden.rank.ratio"), ("anisotropy", "hidden.anisotropy")):
        values = read_curve(run, metric, find_last_layer(run, metric) if metric in run.metrics else "")[1]
        if len(values):
            found[name] = float(1 - values[-1] if name == "rank" else values[-1] - values[0])
    return found


def first_collapsed_round(rounds: np.ndarray, values: np.ndarray, name: str, threshold: float) -> int | None:
    over = np.flatnonzero(1 - values > threshold if name == "rank" else values - values[0] > threshold)
    return int(rounds[over[0]]) if len(over) else None
