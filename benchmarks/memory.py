"""Measure the memory of a federation: stacked clients compared with one model copy per client, and up to 1,000 clients.

    python benchmarks/memory.py [--rounds 3]

Each case runs in its own process. The results are the peak resident memory and the memory after the last round, minus the memory
before the network is loaded. The copies use DistilGPT2's architecture with random weights, LoRA of rank 8, 8 x 64 tokens per client
and one AdamW step. The growing client pool uses SCAFFOLD on `pocket`, a cohort of ten and one step of 8 x 64 tokens. The state of a
client is its control variate and two counters, and all clients have their state from the start. Both sides of a comparison must
end at the same updates.
"""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil
import torch
from comparison import CPU, check_agreement, load_network, make_batches, stacked_training, write_rows
from machine import make_parser

from fedrift.algorithms import Scaffold
from fedrift.config.runtime import configure_malloc
from fedrift.core.optimizers import AdamW, Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import FederatedState
from fedrift.engine.loop import init_state, run_rounds
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from fedrift.simulation import ClientSimulator
from fedrift.simulation.batches import choose_clients_per_pass

Case = tuple[str, int, int]  # side, clients, cohort
COPY_CASES: list[Case] = [("copies", 20, 20), ("stacked", 1, 1), ("stacked", 20, 20)]
POOL_CASES: list[Case] = [("pool", size, min(size, 10)) for size in (1, 10, 20, 100, 1000)]
SMALL_CASES: list[Case] = [("copies", 3, 3), ("stacked", 1, 1), ("stacked", 3, 3), *(("pool", size, 2) for size in (2, 4, 8, 16))]


