"""Test that a round ends with the other clients whatever one client answers, that the reason is recorded, and that nothing is corrupted."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from safetensors.torch import load, save

import fedrift.flower
from fedrift.algorithms import Ditto, FedAvg, QFedAvg, Scaffold
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Sgd
from fedrift.core.tree import Tree
from fedrift.engine.loop import init_state
from fedrift.engine.run import client_events
from fedrift.flower.client import load_client_state, make_client_app
from fedrift.flower.client_pool import MSG_OWN_DOCUMENTS, NodeRegistry
from tests.flower import loopback
from tests.flower.loopback import NODE, Loopback, client, make_nodes, run_over_flower
from tests.laws.federation import data, params, same, train

BAD = 1  # the faulty client


def edit_answer(answer: Message, trees=lambda leaves: leaves, **told) -> Message:
    """Return the answer with other tensors or other metadata."""
    content = answer.content
    leaves = trees(load(content["fedrift"]["trees"].data))
    said = {**json.loads(content["metadata"]["json"]), **told}
    return with_block(answer, save(leaves), said)


def with_block(answer: Message, block: bytes, said=None, stype="safetensors", dtype="safetensors", shape=None) -> Message:
    said = said or json.loads(answer.content["metadata"]["json"])
    array = Array(dtype=dtype, shape=shape or (len(block),), stype=stype, data=block)
    answer.content = RecordDict({"fedrift": ArrayRecord({"trees": array}), "metadata": ConfigRecord({"json": json.dumps(said)})})
    return answer


def block(answer: Message) -> bytes:
    return answer.content["fedrift"]["trees"].data


def claim_8_terabytes(answer: Message) -> Message:
    """Return an answer whose header claims 8 TB."""
    header = json.dumps({"delta/h": {"dtype": "F64", "shape": [1, 10**12], "data_offsets": [0, 8 * 10**12]}}).encode()
    return with_block(answer, len(header).to_bytes(8, "little") + header + b"0" * 64)


class HarmfulPickle:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def make_error(answer: Message) -> Message:
    broken = Message(Error(code=3, reason="ClientApp raised"), reply_to=answer)
    broken.metadata.__dict__["_reply_to_message_id"] = answer.metadata.reply_to_message_id
    return broken


FAULTS = {
    "non-finite": (lambda a: edit_answer(a, lambda t: {**t, "delta/h": t["delta/h"] * torch.nan}), "non-finite"),
    "infinite news": (lambda a: edit_answer(a, lambda t: {**t, "state_delta/h": t["state_delta/h"] + torch.inf}), "non-finite"),
    "NaN weight": (lambda a: edit_answer(a, weight=float("nan")), "non-finite"),
    "negative weight": (lambda a: edit_answer(a, weight=-1.0), "weight must be a number of at least 0"),
    "infinite weight": (lambda a: edit_answer(a, weight=float("inf")), "weight must be"),
    "weight in words": (lambda a: edit_answer(a, weight="all of it"), "weight must be"),
    "wrong shape": (lambda a: edit_answer(a, lambda t: {**t, "delta/h": t["delta/h"][:, :2].contiguous()}), "must be float64 [1, 4]"),
    "wrong type": (lambda a: edit_answer(a, lambda t: {**t, "delta/h": t["delta/h"].half()}), "got float16"),
    "a leaf too few": (lambda a: edit_answer(a, lambda t: {k: v for k, v in t.items() if k != "delta/h"}), "unexpected names"),
    "a leaf too many": (lambda a: edit_answer(a, lambda t: {**t, "delta/x": torch.zeros(1)}), "unexpected names"),
    "too large": (lambda a: with_block(a, block(a) + b"0" * 10**7), "are allowed"),
    "truncated": (lambda a: with_block(a, block(a)[:-7]), "cannot be read"),
    "no bytes": (lambda a: with_block(a, b""), "cannot be read"),
    "promises 8 TB": (claim_8_terabytes, "cannot be read"),
    "another version": (lambda a: edit_answer(a, protocol_version=99), "version 99"),
    "another client's": (lambda a: edit_answer(a, client=2), "it is from client 2"),
    "an older round's": (lambda a: edit_answer(a, round=-1), "answers round -1"),
    "no JSON": (lambda a: with_text(a, "{{{"), "not JSON"),
    "a long story": (lambda a: with_text(a, json.dumps({"protocol_version": 2, "story": "x" * 10**5})), "are allowed"),
    "no object": (lambda a: with_text(a, "[1]"), "not a JSON object"),
    "nothing": (lambda a: without_content(a), "no metadata of fedrift"),
    "an error": (make_error, "ClientApp raised"),
    "another kind": (lambda a: with_block(a, pickle.dumps(1), stype="pickle"), "no tensors as safetensors"),
}


def with_text(answer: Message, text: str) -> Message:
    answer.content["metadata"] = ConfigRecord({"json": text})
    return answer


def without_content(answer: Message) -> Message:
    answer.content = RecordDict()
    return answer


def corrupt_round(round: int, fault, client: int = BAD):
    """Return a function that corrupts the answer of one client in one round."""

    def meddle(sent: Message, answer: Message):
        mine = sent.metadata.dst_node_id == NODE + client and sent.metadata.group_id == str(round)
        return list(fault(answer)) if mine else [answer]

    return meddle


def invariant(state) -> None:
    """Check that c = mean c_k."""
    for name, c in state.server.broadcast.items():
        assert torch.allclose(c[0], state.client_states.gather_all()[name].mean(0), atol=1e-12)


def read_node_states(algorithm, keeps: Path, state) -> Tree:
    """Return the client states on the nodes after the last round of each that the server counted, ``[N, ...]``."""
    first = state.client_states.gather(slice(0, 1)).zeros_like()
    each = [
        load_client_state(keeps / "0" / f"client-{k}.safetensors", first, int(state.last_participation[k]))
        for k in range(len(state.cluster_ids))
    ]
    return Tree({name: torch.cat([tree[name] for tree in each]) for name in first})


@pytest.mark.sample(8)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_with_an_invalid_answer_counts_as_absent_in_that_round(fault, tmp_path):
    meddle, why = FAULTS[fault]
    deal = data()
    grid = Loopback(make_nodes(deal, Scaffold(), tmp_path), corrupt_round(1, lambda answer: [meddle(answer)]))
    over = run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=4)
    assert [done.update.failed.tolist() for done in over] == [[k == BAD and round == 1 for k in range(5)] for round in range(4)]
    assert [(client, kind) for client, kind, _ in client_events(over[1])] == [(BAD, "client failed")]
    assert why in over[1].update.notes[BAD]
    invariant(over[-1].after)
    held = read_node_states(Scaffold(), tmp_path, over[-1].after)
    assert all(torch.allclose(leaf, over[-1].after.client_states.gather_all()[name], atol=1e-12) for name, leaf in held.items())
    assert over[-1].after.last_participation.tolist() == [4, 4, 4, 4, 4]
    assert over[1].after.last_participation.tolist() == [2, 1, 2, 2, 2]


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold(), QFedAvg()], ids=repr)
def test_an_invalid_answer_equals_absence(algorithm, tmp_path):
    """The round equals one on a single machine in which the client's numbers became NaN."""
    deal = data()
    silent = Loopback(
        make_nodes(deal, algorithm, tmp_path / "one"), lambda sent, answer: [*([] if sent.metadata.dst_node_id == NODE + BAD else [answer])]
    )
    over = run_over_flower(algorithm, deal, tmp_path, grid=silent, until=3)
    here = train(algorithm, deal.edit(BAD, torch.nan), until=3)
    assert all(done.update.notes[BAD] == "no result within 0.05 seconds" for done in over)
    for name, leaf in here[-1].after.server.params.items():
        assert torch.allclose(over[-1].after.server.params[name], leaf, atol=1e-12)


