"""The figures of docs/speed.md, from what the benchmarks wrote: `make bench-page`, after any of them."""

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
    """What the benchmarks wrote, by name; of several machines the latest."""

    folder: Path

    def get(self, name: str) -> Row:
        found = [json.loads(path.read_text()) for pattern in (f"{name}.json", f"{name}-[xa]*64.json") for path in self.folder.glob(pattern)]
        if not found:
            raise LookupError(name)
        return max(found, key=lambda each: each.get("date", ""))

    def row(self, name: str, **which: Any) -> Row:
        for row in self.get(name)["rows"]:
            if all(row.get(key) == value for key, value in which.items()):
                return row
        raise LookupError(f"{name}: {which}")


TargetResult = tuple[bool, str]  # whether the target is met, and the figure


def peak_share(all: Results) -> TargetResult:
    row = all.row("loop-distilgpt2", clients=1, sequences=8)
    return row["stacked_share_of_peak"] >= 0.8, f"{row['stacked_share_of_peak']:.0%} (the loop: {row['loop_share_of_peak']:.0%})"


def loop_speed(model: str, minimum: float, **which: int) -> Callable[[Results], TargetResult]:
    def found(all: Results) -> TargetResult:
        row = all.row(f"loop-{model}", **which)
        return row["ratio"] >= minimum, "{ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})".format(**row)

    return found


def flower_speed(work: str, minimum: float) -> Callable[[Results], TargetResult]:
    def found(all: Results) -> TargetResult:
        row = all.row("peers", work=work, side="flower")
        return row["of_ours"] >= minimum, "{of_ours:.2f}x ({of_ours_lowest:.2f} to {of_ours_highest:.2f})".format(**row)

    return found


def framework_overhead(all: Results) -> TargetResult:
    ours, theirs = (all.row("peers", work="a step on 1 MB", side=side)["beside_ms"] for side in ("fedrift", "flower"))
    return ours < 1, f"{ours:.2f} ms (Flower: {theirs:.1f} ms)"


def memory_of_copies(all: Results) -> TargetResult:
    found = all.get("memory")["copies_over_stacked"]
    return found >= 6, f"{found:.1f}x less"


def memory_per_client(all: Results) -> TargetResult:
    said = all.get("memory")
    held, own = said["held_bytes_a_further_client"], said["own_bytes"]
    return held <= 1.1 * own, f"{held:,} bytes held a client; its adapters and state are {own:,}"


def memory_of_thousand(all: Results) -> TargetResult:
    row, ratio = all.row("memory", side="fleet", clients=1000), all.get("memory")["round_at_most_clients_over_20"]
    return row["peak_mb"] < 4000 and ratio <= 1.05, f"{row['peak_mb'] / 1000:.2f} GB, a round {ratio:.2f} times as long"


def cost_of_absent_clients(all: Results) -> TargetResult:
    worst = max(all.get("clients")["rows"], key=lambda row: row["ratio"])
    return worst["ratio"] <= 1.2, f"{worst['ratio']:.2f}x ({worst['algorithm']}, the worst)"


def gpu_speed(model: str, minimum: float) -> Callable[[Results], TargetResult]:
    def found(all: Results) -> TargetResult:
        row = all.row("gpu-speed-cuda", model=model, arithmetic="bfloat16", clients=20, sequences=1)
        return row["ratio"] >= minimum, f"{row['ratio']:.1f}x, {row['share']:.1%} of the peak"

    return found


def gradient_difference(arithmetic: str, maximum: float) -> Callable[[Results], TargetResult]:
    def found(all: Results) -> TargetResult:
        worst = max(max(row["alone"], row["plain"]) for row in all.get("gradients")["rows"] if row["arithmetic"] == arithmetic)
        return worst <= maximum, f"{worst:.1e}"

    return found


# figure, target, what was found, the command, why it cannot be more or what limits it
TARGETS: tuple[tuple[str, str, Callable[[Results], TargetResult], str, str], ...] = (
    ("share of the GEMM peak, DistilGPT2's shape, LoRA r = 8, 8 x 64", "80 %", peak_share, "bench", "[1](#the-ceiling)"),
    (
        "against a transformers + peft loop, the same step",
        "1.3x",
        loop_speed("distilgpt2", 1.3, clients=1, sequences=8),
        "bench",
        "[1](#the-ceiling)",
    ),
    (
        "`pocket` against the loop, 10 clients x 8 x 64",
        "1.8x",
        loop_speed("pocket", 1.8, clients=10, sequences=8, tokens=64),
        "bench",
        "[1](#the-ceiling)",
    ),
    (
        "`pocket` against the loop, 10 clients x 2 x 64",
        "3x",
        loop_speed("pocket", 3, clients=10, sequences=2, tokens=64),
        "bench",
        "[2](#small-batches)",
    ),
    (
        "steady rounds against Flower's simulation, 4 clients x 8 sequences",
        "1.35x",
        flower_speed("4 clients x 8 sequences", 1.35),
        "bench-peers",
        "[3](#other-frameworks)",
    ),
    ("the same, 10 clients x 1 sequence", "1.8x", flower_speed("10 clients x 1 sequence", 1.8), "bench-peers", "[3](#other-frameworks)"),
    ("a client-task beside its training, 1 MB", "under 1 ms", framework_overhead, "bench-peers", "[3](#other-frameworks)"),
    ("memory at the peak, 20 LoRA clients, against a copy each", "6x less", memory_of_copies, "bench", "[4](#memory)"),
    ("a further client", "its adapters and state", memory_per_client, "bench", "[4](#memory)"),
    ("1,000 clients, SCAFFOLD, cohort of 10, against 20", "under 4 GB, as fast", memory_of_thousand, "bench", "[4](#memory)"),
    (
        "a whole round at 1,000 clients, cohort of 10, against 20, eight algorithms",
        "at most 1.2x",
        cost_of_absent_clients,
        "bench",
        "[4](#memory)",
    ),
    ("GPU, 20 clients, SmolLM2-135M, bfloat16, against the loop", "20x", gpu_speed("smollm2-135m", 20), "bench-gpu", "[5](#one-gpu)"),
    ("GPU, the same with DistilGPT2's shape", "4x", gpu_speed("distilgpt2", 4), "bench-gpu", "[5](#one-gpu)"),
    ("stacked against lone gradients, float32", "1e-5", gradient_difference("float32", 1e-5), "bench", "[6](#the-same-numbers)"),
    ("stacked against lone gradients, float64", "1e-10", gradient_difference("float64", 1e-10), "bench", "[6](#the-same-numbers)"),
)

