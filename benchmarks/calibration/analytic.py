"""What the server's moves and the algorithms' own state say in a round, as the panel's probes record it."""

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
    """`update.step`, `update.turn`; `control.*` of Scaffold; `server.correction` of FedDyn, `server.momentum` of others."""
    now, before = flatten(result.after.server_delta), flatten(result.before.server_delta)
    reading: MetricValues = {"update.step": float(now.norm())}
    if len(before) and before.norm() > 0 and now.norm() > 0:
        reading["update.turn"] = float(now @ before / (now.norm() * before.norm()))
    if isinstance(algorithm, Scaffold):
        memory, c = result.after.client_states, flatten(result.after.server.broadcast)
        controls = torch.stack([flatten(memory.gather(torch.tensor([k]))) for k in range(len(result.after.cluster_ids))])
        reading["control.imbalance"] = float((c - controls.mean(0)).norm() / controls.norm(dim=1).mean().clamp_min(1e-300))
        here = (
            result.before.last_round_seen
            if len(result.before.last_round_seen)
            else torch.zeros(len(result.after.cluster_ids), dtype=torch.long)
        )
        old = torch.stack([flatten(result.before.client_states.gather(torch.tensor([k]))) for k in result.cohort.tolist()])
        slope = torch.stack([flatten(result.report.mean_grad.take(torch.tensor([row]))) for row in range(len(result.cohort))])
        took_part = here[result.cohort] > 0
        reading["control.age"] = torch.where(took_part, (result.after.round - here[result.cohort]).double(), torch.nan)
        distance = (old - slope).norm(dim=1) / slope.norm(dim=1).clamp_min(1e-300)
        reading["control.staleness"] = torch.where(took_part, distance, torch.nan)
    elif len(result.after.server.opt_state):
        alpha = algorithm.alpha if isinstance(algorithm, FedDyn) else 0.0
        length = float(flatten(result.after.server.opt_state).norm())
        reading.update({"server.correction": length / alpha} if alpha else {"server.momentum": length})
    return reading


def flatten(tree: Tree) -> torch.Tensor:
    """All of a tree as one vector, of all its rows, float64."""
    return torch.cat([leaf.flatten() for leaf in tree.values()]).double() if len(tree) else torch.zeros(0, dtype=torch.float64)


# A federation of which everything is known: domains are quadratics, clients are mixtures of them.
#
# Domain j is f_j(x) = a_j/2 |x - b_j|^2 + slope_j x; client k holds it with share mix[k, j], so that F_k = sum_j mix[k, j] f_j is
# a quadratic too, and all clients holding the pool's mixture is the same documents dealt IID. A local step follows the
# gradient of F_k with noise of its own. The real round loop, fleet, algorithms and probes run on it; a run takes a fraction
# of a second.

QUADRATIC_DTYPE = torch.float64


def make_mixtures(num_domains: int, num_clients: int, severity: float) -> tuple[tuple[float, ...], ...]:
    """Client k holds domain k mod J more than the others do: all of it at severity 1, the pool's mixture at 0, ``[N][J]``."""
    own = np.eye(num_domains)[np.arange(num_clients) % num_domains]
    return tuple(map(tuple, (1 - severity) * np.full((num_clients, num_domains), 1 / num_domains) + severity * own))


@dataclass(frozen=True)
class QuadraticFederation:
    """One experiment. ``b`` and ``x0`` count for every coordinate; ``optimum_spread`` draws each domain's b about its own."""

    a: tuple[float, ...] = (1.0, 4.0)  # [J]
    b: tuple[float, ...] = (0.0, 1.0)  # [J]
    mixtures: tuple[tuple[float, ...], ...] = ((1.0, 0.0), (0.0, 1.0))  # [N][J]
    slope: tuple[float, ...] = ()  # [J]
    width: int = 1
    optimum_spread: float = 0.0
    noise: float = 0.0
    local_steps: int = 10
    lr: float = 0.1
    x0: float = 5.0
    num_rounds: int = 60
    cohort_size: int = 0  # 0: everybody
    algorithm: FedAvg = FedAvg()
    client_sampler: ClientSampler | None = None  # who takes part, where it is not left to chance
    general_optimum: float | None = None  # x at which general text and its grammar are best: where the pretrained model stands
    nan_clients: tuple[int, ...] = ()  # clients whose gradients are not numbers
    seed: int = 0
    replicate: int = 0  # another draw of noise and cohorts over the same documents

    @property
    def sampling_seed(self) -> int:
        """The seed of noise and cohorts."""
        return derive_seed(self.seed, "again", self.replicate) if self.replicate else self.seed

    @property
    def num_clients(self) -> int:
        return len(self.mixtures)

    @property
    def domain_names(self) -> tuple[str, ...]:
        return tuple(f"domain{j}" for j in range(len(self.a)))

    def optima(self) -> np.ndarray:
        """b of every domain, ``[J, width]``; the seed's, whoever holds what."""
        drawn = numpy_stream(self.seed, "optima").normal(0, 1, (len(self.a), self.width))
        return np.asarray(self.b)[:, None] + self.optimum_spread * drawn


