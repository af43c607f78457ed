"""Print every target of speed beside the result of its benchmark, and write the same table into docs/speed.md.

    python benchmarks/targets.py

It runs no benchmark: it reads the files in `benchmarks/results/`, which name the processor and the date. A target without a result is
"not measured".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from machine import make_parser, update_docs_table

SPEED_PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The results of the benchmarks in a folder."""

    folder: Path

    def get(self, name: str) -> Row:
        """Return the results of a benchmark; the latest if there are results of several machines.

        Raises:
            LookupError: If there are none.
        """
        results = [
            json.loads(path.read_text()) for pattern in (f"{name}.json", f"{name}-[xa]*64.json") for path in self.folder.glob(pattern)
        ]
        if not results:
            raise LookupError(name)
        return max(results, key=lambda result: result.get("date", ""))

    def row(self, name: str, **which: Any) -> Row:
        """Return the first row of a benchmark with the given values.

        Raises:
            LookupError: If there is none.
        """
        for row in self.get(name)["rows"]:
            if all(row.get(key) == value for key, value in which.items()):
                return row
        raise LookupError(f"{name}: {which}")


TargetResult = tuple[bool, str]  # whether the target is met, and the measured value as text


class Target(NamedTuple):
    """One target of speed.

    Attributes:
        quantity: What is measured.
        bound: The value that is aimed at.
        find: Reads the measured value; raises LookupError if there is none.
        source: The name of the results, without the machine.
        command: The make target of the benchmark.
        section: The link to the section of docs/speed.md on the limit.
    """

    quantity: str
    bound: str
    find: Callable[[Results], TargetResult]
    source: str
    command: str
    section: str


def peak_share(all: Results) -> TargetResult:
    """Share of the GEMM peak that stacked training reaches on DistilGPT2."""
    row = all.row("loop-distilgpt2", clients=1, sequences=8)
    stacked, loop = row["stacked_share_of_peak"], row["loop_share_of_peak"]
    return stacked >= 0.8, f"{100 * stacked:.0f} % (loop: {100 * loop:.0f} %)"


def loop_speed(model: str, minimum: float, **which: int) -> Callable[[Results], TargetResult]:
    """Speedup of stacked training over the sequential loop."""

    def found(all: Results) -> TargetResult:
        row = all.row(f"loop-{model}", **which)
        return row["ratio"] >= minimum, "{ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})".format(**row)

    return found


def flower_speed(work: str, minimum: float) -> Callable[[Results], TargetResult]:
    """Speedup of a round over Flower's simulation."""

    def found(all: Results) -> TargetResult:
        row = all.row("peers", work=work, side="flower")
        return row["relative_time"] >= minimum, "{relative_time:.2f}x ({relative_time_lowest:.2f} to {relative_time_highest:.2f})".format(
            **row
        )

    return found


def framework_overhead(all: Results) -> TargetResult:
    """Overhead of a client-round of fedrift, beside that of Flower."""
    fedrift_ms, flower_ms = (all.row("peers", work="a step on 1 MB", side=side)["overhead_ms"] for side in ("fedrift", "flower"))
    return fedrift_ms < 1, f"{fedrift_ms:.2f} ms (Flower: {flower_ms:.1f} ms)"


def memory_of_copies(all: Results) -> TargetResult:
    """Peak memory of stacked clients compared with one model copy per client."""
    ratio = all.get("memory")["copies_over_stacked"]
    return ratio >= 6, f"{ratio:.1f}x less"


def memory_per_client(all: Results) -> TargetResult:
    """Memory of each additional client compared with the size of its adapters and state."""
    results = all.get("memory")
    added, own = results["held_bytes_a_further_client"], results["own_bytes"]
    return added <= 1.1 * own, f"{added:,} bytes per client; its adapters and state have {own:,} bytes"


def memory_of_thousand(all: Results) -> TargetResult:
    """Peak memory and time per round with 1,000 clients."""
    row, ratio = all.row("memory", side="pool", clients=1000), all.get("memory")["round_at_most_clients_over_20"]
    return row["peak_mb"] < 4000 and ratio <= 1.05, f"{row['peak_mb'] / 1000:.2f} GB, a round takes {ratio:.2f} times as long"


def cost_of_absent_clients(all: Results) -> TargetResult:
    """Time per round with 1,000 clients compared with 20, for the worst algorithm."""
    worst = max(all.get("clients")["rows"], key=lambda row: row["ratio"])
    return worst["ratio"] <= 1.2, f"{worst['ratio']:.2f}x (worst: {worst['algorithm']})"


