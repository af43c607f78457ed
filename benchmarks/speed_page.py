"""Write the tables of docs/speed.md from the results of the benchmarks: run `make bench-page` after a benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

from machine import make_parser, update_docs_table
from targets import Results, update_target_table

SPEED_PAGE = Path(__file__).parents[1] / "docs" / "speed.md"

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
    "peers-whole": {
        "work": "workload",
        "side": "side",
        "seconds": "s in all",
        "ratio": "times fedrift",
        "ratio_lowest": "lowest",
        "ratio_highest": "highest",
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
    "startup": {
        "command": "command",
        "cpu_s": "CPU seconds",
        "ratio": "compared with `import torch`",
        "ratio_lowest": "lowest",
        "ratio_highest": "highest",
    },
    "whole-runs": {
        "work": "work",
        "runs": "runs",
        "before_s": "before, CPU s",
        "after_s": "float32, CPU s",
        "fastest_s": "`--dtype fastest`, CPU s",
        **RATIO_COLUMNS,
        "fastest_ratio": "speedup with `fastest`",
        "fastest_ratio_lowest": "lowest",
        "fastest_ratio_highest": "highest",
        "before_loss": "mean final loss, before",
        "after_loss": "float32",
        "fastest_loss": "`fastest`",
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


def main(arguments: list[str] | None = None) -> int:
    """Update all tables of the page whose results exist."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--page", type=Path, default=SPEED_PAGE, help="the Markdown page to update")
    args = parser.parse_args(arguments)
    results = Results(args.out)
    update_target_table(args.page, results)
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
