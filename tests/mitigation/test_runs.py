"""Whole runs under every mitigation: resumed bit for bit, told in events and a file, around any algorithm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrift.errors import UserError
from fedrift.experiment import parse
from fedrift.mitigation import AtRandom, Bipartition, ByDomain, ByLoss, ByText, ByUpdate, Soft, Vanilla
from fedrift.mitigation.decision import assign
from fedrift.run import carry_out
from fedrift.setting import prepare, resolve
from tests.worlds import stored

from .worlds import Killed, asked, at, killed_at, outcome

TEXT = ByText(encoder="hashing", documents=10)
SIGNALS = [ByText(encoder="hashing", clusters=3), AtRandom(sizes=(4, 2)), ByDomain(), ByUpdate(clusters=2, every=2),
           ByLoss(clusters=2, batches=2), ByLoss(clusters=2, breaking="noise"),
           Bipartition(still=10.0, moving=0.01, gamma=0.0, every=2)]


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: type(signal).__name__)
def test_a_run_that_was_interrupted_resumes_bit_for_bit_under_every_mitigation(world, tmp_path, signal):
    wanted = asked(world, signal, "algorithm=Scaffold", "plan.weighting=uniform")
    unbroken = carry_out(wanted, at(world, tmp_path / "unbroken"))
    for round in (0, 1, 2):
        with pytest.raises(Killed):
            carry_out(wanted, at(world, tmp_path / "broken"), killed_at(round))
    broken = carry_out(wanted, at(world, tmp_path / "broken"))
    assert outcome(unbroken) == outcome(broken)
    one, two = (stored(run) for run in (unbroken, broken))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    trajectory = unbroken.trajectory()
    assert trajectory.table("group").shape[1] == 6 and np.isfinite(trajectory.table("group")).all()
    assert trajectory.curve("loss")[-1] < trajectory.curve("loss")[0]
    assert -1 <= trajectory.curve("cluster.ari")[-1] <= 1


def test_text_groups_are_the_true_topics_and_their_models_fit_better_at_home(world, tmp_path):
    run = carry_out(asked(world, ByText(encoder="hashing")), at(world, tmp_path))
    (said,) = run.read_json("mitigation")
    assert said["k"] == 3 and said["p_value"] == 0.01 and said["verdict"] == "stable" and said["bytes"] == 256
    assert run.trajectory().curve("cluster.ari")[-1] == 1
    (event,) = [event for event in run.events() if event["kind"] == "mitigation"]
    assert event["message"].startswith("ByText: 3 groups of 2, 2, 2 clients: stable (p 0.01")
    vanilla = carry_out(asked(world, Vanilla()), at(world, tmp_path))
    assert run.trajectory().curve("loss")[-1] < vanilla.trajectory().curve("loss")[-1]
    assert sorted(path.name for path in (run.folder / "model").iterdir()) == ["0", "1", "2"]


def test_an_unseen_client_gets_the_model_of_its_like(world, tmp_path):
    wanted, there = resolve(asked(world, TEXT), at(world, tmp_path)), at(world, tmp_path)
    setting = prepare(wanted, there)
    ((_, decision),) = setting.work.told
    new = np.stack([setting.work.ground.embed(setting.work.ground.texts(client)[10:], "hashing").mean(axis=0)
                    for client in range(6)])
    assert assign(decision, new).tolist() == decision.group.tolist()
    assert assign(decision.said(0), new[0]).tolist() == decision.group[0]
    with pytest.raises(UserError, match="ByText or Soft"):
        assign({"signal": "ByLoss"}, new)


def test_with_one_group_it_is_the_run_without_mitigation_bit_for_bit(world, tmp_path):
    one = carry_out(asked(world, ByText(encoder="hashing", clusters=1)), at(world, tmp_path))
    vanilla = carry_out(asked(world, Vanilla()), at(world, tmp_path))
    state, other = (stored(run) for run in (one, vanilla))
    assert all(torch.equal(state[name], other[name]) for name in other)
    same = [row for row in one.records() if row.metric not in ("group", "cluster.ari", "cluster.nmi")]
    assert same == vanilla.records()


def test_without_mitigation_the_name_of_a_run_is_what_it_was():
    plain = parse({"corpus": "bbc"})
    assert plain.mitigation == Vanilla()
    assert plain.id == parse({"corpus": "bbc", "mitigation": "Vanilla"}).id != parse({"corpus": "bbc", "mitigation": "ByText"}).id
    assert "ByText" in parse({"corpus": "bbc", "mitigation": {"is": "ByText", "clusters": 3}}).name
    nested = parse({"corpus": "bbc", "mitigation": {"is": "AtRandom", "like": {"is": "ByDomain"}, "draw": 2}})
    assert nested.mitigation == AtRandom(ByDomain(), draw=2)
    assert parse(nested.written()) == nested
    soft = parse({"corpus": "bbc", "mitigation": {"is": "Soft", "text": {"encoder": "hashing"}, "temperature": 0.2}})
    assert soft.mitigation == Soft(ByText(encoder="hashing"), 0.2) and parse(soft.written()) == soft


@pytest.mark.parametrize("algorithm", ["Ditto", "FineTuned", "{is: FedAvg, server: {is: Adam}}", "FedDyn", "AFL", "MOON",
                                       "{is: FedAvg, aggregate: FedEx}"])
def test_any_algorithm_works_inside_groups(world, tmp_path, algorithm):
    for signal in (TEXT, ByUpdate(clusters=2)):
        wanted = asked(world, signal, f"algorithm={algorithm}", "plan.rounds=2")
        run = carry_out(wanted, at(world, tmp_path))
        assert np.isfinite(run.trajectory().curve("loss")).all()
        assert run.trajectory().has_table("loss.worn") == wanted.algorithm.personal


@pytest.mark.parametrize(("algorithm", "mitigation", "told"), [
    ("LocalOnly", TEXT, "LocalOnly gives every client a model of its own"),
    ("Centralised", TEXT, "Centralised has no clients to group"),
    ("FedAvg", replace(TEXT, clusters=7), "7 groups of 6 clients"),
    ("FedAvg", AtRandom(sizes=(3, 4)), r"\[3, 4\] are 7 clients, and there are 6"),
    ("FedAvg", AtRandom(like=ByUpdate()), "ByUpdate does not say its groups before the first round"),
    ("FedAvg", Soft(TEXT), "aggregate: FFA"),
    ("{is: FedAvg, aggregate: Median}", Soft(TEXT), "weighted means"),
    ("FedDyn", Soft(TEXT), "weighted means"),
])
def test_what_makes_no_sense_is_refused_with_the_way_out(world, tmp_path, algorithm, mitigation, told):
    with pytest.raises(UserError, match=told):
        carry_out(asked(world, mitigation, f"algorithm={algorithm}"), at(world, tmp_path))


def test_the_oracle_asks_for_labels(world, tmp_path):
    wanted = asked(world, ByDomain(), "corpus.label=''", "partition={is: Quantity, clients: 3}")
    with pytest.raises(UserError, match="ByText"):
        carry_out(wanted, at(world, tmp_path))


def test_every_round_trains_as_many_clients_as_without_mitigation(world, tmp_path):
    runs = [carry_out(asked(world, signal), at(world, tmp_path)) for signal in (Vanilla(), TEXT)]
    trained = [np.isfinite(run.trajectory().table("train.loss")).sum(axis=1).tolist() for run in runs]
    assert trained[0] == trained[1] == [0, 4, 4, 4, 4]


@pytest.mark.parametrize("encoder", ["states", "lsa", "wordllama"])
def test_groups_can_be_found_by_any_encoder(world, tmp_path, encoder):
    if encoder == "wordllama":
        pytest.importorskip("wordllama")
    setting = prepare(resolve(asked(world, ByText(encoder=encoder)), world), at(world, tmp_path))
    ((_, decision),) = setting.work.told
    found = setting.grouping.of(setting.state)["cluster.ari"]
    # the first direction of three topics' states is one of the two that tell them apart, and "states" takes it out
    assert (decision.why["k"], found) == (3, 1) or (encoder == "states" and decision.why["k"] == 2 and found > 0.4)
    assert decision.why["bytes"] == 4 * decision.centroids.shape[1]
    assert any("not private" in caveat for caveat in setting.caveats) == (encoder == "lsa")
