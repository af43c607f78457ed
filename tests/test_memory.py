"""What clients keep: rows are written and read like those of one large tree, and shared where nothing changed."""

from __future__ import annotations

import pytest
import torch

from fedrift.algorithms import Scaffold
from fedrift.memory import Memory
from fedrift.rounds import begin
from fedrift.tree import Tree
from tests.laws.federation import SUBJECTS, data, train


def tree(size: int, at: float = 0.0) -> Tree:
    return Tree(a=torch.arange(size * 6.0).view(size, 2, 3) + at, b=torch.arange(size * 1.0).view(size, 1).double() - at)


def same(one: Tree, other: Tree) -> bool:
    return one.keys() == other.keys() and all(torch.equal(leaf, other[name]) and leaf.dtype == other[name].dtype
                                              for name, leaf in one.items())


def test_it_reads_and_writes_as_one_large_tree_does():
    plain, memory = tree(5), Memory.of(tree(5), 5)
    for cohort in ([1, 3], [4], [0, 2, 4], []):
        who = torch.tensor(cohort, dtype=torch.long)
        new = tree(len(cohort), at=10.0 + sum(cohort))
        plain, memory = plain.put(who, new), memory.put(who, new)
        assert same(memory.whole(), plain)
    assert same(memory.rows(torch.tensor([4, 1])), plain.rows(torch.tensor([4, 1])))
    assert same(memory.rows(slice(2, 4)), plain.rows(slice(2, 4)))
    assert len(memory) == 5 and memory


def test_putting_writes_into_nothing_and_copies_the_cohort_only():
    before = Memory.alike(tree(1), 1000)
    rows = tree(2, at=5.0)
    after = before.put(torch.tensor([7, 9]), rows)
    rows["a"].zero_()  # the report may be used on
    assert same(before.rows(torch.tensor([7])), tree(1)) and same(after.rows(torch.tensor([7, 9])), tree(2, at=5.0))
    changed = [client for client in range(1000) if after.clients[client] is not before.clients[client]]
    assert changed == [7, 9]
    assert after.bytes() == 3 * before.bytes() == 3 * (6 * 4 + 8)
    held = {leaf.untyped_storage().nbytes() for client in (7, 9) for leaf in after.clients[client].values()}
    assert held == {24, 8}  # no view of the cohort's rows, which would keep them all


def test_clients_may_keep_nothing():
    memory = Memory.of(Tree(), 3)
    assert not memory and len(memory) == 3 and memory.rows(torch.tensor([1])) == Tree() == memory.whole()
    assert memory.put(torch.tensor([1]), Tree()).clients == memory.clients and memory.bytes() == 0


def test_a_fleet_begins_with_one_row_for_all():
    state = begin(Scaffold(), tree(1), 50)
    assert len(state.memory) == 50 and not state.memory.whole()["a"].any()
    assert state.memory.bytes() == 6 * 4 + 8


@pytest.mark.parametrize("name", [name for name, one in SUBJECTS.items() if not one.alone and name != "AFL"])
def test_a_round_reads_and_writes_what_its_cohort_keeps_however_many_clients_there_are(monkeypatch, name):
    """The loop and the algorithm's evidence; AFL needs all clients in every round."""
    algorithm, read = SUBJECTS[name], []
    rows = Memory.rows
    monkeypatch.setattr(Memory, "rows", lambda self, index: read.append(len(self.clients[index]) if isinstance(index, slice)
                                                                        else len(index)) or rows(self, index))

    def costs(size: int) -> list[int]:
        rounds = train(algorithm, data().of([client % 5 for client in range(size)]), until=1, cohort=2)
        state = rounds[-1].after  # what was computed once, before the first round, is there
        read.clear()
        done = train(algorithm, data().of([client % 5 for client in range(size)]), until=2, cohort=2, state=state)[-1]
        algorithm.evidence(done)
        kept = sum(new is not old for new, old in zip(done.after.memory.clients, done.before.memory.clients, strict=True))
        return [sum(read), max(read), kept]

    few, many = costs(5), costs(60)
    assert few == many and many[1] <= 2 and many[2] <= 2
