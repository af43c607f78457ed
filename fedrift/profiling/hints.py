"""What would make a run cheaper, by its own figures: nothing is said that was not measured or does not follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..config.schema import ExperimentConfig

MIN_SAVING = 0.03  # of the run
MAX_EVALUATION_SHARE = 0.15  # of the run may go to looking without a word


def find_hints(
    phases: Sequence[Mapping[str, Any]],
    config: ExperimentConfig,
    padding: float,
    trials: Sequence[Mapping[str, Any]],
    share_of_peak: float,
    max_hints: int = 3,
) -> list[str]:
    """The sentences that save most. ``phases``: name, seconds each time, times, of a whole run; ``padding``: share of the
    trained positions that nothing is learnt from; ``trials``: other passes, measured."""
    whole = sum(phase["total"] for phase in phases)
    training = next((phase["total"] for phase in phases if phase["name"] == "training"), 0.0)
    found = [
        *evaluation_hints(phases, config, whole),
        *one_time_hints(phases, config, whole),
        *pass_size_hints(trials, config, training, share_of_peak),
    ]
    if padding * training > MIN_SAVING * whole:
        found.append(
            (
                padding * training,
                f"{padding:.0%} of the trained positions are padding: training.max_seq_length below "
                f"{config.training.max_seq_length} would waste fewer",
            )
        )
    best = sorted((each for each in found if each[0] >= MIN_SAVING * whole), key=lambda each: -each[0])
    return [text for _, text in best[:max_hints]] or [
        f"nothing stands out: training is {training / whole:.0%} of a run, at {share_of_peak:.0%} of the machine's peak"
    ]


def evaluation_hints(phases: Sequence[Mapping[str, Any]], config: ExperimentConfig, total_s: float) -> list[tuple[float, str]]:
    """Looking less often."""
    found = []
    for phase in phases:
        share = phase["total"] / total_s
        if not phase["name"].startswith("probe ") or share < MAX_EVALUATION_SHARE:
            continue
        name, rounds = phase["name"].removeprefix("probe "), config.training.num_rounds
        if name != "losses":
            found.append(
                (
                    phase["total"],
                    f"the probe {name} takes {share:.0%} of a run ({phase['seconds']:.2f} s each of "
                    f"{phase['times']} times): leave it out of evaluation.probes, or look less often with "
                    "evaluation.expensive_interval",
                )
            )
            continue
        for every in (2, 5, 10, 20):
            left = ceil(rounds / every) * phase["seconds"]
            now = left / (total_s - phase["total"] + left)
            if every > config.evaluation.interval and every <= rounds and (now < MAX_EVALUATION_SHARE or 2 * every > rounds):
                found.append(
                    (
                        phase["total"] - left,
                        f"evaluation of the losses takes {share:.0%} of a run: evaluation.interval={every} would make it {now:.0%}",
                    )
                )
                break
    return found


def one_time_hints(phases: Sequence[Mapping[str, Any]], config: ExperimentConfig, total_s: float) -> list[tuple[float, str]]:
    """What is done once."""
    found = []
    total = {phase["name"]: phase["total"] for phase in phases}
    final, blocks = total.get("final evaluation, models saved", 0.0), config.evaluation.final_blocks_per_domain
    if final > MAX_EVALUATION_SHARE * total_s and blocks > 1:
        found.append(
            (
                final / 2,
                f"the final evaluation takes {final / total_s:.0%} of a run: "
                f"evaluation.final_blocks_per_domain={blocks // 2} in place of {blocks} would make it "
                f"{final / 2 / (total_s - final / 2):.0%}",
            )
        )
    loading = sum(seconds for name, seconds in total.items() if name.startswith("load "))
    if loading > MAX_EVALUATION_SHARE * total_s:
        found.append(
            (
                loading,
                f"loading takes {loading / total_s:.0%} of a run of {config.training.num_rounds} rounds: "
                "`--iid-baseline` or a study load once for all their runs",
            )
        )
    return found


def pass_size_hints(
    trials: Sequence[Mapping[str, Any]], config: ExperimentConfig, training_s: float, share_of_peak: float
) -> list[tuple[float, str]]:
    """Passes of another size, where they were faster when tried."""
    chosen = next((trial for trial in trials if trial["chosen"]), None)
    if chosen is None:
        return []
    found = []
    for trial in trials:
        gain = trial["tokens_per_second"] / chosen["tokens_per_second"]
        saved = training_s * (1 - 1 / gain)
        if trial["batch"] == config.training.batch_size and not trial["chosen"]:
            found.append(
                (
                    saved,
                    f"{trial['clients']} clients in a pass gave {gain:.2f}x the tokens a second of "
                    f"{chosen['clients']}: --clients-per-pass {trial['clients']}",
                )
            )
        elif trial["batch"] != config.training.batch_size:
            found.append(
                (
                    saved,
                    f"steps run at {share_of_peak:.0%} of the peak, their products being small: "
                    f"training.batch_size={trial['batch']} gave {gain:.2f}x the tokens a second (another experiment)",
                )
            )
    return found
