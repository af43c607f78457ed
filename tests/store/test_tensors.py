"""The state on disk: every bit comes back, and a failed write leaves the one before."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fedrift.errors import UserError
from fedrift.store import Run, files, tensors
from fedrift.store.tensors import load_state, save_state


def test_tensors_and_meta_read_back_bit_for_bit(tmp_path):
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 6, generator=draw)
    state = {
        "server.params.q": wide, "a.view": wide[1:, ::2], "turned": wide.T, "same": wide,
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "round": torch.tensor(7), "none": torch.zeros(0, 3),
        "half": torch.randn(3, generator=draw).bfloat16(), "double": torch.randn(2, generator=draw).double(),
        "flag": torch.tensor([True, False]),
    }
    path = tmp_path / "state.safetensors"
    save_state(path, state, {"round": 3, "note": "ä"})
    back, meta = load_state(path)
    assert meta == {"round": 3, "note": "ä"}
    assert back.keys() == state.keys()
    for name, leaf in state.items():
        assert back[name].dtype == leaf.dtype and back[name].shape == leaf.shape
        torch.testing.assert_close(back[name], leaf, rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(back["nan"][1])


def test_the_same_state_is_the_same_file(tmp_path):
    state = {"b": torch.arange(3), "a": torch.ones(2)}
    for name in ("one", "two"):
        save_state(tmp_path / name, state, {"round": 1, "seed": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_loaded_state_stays_when_its_file_is_replaced(tmp_path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(1000)}, {})
    first, _ = load_state(path)
    save_state(path, {"a": torch.ones(1000)}, {})
    assert first["a"].eq(0).all() and load_state(path)[0]["a"].eq(1).all()


def test_a_state_of_a_run_lies_in_its_folder(tmp_path):
    run = Run(tmp_path, "r")
    save_state(run.state_path, {"a": torch.ones(1)}, {"round": 2})
    assert load_state(run.state_path)[1]["round"] == 2


FULL = [OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")]


@pytest.mark.parametrize("error", FULL, ids=["system", "safetensors"])
def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch, error):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(3)}, {"round": 1})

    def half(_: object, part: Path, **__: object) -> None:
        part.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(tensors, "save_file", half)
    with pytest.raises(UserError, match=r"disk is full: .*state\.safetensors needs 4,\d+ bytes .*free in"):
        save_state(path, {"a": torch.ones(1000)}, {"round": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    assert load_state(path)[1] == {"round": 1}


def test_a_process_killed_while_writing_leaves_the_state_before(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_state(path, {"a": torch.zeros(3)}, {"round": 1})
    (tmp_path / ".state.safetensors.part").write_bytes(b"what the killed one had written")
    assert load_state(path)[1] == {"round": 1}
    save_state(path, {"a": torch.zeros(3)}, {"round": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_the_state_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    order = []
    flush, replace = files.flush, files.os.replace
    monkeypatch.setattr(files, "flush", lambda path: (order.append(("flush", path.name)), flush(path)))
    monkeypatch.setattr(files.os, "replace",
                        lambda old, new: (order.append(("replace", new.name)), replace(old, new)))
    save_state(tmp_path / "state", {"a": torch.zeros(3)}, {})
    assert order == [("flush", ".state.part"), ("replace", "state"), ("flush", tmp_path.name)]


def test_what_is_no_state_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no state at"):
        load_state(tmp_path / "state.safetensors")
    (tmp_path / "state.safetensors").write_bytes(b"\x80\x04no")
    with pytest.raises(UserError, match="is not a state"):
        load_state(tmp_path / "state.safetensors")
