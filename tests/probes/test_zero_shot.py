"""Test that the pretrained model is evaluated once for all runs with shared resources, and that no value changes."""

from __future__ import annotations

import pytest
import torch

from fedrift.core.tree import Tree
from fedrift.engine.run import run_experiment
from fedrift.models.stacked_model import StackedModel
from fedrift.probes.losses import PretrainedLossCache
from tests.small_experiment import experiment, make_cache

TUNES = {
    "lora": [],
    "last_k": ["trainable={type: LastBlocks, num_blocks: 1}"],
    "full": ["trainable={type: All}"],
    "lora with a base": ["algorithm={type: FedAvg, aggregator: FedEx}"],
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("tune", TUNES)
def test_runs_with_shared_resources_evaluate_the_pretrained_model_once(tune, tmp_path, monkeypatch):
    asked = [
        experiment(
            tmp_path,
            *TUNES[tune],
            "training.num_rounds=1",
            "evaluation.probes=[syntax]",
            "evaluation.minimal_pairs=2",
            f"seed={seed}",
            f"partition.severity={severity}",
        )
        for seed, severity in ((0, 1.0), (1, 0.5))
    ]
    alone = [run_experiment(one, make_cache(tmp_path / f"alone {number}")).records() for number, one in enumerate(asked)]

    passes = []
    plain = StackedModel.position_losses

    def counted(self, params, tokens, keep):
        if not torch.is_grad_enabled():
            passes.append(tokens.shape)
        return plain(self, params, tokens, keep)

    monkeypatch.setattr(StackedModel, "position_losses", counted)
    shared, together, count = make_cache(tmp_path / "shared"), [], []
    for one in asked:
        passes.clear()
        together.append(run_experiment(one, shared).records())
        count.append(len(passes))
    assert together == alone
    assert count[1] < count[0]


def test_only_the_losses_of_the_pretrained_model_are_cached(tmp_path):
    setting = make_cache(tmp_path).get_stacked_model(experiment(tmp_path).model, experiment(tmp_path).trainable)
    start, known = setting.init_params(0), {}
    judge = PretrainedLossCache(setting, start, "here", known)
    tokens = torch.arange(24).view(1, 2, 12)
    keep = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        first, counts = judge.sequence_losses(start, tokens, keep)
        assert len(known) == 1 and torch.equal(first, setting.sequence_losses(start, tokens, keep)[0]) and counts.tolist() == [[11, 11]]
        other = PretrainedLossCache(setting, setting.init_params(1), "here", known)  # adapters of another seed are the same function
        assert torch.equal(other.sequence_losses(setting.init_params(1), tokens, keep)[0], first) and len(known) == 1
        moved = start.map(lambda leaf: leaf + 0.1)
        assert not torch.equal(judge.sequence_losses(moved, tokens, keep)[0], first) and len(known) == 1
        under = Tree({**start, "base/what": torch.ones(1, 3)})
        assert not judge.is_initial(under) and judge.is_initial(Tree({**start, "base/what": torch.zeros(1, 3)}))
        keep[:, :, 6:] = False
        assert not torch.equal(judge.sequence_losses(start, tokens, keep)[0], first) and len(known) == 2
    judge.sequence_losses(start, tokens, keep)  # losses with gradients are never cached
    assert len(known) == 2
