"""Write the tables of docs/speed.md from the results of the benchmarks: run `make bench-page` after a benchmark."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def peak_share(all: Results) -> TargetResult:
    """Share of the GEMM peak that stacked training reaches on DistilGPT2."""
    row = all.row("loop-distilgpt2", clients=1, sequences=8)
    return row["stacked_share_of_peak"] >= 0.8, f"{row['stacked_share_of_peak']:.0%} (loop: {row['loop_share_of_peak']:.0%})"


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
        return row["ratio"] >= minimum, f"{row['ratio']:.1f}x, {row['share']:.1%} of the peak"

    return found


def gradient_difference(arithmetic: str, maximum: float) -> Callable[[Results], TargetResult]:
    """Largest relative difference of stacked and single-client gradients in one data type."""

    def found(all: Results) -> TargetResult:
        worst = max(max(row["alone"], row["plain"]) for row in all.get("gradients")["rows"] if row["arithmetic"] == arithmetic)
        return worst <= maximum, f"{worst:.1e}"

    return found


# Columns: quantity, target, measured value, make target of the benchmark, section of the page that explains the limit.
TARGETS: tuple[tuple[str, str, Callable[[Results], TargetResult], str, str], ...] = (
    ("share of the GEMM peak, DistilGPT2's architecture, LoRA r = 8, 8 x 64 tokens", "80 %", peak_share, "bench", "[1](#the-ceiling)"),
    (
        "speedup over a transformers + PEFT loop for the same step",
        "1.3x",
        loop_speed("distilgpt2", 1.3, clients=1, sequences=8),
        "bench",
        "[1](#the-ceiling)",
    ),
    (
        "`pocket`: speedup over the loop, 10 clients x 8 x 64 tokens",
        "1.8x",
        loop_speed("pocket", 1.8, clients=10, sequences=8, tokens=64),
        "bench",
        "[1](#the-ceiling)",
    ),
    (
        "`pocket`: speedup over the loop, 10 clients x 2 x 64 tokens",
        "3x",
        loop_speed("pocket", 3, clients=10, sequences=2, tokens=64),
        "bench",
        "[2](#small-batches)",
    ),
    (
        "speedup of steady rounds over Flower's simulation, 4 clients x 8 sequences",
        "1.35x",
        flower_speed("4 clients x 8 sequences", 1.35),
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    (
        "the same with 10 clients x 1 sequence",
        "1.8x",
        flower_speed("10 clients x 1 sequence", 1.8),
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    (
        "overhead per client-round without training, model of 1 MB",
        "under 1 ms",
        framework_overhead,
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    ("peak memory of 20 LoRA clients, compared with one model copy per client", "6x less", memory_of_copies, "bench", "[4](#memory)"),
    ("memory per additional client", "its adapters and state", memory_per_client, "bench", "[4](#memory)"),
    ("1,000 clients compared with 20, SCAFFOLD, cohort of 10", "under 4 GB, same time", memory_of_thousand, "bench", "[4](#memory)"),
    (
        "complete round with 1,000 clients compared with 20, cohort of 10, eight algorithms",
        "at most 1.2x",
        cost_of_absent_clients,
        "bench",
        "[4](#memory)",
    ),
    ("GPU: speedup over the loop, 20 clients, SmolLM2-135M, bfloat16", "20x", gpu_speed("smollm2-135m", 20), "bench-gpu", "[5](#one-gpu)"),
    ("GPU: the same with DistilGPT2's architecture", "4x", gpu_speed("distilgpt2", 4), "bench-gpu", "[5](#one-gpu)"),
    (
        "difference of stacked and single-client gradients, float32",
        "1e-5",
        gradient_difference("float32", 1e-5),
        "bench",
        "[6](#the-same-numbers)",
    ),
    (
        "difference of stacked and single-client gradients, float64",
        "1e-10",
        gradient_difference("float64", 1e-10),
        "bench",
        "[6](#the-same-numbers)",
    ),
)

RATIO_COLUMNS = {"ratio": "speedup", "ratio_lowest": "lowest", "ratio_highest": "highest"}
DIFFERENCE_COLUMNS = {"difference": "difference of results"}
SHAPE_COLUMNS = {"clients": "clients", "sequences": "sequences", "tokens": "tokens"}
LOOP_COLUMNS = {
    **SHAPE_COLUMNS,
    "micro": "clients per pass",
    "loop_tokens_per_s": "loop, tokens/s",
    "loop_share_of_peak": "share of peak",
    "stacked_tokens_per_s": "stacked, tokens/s",
    "stacked_share_of_peak": "share of peak",
    **RATIO_COLUMNS,
    **DIFFERENCE_COLUMNS,
}
TABLE_COLUMNS: dict[str, dict[str, str]] = {  # the marker, which is also the name of the results file, and its columns
    "loop-pocket": LOOP_COLUMNS,
    "loop-distilgpt2": LOOP_COLUMNS,
    "bf16": {
        "model": "model",
        **SHAPE_COLUMNS,
        "loop_bfloat16": "loop, bfloat16",
        "fedrift_float32": "fedrift, float32",
        "fedrift_bfloat16": "fedrift, bfloat16",
        "fedrift_gain": "fedrift: bfloat16 over float32",
        "fedrift_gain_lowest": "lowest",
        "fedrift_gain_highest": "highest",
        "over_loop_bfloat16": "fedrift over the loop, both bfloat16",
        "update_difference": "difference of updates",
    },
    "bf16-effect": {
        "experiment": "experiment",
        "seed": "seed",
        "loss_float32": "final loss, float32",
        "loss_bfloat16": "bfloat16",
        "loss_difference": "difference",
        "gap_float32": "gap, float32",
        "gap_bfloat16": "bfloat16",
        "gap_difference": "difference",
        "same_grade": "same grade",
        "within_limit": "within the limit",
    },
    "scaling": {
        "axis": "factor",
        "value": "value",
        "work": "products",
        "loop_growth": "loop",
        "stacked_growth": "stacked",
        "stacked_s": "stacked, s",
        **RATIO_COLUMNS,
    },
    "tuning-pocket": {
        "case": "case",
        "first_round_s": "first round, s",
        "round_s": "later rounds, s",
        **RATIO_COLUMNS,
        **DIFFERENCE_COLUMNS,
    },
    "peers": {
        "work": "workload",
        "side": "side",
        "round_s": "s per round",
        "lowest_s": "lowest",
        "highest_s": "highest",
        "client_ms": "ms per client",
        "overhead_ms": "overhead over bare, ms",
        "relative_time": "times fedrift",
        "relative_time_lowest": "lowest",
        "relative_time_highest": "highest",
        **DIFFERENCE_COLUMNS,
        "absent": "not measured",
    },
    "memory": {
        "side": "side",
        "clients": "clients",
        "cohort": "cohort",
        "peak_mb": "peak, MB",
        "held_mb": "after the last round, MB",
        "round_s": "s per round",
    },
    "clients": {
        "algorithm": "algorithm",
        "ratio": "1,000 clients / 20 clients",
        "ratio_quartiles": "quartiles",
        "cpu_ms": "CPU ms per round of each",
    },
    "evaluation": {"phase": "phase", "seconds": "seconds", "share": "share"},
    "gradients": {"model": "model", "tuned": "trained", "arithmetic": "data type", "alone": "alone", "plain": "plain", "most": "limit"},
    "gpu-speed-cuda": {
        "model": "model",
        "arithmetic": "data type",
        **SHAPE_COLUMNS,
        "loop_tokens_per_s": "loop, tokens/s",
        "stacked_tokens_per_s": "stacked, tokens/s",
        **RATIO_COLUMNS,
        "share": "share of peak",
    },
}


def target_rows(all: Results) -> list[Row]:
    """Return the rows of the table of targets."""
    rows = []
    for figure, target, find, command, limit in TARGETS:
        try:
            met, measured = find(all)
            outcome = {"found": measured, "met": "met" if met else "missed"}
        except LookupError:
            outcome = {"found": "not yet measured", "met": ""}
        rows.append({"figure": figure, "target": target, **outcome, "command": f"`make {command}`", "limit": limit})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Update all tables of the page whose results exist."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--page", type=Path, default=SPEED_PAGE, help="the Markdown page to update")
    args = parser.parse_args(arguments)
    results = Results(args.out)
    update_docs_table(
        args.page,
        "targets",
        target_rows(results),
        {"figure": "quantity", "target": "target", "found": "measured", "met": "", "command": "command", "limit": "limit"},
    )
    for name, columns in TABLE_COLUMNS.items():
        try:
            content = results.get(name)
        except LookupError:
            continue
        columns = {key: title for key, title in columns.items() if any(key in row for row in content["rows"])}
        update_docs_table(
            args.page,
            name,
            content["rows"],
            columns,
            f"On {content['device']}, {content['threads']} thread{'s' * (content['threads'] != 1)}, torch "
            f"{content['packages']['torch']}, {content['date'][:10]}.",
        )
    print(args.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
