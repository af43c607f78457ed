"""Test that a recorded Flower app keeps its trajectory bit for bit, that its folder is a run, and that an injected failure is detected."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg, FedProx, FedTrimmedAvg
from typer.testing import CliRunner

import fedrift
from benchmarks.flower_llm_app import AppConfig, InProcessGrid, adapter_state, make_client_app, make_evaluate_fn, make_model, run_app
from fedrift.cli.app import app as cli
from fedrift.diagnosis.cases import group_readable_runs
from fedrift.flower import Diagnosed
from fedrift.storage import list_runs
from tests.models.tiny import random_model
from tests.small_experiment import byte_tokenizer, documents

LENGTH, ROUNDS, TOPICS = 16, 6, ("sport", "tech", "food")


def sequences(seed):
    """Return the documents of each topic as sequences of tokens, ``[n, LENGTH]``."""
    tokenizer, found = byte_tokenizer(), {}
    for topic in TOPICS:
        tokens = torch.tensor([token for text, label in documents(40, seed) if label == topic for token in tokenizer(text)["input_ids"]])
        found[topic] = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)
    return found


@pytest.fixture(scope="module")
def app_parts():
    """The model, its initial adapters, and the app on non-IID and on IID data."""
    torch.use_deterministic_algorithms(True)
    model = make_model(random_model("llama", byte_tokenizer()).network)
    train, held_out = sequences(0), {topic: rows[:8] for topic, rows in sequences(1).items()}
    size = min(len(rows) for rows in train.values())
    skewed = tuple(rows[:size] for rows in train.values())
    mixed = torch.cat(skewed)[torch.randperm(3 * size, generator=torch.Generator().manual_seed(0))]
    configs = AppConfig(skewed, held_out), AppConfig(tuple(mixed.chunk(3)), held_out)
    yield model, adapter_state(model), *configs
    torch.use_deterministic_algorithms(False)


def run_small_app(strategy, config, app_parts, rounds=ROUNDS):
    """Return the result of the app; Flower draws the nodes of a round from the global generator."""
    random.seed(5)
    return run_app(strategy, config, app_parts[0], app_parts[1], rounds)


STRATEGIES = {
    "fedavg": lambda: FedAvg(fraction_train=0.67, fraction_evaluate=0.0),
    "fedadam": lambda: FedAdam(fraction_evaluate=0.0, eta=0.01),
    "fedprox": lambda: FedProx(fraction_evaluate=0.0, proximal_mu=0.1),
    "trimmed": lambda: FedTrimmedAvg(fraction_evaluate=0.0, beta=0.34),
    "clipped": lambda: DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.0), noise_multiplier=0.0, clipping_norm=0.1, num_sampled_clients=3
    ),
}


def test_the_adapters_are_read_without_asking_the_hub(app_parts, monkeypatch):
    """By default, PEFT sends a request in each call (``findings/peft_state_dict_asks_the_hub.sh``)."""
    requests = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *names: requests.append(names))
    monkeypatch.setattr(app_parts[0].peft_config["default"], "base_model_name_or_path", "company/base")
    assert adapter_state(app_parts[0]).keys() == app_parts[1].keys() and not requests


@pytest.mark.parametrize("kind", STRATEGIES)
def test_the_trajectory_is_that_of_the_strategy_bit_for_bit(kind, app_parts, tmp_path):
    plain = run_small_app(STRATEGIES[kind](), app_parts[2], app_parts, 3)
    wrapped = Diagnosed(STRATEGIES[kind](), runs_dir=tmp_path, name=kind)
    told = run_small_app(wrapped, app_parts[2], app_parts, 3)
    assert wrapped.is_recording and {name: array.data for name, array in told.arrays.items()} == {
        name: array.data for name, array in plain.arrays.items()
    }
    for field in ("train_metrics_clientapp", "evaluate_metrics_clientapp", "evaluate_metrics_serverapp"):
        assert getattr(told, field) == getattr(plain, field), field
    assert not {"configure_train", "aggregate_train"} & vars(wrapped.strategy).keys()  # the strategy is unchanged
    trajectory = wrapped.run.trajectory()
    assert wrapped.run.is_finished and trajectory.rounds.tolist() == [0, 1, 2, 3]
    losses = [metrics["loss"] for _, metrics in sorted(plain.evaluate_metrics_serverapp.items())]
    assert trajectory.curve("loss").tolist() == losses and trajectory.domains_of("loss") == tuple(sorted(TOPICS))
    assert {"adapters.error", "update.norm", "update.pairwise", "product.norm", "wire.up", "train.loss", "weight"} <= set(
        trajectory.metrics
    )
    sent = trajectory.client_table("update.norm")[1:]
    assert (~torch.tensor(sent).isnan()).sum(1).tolist() == [2 if kind == "fedavg" else 3] * 3


def test_an_injected_failure_is_detected_and_the_iid_baseline_has_none(app_parts, tmp_path):
    def explode(number, client, arrays):
        return {name: leaf * 1e4 if client == 1 and number == 4 else leaf for name, leaf in arrays.items()}

    broken = Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=tmp_path, name="app", severity=1.0)
    run_small_app(broken, replace(app_parts[2], spoil=explode), app_parts)
    baseline = Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=tmp_path, name="app", severity=0.0)
    run_small_app(baseline, app_parts[3], app_parts)
    (group,) = group_readable_runs([broken.run], list_runs(tmp_path))[0]
    assert group.baselines == (baseline.run,)
    found = {each.failure: each for each in fedrift.diagnose(broken.run, baseline=baseline.run)}
    assert found["exploding updates"].grade == "suspected" and found["exploding updates"].clients == (1,)
    assert found["exploding updates"].first_round == 4 and found["exploding updates"].cause == "heterogeneity"
    assert {each.failure for each in fedrift.diagnose(baseline.run) if each.grade in ("suspected", "confirmed")} == set()
    words = ["--runs-dir", str(tmp_path)]
    for command in (["diagnose", broken.run.id], ["show", broken.run.id], ["report", broken.run.id, "--output", str(tmp_path / "page")]):
        done = CliRunner().invoke(cli, [*command, *words])
        assert done.exit_code == 0, (command, done.output, done.exception)


def test_non_iid_clients_get_a_verdict_with_the_iid_baseline(app_parts, tmp_path):
    """One client per round takes many local steps: its topic improves most, which IID clients do not show."""
    pair = []
    for severity, config in ((1.0, app_parts[2]), (0.0, app_parts[3])):
        strategy = Diagnosed(
            FedAvg(fraction_train=0.34, min_train_nodes=1, fraction_evaluate=0.0), runs_dir=tmp_path, name="few", severity=severity
        )
        run_small_app(strategy, replace(config, local_steps=12, lr=2e-2), app_parts, 8)
        pair.append(strategy.run)
    found = {each.failure: each for each in fedrift.diagnose(pair[0], baseline=pair[1])}
    assert found["loss gap"].grade == "suspected" and found["loss gap"].cause == "heterogeneity", found["loss gap"].sentence
    assert "loss gap" not in {each.failure for each in fedrift.diagnose(pair[1]) if each.grade == "suspected"}


def test_failures_silence_and_client_evaluations_are_recorded(app_parts, tmp_path):
    def spoil(number, client, arrays):
        if client == 2 and number == 2:
            raise RuntimeError("out of memory")
        return {name: leaf * float("nan") if client == 0 and number == 4 else leaf for name, leaf in arrays.items()}

    class Losing(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            replies = super().send_and_receive(messages)
            train = [reply for reply in replies if reply.metadata.message_type == "train"]
            self.round = getattr(self, "round", 0) + bool(train)
            return [reply for reply in replies if not (train and self.round == 3 and reply.metadata.src_node_id == 1001)]

    config = replace(app_parts[2], spoil=spoil)
    client = make_client_app(config, app_parts[0])

    @client.evaluate()
    def evaluate(message, context):
        number = int(context.node_config["partition-id"])
        told = {"eval_loss": 2.0 + number, "num-examples": 1 + number, "partition-id": number}
        return Message(RecordDict({"metrics": MetricRecord(told)}), reply_to=message)

    strategy = Diagnosed(FedAvg(), runs_dir=tmp_path, name="app")
    strategy.start(Losing(client, 3), ArrayRecord(app_parts[1]), num_rounds=4)
    events = {(event["round"], event["client"], event["kind"]): event["message"] for event in strategy.run.events()}
    assert "out of memory" in events[2, 2, "client failed"] and "not finite" in events[4, 0, "client failed"]
    assert events[3, 1, "client failed"] == "it did not answer in time"
    trajectory = strategy.run.trajectory()
    assert trajectory.client_table("failed").tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert trajectory.curve("loss").tolist() == pytest.approx([(2 + 2 * 3 + 3 * 4) / 6] * 4)
    assert trajectory.client_table("loss.after")[-1].tolist() == [2.0, 3.0, 4.0]


def test_an_error_in_recording_does_not_stop_the_app(app_parts, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fedrift.recorder.Recorder.client_update", lambda *what, **more: 1 / 0)
    strategy = Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=tmp_path, name="app")
    result = run_small_app(strategy, app_parts[2], app_parts, 2)
    assert len(result.train_metrics_clientapp) == 2 and not strategy.is_recording
    assert "fedrift stopped recording this run: ZeroDivisionError" in caplog.text and strategy.run.status == "failed"


def test_an_existing_run_is_refused_before_training(app_parts, tmp_path):
    run_small_app(Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=tmp_path, name="app"), app_parts[2], app_parts, 1)
    with pytest.raises(fedrift.UserError, match="is stored already"):
        run_small_app(Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=tmp_path, name="app"), app_parts[2], app_parts, 1)
    fresh = Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=tmp_path, name="app", fresh=True)
    with pytest.raises(fedrift.UserError, match="nothing is recorded yet"):
        fresh.run  # noqa: B018
    with pytest.raises(fedrift.UserError, match="number of rounds is not known"):
        fresh.configure_train(1, ArrayRecord(app_parts[1]), ConfigRecord(), InProcessGrid(make_client_app(app_parts[2], app_parts[0]), 3))
    run_small_app(fresh, app_parts[2], app_parts, 1)
    assert fresh.fraction_evaluate == 0.0 and fresh.run.is_finished  # other attributes are those of the strategy


def test_the_evaluation_of_the_app_is_still_called(app_parts):
    assert make_evaluate_fn(app_parts[2], app_parts[0])(0, ArrayRecord(app_parts[1]))["loss"] > 1


class ScriptedGrid(InProcessGrid):
    """A grid whose nodes answer by a function of the message: the change of the model, or None for an error, and its metrics."""

    def __init__(self, nodes, answer):
        super().__init__(ClientApp(), 0)
        self.contexts, self.reply = dict.fromkeys(nodes), answer

    def answer(self, message):
        change, found = self.reply(message.metadata.message_type, message.content["config"]["server-round"], message.metadata.dst_node_id)
        if change is None:
            return Message(Error(code=1, reason="out of memory"), reply_to=message)
        arrays = {name: torch.from_numpy(leaf.numpy()) + change for name, leaf in message.content["arrays"].items()}
        return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1, **found})}), reply_to=message)


class OneNode(FedAvg):
    """FedAvg that trains one given node per round; None asks nobody."""

    def __init__(self, nodes, **options):
        super().__init__(**options)
        self.nodes = nodes

    def configure_train(self, server_round, arrays, config, grid):
        config["server-round"], node = server_round, self.nodes[server_round - 1]
        return [] if node is None else [Message(RecordDict({"arrays": arrays, "config": config}), node, "train")]


def record_script(strategy, folder, answer, rounds, nodes=(10, 11, 12), evaluate_fn=None, **options):
    """Return the recorded run of scripted nodes."""
    wrapped = Diagnosed(strategy, runs_dir=folder, name="script", **options)
    wrapped.start(ScriptedGrid(nodes, answer), ArrayRecord({"w": torch.zeros(2)}), num_rounds=rounds, evaluate_fn=evaluate_fn)
    assert wrapped.is_recording and wrapped.run.is_finished
    return wrapped.run


def values(run, metric):
    return {(row.round, row.client): row.value for row in run.records() if row.metric == metric and not row.domain}


@pytest.mark.parametrize("second", [12, None], ids=["failed", "nobody asked"])
@pytest.mark.parametrize("evaluates", ["server", "clients"])
def test_a_round_without_records_keeps_its_number(second, evaluates, tmp_path):
    def answer(kind, number, node):
        loss = {"train_loss": 100.0 + number} if kind == "train" else {"eval_loss": float(number)}
        return None if node == 12 else number, {**loss, "partition-id": node - 10}

    evaluate_fn = (lambda number, arrays: MetricRecord({"loss": float(number)})) if evaluates == "server" else None
    strategy = OneNode([10, second, 11, 10], fraction_evaluate=float(evaluates == "clients"))
    run = record_script(strategy, tmp_path, answer, 4, evaluate_fn=evaluate_fn)
    assert values(run, "train.loss") == {(1, 0): 101.0, (3, 1): 103.0, (4, 0): 104.0}
    losses = {number: value for (number, client), value in values(run, "loss").items() if client < 0}
    assert losses == {number: float(number) for number in range(evaluate_fn is None, 5)}
    assert run.read_json("finished")["rounds"] == 4
    assert [event["round"] for event in run.events() if event["kind"] == "client failed"] == ([2] if second else [])


def test_losses_go_to_the_client_whose_number_is_reported(tmp_path):
    client = {10: 2, 11: 0, 12: 1}

    def answer(kind, number, node):
        return 1.0, {"train_loss": 1.0, "partition-id": client[node]} if kind == "train" else {"eval_loss": 10.0 + client[node]}

    run = record_script(OneNode([10, 11, 12]), tmp_path, answer, 3)
    losses = values(run, "loss")
    assert {key: value for key, value in losses.items() if key[1] >= 0} == {
        (1, 2): 12.0, (2, 0): 10.0, (2, 2): 12.0, (3, 0): 10.0, (3, 1): 11.0, (3, 2): 12.0
    }  # fmt: skip
    assert [losses[number, -1] for number in (1, 2, 3)] == [11.0] * 3  # nodes without a number count in the mean
    notes = sorted(event["message"] for event in run.events() if event["kind"] == "client number")
    assert len(notes) == 2 and "node 11: it has not reported its client's number (partition-id)" in notes[0]


def test_numbers_are_fixed_in_the_first_round(tmp_path):
    def answer(kind, number, node):
        return 1.0, {"train_loss": 100.0 + node} if kind == "train" else {"eval_loss": 1.0, "partition-id": 11 - node}

    run = record_script(FedAvg(), tmp_path, answer, 3, nodes=(10, 11))
    assert values(run, "train.loss") == {(number, k): 110.0 + k for number in (1, 2, 3) for k in (0, 1)}
    notes = {event["message"].partition(" client")[0]: event["round"] for event in run.events() if event["kind"] == "client number"}
    assert notes == {"node 10: it reports partition-id=1 and is recorded as": 1, "node 11: it reports partition-id=0 and is recorded as": 1}


@pytest.mark.parametrize("shifted", ["both", "evaluate"])
def test_numbers_beyond_the_clients_are_events_and_no_further_clients(shifted, tmp_path):
    def answer(kind, number, node):
        return 1.0, {"loss": 1.0, "partition-id": node - (9 if shifted in (kind, "both") else 10)}

    run = record_script(FedAvg(), tmp_path, answer, 2, nodes=(10, 11))
    assert {client for _, client in values(run, "loss.after")} == ({1} if shifted == "both" else {0, 1})
    notes = sorted(event["message"] for event in run.events() if event["kind"] == "client number")
    said = "it is client 2 and the clients are 0 to 1" if shifted == "both" else "it reports partition-id=2 and is recorded as client 1"
    assert notes[-1].startswith(f"node 11: {said}")


def test_keys_are_found_under_strategies_of_differential_privacy(tmp_path):
    inner = FedAvg(fraction_evaluate=0.0, weighted_by_key="num-tokens", arrayrecord_key="model")
    private = DifferentialPrivacyServerSideFixedClipping(inner, noise_multiplier=0.0, clipping_norm=10.0, num_sampled_clients=2)
    assert Diagnosed(private, runs_dir=tmp_path, name="keys")._find_key("arrayrecord_key", "arrays") == "model"
    inner.arrayrecord_key = "arrays"
    run = record_script(private, tmp_path, lambda kind, number, node: (1.0, {"num-tokens": 100 * (node - 9)}), 1, nodes=(10, 11))
    assert values(run, "weight") == {(1, 0): 100.0, (1, 1): 200.0}
