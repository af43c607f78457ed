"""A round of local training: our stacked fleet beside a plain transformers + peft loop, one client after another.

    python benchmarks/loop.py [--model pocket] [--repeats 5]

Both sides train the same clients on the same batches with plain gradient descent on the same LoRA adapters and must end at the
same adapters. They take turns in one process, each from a warm start; the table gives medians and the spread. The loop is a fair
one: one base model in memory, adapters swapped by copying, no padding, no re-wrapping.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fedrift.algorithms import FedAvg
from fedrift.fleet import SimulatedFleet
from fedrift.models.load import load_model
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Lora
from fedrift.optimizers import Sgd
from fedrift.rounds import begin
from fedrift.runtime import cache_folder
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


def measure(name: str, repeats: int) -> list[dict[str, object]]:
    vocabulary = load_model(name, cache=cache_folder()).network.config.vocab_size
    rows: list[dict[str, object]] = []
    for clients, sequences, tokens, steps in SHAPES:
        batches = batches_of(clients, sequences, tokens, steps, vocabulary)
        micro = max(1, 4096 // (sequences * tokens))
        sides = {"loop": plain_side(name, batches), "stacked": stacked_side(name, batches, min(micro, clients))}
        ends = {side: run() for side, run in sides.items()}  # warm, and compared
        apart = max(float((ends["loop"][leaf] - ends["stacked"][leaf]).abs().max()) for leaf in ends["loop"])
        scale = max(float(leaf.abs().max()) for leaf in ends["loop"].values())
        if apart > 1e-3 * scale:
            raise SystemExit(f"the two sides differ by {apart:.2e} of {scale:.2e}: nothing to compare")
        spent: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side, run in sides.items():
                begun = perf_counter()
                run()
                spent[side].append(perf_counter() - begun)
        work = clients * sequences * tokens * steps
        ratios = sorted(a / b for a, b in zip(spent["loop"], spent["stacked"], strict=True))
        rows.append({"clients": clients, "sequences": sequences, "tokens": tokens, "steps": steps,
                     "loop_tokens_per_s": round(work / median(spent["loop"])),
                     "stacked_tokens_per_s": round(work / median(spent["stacked"])),
                     "ratio": round(median(ratios), 2),
                     "ratio_lowest": round(ratios[0], 2), "ratio_highest": round(ratios[-1], 2),
                     "largest_difference": float(f"{apart / scale:.1e}")})
        print("{clients:3d} x {sequences} x {tokens:3d}   loop {loop_tokens_per_s:6,d}   stacked {stacked_tokens_per_s:6,d} "
              "tokens/s   {ratio:.2f}x ({ratio_lowest:.2f} to {ratio_highest:.2f})   adapters differ by "
              "{largest_difference:.0e}".format(**rows[-1]), flush=True)
    return rows


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--model", default="pocket")
    ask.add_argument("--repeats", type=int, default=5)
    said = ask.parse_args()
    rows = measure(said.model, said.repeats)
    out = Path(__file__).with_name("results") / f"loop-{said.model}-{platform.machine()}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({
        "model": said.model, "date": date.today().isoformat(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "processor": processor(), "rows": rows}, indent=2) + "\n")
    print(out)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


if __name__ == "__main__":
    main()
