"""Published results that fedrift reproduces: AT-2 and AT-4 to AT-7 have closed forms, AT-1 and AT-3 use synthetic data.

AT-1 is FedProx on synthetic(alpha, beta) data (arXiv:1812.06127, Figure 2), AT-2 SCAFFOLD's lower-bound pair (arXiv:1910.06378,
section 7), AT-3 SCAFFOLD on the synthetic data, AT-4 the bias of a fixed learning rate (Li et al., ICLR 2020, arXiv:1907.02189), AT-5
FedNova's limits (arXiv:2007.07481), AT-6 the limits of q-FFL up to the minimax solution (arXiv:1905.10497), and AT-7 SCAFFOLD with low
participation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithms import AFL, Ditto, FedAvg, FedNova, FedProx, QFedAvg, Scaffold
from ..core.optimizers import Sgd, select_prefix, with_prefix
from ..core.random import numpy_stream, torch_stream
from ..core.tree import Tree
from ..core.types import ClientStateStore, FederatedState, LocalState
from ..simulation import ClientSimulator
from .judge import Expectation, expect_every_seed, expect_near, expect_positive_mean, format_values
from .problems import Problem
from .subjects import FedriftSubject


def run_algorithm(algorithm: FedAvg, problem: Problem) -> list[float]:
    """Return x after every round of a problem."""
    return FedriftSubject(problem.algorithm, lambda o, lr: algorithm).run(problem)


def opposing_clients(steps: int, gap: float, num_rounds: int) -> Problem:
    """Return two clients with f1 = x^2 + G x and f2 = -G x (SCAFFOLD paper, section 7); the optimum of their mean is 0."""
    return Problem("pair", "scaffold", "", (2.0, 0.0), (0.0, 0.0), ((0, 1),) * num_rounds, (steps, steps), x0=1.0, slope=(gap, -gap))


def quadratic_pair(steps: tuple[int, int], num_rounds: int, lr: float = 0.1, x0: float = 5.0) -> Problem:
    """Return two clients with a = (1, 4) and b = (0, 1); the optimum of their mean is 0.8."""
    return Problem("Q2", "fedavg", "", (1.0, 4.0), (0.0, 1.0), ((0, 1),) * num_rounds, steps, lr=lr, x0=x0)


def fixed_point(algorithm: FedAvg, problem: Problem) -> float:
    """Return the fixed point of an algorithm without state, for which a round is x <- m x + c."""
    c, other = (run_algorithm(algorithm, replace(problem, x0=x, cohorts=((0, 1),)))[0] for x in (0.0, 1.0))
    return c / (1 - (other - c))


def first_round_within(path: list[float], goal: float, bound: float = 1e-6) -> int:
    """Return the first round whose x is within ``bound`` of ``goal``, or -1."""
    return next((number for number, x in enumerate(path, 1) if abs(x - goal) < bound), -1)


def expect_lower_bound() -> Iterable[Expectation]:
    """Check AT-2: the bias of FedAvg and the convergence of SCAFFOLD on the lower-bound pair."""
    for steps, bias in ((2, 0.0555555556), (10, 0.6202902)):
        for gap in (1.0, 10.0, 100.0):
            yield expect_near(
                "AT-2", f"FedAvg's bias, K={steps}, G={gap:g}", bias * gap, fixed_point(FedAvg(), opposing_clients(steps, gap, 1))
            )
    for steps, expected_rounds in ((2, (65, 66, 69)), (10, (18, 24, 28))):
        for gap, rounds in zip((1.0, 10.0, 100.0), expected_rounds, strict=True):
            observed = first_round_within(run_algorithm(Scaffold(), opposing_clients(steps, gap, rounds + 5)), 0.0)
            yield expect_near("AT-2", f"SCAFFOLD's rounds to 1e-6, K={steps}, G={gap:g}", rounds, observed, 0)
    observed = first_round_within(run_algorithm(FedAvg(), opposing_clients(1, 1.0, 140)), 0.0)
    yield expect_near("AT-2", "gradient descent's rounds to 1e-6", 132, observed, 0)


def expect_fixed_rate_bias() -> Iterable[Expectation]:
    """Check AT-4: the bias of FedAvg at a fixed learning rate, and its decay with a decreasing one."""
    for lr, point in ((0.001, 0.7978358), (0.01, 0.7780381), (0.1, 0.6041260)):
        yield expect_near("AT-4", f"FedAvg's fixed point, lr={lr:g}", point, fixed_point(FedAvg(), quadratic_pair((10, 10), 1, lr)), 1e-7)
    x, errors = 5.0, {10: 0.0792, 100: 0.01125}
    for round in range(101):
        x = run_algorithm(FedAvg(), quadratic_pair((10, 10), 1, 0.1 / (1 + round / 5), x))[0]
        if round in errors:
            yield expect_near("AT-4", f"FedAvg's error after t={round}, lr = 0.1 / (1 + t/5)", errors[round], abs(x - 0.8), 1e-4)


def expect_fednova_limits() -> Iterable[Expectation]:
    """Check AT-5: the fixed points of FedAvg and FedNova with 2 and 20 local steps."""
    fixed_points = ((1e-3, 0.9747060, 0.7939637), (0.01, 0.9655648, 0.7371194), (0.1, 0.8403312, 0.3448193))
    for lr, fedavg, fednova in fixed_points:
        for algorithm, point in ((FedAvg(), fedavg), (FedNova(), fednova)):
            yield expect_near(
                "AT-5",
                f"{type(algorithm).__name__}'s fixed point, 2 and 20 steps, lr={lr:g}",
                point,
                fixed_point(algorithm, quadratic_pair((2, 20), 1, lr)),
                1e-7,
            )


def expect_minimax_limits() -> Iterable[Expectation]:
    """Check AT-6: the limits of q-FedAvg, and of AFL at the minimax solution."""
    for q, point in ((0.0, 0.8), (1.0, 0.7158963), (5.0, 0.6805196), (20.0, 0.6704129)):
        yield expect_near(
            "AT-6", f"q-FedAvg's limit, q={q:g}", point, run_algorithm(QFedAvg(q=q), quadratic_pair((1, 1), 150, x0=0.7))[-1], 2e-6
        )
    yield expect_near(
        "AT-6", "AFL's limit, the minimax solution", 2 / 3, run_algorithm(AFL(lambda_lr=0.2), quadratic_pair((1, 1), 300, x0=0.7))[-1], 1e-4
    )


def expect_ditto_limits() -> Iterable[Expectation]:
    """Check Ditto on ``quadratic_pair``: (a b + lam w) / (a + lam) with w = 0.8, the limit of FedAvg with one local step per round."""
    for lam, points in ((0.0, (0.0, 1.0)), (1.0, (0.4, 0.96)), (5.0, (0.6666667, 0.8888889))):
        for client, point in enumerate(points):
            problem = replace(quadratic_pair((1, 1), 250), algorithm="ditto", evaluated_client=client)
            yield expect_near(
                "Ditto",
                f"limit of the personalized model, lam={lam:g}, client {client}",
                point,
                run_algorithm(Ditto(lambda_=lam), problem)[-1],
            )


@dataclass(frozen=True)
class ScaffoldOptionI(Scaffold):
    """SCAFFOLD with Option I, c_k+ = g_k(w), as a negative control: its control variates become stale where those of Option II do not."""

    def transform_grad(self, grad: Tree, local: LocalState) -> Tree:
        """Correct the gradient with the control variates of the client and the server."""
        return grad - Tree({name: local.client_state[name] for name in grad}) + local.broadcast

    def on_step_end(self, grad: Tree, local: LocalState, active: torch.Tensor) -> LocalState:
        """Store the gradient of the first local step."""
        if select_prefix("first", local.client_state):
            return local
        return replace(local, client_state=Tree({**local.client_state, **with_prefix("first", grad)}))

    def update_client_state(self, local: LocalState) -> Tree:
        """Return the gradient of the first local step as the new control variate."""
        return select_prefix("first", local.client_state)


def expect_sampling_robustness(num_rounds: int = 150) -> Iterable[Expectation]:
    """Check AT-7: ten quadratics with curvatures 0.5 to 4.667, and the two of ``quadratic_pair``, with one client per round."""
    rng = numpy_stream(0, "ten clients")
    a, b = np.linspace(0.5, 4.667, 10), rng.normal(0, 1, 10)
    optimum = float((a * b).sum() / a.sum())
    cohorts = tuple((int(k),) for k in rng.integers(0, 10, num_rounds))
    for step_factor in (2.0, 4.0):
        problem = Problem(
            "ten", "scaffold", "", tuple(a.tolist()), tuple(b.tolist()), cohorts, (10,) * 10, x0=optimum + 1, lr=step_factor / (10 * 4.667)
        )
        fedavg, option_one, option_two = (
            float(np.abs(np.array(run_algorithm(algorithm, problem)[-50:]) - optimum).mean())
            for algorithm in (FedAvg(), ScaffoldOptionI(), Scaffold())
        )
        yield Expectation(
            "AT-7",
            f"one of ten clients per round, K lr L = {step_factor:g}: error of SCAFFOLD II",
            "< 1/10 of SCAFFOLD I and FedAvg",
            f"{option_two:.2g} (I {option_one:.2g}, FedAvg {fedavg:.2g})",
            10 * option_two < min(option_one, fedavg),
        )
    pair_cohorts = tuple((int(k),) for k in rng.integers(0, 2, 60))
    option_one_path, option_two_path = (
        run_algorithm(algorithm, replace(quadratic_pair((10, 10), 1), cohorts=pair_cohorts))
        for algorithm in (ScaffoldOptionI(), Scaffold())
    )
    peak, end = max(abs(x - 0.8) for x in option_one_path[10:]), abs(option_two_path[-1] - 0.8)
    yield Expectation("AT-7", "one of two clients per round: SCAFFOLD I's worst error after round 10", "> 1", f"{peak:.2g}", peak > 1)
    yield Expectation("AT-7", "one of two clients per round: SCAFFOLD II's error after round 60", "< 1e-5", f"{end:.2g}", end < 1e-5)


def closed_forms() -> list[Expectation]:
    """Check AT-2, AT-4 to AT-7 and Ditto, which takes seconds."""
    return [
        *expect_lower_bound(),
        *expect_fixed_rate_bias(),
        *expect_fednova_limits(),
        *expect_minimax_limits(),
        *expect_ditto_limits(),
        *expect_sampling_robustness(),
    ]


# Synthetic(alpha, beta): the logistic regressions of Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
# arXiv:1812.06127, section 5.1. Devices and cohorts equal those of the authors' code (github.com/litian96/FedProx, data/synthetic_* and
# flearn/trainers/fedbase.py) draw by draw. The split, the batches and the stragglers come from fedrift's own random streams.

INPUTS, CLASSES, DEVICES = 60, 10, 30


@dataclass(frozen=True)
class SyntheticFederation:
    """Describe a federation of 30 devices."""

    alpha: float | None  # the heterogeneity alpha, which is also beta; None means IID
    seed: int  # seed of the data
    max_examples: int = 200  # each device keeps at most its first ``max_examples`` examples


def make_devices(federation: SyntheticFederation) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the inputs [n, 60] and labels [n] of each device.

    n_k = int(lognormal(4, 2)) + 50, u_k ~ N(0, alpha), B_k ~ N(0, beta), v_k ~ N(B_k, 1), W_k and b_k ~ N(u_k, 1),
    x ~ N(v_k, diag(j^-1.2)), y = argmax(x W_k + b_k). Alpha and beta are standard deviations in the authors' code but variances in the
    paper. For IID data there is one W and b ~ N(0, 1), and v = 0. The order of the draws is that of the authors' code, which leaves the
    seed open.
    """
    rng = np.random.RandomState(federation.seed)
    sizes = rng.lognormal(4, 2, DEVICES).astype(int) + 50
    spread = np.arange(1, INPUTS + 1) ** -0.6  # standard deviations; the variances are j^-1.2
    if federation.alpha is None:
        shared_rule = rng.normal(0, 1, (INPUTS, CLASSES)), rng.normal(0, 1, CLASSES)
        rules, input_means = (shared_rule for _ in sizes), np.zeros((DEVICES, INPUTS))
    else:
        u, means = rng.normal(0, federation.alpha, DEVICES), rng.normal(0, federation.alpha, DEVICES)
        input_means = rng.normal(means[:, None], 1, (DEVICES, INPUTS))
        rules = (
            (rng.normal(mean, 1, (INPUTS, CLASSES)), rng.normal(mean, 1, CLASSES)) for mean in u
        )  # lazy, to keep the authors' order of draws
    devices = []
    for size, v, (w, b) in zip(sizes, input_means, rules, strict=True):
        x = rng.normal(v, spread, (size, INPUTS))[: federation.max_examples]
        devices.append((x.astype(np.float32), np.argmax(x @ w + b, 1)))
    return devices


