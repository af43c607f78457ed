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
from machine import options
from sides import CPU, batches_of, network_of, stacked
from turns import agreed, written

from fedrift.algorithms import Scaffold
from fedrift.fleet import SimulatedFleet
from fedrift.fleet.micro import micro_cohort
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora
from fedrift.optimizers import AdamW, Sgd
from fedrift.rounds import begin, rounds
from fedrift.runtime import keep_pages
from fedrift.tree import Tree
from fedrift.values import State

Case = tuple[str, int, int]  # side, clients, cohort
COPIES: list[Case] = [("copies", 20, 20), ("stacked", 1, 1), ("stacked", 20, 20)]
FLEET: list[Case] = [("fleet", size, min(size, 10)) for size in (1, 10, 20, 100, 1000)]
SMALL: list[Case] = [("copies", 3, 3), ("stacked", 1, 1), ("stacked", 3, 3), *(("fleet", size, 2) for size in (2, 4, 8, 16))]


def highest() -> float:
    """Bytes of the highest resident set."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def together(network: Any, clients: int, shape: tuple[int, int]) -> Tree:
    batches = batches_of(clients, *shape, 1, network.config.vocab_size)
    model = StackedModel(network, Lora())
    return stacked(model, batches, model.template(), micro_cohort(network, clients, *shape, CPU), AdamW())()


def copied(network: Any, clients: int, shape: tuple[int, int]) -> Tree:
    """As if each client had a model: all in memory, trained one after another."""
    models = [StackedModel(copy.deepcopy(network), Lora(), lean=False) for _ in range(clients)]
    ends = []
    for number, model in enumerate(models):
        whole = batches_of(clients, *shape, 1, network.config.vocab_size)[0]
        own = {name: leaf[number:number + 1] for name, leaf in whole.items()}
        ends.append(stacked(model, [own], model.template(), 1, AdamW())())
    return Tree({name: torch.cat([end[name] for end in ends]) for name in ends[0]})


def grown(network: Any, clients: int, cohort: int, shape: tuple[int, int], until: int) -> tuple[Tree, list[float], int]:
    """The first round's updates, seconds of the rounds after it, and bytes of what a client keeps."""
    model, algorithm = StackedModel(network, Lora()), Scaffold()
    batches = batches_of(cohort, *shape, 1, network.config.vocab_size)

    def read(round: int, who: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        return [{leaf: values[who % cohort] for leaf, values in batch.items()} for batch in batches]

    def in_turn(state: State, count: int, seed: int) -> torch.Tensor:
        return (torch.arange(count) + state.round * count) % clients

    fleet = SimulatedFleet(clients, model, read, Sgd(0.1), micro=micro_cohort(network, cohort, *shape, CPU))
    state = begin(algorithm, model.template(), clients)
    row = state.memory.rows(slice(0, 1))
    for client in range(clients):  # as if all had taken part: until then they share what they begin with
        state = replace(state, memory=state.memory.put(torch.tensor([client]), row))
    own = state.memory.bytes() // clients + 2 * state.group.element_size()
    first, spent, begun = Tree(), list[float](), perf_counter()
    for done in rounds(state, fleet, algorithm, until=until, cohort=cohort, seed=0, draw=in_turn):
        spent.append(perf_counter() - begun)
        first = first or done.report.delta
        begun = perf_counter()
    return first, spent[1:], own


def one(case: Case, until: int, small: bool, out: Path) -> dict[str, Any]:
    """A case, in this process."""
    side, clients, cohort = case
    keep_pages()
    before, shape, said = psutil.Process().memory_info().rss, (2, 16) if small else (8, 64), dict[str, Any]()
    network = network_of("pocket" if side == "fleet" else "distilgpt2", small=small)
    if side == "fleet":
        end, spent, own = grown(network, clients, cohort, shape, until + 1)
        said = {"round_s": round(median(spent), 3), "own_bytes": own}
    else:
        end = {"copies": copied, "stacked": together}[side](network, clients, shape)
    torch.save(dict(end), out)
    return {"side": side, "clients": clients, "cohort": cohort, "peak_mb": round((highest() - before) / 1e6, 1),
            "held_mb": round((psutil.Process().memory_info().rss - before) / 1e6, 1), **said}


def main(words: list[str] | None = None) -> int:
    ask = options(__doc__ or "")
    ask.add_argument("--rounds", type=int, default=3, help="of the growing fleet, after a first one")
    ask.add_argument("--case", help="side,clients,cohort: in this process, and only print")
    ask.add_argument("--ends", type=Path, default=Path("ends.pt"), help="file of the updates, with --case")
    said = ask.parse_args(words)
    if said.case:
        side, clients, cohort = said.case.split(",")
        print(json.dumps(one((side, int(clients), int(cohort)), said.rounds, said.small, said.ends)))
        return 0
    rows, ends = list[dict[str, Any]](), dict[Case, Tree]()
    with tempfile.TemporaryDirectory() as folder:
        for case in SMALL if said.small else [*COPIES, *FLEET]:
            path = Path(folder) / "ends.pt"
            command = [sys.executable, __file__, "--case", ",".join(map(str, case)), "--ends", str(path),
                       "--rounds", str(said.rounds), *(["--small"] if said.small else [])]
            heard = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(heard.splitlines()[-1]))
            ends[case] = Tree(torch.load(path))
            print("{side:8s} {clients:5d} clients, {cohort:3d} a round   at most {peak_mb:8,.1f} MB, held {held_mb:8,.1f}".format(
                **rows[-1]), f"  {rows[-1].get('round_s', '')}", flush=True)
    told = concluded(rows, ends)
    print("\n".join(f"{name}: {value}" for name, value in told.items()))
    written(said.out, "memory", rows, **told)
    return 0


def concluded(rows: list[dict[str, Any]], ends: dict[Case, Tree]) -> dict[str, Any]:
    """What the rows come to; ends the benchmark where sides that should end alike do not."""
    copies, stacks = (next(row for row in reversed(rows) if row["side"] == side) for side in ("copies", "stacked"))
    fleets = [row for row in rows if row["side"] == "fleet"]
    case = {row["clients"]: (row["side"], row["clients"], row["cohort"]) for row in fleets}
    whole = [row for row in fleets if row["cohort"] == fleets[-1]["cohort"]]
    differ = [agreed(ends[case[row["clients"]]], ends[case[whole[0]["clients"]]]) for row in whole[1:]]
    few, many = whole[-2], whole[-1]
    further = many["clients"] - few["clients"]
    return {
        "copies_over_stacked": round(copies["peak_mb"] / stacks["peak_mb"], 2),
        # AdamW's first step has the size of its rate however small the gradient: where that is all rounding, so is the sign
        "copies_difference": agreed(ends["stacked", stacks["clients"], stacks["cohort"]],
                                    ends["copies", copies["clients"], copies["cohort"]], most=0.1),
        "own_bytes": many["own_bytes"],
        "held_bytes_a_further_client": round(1e6 * (many["held_mb"] - few["held_mb"]) / further),
        "peak_bytes_a_further_client": round(1e6 * (many["peak_mb"] - few["peak_mb"]) / further),
        "round_at_most_clients_over_20": round(many["round_s"] / whole[min(1, len(whole) - 1)]["round_s"], 3),
        "fleet_difference": max(differ, default=0.0)}


if __name__ == "__main__":
    sys.exit(main())
