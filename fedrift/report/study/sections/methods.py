"""How it was done, from the study's own file and the experiments as they were run."""

from __future__ import annotations

from typing import Any

from ..document import Missing, Section
from ..dossier import Dossier
from ..numbers import many


def section(dossier: Dossier) -> Section | Missing:
    asked = next(
        (dossier.experiments[run] for arm in dossier.arms for run in arm.runs.values() if run in dossier.experiments), None
    )
    if asked is None:
        return Missing("Methods", "no run has begun yet")
    plan, corpus, tune, partition = asked["plan"], asked["corpus"], asked["tune"], asked["partition"]
    clients = partition["clients"]
    work = f"{plan['epochs']:g} local epochs" if plan.get("epochs") else many(plan["steps"], "local step")
    limit = f", the first {corpus['limit']} documents" if corpus.get("limit") else ""
    often = "round" if asked["evaluate"]["every"] == 1 else many(asked["evaluate"]["every"], "round")
    said = [
        (
            f"{many(len(dossier.arms), 'arm')} over the factors {', '.join(dossier.said['factors']) or '(none)'}; each arm has"
            " the same seeds. A seed decides the start, the deal, the cohorts and the order of batches, so arms of one seed"
            " differ in nothing but their factors. What follows is the first arm; the factors change it."
        ),
        (
            f"Model {asked['model']}, tuned with {named(tune)}, on the corpus {corpus['name']}{limit}. {clients} clients dealt by"
            f" {named(partition)}; {max(1, round(plan['participation'] * clients))} of them take part in each of {plan['rounds']}"
            f" rounds, with {work} of {plan['batch']} sequences of {plan['seq_len']} tokens, {named(plan['optimizer'])},"
            f" gradients clipped at {plan['clip'] if plan['clip'] else 'nothing'}, updates weighted by {plan['weighting']}."
        ),
        f"Evaluated every {often} on {asked['evaluate']['blocks']} held-out blocks a domain"
        f" of the {asked['evaluate']['split']} split"
        + (f", and on {asked['evaluate']['final']} after the last round." if asked["evaluate"].get("final") else "."),
        (
            "Each run is held against its IID twin: the same experiment and the same documents, dealt by chance. A difference"
            " that the twin shows too is not the skew's."
        ),
        (
            "The unit of replication is the seed. Intervals are 95 % paired t-intervals over seeds; p are from exact"
            " sign-flip tests (Page's L for trends over three or more levels, exact tests for rates), corrected by Holm"
            " inside a family. A p that so many seeds cannot give is not given. Diverged runs are kept and count as the"
            " worst of ranks; seeds in which both sides of a comparison diverged have no difference, are left out of it"
            " and counted. The smallest effect is the one that the test would call with 80 % probability."
        ),
    ]
    for stage, design in dossier.said["designs"].items():
        if design["aliases"]:
            mixed = "; ".join(
                f"{alias['factor']} is read with {alias['share']:.0%} of {' x '.join(alias['pair'])}"
                for alias in design["aliases"]
            )
            said.append(f"Stage {stage} is a fraction of the full grid, so main effects are mixed with interactions: {mixed}.")
    return Section("methods", "Methods", tuple(said))


def named(said: dict[str, Any]) -> str:
    """A class with its settings: ``Lora (rank 8, alpha 16)``."""
    rest = ", ".join(
        (
            f"{key} {value:g}"
            if isinstance(value, float)
            else f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        )
        for key, value in said.items()
        if key != "is" and value not in (0.0, None, [], "") and not isinstance(value, dict)
    )
    return f"{said['is']} ({rest})" if rest else str(said["is"])