@dataclass(frozen=True, eq=False)
class SyntheticBatches:
    """Provide the batches of the devices of several federations, padded to equal length."""

    x: Tensor  # training inputs, [N, n, 60]
    y: Tensor  # training labels, [N, n]
    num_examples: Tensor  # number of training examples of each device, [N]
    test: list[tuple[Tensor, Tensor]]  # pooled test inputs and labels of each federation
    seeds: tuple[int, ...]  # seed of each device's federation, [N]
    batch_size: int = 10  # examples per batch

    def num_epochs(self, round: int, client: int) -> int:
        """Return the number of local epochs of a client in a round."""
        return 20

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of a cohort, one dictionary per local step."""
        orders = [self.batch_order(round, client) for client in cohort.tolist()]
        num_steps = max((len(order) for order in orders), default=0)
        index = np.full((len(orders), num_steps, self.batch_size), -1)
        for row, order in enumerate(orders):
            index[row, : len(order)] = order
        example_index, step_counts = torch.from_numpy(index), np.array([len(order) for order in orders])
        for step in range(num_steps):
            rows = torch.from_numpy(np.flatnonzero(step_counts > step))
            examples = example_index[rows, step]  # [A, B]
            clients = cohort[rows].unsqueeze(1)
            loss_mask = examples >= 0
            yield {
                "rows": rows,
                "x": self.x[clients, examples.clamp_min(0)],
                "y": self.y[clients, examples.clamp_min(0)],
                "loss_mask": loss_mask,
                "weight": loss_mask.sum(1) / max(self.num_epochs(round, 0), 1),
                "num_examples": self.num_examples[cohort[rows]],
            }

    def batch_order(self, round: int, client: int) -> np.ndarray:
        """Return the examples of each local step of a client, [S, B]; -1 marks positions beyond the end of an epoch."""
        size = int(self.num_examples[client])
        rng = numpy_stream(self.seeds[client], "order", client % DEVICES, round)
        steps = -(-size // self.batch_size)
        order = np.full((self.num_epochs(round, client), steps * self.batch_size), -1)
        for epoch in order:
            epoch[:size] = rng.permutation(size)
        return order.reshape(-1, self.batch_size)


@dataclass(frozen=True, eq=False)
class StragglingBatches(SyntheticBatches):
    """Let nine of ten devices of a round finish only 1 to 19 of 20 epochs."""

    use_partial_work: bool = True  # whether the partial work of these devices is used; otherwise they are dropped

    def num_epochs(self, round: int, client: int) -> int:
        """Return the number of local epochs that a client finishes in a round; 0 drops it."""
        rng = numpy_stream(self.seeds[client], "straggle", round, client % DEVICES)
        is_straggler, finished = rng.random() < 0.9, int(rng.integers(1, 20))
        return 20 if not is_straggler else finished if self.use_partial_work else 0


def make_batches(
    federations: list[SyntheticFederation], batch_class: type[SyntheticBatches] = SyntheticBatches, **options: object
) -> SyntheticBatches:
    """Return the batches of all devices of the federations, of which 90 % of the examples are for training."""
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    tests: list[tuple[Tensor, Tensor]] = []
    for federation in federations:
        test = []
        for x, y in make_devices(federation):
            num_train = int(0.9 * len(y))
            order = numpy_stream(federation.seed, "split", len(xs) % DEVICES).permutation(len(y))
            xs.append(torch.from_numpy(x[order[:num_train]]))
            ys.append(torch.from_numpy(y[order[:num_train]]))
            test.append((x[order[num_train:]], y[order[num_train:]]))
        tests.append((torch.from_numpy(np.concatenate([x for x, _ in test])), torch.from_numpy(np.concatenate([y for _, y in test]))))
    seeds = tuple(federation.seed for federation in federations for _ in range(DEVICES))
    pad = torch.nn.utils.rnn.pad_sequence
    return batch_class(pad(xs, True), pad(ys, True), torch.tensor([len(y) for y in ys]), tests, seeds, **options)  # type: ignore[arg-type]


def glorot_params(seed: int = 0) -> Tree:
    """Return Glorot-uniform weights [1, 60, 10] and zero biases [1, 10]."""
    bound = (6 / (INPUTS + CLASSES)) ** 0.5
    weight = torch.empty(1, INPUTS, CLASSES).uniform_(-bound, bound, generator=torch_stream(seed, "glorot"))
    return Tree(w=weight, b=torch.zeros(1, CLASSES))


def logistic_loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean cross-entropy of each client's batch, [C]. There is no L2 penalty, as in the authors' code."""
    logits = torch.baddbmm(params["b"].unsqueeze(1), batch["x"], params["w"])  # [C, B, K]
    losses = F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), reduction="none").view_as(batch["y"])
    return (losses * batch["loss_mask"]).sum(1) / batch["loss_mask"].sum(1)


