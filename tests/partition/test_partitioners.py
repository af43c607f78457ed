"""Test partitions of plain datasets and flwr-datasets: assignments equal those of fedrift, and every partition can be measured."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

import fedrift
from fedrift.core.random import numpy_stream
from fedrift.partition.base import partition_corpus
from fedrift.partitioners import make_corpus
from tests.small_experiment import documents

ROOT = Path(__file__).resolve().parents[2]
TOPICS = ["food", "sport", "tech"]
PARTITIONS = {
    "TopicMix": fedrift.TopicMix(num_clients=4, severity=0.9),
    "KDomains": fedrift.KDomains(num_clients=4, severity=1.0),
    "Dirichlet": fedrift.Dirichlet(num_clients=4, severity=0.7),
    "Quantity": fedrift.Quantity(num_clients=4, severity=0.6),
    "Length": fedrift.Length(num_clients=4, severity=0.8),
    "TokenTilt": fedrift.TokenTilt(num_clients=4, severity=0.8),
    "StopwordDrop": fedrift.StopwordDrop(num_clients=4, severity=0.8),
    "Style": fedrift.Style(num_clients=4, severity=0.8),
    "Truncate": fedrift.Truncate(num_clients=4, severity=0.8),
}
REWRITING = ("StopwordDrop", "Style", "Truncate")


@pytest.fixture(scope="module")
def dataset():
    rows = documents(30)
    columns = {"id": list(range(len(rows))), "text": [text for text, _ in rows], "label": [TOPICS.index(label) for _, label in rows]}
    return Dataset.from_dict(columns, features=Features(id=Value("int64"), text=Value("string"), label=ClassLabel(names=TOPICS)))


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_partition_gives_datasets_with_all_columns(name, dataset):
    made = fedrift.partitioner(PARTITIONS[name], dataset, label_column="label", seed=3)
    parts = [made.load_partition(number) for number in range(made.num_partitions)]
    assert made.num_partitions == 4 and made.severity == PARTITIONS[name].severity
    assert all(part.features == dataset.features and len(part) for part in parts)
    rows = [row for part in parts for row in part["id"]]
    assert len(rows) == len(set(rows)) and [part["id"] for part in parts] == made.indices
    corpus = make_corpus(dataset["text"], [TOPICS[label] for label in dataset["label"]])
    native = partition_corpus(PARTITIONS[name], corpus, partial(numpy_stream, 3, "partition"))
    assert [part["id"] for part in parts] == [own.tolist() for own in native.rows]
    changed = any(text != dataset[row]["text"] for part in parts for row, text in zip(part["id"], part["text"], strict=True))
    assert changed == (name in REWRITING)
    if name in REWRITING:
        client, own = next((k, parts[k]) for k, rewrite in enumerate(native.rewrites) if rewrite)
        assert (
            list(own["text"]) == fedrift.partitioner(PARTITIONS[name], dataset, label_column="label", seed=3).load_partition(client)["text"]
        )


def test_severity_0_is_the_iid_baseline_and_the_seed_matters(dataset):
    skewed = fedrift.partitioner(PARTITIONS["TopicMix"], dataset, label_column="label")
    iid = fedrift.partitioner(replace(PARTITIONS["TopicMix"], severity=0.0), dataset, label_column="label")
    other = fedrift.partitioner(PARTITIONS["TopicMix"], dataset, label_column="label", seed=1)
    assert skewed.indices != other.indices
    apart, alike = skewed.heterogeneity(5)["label.jsd"], iid.heterogeneity(5)["label.jsd"]
    assert apart.value > 0.3 > 0.05 > alike.value and apart.is_beyond_chance and not alike.is_beyond_chance


def test_the_report_is_equal_for_partitioner_indices_and_datasets(dataset):
    made = fedrift.partitioner(PARTITIONS["TopicMix"], dataset, label_column="label")
    by_rows = fedrift.heterogeneity(made.indices, dataset["text"], [TOPICS[label] for label in dataset["label"]], resplits=3)
    by_object = fedrift.heterogeneity(made, label_column="label", resplits=3)
    by_list = fedrift.heterogeneity([made.load_partition(k) for k in range(4)], label_column="label", resplits=3)
    assert by_rows.to_dict() == by_object.to_dict() == by_list.to_dict()
    assert by_rows.domains == tuple(TOPICS) and by_rows["token.jsd"].value == pytest.approx(made.heterogeneity(3)["token.jsd"].value)


def test_rewritten_texts_are_measured_after_rewriting(dataset):
    made = fedrift.partitioner(PARTITIONS["StopwordDrop"], dataset)
    iid = fedrift.partitioner(replace(PARTITIONS["StopwordDrop"], severity=0.0), dataset)
    assert fedrift.heterogeneity(made, resplits=0)["token.jsd"].value > 2 * fedrift.heterogeneity(iid, resplits=0)["token.jsd"].value


def test_indices_of_a_user_may_overlap_and_omit_documents(dataset):
    report = fedrift.heterogeneity([np.arange(0, 30), range(20, 50), [60, 61, 62]], dataset["text"], dataset["label"], resplits=2)
    assert report.num_clients == 3 and report.documents.tolist() == [30, 30, 3]
    assert fedrift.heterogeneity([[0], [1]], ["a", "b"], [None, "x"], resplits=0).domains == ("x",)


def test_rows_may_be_masks_or_a_mapping_and_texts_a_series():
    texts = ["a b", "a c", "z y", "z x"]
    expected = fedrift.heterogeneity([[0, 1], [2, 3]], texts, resplits=0).to_dict()
    mask = np.array([True, True, False, False])
    given = ([mask, ~mask], [mask.tolist(), (~mask).tolist()], {"a": [0, 1], "b": {2, 3}}, [np.array([0, 1]), pd.Series([2, 3])])
    assert all(fedrift.heterogeneity(rows, texts, resplits=0).to_dict() == expected for rows in given)
    assert fedrift.heterogeneity([[0, 1], [2, 3]], pd.Series(texts, index=[3, 2, 1, 0]), resplits=0).to_dict() == expected


@pytest.mark.parametrize("missing", [float("nan"), np.float32("nan"), pd.NA, pd.NaT, None, "", -1])
def test_a_missing_label_is_no_topic(missing):
    assert fedrift.heterogeneity([[0], [1]], ["a", "b"], [missing, "x"], resplits=0).domains == ("x",)


def dataset_of(labels, names=None):
    """Return a dataset of one word per text; ``names`` are the class names of whole numbers."""
    feature = {"features": Features(text=Value("string"), label=ClassLabel(names=names))} if names else {}
    return Dataset.from_dict({"text": [f"word {number}" for number in range(len(labels))], "label": labels}, **feature)


def test_each_client_has_its_own_class_names():
    """Client 1 lists the same classes in another order, client 2 has one more, and client 3 has names instead of numbers."""
    clients = [
        dataset_of([0, 1, 1], ["food", "sport"]),
        dataset_of([0, 1, 1], ["sport", "food"]),
        dataset_of([2, -1], ["food", "sport", "tech"]),
        dataset_of(["tech", "food"]),
    ]
    for order in (clients, clients[::-1]):
        report = fedrift.heterogeneity(order, label_column="label", resplits=0)
        assert report.domains == ("food", "sport", "tech")
        counts = (report.tokens_by_domain[:: 1 if order is clients else -1] / 2).tolist()
        assert [row[:3] for row in counts] == [[1, 2, 0], [2, 1, 0], [0, 0, 1], [1, 0, 1]]


def test_equal_labels_of_different_types_are_one_topic():
    clients = [dataset_of([1.0, None, 2.0]), dataset_of([1, 2, 1]), dataset_of(["1", "2", "2"])]
    assert fedrift.heterogeneity(clients, label_column="label", resplits=0).domains == ("1", "2")
    assert fedrift.heterogeneity([[0], [1]], ["a", "b"], [np.float32(1.0), np.int64(1)], resplits=0).domains == ("1",)


def test_labels_that_need_a_remark_give_a_warning():
    lists = dataset_of([["food", "sport"], ["sport"]])
    with pytest.warns(UserWarning, match="holds lists: the first item is used"):
        assert fedrift.heterogeneity([lists, lists], label_column="label", resplits=0).domains == ("food", "sport")
    with pytest.warns(UserWarning, match="1 labels are 'None' and count as missing"):
        assert fedrift.heterogeneity([[0], [1]], ["a", "b"], ["None", "x"], resplits=0).domains == ("x",)


def test_random_clients_do_not_differ_in_length_if_many_texts_are_equally_long():
    draw = np.random.default_rng(0)
    for longest, bound in ((11, 0.03), (9, 1e-12)):
        texts = [" ".join(draw.choice(list("abcdefgh"), draw.integers(8, longest))) for _ in range(400)]
        number = fedrift.heterogeneity([rows.tolist() for rows in draw.permutation(400).reshape(4, 100)], texts)["length.jsd"]
        assert 0 <= number.value < bound and not number.is_beyond_chance


def test_mistakes_are_refused(dataset):
    mix = PARTITIONS["TopicMix"]
    for call, message in (
        (lambda: fedrift.partitioner(mix, dataset, label_column="lable"), "no column 'lable': did you mean 'label'"),
        (lambda: fedrift.partitioner("TopicMix", dataset), "give one such as fedrift.TopicMix"),
        (lambda: fedrift.partitioner(mix).load_partition(0), "has no data set yet"),
        (lambda: fedrift.partitioner(mix, dataset, label_column="label").load_partition(4), "the partitions are 0 to 3"),
        (lambda: fedrift.partitioner(mix, dataset).load_partition(0), "needs"),
        (lambda: setattr(fedrift.partitioner(mix, dataset), "dataset", dataset), "has a data set already"),
        (lambda: fedrift.partitioner(PARTITIONS["Length"], dataset, text_column="id").load_partition(0), "has to be text"),
        (lambda: fedrift.heterogeneity([[0], [500]], ["a"]), "row 500 is out of range"),
        (lambda: fedrift.heterogeneity([[0], []], ["a"]), "client 1 holds no document"),
        (lambda: fedrift.heterogeneity([[0], [1]]), "give texts beside lists of row numbers"),
        (lambda: fedrift.heterogeneity([], ["a"]), "there are no clients"),
        (lambda: fedrift.heterogeneity([[0.9], [1.0]], ["a", "b"]), "row 0.9 is no row number"),
        (lambda: fedrift.heterogeneity([["0"], [1]], ["a", "b"]), "row '0' is no row number"),
        (lambda: fedrift.heterogeneity([[True], [False]], ["a", "b"]), "a mask of rows has 1 values for 2 texts"),
        (lambda: fedrift.heterogeneity([0, 1], ["a", "b"]), "the rows of a client are 0"),
        (lambda: fedrift.heterogeneity([[0], [1]], ["a", None]), "row 1 of the text is"),
        (lambda: fedrift.heterogeneity([[0], [1]], "ab"), "give a list of texts"),
        (lambda: fedrift.heterogeneity([[0], [1]], ["a", "b"], ["x"]), "1 labels for 2 texts"),
        (lambda: fedrift.heterogeneity([[0], [1]], ["a", "b"], ["x"] * 3), "3 labels for 2 texts"),
        (lambda: fedrift.heterogeneity([dataset], labels=["x"]), "labels are given without texts"),
        (lambda: fedrift.heterogeneity([dataset_of([{"id": 1}])], label_column="label"), r"holds structures \(id\)"),
        (lambda: fedrift.heterogeneity(fedrift.partitioner(mix, dataset), ["a"]), "leave texts out"),
    ):
        with pytest.raises(fedrift.UserError, match=message):
            call()


def test_neither_torch_nor_datasets_is_imported():
    code = (
        "import sys, fedrift; fedrift.partitioner, fedrift.heterogeneity, fedrift.TopicMix; print({'torch', 'datasets'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_flwr_datasets_accepts_the_partitioner(tmp_path):
    """Runs in a separate environment, because flwr-datasets requires datasets < 5; docs/partitioners.md describes how to make it."""
    python = os.environ.get("FEDRIFT_FLWR_DATASETS_PYTHON")
    if not python:
        pytest.skip("set FEDRIFT_FLWR_DATASETS_PYTHON to the Python of an environment with flwr-datasets (docs/partitioners.md)")
    script = ROOT / "tests" / "partition" / "flwr_datasets_check.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([python, str(script), str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "flwr-datasets" in done.stdout, done.stderr
