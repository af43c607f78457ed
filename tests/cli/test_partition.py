"""Test that ``fedrift partition`` gives the partition of a run, works without torch, and exports it for other tools."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from hashlib import sha256

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from fedrift.cli.app import app
from fedrift.cli.partition_data import OTHER_KEYS, DataConfig, load_data_config, partition_dataset
from fedrift.config.schema import ExperimentConfig
from fedrift.core.errors import UserError
from fedrift.engine.build import partition_documents
from tests import small_experiment


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Use an empty cache directory."""
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def synthetic_experiment(tmp_path):
    """An experiment on a small synthetic corpus with three clients of one domain each."""
    file = tmp_path / "e.yaml"
    said = {
        "dataset": {"name": "synthetic", "synthetic": {"num_domains": 3, "num_documents": 150, "words_per_class": 15, "overlap": 0.2}},
        "partition": {"type": "TopicMix", "num_clients": 3},
        "algorithm": "FedProx",
        "training": {"num_rounds": 2},
    }
    file.write_text(yaml.safe_dump(said))
    return file


def run_command(*arguments) -> str:
    done = CliRunner().invoke(app, ["partition", *map(str, arguments)])
    if done.exception:
        raise done.exception
    return done.stdout


def test_the_partition_is_that_of_a_run(tmp_path):
    experiment = small_experiment.experiment(tmp_path)
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(experiment.to_dict()))
    cache = small_experiment.make_cache(tmp_path)
    words = cache.get_corpus(experiment.dataset, experiment.model)
    tokens = cache.get_tokens(words, experiment.model, experiment.trainable)
    corpus = words.with_sizes(tokens.lengths)
    expected = [set(corpus.text[rows]) for rows in partition_documents(experiment, corpus).rows]
    found = partition_dataset(load_data_config(file))
    assert found.unit == "tokens" and not found.note
    assert [set(found.corpus.text[rows]) for rows in found.partition.rows] == expected
    size = dict(zip(corpus.text, corpus.size))
    assert all(size[text] == count for text, count in zip(found.corpus.text, found.corpus.size))


def test_every_key_of_an_experiment_is_accepted(synthetic_experiment):
    assert {field.name for field in fields(DataConfig)} | set(OTHER_KEYS) == {field.name for field in fields(ExperimentConfig)}
    with pytest.raises(UserError, match="did you mean 'partition'"):
        load_data_config(synthetic_experiment, ["partitoin.severity=0"])
    with pytest.raises(UserError, match=r"partition.severity"):
        load_data_config(synthetic_experiment, ["partition.severity=2"])
    with pytest.raises(UserError, match="path=value"):
        load_data_config(synthetic_experiment, ["partition"])


