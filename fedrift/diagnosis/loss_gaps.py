"""The loss gap: the run ends above its IID baseline, in all or in one domain.

Called above a limit and above what the scatter of the last evaluations gives by chance. No failure mode of its own but the
price of whatever happened; without it the other findings have done no harm yet.
"""

from __future__ import annotations

import math

import numpy as np

from ..core.records import Trajectory, final_round_indices
from .curves import align_curves, client_table, final_gap, noise_interval, perplexity_change_percent
from .failures import find_dead_model, find_runaway
from .finding import Finding, RunEvidence, clients_holding, make_finding, make_not_measured, make_series


def loss_gap(case: RunEvidence) -> list[Finding]:
    both, ours, theirs = align_curves(case.run, case.iid_baseline)
    common = case.thresholds["common"]
    if len(both) < common["shortest"]:
        return make_not_measured("loss gap", f"{common['shortest']:.0f} evaluations that the run and an IID baseline have in common")
    if find_runaway(case.run, case.thresholds)[0]:
        return make_not_measured("loss gap", "a run that has not diverged")
    if find_dead_model(case.iid_baseline, case.thresholds)[0]:
        return make_not_measured("loss gap", "an IID baseline whose model is not dead")
    return [overall_gap(case, both, ours, theirs), *domain_gaps(case)]