def evaluate_models(params: Tree, batches: SyntheticBatches) -> dict[str, Tensor]:
    """Evaluate the models of M federations.

    Returns:
        The training loss weighted by examples, the pooled test accuracy, and the gradient dissimilarity mean |g_k - g|^2, each [M].
    """
    models = len(batches.test)
    group = torch.arange(models).repeat_interleave(DEVICES)
    mask = torch.arange(batches.x.shape[1]) < batches.num_examples.unsqueeze(1)  # [N, n]
    w, b = params["w"][group], params["b"][group]
    log_probs = torch.baddbmm(b.unsqueeze(1), batches.x, w).log_softmax(2)
    losses = -log_probs.gather(2, batches.y.unsqueeze(2)).squeeze(2) * mask
    share = batches.num_examples / torch.zeros(models).index_add(0, group, batches.num_examples.float())[group]
    residuals = (log_probs.exp() - F.one_hot(batches.y, CLASSES)) * mask.unsqueeze(2) / batches.num_examples.view(-1, 1, 1)
    gradients = torch.cat([batches.x.mT @ residuals, residuals.sum(1, keepdim=True)], 1).flatten(1)
    gradients = gradients.unflatten(0, (models, DEVICES))  # [M, 30, .]
    mean = (gradients * share.view(models, DEVICES, 1)).sum(1, keepdim=True)
    accuracy = torch.stack([((x @ params["w"][m] + params["b"][m]).argmax(1) == y).float().mean() for m, (x, y) in enumerate(batches.test)])
    return {
        "loss": (losses.sum(1) / batches.num_examples * share).unflatten(0, (models, DEVICES)).sum(1),
        "accuracy": accuracy,
        "dissimilarity": (gradients - mean).square().sum(2).mean(1),
    }


