"""The same federated work by fedrift, by Flower's simulation and by Apple's pfl, round by round in turn.

    make bench-peers          (python benchmarks/peer_speed.py [--sides fedrift bare flower pfl] [--rounds 8] [--pfl .peers/pfl])

Federated averaging of LoRA adapters on `pocket`: the same first adapters, batches, local steps and clients. Each framework lives
in a process of its own, with one thread for training (Flower's one Ray actor, beside its own helpers), and works a round when it
is its turn; the first rounds, in which actors start and networks load, do not count. The other frameworks' client is a fair
one: transformers + peft, loaded once, unpadded; ``bare`` is that client one after another with a mean and no framework. All must
end at the same adapters. The last work is next to nothing, a step on a vector of 1 MB: what a client-task takes there more than
``bare`` is the framework's own. pfl's package asks for older versions of packages than
fedrift's: it is put, alone, into a folder that only its process sees (`make bench-peers` does; `--pfl` says where).
"""

from __future__ import annotations

import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from statistics import median
from typing import Any

import torch
from comparison import CPU, check_agreement
from machine import describe_machine, make_parser, package_version, write_results
from peer_work import TurnClient, Workload

from fedrift.core.tree import Tree
from fedrift.flower.launch import Command, ProcessGroup, process_group

SIDES = ("fedrift", "bare", "flower", "pfl")
WORKLOADS = (
    Workload("4 clients x 8 sequences", 4, 8),
    Workload("10 clients x 1 sequence", 10, 1),
    Workload("a step on 1 MB", 10, 1, local_steps=1, model="", num_rounds=30),
)
SMALL_WORKLOADS = (
    Workload("toy", 3, 2, tokens=16, local_steps=2, small=True, warmup_rounds=1, num_rounds=2),
    Workload("a step on 1 MB", 3, 1, local_steps=1, model="", warmup_rounds=1, num_rounds=2),
)


class SideUnavailable(Exception):
    """A side that could not begin, or broke down, and why."""


RoundSeconds = dict[str, list[float]]


def time_sides(work: Workload, sides: Sequence[str], folder: Path, pfl_dir: Path) -> tuple[RoundSeconds, dict[str, Tree], dict[str, str]]:
    """Seconds of every side's steady rounds, its last params, and why a side is absent."""
    with process_group(folder) as made, Listener(family="AF_UNIX", address=str(folder / "line")) as listener:
        lines, absent = connect_sides(made, listener, sides, work, pfl_dir)
        spent: RoundSeconds = {side: [] for side in lines}
        for _ in range(work.warmup_rounds + work.num_rounds):
            for side in list(lines):
                try:
                    lines[side].send("go")
                    spent[side].append(receive(made, lines[side], side))
                except SideUnavailable as error:
                    absent[side] = str(error)
                    del lines[side], spent[side]
        ends = {
            side: Tree({name: torch.from_numpy(leaf) for name, leaf in receive(made, line, side).items()}) for side, line in lines.items()
        }
        return {side: seconds[work.warmup_rounds :] for side, seconds in spent.items()}, ends, absent


def connect_sides(
    group: ProcessGroup, listener: Listener, sides: Sequence[str], work: Workload, pfl_dir: Path
) -> tuple[dict[str, Connection], dict[str, str]]:
    """Start all sides and wait until each is on the line, or gone."""
    for side in sides:
        group.start(
            side,
            Command(
                "here",
                (sys.executable, __file__, "--side", side, "--work", str(work), "--address", str(listener.address), "--pfl", str(pfl_dir)),
            ),
        )
    lines, absent = dict[str, Connection](), dict[str, str]()
    while len(lines) + len(absent) < len(sides):
        if wait([listener._listener._socket], 1):  # type: ignore[attr-defined]
            line = listener.accept()
            lines[line.recv()] = line
        else:
            absent |= {side: group.log_tail(side, 1) for side in sides if side not in lines and group.children[side].poll() is not None}
    return {side: lines[side] for side in sides if side in lines}, absent


def receive(group: ProcessGroup, connection: Connection, side: str) -> Any:
    """What a side says next."""
    while not connection.poll(1):
        if group.children[side].poll() is not None:
            raise SideUnavailable(group.log_tail(side, 1))
    try:
        return connection.recv()
    except EOFError:
        raise SideUnavailable(group.log_tail(side, 1)) from None


def run_side(options: Namespace) -> None:
    """Be a side, in this process."""
    if options.side == "pfl":
        sys.path.insert(0, str(options.pfl))
    torch.set_num_threads(1)
    run = import_module(f"peer_{options.side}").run
    run(Workload.from_json(options.work), TurnClient(options.address, options.side))


def make_rows(work: Workload, spent: RoundSeconds, final_params: dict[str, Tree], absent: dict[str, str]) -> Iterator[dict[str, Any]]:
    for side, seconds in spent.items():
        row = {
            "work": work.name,
            "side": side,
            "round_s": round(median(seconds), 4),
            "lowest_s": round(min(seconds), 4),
            "highest_s": round(max(seconds), 4),
            "client_ms": round(1000 * median(seconds) / work.num_clients, 2),
        }
        if "bare" in spent:
            more = [theirs - own for theirs, own in zip(seconds, spent["bare"], strict=True)]
            row["beside_ms"] = round(1000 * median(more) / work.num_clients, 2)
        if "fedrift" in spent:
            ratios = sorted(theirs / own for theirs, own in zip(seconds, spent["fedrift"], strict=True))
            row |= {
                "of_ours": round(median(ratios), 2),
                "of_ours_lowest": round(ratios[0], 2),
                "of_ours_highest": round(ratios[-1], 2),
                "difference": check_agreement(final_params[side], final_params["fedrift"]),
            }
        yield row
    for side, why in absent.items():
        yield {"work": work.name, "side": side, "absent": why}


def format_row(row: dict[str, Any]) -> str:
    begin = "{work:24} {side:8}".format(**row)
    if "absent" in row:
        return f"{begin} not measured: {row['absent']}"
    line = begin + " {round_s:8.4f} s a round ({lowest_s:.4f} to {highest_s:.4f})   {client_ms:8.2f} ms a client".format(**row)
    if "beside_ms" in row:
        line += f", {row['beside_ms']:+.2f} of bare"
    if "of_ours" in row:
        line += "   {of_ours}x ours ({of_ours_lowest} to {of_ours_highest})   params differ by {difference:.0e}".format(**row)
    return line


@contextmanager
def with_import_path() -> Iterator[None]:
    """What is beside this file can be imported by all that is started from here, Ray's actors too."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "")
    ask.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    ask.add_argument("--rounds", type=int, help="steady ones of each work, in place of 8, 8 and 30")
    ask.add_argument("--pfl", type=Path, default=Path(".peers/pfl"), help="folder of pfl's packages")
    for inner in ("--side", "--work", "--address"):
        ask.add_argument(inner, help="one side, which takes part: the benchmark itself asks")
    said = ask.parse_args(words)
    if said.side:
        run_side(said)
        return 0
    rows = list[dict[str, Any]]()
    for work in SMALL_WORKLOADS if said.small else WORKLOADS:
        work = replace(work, num_rounds=said.rounds or work.num_rounds)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, with_import_path():
            spent, ends, absent = time_sides(work, said.sides, Path(folder), said.pfl.resolve())
        for row in make_rows(work, spent, ends, absent):
            rows.append(row)
            print(format_row(row), flush=True)
    print(
        write_results(
            said.out,
            "peers",
            {**describe_machine(CPU), "peers": {"flwr": package_version("flwr"), "ray": package_version("ray")}, "rows": rows},
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