def test_a_duplicate_answer_counts_once(tmp_path):
    deal = data()
    twice = Loopback(make_nodes(deal, Scaffold(), tmp_path / "one"), lambda sent, answer: [answer, answer])
    over = run_over_flower(Scaffold(), deal, tmp_path, grid=twice)
    plain = run_over_flower(Scaffold(), deal, tmp_path / "two")
    assert same(over[-1].after, plain[-1].after)


def test_a_late_answer_is_ignored(tmp_path):
    deal, late = data(), []

    def meddle(sent, answer):
        if sent.metadata.dst_node_id != NODE + BAD:
            return [answer]
        late.append(answer)
        return late[:-1]  # the answer of the previous round

    over = run_over_flower(Scaffold(), deal, tmp_path, grid=Loopback(make_nodes(deal, Scaffold(), tmp_path), meddle), until=4)
    assert all(done.update.failed.tolist() == [False, True, False, False, False] for done in over)
    invariant(over[-1].after)


def test_an_old_answer_to_a_new_message_is_refused(tmp_path):
    deal, kept = data(), []

    def meddle(sent, answer):
        kept.append(answer.content) if sent.metadata.dst_node_id == NODE + BAD else None
        if len(kept) == 2 and sent.metadata.dst_node_id == NODE + BAD:
            answer.content = kept[0]
        return [answer]

    over = run_over_flower(Scaffold(), deal, tmp_path, grid=Loopback(make_nodes(deal, Scaffold(), tmp_path), meddle), until=3)
    assert "answers round 0, but round 1 was requested" in over[1].update.notes[BAD]
    invariant(over[-1].after)


