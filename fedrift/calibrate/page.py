"""The calibration as Markdown and as plain JSON, with what it was made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from typing import Any

from .. import __version__
from ..detectors.finding import read_limits
from .score import GROUP, Alarms, Recall

Numbers = dict[str, Any]


def plain(alarms: Sequence[Alarms], recalls: Sequence[Recall]) -> Numbers:
    limits = read_limits()
    return {"date": date.today().isoformat(), "fedrift": __version__, "numpy": version("numpy"), "torch": version("torch"),
            "thresholds": {"version": limits["version"], "date": str(limits["date"])},
            "false_alarms": [asdict(each) for each in alarms], "recall": [asdict(each) for each in recalls]}


def markdown(numbers: Numbers) -> str:
    """Two tables and how to read them."""
    thresholds = numbers["thresholds"]
    rows = [f"| {a['failure']} | {a['called']} of {a['runs']} | {a['low']:.1%} to {a['high']:.1%} | "
            f"{a['confirmed']} of {a['groups']} | {a['highest']:.2f} |" for a in numbers["false_alarms"]]
    found = [f"| {r['plant']} | {r['failure']} | {r['found']} of {r['seeds']} | {r['grade']} | {r['first']:.0f} | "
             f"{r['lead']:.0f} | {', '.join(r['beside']) or '–'} | {', '.join(r['off_target']) or '–'} |"
             for r in numbers["recall"]]
    return "\n".join([
        "# Are the detectors right?", "",
        f"Made by `fedrift calibrate` on {numbers['date']}: fedrift {numbers['fedrift']}, torch {numbers['torch']}, numpy "
        f"{numbers['numpy']}, thresholds version {thresholds['version']} of {thresholds['date']}. Seeds 100 and above;",
        "thresholds may only be looked at on seeds 0 to 19 (`--tune`). All of it is quadratics, small adapters and",
        "drawn states with the real round loop and probes; no language model, so rates on those may differ.", "",
        "## False alarms", "",
        "Healthy runs: all clients hold the same, and the control is the same again with other noise and other cohorts. *Called*",
        "is one run that raised a suspicion, with the exact 95 % interval of that rate; *confirmed* is of groups of "
        f"{GROUP} seeds.", "*Nearest* is the largest excess over the control in units of the limit: 1 would be at the limit.", "",
        "| failure | called | interval | confirmed | nearest |", "|---|---|---|---|---|", *rows, "",
        "## Planted failures", "",
        "*First* is the round after which the records so far were enough, *lead* the rounds from there to the end.",
        "*Beside* are confirmations that belong to the plant and are documented with it, *off target* those that do not.", "",
        "| plant | failure | found | all seeds | first | lead | beside | off target |",
        "|---|---|---|---|---|---|---|---|", *found, ""])
