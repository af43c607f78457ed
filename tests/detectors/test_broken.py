"""Runs that training has broken: dead models, exploding updates, ends above the untrained model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrift import detectors
from fedrift.detectors.curves import evaluated
from fedrift.detectors.finding import LIMITS, Case
from fedrift.diagnose import diagnose, verdict
from fedrift.records import Trajectory
from fedrift.run import carry_out
from fedrift.setting import prepare, resolve
from fedrift.values import State
from tests.worlds import experiment, stock

from .runs import NAN, falling, run

UNIFORM = math.log(320)


def only(found, failure):
    (finding,) = [finding for finding in found if finding.failure == failure]
    return finding


def dead(rounds=5, start=5.884, relative=1e30, slope=0.0, **more) -> Trajectory:
    """As on a processor with AMX at a learning rate of 1e30: weights of 1e30, uniform logits, no gradient, no failed client."""
    loss = [start] + [UNIFORM] * rounds
    clients = {"update.relative": [[NAN, NAN], [relative, relative]] + [[0.0, 0.0]] * (rounds - 1),
               "gradient.norm": [[NAN, NAN], [0.3, 0.4]] + [[slope, slope]] * (rounds - 1),
               "update.norm": [[NAN, NAN], [1e31, 1e31]] + [[0.0, 0.0]] * (rounds - 1),
               "failed": [[NAN, NAN]] + [[0, 0]] * rounds}
    curves = {"loss": loss, "loss__a": loss, "loss__b": loss, "loss_uniform": [UNIFORM], **more}
    return run(clients=clients, **curves)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_dead_model_is_told_first_and_plainly_for_one_seed_however_short_the_run(rounds):
    found = dead(rounds)
    said = verdict(found)
    assert said.diverged and said.sentence.startswith(
        "Training failed: the model is dead: from round 1 on its loss is 5.7683 nats, ln 320, so that it gives every token the "
        "same probability; client 0's update")
    first, *rest = diagnose([Case(found)])
    assert first.failure == "dead model" and first.since == 1 and first.sentence.startswith("Training failed: the model is dead")
    assert "That is a fact of this run" in first.sentence
    assert {each.failure for each in rest if each.grade == "suspected"} == {"divergence", "exploding updates"}


def test_no_run_is_held_against_a_dead_one():
    """A dead baseline's loss is low: what lies above it has not lost anything to heterogeneity."""
    alive = run(loss=[5.884] + [5.85] * 5, loss__a=[5.884] + [5.85] * 5)
    (gap,) = detectors.gap(Case(alive, dead()))
    assert gap.grade == "not measured" and "dead" in gap.needs
    (said,) = [each for each in diagnose([Case(dead(), dead())] * 3) if each.failure == "dead model"]
    assert said.cause == "shared" and "the skew did not cause it" in said.sentence


def test_a_loss_near_that_of_a_uniform_guess_is_no_dead_model():
    near = run(loss=[5.9, 5.8] + [UNIFORM + 2e-5] * 4, loss_uniform=[UNIFORM])
    domains = run(loss=[5.9] + [UNIFORM] * 4, loss__a=[5.9] + [UNIFORM - 0.2] * 4, loss__b=[5.9] + [UNIFORM + 0.2] * 4,
                  loss_uniform=[UNIFORM])
    passing = run(loss=[5.9, UNIFORM, 5.5, 5.4, 5.3], loss_uniform=[UNIFORM])
    untrained = run(loss=[UNIFORM], loss_uniform=[UNIFORM])
    for case in (near, domains, passing):
        assert only(detectors.dead_model(Case(case)), "dead model").grade == "none"
    assert only(detectors.dead_model(Case(untrained)), "dead model").grade == "not measured"


def test_gradients_that_vanish_after_an_explosion_are_a_dead_model_whatever_its_loss():
    curves = {"loss": [5.9] + [5.5] * 5, "loss__a": [5.9] + [5.5] * 5, "loss__b": [5.9] + [5.5] * 5}
    assert "exploded in round 1" in only(detectors.dead_model(Case(dead(**curves))), "dead model").said
    by_norm = dead(relative=NAN, model_norm=[NAN, 4.0, *[1e30] * 4], **curves)
    assert only(detectors.dead_model(Case(by_norm)), "dead model").since == 2
    for alive in (dead(slope=0.2, **curves), dead(relative=50.0, **curves)):  # it still learns; it has just converged
        assert not only(detectors.dead_model(Case(alive)), "dead model").positive


def test_an_exploding_update_names_client_round_and_ratio():
    ratios = [[NAN, NAN, NAN], [0.2, 0.3, NAN], [0.2, NAN, 4e4], [0.1, 0.2, NAN]]
    finding = only(detectors.explosion(Case(run(clients={"update.relative": ratios}))), "exploding updates")
    assert finding.positive and finding.clients == (2,) and finding.since == 2
    assert finding.said == "client 2's update in round 2 is 4e+04 times as long as the model it received"
    calm = [[16.0, 99.0]] * 4  # LoRA with Adam at its bound
    assert only(detectors.explosion(Case(run(clients={"update.relative": calm}))), "exploding updates").grade == "none"