def test_too_few_answers_end_the_run_without_a_change(tmp_path):
    deal = data()
    grid = Loopback(make_nodes(deal, Scaffold(), tmp_path))
    over = run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=2, min_results=4)
    grid.silent = {NODE, NODE + 1}
    with pytest.raises(UserError, match=r"round 3: 3 of 5 clients .* requires 4 .*client 0: no result"):
        run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=4, min_results=4, state=over[-1].after)
    grid.silent = set()
    rest = run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=4, min_results=4, state=over[-1].after)
    assert same(rest[-1].after, run_over_flower(Scaffold(), deal, tmp_path / "unbroken", until=4)[-1].after)


@pytest.mark.sample(1)
@pytest.mark.parametrize("algorithm", [Scaffold(), Ditto()], ids=repr)
def test_a_restarted_server_repeats_the_round_that_was_not_stored(algorithm, tmp_path):
    """The clients return to their state before that round."""
    deal = data()
    grid = Loopback(make_nodes(deal, algorithm, tmp_path / "one"))
    whole = run_over_flower(algorithm, deal, tmp_path, until=5, grid=Loopback(make_nodes(deal, algorithm, tmp_path / "two")))
    broken = run_over_flower(algorithm, deal, tmp_path, until=3, grid=grid)
    again = run_over_flower(algorithm, deal, tmp_path, until=5, grid=grid, state=broken[-1].before)
    assert same(again[-1].after, whole[-1].after)
    first = whole[0].before.client_states.gather(slice(0, 1))
    one, two = (load_client_state(tmp_path / run / "0" / "client-3.safetensors", first, 5) for run in ("one", "two"))
    assert all(torch.equal(leaf, two[name]) for name, leaf in one.items())


def test_a_client_without_its_state_gets_it_back_from_the_server(tmp_path):
    deal = data()
    grid = Loopback(make_nodes(deal, Scaffold(), tmp_path / "one"))
    first = run_over_flower(Scaffold(), deal, tmp_path, until=2, grid=grid)
    (tmp_path / "one" / "0" / "client-1.safetensors").unlink()
    rest = run_over_flower(Scaffold(), deal, tmp_path, until=4, grid=grid, state=first[-1].after)
    assert not rest[0].update.failed.any() and "the server restored it" in rest[0].update.notes[1]
    assert next(iter(client_events(rest[0])))[:2] == (1, "client")
    whole = run_over_flower(Scaffold(), deal, tmp_path / "two", until=4)
    for name, leaf in whole[-1].after.server.params.items():
        assert torch.allclose(rest[-1].after.server.params[name], leaf, atol=1e-12)
    invariant(rest[-1].after)


def test_a_client_without_its_private_state_starts_with_a_new_one(tmp_path):
    deal = data()
    grid = Loopback(make_nodes(deal, Ditto(), tmp_path / "one"))
    first = run_over_flower(Ditto(), deal, tmp_path, until=2, grid=grid)
    (tmp_path / "one" / "0" / "client-1.safetensors").write_bytes(b"not a state")
    rest = run_over_flower(Ditto(), deal, tmp_path, until=3, grid=grid, state=first[-1].after)
    assert not rest[0].update.failed.any() and "it started from the initial state" in rest[0].update.notes[1]


def test_state_of_an_earlier_start_of_the_run_is_ignored(tmp_path):
    deal = data()
    run_over_flower(Scaffold(), deal, tmp_path, until=3)
    again = run_over_flower(Scaffold(), deal, tmp_path, until=3, run_directory_id="1")
    assert same(again[-1].after, run_over_flower(Scaffold(), deal, tmp_path / "fresh", until=3)[-1].after)


