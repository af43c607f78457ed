"""Test that equal cells give equal topics in every file format and on the hub."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrift.core.errors import UserError
from fedrift.data import DatasetConfig, load_corpus
from fedrift.data.rows import group_similar_names, read_labels, strip_integer_decimals

TEXTS = ("apple pie", "blue moon", "team wins", "rocket starts")
CLASSES = datasets.ClassLabel(names=["food", "sport", "none"])
COLUMNS = {  # labels, their feature, the correct topics
    "text": (["a", " b", "", None], datasets.Value("string"), ["a", "b", None, None]),
    "integers": ([0, 1, 2, 1], datasets.Value("int64"), ["0", "1", "2", "1"]),
    "integers with gaps": ([0, None, 2, 1], datasets.Value("int64"), ["0", None, "2", "1"]),
    "numbers": ([1.0, None, 2.5, -3.0], datasets.Value("float64"), ["1", None, "2.5", "-3"]),
    "truth values": ([True, False, True, None], datasets.Value("bool"), ["True", "False", "True", None]),
    "missing words": (["NA", "None", "null", "b"], datasets.Value("string"), [None, None, None, "b"]),
    "versions": (["1.10", "1.1", "2.0", "2"], datasets.Value("string"), ["1.10", "1.1", "2.0", "2"]),
    "classes": ([0, 1, -1, 2], CLASSES, ["food", "sport", None, "none"]),
    "lists": ([["a", "b"], ["b"], [], None], datasets.List(datasets.Value("string")), ["a", "b", None, None]),
    "lists of classes": ([[1, 0], [0], [], [2]], datasets.List(CLASSES), ["sport", "food", None, "none"]),
}
COLUMNS_WITHOUT_CLASSES = [name for name in COLUMNS if "classes" not in name]  # columns that formats without features can store


def topics(corpus) -> list[str | None]:
    """Return the topic of each text, in the order of the texts."""
    found = {text: corpus.domains[label] if label >= 0 else None for text, label in zip(corpus.text, corpus.label, strict=True)}
    return [found[text] for text in sorted(found)]


def save_dataset(data: datasets.Dataset, kind: str, folder: Path) -> Path:
    """Save the dataset and return its path."""
    if kind == "saved":
        data.save_to_disk(folder / "saved")
        return folder / "saved"
    path = folder / f"train.{kind.removeprefix('pandas ')}"
    if kind == "pandas csv":  # pandas writes whole numbers with gaps as 1.0
        data.to_pandas().to_csv(path, index=False)
    elif kind == "pandas parquet":
        data.to_pandas().to_parquet(path)
    else:
        getattr(data, "to_" + {"jsonl": "json"}.get(kind, kind))(path)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, kind) for name in COLUMNS for kind in ("parquet", "saved")),
        *((name, kind) for name in COLUMNS_WITHOUT_CLASSES for kind in ("jsonl", "pandas parquet")),
        *((name, kind) for name in COLUMNS_WITHOUT_CLASSES if "lists" not in name for kind in ("csv", "pandas csv")),
    ],
)
def test_a_file_gives_the_topics_of_the_same_rows_on_the_hub(tmp_path, monkeypatch, name, kind):
    labels, feature, expected = COLUMNS[name]
    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    data = datasets.Dataset.from_dict({"text": list("pqrs"), "label": labels}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict(train=data))
    hub = load_corpus(DatasetConfig("someone/set"))
    local = load_corpus(DatasetConfig(str(save_dataset(data, kind, tmp_path))))
    assert topics(hub) == topics(local) == expected
    assert hub.fingerprint == local.fingerprint


def test_a_categorical_column_has_its_names(tmp_path):
    frame = pd.DataFrame({"text": list("pqr"), "label": pd.Categorical(["b", None, "a"])})
    frame.to_parquet(tmp_path / "t.parquet")
    assert topics(load_corpus(DatasetConfig(str(tmp_path / "t.parquet")))) == ["b", None, "a"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([{"id": 1, "name": "a"}], r"structures \(id, name\)"),
        ([[{"id": 1}]], "structures"),
        ([[["a"]]], "lists of lists"),
        ([b"a"], "bytes"),
    ],
)
def test_cells_that_are_not_topics_are_refused(tmp_path, cells, words):
    with pytest.raises(UserError, match=words) as caught:
        read_labels([None, *cells], None, "t.csv, column 'label'")
    assert "dataset.label_column" in str(caught.value)
    pd.DataFrame({"text": ["a"], "label": cells}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=words):
        load_corpus(DatasetConfig(str(tmp_path / "t.parquet")))


@pytest.mark.parametrize("stored", [pa.int8(), pa.int32(), pa.uint16(), pa.float64()])
def test_class_numbers_have_names_whatever_type_stores_them(tmp_path, stored):
    """Other programs store the column in another type, or as one that cannot be null, but keep the metadata."""
    features = datasets.Features({"text": datasets.Value("string"), "label": CLASSES})
    data = datasets.Dataset.from_dict({"text": list("pqrs"), "label": [0, 1, 2, 1]}, features=features)
    data.to_parquet(tmp_path / "t.parquet")
    table = pq.read_table(tmp_path / "t.parquet")
    schema = pa.schema([table.schema.field("text"), pa.field("label", stored, nullable=False)], table.schema.metadata)
    pq.write_table(table.cast(schema), tmp_path / "t.parquet")
    assert topics(load_corpus(DatasetConfig(str(tmp_path / "t.parquet")))) == ["food", "sport", "none", "sport"]


def test_a_class_number_without_a_name_is_refused():
    with pytest.raises(UserError, match=r"class number 3.*classes 0 to 2"):
        read_labels([0, 3], CLASSES, "t")


def test_missing_labels_and_doubtful_topics_have_a_note():
    labels, notes = read_labels(["NA", "N/A", "none", "Unknown", "a"], None, "t.csv, column 'label'")
    assert labels == [None, None, "none", "Unknown", "a"]
    assert notes == [
        "t.csv, column 'label': 2 labels are 'NA', 'N/A' and count as missing",
        "t.csv, column 'label': 'none', 'Unknown' counts as a topic (2 rows); dataset.domains can exclude it",
    ]
    assert "2 rows have more than one" in read_labels([["a", "b"], ["a", "c"], ["b"]], None, "t")[1][0]


def test_zero_has_one_name_and_minus_one_is_told_as_a_topic(tmp_path):
    pd.DataFrame({"text": list("pqr"), "label": [-0.0, 0.0, 1.0]}).to_parquet(tmp_path / "t.parquet")
    assert topics(load_corpus(DatasetConfig(str(tmp_path / "t.parquet")))) == ["0", "0", "1"]
    assert read_labels([Decimal("-0.0"), Decimal("0")], None, "t")[0] == ["0", "0"]
    assert "'-1' counts as a topic (2 rows)" in read_labels([-1, 0, -1], None, "t")[1][0]


def test_a_label_column_of_almost_the_expected_name_is_told(tmp_path):
    (tmp_path / "t.csv").write_text("text, Label\na,x\nb,y\n")
    (note,) = load_corpus(DatasetConfig(str(tmp_path / "t.csv"))).notes
    assert note.startswith("t.csv has no column 'label' but ' Label', so that no document has a label")
    assert load_corpus(DatasetConfig(str(tmp_path / "t.csv"), label_column="")).notes == ()


def test_whole_numbers_lose_their_decimal_point_only_in_numeric_columns():
    assert strip_integer_decimals(["1.0", None, "20.0", "3"]) == ["1", None, "20", "3"]
    for kept in (["1.0", "a"], ["1.0", "1.10"], ["01.0", "2.0"], ["1.00", "2.0"], ["1e3", "2.0"], ["007", "008"]):
        assert strip_integer_decimals(kept) == kept


def test_topics_that_differ_in_case_or_spaces_have_a_note(tmp_path):
    assert group_similar_names(("Sport", "food", "sport", "New York", "New  York")) == [("Sport", "sport"), ("New York", "New  York")]
    (tmp_path / "t.csv").write_text("text,label\na,Sport\nb,sport\nc, sport \n")
    corpus = load_corpus(DatasetConfig(str(tmp_path / "t.csv")))
    assert corpus.domains == ("Sport", "sport")
    assert corpus.notes == ("topics 'Sport', 'sport' differ only in capitals or white space and count as 2 topics",)


def test_labels_that_are_document_ids_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"text {TEXTS[n % 4]} {n},id{n}\n" for n in range(40)))
    with pytest.raises(UserError, match=r"40 different labels for 40 documents.*dataset\.label_column.*dataset\.num_clusters"):
        load_corpus(DatasetConfig(str(tmp_path / "t.csv")))
    assert load_corpus(DatasetConfig(str(tmp_path / "t.csv"), label_column="")).domains == ()
    assert load_corpus(DatasetConfig(str(tmp_path / "t.csv"), num_clusters=2)).domains == ("cluster0", "cluster1")


@pytest.mark.parametrize("cell", [{"id": 1}, ["a", "b"], [{"id": 1}]])
def test_sources_that_are_structures_are_refused(tmp_path, cell):
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{n} word", "source": cell}) for n in range(4)))
    with pytest.raises(UserError, match=r"cannot be sources.*source_column=''"):
        load_corpus(DatasetConfig(str(path)))
    assert len(load_corpus(DatasetConfig(str(path), source_column=""))) == 4


@pytest.mark.parametrize(
    ("key", "names", "words"),
    [("topic", ("sport", "food"), "no held-out document has one"), ("label", ("0", "1"), "topics without training documents ('0', '1')")],
)
def test_splits_whose_labels_disagree_have_a_note(tmp_path, key, names, words):
    rows = [{"text": f"train {n}", "label": ("sport", "food")[n % 2]} for n in range(8)]
    tests = [{"text": f"test {n}", key: names[n % 2]} for n in range(4)]
    for name, part in (("train", rows), ("test", tests)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    assert any(words in note for note in load_corpus(DatasetConfig(str(tmp_path))).notes)


def test_a_corpus_of_mostly_repeated_texts_has_a_note(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n" + "sport,a\n" * 9 + "food,b\n")
    assert load_corpus(DatasetConfig(str(tmp_path / "t.csv"))).notes == ("8 of 10 rows repeat the text of another row and were left out",)


def test_a_table_without_rows_says_so(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"t\.csv has no rows"):
        load_corpus(DatasetConfig(str(tmp_path / "t.csv")))


def test_the_labels_of_an_extension_are_read_like_those_of_a_file():
    from fedrift.data.dataset import rows_of_frame

    table = [{"text": "a b", "topic": "NA", "split": "test"}, {"text": "c d", "topic": 1.0, "split": "train"}]
    rows = rows_of_frame(table, DatasetConfig("own", label_column="topic"))
    assert rows.label == [None, "1"] and list(rows.split) == [2, 0] and "'NA'" in rows.notes[0]
    with pytest.raises(UserError, match="has no column 'topik'; did you mean 'topic'"):
        rows_of_frame(table, DatasetConfig("own", label_column="topik"))
    with pytest.raises(UserError, match="cannot be topics"):
        rows_of_frame([{"text": "a", "label": {"id": 1}}], DatasetConfig("own"))
