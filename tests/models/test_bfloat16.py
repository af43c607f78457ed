"""Training in bfloat16 on the CPU: stacked clients, distance from float32, attention, norm, head, and the choice by a trial."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedrift.config.runtime import Runtime
from fedrift.core.errors import UserError
from fedrift.core.tree import Tree
from fedrift.engine import build
from fedrift.engine.cache import ResourceCache
from fedrift.engine.estimate import estimate_run
from fedrift.engine.run import run_experiment
from fedrift.flower.config import read_dtype
from fedrift.models import fused, head
from fedrift.models.arithmetic import ArithmeticChoice, choose_arithmetic
from fedrift.models.fused import FusedRMSNorm, ShortAttention
from fedrift.models.head import LogitTransform, frozen_head_losses
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Lora
from fedrift.simulation.simulator import value_and_gradient
from tests.models.networks import batch, network
from tests.models.tiny import KINDS, random_model
from tests.small_experiment import Killed, experiment, killed_at, make_cache

TRAINABLES = [Lora(r=2, target_modules=("all",)), LastBlocks(), All()]
CLIENTS = torch.arange(3)
STACKED_TOLERANCE = 1e-2  # relative norm of the difference of gradients: rounding in products of another size
UPDATE_TOLERANCE = 0.03  # relative norm of the difference of updates after three steps; 0.008 to 0.015 were seen


@pytest.fixture
def native(monkeypatch):
    """Compute as on a processor with bfloat16 products, whatever this one has."""
    monkeypatch.setattr(fused, "has_bfloat16_products", lambda: True)


def make_params(model: StackedModel) -> Tree:
    """Return weights of three clients that differ from client to client."""
    draw = torch.Generator().manual_seed(1)
    params = model.init_params().take(torch.zeros(3, dtype=torch.long))
    return params.map(lambda leaf: leaf + (0.02 * torch.randn(leaf.shape, generator=draw)).to(leaf))


def train(model: StackedModel, params: Tree, num_steps: int) -> Tree:
    """Return the updates of three clients after some steps of gradient descent."""
    current = params
    for step in range(num_steps):
        current = current - value_and_gradient(model, current, batch(3, seed=step), CLIENTS)[1] * 0.05
    return current - params


def relative_difference(actual: Tree, expected: Tree) -> float:
    """Return the norm of the difference of two trees relative to that of the second."""
    squares = [(float((actual[name] - leaf).square().sum()), float(leaf.square().sum())) for name, leaf in expected.items()]
    return (sum(square for square, _ in squares) / sum(square for _, square in squares)) ** 0.5


@pytest.mark.parametrize("trainable", TRAINABLES, ids=lambda trainable: type(trainable).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_clients_have_the_gradients_of_single_clients_and_updates_near_float32(native, kind, trainable):
    model = StackedModel(random_model(kind, dtype=torch.bfloat16).network, trainable)
    exact = StackedModel(random_model(kind).network, trainable)
    params = make_params(exact)
    loss, grad = value_and_gradient(model, params, batch(3), CLIENTS)
    assert loss.dtype == torch.float32 and {leaf.dtype for leaf in grad.values()} == {torch.float32}
    for client in range(3):
        row = torch.tensor([client])
        alone = {name: leaf[row] for name, leaf in batch(3).items()}
        loss_alone, grad_alone = value_and_gradient(model, params.take(row), alone, torch.arange(1))
        assert torch.allclose(loss[row], loss_alone, rtol=STACKED_TOLERANCE)
        assert relative_difference(grad.take(row), grad_alone) < STACKED_TOLERANCE
    assert 0 < relative_difference(train(model, params, 3), train(exact, params, 3)) < UPDATE_TOLERANCE


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_short_attention_equals_the_fused_attention_of_torch(kv_heads):
    draw = torch.Generator().manual_seed(0)
    # As in the network, heads are the third axis in memory.
    query, key, value = (
        torch.randn(6, 10, heads, 8, generator=draw, dtype=torch.float64).transpose(1, 2).requires_grad_()
        for heads in (4, kv_heads, kv_heads)
    )
    mixed = ShortAttention.apply(query, key, value, 0.3)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    assert torch.allclose(mixed, expected, rtol=0, atol=1e-10)
    upstream = torch.randn(mixed.shape, generator=draw, dtype=torch.float64)
    grads, slopes = (torch.autograd.grad(result, (query, key, value), upstream) for result in (mixed, expected))
    for grad, slope in zip(grads, slopes, strict=True):
        assert torch.allclose(grad, slope, rtol=0, atol=1e-10)


@pytest.mark.parametrize("trainable", TRAINABLES, ids=lambda trainable: type(trainable).__name__)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_the_network_with_short_attention_equals_the_plain_one_in_float64_with_padding(native, monkeypatch, kind, trainable):
    plain = StackedModel(network(kind), trainable, fused=False)
    params = make_params(plain)
    expected, slopes = value_and_gradient(plain, params, batch(3), CLIENTS)
    monkeypatch.setattr(fused, "is_cpu_bfloat16", lambda x: True)  # the code path of bfloat16, in float64
    calls = count_calls(monkeypatch, ShortAttention)
    model = StackedModel(network(kind), trainable)
    loss, grad = value_and_gradient(model, params, batch(3), CLIENTS)
    assert calls and not bool(batch(3)["loss_mask"].all())
    assert torch.allclose(loss, expected, rtol=1e-10)
    for name, slope in slopes.items():
        assert float((grad[name] - slope).norm() / slope.norm()) < 1e-10, name


def count_calls(monkeypatch: pytest.MonkeyPatch, function: type[torch.autograd.Function]) -> list[None]:
    """Return a list that grows with every call of an autograd function."""
    calls, apply = list[None](), function.apply
    monkeypatch.setattr(function, "apply", lambda *inputs: (calls.append(None), apply(*inputs))[1])
    return calls


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_short_attention_is_used_only_for_gradients_in_bfloat16_of_short_sequences(native, monkeypatch, kind):
    coarse, exact = (StackedModel(random_model(kind, dtype=dtype).network, Lora()) for dtype in (torch.bfloat16, torch.float32))
    params = make_params(exact)
    calls = count_calls(monkeypatch, ShortAttention)
    value_and_gradient(coarse, params, batch(3), CLIENTS)
    assert len(calls) == 2  # one per block
    calls.clear()
    value_and_gradient(exact, params, batch(3), CLIENTS)
    with torch.no_grad():
        coarse(params, batch(3))
    monkeypatch.setattr(fused, "MAX_SHORT_LENGTH", 9)
    value_and_gradient(coarse, params, batch(3), CLIENTS)
    monkeypatch.setattr(fused, "MAX_SHORT_LENGTH", 256)
    monkeypatch.setattr(fused, "has_bfloat16_products", lambda: False)
    value_and_gradient(coarse, params, batch(3), CLIENTS)
    assert not calls


def test_a_mask_in_addition_to_causality_is_respected(native):
    module = network("llama").model.layers[0].self_attn
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 6, 4, generator=draw).to(torch.bfloat16).requires_grad_() for heads in (4, 2, 2))
    mask = torch.ones(6, 6, dtype=torch.bool).tril() & ~torch.eye(6, dtype=torch.bool).roll(-1, 0)  # no position sees the one before
    mask[0, 0] = True
    mixed = fused.mix_values(module, query, key, value, mask[None, None])
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=module.scaling, enable_gqa=True)
    assert torch.allclose(mixed, expected.transpose(1, 2), atol=0.02)
    assert not torch.allclose(mixed, fused.mix_values(module, query, key, value, None), atol=0.1)


def reference_norm(x: Tensor, weight: Tensor, eps: float, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Return RMSNorm and its gradient, with the operations of the float32 path in their order."""
    inverse_rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    scaled = upstream * weight
    projection = (scaled * x).sum(-1, keepdim=True).mul_(inverse_rms.pow(3)).div_(-x.shape[-1])
    return torch.mul(x, inverse_rms).mul_(weight), scaled.mul_(inverse_rms).addcmul_(x, projection)


