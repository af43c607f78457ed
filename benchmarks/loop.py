"""A round of local training: our stacked fleet beside a plain transformers + peft loop, one client after another.

    python benchmarks/loop.py [--model pocket] [--repeats 5]

Both sides train the same clients on the same batches with plain gradient descent on the same LoRA adapters and must end at the
same adapters. They take turns in one process, each from a warm start; the table gives medians and the spread. The loop is a fair
one: one base model in memory, adapters swapped by copying, no padding, no re-wrapping. The share of peak is that of the frozen
matrix products, which both sides must do, in what a large float32 product reaches here: its inverse is the most that anything
could win.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from turns import apart, compared, peak, taking_turns, written

from fedrift.algorithms import FedAvg
from fedrift.fleet import SimulatedFleet
from fedrift.fleet.micro import micro_cohort
from fedrift.models.load import load_model
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora, blocks_of
from fedrift.models.worn import shape_of
from fedrift.optimizers import Sgd
from fedrift.rounds import begin
from fedrift.runtime import cache_folder, keep_pages
from fedrift.streams import torch_stream
from fedrift.tree import Tree

SHAPES = [(10, 8, 64, 4), (10, 2, 64, 4), (10, 8, 128, 2), (4, 8, 64, 4)]  # clients, sequences, tokens, steps
LR = 0.05


def batches_of(clients: int, rows: int, tokens: int, steps: int, vocabulary: int) -> list[dict[str, Tensor]]:
    """The same random tokens for both sides, ``[C, B, T]`` a step."""
    draw = torch_stream(0, "benchmark", clients, rows, tokens)
    every = [torch.randint(2, vocabulary, (clients, rows, tokens), generator=draw) for _ in range(steps)]
    return [{"tokens": step, "keep": torch.ones_like(step, dtype=torch.bool)} for step in every]


def stacked_side(name: str, batches: list[dict[str, Tensor]], micro: int | None) -> Callable[[], Tree]:
    model = StackedModel(load_model(name, cache=cache_folder()).network, Lora())
    clients = len(batches[0]["tokens"])

    def read(round: int, cohort: Tensor) -> list[dict[str, Tensor]]:
        return [{leaf: values[cohort] for leaf, values in batch.items()} for batch in batches]

    fleet = SimulatedFleet(clients, model, read, Sgd(LR), micro=micro)
    state = begin(FedAvg(), model.template(), clients)
    return lambda: fleet.train(state, FedAvg(), torch.arange(clients)).delta


def plain_side(name: str, batches: list[dict[str, Tensor]]) -> Callable[[], Tree]:
    language = load_model(name, cache=cache_folder())
    start = StackedModel(load_model(name, cache=cache_folder()).network, Lora()).template()
    endings = sorted({path.rsplit(".", 2)[-2] for path in start})
    model = get_peft_model(language.network, LoraConfig(r=8, lora_alpha=16, target_modules=endings)).eval()  # type: ignore[arg-type]
    leaves = {name.replace("base_model.model.", "").replace(".lora_", ".").replace(".default.weight", ""): leaf
              for name, leaf in model.named_parameters() if "lora_" in name}

    def train() -> Tree:
        moved: dict[str, list[Tensor]] = {name: [] for name in start}
        for client in range(len(batches[0]["tokens"])):
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(start[name][0])
            optimizer = torch.optim.SGD(leaves.values(), lr=LR)
            for batch in batches:
                tokens = batch["tokens"][client]
                optimizer.zero_grad()
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
            for name, leaf in leaves.items():
                moved[name].append(leaf.detach() - start[name][0])
        return Tree({name: torch.stack(parts) for name, parts in moved.items()})

    return train


def flops_per_token(network: Any) -> float:
    """Of the frozen matrix products of a step: all maps forward; backward all but those that read the embedding."""
    head = network.get_output_embeddings()
    maps = {path: math.prod(shape) for path, module in network.named_modules()
            if (shape := shape_of(module)) is not None and module is not head}
    first = blocks_of(network)[0] + ".0."
    readers = "q_proj", "k_proj", "v_proj", "c_attn"
    idle = sum(size for path, size in maps.items() if path.startswith(first) and path.endswith(readers))
    return 2.0 * (2 * (sum(maps.values()) + head.weight.numel()) - idle)


def measure(name: str, repeats: int, shapes: list[tuple[int, int, int, int]],
            micro: int | None) -> tuple[list[dict[str, Any]], float]:
    """A row of each shape, and the peak."""
    network: Any = load_model(name, cache=cache_folder()).network
    work_of_token, top = flops_per_token(network), peak()
    rows: list[dict[str, Any]] = []
    for clients, sequences, tokens, steps in shapes:
        batches = batches_of(clients, sequences, tokens, steps, network.config.vocab_size)
        fits = micro or micro_cohort(network, clients, sequences, tokens, torch.device("cpu"))
        sides = {"loop": plain_side(name, batches), "stacked": stacked_side(name, batches, min(fits, clients))}
        ends = {side: run() for side, run in sides.items()}  # warm, and compared
        difference = apart(ends["loop"], ends["stacked"])
        spent = taking_turns(sides, repeats)
        top = max(top, peak())
        work = clients * sequences * tokens * steps
        rate = {side: work / median(seconds) for side, seconds in spent.items()}
        rows.append({"clients": clients, "sequences": sequences, "tokens": tokens, "steps": steps, "micro": min(fits, clients),
                     **{f"{side}_tokens_per_s": round(value) for side, value in rate.items()},
                     **{f"{side}_share_of_peak": round(value * work_of_token / top, 2) for side, value in rate.items()},
                     **compared(spent, "loop", "stacked"), "largest_difference": difference})
        print("{clients:3d} x {sequences} x {tokens:3d}   loop {loop_tokens_per_s:6,d} tokens/s ({loop_share_of_peak:.0%})"
              "   stacked {stacked_tokens_per_s:6,d} ({stacked_share_of_peak:.0%})   {ratio:.2f}x ({ratio_lowest:.2f} to "
              "{ratio_highest:.2f})   adapters differ by {largest_difference:.0e}".format(**rows[-1]), flush=True)
    return rows, top


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="pocket")
    ask.add_argument("--repeats", type=int, default=5)
    ask.add_argument("--micro", type=int, help="clients in one pass; as a run would choose if not said")
    ask.add_argument("--shape", action="append", help="clients,sequences,tokens,steps in place of the usual four")
    said = ask.parse_args()
    shapes: Any = [tuple(map(int, shape.split(","))) for shape in said.shape or []] or SHAPES
    keep_pages()  # as every run does; both sides profit
    rows, top = measure(said.model, said.repeats, shapes, said.micro)
    written(f"loop-{said.model}", rows, model=said.model, peak_gflops=round(top / 1e9))


if __name__ == "__main__":
    main()