def peak_resident_bytes() -> float:
    """Return the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train_stacked(network: Any, num_clients: int, shape: tuple[int, int]) -> Tree:
    """Train all clients stacked over one base model; return their updates [C, ...]."""
    batches = make_batches(num_clients, *shape, 1, network.config.vocab_size)
    model = StackedModel(network, Lora())
    return stacked_training(model, batches, model.init_params(), choose_clients_per_pass(network, num_clients, *shape, CPU), AdamW())()


def train_copies(network: Any, num_clients: int, shape: tuple[int, int]) -> Tree:
    """Train clients one after another, each with its own copy of the model in memory; return their updates [C, ...]."""
    models = [StackedModel(copy.deepcopy(network), Lora(), fused=False) for _ in range(num_clients)]
    updates = []
    for number, model in enumerate(models):
        batch = make_batches(num_clients, *shape, 1, network.config.vocab_size)[0]
        rows = {name: leaf[number : number + 1] for name, leaf in batch.items()}
        updates.append(stacked_training(model, [rows], model.init_params(), 1, AdamW())())
    return Tree({name: torch.cat([update[name] for update in updates]) for name in updates[0]})


def train_growing_pool(
    network: Any, num_clients: int, cohort_size: int, shape: tuple[int, int], num_rounds: int
) -> tuple[Tree, list[float], int]:
    """Train a client pool of which a cohort participates in each round.

    Returns:
        The updates of the first round, the seconds of each later round, and the bytes of the state of one client.
    """
    model, algorithm = StackedModel(network, Lora()), Scaffold()
    batches = make_batches(cohort_size, *shape, 1, network.config.vocab_size)

    def read_batches(round: int, cohort: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [{leaf: values[cohort % cohort_size] for leaf, values in batch.items()} for batch in batches]

    def sample_in_turn(state: FederatedState, count: int, seed: int) -> torch.Tensor:
        return (torch.arange(count) + state.round * count) % num_clients

    simulator = ClientSimulator(
        num_clients, model, read_batches, Sgd(0.1), clients_per_pass=choose_clients_per_pass(network, cohort_size, *shape, CPU)
    )
    state = init_state(algorithm, model.init_params(), num_clients)
    row = state.client_states.gather(slice(0, 1))
    for client in range(num_clients):  # clients share one initial state until they have participated, so give each its own
        state = replace(state, client_states=state.client_states.update(torch.tensor([client]), row))
    state_bytes = state.client_states.num_bytes() // num_clients + 2 * state.cluster_ids.element_size()
    first_updates, seconds, start = Tree(), list[float](), perf_counter()
    for result in run_rounds(
        state, simulator, algorithm, num_rounds=num_rounds, cohort_size=cohort_size, seed=0, sample_clients=sample_in_turn
    ):
        seconds.append(perf_counter() - start)
        first_updates = first_updates or result.update.delta
        start = perf_counter()
    return first_updates, seconds[1:], state_bytes


def run_case(case: Case, num_rounds: int, small: bool, out: Path) -> dict[str, Any]:
    """Measure a case in this process.

    Args:
        case: The side, the number of clients and the size of the cohort.
        num_rounds: The number of timed rounds, for the side ``pool``.
        small: Whether to use toy sizes.
        out: The file to which the updates are written.
    """
    side, clients, cohort = case
    configure_malloc()
    memory_before, shape, extra = psutil.Process().memory_info().rss, (2, 16) if small else (8, 64), dict[str, Any]()
    network = load_network("pocket" if side == "pool" else "distilgpt2", small=small)
    if side == "pool":
        updates, seconds, state_bytes = train_growing_pool(network, clients, cohort, shape, num_rounds + 1)
        extra = {"round_s": round(median(seconds), 3), "own_bytes": state_bytes}
    else:
        updates = {"copies": train_copies, "stacked": train_stacked}[side](network, clients, shape)
    torch.save(dict(updates), out)
    return {
        "side": side,
        "clients": clients,
        "cohort": cohort,
        "peak_mb": round((peak_resident_bytes() - memory_before) / 1e6, 1),
        "held_mb": round((psutil.Process().memory_info().rss - memory_before) / 1e6, 1),
        **extra,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure all cases, print a line for each and write the results."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=3, help="the number of timed rounds of the growing client pool, after a first round")
    parser.add_argument("--case", help="side,clients,cohort: measure this case in this process, and only print the result")
    parser.add_argument("--ends", type=Path, default=Path("ends.pt"), help="the file for the updates, with --case")
    args = parser.parse_args(arguments)
    if args.case:
        side, clients, cohort = args.case.split(",")
        print(json.dumps(run_case((side, int(clients), int(cohort)), args.rounds, args.small, args.ends)))
        return 0
    rows, updates = list[dict[str, Any]](), dict[Case, Tree]()
    with tempfile.TemporaryDirectory() as folder:
        for case in SMALL_CASES if args.small else [*COPY_CASES, *POOL_CASES]:
            path = Path(folder) / "ends.pt"
            command = [
                sys.executable,
                __file__,
                "--case",
                ",".join(map(str, case)),
                "--ends",
                str(path),
                "--rounds",
                str(args.rounds),
                *(["--small"] if args.small else []),
            ]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
            updates[case] = Tree(torch.load(path))
            print(
                "{side:8s} {clients:5d} clients, cohort of {cohort:3d}   peak {peak_mb:8,.1f} MB, "
                "after the last round {held_mb:8,.1f} MB".format(**rows[-1]),
                f"  {rows[-1].get('round_s', '')}",
                flush=True,
            )
    summary = summarize(rows, updates)
    print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    write_rows(args.out, "memory", rows, **summary)
    return 0


def summarize(rows: list[dict[str, Any]], ends: dict[Case, Tree]) -> dict[str, Any]:
    """Summarize the rows and check that the sides agree.

    Raises:
        SystemExit: If sides that should end at the same updates do not.
    """
    copies, stacks = (next(row for row in reversed(rows) if row["side"] == side) for side in ("copies", "stacked"))
    pool_rows = [row for row in rows if row["side"] == "pool"]
    case_by_size = {row["clients"]: (row["side"], row["clients"], row["cohort"]) for row in pool_rows}
    full_cohort = [row for row in pool_rows if row["cohort"] == pool_rows[-1]["cohort"]]
    differences = [
        check_agreement(ends[case_by_size[row["clients"]]], ends[case_by_size[full_cohort[0]["clients"]]]) for row in full_cohort[1:]
    ]
    fewer, most = full_cohort[-2], full_cohort[-1]
    num_added = most["clients"] - fewer["clients"]
    return {
        "copies_over_stacked": round(copies["peak_mb"] / stacks["peak_mb"], 2),
        # The size of AdamW's first step is the learning rate. Where the gradient is only rounding error, its sign is random.
        "copies_difference": check_agreement(
            ends["stacked", stacks["clients"], stacks["cohort"]], ends["copies", copies["clients"], copies["cohort"]], tolerance=0.1
        ),
        "own_bytes": most["own_bytes"],
        "held_bytes_a_further_client": round(1e6 * (most["held_mb"] - fewer["held_mb"]) / num_added),
        "peak_bytes_a_further_client": round(1e6 * (most["peak_mb"] - fewer["peak_mb"]) / num_added),
        "round_at_most_clients_over_20": round(most["round_s"] / full_cohort[min(1, len(full_cohort) - 1)]["round_s"], 3),
        "pool_difference": max(differences, default=0.0),
    }


if __name__ == "__main__":
    sys.exit(main())
