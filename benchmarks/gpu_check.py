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
from typing import Any

import torch
from comparison import (
    TOY_ARCHITECTURES,
    make_batches,
    make_start_params,
    model_type_of,
    relative_difference,
    sequential_training,
    stacked_training,
)
from machine import describe_machine, make_parser, write_results

from fedrift.config.runtime import Runtime, measure_bf16_speedup
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.core.tree import Tree
from fedrift.engine.build import resolve_fingerprints
from fedrift.engine.cache import ResourceCache
from fedrift.engine.callbacks import Progress
from fedrift.engine.run import run_experiment
from fedrift.models.device_check import DEVICE_TOLERANCE, compare_step
from fedrift.models.load import load_model, make_random_network
from fedrift.models.presets import PRESETS
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Lora, Trainable
from fedrift.simulation.simulator import value_and_gradient
from fedrift.storage.tensors import load_tensors
from fedrift.studies import StudyManifest
from fedrift.studies.executors import Stacked

TRAINABLES: dict[str, Trainable] = {"adapters": Lora(r=4, target_modules=("all",)), "last block": LastBlocks(), "all weights": All()}
SHAPES = ("pocket", "distilgpt2", "qwen-0.5b", "tinyllama-1.1b")


@dataclass(frozen=True)
class CheckResult:
    """``got`` must be at most ``most``."""

    check: str
    got: float
    most: float

    @property
    def is_ok(self) -> bool:
        return self.got <= self.most  # NaN is not


