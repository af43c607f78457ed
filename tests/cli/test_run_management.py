"""Test the commands that write an experiment, set tags and notes, delete runs, free space, export curves and estimate costs."""

from __future__ import annotations

import csv
import json
import random
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from fedrift.cli.app import main
from fedrift.config.loader import load_yaml
from fedrift.config.schema import parse_config
from fedrift.data import load_corpus
from fedrift.engine.estimate import estimate_run
from fedrift.engine.run import run_experiment
from fedrift.storage import find_run, list_runs
from tests.cli.test_tables import store
from tests.small_experiment import corpus_file, experiment, make_cache


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in an empty folder and returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedrift", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_init_fills_in_the_columns_of_a_table(tmp_path, run_command):
    rows = [{"id": i, "body": f"sentence number {i} is about " + "words " * 9, "kind": ["news", "blog", "mail"][i % 3]} for i in range(60)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "own.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    for name in ("own.jsonl", "own.csv", "own.parquet"):
        code, out, err = run_command("init", f"{name}.yaml", "--data", name)
        assert code == 0, err
        written = (tmp_path / f"{name}.yaml").read_text()
        assert "# the column of topics: news, blog, mail" in written and "text column 'body', label column 'kind'" in out
        config = parse_config(load_yaml(tmp_path / f"{name}.yaml"))
        assert (config.dataset.text_column, config.dataset.label_column, config.partition.num_clients) == ("body", "kind", 3)
        code, out, err = run_command("validate", f"{name}.yaml")
        assert code == 0, err
    code, _, err = run_command("init", "own.csv.yaml", "--data", "own.csv")
    assert code == 2 and "--force" in err


def test_init_without_topics_clusters_the_documents(tmp_path, run_command):
    corpus_file(tmp_path / "corpus.csv")
    text = (tmp_path / "corpus.csv").read_text().splitlines()
    (tmp_path / "plain.csv").write_text("text\n" + "\n".join(line.rpartition(",")[0] for line in text[1:]) + "\n")
    assert run_command("init", "plain.yaml", "--data", "plain.csv")[0] == 0
    config = parse_config(load_yaml(tmp_path / "plain.yaml"))
    assert config.dataset.num_clusters == 5 and config.dataset.label_column == ""
    assert run_command("init")[0] == 0
    assert parse_config(load_yaml(tmp_path / "experiment.yaml")).dataset.name == "bbc"
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    code, _, err = run_command("init", "n.yaml", "--data", "numbers.csv")
    assert code == 0 or "no column of text" in err


def write_chats(path, labels=(), key="messages", fields=("role", "content"), num_rows=60):
    """Write short conversations of two kinds, with a column `kind` if ``labels`` names two."""
    with path.open("w") as file:
        for i in range(num_rows):
            words = [("boil the soup with an onion", "the bread is warm"), ("which train leaves first", "at noon")][i % 2]
            turns = [
                dict(zip(fields, turn, strict=True)) for turn in (("user", f"{words[0]} {i}?"), ("assistant", f"{words[1]}, note {i}."))
            ]
            file.write(json.dumps({key: turns} | ({"kind": labels[i % 2]} if labels else {})) + "\n")
    return path.name


def test_init_finds_the_topics_of_chats(tmp_path, run_command):
    code, out, err = run_command("init", "a.yaml", "--data", write_chats(tmp_path / "a.jsonl", ("kitchen", "travel")))
    assert code == 0 and "instruction or chat data, label column 'kind'" in out, err
    config = parse_config(load_yaml(tmp_path / "a.yaml"))
    assert (config.dataset.label_column, config.dataset.num_clusters, config.partition.num_clients) == ("kind", None, 2)
    assert config.training.cohort_size(2) == 2 and config.training.max_seq_length == 128
    share = write_chats(tmp_path / "b.jsonl", key="conversations", fields=("from", "value"))
    code, out, err = run_command("init", "b.yaml", "--data", share)
    assert code == 0 and "instruction or chat data, no labels" in out, err


def test_init_gives_every_topic_of_a_small_file_held_out_documents(tmp_path, run_command):
    """With five clusters and a tenth of 60 chats held out, a run would be refused: some topics have no test document."""
    words = "soup train bread lake onion ticket butter station salt airport spoon hotel".split()
    rows = [" ".join(random.Random(number).choices(words, k=6)) for number in range(60)]
    turns = [[{"role": "user", "content": row}, {"role": "assistant", "content": row[::-1]}] for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    run_command("init", "a.yaml", "--data", "a.jsonl")
    dataset = parse_config(load_yaml(tmp_path / "a.yaml")).dataset
    default, chosen = load_corpus(replace(dataset, num_clusters=5, test_fraction=0.1)), load_corpus(dataset)
    assert set(default.label) > set(default.test.label) and set(chosen.label) == set(chosen.test.label)


def test_tags_and_notes_appear_and_a_tag_names_its_run(tmp_path, run_command):
    run, other = store(tmp_path / "runs"), store(tmp_path / "runs", "seed=1")
    code, out, _ = run_command("tag", run.id, "best", "paper")
    assert code == 0 and "best, paper" in out
    run_command("tag", other.id, "paper")
    run_command("note", "best", "the rate of the paper")
    code, out, _ = run_command("show", "best")
    assert code == 0 and "tags: best, paper" in out and "note: the rate of the paper" in out
    assert "best, paper" in run_command("list")[1]
    assert json.loads(run_command("list", "--json")[1])[0]["tags"] == ["best", "paper"]
    code, _, err = run_command("show", "paper")
    assert code == 2 and "2 runs have the tag" in err
    assert run_command("tag", run.id, "--remove", "paper")[1].strip().endswith("best")
    code, _, err = run_command("tag", run.id, "two words")
    assert code == 2 and "one word" in err


def test_delete_asks_first_and_refuses_runs_of_a_study(tmp_path, run_command, monkeypatch):
    run, other = store(tmp_path / "runs"), store(tmp_path / "runs", "seed=1")
    monkeypatch.setattr("typer.confirm", lambda question: False)
    assert run_command("delete", run.id)[0] == 1 and run.folder.exists()
    code, out, _ = run_command("delete", run.id, "--yes")
    assert code == 0 and (tmp_path / "runs" / "deleted" / f"{run.id}.1" / "experiment.json").exists() and not run.folder.exists()
    assert [each.id for each in list_runs(tmp_path / "runs")] == [other.id]
    entry = {"run": other.id}
    monkeypatch.setattr("fedrift.studies.list_studies", lambda root: ["small"])
    monkeypatch.setattr("fedrift.studies.find_study", lambda root, name: _Study([entry["run"]]))
    code, _, err = run_command("delete", other.id, "--yes")
    assert code == 2 and "belongs to the study small" in err and other.folder.exists()
    code, out, _ = run_command("delete", other.id, "--yes", "--force", "--permanently")
    assert code == 0 and not other.folder.exists() and "removed" in out


def test_delete_says_that_a_damaged_study_may_need_the_run(tmp_path, run_command):
    run = store(tmp_path / "runs")
    damaged = tmp_path / "runs" / "studies" / "damaged" / "study.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("[")
    code, _, err = run_command("delete", run.id, "--yes")
    assert code == 2 and "the study damaged may need the runs, but it cannot be read" in err and "--force" in err
    assert run_command("delete", run.id, "--yes", "--force")[0] == 0 and not run.folder.exists()


class _Study:
    """A stored study that lists some runs."""

    def __init__(self, runs):
        self.runs = runs

    def read(self):
        return {"runs": [type("Entry", (), {"run": run}) for run in self.runs]}


def test_the_state_of_a_finished_run_is_dropped_and_its_size_is_estimated(tmp_path, run_command):
    asked = experiment(tmp_path, "algorithm=Scaffold", "training.num_rounds=2", "training.participation_rate=1.0")
    cache = make_cache(tmp_path)
    expected = estimate_run(asked, cache)
    run = run_experiment(asked, cache)
    before = run.trajectory().to_frame()
    stored = run.state_path.stat().st_size + run.client_state_path.stat().st_size
    assert expected.checkpoint <= stored < expected.checkpoint + 40_000  # the names of the tensors take more space in a tiny model
    assert expected.client_states > 0 and expected.clients_per_pass == run.environment["engine"]["clients_per_pass"]
    code, out, err = run_command("drop-state", run.id, "--runs-dir", str(run.root))
    assert code == 0, err
    assert f"{stored:,} bytes freed" in out and not run.state_path.exists()
    assert find_run(run.root, run.id).trajectory().to_frame().equals(before)
    assert run_experiment(asked, make_cache(tmp_path)).id == run.id
    unfinished = store(tmp_path / "more", finished=False)
    code, _, err = run_command("drop-state", unfinished.id, "--runs-dir", str(tmp_path / "more"))
    assert code == 2 and "needs its state to resume" in err
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(asked.to_dict()))
    code, out, err = run_command("estimate", "e.yaml", "--device", "cpu")
    assert code == 0 and "checkpoint on disk" in out and max(map(len, out.splitlines())) <= 80, err
    assert json.loads(run_command("estimate", "e.yaml", "--json", "--device", "cpu")[1])["checkpoint"] == expected.checkpoint


def test_curves_are_exported_as_table_and_figure(tmp_path, run_command):
    run = store(tmp_path / "runs", gap=0.1)
    store(tmp_path / "runs", severity=0)
    code, _, err = run_command("export", run.id, "--csv", "all.csv", "--figure", "loss.svg")
    assert code == 0, err
    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(run.records()) and float(rows[0]["value"]) == run.records()[0].value
    picture = (tmp_path / "loss.svg").read_text()
    assert "<svg" in picture and "IID baseline" in picture and "loss in nats per token" in picture
    code, _, err = run_command("export", run.id, "--csv", "some.csv", "--metric", "loss@sports", "--metric", "perplexity")
    assert code == 0 and len((tmp_path / "some.csv").read_text().splitlines()) == 1 + 2 * 13, err
    assert run_command("export", run.id, "--figure", "domains.png", "--metric", "loss@*")[0] == 0
    assert (tmp_path / "domains.png").read_bytes()[:4] == b"\x89PNG"
    for words, message in [
        (("--metric", "loss"), "--csv FILE.csv"),
        (("--csv", "x.csv", "--metric", "los"), "did you mean 'loss'"),
        (("--csv", "x.csv", "--metric", "loss@sport"), "did you mean 'sports'"),
        (("--csv", "x.txt"), "written as .csv"),
        (("--figure", "x.pdf"), ".svg or .png"),
        (("--figure", "x.svg", "--hf"), "exclude --hf"),
    ]:
        code, _, err = run_command("export", run.id, *words)
        assert code == 2 and message in err, (words, err)


@pytest.mark.parametrize(("suffix", "separator", "words"), [("csv", ";", "semicolons"), ("csv", "\t", "tabs"), ("tsv", ",", "commas")])
def test_init_refuses_a_table_with_another_separator(tmp_path, run_command, suffix, separator, words):
    file = tmp_path / f"table.{suffix}"
    file.write_text("\n".join([f"text{separator}label", *(f"document {n}{separator}{'ab'[n % 2]}" for n in range(20))]))
    code, _, err = run_command("init", str(tmp_path / "a.yaml"), "--data", str(file))
    assert code == 2 and f"its cells are separated by {words}" in err
    file.write_text(
        "\n".join(
            [
                f'"text{separator}title"' if separator in ",\t" else "text;title",
                *(f"{'red green blue'.split()[n % 3]} document {n}" for n in range(40)),
            ]
        )
    )
    assert run_command("init", str(tmp_path / "b.yaml"), "--data", str(file))[0] == 0


def test_init_reads_a_column_text_beside_instructions_as_a_run_does(tmp_path, run_command):
    row = {"instruction": "add", "input": "", "output": "sum", "label": "a"}
    rows = [{**row, "text": f"add {n} and the sum", "label": "ab"[n % 2]} for n in range(40)]
    (tmp_path / "alpaca.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, out, _ = run_command("init", str(tmp_path / "a.yaml"), "--data", str(tmp_path / "alpaca.jsonl"))
    assert code == 0 and "text column 'text', label column 'label'" in out
    assert load_yaml(tmp_path / "a.yaml")["dataset"]["text_column"] == "text"
