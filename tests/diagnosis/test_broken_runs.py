"""Test the detectors of runs that training has broken: dead models, exploding updates, and losses above the untrained model."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedrift.core.records import Trajectory
from fedrift.core.types import FederatedState
from fedrift.diagnosis import detectors, diagnose, judge_run
from fedrift.diagnosis.finding import THRESHOLDS, RunEvidence, read_curve
from fedrift.engine.build import build_run
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from tests.small_experiment import experiment, make_cache

from .runs import NAN, falling, run

UNIFORM = math.log(320)


def find_failure(found, failure):
    (finding,) = [finding for finding in found if finding.failure == failure]
    return finding


def make_dead_run(rounds=5, start=5.884, relative=1e30, slope=0.0, **more) -> Trajectory:
    """Return the records of a run with weights of 1e30: uniform logits, no gradient and no failed client, as on a processor with AMX."""
    loss = [start] + [UNIFORM] * rounds
    clients = {
        "update.relative": [[NAN, NAN], [relative, relative]] + [[0.0, 0.0]] * (rounds - 1),
        "gradient.norm": [[NAN, NAN], [0.3, 0.4]] + [[slope, slope]] * (rounds - 1),
        "update.norm": [[NAN, NAN], [1e31, 1e31]] + [[0.0, 0.0]] * (rounds - 1),
        "failed": [[NAN, NAN]] + [[0, 0]] * rounds,
    }
    curves = {"loss": loss, "loss__a": loss, "loss__b": loss, "loss_uniform": [UNIFORM], **more}
    return run(clients=clients, **curves)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_a_dead_model_is_reported_first_for_one_seed_and_any_run_length(rounds):
    found = make_dead_run(rounds)
    said = judge_run(found)
    assert said.has_diverged and said.sentence.startswith(
        "Training failed: the model is dead: from round 1 on, its loss is 5.7683 nats per token (ln 320), so it assigns the same "
        "probability to every token; client 0's update"
    )
    first, *rest = diagnose([RunEvidence(found)])
    assert first.failure == "dead model" and first.first_round == 1 and first.sentence.startswith("Training failed: the model is dead")
    assert "The failure of this run is certain" in first.sentence
    assert {each.failure for each in rest if each.grade == "suspected"} == {"divergence", "exploding updates"}


def test_no_run_is_compared_with_a_dead_baseline():
    """The loss of a dead baseline may be low; a loss above it is not a loss due to heterogeneity."""
    alive = run(loss=[5.884] + [5.85] * 5, loss__a=[5.884] + [5.85] * 5)
    (gap,) = detectors.loss_gap(RunEvidence(alive, make_dead_run()))
    assert gap.grade == "not measured" and "dead" in gap.missing_input
    (said,) = [each for each in diagnose([RunEvidence(make_dead_run(), make_dead_run())] * 3) if each.failure == "dead model"]
    assert said.cause == "also in IID baseline" and "the heterogeneity did not cause it" in said.sentence


def test_a_loss_near_that_of_uniform_guessing_is_not_a_dead_model():
    near = run(loss=[5.9, 5.8] + [UNIFORM + 2e-5] * 4, loss_uniform=[UNIFORM])
    domains = run(
        loss=[5.9] + [UNIFORM] * 4, loss__a=[5.9] + [UNIFORM - 0.2] * 4, loss__b=[5.9] + [UNIFORM + 0.2] * 4, loss_uniform=[UNIFORM]
    )
    passing = run(loss=[5.9, UNIFORM, 5.5, 5.4, 5.3], loss_uniform=[UNIFORM])
    untrained = run(loss=[UNIFORM], loss_uniform=[UNIFORM])
    for case in (near, domains, passing):
        assert find_failure(detectors.dead_model(RunEvidence(case)), "dead model").grade == "none"
    assert find_failure(detectors.dead_model(RunEvidence(untrained)), "dead model").grade == "not measured"


def test_vanishing_gradients_after_an_explosion_are_a_dead_model_at_any_loss():
    curves = {"loss": [5.9] + [5.5] * 5, "loss__a": [5.9] + [5.5] * 5, "loss__b": [5.9] + [5.5] * 5}
    assert "exploded in round 1" in find_failure(detectors.dead_model(RunEvidence(make_dead_run(**curves))), "dead model").message
    by_norm = make_dead_run(relative=NAN, model_norm=[NAN, 4.0, *[1e30] * 4], **curves)
    assert find_failure(detectors.dead_model(RunEvidence(by_norm)), "dead model").first_round == 2
    for alive in (
        make_dead_run(slope=0.2, **curves),
        make_dead_run(relative=50.0, **curves),
    ):  # one run still learns; the other has just converged
        assert not find_failure(detectors.dead_model(RunEvidence(alive)), "dead model").is_positive


def test_an_exploding_update_names_client_round_and_ratio():
    ratios = [[NAN, NAN, NAN], [0.2, 0.3, NAN], [0.2, NAN, 4e4], [0.1, 0.2, NAN]]
    finding = find_failure(detectors.exploding_updates(RunEvidence(run(clients={"update.relative": ratios}))), "exploding updates")
    assert finding.is_positive and finding.clients == (2,) and finding.first_round == 2
    assert finding.message == "client 2's update in round 2 is 4e+04 times as large as the trained weights that the client received"
    calm = [[16.0, 99.0]] * 4  # LoRA with Adam at its largest step
    assert (
        find_failure(detectors.exploding_updates(RunEvidence(run(clients={"update.relative": calm}))), "exploding updates").grade == "none"
    )


def test_a_run_that_ends_above_its_start_is_reported_despite_its_noise():
    noise = np.tile([0.6, -0.4], 10)
    up = run(loss=np.append(4.0, 4.2 + noise))
    calm = run(loss=falling(21, 4.0, 3.9))
    finding = find_failure(detectors.divergence(RunEvidence(up, calm)), "divergence")
    assert (
        finding.is_positive
        and finding.in_baseline is False
        and "nats per token above the loss of the untrained model (4.000)" in finding.message
    )
    assert not find_failure(detectors.loss_gap(RunEvidence(up, calm)), "loss gap").is_positive  # its own noise hides the gap
    assert judge_run(up, calm).sentence.startswith("Training failed: the run ends") and not judge_run(up, calm).has_diverged
    assert not find_failure(detectors.divergence(RunEvidence(run(loss=[4.0] + [4.005] * 20))), "divergence").is_positive
    assert not find_failure(
        detectors.divergence(RunEvidence(run(loss=[4.5] * 10, start=3))), "divergence"
    ).is_positive  # the loss of round 0 is unknown


def test_if_the_iid_baseline_also_ends_above_its_start_heterogeneity_is_not_the_cause():
    up, less = run(loss=[4.0] + [4.5] * 8), run(loss=[4.0] + [4.1] * 8)
    assert "IID baseline also ends above its initial loss, so heterogeneity is not the cause" in judge_run(up, less).sentence
    assert "not the cause" not in judge_run(up, run(loss=[4.0] + [3.5] * 8)).sentence
    (said,) = [each for each in diagnose([RunEvidence(up, less)] * 3) if each.failure == "divergence"]
    assert said.cause == "also in IID baseline" and said.grade == "suspected"


def test_a_run_without_any_training_has_diverged_at_any_length():
    for rounds in (1, 2):
        failed = run(loss=[5.0] * (rounds + 1), clients={"failed": [[NAN, NAN]] + [[1, 1]] * rounds})
        assert judge_run(failed).sentence.startswith("Training failed: no client's update is finite from round 1 on")
    once = run(loss=[5.0, 5.0, 4.8], clients={"failed": [[NAN, NAN], [1, 1], [0, 0]]})
    assert not judge_run(once).has_diverged


class OverwrittenClientPool:
    """A client pool that replaces the clients' updates by ``change(params, delta)``."""

    def __init__(self, client_pool, change):
        self.fleet, self.size, self.change = client_pool, client_pool.size, change

    def train(self, state: FederatedState, algorithm, cohort):
        update = self.fleet.train(state, algorithm, cohort)
        return replace(update, delta=self.change(state.server.params.take(state.cluster_ids[cohort]), update.delta, cohort))


