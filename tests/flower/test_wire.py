"""Test that every message is read as agreed or refused with ``MessageRejected``, and that nothing else is raised."""

from __future__ import annotations

import io
import json
import pickle
from contextlib import suppress

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedrift.algorithms import FedAvg
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.flower.client import make_client_app, train_plain_round, train_round
from fedrift.flower.client_pool import parse_plain_reply
from fedrift.flower.wire import (
    HEADER_BYTES,
    MAX_TEXT_BYTES,
    MessageRejected,
    pack_message,
    read_array,
    read_int,
    read_metadata,
    read_number,
    read_trees,
    to_plain_arrays,
)
from tests.flower.loopback import EXPERIMENT, NODE, Loopback, client, transmit
from tests.laws.federation import data

EXPECTED_TREE = torch.arange(6.0).reshape(1, 2, 3)


def save_array(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def numpy_array(content: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=(2, 3), stype=stype, data=content)


def with_header(header: str, rest: bytes = b"0" * 24) -> bytes:
    """Return the bytes of an array with an arbitrary header."""
    text = header.encode("latin1").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + rest


@pytest.mark.parametrize(
    "array",
    [
        EXPECTED_TREE[0].numpy(),
        EXPECTED_TREE[0].numpy().astype("<f8"),
        EXPECTED_TREE[0].numpy().astype(">f4"),
        EXPECTED_TREE[0].numpy().astype("<f2"),
        np.asfortranarray(EXPECTED_TREE[0].numpy()),
    ],
    ids=lambda array: array.dtype.str,
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_numpy_array_is_read_as_the_agreed_leaf(array, version):
    found = read_array("h", numpy_array(save_array(array, version)), EXPECTED_TREE)
    assert torch.equal(found, EXPECTED_TREE) and found.dtype == EXPECTED_TREE.dtype


WRONG = {
    "16 bytes a number": save_array(np.zeros((2, 3), dtype=np.longdouble)),
    "<f16": with_header("{'descr': '<f16', 'fortran_order': False, 'shape': (2, 3), }", b"0" * 96),
    "whole numbers": save_array(np.zeros((2, 3), dtype=np.int32)),
    "complex": save_array(np.zeros((2, 3), dtype=np.complex64)),
    "truth values": save_array(np.zeros((2, 3), dtype=bool)),
    "dates": save_array(np.zeros((2, 3), dtype="<M8[s]")),
    "text": save_array(np.zeros((2, 3), dtype="<U2")),
    "fields": save_array(np.zeros((2, 3), dtype=[("a", "<f4")])),
    "objects": with_header("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }", pickle.dumps(1)),
    "another shape": save_array(np.zeros((3, 2), dtype=np.float32)),
    "no axes": save_array(np.zeros((), dtype=np.float32)),
    "negative": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3), }"),
    "8 TB": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000000,), }"),
    "a shape of text": with_header("{'descr': '<f4', 'fortran_order': False, 'shape': ('2', '3'), }"),
    "a call": with_header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (2, 3), }"),
    "nested": with_header("(" * 110),
    "unclosed": with_header("{'descr': '<f4'"),
    "no keys": with_header("{}"),
    "a list": with_header("[]"),
    "quotes": with_header("'''"),
    "indented": with_header("  \n   x\n y"),
    "zeros": with_header("\0" * 50),
    "version 3": save_array(EXPECTED_TREE[0].numpy(), (3, 0)),
    "version 9": b"\x93NUMPY\x09\x00" + save_array(EXPECTED_TREE[0].numpy())[8:],
    "a long header": b"\x93NUMPY\x01\x00\xff\xff" + b"0" * 60,
    "nothing": b"",
    "magic": b"\x93NUMPY",
    "truncated": save_array(EXPECTED_TREE[0].numpy())[:-1],
    "more": save_array(EXPECTED_TREE[0].numpy()) + b"0",
    "large": save_array(EXPECTED_TREE[0].numpy()) + b"0" * (HEADER_BYTES + 100),
    "pickle": pickle.dumps(EXPECTED_TREE[0].numpy()),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_array_with_another_shape_or_type_is_refused(wrong):
    with pytest.raises(MessageRejected, match=r"^h "):
        read_array("h", numpy_array(WRONG[wrong]), EXPECTED_TREE)
    with pytest.raises(MessageRejected, match=r"^h is not a numpy array of 6 numbers"):
        read_array("h", numpy_array(save_array(EXPECTED_TREE[0].numpy()), "pickle"), EXPECTED_TREE)


