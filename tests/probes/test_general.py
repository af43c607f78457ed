"""Test which documents are general text, and the losses of models on it."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fedrift.core.errors import UserError
from fedrift.core.tree import Tree
from fedrift.data import DatasetConfig, is_in_pretraining_half, load_corpus
from fedrift.data.dataset import load_general_corpus
from fedrift.data.tokenization import Blocks
from fedrift.probes.forgetting import GeneralTextLoss, count_predicted_bytes, general_text_probes
from tests.probes.rounds import held_out, make_round, noise, stacked, with_clusters
from tests.small_experiment import WORDS, byte_tokenizer, corpus_file

GENERAL_TEXT = held_out().blocks


@pytest.fixture
def data(tmp_path):
    """A folder of local copies with one corpus of the pretraining of pocket, and one other."""
    draw = np.random.default_rng(0)
    for name in ("dbpedia", "huffpost"):
        (tmp_path / name).mkdir()
        texts = [" ".join(draw.choice(WORDS["sport"], 30)) + f" {name} {number}" for number in range(60)]
        pd.DataFrame({"text": texts, "label": "x", "source": "y"}).to_parquet(tmp_path / name / "train.parquet")
    return tmp_path


@pytest.fixture
def own_experiment(tmp_path):
    return load_corpus(DatasetConfig(str(corpus_file(tmp_path / "own.csv"))))


def test_pocket_is_evaluated_on_the_half_of_its_pretraining(own_experiment, data):
    found = load_general_corpus(own_experiment, is_pocket_model=True, data_dir=data)
    assert found.name == "dbpedia" and len(found) > 10
    assert all(is_in_pretraining_half(text) for text in found.text) and (found.split == 0).all()


def test_general_text_never_overlaps_with_the_corpus_of_the_experiment(data):
    unseen = load_corpus(DatasetConfig("dbpedia"), data_dir=data, subset="unseen")
    found = load_general_corpus(unseen, is_pocket_model=True, data_dir=data)
    assert len(found) and not set(found.text) & set(unseen.text)


def test_other_models_are_evaluated_on_another_corpus_than_the_experiment(own_experiment, data):
    assert load_general_corpus(own_experiment, data_dir=data).name == "dbpedia"
    assert load_general_corpus(load_corpus(DatasetConfig("dbpedia"), data_dir=data), data_dir=data) is None


def test_a_corpus_can_be_configured_and_documents_of_the_experiment_are_omitted(own_experiment, data):
    assert load_general_corpus(own_experiment, "huffpost", data_dir=data).name == "huffpost"
    theirs = load_corpus(DatasetConfig("huffpost"), data_dir=data)
    some = theirs.take(np.arange(10))
    renamed = replace(some, name="a part of it")
    assert len(load_general_corpus(renamed, "huffpost", data_dir=data)) == 50
    with pytest.raises(UserError, match="name another dataset"):
        load_general_corpus(theirs, "huffpost", data_dir=data)
    with pytest.raises(UserError, match="did you mean 'huffpost'"):
        load_general_corpus(own_experiment, "huffpots", data_dir=data)


def test_no_unrequested_corpus_is_downloaded(own_experiment, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDRIFT_DATA", raising=False)
    assert load_general_corpus(own_experiment, is_pocket_model=True) is None
    assert load_general_corpus(own_experiment, data_dir=tmp_path / "nowhere") is None


def test_the_loss_is_per_predicted_token_and_the_bits_are_per_byte():
    model = stacked()
    done = make_round(model, [0.3, 0.3])
    params = done.after.server.params
    reading = GeneralTextLoss(model, GENERAL_TEXT, 500)(done)
    keep = torch.from_numpy(GENERAL_TEXT.mask)
    total, count = model.sequence_losses(params, torch.from_numpy(GENERAL_TEXT.tokens)[None], keep[None])
    assert reading["general.loss"].item() == pytest.approx((total.sum() / count.sum()).item(), rel=1e-12)
    assert reading["general.bits"].item() == pytest.approx(total.sum().item() / math.log(2) / 500, rel=1e-12)
    assert count.sum() == keep[:, 1:].sum()


def test_the_loss_does_not_depend_on_chunks():
    model = stacked()
    state = make_round(model, [0.3]).after
    whole, parts = (
        GeneralTextLoss(model, GENERAL_TEXT, 500, tokens_per_pass=chunk).evaluate_state(state)["general.loss"].item()
        for chunk in (10**6, 20)
    )
    assert whole == pytest.approx(parts, rel=1e-12)


def test_several_models_are_weighted_by_their_clients():
    model = stacked()
    done = make_round(model, [0.0] * 4)
    start, other = model.init_params(), model.init_params() + noise(model.init_params(), 1.0, 3)
    two = Tree({name: torch.cat([start[name], other[name]]) for name in start})
    probe = GeneralTextLoss(model, GENERAL_TEXT, 500)
    first, second = (probe.evaluate_state(with_clusters(done.after, [0] * 4, each))["general.loss"].item() for each in (start, other))
    shared = probe.evaluate_state(with_clusters(done.after, [0, 0, 0, 1], two))["general.loss"].item()
    assert shared == pytest.approx(0.75 * first + 0.25 * second)
    idle = torch.full_like(two["model.layers.0.self_attn.q_proj.A"][1], torch.nan)
    two["model.layers.0.self_attn.q_proj.A"][1] = idle  # a model without clients has no effect
    assert probe.evaluate_state(with_clusters(done.after, [0] * 4, two))["general.loss"].item() == pytest.approx(first)


def test_bytes_are_those_of_the_predicted_tokens():
    tokenizer = byte_tokenizer()
    line = tokenizer("the team won", add_special_tokens=False)["input_ids"]
    first = len(tokenizer.decode(line[:1]))
    tokens = np.array([[*line, tokenizer.eos_token_id, tokenizer.pad_token_id]])
    keep = np.ones_like(tokens, dtype=bool)
    keep[0, -1] = False
    assert count_predicted_bytes(tokenizer, Blocks(tokens, keep)) == len("the team won") - first
    keep[0, len(line) - 1 :] = False
    assert count_predicted_bytes(tokenizer, Blocks(tokens, keep)) == len(tokenizer.decode(line[1:-1]))


def test_without_general_text_there_is_no_evaluation():
    assert general_text_probes(SimpleNamespace(general_blocks=None)) == []
