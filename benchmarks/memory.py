"""Memory of a federation: clients stacked over one base beside a copy of the model each, and a fleet that grows to 1,000.

    python benchmarks/memory.py [--rounds 3]

Each line is measured in a process of its own: the highest resident set and what is held after the last round, less what the
process had before its network. Copies: DistilGPT2's shape with random weights, LoRA r = 8, 8 x 64 tokens a client, a step of
AdamW. The growing fleet: SCAFFOLD on `pocket`, a cohort of ten, one step of 8 x 64 tokens; a client's adapters and state are its
control variate and two counts, and all clients hold theirs from the beginning. Both sides of a comparison must end with the
same updates.
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
FLEET_CASES: list[Case] = [("fleet", size, min(size, 10)) for size in (1, 10, 20, 100, 1000)]
SMALL_CASES: list[Case] = [("copies", 3, 3), ("stacked", 1, 1), ("stacked", 3, 3), *(("fleet", size, 2) for size in (2, 4, 8, 16))]


def peak_resident_bytes() -> float:
    """Bytes of the highest resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train_stacked(network: Any, num_clients: int, shape: tuple[int, int]) -> Tree:
    batches = make_batches(num_clients, *shape, 1, network.config.vocab_size)
    model = StackedModel(network, Lora())
    return stacked_training(model, batches, model.init_params(), choose_clients_per_pass(network, num_clients, *shape, CPU), AdamW())()


def train_copies(network: Any, num_clients: int, shape: tuple[int, int]) -> Tree:
    """As if each client had a model: all in memory, trained one after another."""
    models = [StackedModel(copy.deepcopy(network), Lora(), fused=False) for _ in range(num_clients)]
    ends = []
    for number, model in enumerate(models):
        whole = make_batches(num_clients, *shape, 1, network.config.vocab_size)[0]
        own = {name: leaf[number : number + 1] for name, leaf in whole.items()}
        ends.append(stacked_training(model, [own], model.init_params(), 1, AdamW())())
    return Tree({name: torch.cat([end[name] for end in ends]) for name in ends[0]})