def run_quadratics(federation: QuadraticFederation) -> Trajectory:
    """The world's run, from round 0 to its end."""
    a, slope = np.asarray(federation.a), np.asarray(federation.slope or (0.0,) * len(federation.a))
    mix, b = np.asarray(federation.mixtures), federation.optima()
    pull = torch.tensor(mix @ a, dtype=QUADRATIC_DTYPE)[:, None]  # [N, 1] curvature of F_k
    push = torch.tensor((mix * a) @ b - (mix @ slope)[:, None], dtype=QUADRATIC_DTYPE)  # [N, width]: its gradient is pull x - push
    push[list(federation.nan_clients)] = torch.nan
    steps = QuadraticBatches(pull, push, federation.local_steps, federation.noise, federation.sampling_seed)
    fleet = ClientSimulator(federation.num_clients, quadratic_loss, steps, Sgd(federation.lr), client_weighting="uniform")
    state = init_state(federation.algorithm, Tree(x=torch.full((1, federation.width), federation.x0, dtype=QUADRATIC_DTYPE)), fleet.size)
    rows = to_records(exact_losses(federation, state, b, slope), 0, [], fleet.size)
    with np.errstate(over="ignore", invalid="ignore"):  # some are there to diverge
        for done in run_rounds(
            state,
            fleet,
            federation.algorithm,
            num_rounds=federation.num_rounds,
            cohort_size=federation.cohort_size or fleet.size,
            seed=federation.sampling_seed,
            sample_clients=federation.client_sampler or sample_uniform,
        ):
            rows += round_records(federation, done, b, slope)
    return Trajectory(tuple(rows))


def round_records(federation: QuadraticFederation, result: RoundResult, b: np.ndarray, slope: np.ndarray) -> list[Record]:
    reading: MetricValues = {
        **exact_losses(federation, result.after, b, slope),
        **training_metrics(result),
        **update_geometry(result),
        **server_metrics(result, federation.algorithm),
    }
    return to_records(reading, result.after.round, result.cohort.tolist(), federation.num_clients)


def exact_losses(federation: QuadraticFederation, state: FederatedState, b: np.ndarray, slope: np.ndarray) -> MetricValues:
    """Exact losses of the models: by domain, of every client under its own model, and of the federation."""
    x = state.server.params["x"].numpy()[state.cluster_ids.numpy()]  # [N, width]
    each = np.asarray(federation.a) / 2 * ((x[:, None] - b) ** 2).sum(2) + slope * x.sum(1)[:, None]  # [N, J]
    mix, reading = np.asarray(federation.mixtures), MetricValues()
    client = (mix * each).sum(1)
    reading["loss"] = torch.from_numpy(client)
    reading["loss", ""] = float(client.mean())
    for j, name in enumerate(federation.domain_names):
        reading["loss", name] = float((mix[:, j] * each[:, j]).sum() / mix[:, j].sum()) if mix[:, j].sum() else float("nan")
    if federation.general_optimum is not None:
        far = float(((x - federation.general_optimum) ** 2).sum(1).mean() / 2)
        reading |= {"general.loss": far, "syntax.margin": 2 - far, "syntax.accuracy": float(norm.cdf(2 - far))}
    return reading


def quadratic_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    x = params["x"]
    return (batch["pull"] / 2 * x**2 - (batch["push"] + batch["noise"]) * x).sum(1)


@dataclass(frozen=True, eq=False)
class QuadraticBatches:
    """Every client's local steps; the noise of a step is the client's and the round's own, whoever else takes part."""

    pull: Tensor  # [N, 1]
    push: Tensor  # [N, width]
    local_steps: int
    noise: float
    seed: int

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        shape = (self.local_steps, self.push.shape[1])
        noise = torch.stack(
            [
                self.noise * torch.randn(shape, generator=torch_stream(self.seed, "noise", round, k), dtype=QUADRATIC_DTYPE)
                for k in cohort.tolist()
            ]
        )  # [C, S, width]
        for step in range(self.local_steps):
            yield {"pull": self.pull[cohort], "push": self.push[cohort], "noise": noise[:, step], "weight": torch.ones(len(cohort))}


# A federation of low-rank adapters: linear regressions whose factors are averaged, and what exact averaging would have saved.
#
# Client k fits y = (W0 + B A) x to targets of its own map W_k = W0 + common + ``map_distance`` times its own; with that 0 all
# clients have the same map and differ in their samples only. Long local training drives the factors apart even then.

