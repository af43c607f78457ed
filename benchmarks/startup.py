"""Measure the start of commands in processor time, compared with a bare ``import torch``.

    python benchmarks/startup.py [--repeats 5]

Every command runs in its own process, and the commands take turns with ``import torch``, so that other load on the machine affects all
of them. The processor time is user and system time of the process and of its children, with one thread. The first turn, which fills
caches, does not count. A ratio is the time of a command divided by that of ``import torch`` in the same turn.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import psutil
from comparison import write_rows
from machine import make_parser

REFERENCE = "import torch"
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl.h
EXPERIMENT = """\
dataset: bbc
model: pocket
training: {num_rounds: 1, local_steps: 1}
evaluation: {blocks_per_domain: 1, blocks_per_client: 0, final_blocks_per_domain: 1, probes: []}
"""
UNTIL_FIRST_STEP = """\
import os, sys, tempfile
from fedrift.core.optimizers import AdamW

def stop(*arguments):
    os._exit(0)

AdamW.step = stop  # called after the first backward pass
sys.argv += ["--runs-dir", tempfile.mkdtemp(dir=".")]
from fedrift.cli.app import main
main()
"""


def processor_seconds(command: list[str], folder: Path, **variables: str) -> float:
    """Run a command, and return the user and system time that it and its children used.

    Args:
        command: The command line.
        folder: The working directory.
        **variables: Further environment variables.

    Raises:
        SystemExit: The command fails.
    """
    adopt_orphans()
    known = {child.pid for child in psutil.Process().children()}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    for child in psutil.Process().children():
        if child.pid not in known:
            child.wait()  # a server of worker processes ends after the command that started it
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:4])} failed:\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def adopt_orphans() -> None:
    """Make this process the parent of processes whose parent has ended, so that their time counts; Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def make_commands(folder: Path) -> dict[str, list[str]]:
    """Write the experiment, run it once, and return the commands by name; the reference comes first."""
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    python, cli = [sys.executable], [sys.executable, "-m", "fedrift"]
    processor_seconds([*cli, "run", "experiment.yaml"], folder)
    return {
        REFERENCE: [*python, "-c", "import torch"],
        "fedrift validate": [*cli, "validate", "experiment.yaml"],
        "fedrift run, finished already": [*cli, "run", "experiment.yaml"],
        "fedrift list": [*cli, "list"],
        "fedrift partition show": [*cli, "partition", "show", "experiment.yaml"],
        "fedrift run, until its first step": [*python, "-c", UNTIL_FIRST_STEP, "run", "experiment.yaml"],
        "import of transformers' Llama": [*python, "-c", "import transformers.models.llama.modeling_llama"],
    }


def measure(commands: Mapping[str, list[str]], folder: Path, num_repeats: int) -> list[dict[str, object]]:
    """Run all commands in turns, and return one row per command."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(num_repeats + 1):
        for name, command in commands.items():
            used = processor_seconds(command, folder)
            if turn:
                seconds[name].append(used)
        print(f"turn {turn} of {num_repeats}", file=sys.stderr, flush=True)
    rows: list[dict[str, object]] = []
    for name, used_seconds in seconds.items():
        ratios = [used / reference for used, reference in zip(used_seconds, seconds[REFERENCE], strict=True)]
        rows.append(
            {
                "command": name,
                "cpu_s": round(median(used_seconds), 2),
                "ratio": round(median(used_seconds) / median(seconds[REFERENCE]), 2),
                "ratio_lowest": round(min(ratios), 2),
                "ratio_highest": round(max(ratios), 2),
            }
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure all commands, print a line for each and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=5, help="the number of turns that count")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(make_commands(Path(folder)), Path(folder), 1 if args.small else args.repeats)
    for row in rows:
        print("{command:34s} {cpu_s:7.2f} s {ratio:6.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})".format(**row))
    write_rows(args.out, "startup", rows, repeats=1 if args.small else args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