def test_the_norm_is_unchanged_in_float32_and_close_to_float64_in_bfloat16():
    draw = torch.Generator().manual_seed(0)
    x, upstream = (3 * torch.randn(4, 7, 300, generator=draw) for _ in range(2))
    weight = 1 + 0.3 * torch.randn(300, generator=draw)
    for dtype in (torch.float32, torch.float64):
        ours = x.to(dtype).requires_grad_()
        out = FusedRMSNorm.apply(ours, weight.to(dtype), 1e-5)
        (grad,) = torch.autograd.grad(out, ours, upstream.to(dtype))
        expected = reference_norm(x.to(dtype), weight.to(dtype), 1e-5, upstream.to(dtype))
        assert torch.equal(out, expected[0]) and torch.equal(grad, expected[1])
    coarse = x.bfloat16().requires_grad_()
    out = FusedRMSNorm.apply(coarse, weight.bfloat16(), 1e-5)
    (grad,) = torch.autograd.grad(out, coarse, upstream.bfloat16())
    exact = reference_norm(coarse.detach().double(), weight.bfloat16().double(), 1e-5, upstream.bfloat16().double())
    assert out.dtype == grad.dtype == torch.bfloat16
    assert float(((out.detach() - exact[0]) / exact[0]).abs().max()) < 2**-6  # two roundings of the result and one of its factor
    assert float((grad - exact[1]).norm() / exact[1].norm()) < 2**-7


