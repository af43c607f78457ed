"""Test which files of a folder are read, as which split, and which notes or refusals name the others."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
import socket
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrift.core.errors import UserError
from fedrift.data import DatasetConfig, load_corpus


def load(path: Path, **more):
    return load_corpus(DatasetConfig(str(path), **{"validation_fraction": 0.0, "test_fraction": 0.0, **more}))


def refusal(path: Path, **more) -> str:
    with pytest.raises(UserError) as caught:
        load(path, **more)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def write_files(folder: Path, **files: str) -> Path:
    """Write files; a table has one document for each letter of its content, with the letter as its text."""
    for place, letters in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.name.lower()
        if name.endswith(".txt"):
            path.write_text(letters)
        elif ".parquet" in name:
            pd.DataFrame({"text": list(letters), "label": "x"}).to_parquet(path)
        elif ".json" in name:
            path.write_text("".join(json.dumps({"text": one, "label": "x"}) + "\n" for one in letters))
        else:
            path.write_text("text,label\n" + "".join(f"{one},x\n" for one in letters))
    return folder


def splits(corpus) -> list[str]:
    """Return the texts of train, validation and test, each as one sorted string."""
    return ["".join(sorted(part.text)) for part in (corpus.train, corpus.validation, corpus.test)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train1.csv": "ab", "train2.csv": "cd", "test.csv": "e"}, ["abcd", "", "e"]),
        ({"train.csv": "ab", "testing.csv": "e"}, ["ab", "", "e"]),
        ({"TRAIN.CSV": "ab", "Valid.csv": "c", "Test.JSONL": "e"}, ["ab", "c", "e"]),
        ({"train-00000-of-00002.parquet": "ab", "train-00001-of-00002.parquet": "c", "dev-00000-of-00001.parquet": "d"}, ["abc", "d", ""]),
        ({"imdb_train.csv": "ab", "imdb.val.csv": "c", "imdb-test 2.csv": "e"}, ["ab", "c", "e"]),
        ({"training.csv": "ab", "validation_matched.csv": "c", "evaluation.csv": "e"}, ["ab", "c", "e"]),
        ({"trainset.csv": "ab", "testset.csv": "e"}, ["ab", "", "e"]),
        ({"train/1.csv": "a", "train/sub-train/2.csv": "b", "test/1.csv": "e"}, ["ab", "", "e"]),
        ({"train/1.csv": "a", "test.csv": "e"}, ["a", "", "e"]),
        ({"latest.csv": "a", "contest.csv": "b", "trainers.csv": "c", "devices.csv": "d"}, ["abcd", "", ""]),
        ({"train.txt": "a\n\nb", "valid.txt": "c", "test.txt": "e"}, ["ab", "c", "e"]),
    ],
    ids=lambda files: "-".join(files)[:40],
)
def test_files_belong_to_the_split_in_their_name(tmp_path, files, expected):
    assert splits(load(write_files(tmp_path, **files))) == expected


@pytest.mark.parametrize(
    ("files", "expected", "words"),
    [
        ({"train.csv": "ab", "data.csv": "c"}, ["ab", "", ""], "ignored data.csv"),
        ({"train.csv": "ab", "test.csv": "c", "unsupervised.csv": "d", "sheet.xlsx": "e"}, ["ab", "", "c"], "sheet.xlsx"),
        ({"train.csv": "ab", "test.csv.zip": "e"}, ["ab", "", ""], "ignored test.csv.zip"),
        ({"train.csv": "ab", "notes.txt": "e", "old/train.csv": "f"}, ["ab", "", ""], "notes.txt, old/train.csv"),
        ({"test.csv": "ab"}, ["ab", "", ""], "no train split: test.csv is divided into new splits"),
        ({"train.csv": "ab", "test.csv": ""}, ["ab", "", ""], "test.csv has no rows"),
        ({"train/1.txt": "a", "test/2.txt": "e", "unsup/3.txt": "f", "loose.txt": "g"}, ["a", "", "e"], "ignored unsup/, loose.txt"),
        ({"test/1.txt": "a"}, ["a", "", ""], "no train split: test/ is divided into new splits"),
        ({"train-00000-of-00003.parquet": "a", "train-00002-of-00003.parquet": "b"}, ["ab", "", ""], "of which only 2 are here"),
        ({"c4.00001-of-00512.jsonl": "a"}, ["a", "", ""], "consists of 512 files"),
        ({"all/sport/1.txt": "a", "all/food/2.txt": "b"}, ["ab", "", ""], "below all/, which is their only topic"),
        ({"tst.csv": "ab"}, ["ab", "", ""], ""),
    ],
    ids=lambda files: "-".join(files)[:40],
)
def test_ignored_files_have_a_note(tmp_path, files, expected, words):
    corpus = load(write_files(tmp_path, **files))
    assert splits(corpus) == expected
    assert words in "; ".join(corpus.notes)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"test.csv": "ab", "data.csv": "c"}, "no part named after train; its other parts are data.csv"),
        ({"test.csv": "ab", "dev.csv": "c"}, "no part named after train"),
        ({"train_test.csv": "ab"}, "more than one split (train and test)"),
        ({"train.csv": "", "test.csv": "ab"}, "no documents to train on"),
        ({"train/1.txt": "a", "car/2.txt": "b"}, "it is unclear whether train/ is a split or a topic"),
        ({"test/1.txt": "a", "car/2.txt": "b"}, "no subfolder named after train; its other subfolders are car/"),
        ({"train/test/1.txt": "a"}, "more than one split"),
        ({"trn.csv": "ab", "tst.csv": "c"}, "by their names, trn.csv, tst.csv may be splits"),
        ({"data.csv": "ab", "held-out.jsonl": "c"}, "held-out.jsonl may be splits"),
        ({"all/1.txt": "a", "holdout_set/2.txt": "b"}, "holdout_set may be splits"),
        ({"sport/train.txt": "a", "sport/test.txt": "b", "food/train.txt": "c"}, "in sport/ are named after splits"),
        ({"myTrain.csv": "ab", "myTest.csv": "c"}, "myTest.csv, myTrain.csv may be splits"),
        ({"IMDBTest.csv": "ab", "IMDB.csv": "c"}, "IMDBTest.csv may be splits"),
        ({"newsTest/1.txt": "a", "news/2.txt": "b"}, "newsTest may be splits"),
        ({"articles.csv": "ab", "tests.csv": "c"}, "tests.csv may be splits"),
        ({"flores.csv": "ab", "flores.devtest.csv": "c"}, "flores.devtest.csv may be splits"),
        ({"test.csv": "ab", "train.xlsx": "c"}, "train.xlsx is named after train but cannot be read"),
        ({"test.csv": "ab", "val.csv": "c", "old/train.csv": "d"}, "no part named after train"),
        ({"test.csv": "ab", "old/train.csv": "d"}, "old/train.csv is named after train but cannot be read"),
        ({"test.csv": "ab", "train.csv.zip": "c"}, "save it in one of them, or use one file alone"),
    ],
    ids=lambda files: "-".join(files)[:40] if isinstance(files, dict) else "",
)
def test_an_ambiguous_folder_is_refused(tmp_path, files, words):
    assert words in refusal(write_files(tmp_path, **files))


@pytest.mark.parametrize(
    "layout",
    [
        "{split}/{topic}/{n}.txt",
        "{topic}/{split}/{n}.txt",
        "whole/{split}/{topic}/{n}.TXT",
        "Data/{split}ing/{topic}/old/{n}.txt",
        "{split}_data/{topic}/{n}.txt.gz",
    ],
)
def test_split_folders_are_never_topics_at_any_level(tmp_path, layout):
    number = 0
    for split in ("train", "test"):
        for topic in ("sport", "food"):
            number += 1
            path = tmp_path / layout.format(split=split, topic=topic, n=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = f"{split} {topic}".encode()
            path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    corpus = load(tmp_path)
    assert corpus.domains == ("food", "sport")
    assert {(text, corpus.domains[label]) for text, label in zip(corpus.test.text, corpus.test.label, strict=True)} == {
        ("test sport", "sport"),
        ("test food", "food"),
    }
    assert set(corpus.train.text) == {"train sport", "train food"}


def test_metadata_files_and_hidden_files_are_not_documents(tmp_path):
    about = [
        "README.md",
        "README.txt",
        "LICENSE",
        ".gitattributes",
        "_metadata",
        "_SUCCESS",
        "croissant.json",
        "dataset_infos.json",
        "dataset_info.json",
        "metadata.json",
        ".cache/train.csv",
        ".hidden.csv",
    ]
    for name in about:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"description": "a text"}')
    corpus = load(write_files(tmp_path, **{"a.csv": "ab", "b.parquet": "c"}))
    assert splits(corpus) == ["abc", "", ""]
    assert corpus.notes == ()
    (tmp_path / "a.csv").unlink()
    (tmp_path / "b.parquet").unlink()
    assert "no usable files" in refusal(tmp_path)


@pytest.mark.parametrize("place", ["data/train.csv", "data/train/1.csv", "plain_text/train-00000-of-00001.parquet"])
def test_tables_in_a_subfolder_are_named_in_the_refusal(tmp_path, place):
    assert f"did you mean '{tmp_path / place.split('/')[0]}'?" in refusal(write_files(tmp_path, **{place: "ab", "README.md": "a"}))


def compress_zst(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": compress_zst}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "train.json", "train.parquet", "train.txt"])
def test_compressed_files_are_read_by_their_inner_type(tmp_path, name, packed):
    data = {
        "train.csv": b"text,label\nab,x\n",
        "train.tsv": b"text\tlabel\nab\tx\n",
        "train.jsonl": b'{"text": "ab", "label": "x"}\n',
        "train.json": b'[{"text": "ab", "label": "x"}]',
        "train.txt": b"ab\n",
    }.get(name)
    if data is None:
        pd.DataFrame({"text": ["ab"], "label": ["x"]}).to_parquet(tmp_path / "plain.parquet")
        data = (tmp_path / "plain.parquet").read_bytes()
        (tmp_path / "plain.parquet").unlink()
    path = tmp_path / (name + packed.upper() if packed == ".gz" else name + packed)
    path.write_bytes(PACK[packed](data))
    assert list(load(path).text) == list(load(tmp_path).text) == ["ab"]
    path.write_bytes(b"nonsense")
    assert "not a readable" in refusal(path)
    path.write_bytes(PACK[packed](data)[:-3])
    assert path.name in refusal(path)


def test_an_unsupported_suffix_is_refused_with_the_supported_ones(tmp_path):
    (tmp_path / "t.csv.zip").write_bytes(b"PK")
    assert "the format '.csv.zip' is not supported" in (words := refusal(tmp_path / "t.csv.zip"))
    assert ".parquet" in words and ".zst" in words
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"a"))
    assert "is not supported" in refusal(tmp_path / "t.gz")


@pytest.mark.parametrize("name", ["pipe.csv", "pipe.jsonl", "pipe.parquet", "pipe.txt", "pipe.csv.gz"])
def test_a_pipe_or_a_socket_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)
    assert "not a regular file" in refusal(tmp_path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert "not a regular file" in refusal(path)
    write_files(tmp_path, **{"train.csv": "ab"})
    if not name.endswith(".txt"):
        assert f"ignored {name}" in load(tmp_path).notes[0]
    link = tmp_path / "null.csv"
    link.symlink_to("/dev/null")
    assert "not a regular file" in refusal(link)


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    def part(texts):
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["food", "sport"])})
        return datasets.Dataset.from_dict({"text": list(texts), "label": [0, 1] * (len(texts) // 2)}, features=features)

    datasets.DatasetDict(train=part("abcd"), test=part("ef"), unsupervised=part("gh")).save_to_disk(tmp_path / "every")
    corpus = load(tmp_path / "every")
    assert splits(corpus) == ["abcd", "", "ef"]
    assert corpus.domains == ("food", "sport")
    assert "ignored unsupervised" in " ".join(corpus.notes)
    part("abcd").save_to_disk(tmp_path / "one")
    assert splits(load(tmp_path / "one")) == ["abcd", "", ""]
    shard = next((tmp_path / "one").glob("*.arrow"))
    assert splits(load(shard)) == ["abcd", "", ""]  # a single Arrow stream
    shard.unlink()
    assert "cannot be read" in refusal(tmp_path / "one")


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("text,label,text\na,x,b\n")
    (tmp_path / "t.tsv").write_text("text\tlabel\tlabel\na\tx\tb\n")
    assert "2 columns named 'text'" in refusal(tmp_path / "t.parquet")
    assert "2 columns named 'text'" in refusal(tmp_path / "t.csv")
    assert "2 columns named 'label'" in refusal(tmp_path / "t.tsv")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n{"text": "a", "text": "b"}\n')
    assert "line 2" in (words := refusal(tmp_path / "t.jsonl")) and "'text' twice" in words


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_refused(name):
    with pytest.raises(UserError, match="dataset is empty"):
        load_corpus(DatasetConfig(name))


@pytest.mark.parametrize(
    "name",
    ["a" * 5000, "x" * 300 + ".csv", "/" + "y" * 400, "~nobody-of-that-name/x.csv", "a\0b.csv", "a\nb", "./" + "z" * 300 + "/t.csv"],
    ids=lambda name: f"{name[:6]!r}",
)
def test_an_invalid_file_name_is_refused_in_one_line(name):
    with pytest.raises(UserError) as caught:
        load_corpus(DatasetConfig(name))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("suffix", [".bz2", ".xz"])
def test_a_damaged_second_stream_is_refused_and_never_left_out(tmp_path, suffix):
    first, second = (PACK[suffix](f"text,label\n{word} b,x\n"[11 * number :].encode()) for number, word in enumerate(("aa", "cc")))
    path = tmp_path / f"t.csv{suffix}"
    path.write_bytes(first + second + bytes(8) * (suffix == ".xz"))
    assert sorted(load(path).text) == ["aa b", "cc b"]
    path.write_bytes(first + b"?" + second[1:])
    assert "not a readable" in refusal(path)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.txt", "t.parquet", "t.arrow", "t.csv.gz"])
def test_a_pointer_of_git_lfs_is_refused_as_such(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "git lfs pull" in refusal(tmp_path / name)


def test_a_link_to_a_folder_is_followed_but_not_one_that_leads_back(tmp_path):
    for folder, word in (("news/sport", "ball"), ("elsewhere/food", "soup")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "1.txt").write_text(f"the {word}")
    (tmp_path / "news/food").symlink_to(tmp_path / "elsewhere/food")
    (tmp_path / "news/sport/loop").symlink_to(tmp_path / "news")
    (tmp_path / "elsewhere/food/loop").symlink_to(tmp_path / "elsewhere")
    corpus = load(tmp_path / "news")
    assert sorted(corpus.text) == ["the ball", "the soup"]
    assert corpus.domains == ("food", "sport")


def test_a_subfolder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    for topic in ("food", "sport"):
        (tmp_path / topic).mkdir()
        (tmp_path / topic / "1.txt").write_text(topic)
    scandir = os.scandir

    def deny(path):
        if Path(path).name == "food":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert re.search("food: Permission denied", refusal(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [("https://example.org/a.jsonl", "download the file"), ("s3://bucket/a.csv", "download the file"), ("data/*.jsonl", "give the folder")],
)
def test_addresses_and_patterns_are_refused_with_the_way_out(name, words):
    assert words in refusal(name)


def test_a_date_outside_the_range_of_python_is_refused(tmp_path):
    days = pa.array([0, 2**31 - 1], pa.date32())
    pq.write_table(pa.table({"text": ["a b", "c d"], "label": days}), tmp_path / "t.parquet")
    assert "as text" in refusal(tmp_path / "t.parquet")