def overall_gap(case: RunEvidence, both: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> Finding:
    above, limit = (final_gap(case.run, case.iid_baseline, num_last=int(case.thresholds["common"]["last"])), case.thresholds["gap"]["all"])
    limit = max(limit, noise_interval(ours - theirs, int(case.thresholds["common"]["last"])))
    said = (
        f"the end loss is {above:.3f} nats above the IID baseline's ({perplexity_change_percent(above):+.1f}% perplexity)"
        if above > limit
        else "the end loss is not above the IID baseline's by more than the limit"
    )
    return make_finding(
        "loss gap",
        above,
        0.0,
        limit,
        "nats",
        is_positive=above > limit,
        message=said,
        in_baseline=False,
        first_round=first_round_above(both, ours - theirs, limit) if above > limit else None,
        evidence=(make_series("loss", both, ours), make_series("loss of the baseline", both, theirs)),
    )


def domain_gaps(case: RunEvidence) -> list[Finding]:
    gaps = {
        name: final_gap(case.run, case.iid_baseline, name, int(case.thresholds["common"]["last"])) for name in case.run.domains_of("loss")
    }
    known = {name: value for name, value in gaps.items() if math.isfinite(value)}
    if not known:
        return []
    worst, limit = max(known, key=lambda name: known[name]), case.thresholds["gap"]["domain"]
    both, ours, theirs = align_curves(case.run, case.iid_baseline, "loss", worst)
    last = int(case.thresholds["common"]["last"])
    limit = max(limit, noise_interval(ours - theirs, last, len(known)))  # the worst of many looks
    over = known[worst] > limit
    back = -min(known.values())  # how far the twin's worst domain lies above the run: what choosing the worst gives by itself
    where = tuple(sorted((name for name in known if known[name] > limit), key=lambda name: -known[name]))
    said = f"{worst} ends {known[worst]:.3f} nats above the baseline" if over else "no domain ends above the baseline by much"
    return [
        make_finding(
            "domain gap",
            known[worst],
            back,
            limit,
            "nats",
            is_positive=over,
            message=said,
            in_baseline=back > limit,
            first_round=first_round_above(both, ours - theirs, limit) if over else None,
            locations=where,
            clients=clients_holding(case, where),
            evidence=(make_series(f"loss of {worst}", both, ours), make_series(f"loss of {worst} in the baseline", both, theirs)),
        )
    ]


def first_round_above(rounds: np.ndarray, differences: np.ndarray, threshold: float) -> int:
    """The round from which on a difference stays above a limit; the last if it does not stay."""
    under = np.flatnonzero(~(differences > threshold))
    first = under[-1] + 1 if len(under) else 0
    return int(rounds[min(first, len(rounds) - 1)])


# Unfairness: the model serves some clients at the expense of others.
#
# The worst client's loss lies further above the mean than in the baseline, by .1 nats; and more than 15 % of the clients would
# have been better off alone. What a client lay above the mean before the first round does not count: its text is harder, which
# training has not done to it. Without the run in which everybody trains alone it is suspected only.


def unfairness(case: RunEvidence) -> list[Finding]:
    if find_runaway(case.run, case.thresholds)[0]:
        return make_not_measured("unfairness", "a run that has not diverged")
    mine = final_client_losses(case.run, case)
    if len(mine) < 2 or not np.isfinite(mine).all():
        return make_not_measured("unfairness", "finite losses of two clients or more")
    limit, theirs = case.thresholds["unfairness"], final_client_losses(case.iid_baseline, case)
    above, other = excess_over_mean(case.run, mine), excess_over_mean(case.iid_baseline, theirs)
    worst, base = float(above.max()), float(other.max()) if len(other) else math.nan
    alone = final_client_losses(case.local_only, case)
    known = len(alone) == len(mine)
    harmed = np.flatnonzero(mine > alone + limit["margin"]) if known else np.zeros(0, dtype=int)
    share = len(harmed) / len(mine) if known else math.nan
    positive = bool(worst - (0 if math.isnan(base) else base) > limit["gap"] and not share <= limit["harmed"])
    order = np.argsort(-above)
    said = (
        f"client {order[0]} ends {worst:.3f} nats above the mean client, more than where it began"
        if positive
        else f"the worst client ends {worst:.3f} nats above the mean, more than where it began"
    )
    said += f" ({base:.3f} in the baseline)" if math.isfinite(base) else ""
    if known:
        said += f"; {share:.0%} of the clients would be better off alone"
    rounds = case.run.rounds
    every = client_table(case.run, "loss")
    gaps = worst_excess_per_round(every, case.run)
    evidence = (make_series("worst client above the mean", rounds, gaps),) if len(every) else ()
    over = rounds[gaps - (0 if math.isnan(base) else base) > limit["gap"]] if len(every) else rounds[:0]
    return [
        make_finding(
            "unfairness",
            worst,
            base,
            limit["gap"],
            "nats",
            is_positive=positive,
            message=said,
            in_baseline=None if math.isnan(base) else base > limit["gap"],
            first_round=int(over[0]) if positive and len(over) else None,
            clients=tuple(int(k) for k in (harmed if known else order[:1])) if positive else (),
            is_confirmable=known,
            missing_input="" if known else "the run in which every client trains alone",
            evidence=evidence,
        )
    ]


def final_client_losses(run: Trajectory | None, case: RunEvidence) -> np.ndarray:
    """The clients' losses at the end, ``[N]``: of the larger evaluation, else the mean of the last ones."""
    large = client_table(run, "final.loss")
    values = large if len(large) else client_table(run, "loss")
    if run is None or not np.isfinite(values).any():
        return np.zeros(0)
    seen = np.isfinite(values).any(axis=1)
    ends: np.ndarray = values[seen][final_round_indices(run.rounds[seen], int(case.thresholds["common"]["last"]))].mean(axis=0)
    return ends


def excess_over_mean(run: Trajectory | None, values: np.ndarray) -> np.ndarray:
    """How far losses ``[..., N]`` lie above their mean, less what the same client lay above it before the first round."""
    every, above = client_table(run, "loss"), values - values.mean(axis=-1, keepdims=True) if len(values) else values
    if not len(every) or run is None or run.rounds[0] != 0 or not np.isfinite(every[0]).all():
        return above
    harder: np.ndarray = (every[0] - every[0].mean()).clip(0)
    return above - harder if len(harder) == above.shape[-1] else above


def worst_excess_per_round(values: np.ndarray, run: Trajectory) -> np.ndarray:
    """The most harm in every round, NaN where nobody was measured."""
    seen = np.isfinite(values).all(axis=1)
    return np.where(seen, excess_over_mean(run, np.where(seen[:, None], values, 0)).max(axis=1), np.nan)