def test_norms_that_clients_train_use_the_fused_norm(native, monkeypatch):
    model = StackedModel(random_model("llama", dtype=torch.bfloat16).network, All())
    params = make_params(model)
    calls = count_calls(monkeypatch, FusedRMSNorm)
    value_and_gradient(model, params, batch(3), CLIENTS)
    assert len(calls) == 5  # two per block and the last one


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize(("scale", "has_bias"), [(1.0, False), (0.5, True)])
def test_the_head_multiplies_in_bfloat16_and_sums_in_float32_chunk_by_chunk(monkeypatch, needs_grad, scale, has_bias):
    for name, value in (("MIN_ROWS_PER_CHUNK", 3), ("MIN_ROWS_BFLOAT16", 3), ("LOGITS_PER_CHUNK", 1)):
        monkeypatch.setattr(head, name, value)
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=draw).bfloat16() for shape in ((8, 16), (5000, 16)))
    bias = torch.randn(5000, generator=draw).bfloat16() if has_bias else None
    target = torch.randint(5000, (8,), generator=draw)
    inputs, exact = hidden.clone().requires_grad_(needs_grad), hidden.double().requires_grad_()
    losses = frozen_head_losses(inputs, weight, target, bias, LogitTransform(scale))
    logits = scale * (exact @ weight.double().T + (0 if bias is None else bias.double()))
    expected = F.cross_entropy(logits, target, reduction="none")
    assert losses.dtype == torch.float32 and losses.requires_grad == needs_grad
    assert torch.allclose(losses.detach().double(), expected, rtol=0, atol=0.05)  # rounding of the logits, which reach 20
    if needs_grad:
        (grad,), (slope,) = (torch.autograd.grad(values.sum(), leaf) for values, leaf in ((losses, inputs), (expected, exact)))
        assert float((grad - slope).norm() / slope.norm()) < 0.02