def test_nodes_of_another_experiment_and_unknown_clients_are_named(tmp_path):
    deal = data()
    apps = make_nodes(deal, FedAvg(), tmp_path)
    stranger = make_nodes(deal, FedAvg(), tmp_path)[NODE + 2][0]
    del apps[NODE + 2], apps[NODE + 4]
    apps[7] = (lambda message, context: claim_another_experiment(stranger(message, context)), apps[NODE][1])
    over = run_over_flower(FedAvg(), deal, tmp_path, grid=Loopback(apps), until=1)[-1]
    assert over.update.failed.tolist() == [False, False, True, False, True]
    assert "no node runs this client (node 7: it was set up for experiment 'ffff'" in over.update.notes[4]


def claim_another_experiment(answer: Message) -> Message:
    answer.content["metadata"] = ConfigRecord({"json": json.dumps({"protocol_version": 2, "client": 2, "experiment_id": "ffff"})})
    return answer


def test_a_node_that_returns_with_another_id_keeps_its_client(tmp_path):
    deal = data()
    grid = Loopback(make_nodes(deal, Scaffold(), tmp_path))
    first = run_over_flower(Scaffold(), deal, tmp_path, until=2, grid=grid)
    grid.apps[5000] = grid.apps.pop(NODE + 1)
    rest = run_over_flower(Scaffold(), deal, tmp_path, until=4, grid=grid, state=first[-1].after)
    assert same(rest[-1].after, run_over_flower(Scaffold(), deal, tmp_path / "two", until=4)[-1].after)


def test_a_killed_node_is_not_waited_for_once_all_clients_are_located(tmp_path, monkeypatch):
    """Flower lists a killed node for another minute; a server that starts in this time would wait for its answer."""
    deal = data()
    grid = Loopback(make_nodes(deal, Scaffold(), tmp_path))
    grid.apps[7] = grid.apps[NODE]
    grid.dead = {7}
    looks = []
    real = grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: [looks.append(len(ids)), real(ids)][1])
    done = run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=1)[0]
    assert not done.update.failed.any()
    assert len(looks) == 2, "one poll finds the nodes and one collects the answers"


def test_a_silent_node_is_asked_again_after_its_predecessor_is_gone(tmp_path):
    deal = data()
    grid = Loopback(make_nodes(deal, Scaffold(), tmp_path))
    roll = NodeRegistry()
    first = run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=1, registry=roll)
    grid.apps[5000], grid.dead = grid.apps[NODE + 1], {5000}  # client 1 starts again and answers discovery late
    second = run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=2, registry=roll, state=first[-1].after)
    grid.dead = set()
    del grid.apps[NODE + 1]
    third = run_over_flower(Scaffold(), deal, tmp_path, grid=grid, until=3, registry=roll, state=second[-1].after)
    assert not third[-1].update.failed.any()


def test_a_pickle_is_never_loaded(tmp_path):
    deal, trace = data(), tmp_path / "evil"
    evil = pickle.dumps(HarmfulPickle(str(trace)))
    numpy_evil = io.BytesIO()
    np.save(numpy_evil, np.array([HarmfulPickle(str(trace))], dtype=object), allow_pickle=True)
    for stype, content in (("safetensors", evil), ("pickle", evil), ("numpy.ndarray", numpy_evil.getvalue())):
        grid = Loopback(
            make_nodes(deal, FedAvg(), tmp_path), corrupt_round(0, lambda answer, s=stype, c=content: [with_block(answer, c, stype=s)])
        )
        assert run_over_flower(FedAvg(), deal, tmp_path, grid=grid, until=1)[0].update.failed[BAD]
    assert not trace.exists()
    room = Path(fedrift.flower.__file__).parent
    for path in room.glob("*.py"):
        for wrong in ("import pickle", "torch.load", "np.load", "allow_pickle", "eval("):
            assert wrong not in path.read_text(), f"{wrong} in {path.name}"


