"""What would make a run cheaper, by its own figures: nothing is said that was not measured or does not follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

WORTH = 0.03  # of the run
FAIR = 0.15  # of the run may go to looking without a word


def hints(phases: Sequence[Mapping[str, Any]], said: Any, padding: float, trials: Sequence[Mapping[str, Any]],
          share_of_peak: float, most: int = 3) -> list[str]:
    """The sentences that save most. ``phases``: name, seconds each time, times, of a whole run; ``said``: the experiment;
    ``padding``: share of the trained positions that nothing is learnt from; ``trials``: other passes, measured."""
    whole = sum(phase["total"] for phase in phases)
    training = next((phase["total"] for phase in phases if phase["name"] == "training"), 0.0)
    found = [*evaluation(phases, said, whole), *ends(phases, said, whole), *passes(trials, said, training, share_of_peak)]
    if padding * training > WORTH * whole:
        found.append((padding * training, f"{padding:.0%} of the trained positions are padding: plan.seq_len below "
                      f"{said.plan.seq_len} would waste fewer"))
    best = sorted((each for each in found if each[0] >= WORTH * whole), key=lambda each: -each[0])
    return [text for _, text in best[:most]] or [
        f"nothing stands out: training is {training / whole:.0%} of a run, at {share_of_peak:.0%} of the machine's peak"]


def evaluation(phases: Sequence[Mapping[str, Any]], said: Any, whole: float) -> list[tuple[float, str]]:
    """Looking less often."""
    found = []
    for phase in phases:
        share = phase["total"] / whole
        if not phase["name"].startswith("probe ") or share < FAIR:
            continue
        name, rounds = phase["name"].removeprefix("probe "), said.plan.rounds
        if name != "losses":
            found.append((phase["total"], f"the probe {name} takes {share:.0%} of a run ({phase['seconds']:.2f} s each of "
                          f"{phase['times']} times): leave it out of evaluate.panel, or look less often with evaluate.deep"))
            continue
        for every in (2, 5, 10, 20):
            left = ceil(rounds / every) * phase["seconds"]
            now = left / (whole - phase["total"] + left)
            if every > said.evaluate.every and every <= rounds and (now < FAIR or 2 * every > rounds):
                found.append((phase["total"] - left, f"evaluation of the losses takes {share:.0%} of a run: "
                              f"evaluate.every={every} would make it {now:.0%}"))
                break
    return found


def ends(phases: Sequence[Mapping[str, Any]], said: Any, whole: float) -> list[tuple[float, str]]:
    """What is done once."""
    found = []
    total = {phase["name"]: phase["total"] for phase in phases}
    final, blocks = total.get("final evaluation, models saved", 0.0), said.evaluate.final
    if final > FAIR * whole and blocks > 1:
        found.append((final / 2, f"the final evaluation takes {final / whole:.0%} of a run: evaluate.final={blocks // 2} in "
                      f"place of {blocks} would make it {final / 2 / (whole - final / 2):.0%}"))
    loading = sum(seconds for name, seconds in total.items() if name.startswith("load "))
    if loading > FAIR * whole:
        found.append((loading, f"loading takes {loading / whole:.0%} of a run of {said.plan.rounds} rounds: `--twin` or a study "
                      "load once for all their runs"))
    return found


def passes(trials: Sequence[Mapping[str, Any]], said: Any, training: float, share_of_peak: float) -> list[tuple[float, str]]:
    """Passes of another size, where they were faster when tried."""
    chosen = next((trial for trial in trials if trial["chosen"]), None)
    if chosen is None:
        return []
    found = []
    for trial in trials:
        gain = trial["tokens_per_second"] / chosen["tokens_per_second"]
        saved = training * (1 - 1 / gain)
        if trial["batch"] == said.plan.batch and not trial["chosen"]:
            found.append((saved, f"{trial['clients']} clients in a pass gave {gain:.2f}x the tokens a second of "
                          f"{chosen['clients']}: --micro {trial['clients']}"))
        elif trial["batch"] != said.plan.batch:
            found.append((saved, f"steps run at {share_of_peak:.0%} of the peak, their products being small: "
                          f"plan.batch={trial['batch']} gave {gain:.2f}x the tokens a second (another experiment)"))
    return found
