"""Test that Flower's strategies can use fedrift's clients, and that fedrift's server can use plain Flower clients."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam as FlowerAdam
from flwr.serverapp.strategy import FedAvg as FlowerAvg
from flwr.serverapp.strategy import FedProx as FlowerProx

from fedrift.algorithms import Centralized, FedAvg, FedNova, FedProx, FedSGD, QFedAvg, Scaffold
from fedrift.algorithms.aggregators import FedEx, RoLoRA
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Adam
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state
from fedrift.flower.client_pool import FlowerClientPool
from tests.flower.loopback import NODE, Loopback, make_nodes, run_over_flower
from tests.laws.federation import data, loss, params, train


class Net(torch.nn.Module):
    """The model of the test federation as a torch module."""

    def __init__(self) -> None:
        super().__init__()
        for name, leaf in params(torch.float32).items():
            self.register_parameter(name.replace(".", "_"), torch.nn.Parameter(leaf[0]))


def make_plain_client(deal) -> ClientApp:
    """Return a ClientApp as in Flower's documentation: it loads the arrays, trains, and answers with arrays and metrics."""
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        partition = context.node_config["partition-id"]
        model = Net()
        state = msg.content["arrays"].to_torch_state_dict()
        model.load_state_dict({name.replace(".", "_"): leaf for name, leaf in state.items()})
        optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"])
        total = 0.0
        for batch in deal(0, torch.tensor([partition])):
            optimizer.zero_grad()
            named = Tree({name: model.get_parameter(name.replace(".", "_")).unsqueeze(0) for name in state})
            value = loss(named, batch).sum()
            value.backward()
            optimizer.step()
            total += value.item()
        end = OrderedDict((name, model.get_parameter(name.replace(".", "_")).detach()) for name in state)
        metrics = MetricRecord({"train_loss": total / 3, "num-examples": int(3 * deal.weight[partition])})
        return Message(RecordDict({"arrays": ArrayRecord(end), "metrics": metrics}), reply_to=msg)

    return app


def make_plain_nodes(deal):
    app = make_plain_client(deal)
    return {NODE + k: (app, Context(1, NODE + k, {"partition-id": k, "num-partitions": 5}, RecordDict(), {})) for k in range(5)}


@pytest.mark.parametrize(
    "strategy, ours",
    [(FlowerAvg, FedAvg()), (FlowerAvg, FedProx(mu=0.1)), (FlowerAdam, FedAvg(server_optimizer=Adam(0.05, (0.9, 0.99), 1e-3)))],
    ids=str,
)
def test_an_unmodified_strategy_works_with_fedrift_clients(strategy, ours, tmp_path):
    deal = data(dtype=torch.float32)
    known = {"eta": 0.05, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3} if strategy is FlowerAdam else {}
    grid = Loopback(make_nodes(deal, ours, tmp_path))
    first = ArrayRecord({name: Array(leaf[0].numpy()) for name, leaf in params(torch.float32).items()})
    result = strategy(fraction_evaluate=0.0, min_available_nodes=5, **known).start(grid, first, num_rounds=3)
    here = train(ours, deal, until=3)[-1].after.server.params
    for name, leaf in here.items() if strategy is FlowerAvg else ():  # Flower's FedAdam starts at v = 0 and corrects its bias
        found = torch.from_numpy(result.arrays[name].numpy()).to(leaf)
        assert torch.allclose(found, leaf[0], atol=1e-5), name
    assert result.train_metrics_clientapp[3]["train_loss"] < result.train_metrics_clientapp[1]["train_loss"]


def test_a_strategy_that_sends_only_a_model_is_refused_by_scaffold_clients(tmp_path):
    grid = Loopback(make_nodes(data(dtype=torch.float32), Scaffold(), tmp_path))
    first = ArrayRecord({name: Array(leaf[0].numpy()) for name, leaf in params(torch.float32).items()})
    result = FlowerAvg(fraction_evaluate=0.0, min_available_nodes=5).start(grid, first, num_rounds=1)
    assert not result.arrays


@pytest.mark.parametrize(
    ("strategy", "ours", "message"),
    [
        (FlowerProx(proximal_mu=10.0), FedAvg(), "asks for proximal-mu=10.0, and FedAvg of this client has mu=0"),
        (FlowerProx(proximal_mu=10.0), FedProx(mu=1.0), "asks for proximal-mu=10.0, and FedProx of this client has mu=1"),
        (FlowerAvg(), FedSGD(), "exchanges only a model, and FedSGD needs more"),
        (FlowerProx(proximal_mu=10.0), FedProx(mu=10.0), ""),
        (FlowerProx(proximal_mu=0.0), FedAvg(), ""),
    ],
    ids=["FedAvg", "another mu", "FedSGD", "equal mu", "mu 0"],
)
def test_clients_that_do_not_train_as_the_strategy_asks_refuse(strategy, ours, message, tmp_path):
    grid = Loopback(make_nodes(data(dtype=torch.float32), ours, tmp_path))
    first = ArrayRecord({name: Array(leaf[0].numpy()) for name, leaf in params(torch.float32).items()})
    messages = strategy.configure_train(1, first, ConfigRecord(), grid)
    replies = grid.send_and_receive(messages)
    assert replies and {reply.has_error() for reply in replies} == {bool(message)}
    assert not message or message in replies[0].error.reason