def run_overwritten(tmp_path, change, *overrides):
    config = experiment(
        tmp_path, "training.num_rounds=2", "evaluation.blocks_per_client=0", "evaluation.final_blocks_per_domain=0", *overrides
    )
    return run_experiment(
        config, make_cache(tmp_path), pool_factory=lambda _, setting, run: OverwrittenClientPool(setting.simulator, change)
    )


def test_a_network_without_weights_is_reported_as_dead(tmp_path):
    made = run_overwritten(tmp_path, lambda params, delta, cohort: -params, "trainable=All").trajectory()
    assert read_curve(made)[1][1:] == pytest.approx(made.curve("loss.uniform")[0], abs=THRESHOLDS["dead_model"]["uniform"])
    assert judge_run(made).sentence.startswith("Training failed: the model is dead: from round 1 on")


def test_an_exploding_update_is_the_only_event(tmp_path):
    def change(params, delta, cohort):
        return delta * torch.where(cohort == 2, 1e6, 1.0)

    made = run_overwritten(tmp_path, change, "training.participation_rate=1.0")
    (told,) = [event for event in made.events() if event["kind"] == "update exploded" and event["round"] == 1]
    assert told["client"] == 2 and told["message"].startswith("client 2's update in round 1 is ")
    assert made.trajectory().client_table("update.relative")[1, 2] > THRESHOLDS["explosion"]["relative"]


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainable=All", "training.client_optimizer.lr=1.0", "training.max_grad_norm=null"),  # starts from random weights
        ("trainable={type: Lora, r: 1, target_modules: [q_proj]}", "training.client_optimizer.lr=1.0", "training.max_grad_norm=null"),
        ("trainable=All", "training.client_optimizer={type: AdamW, lr: 0.01}", "training.local_steps=5"),
        (
            "trainable={type: Lora, r: 1, target_modules: [q_proj]}",
            "training.client_optimizer={type: AdamW, lr: 0.01}",
            "training.local_steps=5",
        ),
        ("trainable={type: LastBlocks, num_blocks: 1}", "algorithm=FedSGD", "training.client_optimizer.lr=1.0"),
    ],
)
def test_healthy_runs_are_not_reported_as_broken(tmp_path, overrides):
    made = run_experiment(
        experiment(tmp_path, "training.num_rounds=4", "evaluation.blocks_per_client=0", "evaluation.final_blocks_per_domain=0", *overrides),
        make_cache(tmp_path),
    )
    found = {
        finding.failure
        for detector in (detectors.dead_model, detectors.divergence, detectors.exploding_updates)
        for finding in detector(RunEvidence(made.trajectory()))
        if finding.is_positive
    }
    assert not found and np.nanmax(made.trajectory().client_table("update.relative")) < THRESHOLDS["explosion"]["relative"] / 5
    assert not [event for event in made.events() if event["kind"] == "update exploded"]


def test_weights_of_1e30_are_reported_as_broken_on_every_processor(tmp_path):
    """The probes record uniform logits on some processors and NaN on others."""
    there = make_cache(tmp_path)
    setting = build_run(resolve_fingerprints(experiment(tmp_path, "trainable=All"), there), there)
    state = setting.initial_state
    params = state.server.params.map(lambda leaf: torch.full_like(leaf, 1e30))
    after = replace(state, round=1, server=replace(state.server, params=params))
    start, end = (float(setting.evaluation.losses.evaluate_state(each)["loss", ""]) for each in (state, after))
    assert judge_run(run(loss=[start, end], loss_uniform=[UNIFORM])).sentence.startswith("Training failed: ")
