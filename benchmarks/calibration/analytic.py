"""Analytic federations with exactly known properties: quadratics, low-rank adapters and hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from fedrift.algorithms import FedAvg, FedDyn, Scaffold
from fedrift.core.optimizers import Sgd
from fedrift.core.random import derive_seed, numpy_stream, torch_stream
from fedrift.core.records import Record, Trajectory
from fedrift.core.tree import Tree
from fedrift.core.types import ClientSampler, FederatedState, RoundResult
from fedrift.engine.loop import init_state, run_rounds, sample_uniform
from fedrift.probes import MetricValues, aggregation_error, to_records, training_metrics, update_geometry
from fedrift.probes.representation import anisotropy, effective_rank
from fedrift.simulation import ClientSimulator


def server_metrics(result: RoundResult, algorithm: FedAvg) -> MetricValues:
    """Measure the server step and the state of the algorithm, under the metric names of the probes.

    Returns:
        ``update.step`` and ``update.turn``; ``control.*`` for Scaffold; ``server.correction`` for FedDyn and ``server.momentum`` for
        other algorithms with server state.
    """
    step, previous_step = flatten(result.after.server_delta), flatten(result.before.server_delta)
    metrics: MetricValues = {"update.step": float(step.norm())}
    if len(previous_step) and previous_step.norm() > 0 and step.norm() > 0:
        metrics["update.turn"] = float(step @ previous_step / (step.norm() * previous_step.norm()))
    if isinstance(algorithm, Scaffold):
        client_states, c = result.after.client_states, flatten(result.after.server.broadcast)
        controls = torch.stack([flatten(client_states.gather(torch.tensor([k]))) for k in range(len(result.after.cluster_ids))])
        metrics["control.imbalance"] = float((c - controls.mean(0)).norm() / controls.norm(dim=1).mean().clamp_min(1e-300))
        last_seen = (
            result.before.last_participation
            if len(result.before.last_participation)
            else torch.zeros(len(result.after.cluster_ids), dtype=torch.long)
        )
        old_controls = torch.stack([flatten(result.before.client_states.gather(torch.tensor([k]))) for k in result.cohort.tolist()])
        gradients = torch.stack([flatten(result.update.mean_grad.take(torch.tensor([row]))) for row in range(len(result.cohort))])
        has_participated = last_seen[result.cohort] > 0
        metrics["control.age"] = torch.where(has_participated, (result.after.round - last_seen[result.cohort]).double(), torch.nan)
        distance = (old_controls - gradients).norm(dim=1) / gradients.norm(dim=1).clamp_min(1e-300)
        metrics["control.staleness"] = torch.where(has_participated, distance, torch.nan)
    elif len(result.after.server.opt_state):
        alpha = algorithm.alpha if isinstance(algorithm, FedDyn) else 0.0
        norm = float(flatten(result.after.server.opt_state).norm())
        metrics.update({"server.correction": norm / alpha} if alpha else {"server.momentum": norm})
    return metrics


def flatten(tree: Tree) -> torch.Tensor:
    """Return all entries of a tree as one float64 vector."""
    return torch.cat([leaf.flatten() for leaf in tree.values()]).double() if len(tree) else torch.zeros(0, dtype=torch.float64)


# Quadratics. Domain j has the loss f_j(x) = a_j/2 |x - b_j|^2 + slope_j x. Client k holds it with share mix[k, j], so its loss
# F_k = sum_j mix[k, j] f_j is a quadratic too. In the IID baseline, all clients hold the mean mixture.

QUADRATIC_DTYPE = torch.float64


def make_mixtures(num_domains: int, num_clients: int, severity: float) -> tuple[tuple[float, ...], ...]:
    """Return mixtures [N][J] in which client k prefers domain k mod J: completely at severity 1, not at all at severity 0."""
    own = np.eye(num_domains)[np.arange(num_clients) % num_domains]
    return tuple(map(tuple, (1 - severity) * np.full((num_clients, num_domains), 1 / num_domains) + severity * own))


@dataclass(frozen=True)
class QuadraticFederation:
    """A federation of quadratics with N clients, J domains and ``width`` coordinates.

    Attributes:
        a: The curvature of each domain, [J].
        b: The optimum of each domain, [J], the same in every coordinate.
        mixtures: The shares of the domains for each client, [N][J].
        slope: The linear term of each domain, [J].
        width: The number of coordinates.
        optimum_spread: The standard deviation of the random shift of each domain's optimum.
        noise: The standard deviation of the gradient noise.
        local_steps: The number of local steps per round.
        lr: The learning rate of the clients.
        x0: The initial value of every coordinate.
        num_rounds: The number of rounds.
        cohort_size: The number of clients per round; 0 means all clients.
        algorithm: The federated algorithm.
        client_sampler: Selects the cohort of each round; None samples at random.
        general_optimum: The x at which the losses of general text and syntax are best; None omits these metrics.
        nan_clients: Clients whose gradients are NaN.
        seed: The seed of the optima.
        replicate: Selects other noise and cohorts for the same optima.
    """

    a: tuple[float, ...] = (1.0, 4.0)
    b: tuple[float, ...] = (0.0, 1.0)
    mixtures: tuple[tuple[float, ...], ...] = ((1.0, 0.0), (0.0, 1.0))
    slope: tuple[float, ...] = ()
    width: int = 1
    optimum_spread: float = 0.0
    noise: float = 0.0
    local_steps: int = 10
    lr: float = 0.1
    x0: float = 5.0
    num_rounds: int = 60
    cohort_size: int = 0
    algorithm: FedAvg = FedAvg()
    client_sampler: ClientSampler | None = None
    general_optimum: float | None = None
    nan_clients: tuple[int, ...] = ()
    seed: int = 0
    replicate: int = 0

    @property
    def sampling_seed(self) -> int:
        """The seed of noise and cohorts."""
        return derive_seed(self.seed, "again", self.replicate) if self.replicate else self.seed

    @property
    def num_clients(self) -> int:
        """The number of clients."""
        return len(self.mixtures)

    @property
    def domain_names(self) -> tuple[str, ...]:
        """The names of the domains."""
        return tuple(f"domain{j}" for j in range(len(self.a)))

    def optima(self) -> np.ndarray:
        """Return the optimum of every domain, [J, width]; it depends on the seed but not on the mixtures."""
        shifts = numpy_stream(self.seed, "optima").normal(0, 1, (len(self.a), self.width))
        return np.asarray(self.b)[:, None] + self.optimum_spread * shifts


def run_quadratics(federation: QuadraticFederation) -> Trajectory:
    """Run a federation of quadratics with the real round loop, and return its trajectory."""
    a, slope = np.asarray(federation.a), np.asarray(federation.slope or (0.0,) * len(federation.a))
    mix, b = np.asarray(federation.mixtures), federation.optima()
    curvature = torch.tensor(mix @ a, dtype=QUADRATIC_DTYPE)[:, None]  # [N, 1] curvature of F_k
    target = torch.tensor(
        (mix * a) @ b - (mix @ slope)[:, None], dtype=QUADRATIC_DTYPE
    )  # [N, width]: the gradient of F_k is curvature x - target
    target[list(federation.nan_clients)] = torch.nan
    batches = QuadraticBatches(curvature, target, federation.local_steps, federation.noise, federation.sampling_seed)
    simulator = ClientSimulator(federation.num_clients, quadratic_loss, batches, Sgd(federation.lr), client_weighting="uniform")
    state = init_state(
        federation.algorithm, Tree(x=torch.full((1, federation.width), federation.x0, dtype=QUADRATIC_DTYPE)), simulator.size
    )
    records = to_records(exact_losses(federation, state, b, slope), 0, [], simulator.size)
    with np.errstate(over="ignore", invalid="ignore"):  # some federations are meant to diverge
        for result in run_rounds(
            state,
            simulator,
            federation.algorithm,
            num_rounds=federation.num_rounds,
            cohort_size=federation.cohort_size or simulator.size,
            seed=federation.sampling_seed,
            sample_clients=federation.client_sampler or sample_uniform,
        ):
            records += round_records(federation, result, b, slope)
    return Trajectory(tuple(records))


def round_records(federation: QuadraticFederation, result: RoundResult, b: np.ndarray, slope: np.ndarray) -> list[Record]:
    """Return all metrics of a round as records."""
    metrics: MetricValues = {
        **exact_losses(federation, result.after, b, slope),
        **training_metrics(result),
        **update_geometry(result),
        **server_metrics(result, federation.algorithm),
    }
    return to_records(metrics, result.after.round, result.cohort.tolist(), federation.num_clients)


def exact_losses(federation: QuadraticFederation, state: FederatedState, b: np.ndarray, slope: np.ndarray) -> MetricValues:
    """Compute the exact losses per domain, per client under its own model, and of the federation."""
    x = state.server.params["x"].numpy()[state.cluster_ids.numpy()]  # [N, width]
    domain_losses = np.asarray(federation.a) / 2 * ((x[:, None] - b) ** 2).sum(2) + slope * x.sum(1)[:, None]  # [N, J]
    mix, metrics = np.asarray(federation.mixtures), MetricValues()
    client_losses = (mix * domain_losses).sum(1)
    metrics["loss"] = torch.from_numpy(client_losses)
    metrics["loss", ""] = float(client_losses.mean())
    for j, name in enumerate(federation.domain_names):
        metrics["loss", name] = float((mix[:, j] * domain_losses[:, j]).sum() / mix[:, j].sum()) if mix[:, j].sum() else float("nan")
    if federation.general_optimum is not None:
        distance = float(((x - federation.general_optimum) ** 2).sum(1).mean() / 2)
        metrics |= {"general.loss": distance, "syntax.margin": 2 - distance, "syntax.accuracy": float(norm.cdf(2 - distance))}
    return metrics


def quadratic_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each client, [C], up to a constant."""
    x = params["x"]
    return (batch["curvature"] / 2 * x**2 - (batch["target"] + batch["noise"]) * x).sum(1)


