"""Test the comparison of two final models against PEFT and transformers with the saved models."""

from __future__ import annotations

import json
import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from fedrift.cli.app import app
from fedrift.core.errors import UserError
from fedrift.engine.model_similarity import measure_similarity
from fedrift.engine.run import run_experiment
from fedrift.probes.context import select_passages
from fedrift.probes.representation import cka, mean_cosine
from tests import small_experiment


@pytest.fixture(scope="module")
def compared_runs(tmp_path_factory):
    """A federated run, the centralized run of its seed, and the resources."""
    folder = tmp_path_factory.mktemp("likeness")
    cache = small_experiment.make_cache(folder)
    asked = (
        "training.client_optimizer.lr=20",
        "training.client_weighting=uniform",
        "evaluation.final_blocks_per_domain=20",
        "evaluation.blocks_per_domain=20",
    )
    return (
        folder,
        cache,
        run_experiment(small_experiment.experiment(folder, *asked), cache),
        run_experiment(small_experiment.experiment(folder, *asked, "algorithm=Centralized"), cache),
    )


def test_a_model_is_most_similar_to_itself(compared_runs):
    _, cache, run, pooled = compared_runs
    same, found = measure_similarity(run, run, cache), measure_similarity(run, pooled, cache)
    assert list(found) == ["", "layer 00", "layer 01"]
    for layer in found:
        assert same[layer]["cka"]["between"] == pytest.approx(1) and same[layer]["cosine"]["between"] == pytest.approx(1)
        assert same[layer]["cka"]["first"] == same[layer]["cka"]["second"] == found[layer]["cka"]["first"] < 1
        assert found[layer]["cka"]["between"] < 1 - 1e-6
        assert found[layer]["cosine"] != same[layer]["cosine"]


def test_the_similarities_equal_those_of_the_saved_models(compared_runs, monkeypatch):
    folder, cache, run, pooled = compared_runs
    seen = []

    def few(held, positions):
        seen.append(select_passages(held, 200))
        return seen[-1]

    monkeypatch.setattr("fedrift.probes.representation.select_passages", few)
    found = measure_similarity(run, pooled, cache)["layer 00"]
    states = []
    for made in (run, pooled, None):
        network = AutoModelForCausalLM.from_pretrained(folder / "model-llama")
        if made:
            network = PeftModel.from_pretrained(network, str(made.folder / "model"))
        with torch.no_grad():
            hidden = network(input_ids=seen[0].tokens, output_hidden_states=True).hidden_states[1]
        states.append(hidden.flatten(0, 1)[seen[0].positions][None])
    for name, (one, other) in {"between": (0, 1), "first": (0, 2), "second": (1, 2)}.items():
        assert found["cka"][name] == pytest.approx(float(cka(states[one], states[other])), abs=1e-5)
        assert found["cosine"][name] == pytest.approx(float(mean_cosine(states[one], states[other])), abs=1e-5)


def test_runs_with_different_trainables_are_refused(compared_runs):
    folder, cache, run, _ = compared_runs
    other = run_experiment(
        small_experiment.experiment(folder, "trainable.r=2", "training.num_rounds=1", "evaluation.final_blocks_per_domain=0"), cache
    )
    with pytest.raises(UserError, match="must have the same trainable"):
        measure_similarity(run, other, cache)


def test_compare_shows_the_similarity_by_layer(compared_runs):
    folder, _, run, pooled = compared_runs
    said = ["compare", run.id, pooled.id, "--runs-dir", str(folder / "runs"), "--hidden-states"]
    told = json.loads(CliRunner().invoke(app, [*said, "--json"]).stdout)["hidden_states"]
    assert told["layer 01"]["cka"]["between"] < 1 and set(told["layer 01"]["cosine"]) == {"between", "first", "second"}
    shown = CliRunner().invoke(app, said, env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    for layer, name in {"layer 01": "layer 01", "": "mean"}.items():
        assert re.search(rf"{name} +{told[layer]['cka']['between']:.4f} ", shown.stdout)
