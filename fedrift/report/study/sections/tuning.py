"""What tuning chose, at what budget, and every trial."""

from __future__ import annotations

import math
from typing import Any

from .. import charts
from ..arms import shades
from ..document import Figure, Key, Missing, Panel, Section, Table
from ..dossier import Dossier
from ..numbers import NONE, plain


def section(dossier: Dossier) -> Section | Missing:
    choices, tuning = dossier.said["choices"], dossier.study.get("tuning") or {}
    if not choices:
        return Missing(
            "Tuned hyperparameters",
            (
                "tuning is not over yet"
                if tuning.get("trials")
                else "nothing was tuned: every arm ran at the settings of the study's file; add `tuning:`"
            ),
        )
    chosen = tuple(
        (
            each["of"],
            told(each["settings"]) or "nothing: no trial ended well",
            plain(value(each["score"])),
            str(len(each["tried"])),
            ", ".join(each["edges"]) or NONE,
        )
        for each in choices
    )
    edges = [each["of"] for each in choices if each["edges"]]
    text = [
        f"Each gets {tuning.get('trials')} trials on {tuning.get('split', 'validation')} text and on seeds"
        f" ({', '.join(map(str, tuning.get('seeds', ())))}) that the study does not use; the lowest mean loss wins, and its"
        " settings go into all runs."
    ]
    if edges:
        text.append(
            f"The best value of {'; '.join(edges)} lies at the edge of what was tried: a wider grid may find better ones."
        )
    tried = [(each["of"], trial) for each in choices for trial in each["tried"]]
    rows = tuple(
        (
            of,
            told(trial["settings"]),
            *(plain(value(trial["scores"].get(seed, trial["scores"].get(str(seed))))) for seed in tuning.get("seeds", ())),
            plain(value(trial["mean"])),
        )
        for of, trial in tried
    )
    figure = chart(choices)
    return Section(
        "tuning",
        "Tuned hyperparameters",
        tuple(text),
        (
            *([figure] if figure else []),
            Table(
                "tuning",
                "What was chosen. Edge: settings whose best value is the largest or smallest that was tried.",
                ("for", "chosen", "score", "trials", "edge"),
                chosen,
                frozenset({2, 3}),
            ),
            Table(
                "trials",
                "Every trial.",
                ("for", "settings", *(f"seed {seed}" for seed in tuning.get("seeds", ())), "mean"),
                rows,
                frozenset(range(2, 3 + len(tuning.get("seeds", ())))),
                long=True,
            ),
        ),
    )


def chart(choices: list[dict[str, Any]]) -> Figure | None:
    """Every trial's score against the learning rate."""
    path = next((path for each in choices for trial in each["tried"] for path in trial["settings"] if path.endswith("lr")), None)
    if not path:
        return None
    colours = shades([each["of"] for each in choices])
    rows = [
        {
            "arm": -1,
            "of": each["of"],
            "x": trial["settings"][path],
            "seed": told(trial["settings"]),
            "value": charts.small(value(trial["mean"])),
        }
        for each in choices
        for trial in each["tried"]
        if path in trial["settings"] and math.isfinite(value(trial["mean"]))
    ]
    if not rows:
        return None
    best = [
        {
            "arm": -1,
            "of": each["of"],
            "x": each["settings"][path],
            "value": charts.small(value(each["score"])),
            "low": None,
            "high": None,
            "seeds": len(each["tried"]),
        }
        for each in choices
        if path in each["settings"]
    ]
    keys = tuple(Key(of, colour, "dot") for of, colour in colours.items())
    return Figure(
        "tuning",
        f"Every trial's validation loss against {path}; the large dot is the choice.",
        (Panel("", charts.dial(rows, best, colours, x=path, y="validation loss", zero=False)),),
        keys,
        columns=1,
    )


def told(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{path} {setting:g}" if isinstance(setting, float) else f"{path} {setting}" for path, setting in settings.items()
    )


def value(number: Any) -> float:
    """A score as JSON has it."""
    return math.nan if number is None else float(number)
