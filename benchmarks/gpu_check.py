"""Check that this device computes correct results: each line shows a difference and the maximum that rounding explains.

    make gpu-check            (python benchmarks/gpu_check.py [--device cuda] [--small])

The checks compare stacked clients with single clients and with transformers and PEFT; the device with the CPU; bfloat16 and TF32
with float32; the same step computed twice; an interrupted run with an uninterrupted one; and runs trained together with runs
trained alone. They also test quantized base weights after an evaluation. The exit code is 1 if a difference is too large.
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
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.engine.callbacks import Progress
from fedrift.engine.run import run_experiment
from fedrift.models.arithmetic import DEVICE_TOLERANCE, compare_step
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
    """The result of a check, which is correct if ``got`` is at most ``most``."""

    check: str
    got: float
    most: float

    @property
    def is_ok(self) -> bool:
        """Whether the value is within its limit; NaN is not."""
        return self.got <= self.most


@dataclass(frozen=True)
class CheckSetup:
    """The device to check, and whether to use toy sizes."""

    device: torch.device
    small: bool

    def make_network(self, name: str, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
        """Create a network with two blocks of a preset's width; its weights are the same on all devices and in all data types."""
        preset = PRESETS[name]
        small = (
            TOY_ARCHITECTURES[model_type_of(preset)]
            if self.small
            else {"n_layer" if model_type_of(preset) == "gpt2" else "num_hidden_layers": 2}
        )
        return make_random_network(preset, "cpu", torch.float32, **small).to(device or self.device, dtype)

    def make_batch(self, network: Any, num_clients: int = 3) -> dict[str, torch.Tensor]:
        """Create a batch of 2 sequences of 32 tokens per client; the last sequence of the first client is padded."""
        batch = make_batches(num_clients, 2, 32, 1, network.config.vocab_size, network.device)[0]
        batch["loss_mask"][0, -1, 20:] = False  # padding, as at the end of an epoch
        return batch


def perturbed_params(model: StackedModel, num_clients: int) -> Tree:
    """Return trained parameters [C, ...] that differ between clients."""
    draw = torch.Generator().manual_seed(1)
    rows = model.init_params().take(torch.zeros(num_clients, dtype=torch.long))
    return rows.map(lambda leaf: leaf + (0.02 * torch.randn(leaf.shape, generator=draw)).to(leaf))


def gradient_difference(network: Any, trainable: Trainable, batch: dict[str, torch.Tensor], plain: Any = None) -> float:
    """Compare the gradients of stacked clients with those of each client alone.

    Args:
        network: The network of the stacked clients.
        trainable: Which weights are trained.
        batch: One batch for all clients [C, ...].
        plain: A network with the same weights whose transformers modules compute the reference; None uses fedrift's fused blocks.

    Returns:
        The norm of the difference relative to the norm of the gradients.
    """
    model, clients = StackedModel(network, trainable), len(batch["tokens"])
    reference = model if plain is None else StackedModel(plain, trainable, fused=False, use_prefix_cache=False)
    params = perturbed_params(model, clients)
    _, together = value_and_gradient(model, params, batch, torch.arange(clients))
    single = [
        value_and_gradient(
            reference,
            params.take(slice(client, client + 1)),
            {key: rows[client : client + 1] for key, rows in batch.items()},
            torch.arange(1),
        )[1]
        for client in range(clients)
    ]
    return relative_difference(together, Tree({leaf: torch.cat([gradient[leaf] for gradient in single]) for leaf in together}))


def check_stacked_against_sequential(setup: CheckSetup) -> Iterator[CheckResult]:
    """Compare the gradients of stacked clients with those of single clients."""
    for name in SHAPES:
        for label, trainable in TRAINABLES.items():
            if name in SHAPES[2:] and label == "all weights":
                continue  # three copies of a vocabulary of 150,000 words need too much memory
            network = setup.make_network(name)
            yield CheckResult(
                f"stacked equals one by one: {name}, {label}", gradient_difference(network, trainable, setup.make_batch(network)), 1e-5
            )


def check_stacked_against_peft(setup: CheckSetup) -> Iterator[CheckResult]:
    """Compare stacked training with sequential training with transformers and PEFT."""
    for name in SHAPES:
        batches = make_batches(3, 2, 32, 3, setup.make_network(name).config.vocab_size, setup.device)
        start = make_start_params(setup.make_network(name))
        stacked = stacked_training(StackedModel(setup.make_network(name), Lora()), batches, start)()
        yield CheckResult(
            f"stacked equals transformers + peft after 3 steps: {name}",
            relative_difference(stacked, sequential_training(setup.make_network(name), batches, start)()),
            1e-4,
        )