def draw_cohort(federations: list[SyntheticFederation], round: int, cohort_size: int = 10) -> Tensor:
    """Return ten devices of every federation, [M * 10]. They depend on the round only, as in the authors' server."""
    devices = np.sort(np.random.RandomState(round).choice(DEVICES, cohort_size, replace=False))
    return torch.from_numpy(np.concatenate([devices + index * DEVICES for index in range(len(federations))]))


# The expected ranges held for every seed of an independent implementation. AT-1 iv is a mean over seeds of its own. All data sets and
# seeds train together as clusters of one client simulator: their clients share forward passes and nothing else.

ALPHAS = {"IID": None, "(0,0)": 0.0, "(0.5,0.5)": 0.5, "(1,1)": 1.0}
UNUSED_SEEDS = range(20, 40)  # the seeds of AT-1 iv, which no earlier experiment used; see docs/conformance.md


@dataclass(frozen=True, eq=False)
class Curves:
    """Hold the curves of M federations, each [rounds, M]."""

    loss: np.ndarray  # training loss
    accuracy: np.ndarray  # test accuracy
    dissimilarity: np.ndarray  # gradient dissimilarity

    def upward_moves(self, start: int = 10) -> np.ndarray:
        """Return the sum of the upward moves of the loss after round ``start``, [M]."""
        return np.diff(self.loss[start:], axis=0).clip(0).sum(0)

    def final_mean(self, name: str, num_rounds: int = 20) -> np.ndarray:
        """Return the mean of a curve over the last rounds, [M]."""
        return getattr(self, name)[-num_rounds:].mean(0)