def test_the_fedrift_server_works_with_plain_flower_clients(tmp_path):
    deal = data(dtype=torch.float32)
    over = run_over_flower(FedAvg(), deal, tmp_path, grid=Loopback(make_plain_nodes(deal)), plain_clients=True, lr_at=lambda round: 0.05)
    here = train(FedAvg(), deal)
    for name, leaf in here[-1].after.server.params.items():
        assert torch.allclose(over[-1].after.server.params[name], leaf, atol=1e-5)
    assert torch.equal(over[-1].update.weight, here[-1].update.weight)
    assert torch.allclose(over[-1].update.loss[:, 1], here[-1].update.loss.mean(1), atol=1)  # the client reports its own mean loss


def test_server_optimizers_work_with_plain_flower_clients(tmp_path):
    deal, algorithm = data(dtype=torch.float32), FedAvg(server_optimizer=Adam(0.05))
    over = run_over_flower(algorithm, deal, tmp_path, grid=Loopback(make_plain_nodes(deal)), plain_clients=True, lr_at=lambda round: 0.05)
    here = train(algorithm, deal)
    for name, leaf in here[-1].after.server.params.items():
        assert torch.allclose(over[-1].after.server.params[name], leaf, atol=1e-5)


REFUSED_BY_PLAIN_CLIENTS = {
    "exchange only a model with the server, and Scaffold needs more": Scaffold(),
    "exchange only a model with the server, and FedSGD needs more": FedSGD(),
    "exchange only a model with the server, and FedAvg with the aggregator FedEx needs more": FedAvg(aggregator=FedEx()),
    "take the local steps of FedAvg, and FedProx needs more": FedProx(mu=10.0),
    "take the local steps of FedAvg, and Centralized needs more": Centralized(),
    "do not tell their local steps and losses .* and QFedAvg needs more": QFedAvg(),
    "do not tell their local steps and losses .* and FedNova needs more": FedNova(),
    "train all parameters, also m.A, and FedAvg with the aggregator RoLoRA needs more": FedAvg(aggregator=RoLoRA()),
}


@pytest.mark.parametrize("message", REFUSED_BY_PLAIN_CLIENTS)
def test_algorithms_that_plain_clients_cannot_run_are_refused(message):
    algorithm = REFUSED_BY_PLAIN_CLIENTS[message]
    state = init_state(algorithm, Tree({"m.A": torch.zeros(1, 2, 3), "m.B": torch.zeros(1, 3, 2)}), 2)
    pool = FlowerClientPool(2, Loopback({}), plain_clients=True, round_timeout_s=0.0)
    with pytest.raises(UserError, match=message):
        pool.train(state, algorithm, torch.arange(2))


def test_plain_clients_have_no_tokens_and_can_have_equal_weights(tmp_path):
    deal = data(dtype=torch.float32)
    options = {"plain_clients": True, "lr_at": lambda round: 0.05, "until": 1}
    by_examples, uniform = (
        run_over_flower(FedAvg(), deal, tmp_path, grid=Loopback(make_plain_nodes(deal)), uniform_weights=flag, **options)[0].update
        for flag in (False, True)
    )
    assert by_examples.tokens.isnan().all() and len(by_examples.weight.unique()) > 1
    assert uniform.weight.tolist() == [float(weight > 0) for weight in by_examples.weight.tolist()]


def numpy_header(shape: tuple[int, ...]) -> bytes:
    """Return numpy's header for a shape, without the data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue() + b"0" * 16


FALSE_ARRAYS = {
    "8 TB": lambda data: numpy_header((2 * 10**12,)),
    "truncated": lambda data: data[:-3],
    "too large": lambda data: data + b"0" * 10**6,
    "no array": lambda data: b"x" * len(data),
}


@pytest.mark.parametrize("lie", FALSE_ARRAYS)
def test_false_array_headers_of_a_plain_client_are_refused(lie, tmp_path):
    deal = data(dtype=torch.float32)

    def meddle(sent, answer):
        if sent.metadata.dst_node_id == NODE + 1:
            arrays = answer.content["arrays"]
            old = arrays["h"]
            arrays["h"] = Array(dtype=old.dtype, shape=old.shape, stype=old.stype, data=FALSE_ARRAYS[lie](old.data))
        return [answer]

    done = run_over_flower(FedAvg(), deal, tmp_path, grid=Loopback(make_plain_nodes(deal), meddle), plain_clients=True, until=1)[0]
    assert done.update.failed.tolist() == [False, True, False, False, False]
    assert done.update.notes[1].startswith("its result is not usable: h ")