@dataclass(frozen=True, eq=False)
class QuadraticBatches:
    """The local steps of all clients. The gradient noise depends only on the client and the round, not on the cohort."""

    curvature: Tensor  # [N, 1] curvature
    target: Tensor  # [N, width] gradient at 0, with its sign changed
    local_steps: int
    noise: float
    seed: int

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        shape = (self.local_steps, self.target.shape[1])
        noise = torch.stack(
            [
                self.noise * torch.randn(shape, generator=torch_stream(self.seed, "noise", round, k), dtype=QUADRATIC_DTYPE)
                for k in cohort.tolist()
            ]
        )  # [C, S, width]
        for step in range(self.local_steps):
            yield {
                "curvature": self.curvature[cohort],
                "target": self.target[cohort],
                "noise": noise[:, step],
                "weight": torch.ones(len(cohort)),
            }


# Low-rank adapters. Client k fits y = (W0 + B A) x to targets of W_k = W0 + common + ``map_distance`` times its own map. With
# ``map_distance`` 0, clients differ only in their samples, but long local training still drives the factors apart.

ADAPTER_DTYPE = torch.float64
INPUTS, OUTPUTS, RANK, ROWS = 8, 6, 2, 64


@dataclass(frozen=True)
class AdapterFederation:
    """A federation of linear regressions with low-rank adapters; ``map_distance`` scales the difference of the clients' targets."""

    map_distance: float = 1.0
    local_steps: int = 50
    num_clients: int = 5
    lr: float = 0.1
    num_rounds: int = 12
    seed: int = 0


