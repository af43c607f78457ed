"""The stored state: only what changed is written, a process killed at any moment leaves a whole state, and no other is read."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedrift.algorithms import FedAvg, Scaffold
from fedrift.core.errors import UserError
from fedrift.core.random import torch_stream
from fedrift.core.tree import Tree
from fedrift.core.types import FederatedState
from fedrift.engine.loop import init_state
from fedrift.storage import Run
from fedrift.storage.checkpoint import find_changed, flatten_state, get_layout, pack_tree, unpack_tree
from fedrift.storage.fork import Checkpoint, load_checkpoint
from fedrift.storage.tensors import SlotFile

SIZE, COHORT = 40, 3
PARAMS = Tree({"z.B": torch.zeros(1, 4, 2), "a.A": torch.ones(1, 2, 3)})


def first(size: int = SIZE) -> FederatedState:
    return init_state(Scaffold(), PARAMS, size)


def after(state: FederatedState) -> FederatedState:
    """The state a round later: a cohort has other controls, and so has the server."""
    draw = torch_stream(state.round, "state")
    who = torch.randperm(len(state.cluster_ids), generator=draw)[:COHORT].sort().values
    rows = PARAMS.map(lambda leaf: torch.randn(COHORT, *leaf.shape[1:], generator=draw))
    server = replace(state.server, params=state.server.params + 1.0)
    return replace(
        state,
        round=state.round + 1,
        server=server,
        client_states=state.client_states.update(who, rows),
        last_participation=torch.full((len(state.cluster_ids),), state.round),
    )


def same(one: FederatedState | None, two: FederatedState) -> bool:
    if one is None:
        return False
    here, there = flatten_state(one), flatten_state(two)
    return one.round == two.round and list(here) == list(there) and all(torch.equal(here[name], there[name]) for name in here)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "r")


@pytest.fixture
def written(monkeypatch):
    """How many records each save wrote."""
    counts, write = [], SlotFile.write
    monkeypatch.setattr(SlotFile, "write", lambda self, records: (counts.append(len(records)), write(self, records))[1])
    return counts


def test_a_save_writes_the_clients_that_changed_and_the_file_does_not_grow_without_end(run, written):
    checkpoint, state = Checkpoint(run), first()
    checkpoint.save(state)
    assert written == [1]  # all clients share what they begin with
    for _ in range(100):
        state = after(state)
        checkpoint.save(state)
        assert same(load_checkpoint(run, first()), state)
    assert written == [1, *[COHORT] * 100]
    record = len(pack_tree(state.client_states.states[0]))
    assert run.client_state_path.stat().st_size <= (SIZE + COHORT) * record
    assert sorted(path.name for path in run.folder.iterdir()) == ["client_states.rows", "state.safetensors"]
    checkpoint.save(replace(state, round=state.round + 1))  # nobody's memory changed
    assert written == [1, *[COHORT] * 100]


def test_a_process_that_resumes_writes_what_changed_only_and_what_clients_share_stays_shared(run, written):
    state = first()
    Checkpoint(run).save(state)
    checkpoint = Checkpoint(run)
    back = checkpoint.load(first())
    assert (
        back.client_states.num_bytes() == state.client_states.num_bytes() and len({id(client) for client in back.client_states.states}) == 1
    )
    state = back
    for _ in range(3):  # rounds between two saves
        state = after(state)
    checkpoint.save(state)
    assert written == [1, len(find_changed(back.client_states.states, state.client_states.states))] and COHORT < written[1] <= 3 * COHORT
    assert same(load_checkpoint(run, first()), state)


@pytest.mark.parametrize("at", range(8))
def test_a_process_killed_at_any_write_leaves_the_state_before_or_the_one_after(run, monkeypatch, at):
    """Nothing runs in the process after the kill, not even what tidies up."""
    checkpoint, states = Checkpoint(run), [first()]
    checkpoint.save(states[0])
    for _ in range(5):
        states.append(after(states[-1]))
        checkpoint.save(states[-1])
    states.append(after(states[-1]))
    calls = []

    def dying(name, do):
        def call(*args, **options):
            calls.append(name)
            if len(calls) > at:
                if name == "write" and len(calls) == at + 1:
                    do(args[0], bytes(args[1])[: len(args[1]) // 2])  # half of it is on the disk
                raise Killed(name)
            return do(*args, **options)

        return call

    class Killed(OSError):
        pass

    with monkeypatch.context() as dead:
        for name in ("write", "fsync", "replace"):
            dead.setattr(os, name, dying(name, getattr(os, name)))
        dead.setattr(Path, "unlink", dying("unlink", Path.unlink))
        with suppress(Killed, UserError):
            checkpoint.save(states[-1])
        assert len(calls) >= min(at + 1, 7)  # three records and their flush; the state's flush, its name, its folder's flush
    again = Checkpoint(run)
    found = again.load(first())
    assert same(found, states[-2]) or same(found, states[-1])
    for expected in [*states[found.round + 1 :], after(states[-1])]:  # the round is repeated, and the run goes on
        again.save(expected)
        assert same(load_checkpoint(run, first()), expected)


def test_what_is_stored_comes_back_bit_for_bit_with_its_types_and_aligned(run):
    odd = torch.tensor([0x7FC00001, -0x80000000, 1, 0x3F800001], dtype=torch.int32).view(torch.float32)
    leaves = Tree(
        {
            "z": odd.view(1, 4),
            "n": torch.tensor([[True]]),
            "a": torch.tensor([[1e-320, -0.0]], dtype=torch.float64),
            "none": torch.zeros(1, 0),
            "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        }
    )
    back = unpack_tree(pack_tree(leaves), get_layout(leaves))
    assert list(back) == list(leaves)
    for name, leaf in leaves.items():
        assert back[name].dtype == leaf.dtype and back[name].shape == leaf.shape
        assert pack_tree(Tree({name: back[name]})) == pack_tree(Tree({name: leaf}))
        assert back[name].data_ptr() % 16 == 0 and back[name].untyped_storage().nbytes() == leaf.nbytes


def broken_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [broken_bit, cut, Path.unlink, folder])
def test_a_memory_that_is_not_what_was_written_is_refused_in_one_line(run, harm):
    checkpoint = Checkpoint(run)
    checkpoint.save(after(first(COHORT)))
    harm(run.client_state_path)
    with pytest.raises(UserError, match=r"client_states\.rows") as error:
        load_checkpoint(run, first(COHORT))
    assert "\n" not in str(error.value)


def test_a_file_of_another_time_is_never_read(run, tmp_path):
    """An older state with a later memory is refused; a memory without a state is nobody's."""
    checkpoint, state = Checkpoint(run), after(first())
    checkpoint.save(state)
    old = run.state_path.read_bytes()
    for _ in range(30):  # by then every slot has been written over
        state = after(state)
        checkpoint.save(state)
    run.state_path.write_bytes(old)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(run, first())
    run.state_path.unlink()
    assert load_checkpoint(run, first()) is None
    fresh = first()
    Checkpoint(run).save(fresh)
    assert same(load_checkpoint(run, first()), fresh)
    assert run.client_state_path.stat().st_size == len(pack_tree(fresh.client_states.states[0]))


def test_a_state_that_the_process_did_not_read_is_not_written_over(run, monkeypatch):
    state = after(first())
    Checkpoint(run).save(state)

    def killed(*said):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedrift.storage.checkpoint.save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(run).save(after(state))
    assert same(load_checkpoint(run, first()), state)


def test_clients_without_a_memory_need_no_file(run):
    state = init_state(FedAvg(), PARAMS, SIZE)
    Checkpoint(run).save(state)
    assert [path.name for path in run.folder.iterdir()] == ["state.safetensors"]
    assert same(load_checkpoint(run, state), state) and not load_checkpoint(run, state).client_states


def test_one_element_that_was_broadcast_can_be_packed():
    """torch 2.13 counts a tensor of one element and stride 0 as contiguous, and cannot view it as bytes."""
    tree = Tree(gate=torch.empty_strided((1,), (0,), dtype=torch.float64).fill_(3.0), x=torch.arange(4.0).view(2, 2).t())
    back = unpack_tree(pack_tree(tree), get_layout(tree))
    assert all(torch.equal(back[name], leaf) for name, leaf in tree.items())
