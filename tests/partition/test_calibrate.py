"""Test the calibration of severities to common units, and the reference tables."""

from __future__ import annotations

import pytest

from fedrift.core.errors import UserError
from fedrift.core.random import numpy_stream
from fedrift.partition import Dirichlet, KDomains, TokenTilt, TopicMix
from fedrift.partition.composite import calibrate_severity, label_severity, token_severity
from fedrift.partition.reference_tables import reproduce_tables

from .corpora import make_topic_corpus


def make_stream():
    return numpy_stream(0, "partition")


@pytest.mark.parametrize("target", [0.1, 0.3, 0.5])
def test_two_partitions_reach_equal_measured_severity(target):
    documents = make_topic_corpus(2000)
    for kind in (TopicMix, Dirichlet):
        found = calibrate_severity(kind(8), documents, target, make_stream)
        assert isinstance(found, kind) and found.num_clients == 8
        assert abs(label_severity(documents, found(documents, make_stream())) - target) <= 0.01


def test_word_divergence_is_a_common_unit_of_partitions_with_and_without_labels():
    documents = make_topic_corpus(600)
    target = 0.5 * token_severity(documents, TokenTilt(4, 1.0)(documents, make_stream()))
    for kind in (TopicMix, TokenTilt):
        found = calibrate_severity(kind(4), documents, target, make_stream, measure=token_severity, tolerance=0.005)
        assert abs(token_severity(documents, found(documents, make_stream())) - target) <= 0.005


def test_token_severity_is_0_for_iid_and_grows_with_severity():
    documents = make_topic_corpus(600)
    found = [token_severity(documents, TopicMix(4, s)(documents, make_stream())) for s in (0, 0.5, 1)]
    assert abs(found[0]) < 0.02 < found[1] < found[2] <= 1


def test_an_unreachable_target_is_refused_with_the_reachable_range():
    documents = make_topic_corpus(400)
    with pytest.raises(UserError, match=r"of KDomains gives .* 0\.300 .* 0\.00\d at severity 0 and 0\.999 at .* nearest value is 0\.2"):
        calibrate_severity(KDomains(8), documents, 0.3, make_stream)
    with pytest.raises(UserError, match=r"No severity of TokenTilt gives a measured divergence of 0\.900"):
        calibrate_severity(TokenTilt(4), documents, 0.9, make_stream, measure=token_severity)


def test_the_reference_tables_are_reproduced():
    rows = reproduce_tables(draws=1000)
    assert {row.table for row in rows} == {"mix", "dirichlet", "tilt"} and len(rows) == 5 + 24 + 5
    assert [row for row in rows if not row.is_within_tolerance] == []
