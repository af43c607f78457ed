"""Test `load_corpus`: names, hub ids, limits, domains, and the halves of the pretraining corpora."""

from __future__ import annotations

from pathlib import Path

import datasets
import pandas as pd
import pytest

from fedrift.core.errors import UserError
from fedrift.data import DatasetConfig, is_in_pretraining_half, list_datasets, load_corpus
from fedrift.data.catalog import NAMED_DATASETS, POCKET_PRETRAINING_DATASETS
from fedrift.data.dataset import known_origin


def save_corpus(folder, name, count=200, labels=("x", "y"), test=40):
    (folder / name).mkdir()
    for split, start, stop in (("train", 0, count), ("test", count, count + test)):
        pd.DataFrame(
            {
                "text": [f"document {n} of {name}" for n in range(start, stop)],
                "label": [labels[n % len(labels)] for n in range(start, stop)],
                "source": name,
            }
        ).to_parquet(folder / name / f"{split}.parquet")
    return folder


def refusal(*args, **more) -> str:
    with pytest.raises(UserError) as caught:
        load_corpus(
            DatasetConfig(*args, **{k: v for k, v in more.items() if k not in ("data_dir", "subset")}),
            **{k: v for k, v in more.items() if k in ("data_dir", "subset")},
        )
    return str(caught.value)


def test_an_unknown_corpus_is_refused_with_the_nearest_name():
    assert "did you mean 'ag_news'?" in refusal("agnews")


def test_a_local_folder_has_priority_over_the_hub(tmp_path, monkeypatch):
    save_corpus(tmp_path, "ag_news")
    given = load_corpus(DatasetConfig("ag_news"), data_dir=tmp_path)
    monkeypatch.setenv("FEDRIFT_DATA", str(tmp_path))
    assert load_corpus(DatasetConfig("ag_news")).fingerprint == given.fingerprint
    assert len(given.test) == 40
    assert len(given.validation) == 20
    assert len(given.train) == 180


def test_a_corpus_without_a_hub_id_is_refused_with_the_required_folder(tmp_path):
    assert "medquad/" in (said := refusal("medquad"))
    assert "FEDRIFT_DATA is not set" in said
    assert str(tmp_path) in refusal("medquad", data_dir=tmp_path)
    assert "reddit_posts/" in refusal("reddit_topics")
    assert "github.com/abachaa/MedQuAD" in said and "docs/corpora.md" in said


def test_every_named_dataset_is_publicly_available():
    page = (Path(__file__).resolve().parents[2] / "docs" / "corpora.md").read_text(encoding="utf-8")
    for name, named in NAMED_DATASETS.items():
        assert named.hub_id or named.published_at or named.parts or name in ("bbc", "synthetic"), name
        assert not (named.published_at and not named.base_name) or f"| `{name}` |" in page, name


def test_a_limit_keeps_splits_and_labels_in_proportion(tmp_path):
    corpus = load_corpus(DatasetConfig("ag_news", limit=60, validation_fraction=0.0), data_dir=save_corpus(tmp_path, "ag_news"))
    assert len(corpus) == 60
    assert len(corpus.test) == 10
    assert abs((corpus.label == 0).sum() - 30) <= 2
    assert corpus.drop_counts == {"limit": 180}


def test_domains_can_be_limited_and_unknown_ones_are_refused(tmp_path):
    save_corpus(tmp_path, "ag_news", labels=("Sports", "World", "Business"))
    corpus = load_corpus(DatasetConfig("ag_news", domains=("World", "Sports")), data_dir=tmp_path)
    assert corpus.domains == ("Sports", "World")
    assert set(corpus.label) == {0, 1}
    assert len(corpus) == 160
    assert "did you mean 'Sports'" in refusal("ag_news", domains=("sport",), data_dir=tmp_path)


def test_a_variant_merges_labels_into_domains(tmp_path):
    save_corpus(tmp_path, "newsgroups20", labels=("sci.med", "sci.crypt", "comp.graphics", "alt.atheism"))
    corpus = load_corpus(DatasetConfig("newsgroups_topics"), data_dir=tmp_path)
    assert corpus.domains == ("health", "tech")
    assert len(corpus) == 180
    assert corpus.drop_counts == {"other domain": 60}


def test_wikitext_documents_are_its_paragraphs(tmp_path):
    (tmp_path / "wikitext2").mkdir()
    lines = ["", " = Title = \n", " A paragraph . \n", " = = Part = = \n", " Another one . \n", " \n"]
    pd.DataFrame({"text": lines, "label": None, "source": "w"}).to_parquet(tmp_path / "wikitext2" / "test.parquet")
    corpus = load_corpus(DatasetConfig("wikitext2"), data_dir=tmp_path)
    assert set(corpus.text) == {"A paragraph .", "Another one ."}
    assert corpus.domains == ()
    assert corpus.drop_counts == {"empty": 2, "heading": 2}


def test_fractions_that_leave_no_training_split_are_refused():
    assert "no documents to train on" in refusal("bbc", validation_fraction=0.5, test_fraction=0.5)