def run_federations(
    algorithm: FedAvg,
    federations: list[SyntheticFederation],
    batches: SyntheticBatches,
    num_rounds: int,
    on_message: Callable[[str], None] = lambda message: None,
) -> Curves:
    """Train all federations with ten of thirty devices per round, weighted by examples.

    Args:
        algorithm: The algorithm.
        federations: The federations.
        batches: Their batches.
        num_rounds: Number of rounds.
        on_message: Function that receives progress messages.
    """
    simulator = ClientSimulator(len(batches.seeds), logistic_loss, batches, Sgd(0.01))
    params = glorot_params()
    group = torch.arange(len(federations)).repeat_interleave(DEVICES)
    client_states = ClientStateStore.replicate(algorithm.init_client_state(params), simulator.size)
    state = FederatedState(0, algorithm.init_server(params.take(torch.zeros(len(federations), dtype=torch.long))), client_states, group)
    evaluations = []
    for round in range(num_rounds):
        cohort = draw_cohort(federations, round)
        update = simulator.train(state, algorithm, cohort)
        state = FederatedState(
            round + 1, algorithm.server_update(state.server, update), state.client_states.update(cohort, update.client_state), group
        )
        evaluations.append({name: values.numpy() for name, values in evaluate_models(state.server.params, batches).items()})
        on_message(f"{type(algorithm).__name__} round {round + 1}/{num_rounds}: loss {evaluations[-1]['loss'].mean():.3f}")
    return Curves(**{name: np.stack([row[name] for row in evaluations]) for name in evaluations[0]})


