"""Bytes that somebody made up: each message is read as what was agreed, or refused by ``MessageRejected``; nothing else is raised."""

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
from tests.flower.loopback import EXPERIMENT, NODE, Loopback, carried, client
from tests.laws.federation import data

LIKE = torch.arange(6.0).reshape(1, 2, 3)


def saved(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


def numpy_array(content: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="float32", shape=(2, 3), stype=stype, data=content)


def headed(header: str, rest: bytes = b"0" * 24) -> bytes:
    """The bytes of an array with a header of somebody's own."""
    text = header.encode("latin1").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + rest


@pytest.mark.parametrize(
    "array",
    [
        LIKE[0].numpy(),
        LIKE[0].numpy().astype("<f8"),
        LIKE[0].numpy().astype(">f4"),
        LIKE[0].numpy().astype("<f2"),
        np.asfortranarray(LIKE[0].numpy()),
    ],
    ids=lambda array: array.dtype.str,
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_array_of_numpys_is_read_as_the_leaf_that_was_agreed(array, version):
    found = read_array("h", numpy_array(saved(array, version)), LIKE)
    assert torch.equal(found, LIKE) and found.dtype == LIKE.dtype


WRONG = {
    "16 bytes a number": saved(np.zeros((2, 3), dtype=np.longdouble)),
    "<f16": headed("{'descr': '<f16', 'fortran_order': False, 'shape': (2, 3), }", b"0" * 96),
    "whole numbers": saved(np.zeros((2, 3), dtype=np.int32)),
    "complex": saved(np.zeros((2, 3), dtype=np.complex64)),
    "truth values": saved(np.zeros((2, 3), dtype=bool)),
    "dates": saved(np.zeros((2, 3), dtype="<M8[s]")),
    "text": saved(np.zeros((2, 3), dtype="<U2")),
    "fields": saved(np.zeros((2, 3), dtype=[("a", "<f4")])),
    "objects": headed("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }", pickle.dumps(1)),
    "another shape": saved(np.zeros((3, 2), dtype=np.float32)),
    "no axes": saved(np.zeros((), dtype=np.float32)),
    "negative": headed("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3), }"),
    "8 TB": headed("{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000000,), }"),
    "a shape of text": headed("{'descr': '<f4', 'fortran_order': False, 'shape': ('2', '3'), }"),
    "a call": headed("{'descr': __import__('os'), 'fortran_order': False, 'shape': (2, 3), }"),
    "nested": headed("(" * 110),
    "unclosed": headed("{'descr': '<f4'"),
    "no keys": headed("{}"),
    "a list": headed("[]"),
    "quotes": headed("'''"),
    "indented": headed("  \n   x\n y"),
    "zeros": headed("\0" * 50),
    "version 3": saved(LIKE[0].numpy(), (3, 0)),
    "version 9": b"\x93NUMPY\x09\x00" + saved(LIKE[0].numpy())[8:],
    "a long header": b"\x93NUMPY\x01\x00\xff\xff" + b"0" * 60,
    "nothing": b"",
    "magic": b"\x93NUMPY",
    "truncated": saved(LIKE[0].numpy())[:-1],
    "more": saved(LIKE[0].numpy()) + b"0",
    "large": saved(LIKE[0].numpy()) + b"0" * (HEADER_BYTES + 100),
    "pickle": pickle.dumps(LIKE[0].numpy()),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_array_that_was_not_agreed_is_refused(wrong):
    with pytest.raises(MessageRejected, match=r"^h "):
        read_array("h", numpy_array(WRONG[wrong]), LIKE)
    with pytest.raises(MessageRejected, match=r"^h is not a numpy array of 6 numbers"):
        read_array("h", numpy_array(saved(LIKE[0].numpy()), "pickle"), LIKE)


def flipped(content: bytes, draw: np.random.Generator, count: int) -> bytes:
    """The bytes with some bits turned over."""
    found = bytearray(content)
    for place in draw.integers(len(content) * 8, size=count):
        found[place // 8] ^= 1 << (place % 8)
    return bytes(found)


def test_flipped_bits_are_read_as_floats_or_refused():
    """3,000 headers of numpy's, of which 519 once raised tokenize.TokenError; 1,000 blocks of safetensors; 1,000 texts."""
    draw, sound = np.random.default_rng(0), saved(LIKE[0].numpy())
    start, refused = len(sound) - 24, 0
    for turn in range(3000):
        try:
            found = read_array("h", numpy_array(flipped(sound[:start], draw, 1 + turn % 4) + sound[start:]), LIKE)
            assert found.shape == LIKE.shape and found.dtype == LIKE.dtype
        except MessageRejected:
            refused += 1
    assert refused > 2000
    content = pack_message({"delta": Tree(h=LIKE)}, {"client": 1, "round": 3, "loss": [0.5, 0.25]})
    block, text = content["fedrift"]["trees"].data, content["metadata"]["json"].encode()
    for turn in range(1000):
        changed = flipped(block, draw, 1 + turn % 4)
        message = RecordDict({"fedrift": ArrayRecord({"trees": Array("safetensors", (len(block),), "safetensors", changed)})})
        with suppress(MessageRejected):
            assert read_trees(message, {"delta": Tree(h=LIKE)})["delta"]["h"].shape == LIKE.shape
        with suppress(MessageRejected):
            told = read_metadata(RecordDict({"metadata": ConfigRecord({"json": flipped(text, draw, 1 + turn % 4).decode("latin1")})}))
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
def test_words_that_are_no_message_are_refused(text):
    with pytest.raises(MessageRejected) as raised:
        read_metadata(RecordDict({"metadata": ConfigRecord({"json": text})}))
    assert len(str(raised.value)) < 250


def test_a_number_that_is_none_is_refused():
    for value in (None, True, "1", [1], {}, 10**400, -(10**5000), float("inf"), -1, 1e31):
        for reader in (read_number, read_int):
            with pytest.raises(MessageRejected, match="count must be a") as raised:
                reader({"count": value}, "count", 0)
            assert len(str(raised.value)) < 200


ROUNDS = ("1", "x", 0, -1, True, 1.0, 2**62, [1])


def broken(content: RecordDict, how: str) -> RecordDict:
    """A plain strategy's message with one thing wrong."""
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
def test_what_a_plain_strategy_sends_wrongly_is_refused_and_answered_by_an_error(how, tmp_path):
    here = client(0, data(dtype=torch.float32), FedAvg(), tmp_path, Sgd(0.05))
    good = RecordDict({"arrays": to_plain_arrays(here.initial_server.params), "config": ConfigRecord({"server-round": 1})})
    assert train_plain_round(here, good).array_records["arrays"].keys() == here.initial_server.params.keys()
    with pytest.raises(MessageRejected) as raised:
        train_plain_round(here, broken(good, how))
    assert len(str(raised.value)) < 400
    Loopback({})  # who makes messages must be somebody
    sent = Message(broken(good, how), NODE, "train")
    answer = make_client_app(lambda context: here)(carried(sent), Context(1, NODE, {}, RecordDict(), {}))
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
def test_what_our_server_would_not_send_is_refused_by_a_client(told, tmp_path):
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
def test_what_a_plain_client_answers_wrongly_is_refused(wrong):
    params, arrays = Tree(h=LIKE), ArrayRecord({"h": Array(LIKE[0].numpy())})
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


def test_numbers_that_a_float_cannot_hold_make_an_answer_that_is_left_out():
    wide = RecordDict({"arrays": ArrayRecord({"h": Array(np.full((2, 3), 1e300))}), "metrics": MetricRecord({"num-examples": 5})})
    answer = parse_plain_reply(wide, Tree(h=LIKE))
    assert answer.failed and "non-finite numbers" in answer.note
    assert json.loads(pack_message({}, {"a": 1})["metadata"]["json"]) == {"protocol_version": 2, "a": 1}