def test_changed_data_is_refused(tmp_path):
    content = load_corpus(DatasetConfig("ag_news"), data_dir=save_corpus(tmp_path, "ag_news")).fingerprint
    assert load_corpus(DatasetConfig("ag_news", fingerprint=content), data_dir=tmp_path).fingerprint == content
    assert "has changed" in refusal("ag_news", fingerprint="0" * 64, data_dir=tmp_path)


# Halves of the pretraining corpora


@pytest.mark.parametrize("name", sorted(POCKET_PRETRAINING_DATASETS))
def test_the_unseen_half_has_no_document_of_the_pretraining_of_pocket(tmp_path, name):
    save_corpus(tmp_path, name)
    whole, unseen, read = (
        load_corpus(DatasetConfig(name), data_dir=tmp_path, subset=subset) for subset in ("all", "unseen", "pretraining")
    )
    dealt_from_train = [*unseen.train.text, *unseen.validation.text]
    assert len(dealt_from_train) > 50
    assert not any(is_in_pretraining_half(text) for text in dealt_from_train)
    assert all(is_in_pretraining_half(text) for text in [*read.train.text, *read.validation.text])
    assert set(unseen.test.text) == set(whole.test.text) == set(read.test.text)
    assert len(unseen) + len(read) == len(whole) + len(whole.test)


def test_variants_paths_and_hub_ids_of_a_corpus_have_the_same_halves(tmp_path):
    save_corpus(tmp_path, "dbpedia")
    for name in (tmp_path / "dbpedia", tmp_path / "dbpedia" / "train.parquet"):
        assert not any(map(is_in_pretraining_half, load_corpus(DatasetConfig(str(name), test_fraction=0.0), subset="unseen").train.text))
    assert known_origin("reddit_topics") == "reddit_posts"
    assert known_origin("newsgroups_topics") == "newsgroups20"
    assert known_origin("Salesforce/wikitext:wikitext-103-raw-v1") == "wikitext2"
    assert known_origin("someone/else") == ""


def test_other_corpora_have_no_halves(tmp_path):
    save_corpus(tmp_path, "ag_news")
    assert len(load_corpus(DatasetConfig("ag_news"), data_dir=tmp_path, subset="unseen")) == 240
    assert "pretraining half" in refusal("ag_news", data_dir=tmp_path, subset="pretraining")
    assert "did you mean 'unseen'" in refusal("ag_news", data_dir=tmp_path, subset="unsen")


def test_the_rule_of_the_halves_is_pinned():
    said = [is_in_pretraining_half(text) for text in ("a", " a\n", "b", "c", "d", "e", "東京")]
    assert said == [True, True, True, True, True, False, False]


# The Hugging Face hub


def replace_hub(monkeypatch, found):
    def load_dataset(name, config):
        said.append((name, config))
        return found[config] if isinstance(found, dict) and config in found else found

    said: list = []
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return said


