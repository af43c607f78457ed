"""Test that each unusual corpus in the folder of real corpora gives its correct content or one line of refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedrift.core.errors import UserError
from fedrift.data import DatasetConfig, load_corpus

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
TOPICS = ("food", "space", "sport")
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="the test needs the unusual corpora, but their folder does not exist beside the project"
)


@pytest.mark.parametrize(
    ("name", "train", "test", "domains", "words"),
    [
        ("c01_numbered_shards", 240, 30, TOPICS, ""),
        ("c03_train_testing", 120, 30, TOPICS, ""),
        ("c04_train_and_gz", 120, 30, TOPICS, ""),
        ("c12_classlabel.parquet", 120, 0, TOPICS, ""),
        ("c13_save_to_disk", 108, 12, TOPICS, ""),
        ("c16_label_NA.csv", 120, 0, TOPICS, "30 labels are 'NA', 'None', 'null' and count as missing"),
        ("c31_unsup_folder", 20, 20, ("food", "sport"), "ignored unsup/"),
    ],
)
def test_the_corpus_is_read_correctly(name, train, test, domains, words):
    corpus = load_corpus(DatasetConfig(str(CASES / name), validation_fraction=0.0, test_fraction=0.0))
    assert np.bincount(corpus.split, minlength=3).tolist() == [train, 0, test]
    assert corpus.domains == domains
    assert words in "; ".join(corpus.notes)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("c11_struct_label.parquet", r"column 'label' holds structures \(id, name\)"),
        ("c27_stray_quote.csv", "line 7: .* line 62 "),
        ("c32_id_label.csv", "does not hold topics"),
    ],
)
def test_the_corpus_is_refused_in_one_line(name, words):
    with pytest.raises(UserError, match=words) as caught:
        load_corpus(DatasetConfig(str(CASES / name)))
    assert len(str(caught.value).splitlines()) == 1