RATIO_COLUMNS = {"ratio": "times as fast", "ratio_lowest": "lowest", "ratio_highest": "highest"}
DIFFERENCE_COLUMNS = {"difference": "ends differ by"}
SHAPE_COLUMNS = {"clients": "clients", "sequences": "sequences", "tokens": "tokens"}
LOOP_COLUMNS = {
    **SHAPE_COLUMNS,
    "micro": "in one pass",
    "loop_tokens_per_s": "loop, tokens/s",
    "loop_share_of_peak": "of the peak",
    "stacked_tokens_per_s": "stacked, tokens/s",
    "stacked_share_of_peak": "of the peak",
    **RATIO_COLUMNS,
    **DIFFERENCE_COLUMNS,
}
TABLE_COLUMNS: dict[str, dict[str, str]] = {  # mark and name of the file: columns
    "loop-pocket": LOOP_COLUMNS,
    "loop-distilgpt2": LOOP_COLUMNS,
    "scaling": {
        "axis": "what grows",
        "value": "to",
        "work": "products",
        "loop_growth": "loop",
        "stacked_growth": "stacked",
        "stacked_s": "stacked, s",
        **RATIO_COLUMNS,
    },
    "tuning-pocket": {"case": "case", "first_round_s": "first round, s", "round_s": "later, s", **RATIO_COLUMNS, **DIFFERENCE_COLUMNS},
    "peers": {
        "work": "work",
        "side": "side",
        "round_s": "a round, s",
        "lowest_s": "lowest",
        "highest_s": "highest",
        "client_ms": "a client, ms",
        "beside_ms": "more than bare, ms",
        "of_ours": "of ours",
        "of_ours_lowest": "lowest",
        "of_ours_highest": "highest",
        **DIFFERENCE_COLUMNS,
        "absent": "not measured",
    },
    "memory": {
        "side": "side",
        "clients": "clients",
        "cohort": "a round",
        "peak_mb": "at most, MB",
        "held_mb": "held, MB",
        "round_s": "a round, s",
    },
    "clients": {
        "algorithm": "algorithm",
        "ratio": "1,000 clients over 20",
        "ratio_quartiles": "quartiles",
        "cpu_ms": "a round of each, ms of the processor",
    },
    "evaluation": {"phase": "phase", "seconds": "seconds", "share": "share"},
    "gradients": {"model": "model", "tuned": "trained", "arithmetic": "arithmetic", "alone": "alone", "plain": "plain", "most": "at most"},
    "gpu-speed-cuda": {
        "model": "model",
        "arithmetic": "arithmetic",
        **SHAPE_COLUMNS,
        "loop_tokens_per_s": "loop, tokens/s",
        "stacked_tokens_per_s": "stacked, tokens/s",
        **RATIO_COLUMNS,
        "share": "of the peak",
    },
}


def target_rows(all: Results) -> list[Row]:
    rows = []
    for figure, target, find, command, why in TARGETS:
        try:
            met, found = find(all)
            told = {"found": found, "met": "met" if met else "missed"}
        except LookupError:
            told = {"found": "not yet measured", "met": ""}
        rows.append({"figure": figure, "target": target, **told, "command": f"`make {command}`", "why": why})
    return rows


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "")
    ask.add_argument("--page", type=Path, default=SPEED_PAGE)
    said = ask.parse_args(words)
    all = Results(said.out)
    update_docs_table(
        said.page,
        "targets",
        target_rows(all),
        {"figure": "figure", "target": "target", "found": "found", "met": "", "command": "command", "why": "limit"},
    )
    for name, columns in TABLE_COLUMNS.items():
        try:
            found = all.get(name)
        except LookupError:
            continue
        columns = {key: title for key, title in columns.items() if any(key in row for row in found["rows"])}
        update_docs_table(
            said.page,
            name,
            found["rows"],
            columns,
            f"On {found['device']}, {found['threads']} thread{'s' * (found['threads'] != 1)}, torch "
            f"{found['packages']['torch']}, {found['date'][:10]}.",
        )
    print(said.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