def flip_bits(content: bytes, draw: np.random.Generator, count: int) -> bytes:
    """Return the bytes with some bits flipped."""
    found = bytearray(content)
    for place in draw.integers(len(content) * 8, size=count):
        found[place // 8] ^= 1 << (place % 8)
    return bytes(found)


def test_flipped_bits_are_read_as_floats_or_refused():
    """3,000 headers of numpy, of which 519 raised tokenize.TokenError in an earlier version; 1,000 blocks of safetensors; 1,000 texts."""
    draw, sound = np.random.default_rng(0), save_array(EXPECTED_TREE[0].numpy())
    start, refused = len(sound) - 24, 0
    for turn in range(3000):
        try:
            found = read_array("h", numpy_array(flip_bits(sound[:start], draw, 1 + turn % 4) + sound[start:]), EXPECTED_TREE)
            assert found.shape == EXPECTED_TREE.shape and found.dtype == EXPECTED_TREE.dtype
        except MessageRejected:
            refused += 1
    assert refused > 2000
    content = pack_message({"delta": Tree(h=EXPECTED_TREE)}, {"client": 1, "round": 3, "loss": [0.5, 0.25]})
    block, text = content["fedrift"]["trees"].data, content["metadata"]["json"].encode()
    for turn in range(1000):
        changed = flip_bits(block, draw, 1 + turn % 4)
        message = RecordDict({"fedrift": ArrayRecord({"trees": Array("safetensors", (len(block),), "safetensors", changed)})})
        with suppress(MessageRejected):
            assert read_trees(message, {"delta": Tree(h=EXPECTED_TREE)})["delta"]["h"].shape == EXPECTED_TREE.shape
        with suppress(MessageRejected):
            told = read_metadata(RecordDict({"metadata": ConfigRecord({"json": flip_bits(text, draw, 1 + turn % 4).decode("latin1")})}))
            assert isinstance(told, dict)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "[1]",
        "null",
        "{",
        '"protocol_version"',
        "[" * 60_000,
        '{"protocol_version": ' + "1" * 5000 + "}",
        '{"protocol_version": 3}',
        '{"protocol_version": "2"}',
        "{}",
        "x" * (MAX_TEXT_BYTES + 1),
    ],
    ids=range(12),
)
def test_text_that_is_not_a_message_is_refused(text):
    with pytest.raises(MessageRejected) as raised:
        read_metadata(RecordDict({"metadata": ConfigRecord({"json": text})}))
    assert len(str(raised.value)) < 250


def test_a_value_that_is_not_a_number_is_refused():
    for value in (None, True, "1", [1], {}, 10**400, -(10**5000), float("inf"), -1, 1e31):
        for reader in (read_number, read_int):
            with pytest.raises(MessageRejected, match="count must be a") as raised:
                reader({"count": value}, "count", 0)
            assert len(str(raised.value)) < 200


ROUNDS = ("1", "x", 0, -1, True, 1.0, 2**62, [1])


def break_message(content: RecordDict, how: str) -> RecordDict:
    """Return the message of a plain strategy with one error."""
    arrays, config = content.array_records.get("arrays"), dict(content.config_records.get("config", {}))
    name = next(iter(arrays))
    changed = {
        "nothing": {},
        "no arrays": {"config": ConfigRecord(config)},
        "no config": {"arrays": arrays},
        "no round": {"arrays": arrays, "config": ConfigRecord({"lr": 0.1})},
        "arrays in words": {"arrays": ConfigRecord({"a": "b"}), "config": ConfigRecord(config)},
        "config in numbers": {"arrays": arrays, "config": MetricRecord({"server-round": 1})},
        "no leaf": {"arrays": ArrayRecord({}), "config": ConfigRecord(config)},
        "a leaf of another name": {"arrays": ArrayRecord({"x" * 5000: arrays[name]}), "config": ConfigRecord(config)},
        "NaN": {"arrays": ArrayRecord({**arrays, name: Array(arrays[name].numpy() * np.nan)}), "config": ConfigRecord(config)},
        **{f"round {value!r}": {"arrays": arrays, "config": ConfigRecord({"server-round": value})} for value in ROUNDS},
    }
    return RecordDict(changed[how])