def run_adapters(federation: AdapterFederation) -> Trajectory:
    """Run a federation of adapters with the real round loop, and return its trajectory."""
    draw = torch_stream(federation.seed, "adapters")
    common = random_normal(draw, OUTPUTS, RANK) @ random_normal(draw, RANK, INPUTS) / RANK**0.5
    client_maps = (
        random_normal(draw, federation.num_clients, OUTPUTS, RANK) @ random_normal(draw, federation.num_clients, RANK, INPUTS) / RANK**0.5
    )
    x = random_normal(draw, federation.num_clients, ROWS, INPUTS)
    y = x @ (common + federation.map_distance * client_maps).mT + 0.1 * random_normal(draw, federation.num_clients, ROWS, OUTPUTS)
    params = Tree({"m.A": random_normal(draw, 1, RANK, INPUTS) / INPUTS**0.5, "m.B": torch.zeros(1, OUTPUTS, RANK, dtype=ADAPTER_DTYPE)})
    simulator = ClientSimulator(
        federation.num_clients,
        adapter_loss,
        AdapterBatches(x, y, federation.local_steps),
        Sgd(federation.lr),
        max_grad_norm=5.0,
        client_weighting="uniform",
    )
    state, records = init_state(FedAvg(), params, simulator.size), list[Record]()
    for result in run_rounds(
        state, simulator, FedAvg(), num_rounds=federation.num_rounds, cohort_size=federation.num_clients, seed=federation.seed
    ):
        metrics: MetricValues = {
            **training_metrics(result),
            **update_geometry(result),
            **aggregation_error(result),
            **adapter_losses(result, x, y),
        }
        records += to_records(metrics, result.after.round, result.cohort.tolist(), federation.num_clients)
    return Trajectory(tuple(records))


