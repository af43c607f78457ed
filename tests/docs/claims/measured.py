"""Pages whose figures the benchmarks and `python -m benchmarks.calibration` wrote, from benchmarks/results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from shutil import copy
from types import ModuleType

import yaml

from benchmarks.calibration.score import load_calibrations, render_page
from fedrift.models.presets import PRESETS

from .stores import RESULTS, ROOT, result


@contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    """A module of benchmarks/, where they find each other."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for each in (name, "machine"):
            sys.modules.pop(each, None)


def lines(text: str) -> list[str]:
    """Those that hold a digit."""
    return [line.strip() for line in text.splitlines() if any(letter.isdigit() for letter in line)]


def calibration() -> str:
    """The whole of docs/calibration.md."""
    return render_page(load_calibrations(RESULTS))


def speed(folder: Path) -> list[str]:
    """Every table of docs/speed.md, written again, and what its text says of them."""
    path = folder / "speed.md"
    copy(ROOT / "docs" / "speed.md", path)
    with benchmark("speed_page") as page:
        assert page.main(["--out", str(RESULTS), "--page", str(path)]) == 0
        results = page.Results(RESULTS)
        marks = ("targets", *page.TABLE_COLUMNS)
        loops = [results.get(f"loop-{model}")["rows"] for model in ("pocket", "distilgpt2")]
        half = results.row("loop-pocket", clients=10, sequences=2)["loop_share_of_peak"]
        whole = results.row("loop-pocket", clients=10, sequences=8, tokens=64)["loop_share_of_peak"]
    text = path.read_text()
    tables = [line for mark in marks for line in lines(text.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0])]
    eight = [row["loop_share_of_peak"] for rows in loops for row in rows if row["sequences"] == 8]
    (flower,) = [row for row in result("backends")["rows"] if row["backend"] == "Flower simulation"]
    return [
        *tables,
        f"at 60 to 70 % of the peak that is {1 / 0.7:.1f} to {1 / 0.6:.1f}x",
        f"with batches of 8 sequences it runs at {min(eight):.0%} to {max(eight):.0%}".replace("%", "", 1).replace("%", " %"),
        f"a target of 1.8x against a loop at {100 * whole:.0f} % asks for more than the whole peak ({1 / whole:.1f}x)",
        f"With 2 sequences a client the loop reaches {100 * half:.0f} % of the peak: the most that can be won is {1 / half:.1f}x, not 3x.",
        f"{flower['overhead']:.2f} s a client-round",
        f"({PRESETS['distilgpt2'].num_parameters / 1e6:.0f} M weights, random ones)",
        "from 10 clients, rank 8, 2 x 64 tokens, 4,096 words",  # benchmarks/scaling.py
        "one large product of 1024 x 1024 reaches here",
        "a vector of 1 MB",
        "as long at 1,000 clients as at 20 where ten take part",
        "same params to 1e-9 in float64",
    ]


def models() -> list[str]:
    """The two tables of docs/models.md that benchmarks write."""
    with benchmark("machine") as machine:
        return [
            "| " + " | ".join(machine.format_cell(row[key]) for key in keys) + " |"
            for name, keys in (
                ("models", ("model", "weights", "trained_tokens_per_s", "read_tokens_per_s", "peak_gb", "formula_gb")),
                ("quantized", ("model", "base", "weights_mb", "memory_share", "perplexity", "perplexity_ratio", "gradient_turned")),
            )
            for row in result(name)["rows"]
        ] + ["1 - cosine to the dense"]


def backends() -> list[str]:
    """The table of docs/beyond-one-machine.md."""
    results = result("backends")
    assert results["rounds"] == 6
    return [
        f"| {row['backend']} | {row['seconds']:.3f} | {row['overhead']:.3f} | {row['down']:,.0f} | {row['up']:,.0f} |"
        for row in results["rows"]
    ]


def detectors() -> list[str]:
    """How often the detector of syntax is wrong, and the limits of the table."""
    found = []
    for collection, sentence in (("synthetic", "on the made-up language ({}, all under"), ("lm", "and on news ({}).")):
        (row,) = [each for each in result(f"calibration-{collection}")["false_alarms"] if each["failure"] == "forgetting of syntax"]
        found.append(sentence.format(f"{row['called']} of {row['runs']}, {100 * row['low']:.1f} to {100 * row['high']:.1f} %"))
    limits = yaml.safe_load((ROOT / "fedrift" / "diagnosis" / "thresholds.yaml").read_text())
    gap, swing, forgets, divergence = (limits[name] for name in ("gap", "oscillation", "forgetting", "divergence"))
    return [
        *found,
        f"| {gap['all']}, {gap['domain']} nats |".replace("0.", "."),
        f"| {swing['index']}; {swing['changes']}; {swing['spread']:g}x |".replace("0.", "."),
        f"| {swing['ratio']:g}x and {swing['domain_floor']} nats |".replace("0.", "."),
        f"| {100 * forgets['accuracy']:g} %, {100 * forgets['margin']:g} % |",
        f"loss > max({divergence['rise']} l0, lowest + ln 4) three times running; steps growing {divergence['growth']}x for"
        f" {divergence['growing']} rounds",
    ]