def split_by(texts, labels, feature, column="label"):
    columns = {"text": texts, column: labels, "content": texts}
    features = datasets.Features({"text": datasets.Value("string"), column: feature, "content": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features=features)


def labels_of(corpus):
    return {text: corpus.domains[label] if label >= 0 else None for text, label in zip(corpus.text, corpus.label, strict=True)}


def test_class_numbers_of_the_hub_get_their_names(monkeypatch):
    names = datasets.ClassLabel(names=["World", "Sports"])
    said = replace_hub(
        monkeypatch,
        datasets.DatasetDict(
            train=split_by(["a", "b", "c"], [0, 1, -1], names), test=split_by(["d"], [1], names), unsupervised=split_by(["e"], [0], names)
        ),
    )
    corpus = load_corpus(DatasetConfig("ag_news", validation_fraction=0.0))
    assert said == [("fancyzhx/ag_news", None)]
    assert labels_of(corpus) == {"a": "World", "b": "Sports", "c": None, "d": "Sports"}
    assert list(corpus.test.text) == ["d"]
    assert corpus.test.source[0] == "fancyzhx/ag_news:test"


def test_the_first_of_a_list_of_labels_counts(monkeypatch):
    names = datasets.List(datasets.ClassLabel(names=["joy", "fear"]))
    replace_hub(monkeypatch, datasets.DatasetDict(train=split_by(["a", "b", "c"], [[1, 0], [0], []], names, "labels")))
    assert labels_of(load_corpus(DatasetConfig("reddit_comments"))) == {"a": "fear", "b": "joy", "c": None}


def test_tweets_are_labeled_by_their_task(monkeypatch):
    said = replace_hub(
        monkeypatch,
        {
            config: datasets.DatasetDict(train=split_by([f"tweet {config}"], [0], datasets.Value("int64")))
            for config in NAMED_DATASETS["tweets"].configs
        },
    )
    corpus = load_corpus(DatasetConfig("tweets"))
    assert len(said) == 11
    assert "stance-hillary" in corpus.domains
    assert len(corpus) == 11


def test_any_hub_id_is_loaded_with_its_configuration_and_columns(monkeypatch):
    found = datasets.DatasetDict(test=split_by(list("abcdef"), list("xyxyxy"), datasets.Value("string")))
    said = replace_hub(monkeypatch, found)
    corpus = load_corpus(DatasetConfig("someone/set:plain", text_column="content", test_fraction=0.2, validation_fraction=0.0))
    assert said == [("someone/set", "plain")]
    assert len(corpus.train) == 5
    assert corpus.domains == ("x", "y")
    assert "did you mean 'content'" in refusal("someone/set", text_column="contents")


@pytest.mark.parametrize("error", [ConnectionError("no route"), FileNotFoundError("gone"), RuntimeError("proxy")])
def test_an_unreachable_hub_is_refused_with_alternatives(monkeypatch, error):
    def load_dataset(name, config):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    said = refusal("ag_news")
    assert "FEDRIFT_DATA" in said
    assert "folder" in said
    assert str(error) in said


def test_a_missing_configuration_is_refused_with_an_example(monkeypatch):
    def load_dataset(name, config):
        raise ValueError("Config name is missing. Please pick one among: ['a', 'b'].")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "someone/set:NAME" in refusal("someone/set")


# The list of corpora


def test_the_list_counts_local_documents_and_loads_nothing(tmp_path, monkeypatch):
    replace_hub(monkeypatch, None)
    save_corpus(tmp_path, "newsgroups20", labels=("sci.med", "alt.atheism"))
    listed = {item.name: item for item in list_datasets(tmp_path)}
    assert set(listed) == set(NAMED_DATASETS)
    assert listed["newsgroups20"].num_documents == 240
    assert listed["newsgroups20"].origin == "local folder"
    assert listed["newsgroups_topics"].num_documents == 120
    assert listed["tweets"].num_documents is None
    assert listed["tweets"].origin == "hub cardiffnlp/tweet_eval"
    assert listed["medquad"].num_documents is None
    assert all(item.license_terms for item in listed.values())


def test_a_damaged_local_folder_does_not_break_the_list(tmp_path):
    (tmp_path / "ag_news").mkdir()
    (tmp_path / "ag_news" / "train.parquet").write_bytes(b"nonsense")
    assert {item.name: item for item in list_datasets(tmp_path)}["ag_news"].num_documents is None


def write_rows(path, rows):
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    return str(path)


def test_texts_with_several_labels_have_a_note(tmp_path):
    rows = [{"text": f"document {n}", "label": label} for n in range(30) for label in (("zebra", "apple") if n % 3 else ("apple",))]
    name = write_rows(tmp_path / "several.jsonl", rows)
    assert "20 texts occur with several labels; each keeps the first of its labels by name" in load_corpus(DatasetConfig(name)).notes
    assert not load_corpus(DatasetConfig(write_rows(tmp_path / "one.jsonl", rows[::3]))).notes


def test_a_column_of_splits_that_is_not_read_has_a_note(tmp_path):
    rows = [{"text": f"document {n}", "label": "ab"[n % 2], "split": "train" if n < 30 else "test"} for n in range(40)]
    name = write_rows(tmp_path / "rows.jsonl", rows)
    assert any("the column 'split' is not read" in note for note in load_corpus(DatasetConfig(name)).notes)
    assert not load_corpus(DatasetConfig(name, label_column="split")).notes
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    assert any("the column 'split' is not read" in note for note in load_corpus(DatasetConfig(str(tmp_path / "saved"))).notes)


def test_missing_sources_are_no_source_and_a_known_one_is_preferred(tmp_path):
    rows = [{"text": f"document {n}", "label": "ab"[n % 2], "source": ["NA", "None", "null", "bob"][n % 4]} for n in range(40)]
    found = load_corpus(DatasetConfig(write_rows(tmp_path / "rows.jsonl", [*rows, {**rows[0], "source": "ann"}])))
    assert set(found.source) == {"", "ann", "bob"}


def test_a_topic_may_not_have_the_name_of_documents_without_a_label(tmp_path):
    rows = [
        {"text": f"document {n} of {'red blue green'.split()[n % 3]}", "label": ["unlabelled", "sport", None][n % 3]} for n in range(60)
    ]
    name = write_rows(tmp_path / "rows.jsonl", rows)
    assert "has a topic 'unlabelled' and documents without a label" in refusal(name)
    assert load_corpus(DatasetConfig(name, domains=("sport", "unlabelled"))).domains == ("sport", "unlabelled")
    assert len(load_corpus(DatasetConfig(name, num_clusters=2)).domains) == 2


def test_the_fingerprint_of_sources_depends_on_them_and_not_on_the_order(tmp_path):
    rows = [{"text": f"document {n}", "label": "ab"[n % 2], "source": f"s{n % 4}"} for n in range(40)]
    one, same, other = (
        load_corpus(DatasetConfig(write_rows(tmp_path / f"{k}.jsonl", part)))
        for k, part in enumerate((rows, rows[::-1], [{**row, "source": f"s{n // 2 % 4}"} for n, row in enumerate(rows)]))
    )
    assert one.fingerprint == other.fingerprint
    assert one.source_fingerprint == same.source_fingerprint != other.source_fingerprint
