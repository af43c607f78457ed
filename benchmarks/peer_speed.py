"""Compare the speed of fedrift, Flower's simulation and Apple's pfl on the same federated workloads.

    make bench-peers          (python benchmarks/peer_speed.py [--sides fedrift bare flower pfl] [--rounds 8] [--pfl .peers/pfl])

All frameworks average LoRA adapters on `pocket`, with the same initial adapters, batches, local steps and clients. Each framework
runs in its own process with one training thread (Flower uses one Ray actor and further helper processes). The processes take
turns, one round each. The first rounds, in which actors start and networks load, are not counted. The client of the other
frameworks is efficient: transformers and PEFT, loaded once, without padding. ``bare`` runs that client in a loop and averages the
results without any framework. All sides must end at the same adapters. In the last workload, a client only takes a step on a vector
of 1 MB; its time beyond ``bare`` is the overhead of the framework. pfl requires older versions of packages than fedrift. It is
therefore installed into a separate folder that only its process imports (`make bench-peers` does this; `--pfl` names the folder).
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
    """Raised if a side could not start or has failed; the text gives the reason."""


RoundSeconds = dict[str, list[float]]


def time_sides(work: Workload, sides: Sequence[str], folder: Path, pfl_dir: Path) -> tuple[RoundSeconds, dict[str, Tree], dict[str, str]]:
    """Run a workload with all sides in turn.

    Args:
        work: The workload.
        sides: The names of the sides.
        folder: The folder for logs and the socket.
        pfl_dir: The folder of pfl's packages.

    Returns:
        The seconds of the timed rounds of each side, its final parameters, and the reason for each missing side.
    """
    with process_group(folder) as group, Listener(family="AF_UNIX", address=str(folder / "line")) as listener:
        connections, absent = connect_sides(group, listener, sides, work, pfl_dir)
        seconds_by_side: RoundSeconds = {side: [] for side in connections}
        for _ in range(work.warmup_rounds + work.num_rounds):
            for side in list(connections):
                try:
                    connections[side].send("go")
                    seconds_by_side[side].append(receive(group, connections[side], side))
                except SideUnavailable as error:
                    absent[side] = str(error)
                    del connections[side], seconds_by_side[side]
        final_params = {
            side: Tree({name: torch.from_numpy(leaf) for name, leaf in receive(group, connection, side).items()})
            for side, connection in connections.items()
        }
        return {side: seconds[work.warmup_rounds :] for side, seconds in seconds_by_side.items()}, final_params, absent


def connect_sides(
    group: ProcessGroup, listener: Listener, sides: Sequence[str], work: Workload, pfl_dir: Path
) -> tuple[dict[str, Connection], dict[str, str]]:
    """Start all sides and wait until each has connected or ended; return the connections and the reasons for missing sides."""
    for side in sides:
        group.start(
            side,
            Command(
                "here",
                (sys.executable, __file__, "--side", side, "--work", str(work), "--address", str(listener.address), "--pfl", str(pfl_dir)),
            ),
        )
    connections, absent = dict[str, Connection](), dict[str, str]()
    while len(connections) + len(absent) < len(sides):
        if wait([listener._listener._socket], 1):  # type: ignore[attr-defined]
            connection = listener.accept()
            connections[connection.recv()] = connection
        else:
            absent |= {
                side: group.log_tail(side, 1) for side in sides if side not in connections and group.children[side].poll() is not None
            }
    return {side: connections[side] for side in sides if side in connections}, absent


def receive(group: ProcessGroup, connection: Connection, side: str) -> Any:
    """Receive the next value from a side.

    Raises:
        SideUnavailable: If the process of the side has ended.
    """
    while not connection.poll(1):
        if group.children[side].poll() is not None:
            raise SideUnavailable(group.log_tail(side, 1))
    try:
        return connection.recv()
    except EOFError:
        raise SideUnavailable(group.log_tail(side, 1)) from None


def run_side(options: Namespace) -> None:
    """Run one side in this process."""
    if options.side == "pfl":
        sys.path.insert(0, str(options.pfl))
    torch.set_num_threads(1)
    run = import_module(f"peer_{options.side}").run
    run(Workload.from_json(options.work), TurnClient(options.address, options.side))


def make_rows(work: Workload, spent: RoundSeconds, final_params: dict[str, Tree], absent: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield one row of results per side."""
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
            overheads = [side_s - reference_s for side_s, reference_s in zip(seconds, spent["bare"], strict=True)]
            row["overhead_ms"] = round(1000 * median(overheads) / work.num_clients, 2)
        if "fedrift" in spent:
            ratios = sorted(side_s / reference_s for side_s, reference_s in zip(seconds, spent["fedrift"], strict=True))
            row |= {
                "relative_time": round(median(ratios), 2),
                "relative_time_lowest": round(ratios[0], 2),
                "relative_time_highest": round(ratios[-1], 2),
                "difference": check_agreement(final_params[side], final_params["fedrift"]),
            }
        yield row
    for side, reason in absent.items():
        yield {"work": work.name, "side": side, "absent": reason}


def format_row(row: dict[str, Any]) -> str:
    """Return a row as one line of text."""
    prefix = "{work:24} {side:8}".format(**row)
    if "absent" in row:
        return f"{prefix} not measured: {row['absent']}"
    line = prefix + " {round_s:8.4f} s per round ({lowest_s:.4f} to {highest_s:.4f})   {client_ms:8.2f} ms per client".format(**row)
    if "overhead_ms" in row:
        line += f", overhead over bare {row['overhead_ms']:+.2f} ms"
    if "relative_time" in row:
        line += "   {relative_time}x fedrift ({relative_time_lowest} to {relative_time_highest})".format(**row)
        line += f"   difference of parameters {row['difference']:.0e}"
    return line


@contextmanager
def with_import_path() -> Iterator[None]:
    """Add the folder of this file to PYTHONPATH, so that child processes and Ray's actors can import its modules."""
    previous = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([previous] if previous else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if previous is not None:
            os.environ["PYTHONPATH"] = previous


def main(arguments: list[str] | None = None) -> int:
    """Run all workloads, print a line per side and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="the sides to compare")
    parser.add_argument("--rounds", type=int, help="the number of timed rounds per workload, instead of 8, 8 and 30")
    parser.add_argument("--pfl", type=Path, default=Path(".peers/pfl"), help="the folder of pfl's packages")
    for option in ("--side", "--work", "--address"):
        parser.add_argument(option, help="internal: the benchmark uses this option to start a side")
    args = parser.parse_args(arguments)
    if args.side:
        run_side(args)
        return 0
    rows = list[dict[str, Any]]()
    for work in SMALL_WORKLOADS if args.small else WORKLOADS:
        work = replace(work, num_rounds=args.rounds or work.num_rounds)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, with_import_path():
            seconds, final_params, absent = time_sides(work, args.sides, Path(folder), args.pfl.resolve())
        for row in make_rows(work, seconds, final_params, absent):
            rows.append(row)
            print(format_row(row), flush=True)
    print(
        write_results(
            args.out,
            "peers",
            {**describe_machine(CPU), "peers": {"flwr": package_version("flwr"), "ray": package_version("ray")}, "rows": rows},
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
