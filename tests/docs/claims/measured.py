"""Claims of the pages whose numbers come from benchmarks and `python -m benchmarks.calibration`, computed from benchmarks/results."""

from __future__ import annotations

import json
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

from .stores import RESULTS, ROOT, load_result


@contextmanager
def benchmark(name: str) -> Iterator[ModuleType]:
    """Import a module of benchmarks/, whose modules import each other by name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for each in (name, "machine", "targets"):
            sys.modules.pop(each, None)


def lines(text: str) -> list[str]:
    """Return the lines that contain a digit."""
    return [line.strip() for line in text.splitlines() if any(letter.isdigit() for letter in line)]


def calibration() -> str:
    """Return the complete text of docs/calibration.md."""
    return render_page(load_calibrations(RESULTS))


def speed(folder: Path) -> list[str]:
    """Return the claims of docs/speed.md: every table, written again, and the sentences about them."""
    path = folder / "speed.md"
    copy(ROOT / "docs" / "speed.md", path)
    with benchmark("speed_page") as page:
        assert page.main(["--out", str(RESULTS), "--page", str(path)]) == 0
        results = page.Results(RESULTS)
        marks = ("targets", *page.TABLE_COLUMNS)
        loops = [results.get(f"loop-{model}")["rows"] for model in ("pocket", "distilgpt2")]
        effect = results.get("bf16-effect")
        of_two, of_eight = (results.row("loop-pocket", clients=10, sequences=count, tokens=64) for count in (2, 8))
        of_distilgpt2 = results.row("loop-distilgpt2", clients=1, sequences=8)
    text = path.read_text()
    tables = [line for mark in marks for line in lines(text.split(f"<!-- {mark} -->\n")[1].split(f"<!-- /{mark} -->")[0])]
    pocket, distilgpt2 = (
        {side: [100 * row[f"{side}_share_of_peak"] for row in rows if row["sequences"] == 8] for side in ("loop", "stacked")}
        for rows in loops
    )
    widths = json.loads((ROOT / "fedrift" / "models" / "pocket" / "config.json").read_text())
    (flower,) = [row for row in load_result("backends")["rows"] if row["backend"] == "Flower simulation"]
    return [
        *tables,
        *costly(),
        f"With batches of 8 sequences the loop of transformers and PEFT reaches {span(pocket['loop'])} % of the peak on `pocket` and {span(distilgpt2['loop'])} % on DistilGPT2's architecture; fedrift reaches"
        f" {span(pocket['stacked'])} % and {span(distilgpt2['stacked'])} %.",
        f"A target of 1.8x over a loop at {100 * of_eight['loop_share_of_peak']:.0f} % of the peak requires"
        f" {180 * of_eight['loop_share_of_peak']:.0f} % of the peak on `pocket`.",
        f"A target of 1.3x over a loop at {100 * of_distilgpt2['loop_share_of_peak']:.0f} % requires"
        f" {130 * of_distilgpt2['loop_share_of_peak']:.0f} % on DistilGPT2's architecture.",
        f"With 2 sequences per client the loop reaches {100 * of_two['loop_share_of_peak']:.0f} % of the peak and the stacked pass"
        f" {100 * of_two['stacked_share_of_peak']:.0f} %. A target of 3x requires {300 * of_two['loop_share_of_peak']:.0f} % of the peak.",
        f"have widths of {widths['hidden_size']} and {widths['intermediate_size']}. Products of this size do not reach the speed of one of 1024 x"
        " 1024, on which the peak is measured",
        f"{flower['overhead']:.2f} s per client-round",
        f"({PRESETS['distilgpt2'].num_parameters / 1e6:.0f} M weights, random)",
        f"These runs have {effect['rounds']} rounds of {effect['local_steps']} local steps, and {effect['seeds']} seed",
        "10 clients, rank 8, 2 x 64 tokens, 4,096 words",  # benchmarks/scaling.py
        "one large product of 1024 x 1024",
        "a vector of 1 MB",
        "as long with 1,000 clients as with 20 if ten take part",
        "equal parameters to 1e-9 in float64",
    ]


def span(values: list[float]) -> str:
    """Write the lowest and the highest of some numbers."""
    return f"{min(values):.0f} to {max(values):.0f}"


def costly() -> list[str]:
    """Return the rows of the table of long and large runs in docs/speed.md."""
    result = load_result("costly")
    found = {
        "clients": "resident memory {first[resident_mb]:.0f} MB after round 1, {last[resident_mb]:.0f} MB at the end",
        "language": "resident memory {first[resident_mb]:.0f} and {last[resident_mb]:.0f} MB; {run:.0f} MB on disk; report in {report:.1f} CPU s",
        "rounds": "resident memory {first[resident_mb]:.0f} and {last[resident_mb]:.0f} MB; {run:.1f} MB on disk; report in {report:.1f} CPU s",
    }
    rows = [
        f"| `{name}` | {result[name]['cpu_s']:.0f} | {result[name]['peak_mb']:,.0f} | "
        + text.format(
            first=result[name]["snapshots"][0],
            last=result[name]["snapshots"][-1],
            run=result[name]["snapshots"][-1].get("run_mb", 0),
            report=result[name].get("report", {}).get("cpu_s", 0),
        )
        + " |"
        for name, text in found.items()
    ]
    documents = result["documents"]
    steps = ", ".join(f"{step} {documents[step]['cpu_s']:.1f}" for step in ("load", "partition", "heterogeneity"))
    sizes = {name: (result[name]["clients"], result[name]["rounds"]) for name in found}
    bullets = [
        "- `clients`: {:,} clients with quadratic losses, all of which train in each of {} rounds of SCAFFOLD".format(*sizes["clients"]),
        "- `language`: {:,} clients of a tiny language model, 10 of which train in each of {} rounds of SCAFFOLD".format(
            *sizes["language"]
        ),
        f"- `rounds`: {sizes['rounds'][1]:,} rounds of the tiny model",
        f"its partition into {documents['clients']} clients",
    ]
    assert documents["documents"] == documents["loaded"] == 1_000_000
    return [*bullets, *rows, f"| `documents` | {documents['cpu_s']:.0f} | {documents['peak_mb']:,.0f} | CPU s: {steps} |"]


def models() -> list[str]:
    """The two tables of docs/models.md that benchmarks write."""
    with benchmark("machine") as machine:
        return [
            "| " + " | ".join(machine.format_cell(row[key]) for key in keys) + " |"
            for name, keys in (
                ("models", ("model", "weights", "trained_tokens_per_s", "read_tokens_per_s", "peak_gb", "formula_gb")),
                ("quantized", ("model", "base", "weights_mb", "memory_share", "perplexity", "perplexity_ratio", "gradient_turned")),
            )
            for row in load_result(name)["rows"]
        ] + ["1 - cosine to the dense"]


def backends() -> list[str]:
    """Return the rows of the table in docs/beyond-one-machine.md."""
    content = load_result("backends")
    assert content["rounds"] == 6
    return [
        f"| {row['backend']} | {row['seconds']:.3f} | {row['overhead']:.3f} | {row['down']:,.0f} | {row['up']:,.0f} |"
        for row in content["rows"]
    ]


def detectors() -> list[str]:
    """Return what docs/detectors.md states about false alarms on syntax and about the thresholds."""
    rows = []
    for collection, label in (("synthetic", "`synthetic`"), ("lm", "`lm` (news)")):
        alarms = load_result(f"calibration-{collection}")["false_alarms"]
        (alarm,) = [alarm for alarm in alarms if alarm["failure"] == "forgetting of syntax"]
        rows.append(f"| {label} | {alarm['called']} of {alarm['runs']} | {100 * alarm['low']:.1f} to {100 * alarm['high']:.1f} % |")
    limits = yaml.safe_load((ROOT / "fedrift" / "diagnosis" / "thresholds.yaml").read_text())
    gap, oscillation, forgetting, divergence = (limits[name] for name in ("gap", "oscillation", "forgetting", "divergence"))
    staleness, overshoot = limits["staleness"], limits["overshoot"]
    return [
        *rows,
        f"| {gap['all']} nats; {gap['domain']} nats |",
        f"| {limits['unfairness']['gap']} nats; {100 * limits['unfairness']['harmed']:g} % |",
        f"| {limits['drift']['ratio']}x; slope above {limits['drift']['slope']:g} |",
        f"| {oscillation['index']}; {oscillation['changes']}; {oscillation['spread']:g}x |",
        f"| {oscillation['ratio']:g}x and {oscillation['domain_floor']} nats |",
        f"of the last {100 * limits['stall']['window']:g} % of evaluations, and a final loss above the reference runs"
        f" | {limits['stall']['gap']} nats |",
        f"| -{overshoot['turn']}; p < {overshoot['p']} |",
        f"| {100 * forgetting['accuracy']:g} %; {100 * forgetting['margin']:g} % |",
        f"| {forgetting['absent']} nats; p < {forgetting['p']} | {forgetting['episodes']} absences |",
        f"| {limits['collapse']['rank']}; {limits['collapse']['anisotropy']} |",
        f"| {limits['aggregation']['error']}; {limits['aggregation']['loss']} nats |",
        f"| {staleness['correlation']}; {staleness['ratio']:g}; {staleness['excess']} gradient norms |",
        f"loss > max({divergence['rise']} l0, lowest + ln 4) in three successive evaluations.",
        f"steps grow {divergence['growth']}x per round for {divergence['growing']} rounds",
        f"is more than {divergence['above']} nats above the loss of the untrained model in round 0",
    ]
