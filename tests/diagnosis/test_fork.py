"""Test that a fork without changes equals its origin bit for bit, and that one change has only its own effects."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

import fedrift.simulation.simulator
from fedrift.algorithms import Ditto, FedAvg, FedProx, LocalOnly, QFedAvg, Scaffold, aggregators
from fedrift.clustering import IFCA, SoftClustering, TextClustering, UpdateClustering
from fedrift.config.schema import edit_config, parse_config
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Adam, Sgd
from fedrift.core.tree import Tree
from fedrift.core.types import ClientStateStore, FederatedState, ServerState
from fedrift.engine.fork import ForkedRun, convert_state, is_server_side_change
from fedrift.engine.run import run_experiment
from fedrift.simulation import ClientSimulator
from fedrift.storage import Run, list_runs
from fedrift.storage.updates import UpdateLog
from fedrift.studies.fork_report import make_fork_config, report_fork
from tests.small_experiment import Killed, experiment, killed_at
from tests.storage.test_updates import CPU, recording
from tests.test_run import assert_equal

ALGORITHMS = {
    "Scaffold": {"algorithm": Scaffold()},
    "FedAdam": {"algorithm": FedAvg(server_optimizer=Adam(0.05))},
    "FedEx": {"algorithm": FedAvg(aggregator=aggregators.FedEx())},
    "RoLoRA": {"algorithm": FedAvg(aggregator=aggregators.RoLoRA())},
    "Ditto": {"algorithm": Ditto()},
    "LocalOnly": {"algorithm": LocalOnly()},
    "UpdateClustering": {"algorithm": Scaffold(), "clustering": UpdateClustering(num_clusters=2, interval=2)},
    "IFCA": {"clustering": IFCA(num_clusters=2, num_batches=1)},
    "SoftClustering": {
        "algorithm": FedAvg(aggregator=aggregators.FFALoRA()),
        "clustering": SoftClustering(TextClustering(encoder="hashing", num_clusters=2)),
    },
}


@pytest.fixture
def folder_and_config(tmp_path):
    return tmp_path, experiment(
        tmp_path,
        "evaluation.probes=[]",
        "evaluation.final_blocks_per_domain=0",
        "training.client_weighting=uniform",
        "training.participation_rate=1",
    )


@pytest.fixture
def recorded_run(folder_and_config):
    """Return resources, and a run that stored its updates."""
    folder, asked = folder_and_config
    there = recording(folder, "runs")
    return there, run_experiment(asked, there)


def fork(there, origin, round, *words):
    """Return the forked run and its report."""
    asked = make_fork_config(origin, round, words)
    run = run_experiment(asked, there)
    return run, report_fork(ForkedRun.from_config(run, asked), list_runs(there.runtime.runs_dir))


def load_updates(run, since):
    return [UpdateLog(run).load_update(round, CPU)[1] for round in UpdateLog(run).rounds if round >= since]


def same(one, two) -> bool:
    if isinstance(one, (dict, tuple)):
        pairs = zip(one.values(), two.values(), strict=True) if isinstance(one, dict) else zip(one, two, strict=True)
        return len(one) == len(two) and all(same(a, b) for a, b in pairs)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.sample(6)
@pytest.mark.parametrize("way", ALGORITHMS, ids=str)
def test_a_fork_without_changes_equals_the_run_bit_for_bit(folder_and_config, way):
    folder, asked = folder_and_config
    there = recording(folder, "runs")
    origin = run_experiment(edit_config(asked, {**ALGORITHMS[way], "training__participation_rate": 0.67}), there)
    run, said = fork(there, origin, 2)
    assert run.id != origin.id and said.has_reused_updates and "identical to its origin, bit for bit" in said.sentence
    assert_equal(origin, run)
    assert UpdateLog(run).rounds == [1, 2, 3, 4] and {row.distance for row in said.rounds} == {0.0}
    for one, two in zip(load_updates(origin, 2), load_updates(run, 2), strict=True):
        assert all(same(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))
    assert run.config["fork"] == {"run": origin.id, "from_round": 2, "exclude_clients": [], "exclude_until": None}
    assert any(event["kind"] == "fork" and origin.id in event["message"] for event in run.events())


def test_a_fork_can_start_at_the_first_and_at_the_last_round(recorded_run):
    there, origin = recorded_run
    for round in (1, 4):
        assert_equal(origin, fork(there, origin, round)[0])


def test_a_fork_keeps_the_engine_options_of_its_origin(folder_and_config):
    folder, asked = folder_and_config
    origin = run_experiment(asked, recording(folder, "runs", clients_per_pass=1))
    run, _ = fork(recording(folder, "runs"), origin, 2)
    assert run.environment["engine"] == {"clients_per_pass": 1}
    assert_equal(origin, run)


def test_a_server_side_change_reuses_the_recorded_updates(recorded_run, monkeypatch):
    there, origin = recorded_run

    def busy(*asked):
        raise AssertionError("a client was asked")

    monkeypatch.setattr(ClientSimulator, "train", busy)
    run, said = fork(there, origin, 3, "algorithm.aggregator=Median", "training.num_rounds=3")
    before, (_, update) = UpdateLog(origin).load_state(2, CPU), UpdateLog(origin).load_update(3, CPU)
    by_hand = FedAvg(aggregator=aggregators.Median()).server_update(before.server, update)
    assert same(UpdateLog(run).load_state(3, CPU).server.params, by_hand.params) and said.has_reused_updates
    assert not same(by_hand.params, UpdateLog(origin).load_state(3, CPU).server.params)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "words",
    [
        ("algorithm.server_optimizer={type: Adam, lr: 0.01}",),
        ("exclude_clients=1",),
        ("algorithm.aggregator={type: NormClippedMean, max_norm: 0.01}", "exclude_clients=0"),
    ],
    ids=str,
)
def test_recorded_updates_equal_those_of_new_training(recorded_run, monkeypatch, words):
    there, origin = recorded_run
    taken, said = fork(there, origin, 2, *words)
    assert said.has_reused_updates and said.rounds[1].distance > 0
    monkeypatch.setattr(ForkedRun, "can_reuse_updates", False)
    elsewhere = replace(there, runtime=replace(there.runtime, runs_dir=there.runtime.runs_dir.parent / "anew"), _items={})
    elsewhere.runtime.runs_dir.mkdir()
    (elsewhere.runtime.runs_dir / origin.id).symlink_to(origin.folder)
    assert_equal(taken, run_experiment(make_fork_config(origin, 2, words), elsewhere))


def test_a_killed_fork_resumes_bit_for_bit(recorded_run):
    there, origin = recorded_run
    elsewhere = replace(there, runtime=replace(there.runtime, runs_dir=there.runtime.runs_dir.parent / "unbroken"), _items={})
    elsewhere.runtime.runs_dir.mkdir()
    (elsewhere.runtime.runs_dir / origin.id).symlink_to(origin.folder)
    asked = make_fork_config(origin, 2, ["exclude_clients=2", "algorithm=Scaffold"])
    for round in (1, 3):
        with pytest.raises(Killed):
            run_experiment(asked, there, killed_at(round))
    broken, unbroken = run_experiment(asked, there), run_experiment(asked, elsewhere)
    assert_equal(broken, unbroken)
    assert broken.trajectory().curve("loss")[:2].tolist() == origin.trajectory().curve("loss")[:2].tolist()


def test_an_excluded_client_keeps_its_state_and_can_return(folder_and_config):
    folder, asked = folder_and_config
    there = recording(folder, "runs")
    origin = run_experiment(edit_config(asked, {"algorithm": Scaffold()}), there)
    run, said = fork(there, origin, 2, "exclude_clients=[1]", "exclude_until=3")
    kept = UpdateLog(run)
    for round in (2, 3):
        _, update = kept.load_update(round, CPU)
        assert update.failed.tolist() == [False, True, False] and update.weight.tolist() == [1, 0, 1]
        assert not update.delta.take(slice(1, 2)).norm().item() and not update.state_delta.take(slice(1, 2)).norm().item()
        assert same(
            kept.load_state(round, CPU).client_states.gather(slice(1, 2)), kept.load_state(1, CPU).client_states.gather(slice(1, 2))
        )
    assert not kept.load_update(4, CPU)[1].failed.any()
    end = kept.load_state(4, CPU)
    for name, leaf in end.server.broadcast.items():  # c stays the mean of all c_k
        assert torch.allclose(leaf[0], end.client_states.gather_all()[name].mean(0), atol=1e-6)
    assert said.change == "without client 1 up to round 3" and run.trajectory().client_table("failed")[:, 1].tolist()[1:] == [0, 1, 1, 0]
    assert not any(each.failure == "failed clients" for each in said.findings)


def scale_client_update(monkeypatch, client: int, times: float) -> None:
    """Multiply all updates of a client by a number. With full participation the row equals the client."""
    original = fedrift.simulation.simulator.make_update

    def end_without_client(at, end, *rest):
        scale = torch.ones(len(at.steps)).index_fill(0, torch.tensor([client]), times)
        return original(at, at.global_params + (end - at.global_params) * scale, *rest)

    monkeypatch.setattr("fedrift.simulation.simulator.make_update", end_without_client)


def test_excluding_the_malicious_client_removes_the_harm_and_excluding_another_does_not(folder_and_config, monkeypatch):
    folder, asked = folder_and_config
    honest = run_experiment(asked, recording(folder, "honest")).trajectory().curve("loss")
    scale_client_update(monkeypatch, 1, -40.0)
    there = recording(folder, "runs")
    origin = run_experiment(asked, there)
    harm = origin.trajectory().curve("loss")[-1] - honest[-1]
    liar, innocent = (fork(there, origin, 1, f"exclude_clients={client}")[1] for client in (1, 0))
    assert harm > 0.3
    assert liar.rounds[-1].difference < -0.8 * harm  # the remaining difference is the client's text, which no other client has
    assert innocent.rounds[-1].difference > -0.1 * harm
    assert "Without client 1 from round 1 on, the loss after round 1 is" in liar.sentence
    clipped = fork(there, origin, 1, "algorithm.aggregator={type: NormClippedMean, max_norm: 0.2}")[1]
    assert clipped.rounds[-1].difference < -0.3 * harm


def test_excluding_a_client_with_nan_updates_changes_nothing(folder_and_config, monkeypatch):
    folder, asked = folder_and_config
    scale_client_update(monkeypatch, 2, float("nan"))
    there = recording(folder, "runs")
    origin = run_experiment(asked, there)
    run, said = fork(there, origin, 2, "exclude_clients=2")
    assert "identical to its origin, bit for bit" in said.sentence
    assert_equal(origin, run)
    assert [(each.failure, each.sentence[:16]) for each in said.findings if each.failure == "failed clients"] == [
        ("failed clients", "failed clients: ")
    ]


def test_changes_of_the_server_are_distinguished_from_changes_of_the_clients():
    base = parse_config({"dataset": "bbc", "training": {"num_rounds": 10}})
    leaves = ["m.A", "m.B"]
    server = [
        {"algorithm": FedAvg(server_optimizer=Sgd(0.5))},
        {"algorithm": FedAvg(aggregator=aggregators.Median())},
        {"training__num_rounds": 12},
        {"algorithm": QFedAvg()},
        {},
    ]
    clients = [
        {"algorithm": FedProx()},
        {"algorithm": Scaffold()},
        {"algorithm": FedAvg(aggregator=aggregators.FFALoRA())},
        {"training__max_grad_norm": 0.5},
        {"training__participation_rate": 0.5},
        {"training__lr_schedule": "cosine"},
    ]
    assert all(is_server_side_change(base, edit_config(base, change), 3, leaves) for change in server)
    assert not any(is_server_side_change(base, edit_config(base, change), 3, leaves) for change in clients)
    assert is_server_side_change(
        base, edit_config(base, {"training__lr_schedule": "cosine"}), 1, leaves
    )  # its first round has the full learning rate


def test_another_algorithm_keeps_the_models_and_starts_with_new_client_states():
    params, merged = Tree({"m.A": torch.ones(1, 2, 3), "m.B": torch.ones(1, 4, 2)}), Tree({"m.base": torch.ones(1, 4, 3)})
    momentum = FedAvg(server_optimizer=Sgd(1.0, momentum=0.9))
    state = FederatedState(
        3, ServerState(params, Tree(), params * 5.0, merged), ClientStateStore.replicate(Tree(), 5), torch.zeros(5, dtype=torch.long)
    )
    kept = convert_state(state, momentum, replace(momentum, server_optimizer=Sgd(0.1, momentum=0.9)))
    assert kept.server.opt_state is state.server.opt_state and kept.server.merged_base is merged
    assert not convert_state(state, momentum, FedAvg()).server.opt_state
    controls = convert_state(state, momentum, Scaffold())
    assert (
        len(controls.client_states) == 5
        and not controls.client_states.gather_all()["m.A"].any()
        and not controls.server.broadcast["m.B"].any()
    )
    assert convert_state(state, momentum, Ditto()).client_states.gather_all()["m.B"].shape == (5, 4, 2)
    assert convert_state(
        replace(state, server=replace(state.server, merged_base=Tree())), momentum, FedAvg(aggregator=aggregators.FedEx())
    ).server.merged_base["m.base"].shape == (1, 4, 3)


def test_runs_that_cannot_be_forked_are_refused(recorded_run, tmp_path):
    there, origin = recorded_run
    first = fork(there, origin, 4)[0]
    plain = run_experiment(
        edit_config(make_fork_config(origin, 1), {"fork": None, "seed": 7}),
        replace(there, runtime=replace(there.runtime, save_updates=False)),
    )
    for run, round, words, expected in [
        (plain, 1, [], "--save-updates"),
        (origin, 5, [], "must be 1 to 4"),
        (origin, 2, ["exclude_clients=3"], "clients 0 to 2"),
        (origin, 2, ["exclude_clients=0,1,2"], "keep at least one"),
        (origin, 2, ["exclude_clients=1", "exclude_until=1"], "at least 2"),
        (origin, 2, ["exclude_until=3"], "name the clients"),
        (origin, 2, ["partition.severity=0"], "cannot change partition"),
        (origin, 2, ["seed=1", "training.max_seq_length=32"], "cannot change seed, training.max_seq_length"),
        (origin, 2, ["training.num_rounds=1"], "at least 2"),
        (origin, 2, ["algorithm=LocalOnly"], "cannot become LocalOnly"),
        (origin, 2, ["algorithm=Centralized"], "other clients"),
        (first, 4, [], f"fork {origin.id[:6]}"),
    ]:
        asked = make_fork_config(run, round, words)
        with pytest.raises(UserError, match=expected):
            ForkedRun.from_config(Run(run.root, asked.id), asked)
    for word, expected in [
        ("exclude_clients=three", "a whole number"),
        ("exclude_clients", "e.g. exclude_clients=3"),
        ("algorithm=Medin", "Medin"),
        ("lr=0.1", "no such key"),
    ]:
        with pytest.raises(UserError, match=expected):
            make_fork_config(origin, 2, [word])
    origin.write_json("environment", {**origin.environment, "engine": {"backend": "flower"}})
    with pytest.raises(UserError, match="behind Flower"):
        ForkedRun.from_config(Run(origin.root, "x"), make_fork_config(origin, 2))