def gpu_speed(model: str, minimum: float) -> Callable[[Results], TargetResult]:
    """Speedup over the sequential loop on a GPU."""

    def found(all: Results) -> TargetResult:
        row = all.row("gpu-speed-cuda", model=model, arithmetic="bfloat16", clients=20, sequences=1)
        return row["ratio"] >= minimum, f"{row['ratio']:.1f}x, {100 * row['share']:.1f} % of the peak"

    return found


def gradient_difference(arithmetic: str, maximum: float) -> Callable[[Results], TargetResult]:
    """Largest relative difference of stacked and single-client gradients in one data type."""

    def found(all: Results) -> TargetResult:
        worst = max(max(row["alone"], row["plain"]) for row in all.get("gradients")["rows"] if row["arithmetic"] == arithmetic)
        return worst <= maximum, f"{worst:.1e}"

    return found


def gain_of_bfloat16(model: str, minimum: float, column: str = "fedrift_gain") -> Callable[[Results], TargetResult]:
    """Speedup of bfloat16 on a processor that has bfloat16 matrix products."""

    def found(all: Results) -> TargetResult:
        if not all.get("bf16").get("bfloat16_products"):
            raise LookupError("the processor has no bfloat16 products")
        row = all.row("bf16", model=model)
        return row[column] >= minimum, "{:.2f}x ({:.2f} to {:.2f})".format(*(row[f"{column}{end}"] for end in ("", "_lowest", "_highest")))

    return found


MIN_EFFECT_ROUNDS, MIN_EFFECT_SEEDS = 6, 3  # of the runs that can judge the effect of bfloat16 on results


def effect_of_bfloat16(all: Results) -> TargetResult:
    """Largest effect of bfloat16 on the losses and gaps of paired runs; short runs and few seeds judge nothing."""
    result = all.get("bf16-effect")
    if result["rounds"] < MIN_EFFECT_ROUNDS or result["seeds"] < MIN_EFFECT_SEEDS:
        raise LookupError("the runs are too short or too few")
    rows = result["rows"]
    loss, gap = (max(abs(row[f"{part}_difference"]) for row in rows) for part in ("loss", "gap"))
    changed = sum(not row["same_grade"] for row in rows)
    return changed == 0 and max(loss, gap) <= 0.005, f"loss {loss:.4f}, gap {gap:.4f}, {changed} of {len(rows)} verdicts changed"


def start_of(command: str, maximum: float) -> Callable[[Results], TargetResult]:
    """Processor time of a command compared with a bare import of torch."""

    def found(all: Results) -> TargetResult:
        row = all.row("startup", command=command)
        return row["ratio"] <= maximum, "{ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})".format(**row)

    return found


def speed_ratio(name: str, minimum: float, **which: Any) -> Callable[[Results], TargetResult]:
    """Speedup in the column ``ratio`` of a benchmark."""

    def found(all: Results) -> TargetResult:
        row = all.row(name, **which)
        return row["ratio"] >= minimum, f"{row['ratio']:.2f}x"

    return found


def whole_runs(work: str) -> Callable[[Results], TargetResult]:
    """Processor time of whole commands compared with the old version; with bfloat16 products, that of ``--dtype fastest``."""

    def found(all: Results) -> TargetResult:
        row, has_products = all.row("whole-runs", work=work), all.get("whole-runs")["bfloat16_products"]
        column, minimum = ("fastest_ratio", 2.5) if has_products else ("ratio", 1.3)
        text = "{:.2f}x ({:.2f} to {:.2f})".format(*(row[f"{column}{end}"] for end in ("", "_lowest", "_highest")))
        return row[column] >= minimum, text + (f", in float32 {row['ratio']:.2f}x" if has_products else "")

    return found


def growth_of_rounds(all: Results) -> TargetResult:
    """Time of a round with 10,000 clients compared with 20, for the worst algorithm."""
    rows = [row for row in all.get("growth")["rows"] if row["part"] == "rounds" and row["clients"] == 10_000]
    if not rows:
        raise LookupError("growth: 10,000 clients")
    worst = max(rows, key=lambda row: row["ratio"])
    return worst["ratio"] <= 1.2, f"{worst['ratio']:.2f}x (worst: {worst['algorithm']})"


def growth_of_memory(all: Results) -> TargetResult:
    """Memory of a waiting client compared with its own state, for the worst case."""
    rows = [row for row in all.get("growth")["rows"] if row["part"] == "memory"]
    if not rows:
        raise LookupError("growth: memory")
    worst = max(rows, key=lambda row: row["resident_bytes_per_client"] - row["own_bytes"])
    own, resident = worst["own_bytes"], worst["resident_bytes_per_client"]
    return resident <= 1.1 * own, f"{resident:,} bytes; its state has {own:,} bytes ({worst['algorithm']})"