def synthetic_results(
    seeds: int = 3, num_rounds: int = 100, on_message: Callable[[str], None] = lambda message: None
) -> Iterable[Expectation]:
    """Check AT-1 and AT-3 with at most 200 examples per device.

    Args:
        seeds: Number of seeds of each data set.
        num_rounds: Number of rounds.
        on_message: Function that receives progress messages.
    """
    federations = [SyntheticFederation(alpha, seed) for alpha in ALPHAS.values() for seed in range(seeds)]
    batches = make_batches(federations)
    rows = {name: slice(index * seeds, (index + 1) * seeds) for index, name in enumerate(ALPHAS)}
    algorithms = FedAvg(), FedProx(mu=1.0), Scaffold()
    fedavg, fedprox, scaffold = (run_federations(algorithm, federations, batches, num_rounds, on_message) for algorithm in algorithms)
    iid, skewed = rows["IID"], rows["(1,1)"]
    mean = fedavg.final_mean("dissimilarity")
    dissimilarity = np.stack([mean[rows[name]] for name in ALPHAS])
    yield expect_every_seed(
        "AT-1 i",
        "gradient dissimilarity on IID, (0,0), (0.5,0.5) and (1,1), mean over the last 20 rounds",
        "increasing",
        dissimilarity.mean(1),
        lambda values: np.diff(values) > 0,
    )
    gap = fedprox.loss[-1, iid] - fedavg.loss[-1, iid]
    yield expect_every_seed("AT-1 ii", "IID: final loss, FedProx mu=1 - FedAvg", "> 0.15", gap, lambda values: values > 0.15)
    yield expect_every_seed(
        "AT-1 iii",
        "(1,1): upward moves of the loss, FedAvg - FedProx mu=1",
        "> 0.1",
        fedavg.upward_moves()[skewed] - fedprox.upward_moves()[skewed],
        lambda values: values > 0.1,
    )
    gain = fedprox.final_mean("accuracy")[skewed] - fedavg.final_mean("accuracy")[skewed]
    yield expect_accuracy_gain(
        UNUSED_SEEDS, num_rounds, on_message, f"; reported, not judged: seeds 0 to {seeds - 1} {format_values(gain)}"
    )
    straggling = federations[skewed]
    kept_batches, dropped_batches = (make_batches(straggling, StragglingBatches, use_partial_work=use) for use in (True, False))
    dropped, partial, partial_prox = (
        run_federations(algorithm, straggling, data, num_rounds, on_message).final_mean("accuracy")
        for algorithm, data in ((FedAvg(), dropped_batches), (FedAvg(), kept_batches), (FedProx(mu=1.0), kept_batches))
    )
    yield expect_every_seed(
        "AT-1 v",
        "(1,1), 90 % stragglers: accuracy, FedProx mu=1 with partial work - FedAvg that drops stragglers",
        "> 0.1",
        partial_prox - dropped,
        lambda values: values > 0.1,
    )
    yield expect_every_seed(
        "AT-1 v",
        "the same, FedAvg with partial work (mu=0) - FedAvg that drops stragglers",
        "> 0",
        partial - dropped,
        lambda values: values > 0,
    )
    yield expect_every_seed(
        "AT-3 vi",
        "IID: |SCAFFOLD - FedAvg| in loss, last 20 rounds",
        "< 0.02",
        np.abs(scaffold.final_mean("loss")[iid] - fedavg.final_mean("loss")[iid]),
        lambda values: values < 0.02,
    )
    yield expect_every_seed(
        "AT-3 vii",
        "(1,1): loss, FedAvg - SCAFFOLD, last 20 rounds",
        "> 0.1",
        fedavg.final_mean("loss")[skewed] - scaffold.final_mean("loss")[skewed],
        lambda values: values > 0.1,
    )