def check_device_against_cpu(setup: CheckSetup) -> Iterator[CheckResult]:
    """Compare float32 on the device with float32 on the CPU."""
    for name in SHAPES:
        yield from compare_with_cpu(setup, name, torch.float32, f"float32 on the device equals float32 on the CPU: {name}", "float32")


def check_bfloat16(setup: CheckSetup) -> Iterator[CheckResult]:
    """Compare base weights in bfloat16 on the device with float32 on the CPU."""
    for name in SHAPES:
        yield from compare_with_cpu(setup, name, torch.bfloat16, f"base weights in bfloat16 are close to float32: {name}", "bfloat16")


def check_tf32(setup: CheckSetup) -> Iterator[CheckResult]:
    """Compare TF32 on an NVIDIA GPU with float32 on the CPU."""
    if setup.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield from compare_with_cpu(setup, "distilgpt2", torch.float32, "tf32 is close to float32: distilgpt2", "float16")
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


def compare_with_cpu(setup: CheckSetup, name: str, dtype: torch.dtype, check: str, rounding: str) -> Iterator[CheckResult]:
    """Compute a training step in ``dtype`` on the device and in float32 on the CPU, and compare loss and gradient."""
    model = StackedModel(setup.make_network(name, dtype), Lora())
    plain = StackedModel(setup.make_network(name, device=torch.device("cpu")), Lora())
    comparison = compare_step(model, plain, perturbed_params(model, 2), setup.make_batch(model.network, 2))
    loss, gradient = DEVICE_TOLERANCE[rounding]
    yield CheckResult(f"{check}, loss", comparison.loss_error, loss)
    yield CheckResult(f"{check}, gradient (1 - cosine)", comparison.gradient_error, gradient)


def check_determinism(setup: CheckSetup) -> Iterator[CheckResult]:
    """Compute the same step twice and compare the gradients."""
    for dtype in (torch.float32, torch.bfloat16):
        network = setup.make_network("distilgpt2", dtype)
        model, batch = StackedModel(network, Lora()), setup.make_batch(network)
        params = perturbed_params(model, 3)
        one, two = (value_and_gradient(model, params, batch, torch.arange(3))[1] for _ in range(2))
        yield CheckResult(f"the same step twice, {dtype}".replace("torch.", ""), relative_difference(one, two), 0.0)


def check_quantized_gradients(setup: CheckSetup) -> Iterator[CheckResult]:
    """Check that an evaluation before training does not change the gradients with quantized base weights."""
    for base, package in (("nf4", "bitsandbytes"), ("int8", "torchao")):
        if find_spec(package) is None or setup.device.type == "mps":
            continue
        grads = []
        for evaluates_first in (False, True):
            network = load_model("pocket", cache_dir=Path(), quantization=base).network.to(setup.device)  # type: ignore[arg-type]
            model = StackedModel(network, Lora(target_modules=("all",), quantization=base))  # type: ignore[arg-type]
            params, batch = perturbed_params(model, 2), setup.make_batch(network, 2)
            if evaluates_first:
                with torch.no_grad():
                    model(params, batch)
            grads.append(value_and_gradient(model, params, batch, torch.arange(2))[1])
        yield CheckResult(f"{base}: gradients after an evaluation and without one", relative_difference(grads[1], grads[0]), 1e-5)
        yield CheckResult(f"{base}: adapters without any gradient", float(sum(not leaf.any() for leaf in grads[1].values())), 0.0)


def check_compiled(setup: CheckSetup) -> Iterator[CheckResult]:
    """Compare the gradients of compiled blocks with those of fedrift's fused blocks."""
    network = setup.make_network("pocket")
    plain, model = StackedModel(network, Lora()), StackedModel(setup.make_network("pocket"), Lora(), fused=False)
    model.compile()
    params, batch = perturbed_params(plain, 3), setup.make_batch(network)
    one, two = (value_and_gradient(each, params, batch, torch.arange(3))[1] for each in (plain, model))
    yield CheckResult("compiled blocks equal the plain ones", relative_difference(two, one), 1e-4)


# Checks with complete short runs.


def short_experiment(setup: CheckSetup, *more: str) -> ExperimentConfig:
    """Return a short experiment on synthetic text, which needs no files."""
    sizes = {"num_rounds": 2, "local_steps": 2, "batch_size": 2, "max_seq_length": 16}
    if not setup.small:
        sizes = {"num_rounds": 6, "local_steps": 5, "batch_size": 4, "max_seq_length": 64}
    return parse_config(
        {
            "dataset": {"name": "synthetic", "limit": 300},
            "model": "pocket",
            "partition": {"type": "TopicMix", "num_clients": 4, "severity": 1.0},
            "algorithm": "Scaffold",
            "training": {**sizes, "participation_rate": 0.5, "client_optimizer": {"type": "Sgd", "lr": 0.5}, "client_weighting": "uniform"},
            "evaluation": {"blocks_per_domain": 2, "blocks_per_client": 1, "final_blocks_per_domain": 2, "probes": ["updates"]},
        },
        more,
    )