def train_growing_fleet(
    network: Any, num_clients: int, cohort_size: int, shape: tuple[int, int], num_rounds: int
) -> tuple[Tree, list[float], int]:
    """The first round's updates, seconds of the rounds after it, and bytes of what a client keeps."""
    model, algorithm = StackedModel(network, Lora()), Scaffold()
    batches = make_batches(cohort_size, *shape, 1, network.config.vocab_size)

    def read(round: int, who: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [{leaf: values[who % cohort_size] for leaf, values in batch.items()} for batch in batches]

    def in_turn(state: FederatedState, count: int, seed: int) -> torch.Tensor:
        return (torch.arange(count) + state.round * count) % num_clients

    fleet = ClientSimulator(num_clients, model, read, Sgd(0.1), clients_per_pass=choose_clients_per_pass(network, cohort_size, *shape, CPU))
    state = init_state(algorithm, model.init_params(), num_clients)
    row = state.client_states.gather(slice(0, 1))
    for client in range(num_clients):  # as if all had taken part: until then they share what they begin with
        state = replace(state, client_states=state.client_states.update(torch.tensor([client]), row))
    own = state.client_states.num_bytes() // num_clients + 2 * state.cluster_ids.element_size()
    first, spent, begun = Tree(), list[float](), perf_counter()
    for done in run_rounds(state, fleet, algorithm, num_rounds=num_rounds, cohort_size=cohort_size, seed=0, sample_clients=in_turn):
        spent.append(perf_counter() - begun)
        first = first or done.report.delta
        begun = perf_counter()
    return first, spent[1:], own


def run_case(case: Case, num_rounds: int, small: bool, out: Path) -> dict[str, Any]:
    """A case, in this process."""
    side, clients, cohort = case
    configure_malloc()
    before, shape, said = psutil.Process().memory_info().rss, (2, 16) if small else (8, 64), dict[str, Any]()
    network = load_network("pocket" if side == "fleet" else "distilgpt2", small=small)
    if side == "fleet":
        end, spent, own = train_growing_fleet(network, clients, cohort, shape, num_rounds + 1)
        said = {"round_s": round(median(spent), 3), "own_bytes": own}
    else:
        end = {"copies": train_copies, "stacked": train_stacked}[side](network, clients, shape)
    torch.save(dict(end), out)
    return {
        "side": side,
        "clients": clients,
        "cohort": cohort,
        "peak_mb": round((peak_resident_bytes() - before) / 1e6, 1),
        "held_mb": round((psutil.Process().memory_info().rss - before) / 1e6, 1),
        **said,
    }


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "")
    ask.add_argument("--rounds", type=int, default=3, help="of the growing fleet, after a first one")
    ask.add_argument("--case", help="side,clients,cohort: in this process, and only print")
    ask.add_argument("--ends", type=Path, default=Path("ends.pt"), help="file of the updates, with --case")
    said = ask.parse_args(words)
    if said.case:
        side, clients, cohort = said.case.split(",")
        print(json.dumps(run_case((side, int(clients), int(cohort)), said.rounds, said.small, said.ends)))
        return 0
    rows, ends = list[dict[str, Any]](), dict[Case, Tree]()
    with tempfile.TemporaryDirectory() as folder:
        for case in SMALL_CASES if said.small else [*COPY_CASES, *FLEET_CASES]:
            path = Path(folder) / "ends.pt"
            command = [
                sys.executable,
                __file__,
                "--case",
                ",".join(map(str, case)),
                "--ends",
                str(path),
                "--rounds",
                str(said.rounds),
                *(["--small"] if said.small else []),
            ]
            heard = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(heard.splitlines()[-1]))
            ends[case] = Tree(torch.load(path))
            print(
                "{side:8s} {clients:5d} clients, {cohort:3d} a round   at most {peak_mb:8,.1f} MB, held {held_mb:8,.1f}".format(**rows[-1]),
                f"  {rows[-1].get('round_s', '')}",
                flush=True,
            )
    told = summarize(rows, ends)
    print("\n".join(f"{name}: {value}" for name, value in told.items()))
    write_rows(said.out, "memory", rows, **told)
    return 0


def summarize(rows: list[dict[str, Any]], ends: dict[Case, Tree]) -> dict[str, Any]:
    """What the rows come to; ends the benchmark where sides that should end alike do not."""
    copies, stacks = (next(row for row in reversed(rows) if row["side"] == side) for side in ("copies", "stacked"))
    fleets = [row for row in rows if row["side"] == "fleet"]
    case = {row["clients"]: (row["side"], row["clients"], row["cohort"]) for row in fleets}
    whole = [row for row in fleets if row["cohort"] == fleets[-1]["cohort"]]
    differ = [check_agreement(ends[case[row["clients"]]], ends[case[whole[0]["clients"]]]) for row in whole[1:]]
    few, many = whole[-2], whole[-1]
    further = many["clients"] - few["clients"]
    return {
        "copies_over_stacked": round(copies["peak_mb"] / stacks["peak_mb"], 2),
        # AdamW's first step has the size of its rate however small the gradient: where that is all rounding, so is the sign
        "copies_difference": check_agreement(
            ends["stacked", stacks["clients"], stacks["cohort"]], ends["copies", copies["clients"], copies["cohort"]], tolerance=0.1
        ),
        "own_bytes": many["own_bytes"],
        "held_bytes_a_further_client": round(1e6 * (many["held_mb"] - few["held_mb"]) / further),
        "peak_bytes_a_further_client": round(1e6 * (many["peak_mb"] - few["peak_mb"]) / further),
        "round_at_most_clients_over_20": round(many["round_s"] / whole[min(1, len(whole) - 1)]["round_s"], 3),
        "fleet_difference": max(differ, default=0.0),
    }


if __name__ == "__main__":
    sys.exit(main())
