"""Test that tables fit 80 columns without cut text and show equal values once."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fedrift.cli.app import main
from fedrift.cli.console import RunProgressBar, print_verdicts
from fedrift.cli.run import print_fork
from fedrift.cli.run_list import find_iid_baselines
from fedrift.cli.study import print_comparison, print_means
from fedrift.cli.tables import print_table
from fedrift.config.schema import iid_baseline, parse_config
from fedrift.core.records import Record
from fedrift.report.comparison import ReportPart
from fedrift.storage import Run
from fedrift.storage.index import to_iid_baseline
from fedrift.studies.fork_report import ForkReport

DOMAINS = ("entertainment-and-arts", "international.politics", "sports")
ODD = {"undefined": math.nan, "infinite": math.inf}  # values that a metric has in every round


def store(root, *overrides, severity=1.0, gap=0.0, finished=True, num_rounds=12) -> Run:
    """Store a run with made-up losses; severity 0 stores its IID baseline."""
    experiment = parse_config(
        {"dataset": "bbc", "partition": {"type": "TopicMix", "num_clients": 5, "severity": 1.0}, "training": {"num_rounds": 12}}, overrides
    )
    experiment = experiment if severity else iid_baseline(experiment)
    run = Run(root, experiment.id)
    run.folder.mkdir(parents=True)
    run.write_json("experiment", {**experiment.to_stored_dict(), "id": experiment.id})
    rows = []
    for round in range(num_rounds + 1):
        loss = 4.5 - 0.02 * round + gap * (round > 0)
        rows += [Record(round, "loss", "", -1, loss), Record(round, "perplexity", "", -1, float(np.exp(loss)))]
        rows += [Record(round, "loss", domain, -1, loss + 0.1 * index) for index, domain in enumerate(DOMAINS)]
        rows += [
            Record(round, "update.consensus.of_all_adapters_and_layers", "", -1, 0.5),
            Record(round, "cost.tokens", "", -1, 1e6 * round),
        ]
    run.append_records(rows)
    if finished:
        run.mark_finished({"final_loss": 4.3, "train_tokens": 1, "seconds": {"train": 1.0, "evaluate": 1.0, "final": 0.0}})
    return run


@pytest.fixture
def run_at_80_columns(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command on a terminal of 80 columns in an empty folder and returns its output, whose lines must fit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["fedrift", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr().out
        assert not ended.value.code and "…" not in out
        assert max(map(len, out.splitlines())) <= 80
        return out

    return call


def test_list_shows_losses_the_gap_and_only_what_differs(tmp_path, run_at_80_columns):
    run, baseline = store(tmp_path / "runs", gap=0.25), store(tmp_path / "runs", severity=0)
    other = store(tmp_path / "runs", "algorithm={type: FedProx, mu: 0.01}", "training.client_optimizer.lr=0.5", finished=False)
    out = run_at_80_columns("list")
    assert "All 3 runs: " in out and "dataset bbc" in out and "partition TopicMix" in out and "seed 0" in out
    line = next(line for line in out.splitlines() if run.id[:6] in line)
    assert line.split()[:6] == [run.id[:6], "finished", "12/12", "94.6", "4.550", "+0.250"]
    assert "+0.250" not in next(line for line in out.splitlines() if baseline.id[:6] in line)
    assert "unfinished" in next(line for line in out.splitlines() if other.id[:6] in line) and "lr=0.5" in out
    assert "TopicMix" not in out.partition("run ")[2]


def test_list_of_many_differences_still_fits(tmp_path, run_at_80_columns):
    models = ["a-model-with-a-long-name-in-a-folder", "another-one-with-a-longer-name-in-a-folder-of-mine"]
    for seed in range(4):
        overrides = [
            f"seed={1000 + seed}",
            f"model={models[seed % 2]}",
            f"partition={['TopicMix', 'StopwordDrop'][seed % 2]}",
            f"training.local_steps={seed + 1}",
            f"training.batch_size={seed + 1}",
            f"algorithm={['FedAvg', 'ScaffoldWeighted'][seed // 2]}",
            f"trainable={['Lora', 'All'][seed % 2]}",
            f"training.client_optimizer.lr={0.1 / (seed + 1)}",
        ]
        store(tmp_path / "runs", *overrides, gap=1.0 * seed)
    out = run_at_80_columns("list")
    assert "ScaffoldWeighted" in out and "StopwordDrop" in out and "1003" in out and "local_steps=4" in out
    for name in models:
        assert name in out.replace("\n", "").replace(" ", "") or name[:32] in out


def test_compare_groups_metrics_and_hides_equal_ones(tmp_path, run_at_80_columns):
    first, second = store(tmp_path / "runs"), store(tmp_path / "runs", "seed=1", gap=0.125)
    out = run_at_80_columns("compare", first.id, second.id)
    titles = [line.strip() for line in out.splitlines()]
    assert titles.index("loss") < titles.index("perplexity") and "@international.politics" in out and "+0.125" in out
    assert "of_all_adapters" not in out and "2 of 7 metrics are equal in both runs and hidden; --all shows them" in " ".join(out.split())
    assert "of_all_adapters_and_layers" in run_at_80_columns("compare", first.id, second.id, "--all")


def test_a_run_equals_itself_even_where_it_has_no_number(tmp_path, run_at_80_columns):
    run = store(tmp_path / "runs", finished=False)
    run.append_records([Record(round, f"update.{name}", "", -1, value) for round in range(13) for name, value in ODD.items()])
    assert "9 of 9 metrics are equal in both runs" in " ".join(run_at_80_columns("compare", run.id, run.id).split())
    shown = run_at_80_columns("compare", run.id, run.id, "--all")
    assert "nan" not in next(line for line in shown.splitlines() if "undefined" in line)


def test_show_judges_a_run_with_its_stored_baseline(tmp_path, run_at_80_columns):
    run = store(tmp_path / "runs", gap=0.15)
    alone = " ".join(run_at_80_columns("show", run.id).split())
    assert "Without an IID baseline, the effect of heterogeneity is unknown." in alone
    assert "perplexity 73.7 (loss 4.300 nats per token) after the last round on more held-out text" in alone
    baseline = store(tmp_path / "runs", severity=0)
    together = " ".join(run_at_80_columns("show", run.id).split())
    assert "above the matched IID baseline's" in together and "Suspected: " in together and "Without an IID baseline" not in together
    (baseline.folder / "records.jsonl").write_text("{")
    (baseline.folder / "records.parquet").unlink(missing_ok=True)
    assert "Without an IID baseline" in " ".join(run_at_80_columns("show", run.id).split())  # a damaged baseline hides no other run


def test_a_run_that_is_too_short_has_the_same_diagnosis_in_table_and_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run, baseline = (store(tmp_path / "runs", severity=severity, num_rounds=2) for severity in (1, 0))
    print_verdicts([(run, baseline)])
    out = capsys.readouterr().out
    assert "Too early to judge" in out and max(map(len, out.splitlines())) <= 80
    table = out.partition("FedAvg:")[0]
    assert run.id[:6] in table and "none" not in table and "too short to" in table


def test_wide_fork_and_clustering_tables_are_split(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    domains = dict.fromkeys([f"domain-number-{i}" for i in range(6)], 0.123)
    rounds = [SimpleNamespace(round=round, distance=0.1, origin=4.0, fork=4.1, difference=0.1, domains=domains) for round in range(1, 4)]
    print_fork(ForkReport("a" * 12, "b" * 12, 1, "", "without client 3", True, tuple(rounds), ()))  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and all(f"domain-number-{i}" in out for i in range(6)) and "…" not in out
    columns = ["condition", *(f"a metric of number {i}" for i in range(9))]
    rows = [["text+tuned", *(f"4.1234 ({i}23.4)" for i in range(9))]]
    print_comparison([ReportPart("Losses", "Means.", columns, rows)], {}, "", None, False)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and out.count("text+tuned") > 1 and all(f"4.1234 ({i}23.4)" in out for i in range(9))


def test_no_letter_is_cut_at_any_width(capsys):
    columns = ("algorithm", "perplexity", "loss", "worst domain", "diagnosis", "run")
    row = ("FedAvg", "87.4", "4.470", "entertainment-and-arts +0.000", "too short to judge", "eaf4a4")
    for width in range(40, 120):
        print_table(Console(width=width), columns, [row], ("perplexity", "loss"), "Mean of the last 5 evaluations")
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= width and all(word in out for cell in (*columns, *row) for word in cell.split())


def test_a_word_that_is_wider_than_the_terminal_is_wrapped(capsys):
    console = Console(width=40)
    print_table(console, ("name", "value"), [("x" * 50, "1.234"), ("[bold]", "2")], numbers=("value",))
    out = capsys.readouterr().out
    assert out.count("x") == 50 and "1.234" in out and "[bold]" in out and max(map(len, out.splitlines())) <= 40


def test_a_setting_without_a_value_is_listed_as_none(tmp_path, run_at_80_columns):
    for alpha in ("null", "0.1"):
        store(tmp_path / "runs", f"partition={{type: Dirichlet, num_clients: 5, alpha: {alpha}}}")
    out = run_at_80_columns("list")
    assert "alpha=none" in out and "alpha=0.1" in out


def test_an_iid_baseline_is_found_by_its_settings():
    skewed = parse_config({"dataset": "bbc", "partition": {"type": "Dirichlet", "num_clients": 5, "alpha": 0.1}})
    configs = {"run": skewed.to_stored_dict(), "iid": iid_baseline(skewed).to_stored_dict()}
    assert find_iid_baselines(configs) == {"run": "iid"} and to_iid_baseline(configs["run"]) == configs["iid"]


def test_dataset_show_breaks_long_lines_below_their_label(tmp_path, monkeypatch, run_at_80_columns):
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "messages": [{"role": "user", "content": f"Which {topic} {n}?"}, {"role": "assistant", "content": f"This {topic} {n}."}],
            "label": topic,
        }
        for n in range(4)
        for topic in (f"a long name of topic {i}" for i in range(6))
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = run_at_80_columns("dataset", "show", "chats.jsonl", "--examples", "0")
    assert "topics       a long name of topic 0 (4), a long" in out
    note = out[out.index("note         the tokenizer has no chat template") :].splitlines()
    assert len(note) > 2 and all(line.startswith(" " * 13) for line in note[1:])


def test_a_progress_bar_with_a_long_name_shows_both_times(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with RunProgressBar(42) as bar:
        show = bar.callback_for("FedAvg TextClustering bbc a_partition_of_a_long_name 1 seed 1")
        bar.done = 36
        show(SimpleNamespace(round=6, loss=4.607))
        drawn = io.StringIO()
        Console(width=80, file=drawn).print(bar.progress.get_renderable())
        assert "4.607" in drawn.getvalue() and "42/42" in drawn.getvalue() and drawn.getvalue().count("0:00:00") == 2
        assert bar.progress.tasks[0].fields["label"].startswith("FedAvg TextClustering bbc a_partition_of_a_long_name 1 seed 1")


def test_the_means_of_a_study_fit_and_name_the_stage_only_where_there_are_several(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    metrics = {name: 4.0 for name in ("loss", "final.loss", "gap", "gap.worst", "oscillation", "movement", "update.consensus")}
    rows = [{"stage": "main", "condition": f"training.client_optimizer.lr={lr}, partition.severity=0.5", **metrics} for lr in (0.1, 1.0)]
    print_means(pd.DataFrame(rows))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "stage" not in out and "…" not in out
    assert all(name in out.replace("\n", "") for name in metrics) and out.count("4.000") == 2 * len(metrics)
    print_means(pd.DataFrame([rows[0], {**rows[1], "stage": "confirm", "gap": math.nan}]))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "stage" in out and "confirm" in out and "nan" not in out
    print_means(pd.DataFrame([]))
    assert capsys.readouterr().out == "no runs\n"


def test_models_and_datasets_are_listed_with_whole_names(run_at_80_columns):
    assert "smollm2-135m" in run_at_80_columns("models")
    out = "".join(run_at_80_columns("datasets").split())
    assert "stackoverflow_titles" in out and "google-research-datasets/" in out


def test_a_wide_result_of_a_query_is_several_tables_with_the_first_column(tmp_path, run_at_80_columns):
    first, second = (store(tmp_path / "runs", f"seed={seed}") for seed in range(2))
    out = run_at_80_columns("query", "SELECT * FROM runs ORDER BY seed")
    assert out.count(first.id) == out.count(second.id) > 3 and "training.max_seq_length" in out and "nan" not in out.lower().split()
    assert run_at_80_columns("query", "SELECT run, seed FROM runs ORDER BY 2").split() == ["run", "seed", first.id, "0", second.id, "1"]
    many = run_at_80_columns("query", f"SELECT n, '{'word ' * 20}' AS text FROM range(300) t(n)")
    assert "100 more rows; --json prints all" in many


def test_show_prints_a_warning_once_and_other_events_in_whole_words(tmp_path, run_at_80_columns):
    run = store(tmp_path / "runs")
    run.log_event(0, "warning", "a warning with " + "many words " * 12)
    run.log_event(3, "lost", "client 2 sent no update because " + "of a reason " * 8)
    out = run_at_80_columns("show", run.id)
    assert out.count("a warning with") == 1 and "round 3: lost: client 2 sent no update" in out


def test_the_monitor_does_not_cut_the_keys_in_which_runs_differ(tmp_path, run_at_80_columns):
    for blocks in (2, 3):
        store(tmp_path / "runs", f"evaluation.final_blocks_per_domain={blocks}")
    out = run_at_80_columns("monitor", "--once")
    assert all(f"evaluation.final_blocks_per_domain{blocks}" in "".join(out.split()).replace("=", "") for blocks in (2, 3))
