"""Test that all kinds of local files are read alike and that every mistake is refused."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrift.core.errors import UserError
from fedrift.data import DatasetConfig, load_corpus

ROWS = [
    {"text": "Müller scores 🎉 twice", "label": "sports"},
    {"text": "東京は雨です", "label": "weather"},
    {"text": 'He said "no, thanks"\nand left.', "label": "sports"},
    {"text": "الطقس جميل اليوم", "label": None},
    {"text": "  plain  ", "label": "weather"},
]
WRITE = {
    ".parquet": lambda frame, path: frame.to_parquet(path),
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    ".json": lambda frame, path: frame.to_json(path, orient="records"),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True, force_ascii=False),
}


def load(path: Path, **more):
    return load_corpus(DatasetConfig(str(path), **more))


def labelled(corpus) -> dict[str, str | None]:
    return {text: corpus.domains[label] if label >= 0 else None for text, label in zip(corpus.text, corpus.label, strict=True)}


def refusal(path: Path, **more) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **more)
    return str(caught.value)


@pytest.mark.parametrize("suffix", WRITE)
def test_every_kind_of_table_gives_the_same_corpus(tmp_path, suffix):
    path = tmp_path / f"news{suffix}"
    WRITE[suffix](pd.DataFrame(ROWS), path)
    corpus = load(path)
    assert labelled(corpus) == {row["text"].strip(): row["label"] for row in ROWS}
    assert corpus.domains == ("sports", "weather")
    assert set(corpus.source) == {path.name}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from("xyz")), min_size=1, max_size=20),
    st.randoms(),
)
def test_a_corpus_does_not_depend_on_rows_or_file_order(tmp_path_factory, cells, random):
    cells = [("always one", "x"), *cells]
    contents = []
    for _ in range(2):
        folder = tmp_path_factory.mktemp("parts")
        cut = random.randint(0, len(cells))
        for number, part in enumerate((cells[:cut], cells[cut:])):
            lines = [json.dumps({"text": text, "label": label}) for text, label in part] or ['{"text": ""}']
            (folder / f"part{number}.jsonl").write_text("\n".join(lines))
        corpus = load(folder)
        assert len(set(corpus.text)) == len(corpus)
        contents.append((corpus.fingerprint, corpus.text.tolist(), corpus.split.tolist()))
        random.shuffle(cells)
    assert contents[0] == contents[1]


def test_split_files_keep_their_splits_and_other_files_are_ignored(tmp_path):
    for name, texts in {"train_partial": "abcdefgh", "test-00000-of-00001": "xy", "dev": "z", "extra": "q"}.items():
        pd.DataFrame({"text": list(texts)}).to_parquet(tmp_path / f"{name}.parquet")
    corpus = load(tmp_path)
    assert "ignored extra.parquet" in " ".join(corpus.notes)
    assert set(corpus.train.text) == set("abcdefgh")
    assert set(corpus.test.text) == set("xy")
    assert list(corpus.validation.text) == ["z"]


def test_a_duplicate_across_splits_stays_in_test_then_in_validation(tmp_path):
    for name, texts in {"train": ["a", "b", "c"], "validation": ["b", "c", "d"], "test": ["c", "e "]}.items():
        pd.DataFrame({"text": texts}).to_csv(tmp_path / f"{name}.csv")
    corpus = load(tmp_path)
    assert [set(part.text) for part in (corpus.train, corpus.validation, corpus.test)] == [{"a"}, {"b", "d"}, {"c", "e"}]
    assert corpus.drop_counts == {"duplicate": 3}


def test_the_labels_of_a_folder_of_texts_are_its_subfolders(tmp_path):
    for place, text in {
        "sports/1.txt": "goal",
        "sports/old/2.txt": "match",
        "tech/1.txt": "chip",
        "loose.txt": "loose",
        "tech/.hidden.txt": "no",
        "tech/empty.txt": "",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    corpus = load(tmp_path)
    assert labelled(corpus) == {"goal": "sports", "match": "sports", "chip": "tech", "loose": None}
    assert "sports/old/2.txt" in corpus.source
    assert corpus.drop_counts == {"empty": 1}


def test_a_folder_of_texts_can_have_splits_above_labels(tmp_path):
    for place in ("train/pos/1.txt", "train/neg/2.txt", "test/pos/3.txt"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place)
    corpus = load(tmp_path, validation_fraction=0.0)
    assert labelled(corpus.test) == {"test/pos/3.txt": "pos"}
    assert corpus.domains == ("neg", "pos")


def test_a_single_text_file_is_split_at_blank_lines_with_every_line_end(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffOne\r\nline.\r\n \t\r\nTwo.\r\n\r\n\r\n".encode())
    assert set(load(path).text) == {"One\nline.", "Two."}


def test_windows_line_ends_do_not_change_documents(tmp_path):
    table = 'text,label\n"a\nb",x\nc,y\n'
    (tmp_path / "unix.csv").write_bytes(table.encode())
    (tmp_path / "dos.csv").write_bytes(table.replace("\n", "\r\n").encode())
    assert load(tmp_path / "unix.csv").fingerprint == load(tmp_path / "dos.csv").fingerprint


def test_one_document_is_enough(tmp_path):
    (tmp_path / "one.csv").write_text("text\nhello there\n")
    corpus = load(tmp_path / "one.csv")
    assert len(corpus.train) == 1
    assert len(corpus.test) == 0
    assert corpus.size.tolist() == [2]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_an_enormous_line_is_one_document(tmp_path, suffix):
    long = "word " * 1_000_000
    path = tmp_path / f"long{suffix}"
    path.write_text({".csv": f"text\n{long}\n", ".jsonl": json.dumps({"text": long}), ".txt": long}[suffix])
    assert load(path).size.tolist() == [1_000_000]


def test_a_lone_surrogate_does_not_stop_loading(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"text": "bad \\ud83d end"}\n{"text": "line\u2028separator"}\n')
    assert set(load(tmp_path / "broken.jsonl").text) == {"bad \ufffd end", "line\u2028separator"}


def test_numeric_labels_become_names(tmp_path):
    pd.DataFrame({"text": list("abc"), "label": [1.0, float("nan"), 2.0]}).to_parquet(tmp_path / "n.parquet")
    assert labelled(load(tmp_path / "n.parquet")) == {"a": "1", "b": None, "c": "2"}


def test_words_for_missing_values_are_text_but_not_labels(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nNA,NA\nnull,None\n007,007\nNaN,NaN\n")
    corpus = load(tmp_path / "t.csv")
    assert labelled(corpus) == {"NA": None, "null": None, "007": "007", "NaN": None}
    assert "2 labels are 'NA', 'None' and count as missing" in corpus.notes[0]


def test_other_column_names_can_be_configured(tmp_path):
    pd.DataFrame({"body": ["a", "b"], "topic": ["x", "y"], "source": ["u", "v"]}).to_csv(tmp_path / "t.csv")
    corpus = load(tmp_path / "t.csv", text_column="body", label_column="topic")
    assert labelled(corpus) == {"a": "x", "b": "y"}
    assert set(corpus.source) == {"u", "v"}


@pytest.mark.parametrize("suffix", WRITE)
def test_a_missing_column_is_refused_with_the_existing_and_the_nearest_names(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    WRITE[suffix](pd.DataFrame({"texts": ["a"], "topic": ["x"]}), path)
    said = refusal(path)
    assert "'text'" in said
    assert "did you mean 'texts'" in said
    assert "'topic'" in said
    assert "no column 'topics'" in refusal(path, text_column="texts", label_column="topics")


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.json", "e.jsonl", "e.parquet", "e.txt"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert "is empty" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["b.csv", "b.json", "b.jsonl", "b.txt"])
def test_a_binary_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\0\0" + os.urandom(50))
    assert "is a binary file" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "damage", [lambda data: b"PAR1 nonsense", lambda data: data[:-20], lambda data: data[:60] + b"\xff" * 60 + data[120:]]
)
def test_a_damaged_parquet_file_is_refused_without_a_traceback(tmp_path, damage):
    path = tmp_path / "b.parquet"
    pd.DataFrame({"text": [f"text {n}" for n in range(50)]}).to_parquet(path)
    path.write_bytes(damage(path.read_bytes()))
    assert "b.parquet" in refusal(path)


def test_a_stream_of_batches_that_was_cut_between_two_of_them_has_a_note(tmp_path):
    sink, table = pa.BufferOutputStream(), pa.table({"text": [f"text {number}" for number in range(20)]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        ends = [(writer.write_batch(batch), sink.tell())[1] for batch in table.to_batches(5)]
    path, whole = tmp_path / "t.arrow", sink.getvalue().to_pybytes()
    path.write_bytes(whole)
    assert (len(load(path)), load(path).notes) == (20, ())
    path.write_bytes(whole[: ends[1]])
    assert (len(load(path)), load(path).notes) == (10, ("t.arrow has no end mark: it may have been cut off, and rows may be missing",))


def test_text_in_another_encoding_is_refused_with_its_place(tmp_path):
    (tmp_path / "l.csv").write_bytes("text\ncosts £5\n".encode("latin-1"))
    assert "0xa3 at position 11" in refusal(tmp_path / "l.csv")
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / "u.csv").write_bytes("text\ncosts £5\n".encode(encoding))
        assert list(load(tmp_path / "u.csv").text) == ["costs £5"]


@pytest.mark.parametrize(
    ("name", "separator", "told"),
    [
        ("t.csv", ";", "separated by semicolons, but those of a .csv file by commas. Save it again with commas"),
        ("t.v1.csv.gz", "|", "separated by vertical bars, but those of a .csv file by commas"),
        ("t.csv", "\t", "separated by tabs, but those of a .csv file by commas. Rename it to .tsv"),
        ("t.tsv", ",", "separated by commas, but those of a .tsv file by tabs. Rename it to .csv"),
    ],
)
def test_a_file_with_another_separator_names_it(tmp_path, name, separator, told):
    data = f"text{separator}label\na{separator}x\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert told in refusal(tmp_path / name)


def test_an_unquoted_separator_never_shifts_the_columns(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nfirst, second,x\nthird, fourth,y\n")
    assert "more cells" in refusal(tmp_path / "t.csv")
    (tmp_path / "s.csv").write_text("text,label\nfirst,x\nthird, fourth,y\n")
    assert "line 3" in refusal(tmp_path / "s.csv")


def test_broken_json_is_refused_with_its_line(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": \n')
    assert "line 2" in refusal(tmp_path / "t.jsonl")
    (tmp_path / "l.jsonl").write_text('["a"]\n')
    assert "expected an object" in refusal(tmp_path / "l.jsonl")


def test_an_unreadable_file_is_refused_with_the_reason(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "t.csv").write_text("text\na\n")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot read" in (said := refusal(tmp_path / "t.csv"))
    assert "Permission denied" in said


def test_a_folder_without_usable_files_is_refused_with_its_content(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    assert "photo.png" in refusal(tmp_path)
    (tmp_path / "news").mkdir()
    (tmp_path / "news" / "train.csv").write_text("text\na\n")
    assert "did you mean" in (said := refusal(tmp_path))
    assert "news" in said


def test_a_missing_path_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "news.csv").write_text("text\na\n")
    assert "did you mean" in refusal(tmp_path / "newz.csv")


def test_a_file_without_any_text_is_refused_with_the_omitted_rows(tmp_path):
    (tmp_path / "t.csv").write_text('text\n" "\n""\n')
    assert "2 empty" in refusal(tmp_path / "t.csv")
    (tmp_path / "h.csv").write_text("text,label\n")
    assert "no usable document" in refusal(tmp_path / "h.csv")
    pd.DataFrame({"text": [1, 2]}).to_parquet(tmp_path / "n.parquet")
    assert "no text but values of type int" in refusal(tmp_path / "n.parquet")
