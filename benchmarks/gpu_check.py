"""Does this device compute what it should? Each line a figure beside the most that rounding makes of it.

    make gpu-check            (python benchmarks/gpu_check.py [--device cuda] [--small])

Stacked clients against one client after another, and against transformers + peft; the device against the CPU; bfloat16 and tf32
against float32; the same step twice; a run that was interrupted against one that was not; runs trained together against the
same runs alone; quantised bases, evaluated first. Ends with exit code 1 where a figure is too large.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

import torch
from machine import machine, options, write
from sides import TOY, apart, batches_of, family, one_by_one, stacked, start_of

from fedrift.experiment import Experiment, parse
from fedrift.fleet.simulated import value_and_gradient
from fedrift.models.canary import ROUNDING, replay
from fedrift.models.load import load_model
from fedrift.models.presets import PRESETS
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Full, LastK, Lora
from fedrift.models.unread import unread
from fedrift.run import Progress, carry_out
from fedrift.runtime import Runtime, speed_up
from fedrift.setting import resolve
from fedrift.stock import Stock
from fedrift.store.tensors import load_state
from fedrift.study import Book
from fedrift.study.executors import Stacked
from fedrift.tree import Tree

TUNES = {"adapters": Lora(rank=4, targets=("all",)), "last block": LastK(), "all weights": Full()}
SHAPES = ("pocket", "distilgpt2", "qwen-0.5b", "tinyllama-1.1b")


@dataclass(frozen=True)
class Found:
    """``got`` must be at most ``most``."""

    check: str
    got: float
    most: float

    @property
    def fine(self) -> bool:
        return self.got <= self.most  # NaN is not


@dataclass(frozen=True)
class Where:
    device: torch.device
    small: bool

    def network(self, name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None):
        """Two blocks of a preset's width, the same weights on every device and in every type."""
        preset = PRESETS[name]
        small = TOY[family(preset)] if self.small else {"n_layer" if family(preset) == "gpt2" else "num_hidden_layers": 2}
        return unread(preset, "cpu", torch.float32, **small).to(device or self.device, dtype)

    def batch(self, network, clients: int = 3) -> dict[str, torch.Tensor]:
        found = batches_of(clients, 2, 32, 1, network.config.vocab_size, network.device)[0]
        found["keep"][0, -1, 20:] = False  # padding, as at the end of an epoch
        return found


def moved(model: StackedModel, clients: int) -> Tree:
    """Params that differ from client to client, ``[C, ...]``."""
    draw = torch.Generator().manual_seed(1)
    rows = model.template().rows(torch.zeros(clients, dtype=torch.long))
    return rows.map(lambda leaf: leaf + (0.02 * torch.randn(leaf.shape, generator=draw)).to(leaf))