def test_a_run_that_ends_above_its_start_is_called_however_large_its_own_noise():
    noise = np.tile([0.6, -0.4], 10)
    up = run(loss=np.append(4.0, 4.2 + noise))
    calm = run(loss=falling(21, 4.0, 3.9))
    finding = only(detectors.divergence(Case(up, calm)), "divergence")
    assert finding.positive and finding.shown is False and "nats above the loss of the untrained model (4.000)" in finding.said
    assert not only(detectors.gap(Case(up, calm)), "loss gap").positive  # its own scatter hides it there
    assert verdict(up, calm).sentence.startswith("Training failed: the run ends") and not verdict(up, calm).diverged
    assert not only(detectors.divergence(Case(run(loss=[4.0] + [4.005] * 20))), "divergence").positive
    assert not only(detectors.divergence(Case(run(loss=[4.5] * 10, start=3))), "divergence").positive  # round 0 is not known


def test_where_the_iid_baseline_ends_above_its_start_too_heterogeneity_is_not_the_cause():
    up, less = run(loss=[4.0] + [4.5] * 8), run(loss=[4.0] + [4.1] * 8)
    assert "IID baseline ends above its start too: heterogeneity is not the cause" in verdict(up, less).sentence
    assert "not the cause" not in verdict(up, run(loss=[4.0] + [3.5] * 8)).sentence
    (said,) = [each for each in diagnose([Case(up, less)] * 3) if each.failure == "divergence"]
    assert said.cause == "shared" and said.grade == "suspected"


def test_a_run_in_which_nobody_ever_trained_has_diverged_however_short_it_is():
    for rounds in (1, 2):
        failed = run(loss=[5.0] * (rounds + 1), clients={"failed": [[NAN, NAN]] + [[1, 1]] * rounds})
        assert verdict(failed).sentence.startswith("Training failed: no client's update is a number from round 1 on")
    once = run(loss=[5.0, 5.0, 4.8], clients={"failed": [[NAN, NAN], [1, 1], [0, 0]]})
    assert not verdict(once).diverged


class Overwritten:
    """A fleet whose clients' changes are replaced: ``change(params, delta)`` of every report."""

    def __init__(self, fleet, change):
        self.fleet, self.size, self.change = fleet, fleet.size, change

    def train(self, state: State, algorithm, cohort):
        report = self.fleet.train(state, algorithm, cohort)
        return replace(report, delta=self.change(state.server.params.rows(state.group[cohort]), report.delta, cohort))


def overwritten(tmp_path, change, *overrides):
    asked = experiment(tmp_path, "plan.rounds=2", "evaluate.own=0", "evaluate.final=0", *overrides)
    return carry_out(asked, stock(tmp_path), recruit=lambda _, setting, run: Overwritten(setting.fleet, change))


def test_a_network_without_weights_is_called_dead_by_its_own_records(tmp_path):
    made = overwritten(tmp_path, lambda params, delta, cohort: -params, "tune=Full").trajectory()
    assert evaluated(made)[1][1:] == pytest.approx(made.curve("loss.uniform")[0], abs=LIMITS["dead"]["uniform"])
    assert verdict(made).sentence.startswith("Training failed: the model is dead: from round 1 on")


def test_a_client_whose_update_explodes_is_an_event_and_no_other_is(tmp_path):
    def change(params, delta, cohort):
        return delta * torch.where(cohort == 2, 1e6, 1.0)

    made = overwritten(tmp_path, change, "plan.participation=1.0")
    (told,) = [event for event in made.events() if event["kind"] == "update exploded" and event["round"] == 1]
    assert told["client"] == 2 and told["message"].startswith("client 2's update in round 1 is ")
    assert made.trajectory().table("update.relative")[1, 2] > LIMITS["explosion"]["relative"]


@pytest.mark.parametrize("overrides", [
    ("tune=Full", "plan.optimizer.lr=1.0", "plan.clip=null"),  # from random weights
    ("tune={is: Lora, rank: 1, targets: [q_proj]}", "plan.optimizer.lr=1.0", "plan.clip=null"),
    ("tune=Full", "plan.optimizer={is: AdamW, lr: 0.01}", "plan.steps=5"),
    ("tune={is: Lora, rank: 1, targets: [q_proj]}", "plan.optimizer={is: AdamW, lr: 0.01}", "plan.steps=5"),
    ("tune={is: LastK, blocks: 1}", "algorithm=FedSGD", "plan.optimizer.lr=1.0"),
])
def test_healthy_runs_are_not_called_broken(tmp_path, overrides):
    made = carry_out(experiment(tmp_path, "plan.rounds=4", "evaluate.own=0", "evaluate.final=0", *overrides), stock(tmp_path))
    found = {finding.failure for detector in (detectors.dead_model, detectors.divergence, detectors.explosion)
             for finding in detector(Case(made.trajectory())) if finding.positive}
    assert not found and np.nanmax(made.trajectory().table("update.relative")) < LIMITS["explosion"]["relative"] / 5
    assert not [event for event in made.events() if event["kind"] == "update exploded"]


def test_weights_of_1e30_are_called_broken_on_every_processor(tmp_path):
    """What the probes record of the dead state itself: uniform logits on some processors, NaN on others."""
    there = stock(tmp_path)
    setting = prepare(resolve(experiment(tmp_path, "tune=Full"), there), there)
    state = setting.state
    params = state.server.params.map(lambda leaf: torch.full_like(leaf, 1e30))
    after = replace(state, round=1, server=replace(state.server, params=params))
    start, end = (float(setting.losses.of(each)["loss", ""]) for each in (state, after))
    assert verdict(run(loss=[start, end], loss_uniform=[UNIFORM])).sentence.startswith("Training failed: ")