def expect_accuracy_gain(
    seeds: Iterable[int], num_rounds: int = 100, on_message: Callable[[str], None] = lambda message: None, note: str = ""
) -> Expectation:
    """Check AT-1 iv: the gain in accuracy of FedProx over FedAvg, mean of the last 20 rounds, over seeds.

    The paper's own figure shows losses only.
    """
    federations = [SyntheticFederation(1.0, seed) for seed in seeds]
    batches = make_batches(federations)
    fedavg, fedprox = (
        run_federations(algorithm, federations, batches, num_rounds, on_message).final_mean("accuracy")
        for algorithm in (FedAvg(), FedProx(mu=1.0))
    )
    description = f"(1,1): accuracy, FedProx mu=1 - FedAvg, seeds {federations[0].seed} to {federations[-1].seed}"
    return expect_positive_mean("AT-1 iv", description, fedprox - fedavg, note)


def native_size_results(num_rounds: int = 60, on_message: Callable[[str], None] = lambda message: None) -> Iterable[Expectation]:
    """Check AT-1 with all examples of seed 0. The instability of FedAvg comes largely from quantity skew times 20 epochs."""
    federations = [SyntheticFederation(1.0, 0, max_examples=10**9)]
    batches = make_batches(federations)
    fedavg, fedprox = (
        run_federations(algorithm, federations, batches, num_rounds, on_message) for algorithm in (FedAvg(), FedProx(mu=1.0))
    )
    yield expect_every_seed(
        "AT-1 full",
        "(1,1), native sizes: final loss, FedAvg - FedProx mu=1",
        "> 0.1",
        fedavg.loss[-1] - fedprox.loss[-1],
        lambda values: values > 0.1,
    )
    yield expect_every_seed(
        "AT-1 full",
        "(1,1), native sizes: upward moves of the loss, FedAvg - FedProx mu=1",
        "> 0.1",
        fedavg.upward_moves() - fedprox.upward_moves(),
        lambda values: values > 0.1,
    )


MessageCallback = Callable[[str], None]


def published_results(on_message: MessageCallback) -> Iterable[Expectation]:
    """Check AT-1 to AT-7, the synthetic data with at most 200 examples per device, which takes minutes."""
    yield from closed_forms()
    yield from synthetic_results(on_message=on_message)


RESULT_SETS: dict[str, Callable[[MessageCallback], Iterable[Expectation]]] = {
    "quick": lambda on_message: closed_forms(),
    "published": published_results,
    "native": lambda on_message: native_size_results(on_message=on_message),
}
