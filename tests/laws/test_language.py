"""Test the laws of failures on a language model, for every algorithm and trainable.

The small experiment has three clients and its own model; slow tests use ``pocket``. Some clients' batches are made faulty.
``tests/test_run.py`` tests falling loss and resuming for the same pairs in whole runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from fedrift.algorithms import FedAvg
from fedrift.core.tree import Tree
from fedrift.core.types import FederatedState, RoundResult
from fedrift.engine.build import RunContext, build_run
from fedrift.engine.loop import init_state, run_rounds
from fedrift.simulation import ClientSimulator
from tests.pairs import PAIRS, TUNES, algorithm
from tests.small_experiment import experiment, make_cache

from .federation import same


@pytest.fixture(scope="module", params=["tiny", pytest.param("pocket", marks=pytest.mark.slow)])
def settings(request, tmp_path_factory) -> dict[str, RunContext]:
    folder = tmp_path_factory.mktemp("language")
    shelf = make_cache(folder)
    asked = [
        "training.client_weighting=uniform",
        "evaluation.blocks_per_domain=1",
        "evaluation.final_blocks_per_domain=0",
        *["model=pocket"] * (request.param == "pocket"),
    ]
    return {name: build_run(experiment(folder, f"trainable={tune}", *asked), shelf) for name, tune in TUNES.items()}


@dataclass(frozen=True, eq=False)
class FaultyBatches:
    """Batches of a simulator of which some clients get none or have NaN losses."""

    batches: object
    broken: frozenset[int] = frozenset()
    empty: frozenset[int] = frozenset()

    def __call__(self, round: int, cohort: Tensor):
        for batch in self.batches(round, cohort):
            keep = torch.tensor([k not in self.empty for k in cohort[batch["rows"]].tolist()])
            if not keep.any():
                return
            batch = {name: value[keep] for name, value in batch.items()}
            who = cohort[batch["rows"]].tolist()
            yield {**batch, "factor": torch.tensor([torch.nan if k in self.broken else 1.0 for k in who])}


def with_faulty_clients(client_pool: ClientSimulator, broken: set[int] = frozenset(), empty: set[int] = frozenset()) -> ClientSimulator:
    plain = client_pool.loss_fn
    return replace(
        client_pool,
        batches=FaultyBatches(client_pool.batches, frozenset(broken), frozenset(empty)),
        loss_fn=lambda params, batch: plain(params, batch) * batch["factor"],
    )


def train(client_pool: ClientSimulator, rule: FedAvg, state: FederatedState | None, params: Tree, until: int) -> list[RoundResult]:
    state = state or init_state(rule, params, client_pool.size)
    return list(run_rounds(state, client_pool, rule, num_rounds=until, cohort_size=client_pool.size, seed=0))


@pytest.mark.sample(25)
@pytest.mark.parametrize(("name", "tune"), PAIRS)
def test_failed_and_empty_clients_and_rounds_change_nothing_else(settings, name, tune):
    """A client with NaN is recorded and counts as absent, a client without data changes nothing, and a round without clients changes
    nothing.
    """
    setting, rule = settings[tune], algorithm(name)
    client_pool, params = setting.simulator, setting.initial_state.server.params
    broken = train(with_faulty_clients(client_pool, broken={1}), rule, None, params, 2)
    empty = train(with_faulty_clients(client_pool, empty={1}), rule, None, params, 2)
    for one, other in zip(broken, empty, strict=True):
        assert one.update.failed.tolist() == [False, True, False]
        assert one.update.weight[1] == 0 and one.update.delta.is_finite().all()
        assert not other.update.failed.any()
        assert other.update.steps[1] == 0
    assert same(broken[-1].after, empty[-1].after)
    assert all(leaf.isfinite().all() for leaf in broken[-1].after.server.params.values())

    before = broken[-1].after
    (lost,) = train(with_faulty_clients(client_pool, broken={0, 1, 2}), rule, before, params, 3)
    assert lost.update.failed.all()
    assert same(replace(before, round=3), lost.after)
    assert not any(leaf.any() for leaf in lost.after.server_delta.values())


@pytest.mark.parametrize("tune", TUNES)
def test_a_mean_that_includes_failed_clients_is_detected(settings, tune):
    """The injected bug keeps failed clients in the mean."""

    @dataclass(frozen=True)
    class IncludesFailedClients(FedAvg):
        def server_update(self, server, update):
            delta = update.delta.map(lambda leaf: leaf.index_fill(0, update.failed.nonzero().flatten(), torch.nan))
            return super().server_update(server, replace(update, delta=delta, weight=torch.ones_like(update.weight)))

    setting = settings[tune]
    done = train(with_faulty_clients(setting.simulator, broken={1}), IncludesFailedClients(), None, setting.initial_state.server.params, 1)[
        -1
    ]
    assert not all(leaf.isfinite().all() for leaf in done.after.server.params.values())