def stacked_is_one_by_one(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        for said, tune in TUNES.items():
            if name in SHAPES[2:] and said == "all weights":
                continue  # three copies of a vocabulary of 150,000
            network = where.network(name)
            model, batch = StackedModel(network, tune), where.batch(network)
            params = moved(model, 3)
            _, together = value_and_gradient(model, params, batch, torch.arange(3))
            alone = [value_and_gradient(model, params.rows(slice(row, row + 1)), {
                key: part[row:row + 1] for key, part in batch.items()}, torch.arange(1))[1] for row in range(3)]
            yield Found(f"stacked is one by one: {name}, {said}",
                        apart(together, Tree({leaf: torch.cat([one[leaf] for one in alone]) for leaf in together})), 1e-5)


def stacked_is_peft(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        batches = batches_of(3, 2, 32, 3, where.network(name).config.vocab_size, where.device)
        start = start_of(where.network(name))
        ours = stacked(StackedModel(where.network(name), Lora()), batches, start)()
        yield Found(f"stacked is transformers + peft after 3 steps: {name}", apart(
            ours, one_by_one(where.network(name), batches, start)()), 1e-4)


def device_is_cpu(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        yield from against_cpu(where, name, torch.float32, f"float32 on the device is float32 on the CPU: {name}", "float32")


def bfloat16_is_near(where: Where) -> Iterator[Found]:
    for name in SHAPES:
        yield from against_cpu(where, name, torch.bfloat16, f"a base in bfloat16 is near float32: {name}", "bfloat16")


def tf32_is_near(where: Where) -> Iterator[Found]:
    if where.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield from against_cpu(where, "distilgpt2", torch.float32, "tf32 is near float32: distilgpt2", "float16")
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


def against_cpu(where: Where, name: str, dtype: torch.dtype, said: str, rounding: str) -> Iterator[Found]:
    """The canary's step, in ``dtype`` on the device and in float32 on the CPU."""
    model = StackedModel(where.network(name, dtype), Lora())
    plain = StackedModel(where.network(name, device=torch.device("cpu")), Lora())
    seen = replay(model, plain, moved(model, 2), where.batch(model.network, 2))
    loss, gradient = ROUNDING[rounding]
    yield Found(f"{said}, loss", seen.loss, loss)
    yield Found(f"{said}, gradient (1 - cosine)", seen.gradient, gradient)


def same_step_twice(where: Where) -> Iterator[Found]:
    for dtype in (torch.float32, torch.bfloat16):
        network = where.network("distilgpt2", dtype)
        model, batch = StackedModel(network, Lora()), where.batch(network)
        params = moved(model, 3)
        one, two = (value_and_gradient(model, params, batch, torch.arange(3))[1] for _ in range(2))
        yield Found(f"the same step twice, {dtype}".replace("torch.", ""), apart(one, two), 0.0)


def little(where: Where, *more: str) -> Experiment:
    """A short run on text that is made here: no file needed."""
    few = {"rounds": 2, "steps": 2, "batch": 2, "seq_len": 16}
    if not where.small:
        few = {"rounds": 6, "steps": 5, "batch": 4, "seq_len": 64}
    return parse({"corpus": {"name": "sandbox", "limit": 300}, "model": "pocket",
                  "partition": {"is": "TopicMix", "clients": 4, "severity": 1.0}, "algorithm": "Scaffold",
                  "plan": {**few, "participation": 0.5, "optimizer": {"is": "Sgd", "lr": 0.5}, "weighting": "uniform"},
                  "evaluate": {"blocks": 2, "own": 1, "final": 2, "panel": ["updates"]}}, more)


class Killed(Exception):
    pass


def resumes(where: Where) -> Iterator[Found]:
    """Interrupted after a round and asked again, a run ends with the same bits."""
    def kill(progress: Progress) -> None:
        if progress.round == 1:
            raise Killed

    for dtype in ("float32",) if where.small else ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(Path(folder), device=str(where.device), dtype=dtype, micro=4)  # type: ignore[arg-type]
            unbroken = carry_out(little(where), Stock(replace(runtime, root=runtime.root / "unbroken")))
            broken = Stock(replace(runtime, root=runtime.root / "broken"))
            with suppress(Killed):
                carry_out(little(where), broken, kill)
            resumed = carry_out(little(where), Stock(broken.runtime))  # with everything loaded anew
            (one, _), (two, _) = (load_state(run.state_path) for run in (unbroken, resumed))
            differ = sum(not torch.equal(one[leaf], two[leaf]) for leaf in one)
            differ += (unbroken.folder / "records.jsonl").read_bytes() != (resumed.folder / "records.jsonl").read_bytes()
            yield Found(f"a run that resumed, {dtype}: parts that differ", float(differ), 0.0)


def together_is_alone(where: Where) -> Iterator[Found]:
    """Three runs trained in one pass have the losses that they have alone."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(Path(folder), device=str(where.device), dtype="float32", micro=4)
        alone, there = (Stock(replace(runtime, root=runtime.root / name)) for name in ("alone", "together"))
        every = [resolve(little(where, *more), alone) for more in (("seed=0",), ("seed=1",), ("algorithm=FedAvg", "seed=0"))]
        book = Book(there.runtime.root, "check")
        Stacked(runs=3)(every, there, book, lambda run, round: None)
        pairs = [tuple(run.trajectory().curve("loss") for run in (book.run(each.id), carry_out(each, alone))) for each in every]
        yield Found("runs trained together have their own losses", max(float(abs(a / b - 1).max()) for a, b in pairs), 1e-4)


def quantised_learn_after_an_evaluation(where: Where) -> Iterator[Found]:
    for base, package in (("nf4", "bitsandbytes"), ("int8", "torchao")):
        if find_spec(package) is None or where.device.type == "mps":
            continue
        grads = []
        for first in (False, True):
            network = load_model("pocket", cache=Path(), base=base).network.to(where.device)  # type: ignore[arg-type]
            model = StackedModel(network, Lora(targets=("all",), base=base))  # type: ignore[arg-type]
            params, batch = moved(model, 2), where.batch(network, 2)
            if first:
                with torch.no_grad():
                    model(params, batch)
            grads.append(value_and_gradient(model, params, batch, torch.arange(2))[1])
        yield Found(f"{base}: gradients after an evaluation and without one", apart(grads[1], grads[0]), 1e-5)
        yield Found(f"{base}: adapters without any gradient", float(sum(not leaf.any() for leaf in grads[1].values())), 0.0)


def compiled_is_plain(where: Where) -> Iterator[Found]:
    network = where.network("pocket")
    plain, model = StackedModel(network, Lora()), StackedModel(where.network("pocket"), Lora(), lean=False)
    model.compile()
    params, batch = moved(plain, 3), where.batch(network)
    one, two = (value_and_gradient(each, params, batch, torch.arange(3))[1] for each in (plain, model))
    yield Found("compiled blocks are the plain ones", apart(two, one), 1e-4)


CHECKS: tuple[Callable[[Where], Iterator[Found]], ...] = (
    stacked_is_one_by_one, stacked_is_peft, device_is_cpu, bfloat16_is_near, tf32_is_near, same_step_twice, resumes,
    together_is_alone, quantised_learn_after_an_evaluation)


def main(words: list[str] | None = None) -> int:
    ask = options(__doc__ or "")
    ask.add_argument("--compile", action="store_true", help="also compare compiled blocks (a minute)")
    said = ask.parse_args(words)
    runtime = Runtime(device=said.device)
    runtime.begin()
    where = Where(runtime.torch_device(), said.small)
    found: list[Found] = []
    failed: dict[str, str] = {}
    for check in (*CHECKS, *([compiled_is_plain] if said.compile else [])):
        begun = perf_counter()
        try:
            for each in check(where):
                found.append(each)
                print(f"{'ok' if each.fine else 'WRONG':5}  {each.got:8.1e}  at most {each.most:7.0e}  {each.check}", flush=True)
        except Exception as error:  # the others are still to be heard
            failed[check.__name__] = f"{type(error).__name__}: {error}"
            print(f"WRONG  {check.__name__}: {failed[check.__name__]}", flush=True)
        print(f"       {perf_counter() - begun:.1f} s", flush=True)
    fine = not failed and all(each.fine for each in found)
    print(write(said.out, f"gpu-check-{where.device.type}{'-small' if said.small else ''}", {
        **machine(where.device), "small": said.small, "fine": fine,
        "bfloat16_against_float32_products": round(speed_up(where.device), 2), "deterministic": runtime.deterministic,
        "found": [asdict(each) for each in found], "failed": failed}))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
