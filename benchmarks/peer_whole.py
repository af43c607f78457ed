"""Compare whole experiments of fedrift, Flower's simulation and Apple's pfl, from the start of the process to its end, in wall time.

    make bench-peers          (python benchmarks/peer_whole.py [--sides fedrift bare flower pfl] [--repeats 3] [--pfl .peers/pfl])

The experiment has 10 clients, which all train in each of 20 rounds, and an evaluation of the server's parameters on 64 held-out sequences
before the first round and after each. Every side is written as `peer_speed.py` describes, runs alone in a process of its own and may use
two cores: fedrift, ``bare`` and pfl by two threads of torch, Flower by two Ray actors of one thread each. The sides take turns. All must
end at the same adapters and the same losses. fedrift computes in float32, as the other sides do.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from comparison import check_agreement, write_rows
from machine import make_parser
from peer_speed import SIDES, with_import_path
from peer_work import WholeRun, Workload

from fedrift.core.tree import Tree

WORKLOAD = Workload("10 clients x 1 sequence", 10, 1, warmup_rounds=0, num_rounds=20)
SMALL_WORKLOAD = Workload("toy", 3, 2, tokens=16, local_steps=2, small=True, warmup_rounds=0, num_rounds=2)
NUM_CORES = 2
MAX_LOSS_DIFFERENCE = 1e-3  # nats per token, between two sides in any round


def time_side(side: str, work: Workload, folder: Path, pfl_dir: Path) -> tuple[float, dict[str, Any]]:
    """Run an experiment with one side in a process of its own; return its wall seconds and its results.

    Raises:
        ChildProcessError: The side failed; the text is the end of its output.
    """
    path = folder / f"{side}.pt"
    command = [sys.executable, __file__, "--side", side, "--work", str(work), "--result", str(path), "--pfl", str(pfl_dir)]
    started_at = perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = perf_counter() - started_at
    if done.returncode or not path.exists():
        raise ChildProcessError(next(reversed(done.stderr.strip().splitlines()), "no output"))
    return seconds, torch.load(path)


def run_side(options: Namespace) -> None:
    """Run one side in this process."""
    if options.side == "pfl":
        sys.path.insert(0, str(options.pfl))
    torch.set_num_threads(1 if options.side == "flower" else NUM_CORES)
    import_module(f"peer_{options.side}").run(Workload.from_json(options.work), WholeRun(options.result))


def check_results(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Check that all sides end at the same adapters and have the same losses; return the difference of each side's adapters from fedrift's.

    Raises:
        SystemExit: Two sides differ.
    """
    reference = results["fedrift"]
    for side, result in results.items():
        pairs = zip(result["losses"], reference["losses"], strict=True)
        if not all(abs(loss - expected) <= MAX_LOSS_DIFFERENCE for loss, expected in pairs):
            raise SystemExit(f"{side} has other losses than fedrift: {result['losses']}, {reference['losses']}")
    return {side: check_agreement(Tree(result["params"]), Tree(reference["params"])) for side, result in results.items()}


def make_rows(
    work: Workload, seconds: dict[str, list[float]], differences: dict[str, float], absent: dict[str, str]
) -> list[dict[str, Any]]:
    """Return one row per side, with its wall time relative to that of fedrift in the same turn."""
    rows: list[dict[str, Any]] = []
    for side, spent in seconds.items():
        ratios = [side_s / reference_s for side_s, reference_s in zip(spent, seconds["fedrift"], strict=True)]
        row = {"work": work.name, "side": side, "seconds": round(median(spent), 2), "ratio": round(median(ratios), 2)}
        rows.append({**row, "ratio_lowest": round(min(ratios), 2), "ratio_highest": round(max(ratios), 2), "difference": differences[side]})
    return rows + [{"work": work.name, "side": side, "absent": reason} for side, reason in absent.items()]


def measure(args: Namespace) -> list[dict[str, Any]]:
    """Let all sides take turns; return the rows of the table."""
    work, repeats = (SMALL_WORKLOAD, 1) if args.small else (WORKLOAD, args.repeats)
    seconds: dict[str, list[float]] = {side: [] for side in args.sides}
    results, absent = dict[str, dict[str, Any]](), dict[str, str]()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, with_import_path():
        for turn in range(repeats + 1):
            for side in list(seconds):
                try:
                    spent, results[side] = time_side(side, work, Path(folder), args.pfl.resolve())
                except ChildProcessError as error:
                    absent[side] = str(error)
                    del seconds[side]
                    continue
                if turn or args.small:  # the first turn fills the caches of the file system
                    seconds[side].append(spent)
            print(f"turn {turn} of {repeats}:", {side: round(spent[-1], 1) for side, spent in seconds.items() if spent}, flush=True)
            if args.small:
                break
    return make_rows(work, seconds, check_results({side: results[side] for side in seconds}), absent)


def main(arguments: list[str] | None = None) -> int:
    """Measure all sides, print a line for each and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="the sides to compare; fedrift must be one of them")
    parser.add_argument("--repeats", type=int, default=3, help="the number of turns that count")
    parser.add_argument("--pfl", type=Path, default=Path(".peers/pfl"), help="the folder of pfl's packages")
    for option in ("--side", "--work"):
        parser.add_argument(option, help="internal: the benchmark uses this option to start a side")
    parser.add_argument("--result", type=Path, help="internal: the file for the results of a side")
    args = parser.parse_args(arguments)
    if args.side:
        run_side(args)
        return 0
    rows = measure(args)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    write_rows(args.out, "peers-whole", rows, repeats=1 if args.small else args.repeats, cores=NUM_CORES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
