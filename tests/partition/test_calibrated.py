"""Test calibrated partitions as experiments configure them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.config.schema import iid_baseline, parse_config
from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.partition import Calibrated, Composed, Dirichlet, KDomains, Length, Quantity, Style, TokenTilt, TopicMix
from fedrift.partition.base import display_name
from fedrift.partition.composite import label_severity, token_severity

from .corpora import make_topic_corpus
from .test_rewriting import make_stories


def stream():
    return numpy_stream(0, "partition")


def written_and_parsed(partition):
    return parse_config({"dataset": "bbc", "partition": partition}).partition


def test_the_name_states_what_is_calibrated_or_composed():
    assert display_name(Calibrated(base=Dirichlet())) == "Calibrated Dirichlet"
    assert display_name(Calibrated(base=Composed(topic_severity=0.5))) == "Calibrated Composed mix 0.5 quantity 0.5"
    assert display_name(TopicMix()) == "TopicMix"


def test_a_nested_partition_is_read_and_written_back():
    yaml = {"type": "Calibrated", "num_clients": 4, "severity": 0.5, "base": {"type": "Composed", "topic_method": "dirichlet"}}
    assert written_and_parsed(yaml) == Calibrated(4, 0.5, Composed(topic_method="dirichlet"))
    assert written_and_parsed({"type": "Calibrated", "base": "Dirichlet"}) == Calibrated(base=Dirichlet())
    assert written_and_parsed({"type": "Calibrated", "base": {"budgets": "equal"}}) == Calibrated(base=TopicMix(budgets="equal"))
    assert written_and_parsed({"type": "Calibrated", "base": {"type": "Calibrated", "base": "KDomains"}}).base.base == KDomains()
    experiment = parse_config({"dataset": "bbc", "partition": yaml}, ["partition.base.topic_severity=0.5", "partition.measure=words"])
    assert experiment.partition == Calibrated(4, 0.5, Composed(topic_method="dirichlet", topic_severity=0.5), measure="words")
    assert parse_config(experiment.to_dict()) == experiment and parse_config(experiment.to_dict()).id == experiment.id


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ({"type": "Calibrated", "base": "TopicMx"}, "partition.base: no base 'TopicMx': did you mean 'TopicMix'?"),
        ({"type": "Calibrated", "base": {"type": "Dirichlet", "beta": 1}}, "partition.base.beta: Dirichlet has no such key"),
        (
            {"type": "Calibrated", "base": {"type": "Composed", "topic_severity": 2}},
            "partition.base.topic_severity: expected a number from 0 to 1, got 2",
        ),
        ({"type": "Calibrated", "measure": "bits"}, "partition.measure: expected 'domains' or 'words'"),
    ],
)
def test_a_mistake_in_a_nested_partition_is_refused_with_its_place(partition, message):
    with pytest.raises(UserError) as raised:
        written_and_parsed(partition)
    assert message in str(raised.value)


@pytest.mark.parametrize("of", [TopicMix(), Dirichlet(), Composed(quantity_severity=0.2)], ids=lambda of: type(of).__name__)
@pytest.mark.parametrize("severity", [0.2, 0.5])
def test_the_measured_value_equals_the_severity(of, severity):
    documents = make_topic_corpus(2000)
    partition = Calibrated(8, severity, of)(documents, stream())
    assert abs(label_severity(documents, partition) - severity) <= 0.01


def test_word_divergence_is_a_unit_for_partitions_without_labels():
    documents = make_topic_corpus(600)
    partition = Calibrated(4, 0.05, TokenTilt(), measure="words")(documents, stream())
    assert abs(token_severity(documents, partition) - 0.05) <= 0.01


def test_a_calibrated_partition_keeps_its_rewrites():
    partition = Calibrated(3, 0.05, Style(), measure="words")(make_stories(300), stream())
    assert all(partition.rewrites)


@pytest.mark.parametrize("of", [TopicMix(), Dirichlet(), Quantity(), Length(), TokenTilt(), Composed()], ids=lambda of: type(of).__name__)
def test_severity_0_is_the_iid_baseline_of_the_nested_partition(of):
    documents = make_topic_corpus(400)
    calibrated = Calibrated(5, 0.9, of, if_unreachable="nearest")
    one = replace(calibrated, severity=0.0)(documents, stream())
    two = replace(of, num_clients=5, severity=0.0)(documents, stream())
    assert np.array_equal(one.document_owners(400), two.document_owners(400))
    experiment = parse_config({"dataset": "bbc", "partition": {"type": "Calibrated", "severity": 0.4}})
    assert iid_baseline(experiment).partition == Calibrated(severity=0.0)


def test_the_iid_baseline_is_made_even_for_a_small_corpus():
    """30 documents on 10 clients differ by chance by far more than 0.01, but severity 0 needs no calibration."""
    documents = make_topic_corpus(30)
    baseline = TopicMix(10, 0.0)(documents, stream())
    assert label_severity(documents, baseline) > 0.05
    assert np.array_equal(Calibrated(10, 0.0)(documents, stream()).document_owners(30), baseline.document_owners(30))


def test_the_partition_equals_the_nested_one_at_the_calibrated_severity():
    documents = make_topic_corpus(800)
    found = Calibrated(6, 0.3, Dirichlet()).resolve(documents, stream())
    one, two = found(documents, stream()), Calibrated(6, 0.3, Dirichlet())(documents, stream())
    assert isinstance(found, Dirichlet) and 0 < found.severity < 1 and found.num_clients == 6
    assert np.array_equal(one.document_owners(800), two.document_owners(800))


def test_unreachable_values_are_refused_or_approximated():
    documents = make_topic_corpus(400)
    with pytest.raises(UserError, match=r"No severity of Quantity gives a measured divergence of 0\.500"):
        Calibrated(4, 0.5, Quantity())(documents, stream())
    near = Calibrated(8, 0.3, KDomains(), if_unreachable="nearest")
    found = label_severity(documents, near(documents, stream()))
    steps = [label_severity(documents, KDomains(8, s)(documents, stream())) for s in np.linspace(0, 1, 7)]
    assert abs(found - 0.3) == pytest.approx(min(abs(step - 0.3) for step in steps), abs=1e-9)


def test_clients_and_severity_are_given_once():
    documents = make_topic_corpus(100)
    with pytest.raises(UserError, match=r"partition\.base\.num_clients is 3, but partition\.num_clients is 4"):
        Calibrated(4, 0.5, TopicMix(3))(documents, stream())
    with pytest.raises(UserError, match=r"partition\.base\.severity is 0\.2"):
        Calibrated(4, 0.5, TopicMix(severity=0.2))(documents, stream())
