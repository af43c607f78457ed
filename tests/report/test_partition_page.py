"""Test that the page of a partition is complete, self-contained and readable for every partition."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fedrift.core.random import numpy_stream
from fedrift.data import DatasetConfig, load_corpus
from fedrift.data.synthetic import SyntheticConfig
from fedrift.partition import Quantity, Style, TopicMix
from fedrift.report.partition_page import (
    MAX_CLIENTS_SHOWN,
    PartitionReport,
    build_partition_report,
    format_row,
    partition_label,
    render_partition,
    summarize,
    truncate_text,
    write_partition_page,
)

from .test_page import specs, visible_text


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(
        DatasetConfig("synthetic", synthetic=SyntheticConfig(num_domains=3, num_documents=240, words_per_class=15, overlap=0.3))
    ).train


def report_of(corpus, partitioner, **said) -> PartitionReport:
    dealt = partitioner(corpus, numpy_stream(0, "partition"))
    told = {"dataset": {"name": corpus.name}, "partition": {"type": type(partitioner).__name__, **vars(partitioner)}, "seed": 0}
    return build_partition_report(corpus, dealt, told, partial(numpy_stream, 0), unit="words", **{"num_resplits": 5, **said})


def test_the_page_needs_no_other_file_and_draws_every_figure(corpus, tmp_path):
    page = write_partition_page(report_of(corpus, TopicMix(3)), tmp_path)
    html = page.read_text()
    assert page == tmp_path / "index.html"
    assert "<script src" not in html and "http-equiv" not in html and "<link" not in html
    # the data of each client, their differences, and the words of three clients
    assert list(specs(html)) == [f"chart-{number}" for number in range(5)]
    assert all(f'id="chart-{number}"' in html for number in range(5))


def test_the_page_starts_with_the_clients_and_ends_with_the_partition(corpus):
    text = visible_text(render_partition(report_of(corpus, TopicMix(3))))
    words = (
        "TopicMix, severity 1",
        "differ from chance",
        "Heterogeneity of the clients",
        "word divergence",
        "Client data",
        "client 0, 100 % domain0",
        "Sample documents",
        "Partition settings",
        "severity: 1.0",
    )
    order = [text.index(word) for word in words]
    assert order == sorted(order)


def test_an_iid_partition_is_described_as_such(corpus):
    # With few re-splits, the standard deviation of a number is sometimes far too small by chance.
    iid, skewed = (report_of(corpus, TopicMix(3, severity), num_resplits=20) for severity in (0.0, 1.0))
    assert "None of the 9 measures differs from chance" in summarize(iid.heterogeneity)
    assert summarize(skewed.heterogeneity).startswith(("7 of the 9", "8 of the 9", "All 9"))
    assert "beyond chance</span>" not in render_partition(iid) and "beyond chance</span>" in render_partition(skewed)


def test_words_within_the_range_of_iid_partitions_are_grey(corpus):
    """Words come in bursts, so an IID partition has words with z far above the 4 of independent words."""
    iid, skewed = (report_of(corpus, TopicMix(3, severity)) for severity in (0.0, 1.0))
    firsts = [np.mean([words[0][1] for words in page.distinctive_words]) for page in (iid, skewed)]
    assert firsts[0] < 2 * iid.chance_z and firsts[1] > 2 * skewed.chance_z
    assert str(skewed.chance_z) in render_partition(skewed)
    assert skewed.to_json()["chance_z"] == pytest.approx(skewed.chance_z, abs=1e-3)


def test_a_nested_partition_is_named():
    assert partition_label({"type": "Calibrated", "base": {"type": "Dirichlet"}}) == "Calibrated of Dirichlet"
    assert partition_label({"type": "TopicMix"}) == "TopicMix"


def test_rewritten_samples_are_shown_with_their_originals(corpus):
    page = report_of(corpus, Style(2, styles=("plain", "slang")))
    assert page.unit == "words"
    plain, slang = page.samples
    assert not any(sample.original for sample in plain) and all(sample.original for sample in slang)
    assert "<b>original</b>" in render_partition(page)


def test_a_corpus_without_labels_shows_budgets_instead_of_domains(corpus):
    bare = replace(corpus, label=np.full(len(corpus), -1), domains=())
    html = render_partition(report_of(bare, Quantity(4, 0.6)))
    assert "words by client" in visible_text(html) and "client and domain" not in visible_text(html)
    assert "domain divergence" not in visible_text(html)
    assert len(specs(html)) >= 2


def test_of_many_clients_some_are_shown_and_the_page_states_this(corpus):
    text = visible_text(render_partition(report_of(corpus, Quantity(MAX_CLIENTS_SHOWN + 6, 0.0))))
    assert "6 more clients are not shown" in text and f"client {MAX_CLIENTS_SHOWN + 5}" not in text


def test_a_single_client_has_no_comparison(corpus):
    html = render_partition(report_of(corpus, Quantity(1)))
    assert "divergence between the words of two clients" not in html and len(specs(html)) == 1


def test_texts_are_escaped(corpus):
    page = report_of(corpus, TopicMix(3))
    evil = page.samples[0][0]._replace(text="</script><script>alert(1)</script>")
    html = render_partition(page._replace(samples=[[evil]], distinctive_words=[[("</script><b>", 9.0)]], title="<i>x"))
    assert "<script>alert" not in html and "</script><b>" not in html and "<i>x" not in html


def test_the_report_is_valid_json(corpus):
    told = json.loads(json.dumps(report_of(corpus, TopicMix(3)).to_json(), allow_nan=False))
    assert told["num_documents"] == len(corpus) and told["numbers"]["budget.variation"]["null_mean"] is None


def test_numbers_without_a_null_have_dashes(corpus):
    measured = report_of(corpus, TopicMix(3)).heterogeneity
    assert format_row(measured["budget.variation"])[3:] == ("–", "–")
    assert "±" in format_row(measured["token.jsd"])[3]


def test_an_excerpt_ends_between_words():
    assert truncate_text("one two three", 9) == "one two …"
    assert truncate_text("one\n\n two", 9) == "one two"
