"""A small federation for the laws: five clients fit linear maps with adapters, a bias and an unused leaf.

Client k minimizes the mean squared error of X (W0 + s (base + B A))^T + h against Y_k. The federation is fast enough for hundreds of runs
and contains adapters, plain leaves and unused leaves.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import fedrift.algorithms
from fedrift.algorithms import FedAvg, aggregators
from fedrift.core import optimizers
from fedrift.core.optimizers import Optimizer, Sgd
from fedrift.core.random import torch_stream
from fedrift.core.tree import Tree
from fedrift.core.types import FederatedState, RoundResult
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator

SIZE, RANK, INPUTS, OUTPUTS, ROWS, SCALE = 5, 2, 3, 4, 6, 2.0
SERVERS = [
    Sgd(1.0, momentum=0.9),
    optimizers.SwaSgd(1.0, period=3, num_averaged=2),
    optimizers.Adam(0.05),
    optimizers.Yogi(0.05),
    optimizers.Adagrad(0.05),
]

SUBJECTS = {
    **{name: getattr(fedrift.algorithms, name)() for name in fedrift.algorithms.__all__},
    **{f"FedAvg-{type(server).__name__}": FedAvg(server_optimizer=server) for server in SERVERS},
    **{f"FedAvg-{name}": FedAvg(aggregator=getattr(aggregators, name)()) for name in aggregators.__all__},
}


def loss(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each client, ``[C]``."""
    idle = 0 * params["idle"].flatten(1).sum(1)
    return (predict(params, batch) - batch["y"]).square().flatten(1).mean(1) + idle


def predict(params: Tree, batch: dict[str, Tensor]) -> Tensor:
    """Return the predictions, ``[C, B, O]``."""
    weight = params["m.B"] @ params["m.A"]
    if "m.base" in params:
        weight = weight + params["m.base"]
    return batch["x"] @ (batch["w"] + SCALE * weight).mT + params["h"].unsqueeze(1)


def represent(params: Tree, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return representations ``[C, B, O + 1]``, which are never zero, and a mask that includes the whole batch."""
    z = torch.nn.functional.pad(predict(params, batch), (0, 1), value=1.0)
    return z, torch.ones(z.shape[:2], dtype=torch.bool)


def params(dtype: torch.dtype = torch.float64) -> Tree:
    draw = torch_stream(0, "params")
    return Tree(
        {
            "m.A": torch.randn(1, RANK, INPUTS, generator=draw, dtype=torch.float64).to(dtype),
            "m.B": torch.zeros(1, OUTPUTS, RANK, dtype=dtype),
            "h": torch.zeros(1, OUTPUTS, dtype=dtype),
            "idle": torch.ones(1, 2, 2, dtype=dtype),
        }
    )


@dataclass(frozen=True, eq=False)
class Data:
    """Regressions of N clients; ``steps`` and ``weight`` are per client, ``[N]``. Every step has its own inputs."""

    x: Tensor  # [N, S, B, I]
    y: Tensor  # [N, S, B, O]
    w: Tensor  # [O, I]
    steps: tuple[int, ...]
    weight: tuple[float, ...]

    def __call__(self, round: int, cohort: Tensor):
        count = torch.tensor(self.steps)[cohort]
        for step in range(int(count.max())):
            rows = (count > step).nonzero().flatten()
            who = cohort[rows]
            yield {
                "rows": rows,
                "x": self.x[who, step],
                "y": self.y[who, step],
                "w": self.w.expand(len(who), -1, -1),
                "weight": torch.tensor(self.weight)[who],
            }

    def of(self, order: list[int]) -> Data:
        return replace(
            self, x=self.x[order], y=self.y[order], steps=tuple(self.steps[k] for k in order), weight=tuple(self.weight[k] for k in order)
        )

    def edit(self, client: int, factor: float) -> Data:
        """Return the same data, with the targets of one client multiplied by a factor."""
        scale = torch.ones(len(self.y), 1, 1, 1, dtype=self.y.dtype)
        scale[client] = factor
        return replace(self, y=self.y * scale)


def data(
    steps: tuple[int, ...] = (3,) * SIZE,
    weight: tuple[float, ...] = (4.0, 1.0, 2.0, 3.0, 2.0),
    dtype: torch.dtype = torch.float64,
    same: bool = False,
) -> Data:
    draw = torch_stream(0, "data")
    own = torch.randn(SIZE, OUTPUTS, INPUTS, generator=draw, dtype=torch.float64)
    x = torch.randn(SIZE, 1 if same else 3, ROWS, INPUTS, generator=draw, dtype=torch.float64).expand(-1, 3, -1, -1)
    y = torch.einsum("nsbi,noi->nsbo", x, own) + 1
    made = Data(x.to(dtype), y.to(dtype), torch.zeros(OUTPUTS, INPUTS, dtype=dtype), steps, weight)
    return replace(made, x=made.x[[0] * len(steps)], y=made.y[[0] * len(steps)]) if same else made


def train(
    algorithm: FedAvg,
    dataset: Data,
    *,
    until: int = 3,
    cohort: int | None = None,
    state: FederatedState | None = None,
    optimizer: Optimizer = Sgd(0.05),
    **options,
) -> list[RoundResult]:
    size = len(dataset.steps)
    simulator = ClientSimulator(size, loss, dataset, optimizer, represent_fn=represent, **options)
    state = state or init_state(algorithm, params(dataset.x.dtype), size)
    return list(run_rounds(state, simulator, algorithm, num_rounds=until, cohort_size=cohort or size, seed=3))


def tensors(state: FederatedState) -> dict[str, Tensor]:
    """Return all tensors of a state by name."""
    server = state.server
    trees = {
        "params": server.params,
        "broadcast": server.broadcast,
        "opt_state": server.opt_state,
        "merged_base": server.merged_base,
        "client_states": state.client_states.gather_all(),
    }
    found = {f"{kind}/{name}": leaf for kind, tree in trees.items() for name, leaf in tree.items()}
    return {**found, "cluster_ids": state.cluster_ids}


def max_difference(one: FederatedState, other: FederatedState) -> float:
    """Return the largest difference between two states; NaN counts as infinite."""
    here, there = tensors(one), tensors(other)
    assert here.keys() == there.keys()
    gaps = [(leaf.double() - there[name].double()).abs() for name, leaf in here.items()]
    return max(gap.nan_to_num(torch.inf).max().item() for gap in gaps)


def same(one: FederatedState, other: FederatedState) -> bool:
    """Return whether two states are equal bit for bit."""
    here, there = tensors(one), tensors(other)
    return here.keys() == there.keys() and all(torch.equal(leaf, there[name]) for name, leaf in here.items())


def save_and_load(state: FederatedState) -> FederatedState:
    """Return the state after it was saved and loaded."""
    box = io.BytesIO()
    torch.save(state, box)
    box.seek(0)
    return torch.load(box, weights_only=False)
