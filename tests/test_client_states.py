"""Test the store of client states: rows are read and written like those of one tensor, and equal rows share memory."""

from __future__ import annotations

import pytest
import torch

from fedrift.algorithms import Scaffold
from fedrift.core.tree import Tree
from fedrift.core.types import ClientStateStore
from fedrift.engine.loop import init_state
from tests.laws.federation import SUBJECTS, data, train


def tree(size: int, at: float = 0.0) -> Tree:
    return Tree(a=torch.arange(size * 6.0).view(size, 2, 3) + at, b=torch.arange(size * 1.0).view(size, 1).double() - at)


def same(one: Tree, other: Tree) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(leaf, other[name]) and leaf.dtype == other[name].dtype for name, leaf in one.items()
    )


def test_the_store_reads_and_writes_like_one_large_tree():
    plain, memory = tree(5), ClientStateStore.from_rows(tree(5), 5)
    for cohort in ([1, 3], [4], [0, 2, 4], []):
        who = torch.tensor(cohort, dtype=torch.long)
        new = tree(len(cohort), at=10.0 + sum(cohort))
        plain, memory = plain.index_update(who, new), memory.update(who, new)
        assert same(memory.gather_all(), plain)
    assert same(memory.gather(torch.tensor([4, 1])), plain.take(torch.tensor([4, 1])))
    assert same(memory.gather(slice(2, 4)), plain.take(slice(2, 4)))
    assert len(memory) == 5 and memory


def test_an_update_copies_the_rows_of_the_cohort_only():
    before = ClientStateStore.replicate(tree(1), 1000)
    rows = tree(2, at=5.0)
    after = before.update(torch.tensor([7, 9]), rows)
    rows["a"].zero_()  # the update may be used further
    assert same(before.gather(torch.tensor([7])), tree(1)) and same(after.gather(torch.tensor([7, 9])), tree(2, at=5.0))
    changed = [client for client in range(1000) if after.states[client] is not before.states[client]]
    assert changed == [7, 9]
    assert after.num_bytes() == 3 * before.num_bytes() == 3 * (6 * 4 + 8)
    held = {leaf.untyped_storage().nbytes() for client in (7, 9) for leaf in after.states[client].values()}
    assert held == {24, 8}  # no view of the cohort's rows, which would keep all of them in memory


def test_client_states_can_be_empty():
    memory = ClientStateStore.from_rows(Tree(), 3)
    assert not memory and len(memory) == 3 and memory.gather(torch.tensor([1])) == Tree() == memory.gather_all()
    assert memory.update(torch.tensor([1]), Tree()).states == memory.states and memory.num_bytes() == 0


def test_all_clients_share_the_initial_row():
    state = init_state(Scaffold(), tree(1), 50)
    assert len(state.client_states) == 50 and not state.client_states.gather_all()["a"].any()
    assert state.client_states.num_bytes() == 6 * 4 + 8


@pytest.mark.parametrize("name", [name for name, one in SUBJECTS.items() if not one.one_client_per_model and name != "AFL"])
def test_a_round_reads_and_writes_only_the_states_of_its_cohort(monkeypatch, name):
    """This includes the round loop and the round metrics of the algorithm; AFL needs all clients in every round."""
    algorithm, read = SUBJECTS[name], []
    rows = ClientStateStore.gather
    monkeypatch.setattr(
        ClientStateStore,
        "gather",
        lambda self, index: read.append(len(self.states[index]) if isinstance(index, slice) else len(index)) or rows(self, index),
    )

    def count_rows(size: int) -> list[int]:
        rounds = train(algorithm, data().of([client % 5 for client in range(size)]), until=1, cohort=2)
        state = rounds[-1].after  # values computed once before the first round exist already
        read.clear()
        done = train(algorithm, data().of([client % 5 for client in range(size)]), until=2, cohort=2, state=state)[-1]
        algorithm.round_metrics(done)
        kept = sum(new is not old for new, old in zip(done.after.client_states.states, done.before.client_states.states, strict=True))
        return [sum(read), max(read), kept]

    few, many = count_rows(5), count_rows(60)
    assert few == many and many[1] <= 2 and many[2] <= 2