def test_show_needs_no_torch(synthetic_experiment, tmp_path):
    show = ["partition", "show", str(synthetic_experiment), "--html", str(tmp_path / "p.html")]
    code = (
        f"import sys; from fedrift.cli.app import app; app({show}, standalone_mode=False); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "p.html").stat().st_size > 10_000


def test_show_as_json_is_complete_and_writes_no_page(synthetic_experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = json.loads(run_command("show", synthetic_experiment, "--json", "partition.severity=0.5"))
    assert told["experiment"]["partition"]["severity"] == 0.5
    assert told["clients"] == 3 and len(told["characteristic_words"]) == 3 and len(told["word_jsd"]) == 3
    assert told["numbers"]["label.jsd"]["value"] > told["numbers"]["label.jsd"]["null_mean"]
    assert {"domain", "text", "original"} == set(told["samples"][0][0])
    assert not list(tmp_path.glob("*.html"))


def test_show_compares_embeddings_of_the_chosen_encoder(synthetic_experiment, tmp_path):
    told = json.loads(run_command("show", synthetic_experiment, "--json"))
    assert told["encoder"] == "lsa" and list((tmp_path / "cache" / "vectors").iterdir())
    for name in ("embedding.mmd2", "embedding.frechet"):
        number = told["numbers"][name]
        assert number["value"] > number["null_mean"] + 3 * number["null_std"]
    none = json.loads(run_command("show", synthetic_experiment, "--json", "--encoder", "none"))
    assert none["encoder"] == "" and "embedding.mmd2" not in none["numbers"]
    for name, number in none["numbers"].items():
        assert number["value"] == told["numbers"][name]["value"]
    iid = json.loads(run_command("show", synthetic_experiment, "--json", "partition.severity=0"))["numbers"]["embedding.mmd2"]
    assert abs(iid["value"] - iid["null_mean"]) < 4 * iid["null_std"]
    with pytest.raises(UserError, match="no encoder 'lsi': did you mean 'lsa'"):
        run_command("show", synthetic_experiment, "--encoder", "lsi")


@pytest.mark.slow
def test_show_compares_gradients_at_the_initial_model(tmp_path):
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump(small_experiment.experiment(tmp_path).to_dict()))
    told = json.loads(run_command("show", file, "--json", "--gradients"))["gradients"]
    found = {(one["weights"], one["name"]): one for one in told}
    assert {parts for parts, _ in found} == {"trained", "last block"} and len(found) == 8
    for parts in ("trained", "last block"):
        spread, ratio = found[parts, "gradient.G2"], found[parts, "gradient.B2"]
        assert spread["value"] > 3 * abs(spread["iid_mean"])
        assert 0 < spread["deviation"] < spread["value"]
        assert ratio["value"] > 1.2 and ratio["value"] > ratio["iid_mean"]
    run_command("show", file, "--gradients", "--html", tmp_path / "g.html")
    assert "Gradient heterogeneity at the initial weights" in (tmp_path / "g.html").read_text()


def test_show_prints_the_numbers_and_the_path_of_the_page(synthetic_experiment, tmp_path):
    said = run_command("show", synthetic_experiment, "--html", tmp_path / "p.html")
    for part in ("TopicMix, severity 1", "word divergence", "by chance", "domain0", "bits", "p.html"):
        assert part in said, part


def test_without_a_tokenizer_words_are_counted_and_a_note_states_this(synthetic_experiment):
    told = json.loads(run_command("show", synthetic_experiment, "--json", "model=somebody/nothing-of-that-name"))
    assert told["unit"] == "words" and "counted in words" in told["note"]


def test_export_is_read_back_by_datasets_client_by_client(synthetic_experiment, tmp_path):
    from datasets import load_dataset

    out = tmp_path / "clients"
    assert "3 clients" in run_command("export", synthetic_experiment, "--output", out)
    told = json.loads((out / "partition.json").read_text())
    done = partition_dataset(load_data_config(synthetic_experiment))
    for client, listed in enumerate(told["clients"]):
        found = load_dataset(str(out), listed["name"], cache_dir=str(tmp_path / "cache"))["train"]
        assert found.column_names == ["text", "label", "source"]
        assert set(found["label"]) == {f"domain{client}"}
        assert [sha256(text.encode()).hexdigest() for text in found["text"]] == listed["ids"]
        assert sorted(found["text"]) == sorted(done.corpus.text[done.partition.rows[client]])
        assert sha256((out / listed["file"]).read_bytes()).hexdigest() == listed["sha256"]
    assert told["experiment"]["seed"] == 0 and told["num_unused"] == 0
    ids = [one for client in told["clients"] for one in client["ids"]]
    assert len(ids) == len(set(ids)) == told["documents"]


def test_export_writes_rewritten_texts_with_the_ids_of_the_originals(synthetic_experiment, tmp_path):
    import pyarrow.parquet as pq

    out = tmp_path / "clients"
    run_command("export", synthetic_experiment, "--output", out, "partition={type: Truncate, num_clients: 2, min_words: 3}")
    told = json.loads((out / "partition.json").read_text())
    cut = pq.read_table(out / "client1" / "train.parquet").column("text").to_pylist()
    assert max(len(text.split()) for text in cut) == 3
    found = partition_dataset(load_data_config(synthetic_experiment, ["partition={type: Truncate, num_clients: 2, min_words: 3}"]))
    own = found.corpus.text[found.partition.rows[1]]
    assert told["clients"][1]["ids"] == [sha256(text.encode()).hexdigest() for text in own]
    assert [client["rewritten"] for client in told["clients"]] == [False, True]


def test_tables_show_expected_and_measured_values_and_fail_if_they_differ(monkeypatch):
    from fedrift.partition import reference_tables

    told = json.loads(run_command("tables", "--draws", "300", "--json"))
    assert len(told) == 34 and all(row["agrees"] for row in told)
    said = run_command("tables", "--draws", "300")
    assert "34 of 34 agree" in said and "0.0599" in said
    monkeypatch.setitem(reference_tables.EXPECTED_MIX, 0.25, 0.1)
    done = CliRunner().invoke(app, ["partition", "tables", "--draws", "300"])
    assert done.exit_code == 1 and "differs" in done.stdout and "33 of 34" in done.stdout


def test_the_fingerprint_depends_on_the_partition_and_the_seed(synthetic_experiment, tmp_path):
    def content(name: str, *overrides: str) -> str:
        run_command("export", synthetic_experiment, "--output", tmp_path / name, *overrides)
        return json.loads((tmp_path / name / "partition.json").read_text())["partition_fingerprint"]

    deal = "partition.severity=0"
    assert content("a", deal) == content("b", deal) != content("c", deal, "seed=1")


def test_export_refuses_a_folder_that_is_not_empty(synthetic_experiment, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("42")
    with pytest.raises(UserError, match="not empty"):
        run_command("export", synthetic_experiment, "--output", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_documents_that_a_partition_omits_are_counted(synthetic_experiment, tmp_path):
    assert np.isfinite(json.loads(run_command("show", synthetic_experiment, "--json", "partition.budgets=trimmed"))["num_unused"])
    run_command("export", synthetic_experiment, "--output", tmp_path / "t", "partition.budgets=trimmed", "partition.num_clients=2")
    told = json.loads((tmp_path / "t" / "partition.json").read_text())
    assert sum(client["documents"] for client in told["clients"]) + told["num_unused"] == told["documents"]


@pytest.mark.parametrize(
    ("table", "overrides", "words"),
    [
        (
            "text,author\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(40)),
            ["partition={type: BySource, num_clients: 2}"],
            "no column 'source' (its columns: 'text', 'author')",
        ),
        ("text,label\n" + "".join(f"text {n},id{n}\n" for n in range(40)), [], "does not hold topics"),
        ('text,label\n"a,x\nb,y\nc",x\n', [], "a quotation mark seems to be stray"),
    ],
)
def test_validate_reads_and_partitions_a_local_file(tmp_path, table, overrides, words):
    (tmp_path / "t.csv").write_text(table)
    said = {"dataset": str(tmp_path / "t.csv"), "partition": {"type": "TopicMix", "num_clients": 2}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(said))
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "e.yaml"), *overrides])
    assert isinstance(done.exception, UserError) and words in str(done.exception)
    by_author = ["partition={type: BySource, num_clients: 2}", "dataset.source_column=author"]
    if overrides:
        assert CliRunner().invoke(app, ["validate", str(tmp_path / "e.yaml"), *by_author]).exit_code == 0
    assert CliRunner().invoke(app, ["validate", str(tmp_path / "e.yaml"), "dataset=elsewhere/set"]).exit_code == 0


