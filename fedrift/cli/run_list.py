"""The table of `fedrift list`: losses of every run, its gap to its IID baseline, and the settings in which the runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .options import print_unreadable

if TYPE_CHECKING:
    from rich.console import Console

    from ..core.records import Trajectory
    from ..storage import Run

COLUMNS = {
    "algorithm": "algorithm.type",
    "clustering": "clustering.type",
    "dataset": "dataset.name",
    "model": "model",
    "trainable": "trainable.type",
    "partition": "partition.type",
    "severity": "partition.severity",
    "clients": "partition.num_clients",
    "seed": "seed",
}
HIDDEN_KEYS = ("id", "schema", "partition_table", "fork", "model_fingerprint")  # not settings that a person chooses
HIDDEN_SUFFIXES = ("fingerprint", ".type")
MAX_SETTINGS = 6  # further settings of a run in the table
NUMBERS = ("perplexity", "loss", "gap", "severity", "clients", "seed", "rounds")


@dataclass
class ListedRun:
    """One row of the list. Losses are in nats per token."""

    run: Run
    config: dict[str, Any]  # its stored experiment
    last_round: int  # the last recorded round
    final_loss: float  # mean loss of the last evaluations; NaN without any
    gap_to_iid: float = float("nan")  # final loss minus that of the IID baseline in the same rounds; NaN if no baseline is stored
    labels: dict[str, Any] = field(default_factory=dict)  # its tags and its note


def find_iid_baselines(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the id of the stored IID baseline of every run that has one.

    Args:
        configs: The stored experiment of each run id.
    """
    from ..diagnosis.cases import iid_baseline_key
    from ..storage.index import is_iid

    baselines = {iid_baseline_key(config): run_id for run_id, config in configs.items() if is_iid(config) and "fork" not in config}
    keys = {run_id: iid_baseline_key(config) for run_id, config in configs.items() if not is_iid(config)}
    return {run_id: baselines[key] for run_id, key in keys.items() if key in baselines}


def find_stored_baseline(run: Run) -> Run | None:
    """Return the stored IID baseline of a run; None if there is none, or if it cannot be read, which one line on stderr states."""
    from ..storage import Run, list_runs, try_read_each

    stored = {other.id: other for other in list_runs(run.root)}
    baseline = stored.get(find_iid_baselines({other.id: other.config for other in stored.values()}).get(run.id, ""))
    readable, unreadable = try_read_each([baseline] if baseline else [], Run.trajectory)
    print_unreadable(unreadable)
    return baseline if readable else None


def read_listed_run(run: Run) -> tuple[ListedRun, Trajectory]:
    """Read one run; raise an error if its files are damaged."""
    from ..diagnosis.finding import final_loss
    from ..storage.index import read_labels

    trajectory = run.trajectory()
    last_round = int(trajectory.rounds.max(initial=0))
    return ListedRun(run, run.config, last_round, final_loss(trajectory), labels=read_labels(run)), trajectory


def add_gaps(listed: Iterable[tuple[ListedRun, Trajectory]]) -> list[ListedRun]:
    """Fill in the gap of every run whose IID baseline is among the runs."""
    from ..diagnosis.finding import final_gap

    by_id = {row.run.id: (row, trajectory) for row, trajectory in listed}
    baselines = find_iid_baselines({run_id: row.config for run_id, (row, _) in by_id.items()})
    for run_id, baseline_id in baselines.items():
        row, trajectory = by_id[run_id]
        row.gap_to_iid = final_gap(trajectory, by_id[baseline_id][1])
    return [row for row, _ in by_id.values()]


def print_list(console: Console, listed: Sequence[ListedRun]) -> None:
    """Print the runs: first the settings that all runs share, then a table with losses and the settings that differ."""
    from ..diagnosis.verdict import to_perplexity
    from ..report.format import format_number, format_signed
    from .tables import print_table

    settings = [flatten(row.config) for row in listed]
    columns = {name: [format_setting(values.get(path)) for values in settings] for name, path in COLUMNS.items()}
    shared = {name: cells[0] for name, cells in columns.items() if len(set(cells)) == 1 and len(listed) > 1}
    if shared:
        console.print(f"All {len(listed)} runs: " + ", ".join(f"{name} {cell}" for name, cell in shared.items() if cell), soft_wrap=False)
    cells: dict[str, list[str]] = {
        "run": shorten_ids([row.run.id for row in listed]),
        "status": [row.run.status for row in listed],
        "rounds": [f"{row.last_round}/{row.config['training']['num_rounds']}" for row in listed],
        "perplexity": [to_perplexity(row.final_loss) for row in listed],
        "loss": [format_number(row.final_loss, missing="") for row in listed],
        "gap": [format_signed(row.gap_to_iid, missing="") for row in listed],
        **{name: column for name, column in columns.items() if name not in shared},
        "settings": [describe_settings(row.config, values, settings) for row, values in zip(listed, settings, strict=True)],
        "tags": [", ".join(row.labels.get("tags", ())) for row in listed],
    }
    cells = {name: column for name, column in cells.items() if any(column)}
    print_table(console, list(cells), list(zip(*cells.values(), strict=True)), NUMBERS)
    if "gap" in cells:
        console.print("loss and gap: nats per token, mean of the last 5 evaluations; gap: to the stored matched IID baseline")


def describe_settings(config: Mapping[str, Any], own: Mapping[str, Any], settings: Sequence[Mapping[str, Any]]) -> str:
    """Describe a fork, and the settings outside the columns that all runs have and in which they differ."""
    paths = [path for path in own if path not in COLUMNS.values() and is_shown(path) and all(path in values for values in settings)]
    differing = [path for path in paths if len({format_setting(values[path]) for values in settings}) > 1]
    parts = [f"{path.rpartition('.')[2]}={format_setting(own[path])}" for path in differing]
    if len(parts) > MAX_SETTINGS:
        parts = [*parts[:MAX_SETTINGS], f"and {len(parts) - MAX_SETTINGS} more"]
    if "fork" in config:
        parts.insert(0, f"fork of {config['fork']['run'][:6]} at round {config['fork']['from_round']}")
    return " ".join(parts)


def is_shown(path: str) -> bool:
    """Return whether a key of the stored experiment is a setting that a person chooses."""
    return path.partition(".")[0] not in HIDDEN_KEYS and not path.endswith(HIDDEN_SUFFIXES)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def format_setting(value: Any) -> str:
    """Format a value of an experiment in a few characters."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value.rpartition("/")[2] if isinstance(value, str) else json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def shorten_ids(ids: Sequence[str], shortest: int = 6) -> list[str]:
    """Return the shortest prefixes of one common length, at least ``shortest``, that identify each id."""
    length = shortest
    while len({run_id[:length] for run_id in ids}) < len(set(ids)):
        length += 1
    return [run_id[:length] for run_id in ids]
