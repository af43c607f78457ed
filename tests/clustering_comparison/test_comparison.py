"""Test the conditions of a comparison: which runs they have, that they train alike, and what the report states."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedrift.config.loader import apply_overrides
from fedrift.core.errors import UserError
from fedrift.report.comparison import render_html, render_markdown, report_parts, results_to_json, summarize_results
from fedrift.stats import mean_ci, sign_flip_test
from fedrift.storage import Run
from fedrift.storage.jsonl import to_json
from fedrift.studies.comparison import CONDITIONS, EARLIER_LABELS, build_comparison
from fedrift.studies.comparison_results import BEST_IFCA, COMPARISON_METRICS, ComparisonResults, client_losses, collect_results
from fedrift.studies.run import run_study
from tests.small_experiment import documents


@pytest.fixture(scope="module")
def results(manifest):
    return collect_results(manifest)


@pytest.fixture(scope="module")
def runs(manifest):
    return {(str(entry.factors["method"]), entry.seed): manifest.get_run(entry) for entry in manifest.read()["runs"]}


def test_a_study_with_the_earlier_name_of_a_condition_is_read(manifest, results, monkeypatch):
    contents = manifest.read()
    earlier = {present: past for past, present in EARLIER_LABELS.items()}
    entries = [replace(entry, factors={"method": earlier.get(method := entry.factors["method"], method)}) for entry in contents["runs"]]
    monkeypatch.setattr(type(manifest), "read", lambda self: {**contents, "runs": entries})
    pd.testing.assert_frame_equal(collect_results(manifest).rows, results.rows)


def test_the_records_of_each_run_are_read_once(manifest, monkeypatch):
    read, trajectory = [], Run.trajectory
    monkeypatch.setattr(Run, "trajectory", lambda self: read.append(self.id) or trajectory(self))
    collect_results(manifest)
    assert sorted(read) == sorted({entry.run for entry in manifest.read()["runs"]})


def test_every_condition_has_its_repeats_over_the_same_seeds(results, runs):
    assert {label for label, _ in runs} == {*(set(CONDITIONS) - {"random", "ifca"}), "random 1", "random 2", "ifca 1", "ifca 2"}
    assert results.conditions == [*(name for name in CONDITIONS if name != "ifca"), "ifca", BEST_IFCA] and not results.stopped_runs
    assert (results.means()["seeds"] == 2).all() and results.seeds == (0, 1)


def test_conditions_share_partition_initial_weights_and_amount_of_training(runs):
    for seed in (0, 1):
        unclustered = runs["unclustered", seed]
        for (label, of), run in runs.items():
            if of != seed or label in ("iid", "centralized"):
                continue
            assert run.config["partition_table"] == unclustered.config["partition_table"]
            one, other = run.trajectory(), unclustered.trajectory()
            assert one.curve("loss")[0] == pytest.approx(other.curve("loss")[0], abs=1e-12)
            trained = np.isfinite(one.client_table("train.loss"))[1:].sum(axis=1)
            whole = label in ("update", "cfl")  # all clients participate in the first round, and for CFL in the fifth
            assert trained.tolist() == [6 if whole else 4, 4, 4, 4, 6 if label == "cfl" else 4]


def test_random_clusters_have_the_sizes_of_the_text_clusters(runs):
    def group(label, seed):
        return np.array(runs[label, seed].read_json("clustering")[0]["cluster_ids"])

    for seed in (0, 1):
        expected = sorted(np.bincount(group("text", seed)))
        assert expected == sorted(np.bincount(group("random 1", seed))) == sorted(np.bincount(group("random 2", seed)))
    assert any((group("random 1", seed) != group("random 2", seed)).any() for seed in (0, 1))


def test_compute_includes_all_starts_and_loss_evaluations_of_ifca(results, runs):
    means = results.means().set_index("condition")["compute"]
    assert means["unclustered"] == 1 and means[BEST_IFCA] == pytest.approx(2 * means["ifca"])
    rows = results.rows.set_index(["condition", "number", "seed"])
    trained = {label: runs[label, 0].read_json("finished")["train_tokens"] for label in ("unclustered", "ifca 1")}
    # rounds, clients, models, batches, sequences, predicted tokens; an evaluation costs a third of training
    reading = 5 * 6 * 3 * 4 * 2 * 15 / 3
    assert rows.loc[("ifca", 0, 0), "compute"] == pytest.approx((trained["ifca 1"] + reading) / trained["unclustered"])


def test_the_best_start_has_the_lowest_training_loss(results):
    starts = results.rows[results.rows["condition"] == "ifca"]
    for seed, mine in starts.groupby("seed"):
        chosen = results.rows[(results.rows["condition"] == BEST_IFCA) & (results.rows["seed"] == seed)].iloc[0]
        assert chosen["run"] == mine.loc[mine["train"].idxmin(), "run"] and chosen["own"] in set(mine["own"])


def test_the_pooled_model_is_evaluated_on_the_text_of_every_client(runs):
    unclustered, centralized = runs["unclustered", 0], runs["centralized", 0]
    own, cross = client_losses(centralized.trajectory(), unclustered)
    seen, table = centralized.trajectory(), unclustered.config["partition_table"]
    loss = np.array([seen.curve("final.loss", name)[-1] for name in table["domains"]])
    for client, tokens in enumerate(table["tokens"]):
        home = int(np.argmax(tokens))  # each client has one topic
        assert own[client] == pytest.approx(loss[home])
        assert cross[client] == pytest.approx(np.delete(loss, home).mean())
    same, _ = client_losses(unclustered.trajectory(), unclustered)
    assert same == pytest.approx(
        np.array([unclustered.trajectory().curve("final.loss", table["domains"][int(np.argmax(tokens))])[-1] for tokens in table["tokens"]])
    )


def test_personalized_models_are_evaluated(runs):
    tuned = runs["fine-tuned", 0].trajectory()
    assert tuned.client_table("final.loss.own")[-1] == pytest.approx(
        tuned.client_table("final.loss.personalized")[-1]
    )  # clients of one topic and all blocks
    assert tuned.client_table("final.loss.own")[-1] != pytest.approx(tuned.client_table("final.loss")[-1])


def test_differences_are_paired_by_seed_with_exact_p_values(results):
    wide = results.seed_means("own").pivot(index="seed", columns="condition", values="own")
    row = results.contrasts("own", "random").set_index("condition").loc["text"]
    d = (wide["text"] - wide["random"]).to_numpy()
    assert (
        row["effect"] == pytest.approx(d.mean())
        and (row["low"], row["high"]) == pytest.approx((mean_ci(d).low, mean_ci(d).high))
        and row["p"] == sign_flip_test(d).value
        and row["min_attainable_p"] == 0.5
    )
    assert "no exact p below 0.5 is possible" in results.power_statement()
    share = results.recovered_gain()
    assert share.estimate == pytest.approx((wide["unclustered"] - wide["text"]).mean() / (wide["unclustered"] - wide["oracle"]).mean())


def test_every_condition_is_diagnosed_with_the_same_baselines(results):
    assert set(results.diagnoses) == set(CONDITIONS) - {"iid", "centralized"}
    gap = next(each for each in results.diagnoses["unclustered"] if each.failure == "loss gap")
    assert gap.grade != "not measured" and gap.num_seeds == 2 and math.isfinite(gap.excess)


def make_results(own, diverged=(), seeds=7) -> ComparisonResults:
    """Return results with given losses of conditions. ``diverged`` contains pairs of condition and seed."""
    rows = [
        {
            "run": f"{arm} {seed}",
            "condition": arm,
            "number": 0,
            "seed": seed,
            "iid": False,
            "diverged": (arm, seed) in diverged,
            **dict.fromkeys(COMPARISON_METRICS, math.nan),
            "train": math.nan,
            "own": math.nan if (arm, seed) in diverged else values + seed / 10,
        }
        for arm, values in own.items()
        for seed in range(seeds)
    ]
    return ComparisonResults("made", pd.DataFrame(rows), (), {}, ())


@pytest.mark.slow
def test_too_few_seeds_never_state_an_improvement():
    """The loss of text clusters is lower by .1 in every seed, up to a hundredth."""
    for seeds, verdict in ((1, "not distinguishable from"), (3, "not distinguishable from"), (7, "better than")):
        one = make_results({"unclustered": 4.1, "text": 4.0, "random": 4.1}, seeds=seeds)
        one.rows["own"] += 1e-3 * np.arange(len(one.rows)) ** 2 % 0.01
        said = summarize_results(one)
        assert f"text clusters are {verdict} random" in said and "nan" not in said and "+nan" not in render_markdown(report_parts(one))
        assert "|  to  |" not in render_markdown(report_parts(one))


def test_a_condition_with_a_diverged_run_has_no_mean():
    own = {"unclustered": 4.1, "text": 4.0, "random": 4.1}
    one = make_results(own, {("text", 0), ("random", 0)})
    means, row = one.means().set_index("condition"), one.contrasts("own", "random").set_index("condition").loc["text"]
    assert math.isnan(means.loc["text", "own"]) and means.loc["text", "diverged"] == 1 and means.loc["unclustered", "own"] > 4
    assert (row["seeds"], row["both_diverged"], row["diverged"]) == (6, 1, 2) and row["effect"] == pytest.approx(-0.1)
    every = make_results(own, {(arm, seed) for arm in own for seed in range(7)})
    assert "runs of both diverged in 7 seeds" in summarize_results(every) and "+0.0000" not in render_markdown(report_parts(every))


@pytest.mark.slow
def test_the_written_tables_contain_the_results(results):
    said = json.loads(to_json(results_to_json(results, "fedrift compare-clustering x.yaml")))
    text = results.means().set_index("condition").loc["text"]
    assert said["conditions"][1]["own"] == pytest.approx(text["own"], abs=1e-6) and said["contrasts"]["random"]["own"]
    written = render_markdown(report_parts(results), "fedrift compare-clustering x.yaml")
    assert f"{text['own']:.4f} ({math.exp(text['own']):.1f})" in written and "smallest possible 0.50" in written
    assert "<table>" in (page := render_html(report_parts(results))) and "k-means on text embeddings" in page


def test_a_finished_comparison_runs_nothing_again(comparison, cache, manifest, monkeypatch):
    def refuse(*said, **more):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr("fedrift.studies.executors.run_experiment", refuse)
    again = run_study(comparison.build_study(), cache)
    assert again.name == manifest.name and not collect_results(again).stopped_runs


def test_a_stopped_run_is_named_and_the_others_are_reported(comparison, cache, tmp_path):
    there = replace(cache, runtime=replace(cache.runtime, runs_dir=tmp_path))
    odd = replace(
        comparison,
        conditions=("unclustered", "iid", "oracle"),
        seeds=(0,),
        raw_config={
            **comparison.raw_config,
            "dataset": {**comparison.raw_config["dataset"], "label_column": ""},
            "partition": {"type": "Quantity", "num_clients": 6, "severity": 0.5},
        },
    )
    results = collect_results(run_study(odd.build_study(), there))
    assert len(results.stopped_runs) == 1
    assert results.stopped_runs[0].startswith("oracle, seed 0: OracleClustering needs the true domains of the clients")
    assert results.means()["condition"].tolist() == ["unclustered", "iid"]


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ("clustering=TextClustering", {}, "sets clustering to TextClustering"),
        ("partition.severity=0.0", {}, "clustering has no effect to measure"),
        ("partition.num_clients=3", {}, "needs at least 4 clients"),
        ("seed=0", {"conditions": ["texts"]}, "did you mean 'text'"),
    ],
)
def test_unsound_settings_are_refused(comparison, cache, change, more, message):
    with pytest.raises(UserError, match=message):
        build_comparison(apply_overrides(comparison.raw_config, [change]), cache=cache, **more)


def test_general_text_and_syntax_are_changes_since_the_start_of_each_run(comparison, cache, tmp_path):
    there = replace(cache, runtime=replace(cache.runtime, runs_dir=tmp_path))
    (tmp_path / "general.csv").write_text("text\n" + "\n".join(text for text, _ in documents(seed=1)))
    evaluate = {
        **comparison.raw_config["evaluation"],
        "probes": ["general", "syntax"],
        "expensive_interval": 5,
        "general_dataset": str(tmp_path / "general.csv"),
        "general_tokens": 128,
        "minimal_pairs": 4,
    }
    watched = replace(
        comparison,
        conditions=("unclustered", "iid", "local-only"),
        seeds=(0,),
        raw_config={**comparison.raw_config, "evaluation": evaluate},
    )
    manifest = run_study(watched.build_study(), there)
    rows = collect_results(manifest).rows.set_index("condition")
    for entry in manifest.read()["runs"]:
        seen, row = manifest.get_run(entry).trajectory(), rows.loc[entry.factors["method"]]
        for column, metric in (("general", "general.loss"), ("syntax", "syntax.accuracy")):
            written = seen.curve(metric)[seen.observed_mask(metric)]
            assert len(written) >= 2 and row[column] == pytest.approx(written[-1] - written[0]), (entry.factors, column)
    assert rows["general"].nunique() == 3  # the conditions have different values
