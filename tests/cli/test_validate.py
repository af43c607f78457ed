"""Test that `fedrift validate` refuses what a run refuses, and says what it did not check."""

from __future__ import annotations

import json

import pytest

from fedrift.cli import validation
from fedrift.cli.validation import check_experiment
from fedrift.core.errors import UserError
from fedrift.engine.build import build_run
from fedrift.engine.cache import resolve_fingerprints
from tests.cli.test_cli import run_command
from tests.small_experiment import documents, experiment, make_cache

REFUSED = {
    "no held-out text": (["dataset.test_fraction=0"], "has no test documents for the evaluation"),
    "no held-out text of a topic": (["dataset=rare.csv", "partition.num_clients=4"], "has no test documents of domain rare"),
    "no such file": (["dataset=absent.csv"], "no file or folder 'absent.csv'"),
    "no such dataset": (["dataset=nonsense"], "no dataset 'nonsense'"),
    "no such model": (["model=nonsense"], "no model 'nonsense'"),
    "no weights": (["model=."], "there are no weights"),
    "blocks longer than the model reads": (["training.max_seq_length=4096"], "takes 64 at most"),
    "answers that do not fit into a block": (["dataset=chats.jsonl", "training.max_seq_length=8"], "has an answer within 8 tokens"),
    "rewritten conversations": (
        ["dataset=chats.jsonl", "training.max_seq_length=64", "partition={type: Truncate, num_clients: 2}"],
        "holds conversations",
    ),
    "IID clients": (["dataset=equal.csv", "partition={type: Length, num_clients: 2, severity: 1.0}"], "gives IID clients"),
    "more clients than documents": (["dataset=equal.csv", "partition.num_clients=50"], "50 clients cannot share"),
    "an optimizer that the algorithm refuses": (["algorithm=FedNova", "training.client_optimizer=AdamW"], "FedNova divides by"),
    "an aggregator of adapters without adapters": (["algorithm.aggregator=FedEx", "trainable=All"], "needs low-rank adapters"),
    "a mean of models that no round reaches": (
        ["algorithm.server_optimizer={type: SwaSgd, period: 500}"],
        "set algorithm.server_optimizer.period=",
    ),
    "clusters of one client": (["algorithm=Centralized", "clustering=TextClustering"], "has no clients to group"),
    "clusters of clients with models": (["algorithm=LocalOnly", "clustering=OracleClustering"], "gives every client its own model"),
    "too many clusters": (["clustering={type: TextClustering, num_clusters: 4}"], "there are only 3 clients"),
    "too many clusters of a mixture": (
        ["clustering={type: SoftClustering, text: {num_clusters: 4}}", "algorithm.aggregator=FFALoRA"],
        "there are only 3 clients",
    ),
    "random clusters of another size": (["clustering={type: RandomClustering, cluster_sizes: [1, 1]}"], "sum to 2, but there are 3"),
    "labels that do not exist": (
        ["dataset.label_column=''", "partition={type: Quantity, num_clients: 2, severity: 0}", "evaluation.probes=[classification]"],
        "two labels",
    ),
    "general text that does not exist": (["evaluation.probes=[general]", "evaluation.general_dataset=absent.csv"], "no file or folder"),
    "general text that is trained on": (["evaluation.probes=[general]", "evaluation.general_dataset=corpus.csv"], "is part of the"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validate")
    experiment(folder)
    rows = [f"{text},{topic}" for text, topic in documents(10)]
    (folder / "rare.csv").write_text("\n".join(["text,label", *rows, "one two three,rare"]))
    (folder / "equal.csv").write_text("\n".join(["text,label", *(f"{number:03d} one two,{'ab'[number % 2]}" for number in range(40))]))
    chats = [
        {"prompt": f"Add one to the number {number} and tell me the sum.", "completion": f"It is {number}.", "label": "ab"[number % 2]}
        for number in range(40)
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return folder


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", REFUSED)
def test_validate_refuses_what_a_run_refuses_in_the_same_words(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    overrides, message = REFUSED[name]
    config = experiment(folder, *overrides)
    with pytest.raises(UserError) as refused:
        check_experiment(config)
    with pytest.raises(UserError) as run_refused:
        build_run(resolve_fingerprints(config, cache := make_cache(folder)), cache)
    assert message in str(refused.value)
    assert str(refused.value) == str(run_refused.value)


def test_a_valid_experiment_is_checked_but_for_the_weights(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for overrides in ([], ["dataset=chats.jsonl", "partition.num_clients=2", "training.max_seq_length=64"]):
        (unchecked,) = check_experiment(experiment(folder, *overrides))
        assert "weights" in unchecked


def test_what_takes_long_is_not_checked_and_named(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    config = experiment(folder)
    monkeypatch.setattr(validation, "load_corpus", lambda *_, **__: pytest.fail("a named dataset is read"))
    assert check_experiment(experiment(folder, "dataset=synthetic"))[1] == "the documents of 'synthetic'"
    monkeypatch.setattr(validation, "MAX_BYTES", 10)
    assert check_experiment(experiment(folder, "dataset=corpus.csv"))[1] == "the documents of 'corpus.csv'"
    (folder / "e.yaml").write_text("dataset: bbc\n")
    code, out, _ = run_command(capsys, monkeypatch, "validate", "e.yaml")
    assert code == 0
    assert out.splitlines()[-1] == "# not checked: the weights of the model 'pocket'; the documents of 'bbc'"
    monkeypatch.undo()
    monkeypatch.setattr(validation, "MAX_COUNTED_CHARS", 10)
    assert "the tokens were not counted" in check_experiment(config)[1]
