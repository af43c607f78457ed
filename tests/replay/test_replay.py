"""Forks: with nothing changed the same run bit for bit, with one thing changed the same but for that."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

import fedrift.fleet.simulated
from fedrift.algorithms import Ditto, FedAvg, FedProx, LocalOnly, QFedAvg, Scaffold, aggregates
from fedrift.errors import UserError
from fedrift.experiment import edit, parse
from fedrift.fleet import SimulatedFleet
from fedrift.memory import Memory
from fedrift.mitigation import ByLoss, ByText, ByUpdate, Soft
from fedrift.optimizers import Adam, Sgd
from fedrift.recording import Parting, Updates
from fedrift.recording.fork import converted, server_side
from fedrift.replay import forked, told
from fedrift.run import carry_out
from fedrift.store import Run, list_runs
from fedrift.tree import Tree
from fedrift.values import Server, State
from tests.recording.test_updates import CPU, recording
from tests.test_run import Killed, assert_equal, killed_at
from tests.worlds import experiment

WAYS = {"Scaffold": {"algorithm": Scaffold()}, "FedAdam": {"algorithm": FedAvg(server=Adam(0.05))},
        "FedEx": {"algorithm": FedAvg(aggregate=aggregates.FedEx())},
        "RoLoRA": {"algorithm": FedAvg(aggregate=aggregates.RoLoRA())},
        "Ditto": {"algorithm": Ditto()}, "LocalOnly": {"algorithm": LocalOnly()},
        "ByUpdate": {"algorithm": Scaffold(), "mitigation": ByUpdate(clusters=2, every=2)},
        "ByLoss": {"mitigation": ByLoss(clusters=2, batches=1)},
        "Soft": {"algorithm": FedAvg(aggregate=aggregates.FFA()), "mitigation": Soft(ByText(encoder="hashing", clusters=2))}}


@pytest.fixture
def world(tmp_path):
    return tmp_path, experiment(tmp_path, "evaluate.panel=[]", "evaluate.final=0", "plan.weighting=uniform",
                                "plan.participation=1")


@pytest.fixture
def recorded(world):
    """A stock, and a run of it that kept its updates."""
    folder, asked = world
    there = recording(folder, "runs")
    return there, carry_out(asked, there)


def fork(there, origin, round, *words):
    """The fork, and what is told of it."""
    asked = forked(origin, round, words)
    run = carry_out(asked, there)
    return run, told(Parting.of(run, asked), list_runs(there.runtime.root))


def reports(run, since):
    return [Updates(run).report(round, CPU)[1] for round in Updates(run).rounds if round >= since]


def same(one, two) -> bool:
    if isinstance(one, (dict, tuple)):
        pairs = zip(one.values(), two.values(), strict=True) if isinstance(one, dict) else zip(one, two, strict=True)
        return len(one) == len(two) and all(same(a, b) for a, b in pairs)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_with_nothing_changed_it_is_the_same_run_bit_for_bit(world, way):
    folder, asked = world
    there = recording(folder, "runs")
    origin = carry_out(edit(asked, {**WAYS[way], "plan__participation": 0.67}), there)
    run, said = fork(there, origin, 2)
    assert run.id != origin.id and said.reused and "the same run, bit for bit" in said.sentence
    assert_equal(origin, run)
    assert Updates(run).rounds == [1, 2, 3, 4] and {row.distance for row in said.rounds} == {0.0}
    for one, two in zip(reports(origin, 2), reports(run, 2), strict=True):
        assert all(same(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
    assert run.experiment["fork"] == {"run": origin.id, "round": 2, "drop_client": [], "drop_until": None}
    assert any(event["kind"] == "fork" and origin.id in event["message"] for event in run.events())


def test_it_can_part_in_the_first_round_and_in_the_last(recorded):
    there, origin = recorded
    for round in (1, 4):
        assert_equal(origin, fork(there, origin, round)[0])


def test_a_fork_keeps_its_origins_choices_of_arithmetic(world):
    folder, asked = world
    origin = carry_out(asked, recording(folder, "runs", micro=1))
    run, _ = fork(recording(folder, "runs"), origin, 2)
    assert run.environment["engine"] == {"micro": 1}
    assert_equal(origin, run)


def test_a_server_side_change_takes_what_the_clients_sent_and_asks_nobody(recorded, monkeypatch):
    there, origin = recorded
    def busy(*asked):
        raise AssertionError("a client was asked")
    monkeypatch.setattr(SimulatedFleet, "train", busy)
    run, said = fork(there, origin, 3, "algorithm.aggregate=Median", "plan.rounds=3")
    before, (_, report) = Updates(origin).state(2, CPU), Updates(origin).report(3, CPU)
    by_hand = FedAvg(aggregate=aggregates.Median()).absorb(before.server, report)
    assert same(Updates(run).state(3, CPU).server.params, by_hand.params) and said.reused
    assert not same(by_hand.params, Updates(origin).state(3, CPU).server.params)


@pytest.mark.parametrize("words", [("algorithm.server={is: Adam, lr: 0.01}",), ("drop_client=1",),
                                   ("algorithm.aggregate={is: Clipped, length: 0.01}", "drop_client=0")], ids=str)
def test_what_is_taken_from_the_record_is_what_the_clients_would_send_again(recorded, monkeypatch, words):
    there, origin = recorded
    taken, said = fork(there, origin, 2, *words)
    assert said.reused and said.rounds[1].distance > 0
    monkeypatch.setattr(Parting, "reuses", False)
    elsewhere = replace(there, runtime=replace(there.runtime, root=there.runtime.root.parent / "anew"), kept={})
    elsewhere.runtime.root.mkdir()
    (elsewhere.runtime.root / origin.id).symlink_to(origin.folder)
    assert_equal(taken, carry_out(forked(origin, 2, words), elsewhere))


def test_a_fork_that_was_killed_goes_on_bit_for_bit(recorded):
    there, origin = recorded
    elsewhere = replace(there, runtime=replace(there.runtime, root=there.runtime.root.parent / "unbroken"), kept={})
    elsewhere.runtime.root.mkdir()
    (elsewhere.runtime.root / origin.id).symlink_to(origin.folder)
    asked = forked(origin, 2, ["drop_client=2", "algorithm=Scaffold"])
    for round in (1, 3):
        with pytest.raises(Killed):
            carry_out(asked, there, killed_at(round))
    broken, unbroken = carry_out(asked, there), carry_out(asked, elsewhere)
    assert_equal(broken, unbroken)
    assert broken.trajectory().curve("loss")[:2].tolist() == origin.trajectory().curve("loss")[:2].tolist()


def test_who_is_left_out_counts_for_nothing_keeps_its_memory_and_may_come_back(world):
    folder, asked = world
    there = recording(folder, "runs")
    origin = carry_out(edit(asked, {"algorithm": Scaffold()}), there)
    run, said = fork(there, origin, 2, "drop_client=[1]", "drop_until=3")
    kept = Updates(run)
    for round in (2, 3):
        _, report = kept.report(round, CPU)
        assert report.failed.tolist() == [False, True, False] and report.weight.tolist() == [1, 0, 1]
        assert not report.delta.rows(slice(1, 2)).norm().item() and not report.news.rows(slice(1, 2)).norm().item()
        assert same(kept.state(round, CPU).memory.rows(slice(1, 2)), kept.state(1, CPU).memory.rows(slice(1, 2)))
    assert not kept.report(4, CPU)[1].failed.any()
    end = kept.state(4, CPU)
    for name, leaf in end.server.shared.items():  # c stays the mean of all c_k
        assert torch.allclose(leaf[0], end.memory.whole()[name].mean(0), atol=1e-6)
    assert said.said == "without client 1 up to round 3" and run.trajectory().table("failed")[:, 1].tolist()[1:] == [0, 1, 1, 0]
    assert not any(each.failure == "left out" for each in said.findings)


def planted(monkeypatch, client: int, times: float) -> None:
    """From now on what this client sends is multiplied by a number. (All take part: row = client.)"""
    report = fedrift.fleet.simulated.report

    def lying(at, end, *rest):
        scale = torch.ones(len(at.steps)).index_fill(0, torch.tensor([client]), times)
        return report(at, at.start + (end - at.start) * scale, *rest)

    monkeypatch.setattr("fedrift.fleet.simulated.report", lying)


def test_without_the_liar_the_harm_is_gone_and_without_an_innocent_it_is_not(world, monkeypatch):
    folder, asked = world
    honest = carry_out(asked, recording(folder, "honest")).trajectory().curve("loss")
    planted(monkeypatch, 1, -40.0)
    there = recording(folder, "runs")
    origin = carry_out(asked, there)
    harm = origin.trajectory().curve("loss")[-1] - honest[-1]
    liar, innocent = (fork(there, origin, 1, f"drop_client={client}")[1] for client in (1, 0))
    assert harm > 0.3
    assert liar.rounds[-1].difference < -0.8 * harm  # what is left is the client's text, which nobody else has
    assert innocent.rounds[-1].difference > -0.1 * harm
    assert "Without client 1 from round 1 on, the loss after round 1 is" in liar.sentence
    clipped = fork(there, origin, 1, "algorithm.aggregate={is: Clipped, length: 0.2}")[1]
    assert clipped.rounds[-1].difference < -0.3 * harm


def test_without_a_client_whose_updates_were_no_numbers_anyway_nothing_changes(world, monkeypatch):
    folder, asked = world
    planted(monkeypatch, 2, float("nan"))
    there = recording(folder, "runs")
    origin = carry_out(asked, there)
    run, said = fork(there, origin, 2, "drop_client=2")
    assert "the same run, bit for bit" in said.sentence
    assert_equal(origin, run)
    assert [(each.failure, each.sentence[:16]) for each in said.findings if each.failure == "left out"] == [
        ("left out", "left out: in bot")]


def test_what_changes_only_the_server_is_told_apart_from_what_clients_do():
    base = parse({"corpus": "bbc", "plan": {"rounds": 10}})
    leaves = ["m.A", "m.B"]
    server = [{"algorithm": FedAvg(server=Sgd(0.5))}, {"algorithm": FedAvg(aggregate=aggregates.Median())}, {"plan__rounds": 12},
              {"algorithm": QFedAvg()}, {}]
    clients = [{"algorithm": FedProx()}, {"algorithm": Scaffold()}, {"algorithm": FedAvg(aggregate=aggregates.FFA())},
               {"plan__clip": 0.5}, {"plan__participation": 0.5}, {"plan__schedule": "cosine"}]
    assert all(server_side(base, edit(base, change), 3, leaves) for change in server)
    assert not any(server_side(base, edit(base, change), 3, leaves) for change in clients)
    assert server_side(base, edit(base, {"plan__schedule": "cosine"}), 1, leaves)  # its first round has the full rate


def test_another_algorithm_takes_over_the_models_and_begins_what_it_keeps_anew():
    params, merged = Tree({"m.A": torch.ones(1, 2, 3), "m.B": torch.ones(1, 4, 2)}), Tree({"m.base": torch.ones(1, 4, 3)})
    momentum = FedAvg(server=Sgd(1.0, momentum=0.9))
    state = State(3, Server(params, Tree(), params * 5.0, merged), Memory.alike(Tree(), 5), torch.zeros(5, dtype=torch.long))
    kept = converted(state, momentum, replace(momentum, server=Sgd(0.1, momentum=0.9)))
    assert kept.server.moments is state.server.moments and kept.server.base is merged
    assert not converted(state, momentum, FedAvg()).server.moments
    controls = converted(state, momentum, Scaffold())
    assert len(controls.memory) == 5 and not controls.memory.whole()["m.A"].any() and not controls.server.shared["m.B"].any()
    assert converted(state, momentum, Ditto()).memory.whole()["m.B"].shape == (5, 4, 2)
    assert converted(replace(state, server=replace(state.server, base=Tree())), momentum, FedAvg(
        aggregate=aggregates.FedEx())).server.base["m.base"].shape == (1, 4, 3)


def test_what_cannot_be_replayed_is_refused_with_a_way_out(recorded, tmp_path):
    there, origin = recorded
    first = fork(there, origin, 4)[0]
    plain = carry_out(edit(forked(origin, 1), {"fork": None, "seed": 7}), replace(there, runtime=replace(
        there.runtime, keep_updates=False)))
    for run, round, words, wanted in [
        (plain, 1, [], "--keep-updates"), (origin, 5, [], "wanted 1 to 4"), (origin, 2, ["drop_client=3"], "clients 0 to 2"),
        (origin, 2, ["drop_client=0,1,2"], "leave one in"), (origin, 2, ["drop_client=1", "drop_until=1"], "from 2 on"),
        (origin, 2, ["drop_until=3"], "say which"), (origin, 2, ["partition.severity=0"], "cannot change partition"),
        (origin, 2, ["seed=1", "plan.seq_len=32"], "cannot change seed, plan.seq_len"),
        (origin, 2, ["plan.rounds=1"], "end before"),
        (origin, 2, ["algorithm=LocalOnly"], "cannot become LocalOnly"), (origin, 2, ["algorithm=Centralised"], "other clients"),
        (first, 4, [], f"replay {origin.id[:6]}"),
    ]:
        asked = forked(run, round, words)
        with pytest.raises(UserError, match=wanted):
            Parting.of(Run(run.root, asked.id), asked)
    for word, wanted in [("drop_client=three", "a whole number"), ("drop_client", "e.g. drop_client=3"),
                         ("algorithm=Medin", "Medin"),
                         ("lr=0.1", "no such key")]:
        with pytest.raises(UserError, match=wanted):
            forked(origin, 2, [word])
    origin.write_json("environment", {**origin.environment, "engine": {"fleet": "flower"}})
    with pytest.raises(UserError, match="behind Flower"):
        Parting.of(Run(origin.root, "x"), forked(origin, 2))