@pytest.mark.parametrize(
    "how",
    [
        "nothing",
        "no arrays",
        "no config",
        "no round",
        "arrays in words",
        "config in numbers",
        "no leaf",
        "a leaf of another name",
        "NaN",
        *(f"round {value!r}" for value in ROUNDS),
    ],
)
def test_an_invalid_message_of_a_plain_strategy_is_answered_with_an_error(how, tmp_path):
    here = client(0, data(dtype=torch.float32), FedAvg(), tmp_path, Sgd(0.05))
    good = RecordDict({"arrays": to_plain_arrays(here.initial_server.params), "config": ConfigRecord({"server-round": 1})})
    assert train_plain_round(here, good).array_records["arrays"].keys() == here.initial_server.params.keys()
    with pytest.raises(MessageRejected) as raised:
        train_plain_round(here, break_message(good, how))
    assert len(str(raised.value)) < 400
    Loopback({})  # Flower's Message requires a task identity
    sent = Message(break_message(good, how), NODE, "train")
    answer = make_client_app(lambda context: here)(transmit(sent), Context(1, NODE, {}, RecordDict(), {}))
    assert answer.has_error() and answer.error.reason.startswith("the client refused: ")


@pytest.mark.parametrize(
    "told",
    [
        {"round": True},
        {"round": 10**9},
        {"round": "1"},
        {"round": -1},
        {"run_directory_id": "x" * 5000},
        {"run_directory_id": "../a"},
        {"run_directory_id": "\u00e9"},
        {"counted_round": True},
        {"counted_round": None},
        {"counted_round": 5},
        {"experiment_id": "x" * 5000},
        {"client": "0"},
    ],
)
def test_a_client_refuses_messages_that_the_server_never_sends(told, tmp_path):
    here = client(0, data(dtype=torch.float32), FedAvg(), tmp_path, Sgd(0.05))
    sound = {"experiment_id": EXPERIMENT, "client": 0, "run_directory_id": "a", "round": 1, "counted_round": 0}
    first = here.initial_server
    trees = {"params": first.params, "broadcast": first.broadcast, "merged_base": first.merged_base}
    assert read_metadata(train_round(here, pack_message(trees, sound)))["round"] == 1
    with pytest.raises(MessageRejected) as raised:
        train_round(here, pack_message(trees, {**sound, **told}))
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    "wrong", [{}, {"arrays": 1}, {"metrics": 1}, {"more": 1}, {"num-examples": None}, {"num-examples": -1}, {"num-examples": [1, 2]}]
)
def test_an_invalid_answer_of_a_plain_client_is_refused(wrong):
    params, arrays = Tree(h=EXPECTED_TREE), ArrayRecord({"h": Array(EXPECTED_TREE[0].numpy())})
    metrics = {"num-examples": 5, "train_loss": [1.0, 2.0], **{k: v for k, v in wrong.items() if k == "num-examples"}}
    records = {"arrays": arrays, "metrics": MetricRecord({k: v for k, v in metrics.items() if v is not None})}
    lossless = MetricRecord({"num-examples": 5, "train_loss": [1.0]})
    assert np.isnan(parse_plain_reply(RecordDict({**records, "metrics": lossless}), params).loss[1])
    if "arrays" in wrong or not wrong:
        del records["arrays"]
    if "metrics" in wrong or not wrong:
        del records["metrics"]
    if "more" in wrong:
        records["second"] = arrays
    with pytest.raises(MessageRejected):
        parse_plain_reply(RecordDict(records), params)


def test_an_answer_with_overflowing_numbers_is_omitted():
    wide = RecordDict({"arrays": ArrayRecord({"h": Array(np.full((2, 3), 1e300))}), "metrics": MetricRecord({"num-examples": 5})})
    answer = parse_plain_reply(wide, Tree(h=EXPECTED_TREE))
    assert answer.failed and "non-finite numbers" in answer.note
    assert json.loads(pack_message({}, {"a": 1})["metadata"]["json"]) == {"protocol_version": 2, "a": 1}
