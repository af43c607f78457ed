"""Test the stored state: only changes are written, and a process killed at any time leaves a complete state."""

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
from fedrift.storage.checkpoint import Checkpoint, find_changed, flatten_state, get_layout, load_checkpoint, pack_tree, unpack_tree
from fedrift.storage.tensors import SlotFile

SIZE, COHORT = 40, 3
PARAMS = Tree({"z.B": torch.zeros(1, 4, 2), "a.A": torch.ones(1, 2, 3)})


def first_state(size: int = SIZE) -> FederatedState:
    return init_state(Scaffold(), PARAMS, size)


def next_state(state: FederatedState) -> FederatedState:
    """Return the state after another round: the control variates of a cohort and of the server have changed."""
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
    """The number of records that each save wrote."""
    counts, write = [], SlotFile.write
    monkeypatch.setattr(SlotFile, "write", lambda self, records: (counts.append(len(records)), write(self, records))[1])
    return counts


def test_a_save_writes_only_changed_clients_and_the_file_size_is_bounded(run, written):
    checkpoint, state = Checkpoint(run), first_state()
    checkpoint.save(state)
    assert written == [1]  # all clients share their initial state
    for _ in range(100):
        state = next_state(state)
        checkpoint.save(state)
        assert same(load_checkpoint(run, first_state()), state)
    assert written == [1, *[COHORT] * 100]
    record = len(pack_tree(state.client_states.states[0]))
    assert run.client_state_path.stat().st_size <= (SIZE + COHORT) * record
    assert sorted(path.name for path in run.folder.iterdir()) == ["client_states.rows", "state.safetensors"]
    checkpoint.save(replace(state, round=state.round + 1))  # no client state changed
    assert written == [1, *[COHORT] * 100]


def test_a_resumed_process_writes_only_changes_and_shared_states_stay_shared(run, written):
    state = first_state()
    Checkpoint(run).save(state)
    checkpoint = Checkpoint(run)
    back = checkpoint.load(first_state())
    assert (
        back.client_states.num_bytes() == state.client_states.num_bytes() and len({id(client) for client in back.client_states.states}) == 1
    )
    state = back
    for _ in range(3):  # rounds between the two saves
        state = next_state(state)
    checkpoint.save(state)
    assert written == [1, len(find_changed(back.client_states.states, state.client_states.states))] and COHORT < written[1] <= 3 * COHORT
    assert same(load_checkpoint(run, first_state()), state)


@pytest.mark.parametrize("at", range(8))
def test_a_process_killed_at_any_write_leaves_the_previous_or_the_new_state(run, monkeypatch, at):
    """After the kill no code of the process runs, not even cleanup."""
    checkpoint, states = Checkpoint(run), [first_state()]
    checkpoint.save(states[0])
    for _ in range(5):
        states.append(next_state(states[-1]))
        checkpoint.save(states[-1])
    states.append(next_state(states[-1]))
    calls = []

    def dying(name, do):
        def call(*args, **options):
            calls.append(name)
            if len(calls) > at:
                if name == "write" and len(calls) == at + 1:
                    do(args[0], bytes(args[1])[: len(args[1]) // 2])  # half of it has been written
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
        assert len(calls) >= min(at + 1, 7)  # three records and their flush; flush and rename of the state, and flush of its folder
    again = Checkpoint(run)
    found = again.load(first_state())
    assert same(found, states[-2]) or same(found, states[-1])
    for expected in [*states[found.round + 1 :], next_state(states[-1])]:  # the round is repeated and the run continues
        again.save(expected)
        assert same(load_checkpoint(run, first_state()), expected)


def test_the_stored_state_is_read_back_bit_for_bit_with_types_and_alignment(run):
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


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("harm", [flip_bit, truncate_file, Path.unlink, replace_by_folder])
def test_damaged_client_states_are_refused_in_one_line(run, harm):
    checkpoint = Checkpoint(run)
    checkpoint.save(next_state(first_state(COHORT)))
    harm(run.client_state_path)
    with pytest.raises(UserError, match=r"client_states\.rows") as error:
        load_checkpoint(run, first_state(COHORT))
    assert "\n" not in str(error.value)


def test_files_of_different_rounds_are_never_combined(run, tmp_path):
    """An older server state with newer client states is refused, and client states without a server state are ignored."""
    checkpoint, state = Checkpoint(run), next_state(first_state())
    checkpoint.save(state)
    old = run.state_path.read_bytes()
    for _ in range(30):  # all slots have been overwritten by then
        state = next_state(state)
        checkpoint.save(state)
    run.state_path.write_bytes(old)
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(run, first_state())
    run.state_path.unlink()
    assert load_checkpoint(run, first_state()) is None
    fresh = first_state()
    Checkpoint(run).save(fresh)
    assert same(load_checkpoint(run, first_state()), fresh)
    assert run.client_state_path.stat().st_size == len(pack_tree(fresh.client_states.states[0]))


def test_a_state_of_another_process_is_not_overwritten(run, monkeypatch):
    state = next_state(first_state())
    Checkpoint(run).save(state)

    def killed(*said):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedrift.storage.checkpoint.save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(run).save(next_state(state))
    assert same(load_checkpoint(run, first_state()), state)


def test_clients_without_state_need_no_file(run):
    state = init_state(FedAvg(), PARAMS, SIZE)
    Checkpoint(run).save(state)
    assert [path.name for path in run.folder.iterdir()] == ["state.safetensors"]
    assert same(load_checkpoint(run, state), state) and not load_checkpoint(run, state).client_states


def test_a_broadcast_tensor_of_one_element_can_be_stored():
    """torch 2.13 treats a tensor of one element and stride 0 as contiguous, but cannot view it as bytes."""
    tree = Tree(gate=torch.empty_strided((1,), (0,), dtype=torch.float64).fill_(3.0), x=torch.arange(4.0).view(2, 2).t())
    back = unpack_tree(pack_tree(tree), get_layout(tree))
    assert all(torch.equal(back[name], leaf) for name, leaf in tree.items())
