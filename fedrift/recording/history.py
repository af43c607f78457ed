"""What a run had written when its state was stored, noted in the state: a run that lost rows since is refused, not resumed.

Rows are written first and the state second, so the files of a run begin with what they were when the state was stored. What
follows there may be torn or of a round that is repeated; what was there before has to be there still.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from ..store import Run, lines
from ..store.tensors import WAY_OUT, read_meta

GROWING = ("records.jsonl", "events.jsonl")


def note_history(run: Run, round: int) -> dict[str, Any]:
    """How far the run's files have come after ``round``, plain JSON for the meta of the state that is about to be stored."""
    before = read_meta(run.state_path)[0].get("history", {}) if run.state_path.is_file() else {}
    kept = recorded_rounds(run)
    return {**{name: lines.mark(run.folder / name, before.get(name, lines.BEGINNING)) for name in GROWING},
            "mitigation": _mark_mitigation(run, round), "updates": kept[0] if kept else None}


def check_history(run: Run) -> None:
    """Raise UserError where a run that has a state lost something that it wrote before that state; call it before ``rewind``.

    A round whose state was stored, but not yet its timing, gets an empty timing: its seconds are not known.
    """
    if not run.state_path.exists():
        return
    meta, digest = read_meta(run.state_path)
    round, noted = meta.get("round"), meta.get("history")
    if not isinstance(round, int):
        raise UserError(f"{run.state_path} does not say of which round it is. {WAY_OUT}")
    if digest is None:
        run.event(round, "older state", "an older fedrift stored the state, without a digest: whether it is damaged is not known")
    if not isinstance(noted, Mapping):
        return
    for name in GROWING:
        path = run.folder / name
        if not lines.is_beginning(path, noted[name]):
            raise _refusal(run, round, f"{name} {_describe_loss(run, name, round, noted[name][0])}")
    if _mark_mitigation(run, round) != noted["mitigation"]:
        raise _refusal(run, round, f"mitigation.json has not the {noted['mitigation'][0]} decisions that were made until then")
    first = noted["updates"]
    missing = sorted(set(range(first, round + 1)) - set(recorded_rounds(run))) if first is not None else []
    if missing:
        raise _refusal(run, round, f"the updates of {_name_rounds(missing)} are missing")
    timed = {row["round"] for row in run.timings()}
    missing = [each for each in range(round) if each not in timed]
    if missing:
        raise _refusal(run, round, f"timings.jsonl has no line of {_name_rounds(missing)}")
    if round not in timed:  # killed between the state and the timing
        run.timing(round)


def recorded_rounds(run: Run) -> list[int]:
    """The rounds whose updates are kept, ascending."""
    return sorted(int(path.stem) for path in (run.folder / "updates").glob("[0-9]*.parquet") if path.stem.isdigit())


def _refusal(run: Run, round: int, lost: str) -> UserError:
    return UserError(f"run {run.id} cannot be resumed from round {round}, it would have a hole: {lost}. Put a copy of the file "
                     f"back in {run.folder}, or begin the run again (`fedrift run --fresh`, or remove that folder)")


def _describe_loss(run: Run, name: str, round: int, size: int) -> str:
    path = run.folder / name
    there = path.stat().st_size if path.exists() else 0
    if not there:
        return "is missing" if not path.exists() else "is empty"
    if there < size:
        return f"has {there:,} of the {size:,} bytes that it had then"
    return f"is not what it was then: something in its first {size:,} bytes was changed or removed"


def _name_rounds(rounds: list[int]) -> str:
    shown = ", ".join(map(str, rounds[:5])) + (f" and {len(rounds) - 5} more" if len(rounds) > 5 else "")
    return f"round{'s' if len(rounds) > 1 else ''} {shown}"


def _mark_mitigation(run: Run, until: int) -> list[int]:
    """The number of the mitigation's decisions up to a round, and their checksum."""
    said = [row for row in run.decisions() if row["round"] <= until]
    return [len(said), zlib.crc32(lines.write_value(said).encode())]


__all__ = ["check_history", "note_history", "recorded_rounds"]