@pytest.mark.parametrize("algorithm", [FedAvg(), Scaffold()], ids=repr)
def test_all_messages_are_safetensors_or_json_and_nothing_is_pickled(algorithm, tmp_path, monkeypatch):
    """This includes Flower's serialization: a whole run succeeds while pickle is disabled."""
    deal = data()
    grid = Loopback(make_nodes(deal, algorithm, tmp_path / "kept"))
    messages, real = [], loopback.transmit
    monkeypatch.setattr(loopback, "transmit", lambda message: messages.append(message) or real(message))
    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *what, **more: pytest.fail("an object was pickled"))
    run_over_flower(algorithm, deal, tmp_path, grid=grid, until=2)
    assert len(messages) == 2 * 5 * 3  # both directions, discovery and two rounds
    for message in messages:
        assert message.content.keys() == {"fedrift", "metadata"} and message.content["metadata"].keys() == {"json"}
        json.loads(message.content["metadata"]["json"])
        (array,) = message.content["fedrift"].values()
        assert array.stype == "safetensors"
        load(array.data)
    for path in (tmp_path / "kept").rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            load(path.read_bytes())


@pytest.mark.parametrize("reader", ["TextClustering", ""])
def test_strategies_that_need_the_clients_documents_are_refused(reader, tmp_path):
    """Clients with their own documents differ from the experiment's partition, so clusters by the partition would be wrong."""
    deal = data()
    apps = make_nodes(deal, FedAvg(), tmp_path)
    mine = replace(client(BAD, deal, FedAvg(), tmp_path, Sgd(0.05)), has_own_documents=True)
    apps[NODE + BAD] = (make_client_app(lambda context: mine), apps[NODE + BAD][1])
    if reader:
        with pytest.raises(UserError, match=r"client 1 trains on its own documents, but TextClustering clusters .*UpdateClustering"):
            run_over_flower(FedAvg(), deal, tmp_path, grid=Loopback(apps), document_strategy=reader)
    else:
        done = run_over_flower(FedAvg(), deal, tmp_path, grid=Loopback(apps))
        assert [one.update.notes[BAD] if one.update.notes else "" for one in done] == [MSG_OWN_DOCUMENTS, "", ""]


def test_transmitted_bytes_are_counted(tmp_path):
    deal = data(dtype=torch.float32)
    done = run_over_flower(Scaffold(), deal, tmp_path, until=1)[0]
    numbers = sum(leaf[0].nbytes for leaf in params(torch.float32).values())
    down, up = done.update.bytes_on_wire.double().unbind(1)
    for way in (down, up):  # the model and c; the client's update and that of c_k
        assert (way >= 2 * numbers).all() and (way < 2 * numbers + 1500).all()
    plain = run_over_flower(FedAvg(), deal, tmp_path, until=1)[0]
    assert (plain.update.bytes_on_wire[:, 1] < up).all()
    told = run_over_flower(FedAvg(), deal, tmp_path, until=1, send_gradients=True)[0]
    assert torch.allclose(told.update.mean_grad["h"], train(FedAvg(), deal, until=1)[0].update.mean_grad["h"], atol=1e-6)
    assert plain.update.mean_grad["h"].isnan().all()


def test_a_client_refuses_messages_for_others(tmp_path):
    """A message for another experiment or client, or one that is invalid, is answered with the reason."""
    deal = data()
    grid = Loopback(make_nodes(deal, FedAvg(), tmp_path))
    real = grid.push_messages

    def spoiled(messages):
        for message in messages:
            if message.metadata.message_type == "train" and message.metadata.dst_node_id == NODE + BAD:
                said = json.loads(message.content["metadata"]["json"])
                message.content["metadata"] = ConfigRecord({"json": json.dumps({**said, **lie})})
        return real(messages)

    grid.push_messages = spoiled
    for lie, why in (  # noqa: B007 (read by `spoiled`)
        ({"experiment_id": "ffff"}, "the client refused: this is experiment_id"),
        ({"client": 0}, "this is client 1"),
        ({"run_directory_id": "../../x"}, "valid round"),
        ({"protocol_version": 1}, "version 1"),
        ({"counted_round": 9}, "valid round"),
    ):
        done = run_over_flower(FedAvg(), deal, tmp_path, grid=grid, until=1)[0]
        assert why in done.update.notes[BAD]


def test_states_of_versions_without_backends_can_be_resumed(tmp_path):
    deal = data()
    old = replace(init_state(Scaffold(), params(), 5), last_participation=torch.zeros(0, dtype=torch.long))
    assert run_over_flower(Scaffold(), deal, tmp_path, until=1, state=old)[0].after.last_participation.tolist() == [1] * 5
