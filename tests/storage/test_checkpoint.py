"""Test that a stored checkpoint is read back bit for bit, and that a failed write keeps the previous one."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedrift.core.errors import UserError
from fedrift.storage import Run, files, tensors
from fedrift.storage.tensors import load_tensors, read_metadata, save_tensors


def test_tensors_and_meta_read_back_bit_for_bit(tmp_path):
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 6, generator=draw)
    state = {
        "server.params.q": wide,
        "a.view": wide[1:, ::2],
        "turned": wide.T,
        "same": wide,
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "round": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "half": torch.randn(3, generator=draw).bfloat16(),
        "double": torch.randn(2, generator=draw).double(),
        "flag": torch.tensor([True, False]),
    }
    path = tmp_path / "state.safetensors"
    save_tensors(path, state, {"round": 3, "note": "ä"})
    back, meta = load_tensors(path)
    assert meta == {"round": 3, "note": "ä"}
    assert back.keys() == state.keys()
    for name, leaf in state.items():
        assert back[name].dtype == leaf.dtype and back[name].shape == leaf.shape
        torch.testing.assert_close(back[name], leaf, rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(back["nan"][1])


def test_equal_states_give_equal_files(tmp_path):
    state = {"b": torch.arange(3), "a": torch.ones(2)}
    for name in ("one", "two"):
        save_tensors(tmp_path / name, state, {"round": 1, "seed": 2})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_loaded_state_is_unchanged_when_its_file_is_replaced(tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.zeros(1000)}, {})
    first, _ = load_tensors(path)
    save_tensors(path, {"a": torch.ones(1000)}, {})
    assert first["a"].eq(0).all() and load_tensors(path)[0]["a"].eq(1).all()


def test_the_state_of_a_run_is_in_its_folder(tmp_path):
    run = Run(tmp_path, "r")
    save_tensors(run.state_path, {"a": torch.ones(1)}, {"round": 2})
    assert load_tensors(run.state_path)[1]["round"] == 2


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["system", "safetensors"])
def test_a_full_disk_keeps_the_previous_state(tmp_path, monkeypatch, error):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.zeros(3)}, {"round": 1})

    def half(_: object, part: Path, **__: object) -> None:
        part.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(tensors, "save_file", half)
    with pytest.raises(UserError, match=r"disk is full: .*state\.safetensors needs 4,\d+ bytes .*free in"):
        save_tensors(path, {"a": torch.ones(1000)}, {"round": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    assert load_tensors(path)[1] == {"round": 1}


def test_a_process_killed_while_writing_keeps_the_previous_state(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.zeros(3)}, {"round": 1})
    (tmp_path / ".state.safetensors.part").write_bytes(b"what the killed one had written")
    assert load_tensors(path)[1] == {"round": 1}
    save_tensors(path, {"a": torch.zeros(3)}, {"round": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_the_state_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    flush, replace = files.fsync_path, files.os.replace
    monkeypatch.setattr(files, "fsync_path", lambda path: (order.append(("flush", path.name)), flush(path)))
    monkeypatch.setattr(files.os, "replace", lambda old, new: (order.append(("replace", new.name)), replace(old, new)))
    save_tensors(tmp_path / "state", {"a": torch.zeros(3)}, {})
    assert order == [("flush", ".state.part"), ("replace", "state"), ("flush", tmp_path.name)]


def flip_bit(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_never_gives_other_numbers(tmp_path):
    path, state = tmp_path / "state.safetensors", {"a/q": torch.tensor([0.5, -2.0, 3.0]), "b": torch.tensor([7])}
    digest, refused = save_tensors(path, state, {"round": 3, "tensor_names": ["a/q", "b"]}), 0
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        path.write_bytes(flip_bit(content, bit))
        try:
            back, meta = load_tensors(path)
        except UserError as error:
            refused += "\n" not in str(error)
        else:
            assert meta["round"] == 3 and back.keys() == state.keys()
            assert all(torch.equal(back[name], state[name]) for name in state)
    assert refused > 7 * len(content)  # of 8 bits per byte; the others are spaces and the name of the digest
    path.write_bytes(flip_bit(content, 8 * len(content) - 3))
    with pytest.raises(UserError, match=r"is damaged: its contents do not match the digest.*--fresh"):
        load_tensors(path)
    path.write_bytes(content)
    assert read_metadata(path)[1] == digest and load_tensors(path, digest)
    with pytest.raises(UserError, match="is damaged"):
        load_tensors(path, "0" * 64)


def test_a_renamed_leaf_is_refused_and_a_state_of_an_older_version_is_read(tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"round": 3})
    leaves, (meta, digest) = load_file(path), read_metadata(path)
    save_file({"b": leaves["a"]}, path, metadata={"meta": json.dumps({**meta, "sha256": digest})})
    with pytest.raises(UserError, match="is damaged"):
        load_tensors(path)
    save_file(leaves, path, metadata={"meta": '{"round": 3}'})
    assert load_tensors(path)[1] == meta and read_metadata(path)[1] is None


def test_a_folder_instead_of_a_state_file_is_refused(tmp_path):
    (tmp_path / "state").mkdir()
    for ask in (lambda path: load_tensors(path), lambda path: read_metadata(path), lambda path: save_tensors(path, {}, {})):
        with pytest.raises(UserError, match="is a folder"):
            ask(tmp_path / "state")
    (tmp_path / ".other.part").mkdir()
    with pytest.raises(UserError, match=r"other\.part is a folder"):
        save_tensors(tmp_path / "other", {"a": torch.ones(1)}, {})


def test_a_folder_that_may_not_be_searched_is_told(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        save_tensors(tmp_path / "state", {"a": torch.ones(1)}, {})


@pytest.mark.parametrize("meta", ["[]", "3", "{", "[" * 100_000], ids=["list", "number", "torn", "deep"])
def test_invalid_metadata_is_refused(tmp_path, meta):
    save_file({"a": torch.ones(1)}, tmp_path / "state", metadata={"meta": meta})
    for ask in (load_tensors, read_metadata):
        with pytest.raises(UserError, match="is not a state"):
            ask(tmp_path / "state")


def test_a_file_that_is_not_a_state_is_refused_with_its_name(tmp_path):
    with pytest.raises(UserError, match="there is no state at"):
        load_tensors(tmp_path / "state.safetensors")
    (tmp_path / "state.safetensors").write_bytes(b"\x80\x04no")
    with pytest.raises(UserError, match="is not a state"):
        load_tensors(tmp_path / "state.safetensors")


def test_a_tensor_with_stride_zero_is_stored(tmp_path):
    kept = {"one": torch.tensor([3]).as_strided((1,), (0,)), "wide": torch.tensor([1.5]).expand(4), "none": torch.zeros(0, 2)}
    save_tensors(tmp_path / "state", kept, {"round": 1})
    found = load_tensors(tmp_path / "state")[0]
    assert all(torch.equal(found[name], leaf) for name, leaf in kept.items())
