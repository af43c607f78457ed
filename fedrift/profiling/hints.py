"""Give hints that would make a run cheaper, each of which follows from the measurements of a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from ..config.schema import ExperimentConfig

MAX_HINTS = 3  # largest number of hints
MIN_SAVING = 0.03  # smallest share of a run's time that a hint must save
MAX_EVALUATION_SHARE = 0.15  # largest share of a run's time for evaluation or loading that gives no hint


def find_hints(
    phases: Sequence[Mapping[str, Any]], config: ExperimentConfig, padding: float, trials: Sequence[Mapping[str, Any]], share_of_peak: float
) -> list[str]:
    """Return the hints that save the most time, the largest saving first.

    Args:
        phases: Phases of a whole run with their names, seconds per occurrence, numbers of occurrences and total seconds.
        config: The experiment.
        padding: Share of trained positions that are padding, in [0, 1].
        trials: Measured speeds of passes of several sizes (``time_pass_sizes``).
        share_of_peak: Training speed relative to the speed of a large matrix product.

    Returns:
        Sentences; if no hint saves enough, one sentence that says so.
    """
    total_s = sum(phase["total"] for phase in phases)
    training_s = next((phase["total"] for phase in phases if phase["name"] == "training"), 0.0)
    hints = [
        *evaluation_hints(phases, config, total_s),
        *one_time_hints(phases, config, total_s),
        *pass_size_hints(trials, config, training_s, share_of_peak),
    ]
    if padding * training_s > MIN_SAVING * total_s:
        hints.append(
            (
                padding * training_s,
                f"{100 * padding:.0f} % of the trained positions are padding. A training.max_seq_length below "
                f"{config.training.max_seq_length} would reduce this share.",
            )
        )
    best = sorted((hint for hint in hints if hint[0] >= MIN_SAVING * total_s), key=lambda hint: -hint[0])
    return [text for _, text in best[:MAX_HINTS]] or [
        f"No phase stands out: training takes {100 * training_s / total_s:.0f} % of a run and "
        f"reaches {100 * share_of_peak:.0f} % of the machine's peak."
    ]


def evaluation_hints(phases: Sequence[Mapping[str, Any]], config: ExperimentConfig, total_s: float) -> list[tuple[float, str]]:
    """Return hints to evaluate less often, as pairs of saved seconds and sentence.

    Args:
        phases: Phases of a whole run, as in ``find_hints``.
        config: The experiment.
        total_s: Duration of the run in seconds.
    """
    hints = []
    for phase in phases:
        share = phase["total"] / total_s
        if not phase["name"].startswith("probe ") or share < MAX_EVALUATION_SHARE:
            continue
        name, rounds = phase["name"].removeprefix("probe "), config.training.num_rounds
        if name != "losses":
            hints.append(
                (
                    phase["total"],
                    f"The probe {name} takes {100 * share:.0f} % of a run ({phase['seconds']:.2f} s each of "
                    f"{phase['times']} times). Remove it from evaluation.probes, or run it less often with "
                    "evaluation.expensive_interval.",
                )
            )
            continue
        for interval in (2, 5, 10, 20):
            new_total = ceil(rounds / interval) * phase["seconds"]
            new_share = new_total / (total_s - phase["total"] + new_total)
            if interval > config.evaluation.interval and interval <= rounds and (new_share < MAX_EVALUATION_SHARE or 2 * interval > rounds):
                hints.append(
                    (
                        phase["total"] - new_total,
                        f"Evaluation of the losses takes {100 * share:.0f} % of a run. "
                        f"With evaluation.interval={interval} it would take {100 * new_share:.0f} %.",
                    )
                )
                break
    return hints


def one_time_hints(phases: Sequence[Mapping[str, Any]], config: ExperimentConfig, total_s: float) -> list[tuple[float, str]]:
    """Return hints on phases that occur once per run, as pairs of saved seconds and sentence.

    Args:
        phases: Phases of a whole run, as in ``find_hints``.
        config: The experiment.
        total_s: Duration of the run in seconds.
    """
    hints = []
    total = {phase["name"]: phase["total"] for phase in phases}
    final, blocks = total.get("final evaluation and saving", 0.0), config.evaluation.final_blocks_per_domain
    if final > MAX_EVALUATION_SHARE * total_s and blocks > 1:
        hints.append(
            (
                final / 2,
                f"The final evaluation takes {100 * final / total_s:.0f} % of a run. "
                f"With evaluation.final_blocks_per_domain={blocks // 2} instead of {blocks} it would take "
                f"{100 * final / 2 / (total_s - final / 2):.0f} %.",
            )
        )
    loading = sum(seconds for name, seconds in total.items() if name.startswith("load "))
    if loading > MAX_EVALUATION_SHARE * total_s:
        hints.append(
            (
                loading,
                f"Loading takes {100 * loading / total_s:.0f} % of a run of {config.training.num_rounds} rounds. "
                "`--iid-baseline` and studies load only once for all their runs.",
            )
        )
    return hints


def pass_size_hints(
    trials: Sequence[Mapping[str, Any]], config: ExperimentConfig, training_s: float, share_of_peak: float
) -> list[tuple[float, str]]:
    """Return hints on passes of other sizes that were faster in a trial, as pairs of saved seconds and sentence.

    Args:
        trials: Measured speeds of passes of several sizes (``time_pass_sizes``).
        config: The experiment.
        training_s: Duration of the run's training in seconds.
        share_of_peak: Training speed relative to the speed of a large matrix product.
    """
    chosen = next((trial for trial in trials if trial["chosen"]), None)
    if chosen is None:
        return []
    hints = []
    for trial in trials:
        gain = trial["tokens_per_second"] / chosen["tokens_per_second"]
        saved = training_s * (1 - 1 / gain)
        if trial["batch"] == config.training.batch_size and not trial["chosen"]:
            hints.append(
                (
                    saved,
                    f"--clients-per-pass {trial['clients']} gave {gain:.2f}x the tokens per second of the current "
                    f"{chosen['clients']} clients per pass.",
                )
            )
        elif trial["batch"] != config.training.batch_size:
            hints.append(
                (
                    saved,
                    f"Training reaches {100 * share_of_peak:.0f} % of the machine's peak because its matrix products are small. "
                    f"training.batch_size={trial['batch']} gave {gain:.2f}x the tokens per second, but it changes the experiment.",
                )
            )
    return hints
