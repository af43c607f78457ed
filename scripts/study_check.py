"""Does a study survive? Run once unbroken, and once killed with SIGKILL at random moments and gone on with: both tables must be
equal to the last bit. Then the null: the study's IID runs under names that mean nothing must give about 5 % of calls.

    python scripts/study_check.py [studies/small.yaml] [--kills 3] [--out FOLDER]

About 25 minutes on one core for studies/small.yaml, most of it the two times 63 runs. What is in FOLDER already is not run again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fedrift.config.loader import load_yaml
from fedrift.stats import evaluate_hypotheses
from fedrift.stats.hypotheses import Greater
from fedrift.studies import build_study_table, find_study

COMMAND = "from fedrift.cli import main; main()"
RELABELLINGS, PAIRS = 2000, 8


def start_study(file: Path, runs_dir: Path) -> subprocess.Popen[bytes]:
    """`fedrift study` in a process group of its own, so that its workers die with it."""
    words = [sys.executable, "-c", COMMAND, "study", str(file), "--runs-dir", str(runs_dir), "--threads", "1", "--device", "cpu"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def run_with_kills(file: Path, runs_dir: Path, kills: int, num_runs: int, rng: np.random.Generator) -> None:
    """Kill it when a drawn number of runs is done and a drawn time later; at last let it end."""
    points = np.sort(rng.choice(np.arange(1, num_runs - 1), kills, replace=False))
    for point in points:
        process = start_study(file, runs_dir)
        while len(list(runs_dir.glob("*/finished.json"))) < point and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 3))
        if process.poll() is not None:
            raise SystemExit(f"it ended by itself with {process.returncode} before it could be killed")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        unfinished = [path.parent for path in runs_dir.glob("*/experiment.json") if not (path.parent / "finished.json").exists()]
        print(f"killed with {len(list(runs_dir.glob('*/finished.json')))} runs finished, {len(unfinished)} half done", flush=True)
    if start_study(file, runs_dir).wait():
        raise SystemExit("the study did not end well after the kills")


def study_csv(runs_dir: Path, name: str) -> str:
    return build_study_table(find_study(runs_dir, name), roles=("run", "iid_baseline", "trial")).to_csv(index=False)


def null_call_rate(frame: pd.DataFrame, rng: np.random.Generator) -> float:
    """The share of relabellings that are called: pairs of IID runs, drawn anew, one half called A and the other B."""
    ends = frame[frame.iid | (frame.iid_baseline == frame.run)]["loss"].dropna().to_numpy()
    if len(ends) < 2 * PAIRS:
        raise SystemExit(f"{len(ends)} IID runs are too few for {PAIRS} pairs")
    hypotheses = [Greater(name="null", metric="loss", group={"condition": "A"}, reference={"condition": "B"})]
    called = 0
    for _ in range(RELABELLINGS):
        values = rng.permutation(ends)[: 2 * PAIRS]
        rows = [
            {
                "run": f"{condition}{seed}",
                "study": "null",
                "condition": condition,
                "seed": seed,
                "iid": False,
                "iid_baseline": "",
                "diverged": False,
                "loss": values[2 * seed + place],
            }
            for seed in range(PAIRS)
            for place, condition in enumerate("AB")
        ]
        called += evaluate_hypotheses(hypotheses, pd.DataFrame(rows), ["condition"])[0].verdict != "inconclusive"
    return called / RELABELLINGS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", type=Path, default=Path("studies/small.yaml"))
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--draw", type=int, default=0, help="another draw of moments and relabellings")
    args = parser.parse_args()
    name, draw = str(load_yaml(args.study)["name"]), np.random.default_rng(args.draw)
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        if start_study(args.study, out / "unbroken").wait():
            raise SystemExit("the unbroken study did not end well")
        whole = study_csv(out / "unbroken", name)
        frame = build_study_table(find_study(out / "unbroken", name))
        print(f"unbroken: {len(frame)} runs", flush=True)
        run_with_kills(args.study, out / "broken", args.kills, len(frame), draw)
        same = study_csv(out / "broken", name) == whole
        print(f"tables after {args.kills} kills: {'equal to the last bit' if same else 'THEY DIFFER'}")
        rate, size = null_call_rate(frame, draw), 12 / 2**PAIRS
        slack = 4 * np.sqrt(size * (1 - size) / RELABELLINGS)
        print(
            f"null study, {RELABELLINGS} relabellings of {PAIRS} pairs of IID runs: {rate:.1%} called; {size:.1%} is what "
            f"{PAIRS} seeds can give below 5 %"
        )
        if not same or abs(rate - size) > slack:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