def test_the_head_has_a_finite_loss_where_a_probability_vanishes_and_keeps_nan():
    hidden, weight = torch.tensor([[1.0], [2.0], [float("nan")]]).bfloat16().requires_grad_(), torch.tensor([[0.0], [300.0]]).bfloat16()
    losses = frozen_head_losses(hidden, weight, torch.tensor([0, 1, 0]), None, LogitTransform())
    assert losses[:2].tolist() == [300.0, 0.0] and losses[2].isnan()  # exp(-300) is 0 in bfloat16
    hidden = torch.tensor([[1.0]]).bfloat16().requires_grad_()
    weight = torch.tensor([[0.0], [92.5]]).bfloat16()
    assert float(frozen_head_losses(hidden, weight, torch.tensor([0]), None, LogitTransform())) == 92.5  # exp(-92.5) has two digits


class FakeSteps:
    """Training steps on a clock that runs only during steps; ``seconds`` gives the time per sequence in each arithmetic."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.now, self.steps = seconds, 0.0, list[tuple[str, int]]()

    def clock(self) -> float:
        return self.now

    def step(self, dtype: str, num_sequences: int) -> None:
        self.steps.append((dtype, num_sequences))
        self.now += self.seconds[dtype] * num_sequences


@pytest.mark.parametrize(("bfloat16", "dtype"), [(0.004, "bfloat16"), (0.0076, "bfloat16"), (0.0078, "float32"), (0.03, "float32")])
def test_a_trial_takes_bfloat16_if_its_steps_are_at_least_1_3_times_as_fast(bfloat16, dtype):
    fake = FakeSteps(float32=0.01, bfloat16=bfloat16)
    choice = choose_arithmetic(fake.step, 16, fake.clock)
    assert choice == ArithmeticChoice(dtype, round(0.01 / bfloat16, 3))
    assert f"arithmetic {dtype}: in a trial" in choice.describe() and "\n" not in choice.describe()
    assert [name for name, _ in fake.steps] == ["float32", "bfloat16"] * 5  # in alternation
    assert fake.now <= 1


@pytest.mark.parametrize("seconds", [1e-4, 0.02, 0.1, 0.4, 3.0])
def test_a_trial_ends_within_a_second_unless_one_sequence_takes_longer(seconds):
    fake = FakeSteps(float32=seconds, bfloat16=seconds / 2)
    assert choose_arithmetic(fake.step, 80, fake.clock).dtype == "bfloat16"
    assert fake.now <= max(1.0, 2 * 1.5 * seconds + 1.5 * seconds)
    assert max(count for _, count in fake.steps) == {1e-4: 80, 0.02: 10, 0.1: 1, 0.4: 1, 3.0: 1}[seconds]


def test_the_time_of_setting_up_kernels_does_not_make_a_trial_small():
    fake = FakeSteps(float32=0.004, bfloat16=0.002)
    plain_step = fake.step

    def step(dtype: str, num_sequences: int) -> None:
        fake.now += 0 if dtype in {name for name, _ in fake.steps} else 0.2
        plain_step(dtype, num_sequences)

    assert choose_arithmetic(step, 16, fake.clock).dtype == "bfloat16"
    assert fake.steps[-1] == ("bfloat16", 16) and fake.now <= 1


def test_a_trial_stops_after_two_long_steps_if_bfloat16_is_slower():
    fake = FakeSteps(float32=0.4, bfloat16=6.4)
    assert choose_arithmetic(fake.step, 80, fake.clock) == ArithmeticChoice("float32", 0.062)
    assert fake.steps == [("float32", 1), ("bfloat16", 1)]


@pytest.fixture
def trials(monkeypatch):
    """Let trials choose what ``speedups`` contains, and count them."""

    class Trials(list):
        speedup = 2.0

    made = Trials()

    def choose(step, max_sequences):
        for dtype in ("float32", "bfloat16"):
            step(dtype, max_sequences)  # real steps on the shapes of the run
        made.append(max_sequences)
        return ArithmeticChoice("bfloat16" if made.speedup >= 1.3 else "float32", made.speedup)

    monkeypatch.setattr(build, "choose_arithmetic", choose)
    return made


def test_a_run_keeps_the_choice_of_its_trial_when_it_resumes_and_says_so(tmp_path, trials):
    config, messages = experiment(tmp_path, "training.num_rounds=3"), list[str]()

    def resources() -> ResourceCache:
        cache = make_cache(tmp_path, dtype="fastest")
        return replace(cache, runtime=replace(cache.runtime, on_message=messages.append))

    with pytest.raises(Killed):
        run_experiment(config, resources(), killed_at(2))
    assert trials == [4]  # 2 clients of 2 sequences
    assert [line for line in messages if "in a trial" in line] == [ArithmeticChoice("bfloat16", 2.0).describe()]
    trials.speedup = 0.5  # another trial would choose float32
    run = run_experiment(config, resources())
    assert trials == [4]
    assert run.environment["engine"] == {"clients_per_pass": 2, "bf16_speedup": 2.0, "dtype": "bfloat16"}
    events = [event["message"] for event in run.events() if event["kind"] == "arithmetic"]
    assert events == [ArithmeticChoice("bfloat16", 2.0).describe()]
    messages.clear()
    assert run_experiment(config, resources()).id == run.id
    assert trials == [4] and "bfloat16 on cpu" in messages[-1]


def test_the_runs_of_one_command_share_their_arithmetic(tmp_path, trials):
    config = experiment(tmp_path, "training.num_rounds=1")
    cache = make_cache(tmp_path, dtype="fastest")
    first = run_experiment(config, cache)
    trials.speedup = 0.5
    second = run_experiment(replace(config, seed=1), cache)
    # A finished run decides for the new runs of a later command.
    later = make_cache(tmp_path, dtype="fastest")
    run_experiment(config, later)
    third = run_experiment(replace(config, seed=2), later)
    assert [run.environment["engine"]["dtype"] for run in (first, second, third)] == ["bfloat16"] * 3
    assert len(trials) == 1 and "bf16_speedup" not in third.environment["engine"]
    assert not [key for key in cache._items if key[0] in ("base", "model", "stacked") and key[1] == "float32"]


def test_a_trial_that_chooses_float32_gives_the_default_run(tmp_path, trials):
    trials.speedup = 0.5
    config = experiment(tmp_path, "training.num_rounds=1")
    run = run_experiment(config, make_cache(tmp_path, dtype="fastest"))
    plain = make_cache(tmp_path)
    plain = replace(plain, runtime=replace(plain.runtime, runs_dir=tmp_path / "plain"))
    assert run.environment["engine"] == {"clients_per_pass": 2, "bf16_speedup": 0.5}
    assert run.records() == run_experiment(config, plain).records()
    assert run_experiment(replace(config, seed=1), make_cache(tmp_path)).environment["engine"] == {"clients_per_pass": 2}
    assert len(trials) == 1  # none without the option


def test_the_real_trial_decides_for_a_run(tmp_path):
    run = run_experiment(experiment(tmp_path, "training.num_rounds=1"), make_cache(tmp_path, dtype="fastest"))
    engine = run.environment["engine"]
    assert (engine.get("dtype") == "bfloat16") == (engine["bf16_speedup"] >= 1.3)


def test_fastest_is_refused_where_there_is_no_trial(tmp_path):
    config = experiment(tmp_path)
    with pytest.raises(UserError, match="use --dtype float32 or --dtype bfloat16 here"):
        estimate_run(config, make_cache(tmp_path, dtype="fastest"))
    with pytest.raises(UserError, match="cannot be combined with --compile"):
        run_experiment(config, make_cache(tmp_path, dtype="fastest", compiled=True))
    with pytest.raises(UserError, match=r"no dtype over Flower 'fastest'.*auto, bfloat16, float32"):
        read_dtype({"dtype": "fastest"})
    assert Runtime(device="cpu", dtype="auto").numeric_options() == {}  # a trial must be asked for
