"""The arms of one experiment: which runs they are, that they train alike, and what is told of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedrift.arms import ARMS, contest
from fedrift.arms.numbers import METRICS, by_client
from fedrift.arms.page import html, markdown
from fedrift.arms.parts import parts, plain, sentence
from fedrift.arms.table import BEST, Found, found
from fedrift.errors import UserError
from fedrift.statistics import paired_t, sign_flip
from fedrift.store.lines import write_value
from fedrift.study.conduct import conduct
from tests.worlds import documents


@pytest.fixture(scope="module")
def came(book):
    return found(book)


@pytest.fixture(scope="module")
def runs(book):
    return {(str(entry.factors["arm"]), entry.seed): book.run(entry) for entry in book.read()["runs"]}


def test_every_arm_is_there_with_its_repeats_over_the_same_seeds(came, runs):
    assert {label for label, _ in runs} == {*(set(ARMS) - {"random", "ifca"}), "random 1", "random 2", "ifca 1", "ifca 2"}
    assert came.arms == [*(name for name in ARMS if name != "ifca"), "ifca", BEST] and not came.failures
    assert (came.means()["seeds"] == 2).all() and came.seeds == (0, 1)


def test_arms_share_the_deal_the_first_weights_and_the_amount_of_training(runs):
    for seed in (0, 1):
        vanilla = runs["vanilla", seed]
        for (label, of), run in runs.items():
            if of != seed or label in ("iid", "pooled"):
                continue
            assert run.experiment["partition_table"] == vanilla.experiment["partition_table"]
            one, other = run.trajectory(), vanilla.trajectory()
            assert one.curve("loss")[0] == pytest.approx(other.curve("loss")[0], abs=1e-12)
            trained = np.isfinite(one.table("train.loss"))[1:].sum(axis=1)
            whole = label in ("update", "cfl")  # the first round, and CFL's fifth, call everybody
            assert trained.tolist() == [6 if whole else 4, 4, 4, 4, 6 if label == "cfl" else 4]


def test_random_clusters_have_the_sizes_of_the_text_clusters_and_are_drawn_anew(runs):
    def group(label, seed):
        return np.array(runs[label, seed].read_json("mitigation")[0]["group"])

    for seed in (0, 1):
        wanted = sorted(np.bincount(group("text", seed)))
        assert wanted == sorted(np.bincount(group("random 1", seed))) == sorted(np.bincount(group("random 2", seed)))
    assert any((group("random 1", seed) != group("random 2", seed)).any() for seed in (0, 1))


def test_compute_counts_all_starts_of_ifca_and_what_its_clients_read(came, runs):
    means = came.means().set_index("arm")["compute"]
    assert means["vanilla"] == 1 and means[BEST] == pytest.approx(2 * means["ifca"])
    rows = came.rows.set_index(["arm", "number", "seed"])
    trained = {label: runs[label, 0].read_json("finished")["train_tokens"] for label in ("vanilla", "ifca 1")}
    reading = 5 * 6 * 3 * 4 * 2 * 15 / 3  # rounds, clients, models, batches, sequences, predicted tokens; a third of training
    assert rows.loc[("ifca", 0, 0), "compute"] == pytest.approx((trained["ifca 1"] + reading) / trained["vanilla"])


def test_the_best_start_is_the_one_of_least_training_loss_not_of_least_test_loss(came):
    starts = came.rows[came.rows["arm"] == "ifca"]
    for seed, mine in starts.groupby("seed"):
        chosen = came.rows[(came.rows["arm"] == BEST) & (came.rows["seed"] == seed)].iloc[0]
        assert chosen["run"] == mine.loc[mine["train"].idxmin(), "run"] and chosen["own"] in set(mine["own"])


def test_the_pooled_model_is_judged_on_every_clients_own_text(runs):
    vanilla, pooled = runs["vanilla", 0], runs["pooled", 0]
    own, cross = by_client(pooled.trajectory(), vanilla)
    seen, table = pooled.trajectory(), vanilla.experiment["partition_table"]
    loss = np.array([seen.curve("final.loss", name)[-1] for name in table["domains"]])
    for client, tokens in enumerate(table["tokens"]):
        home = int(np.argmax(tokens))  # one topic a client
        assert own[client] == pytest.approx(loss[home])
        assert cross[client] == pytest.approx(np.delete(loss, home).mean())
    same, _ = by_client(vanilla.trajectory(), vanilla)
    assert same == pytest.approx(np.array([vanilla.trajectory().curve("final.loss", table["domains"][int(np.argmax(tokens))])[-1]
                                           for tokens in table["tokens"]]))


def test_clients_that_keep_models_are_judged_in_those(runs):
    tuned = runs["tuned", 0].trajectory()
    assert tuned.table("final.loss.own")[-1] == pytest.approx(tuned.table("final.loss.worn")[-1])  # pure clients, all blocks
    assert tuned.table("final.loss.own")[-1] != pytest.approx(tuned.table("final.loss")[-1])


def test_differences_are_paired_by_seed_with_exact_p_and_honest_about_two_seeds(came):
    wide = came.averaged("own").pivot(index="seed", columns="arm", values="own")
    row = came.contrasts("own", "random").set_index("arm").loc["text"]
    d = (wide["text"] - wide["random"]).to_numpy()
    assert row["effect"] == pytest.approx(d.mean()) and (row["low"], row["high"]) == pytest.approx(
        (paired_t(d).low, paired_t(d).high)) and row["p"] == sign_flip(d).value and row["attainable"] == 0.5
    assert "no exact p below 0.5 is possible" in came.limits()
    share = came.recovered()
    assert share.estimate == pytest.approx((wide["vanilla"] - wide["text"]).mean() / (wide["vanilla"] - wide["oracle"]).mean())


def test_detectors_judge_before_and_after_beside_the_same_controls(came):
    assert set(came.judgements) == set(ARMS) - {"iid", "pooled"}
    gap = next(each for each in came.judgements["vanilla"] if each.failure == "loss gap")
    assert gap.grade != "not measured" and gap.seeds == 2 and math.isfinite(gap.excess)


def made(own, diverged=(), seeds=7) -> Found:
    """A contest of given losses by arm, as if it had been run. ``diverged``: pairs of arm and seed."""
    rows = [{"run": f"{arm} {seed}", "arm": arm, "number": 0, "seed": seed, "iid": False, "diverged": (arm, seed) in diverged,
             **dict.fromkeys(METRICS, math.nan), "train": math.nan,
             "own": math.nan if (arm, seed) in diverged else values + seed / 10}
            for arm, values in own.items() for seed in range(seeds)]
    return Found("made", pd.DataFrame(rows), (), {}, ())


def test_too_few_seeds_call_nothing_better_whatever_their_interval():
    """Text clusters are .1 lower in every seed, give or take a hundredth."""
    for seeds, verdict in ((1, "not told apart from"), (3, "not told apart from"), (7, "better than")):
        one = made({"vanilla": 4.1, "text": 4.0, "random": 4.1}, seeds=seeds)
        one.rows["own"] += 1e-3 * np.arange(len(one.rows)) ** 2 % 0.01
        said = sentence(one)
        assert f"text clusters are {verdict} random" in said and "nan" not in said and "+nan" not in markdown(parts(one))
        assert "|  to  |" not in markdown(parts(one))


def test_an_arm_of_which_a_run_diverged_has_no_mean_and_ties_no_zero():
    own = {"vanilla": 4.1, "text": 4.0, "random": 4.1}
    one = made(own, {("text", 0), ("random", 0)})
    means, row = one.means().set_index("arm"), one.contrasts("own", "random").set_index("arm").loc["text"]
    assert math.isnan(means.loc["text", "own"]) and means.loc["text", "diverged"] == 1 and means.loc["vanilla", "own"] > 4
    assert (row["seeds"], row["tied"], row["diverged"]) == (6, 1, 2) and row["effect"] == pytest.approx(-0.1)
    every = made(own, {(arm, seed) for arm in own for seed in range(7)})
    assert "in 7 seeds runs of both diverged" in sentence(every) and "+0.0000" not in markdown(parts(every))


def test_the_tables_can_be_written_and_hold_what_was_found(came):
    said = json.loads(write_value(plain(came, "fedrift mitigate x.yaml")))
    text = came.means().set_index("arm").loc["text"]
    assert said["arms"][1]["own"] == pytest.approx(text["own"], abs=1e-6) and said["less"]["random"]["own"]
    written = markdown(parts(came), "fedrift mitigate x.yaml")
    assert f"{text['own']:.4f} ({math.exp(text['own']):.1f})" in written and "least possible 0.50" in written
    assert "<table>" in (page := html(parts(came))) and "k-means on text embeddings" in page


def test_asked_again_nothing_is_run_again(asked, world, book, monkeypatch):
    def refuse(*said, **more):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr("fedrift.study.work.carry_out", refuse)
    again = conduct(asked.study(), world)
    assert again.name == book.name and not found(again).failures


def test_a_run_that_stops_is_named_and_the_rest_is_told(asked, world, tmp_path):
    there = replace(world, runtime=replace(world.runtime, root=tmp_path))
    odd = replace(asked, arms=("vanilla", "iid", "oracle"), seeds=(0,), said={**asked.said, "corpus": {
        **asked.said["corpus"], "label": ""}, "partition": {"is": "Quantity", "clients": 6, "severity": 0.5}})
    came = found(conduct(odd.study(), there))
    assert len(came.failures) == 1
    assert came.failures[0].startswith("oracle, seed 0: ByDomain groups clients by their true domains")
    assert came.means()["arm"].tolist() == ["vanilla", "iid"]


@pytest.mark.parametrize(("change", "more", "told"), [
    ("mitigation=ByText", {}, "has ByText already"), ("partition.severity=0.0", {}, "every arm would be its own control"),
    ("partition.clients=3", {}, "take 4 clients or more"), ("seed=0", {"arms": ["texts"]}, "did you mean 'text'")])
def test_what_makes_no_sense_is_refused_with_the_way_out(asked, world, change, more, told):
    with pytest.raises(UserError, match=told):
        contest(asked.said, [change], stock=world, **more)


def test_general_text_and_syntax_are_each_runs_end_less_its_beginning(asked, world, tmp_path):
    there = replace(world, runtime=replace(world.runtime, root=tmp_path))
    (tmp_path / "general.csv").write_text("text\n" + "\n".join(text for text, _ in documents(seed=1)))
    evaluate = {**asked.said["evaluate"], "panel": ["general", "syntax"], "deep": 5, "general": str(tmp_path / "general.csv"),
                "general_tokens": 128, "pairs": 4}
    watched = replace(asked, arms=("vanilla", "iid", "local"), seeds=(0,), said={**asked.said, "evaluate": evaluate})
    book = conduct(watched.study(), there)
    rows = found(book).rows.set_index("arm")
    for entry in book.read()["runs"]:
        seen, row = book.run(entry).trajectory(), rows.loc[entry.factors["arm"]]
        for column, metric in (("general", "general.loss"), ("syntax", "syntax.accuracy")):
            written = seen.curve(metric)[seen.seen(metric)]
            assert len(written) >= 2 and row[column] == pytest.approx(written[-1] - written[0]), (entry.factors, column)
    assert rows["general"].nunique() == 3  # each arm has its own