@dataclass(frozen=True)
class CheckSetup:
    device: torch.device
    small: bool

    def make_network(self, name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
        """Two blocks of a preset's width, the same weights on every device and in every type."""
        preset = PRESETS[name]
        small = (
            TOY_ARCHITECTURES[model_type_of(preset)]
            if self.small
            else {"n_layer" if model_type_of(preset) == "gpt2" else "num_hidden_layers": 2}
        )
        return make_random_network(preset, "cpu", torch.float32, **small).to(device or self.device, dtype)

    def make_batch(self, network: Any, num_clients: int = 3) -> dict[str, torch.Tensor]:
        found = make_batches(num_clients, 2, 32, 1, network.config.vocab_size, network.device)[0]
        found["keep"][0, -1, 20:] = False  # padding, as at the end of an epoch
        return found


def perturbed_params(model: StackedModel, num_clients: int) -> Tree:
    """Params that differ from client to client, ``[C, ...]``."""
    draw = torch.Generator().manual_seed(1)
    rows = model.init_params().take(torch.zeros(num_clients, dtype=torch.long))
    return rows.map(lambda leaf: leaf + (0.02 * torch.randn(leaf.shape, generator=draw)).to(leaf))


def gradient_difference(network: Any, trainable: Trainable, batch: dict[str, torch.Tensor], plain: Any = None) -> float:
    """How far the gradients of stacked clients are from those of each client alone, as a share of their length.

    ``plain``: a network with the same weights, in which each works alone through transformers' own modules.
    """
    model, clients = StackedModel(network, trainable), len(batch["tokens"])
    lone = model if plain is None else StackedModel(plain, trainable, fused=False, use_prefix_cache=False)
    params = perturbed_params(model, clients)
    _, together = value_and_gradient(model, params, batch, torch.arange(clients))
    alone = [
        value_and_gradient(
            lone, params.take(slice(row, row + 1)), {key: part[row : row + 1] for key, part in batch.items()}, torch.arange(1)
        )[1]
        for row in range(clients)
    ]
    return relative_difference(together, Tree({leaf: torch.cat([one[leaf] for one in alone]) for leaf in together}))


def check_stacked_against_sequential(setup: CheckSetup) -> Iterator[CheckResult]:
    for name in SHAPES:
        for said, tune in TRAINABLES.items():
            if name in SHAPES[2:] and said == "all weights":
                continue  # three copies of a vocabulary of 150,000
            network = setup.make_network(name)
            yield CheckResult(f"stacked is one by one: {name}, {said}", gradient_difference(network, tune, setup.make_batch(network)), 1e-5)


def check_stacked_against_peft(setup: CheckSetup) -> Iterator[CheckResult]:
    for name in SHAPES:
        batches = make_batches(3, 2, 32, 3, setup.make_network(name).config.vocab_size, setup.device)
        start = make_start_params(setup.make_network(name))
        ours = stacked_training(StackedModel(setup.make_network(name), Lora()), batches, start)()
        yield CheckResult(
            f"stacked is transformers + peft after 3 steps: {name}",
            relative_difference(ours, sequential_training(setup.make_network(name), batches, start)()),
            1e-4,
        )


def check_device_against_cpu(setup: CheckSetup) -> Iterator[CheckResult]:
    for name in SHAPES:
        yield from compare_with_cpu(setup, name, torch.float32, f"float32 on the device is float32 on the CPU: {name}", "float32")


def check_bfloat16(setup: CheckSetup) -> Iterator[CheckResult]:
    for name in SHAPES:
        yield from compare_with_cpu(setup, name, torch.bfloat16, f"a base in bfloat16 is near float32: {name}", "bfloat16")


def check_tf32(setup: CheckSetup) -> Iterator[CheckResult]:
    if setup.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield from compare_with_cpu(setup, "distilgpt2", torch.float32, "tf32 is near float32: distilgpt2", "float16")
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


def compare_with_cpu(setup: CheckSetup, name: str, dtype: torch.dtype, check: str, rounding: str) -> Iterator[CheckResult]:
    """The canary's step, in ``dtype`` on the device and in float32 on the CPU."""
    model = StackedModel(setup.make_network(name, dtype), Lora())
    plain = StackedModel(setup.make_network(name, device=torch.device("cpu")), Lora())
    seen = compare_step(model, plain, perturbed_params(model, 2), setup.make_batch(model.network, 2))
    loss, gradient = DEVICE_TOLERANCE[rounding]
    yield CheckResult(f"{check}, loss", seen.loss_error, loss)
    yield CheckResult(f"{check}, gradient (1 - cosine)", seen.gradient_error, gradient)


def check_determinism(setup: CheckSetup) -> Iterator[CheckResult]:
    for dtype in (torch.float32, torch.bfloat16):
        network = setup.make_network("distilgpt2", dtype)
        model, batch = StackedModel(network, Lora()), setup.make_batch(network)
        params = perturbed_params(model, 3)
        one, two = (value_and_gradient(model, params, batch, torch.arange(3))[1] for _ in range(2))
        yield CheckResult(f"the same step twice, {dtype}".replace("torch.", ""), relative_difference(one, two), 0.0)


def check_quantized_gradients(setup: CheckSetup) -> Iterator[CheckResult]:
    for base, package in (("nf4", "bitsandbytes"), ("int8", "torchao")):
        if find_spec(package) is None or setup.device.type == "mps":
            continue
        grads = []
        for first in (False, True):
            network = load_model("pocket", cache_dir=Path(), quantization=base).network.to(setup.device)  # type: ignore[arg-type]
            model = StackedModel(network, Lora(target_modules=("all",), quantization=base))  # type: ignore[arg-type]
            params, batch = perturbed_params(model, 2), setup.make_batch(network, 2)
            if first:
                with torch.no_grad():
                    model(params, batch)
            grads.append(value_and_gradient(model, params, batch, torch.arange(2))[1])
        yield CheckResult(f"{base}: gradients after an evaluation and without one", relative_difference(grads[1], grads[0]), 1e-5)
        yield CheckResult(f"{base}: adapters without any gradient", float(sum(not leaf.any() for leaf in grads[1].values())), 0.0)


def check_compiled(setup: CheckSetup) -> Iterator[CheckResult]:
    network = setup.make_network("pocket")
    plain, model = StackedModel(network, Lora()), StackedModel(setup.make_network("pocket"), Lora(), fused=False)
    model.compile()
    params, batch = perturbed_params(plain, 3), setup.make_batch(network)
    one, two = (value_and_gradient(each, params, batch, torch.arange(3))[1] for each in (plain, model))
    yield CheckResult("compiled blocks are the plain ones", relative_difference(two, one), 1e-4)


# Whole short runs: interrupted, and trained together, they are the same runs.


def short_experiment(setup: CheckSetup, *more: str) -> ExperimentConfig:
    """A short run on text that is made here: no file needed."""
    few = {"num_rounds": 2, "local_steps": 2, "batch_size": 2, "max_seq_length": 16}
    if not setup.small:
        few = {"num_rounds": 6, "local_steps": 5, "batch_size": 4, "max_seq_length": 64}
    return parse_config(
        {
            "dataset": {"name": "synthetic", "limit": 300},
            "model": "pocket",
            "partition": {"type": "TopicMix", "num_clients": 4, "severity": 1.0},
            "algorithm": "Scaffold",
            "training": {**few, "participation_rate": 0.5, "client_optimizer": {"type": "Sgd", "lr": 0.5}, "client_weighting": "uniform"},
            "evaluation": {"blocks_per_domain": 2, "blocks_per_client": 1, "final_blocks_per_domain": 2, "probes": ["updates"]},
        },
        more,
    )


class Killed(Exception):
    pass


def check_resume(setup: CheckSetup) -> Iterator[CheckResult]:
    """Interrupted after a round and asked again, a run ends with the same bits."""

    def kill(progress: Progress) -> None:
        if progress.round == 1:
            raise Killed

    for dtype in ("float32",) if setup.small else ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(Path(folder), device=str(setup.device), dtype=dtype, clients_per_pass=4)  # type: ignore[arg-type]
            unbroken = run_experiment(short_experiment(setup), ResourceCache(replace(runtime, runs_dir=runtime.runs_dir / "unbroken")))
            broken = ResourceCache(replace(runtime, runs_dir=runtime.runs_dir / "broken"))
            with suppress(Killed):
                run_experiment(short_experiment(setup), broken, kill)
            resumed = run_experiment(short_experiment(setup), ResourceCache(broken.runtime))  # with everything loaded anew
            (one, _), (two, _) = (load_tensors(run.state_path) for run in (unbroken, resumed))
            differ = sum(not torch.equal(one[leaf], two[leaf]) for leaf in one)
            differ += (unbroken.folder / "records.jsonl").read_bytes() != (resumed.folder / "records.jsonl").read_bytes()
            yield CheckResult(f"a run that resumed, {dtype}: parts that differ", float(differ), 0.0)


def check_runs_together(setup: CheckSetup) -> Iterator[CheckResult]:
    """Three runs trained in one pass have the losses that they have alone."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(Path(folder), device=str(setup.device), dtype="float32", clients_per_pass=4)
        alone, there = (ResourceCache(replace(runtime, runs_dir=runtime.runs_dir / name)) for name in ("alone", "together"))
        every = [
            resolve_fingerprints(short_experiment(setup, *more), alone)
            for more in (("seed=0",), ("seed=1",), ("algorithm=FedAvg", "seed=0"))
        ]
        book = StudyManifest(there.runtime.runs_dir, "check")
        Stacked(num_concurrent_runs=3)(every, there, book, lambda run, round: None)
        pairs = [tuple(run.trajectory().curve("loss") for run in (book.get_run(each.id), run_experiment(each, alone))) for each in every]
        yield CheckResult("runs trained together have their own losses", max(float(abs(a / b - 1).max()) for a, b in pairs), 1e-4)


CHECKS: tuple[Callable[[CheckSetup], Iterator[CheckResult]], ...] = (
    check_stacked_against_sequential,
    check_stacked_against_peft,
    check_device_against_cpu,
    check_bfloat16,
    check_tf32,
    check_determinism,
    check_resume,
    check_runs_together,
    check_quantized_gradients,
)


def main(words: list[str] | None = None) -> int:
    ask = make_parser(__doc__ or "", "cuda")
    ask.add_argument("--compile", action="store_true", help="also compare compiled blocks (a minute)")
    said = ask.parse_args(words)
    runtime = Runtime(device=said.device)
    runtime.configure_torch()
    where = CheckSetup(runtime.resolve_device(), said.small)
    found: list[CheckResult] = []
    failed: dict[str, str] = {}
    for check in (*CHECKS, *([check_compiled] if said.compile else [])):
        begun = perf_counter()
        try:
            for each in check(where):
                found.append(each)
                print(f"{'ok' if each.is_ok else 'WRONG':5}  {each.got:8.1e}  at most {each.most:7.0e}  {each.check}", flush=True)
        except Exception as error:  # the others are still to be heard
            failed[check.__name__] = f"{type(error).__name__}: {error}"
            print(f"WRONG  {check.__name__}: {failed[check.__name__]}", flush=True)
        print(f"       {perf_counter() - begun:.1f} s", flush=True)
    fine = not failed and all(each.is_ok for each in found)
    print(
        write_results(
            said.out,
            f"gpu-check-{where.device.type}{'-small' if said.small else ''}",
            {
                **describe_machine(where.device),
                "small": said.small,
                "fine": fine,
                "bfloat16_against_float32_products": round(measure_bf16_speedup(where.device), 2),
                "deterministic": runtime.deterministic,
                "found": [asdict(each) for each in found],
                "failed": failed,
            },
        )
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
