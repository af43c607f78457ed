"""Calibrations as Markdown and as plain JSON, with what they were made with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..detectors.finding import read_limits
from .score import GROUP, Alarms, Recall

Numbers = dict[str, Any]
WHAT = {
    "analytic": "Quadratics, small adapters and drawn states of which everything is known, with the real round loop and probes.",
    "sandbox": "A made-up language of which everything is known, and a tiny language model that was raised on it; whole "
               "experiments with LoRA and the whole panel.",
    "lm": "`pocket` with LoRA on three topics of BBC News, a client each; whole experiments with the whole panel.",
}
HEAD = """# Are the detectors right?

Made by `fedrift calibrate` (`make calibrate` does all of it). Seeds 100 and above; thresholds may only be looked at on
seeds 0 to 19 (`--tune`), and never are on the runs that they are reported on.

*False alarms*: healthy runs hold the same documents at every client, and the control is the same again with other noise,
cohorts and deals. *Called* is one run that raised a suspicion, with the exact 95 % interval of that rate; *confirmed* is of
groups of {group} seeds. *Nearest* is the largest excess over the control in units of the limit.

*Planted failures*: *first* is the round after which the records so far were enough, *lead* the rounds from there to the end.
*Beside* are confirmations that belong to the plant and are documented with it, *off target* those that do not. *Placebo*
is the share of other ways to tag the same runs as run and control that confirm the failure too; n seeds cannot bring it under
about 1 in 2^n. A broken control is a bug whatever its twin does, so no tags are exchanged there."""


def plain(collection: str, alarms: Sequence[Alarms], recalls: Sequence[Recall]) -> Numbers:
    limits = read_limits()
    return {
        "collection": collection, "date": date.today().isoformat(), "fedrift": __version__, "numpy": version("numpy"),
        "torch": version("torch"), "thresholds": {"version": limits["version"], "date": str(limits["date"])},
        "false_alarms": [asdict(each) for each in alarms], "recall": [asdict(each) for each in recalls]}


def markdown(every: Iterable[Numbers]) -> str:
    """How to read it, and two tables a collection."""
    return "\n\n".join([HEAD.format(group=GROUP), *map(section, every)]) + "\n"


def section(numbers: Numbers) -> str:
    """One collection."""
    thresholds = numbers["thresholds"]
    rows = [f"| {a['failure']} | {a['called']} of {a['runs']} | {a['low']:.1%} to {a['high']:.1%} | "
            f"{a['confirmed']} of {a['groups']} | {told(a['highest'], '.2f')} |" for a in numbers["false_alarms"]]
    found = [f"| {r['plant']} | {r['failure']} | {r['found']} of {r['seeds']} | {r['grade']} | {told(r['first'], '.0f')} | "
             f"{told(r['lead'], '.0f')} | {', '.join(r['beside']) or '–'} | {', '.join(r['off_target']) or '–'} | "
             f"{told(r['placebo'], '.0%')} |" for r in numbers["recall"]]
    return "\n".join([
        f"## {numbers['collection']}", "", WHAT[numbers["collection"]],
        f"{numbers['date']}, fedrift {numbers['fedrift']}, torch {numbers['torch']}, thresholds version {thresholds['version']} "
        f"of {thresholds['date']}.", "",
        "| failure | called | interval | confirmed | nearest |", "|---|---|---|---|---|", *rows, "",
        *(["| plant | failure | found | all seeds | first | lead | beside | off target | placebo |",
           "|---|---|---|---|---|---|---|---|---|", *found] if found else [])])


def told(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def recorded(folder: Path) -> list[Numbers]:
    """The calibrations that are in a folder, in the order of ``WHAT``."""
    return [json.loads(place.read_text()) for name in WHAT if (place := folder / f"calibration-{name}.json").exists()]