ADAPTER_DTYPE = torch.float64
INPUTS, OUTPUTS, RANK, ROWS = 8, 6, 2, 64


@dataclass(frozen=True)
class AdapterFederation:
    """One experiment."""

    map_distance: float = 1.0
    local_steps: int = 50
    num_clients: int = 5
    lr: float = 0.1
    num_rounds: int = 12
    seed: int = 0


def run_adapters(federation: AdapterFederation) -> Trajectory:
    """The world's run, from its first round to its end."""
    draw = torch_stream(federation.seed, "adapters")
    common = random_normal(draw, OUTPUTS, RANK) @ random_normal(draw, RANK, INPUTS) / RANK**0.5
    own = random_normal(draw, federation.num_clients, OUTPUTS, RANK) @ random_normal(draw, federation.num_clients, RANK, INPUTS) / RANK**0.5
    x = random_normal(draw, federation.num_clients, ROWS, INPUTS)
    y = x @ (common + federation.map_distance * own).mT + 0.1 * random_normal(draw, federation.num_clients, ROWS, OUTPUTS)
    params = Tree({"m.A": random_normal(draw, 1, RANK, INPUTS) / INPUTS**0.5, "m.B": torch.zeros(1, OUTPUTS, RANK, dtype=ADAPTER_DTYPE)})
    fleet = ClientSimulator(
        federation.num_clients,
        adapter_loss,
        AdapterBatches(x, y, federation.local_steps),
        Sgd(federation.lr),
        max_grad_norm=5.0,
        client_weighting="uniform",
    )
    state, rows = init_state(FedAvg(), params, fleet.size), list[Record]()
    for done in run_rounds(
        state, fleet, FedAvg(), num_rounds=federation.num_rounds, cohort_size=federation.num_clients, seed=federation.seed
    ):
        reading: MetricValues = {**training_metrics(done), **update_geometry(done), **aggregation_error(done), **adapter_losses(done, x, y)}
        rows += to_records(reading, done.after.round, done.cohort.tolist(), federation.num_clients)
    return Trajectory(tuple(rows))


def adapter_losses(result: RoundResult, x: Tensor, y: Tensor) -> MetricValues:
    """The loss of the federation, and how much lower it were had the products been averaged (`adapters.error.loss`)."""
    product = result.client_params["m.B"] @ result.client_params["m.A"]  # [C, O, I]
    after = result.after.server.params
    now, exact = (float((x @ weight.mT - y).square().mean()) for weight in (after["m.B"][0] @ after["m.A"][0], product.mean(0)))
    return {"loss": now, "adapters.error.loss": now - exact}


def adapter_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    return (batch["x"] @ (params["m.B"] @ params["m.A"]).mT - batch["y"]).square().flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class AdapterBatches:
    """All of a client's rows at every step."""

    x: Tensor  # [N, B, I]
    y: Tensor  # [N, B, O]
    local_steps: int

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        for _ in range(self.local_steps):
            yield {"x": self.x[cohort], "y": self.y[cohort], "weight": torch.ones(len(cohort))}


def random_normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=ADAPTER_DTYPE)


# Hidden states that collapse on purpose: the last layer's are drawn, round by round, onto one direction.
#
# H_t = H (I - s_t (I - v v')) with s_t growing to ``strength``, and a jitter that healthy runs have too.

POSITIONS, WIDTH = 1024, 32
LAYER = "layer 05"


@dataclass(frozen=True)
class CollapsingStates:
    """One experiment: nothing but the states of a probe's positions."""

    strength: float = 0.9
    jitter: float = 0.05
    num_rounds: int = 20
    onset_round: int = 5
    seed: int = 0


def run_states(setup: CollapsingStates) -> Trajectory:
    draw = torch_stream(setup.seed, "states")
    first = torch.randn(POSITIONS, WIDTH, generator=draw, dtype=torch.float64) + 0.3
    way = torch.nn.functional.normalize(torch.randn(WIDTH, generator=draw, dtype=torch.float64), dim=0)
    across = torch.eye(WIDTH, dtype=torch.float64) - torch.outer(way, way)
    rank, rows = float(effective_rank(first)), list[Record]()
    for round in range(setup.num_rounds + 1):
        drawn = setup.strength * max(0, round - setup.onset_round) / (setup.num_rounds - setup.onset_round)
        states = first - drawn * first @ across + setup.jitter * torch.randn(first.shape, generator=draw, dtype=torch.float64)
        rows += [
            Record(round, "hidden.rank.ratio", LAYER, -1, float(effective_rank(states)) / rank),
            Record(round, "hidden.anisotropy", LAYER, -1, float(anisotropy(states))),
            Record(round, "loss", "", -1, 4.0 - 0.02 * round),
        ]
    return Trajectory(tuple(rows))