class Killed(Exception):
    """Interrupts a run in ``check_resume``."""


def check_resume(setup: CheckSetup) -> Iterator[CheckResult]:
    """Check that a run that was interrupted and resumed ends with the same bits."""

    def interrupt(progress: Progress) -> None:
        if progress.round == 1:
            raise Killed

    for dtype in ("float32",) if setup.small else ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            runtime = Runtime(Path(folder), device=str(setup.device), dtype=dtype, clients_per_pass=4)  # type: ignore[arg-type]
            uninterrupted = run_experiment(short_experiment(setup), ResourceCache(replace(runtime, runs_dir=runtime.runs_dir / "unbroken")))
            interrupted = ResourceCache(replace(runtime, runs_dir=runtime.runs_dir / "broken"))
            with suppress(Killed):
                run_experiment(short_experiment(setup), interrupted, interrupt)
            resumed = run_experiment(
                short_experiment(setup), ResourceCache(interrupted.runtime)
            )  # a new cache, so that everything is loaded again
            (one, _), (two, _) = (load_tensors(run.state_path) for run in (uninterrupted, resumed))
            num_different = sum(not torch.equal(one[leaf], two[leaf]) for leaf in one)
            num_different += (uninterrupted.folder / "records.jsonl").read_bytes() != (resumed.folder / "records.jsonl").read_bytes()
            yield CheckResult(f"a run that was resumed, {dtype}: parts that differ", float(num_different), 0.0)


def check_runs_together(setup: CheckSetup) -> Iterator[CheckResult]:
    """Check that three runs trained in one forward pass have the same losses as when they are trained alone."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Runtime(Path(folder), device=str(setup.device), dtype="float32", clients_per_pass=4)
        alone, together = (ResourceCache(replace(runtime, runs_dir=runtime.runs_dir / name)) for name in ("alone", "together"))
        configs = [
            resolve_fingerprints(short_experiment(setup, *overrides), alone)
            for overrides in (("seed=0",), ("seed=1",), ("algorithm=FedAvg", "seed=0"))
        ]
        manifest = StudyManifest(together.runtime.runs_dir, "check")
        Stacked(num_concurrent_runs=3)(configs, together, manifest, lambda run, round: None)
        pairs = [
            tuple(run.trajectory().curve("loss") for run in (manifest.get_run(config.id), run_experiment(config, alone)))
            for config in configs
        ]
        yield CheckResult("runs trained together have the same losses as alone", max(float(abs(a / b - 1).max()) for a, b in pairs), 1e-4)


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


def main(arguments: list[str] | None = None) -> int:
    """Run all checks, print a line for each and write the results; return 1 if one fails."""
    parser = make_parser(__doc__ or "", "cuda")
    parser.add_argument("--compile", action="store_true", help="also compare compiled blocks, which takes about a minute")
    args = parser.parse_args(arguments)
    runtime = Runtime(device=args.device)
    runtime.configure_torch()
    setup = CheckSetup(runtime.resolve_device(), args.small)
    results: list[CheckResult] = []
    failed: dict[str, str] = {}
    for check in (*CHECKS, *([check_compiled] if args.compile else [])):
        started = perf_counter()
        try:
            for result in check(setup):
                results.append(result)
                print(f"{'ok' if result.is_ok else 'WRONG':5}  {result.got:8.1e}  limit {result.most:7.0e}  {result.check}", flush=True)
        except Exception as error:  # the other checks still run
            failed[check.__name__] = f"{type(error).__name__}: {error}"
            print(f"WRONG  {check.__name__}: {failed[check.__name__]}", flush=True)
        print(f"       {perf_counter() - started:.1f} s", flush=True)
    all_ok = not failed and all(result.is_ok for result in results)
    print(
        write_results(
            args.out,
            f"gpu-check-{setup.device.type}{'-small' if args.small else ''}",
            {
                **describe_machine(setup.device),
                "small": args.small,
                "fine": all_ok,
                "bfloat16_against_float32_products": round(measure_bf16_speedup(setup.device), 2),
                "deterministic": runtime.deterministic,
                "found": [asdict(result) for result in results],
                "failed": failed,
            },
        )
    )
    return 0 if all_ok else 1


if __name__ == "__main__":
    sys.exit(main())