def growth_of_partition(all: Results) -> TargetResult:
    """Time per document of the largest corpus compared with a smaller one, for the worst partition."""
    rows = [row for row in all.get("growth")["rows"] if row["part"] == "partition"]
    if not rows:
        raise LookupError("growth: partition")
    documents = max(row["documents"] for row in rows)
    worst = max(row["time_per_document"] for row in rows if row["documents"] == documents)
    return bool(all.get("growth")["partition_met"]), f"{worst:.2f}x the time per document, with {documents:,} documents"


TARGETS: tuple[Target, ...] = (
    Target(
        "share of the GEMM peak, DistilGPT2's architecture, LoRA r = 8, 8 x 64 tokens",
        "80 %",
        peak_share,
        "loop-distilgpt2",
        "bench",
        "[1](#the-ceiling)",
    ),
    Target(
        "speedup over a transformers + PEFT loop for the same step",
        "1.3x",
        loop_speed("distilgpt2", 1.3, clients=1, sequences=8),
        "loop-distilgpt2",
        "bench",
        "[1](#the-ceiling)",
    ),
    Target(
        "`pocket`: speedup over the loop, 10 clients x 8 x 64 tokens",
        "1.8x",
        loop_speed("pocket", 1.8, clients=10, sequences=8, tokens=64),
        "loop-pocket",
        "bench",
        "[1](#the-ceiling)",
    ),
    Target(
        "`pocket`: speedup over the loop, 10 clients x 2 x 64 tokens",
        "3x",
        loop_speed("pocket", 3, clients=10, sequences=2, tokens=64),
        "loop-pocket",
        "bench",
        "[2](#small-batches)",
    ),
    Target(
        "speedup of steady rounds over Flower's simulation, 4 clients x 8 sequences",
        "1.35x",
        flower_speed("4 clients x 8 sequences", 1.35),
        "peers",
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    Target(
        "the same with 10 clients x 1 sequence",
        "1.8x",
        flower_speed("10 clients x 1 sequence", 1.8),
        "peers",
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    Target(
        "overhead per client-round without training, model of 1 MB",
        "under 1 ms",
        framework_overhead,
        "peers",
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    Target(
        "peak memory of 20 LoRA clients, compared with one model copy per client",
        "6x less",
        memory_of_copies,
        "memory",
        "bench",
        "[4](#memory)",
    ),
    Target("memory per additional client", "its adapters and state", memory_per_client, "memory", "bench", "[4](#memory)"),
    Target(
        "1,000 clients compared with 20, SCAFFOLD, cohort of 10",
        "under 4 GB, same time",
        memory_of_thousand,
        "memory",
        "bench",
        "[4](#memory)",
    ),
    Target(
        "complete round with 1,000 clients compared with 20, cohort of 10, eight algorithms",
        "at most 1.2x",
        cost_of_absent_clients,
        "clients",
        "bench",
        "[4](#memory)",
    ),
    Target(
        "GPU: speedup over the loop, 20 clients, SmolLM2-135M, bfloat16",
        "20x",
        gpu_speed("smollm2-135m", 20),
        "gpu-speed-cuda",
        "bench-gpu",
        "[5](#one-gpu)",
    ),
    Target(
        "GPU: the same with DistilGPT2's architecture", "4x", gpu_speed("distilgpt2", 4), "gpu-speed-cuda", "bench-gpu", "[5](#one-gpu)"
    ),
    Target(
        "difference of stacked and single-client gradients, float32",
        "1e-5",
        gradient_difference("float32", 1e-05),
        "gradients",
        "bench",
        "[6](#the-same-numbers)",
    ),
    Target(
        "difference of stacked and single-client gradients, float64",
        "1e-10",
        gradient_difference("float64", 1e-10),
        "gradients",
        "bench",
        "[6](#the-same-numbers)",
    ),
    Target(
        "bfloat16 compared with float32, `pocket`, 10 clients x 8 x 64 tokens, processor with AMX",
        "2.5x",
        gain_of_bfloat16("pocket", 2.5),
        "bf16",
        "bench-bf16",
        "[1](#the-ceiling)",
    ),
    Target("the same with DistilGPT2's architecture", "3x", gain_of_bfloat16("distilgpt2", 3), "bf16", "bench-bf16", "[1](#the-ceiling)"),
    Target(
        "the same with SmolLM2-135M's architecture", "3x", gain_of_bfloat16("smollm2-135m", 3), "bf16", "bench-bf16", "[1](#the-ceiling)"
    ),
    Target(
        "speedup over a transformers + PEFT loop, both in bfloat16, `pocket`",
        "1.7x",
        gain_of_bfloat16("pocket", 1.7, "over_loop_bfloat16"),
        "bf16",
        "bench-bf16",
        "[1](#the-ceiling)",
    ),
    Target(
        "effect of bfloat16 on final losses and gaps, in nats per token",
        "at most 0.005, no verdict changed",
        effect_of_bfloat16,
        "bf16-effect",
        "bench-bf16-effect",
        "[1](#the-ceiling)",
    ),
    Target(
        "start of `fedrift validate`, compared with `import torch`",
        "at most 0.5x",
        start_of("fedrift validate", 0.5),
        "startup",
        "bench",
        "[7](#before-the-first-step)",
    ),
    Target(
        "start of `fedrift run` for a finished run",
        "at most 0.8x",
        start_of("fedrift run, finished already", 0.8),
        "startup",
        "bench",
        "[7](#before-the-first-step)",
    ),
    Target(
        "`fedrift partition show` without gradients",
        "at most 1.5x",
        start_of("fedrift partition show", 1.5),
        "startup",
        "bench",
        "[7](#before-the-first-step)",
    ),
    Target(
        "`fedrift run` until its first training step",
        "at most 2.2x",
        start_of("fedrift run, until its first step", 2.2),
        "startup",
        "bench",
        "[7](#before-the-first-step)",
    ),
    Target(
        "processor time of the demo's training run, before compared with after",
        "2.5x with AMX, 1.3x elsewhere",
        whole_runs("demo"),
        "whole-runs",
        "bench-whole",
        "[8](#whole-runs)",
    ),
    Target(
        "processor time of a study of 20 runs, before compared with after",
        "2.5x with AMX, 1.3x elsewhere",
        whole_runs("study"),
        "whole-runs",
        "bench-whole",
        "[8](#whole-runs)",
    ),
    Target(
        "processor time of `fedrift compare-clustering`, before compared with after",
        "2.5x with AMX, 1.3x elsewhere",
        whole_runs("clustering"),
        "whole-runs",
        "bench-whole",
        "[8](#whole-runs)",
    ),
    Target(
        "processor time of a report, before compared with after",
        "2.5x with AMX, 1.3x elsewhere",
        whole_runs("report"),
        "whole-runs",
        "bench-whole",
        "[8](#whole-runs)",
    ),
    Target(
        "whole experiment from start to end, compared with Flower's simulation",
        "3x",
        speed_ratio("peers-whole", 3, side="flower"),
        "peers-whole",
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    Target(
        "the same compared with pfl",
        "2x",
        speed_ratio("peers-whole", 2, side="pfl"),
        "peers-whole",
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    Target("round with 10,000 clients compared with 20, cohort of 10", "at most 1.2x", growth_of_rounds, "growth", "bench", "[4](#memory)"),
    Target("memory of a waiting client", "its own state", growth_of_memory, "growth", "bench", "[4](#memory)"),
    Target("partition of a corpus of 1,000,000 documents", "linear time", growth_of_partition, "growth", "bench", "[4](#memory)"),
)


def target_rows(results: Results) -> list[Row]:
    """Return the rows of the table of targets."""
    rows = []
    for target in TARGETS:
        row = {"quantity": target.quantity, "target": target.bound, "command": f"`make {target.command}`", "limit": target.section}
        try:
            is_met, measured = target.find(results)
            content = results.get(target.source)
            row |= {"found": measured, "met": "met" if is_met else "missed", "date": content["date"][:10], "device": content["device"]}
        except LookupError:
            row |= {"found": "not measured", "met": "", "date": "", "device": ""}
        rows.append(row)
    return rows


COLUMNS = {
    "quantity": "quantity",
    "target": "target",
    "found": "measured",
    "met": "",
    "date": "date",
    "device": "processor",
    "command": "command",
    "limit": "limit",
}


def update_target_table(page: Path, results: Results) -> list[Row]:
    """Write the table of targets into the page, and return its rows."""
    rows = target_rows(results)
    update_docs_table(page, "targets", rows, COLUMNS)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each target, and update the table of the page."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--page", type=Path, default=SPEED_PAGE, help="the Markdown page to update")
    args = parser.parse_args(arguments)
    rows = update_target_table(args.page, Results(args.out))
    width = max(len(row["quantity"]) for row in rows)
    for row in rows:
        origin = f"{row['device']}, {row['date']}" if row["date"] else ""
        print(f"{row['quantity']:{width}s}  {row['target']:33s}  {row['met']:6s}  {row['found']:60s}  {origin}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