def adapter_losses(result: RoundResult, x: Tensor, y: Tensor) -> MetricValues:
    """Return the loss, and how much lower it would be if the products of the factors were averaged (``adapters.error.loss``)."""
    product = result.client_params["m.B"] @ result.client_params["m.A"]  # [C, O, I]
    after = result.after.server.params
    current, exact = (float((x @ weight.mT - y).square().mean()) for weight in (after["m.B"][0] @ after["m.A"][0], product.mean(0)))
    return {"loss": current, "adapters.error.loss": current - exact}


def adapter_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean squared error of each client, [C]."""
    return (batch["x"] @ (params["m.B"] @ params["m.A"]).mT - batch["y"]).square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class AdapterBatches:
    """Full batches: every step uses all rows of a client."""

    x: Tensor  # [N, B, I]
    y: Tensor  # [N, B, O]
    local_steps: int

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.local_steps):
            yield {"x": self.x[cohort], "y": self.y[cohort], "weight": torch.ones(len(cohort))}


def random_normal(draw: torch.Generator, *shape: int) -> Tensor:
    """Return standard normal numbers of the given shape."""
    return torch.randn(*shape, generator=draw, dtype=ADAPTER_DTYPE)


# Hidden states that collapse onto one direction: H_t = H (I - s_t (I - v v')), where s_t grows to ``strength``, plus noise that
# healthy runs have too.

POSITIONS, WIDTH = 1024, 32
LAYER = "layer 05"


@dataclass(frozen=True)
class CollapsingStates:
    """Hidden states at the positions of a probe, which collapse from ``onset_round`` on."""

    strength: float = 0.9
    jitter: float = 0.05
    num_rounds: int = 20
    onset_round: int = 5
    seed: int = 0


def run_states(setup: CollapsingStates) -> Trajectory:
    """Create the hidden states of all rounds and return the metrics of their collapse."""
    draw = torch_stream(setup.seed, "states")
    initial = torch.randn(POSITIONS, WIDTH, generator=draw, dtype=torch.float64) + 0.3
    direction = torch.nn.functional.normalize(torch.randn(WIDTH, generator=draw, dtype=torch.float64), dim=0)
    complement = torch.eye(WIDTH, dtype=torch.float64) - torch.outer(direction, direction)
    rank, records = float(effective_rank(initial)), list[Record]()
    for round in range(setup.num_rounds + 1):
        strength = setup.strength * max(0, round - setup.onset_round) / (setup.num_rounds - setup.onset_round)
        states = initial - strength * initial @ complement + setup.jitter * torch.randn(initial.shape, generator=draw, dtype=torch.float64)
        records += [
            Record(round, "hidden.rank.ratio", LAYER, -1, float(effective_rank(states)) / rank),
            Record(round, "hidden.anisotropy", LAYER, -1, float(anisotropy(states))),
            Record(round, "loss", "", -1, 4.0 - 0.02 * round),
        ]
    return Trajectory(tuple(records))