OWN = """
from dataclasses import dataclass
import numpy as np
from fedrift.partition import Partition

@dataclass(frozen=True)
class Own:
    num_clients: int = 2
    severity: float = 1.0

    def __call__(self, corpus, rng):
        rows, half = np.arange(len(corpus)), len(corpus) // 2
        return {}
"""


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("Partition((rows, rows[:half]))", "it holds row 0 more than once"),
        ("Partition((rows[:half], rows[half:] + 1))", "it holds row "),
        ("Partition((rows[:half] - 1, rows[half:]))", "it holds row -1"),
        ("Partition((rows[:half], rows[:0]))", "client 1 holds no document"),
        ("Partition((rows[:half] / 1.0, rows[half:]))", "its rows have the type float64"),
        ("Partition((rows < half, rows >= half))", "its rows have the type bool"),
        ("Partition((rows,))", "returned rows for 1 clients and 0 rewrites, but num_clients is 2"),
        ("Partition((rows[:half], rows[half:]), (None,))", "and 1 rewrites"),
        ("[rows[:half], rows[half:]]", "It must return a fedrift.partition.Partition"),
    ],
)
def test_an_own_partition_that_is_none_is_refused(tmp_path, monkeypatch, made, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN.replace("{}", made))
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(40)))
    (tmp_path / "e.yaml").write_text(yaml.safe_dump({"dataset": "t.csv", "partition": "own.py:Own"}))
    for command in (["validate", "e.yaml"], ["partition", "show", "e.yaml", "--json"]):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, UserError) and words in str(done.exception)


def test_the_title_has_the_alpha_in_place_of_the_severity(synthetic_experiment):
    shown = [
        json.loads(run_command("show", synthetic_experiment, "--json", "partition.type=Dirichlet", *more))["title"]
        for more in ([], ["partition.alpha=10"])
    ]
    assert [title.rpartition(", ")[2] for title in shown] == ["severity 1", "alpha 10"]
