"""General text: which documents it is, and what a model's loss on it is."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fedrift.corpus import Source, load_corpus, pretraining_half
from fedrift.corpus.blocks import Blocks
from fedrift.corpus.general import general_corpus
from fedrift.errors import UserError
from fedrift.probes.general import General, looks, spelled_bytes
from fedrift.tree import Tree
from tests.probes.rounds import a_round, held_out, noise, regrouped, stacked
from tests.worlds import WORDS, byte_tokenizer, corpus_file

TEXT = held_out().blocks


@pytest.fixture
def data(tmp_path):
    """A folder of local copies with one corpus that pocket has read, and one that it has not."""
    draw = np.random.default_rng(0)
    for name in ("dbpedia", "huffpost"):
        (tmp_path / name).mkdir()
        texts = [" ".join(draw.choice(WORDS["sport"], 30)) + f" {name} {number}" for number in range(60)]
        pd.DataFrame({"text": texts, "label": "x", "source": "y"}).to_parquet(tmp_path / name / "train.parquet")
    return tmp_path


@pytest.fixture
def own(tmp_path):
    return load_corpus(Source(str(corpus_file(tmp_path / "own.csv"))))


def test_pocket_is_asked_about_the_half_that_it_has_read(own, data):
    found = general_corpus(own, pocket=True, data=data)
    assert found.name == "dbpedia" and len(found) > 10
    assert all(pretraining_half(text) for text in found.text) and (found.split == 0).all()


def test_studies_of_the_same_corpus_never_share_a_document_with_it(data):
    unseen = load_corpus(Source("dbpedia"), data=data, half="unseen")
    found = general_corpus(unseen, pocket=True, data=data)
    assert len(found) and not set(found.text) & set(unseen.text)


def test_other_models_are_asked_about_a_corpus_that_is_not_the_experiments(own, data):
    assert general_corpus(own, data=data).name == "dbpedia"
    assert general_corpus(load_corpus(Source("dbpedia"), data=data), data=data) is None


def test_a_corpus_can_be_named_and_what_the_experiment_has_is_left_out(own, data):
    assert general_corpus(own, "huffpost", data=data).name == "huffpost"
    theirs = load_corpus(Source("huffpost"), data=data)
    some = theirs.take(np.arange(10))
    renamed = replace(some, name="a part of it")
    assert len(general_corpus(renamed, "huffpost", data=data)) == 50
    with pytest.raises(UserError, match="name another corpus"):
        general_corpus(theirs, "huffpost", data=data)
    with pytest.raises(UserError, match="did you mean 'huffpost'"):
        general_corpus(own, "huffpots", data=data)


def test_nothing_is_fetched_that_was_not_asked_for(own, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDRIFT_DATA", raising=False)
    assert general_corpus(own, pocket=True) is None
    assert general_corpus(own, data=tmp_path / "nowhere") is None


def test_its_loss_is_the_mean_over_predicted_tokens_and_its_bits_over_bytes():
    model = stacked()
    done = a_round(model, [0.3, 0.3])
    params = done.after.server.params
    reading = General(model, TEXT, 500)(done)
    keep = torch.from_numpy(TEXT.keep)
    total, count = model.sums(params, torch.from_numpy(TEXT.tokens)[None], keep[None])
    assert reading["general.loss"].item() == pytest.approx((total.sum() / count.sum()).item(), rel=1e-12)
    assert reading["general.bits"].item() == pytest.approx(total.sum().item() / math.log(2) / 500, rel=1e-12)
    assert count.sum() == keep[:, 1:].sum()


def test_its_loss_does_not_depend_on_the_chunks():
    model = stacked()
    state = a_round(model, [0.3]).after
    whole, parts = (General(model, TEXT, 500, chunk=chunk).of(state)["general.loss"].item() for chunk in (10**6, 20))
    assert whole == pytest.approx(parts, rel=1e-12)


def test_several_models_are_weighed_by_whom_they_serve():
    model = stacked()
    done = a_round(model, [0.0] * 4)
    start, other = model.template(), model.template() + noise(model.template(), 1.0, 3)
    two = Tree({name: torch.cat([start[name], other[name]]) for name in start})
    probe = General(model, TEXT, 500)
    first, second = (probe.of(regrouped(done.after, [0] * 4, each))["general.loss"].item() for each in (start, other))
    shared = probe.of(regrouped(done.after, [0, 0, 0, 1], two))["general.loss"].item()
    assert shared == pytest.approx(0.75 * first + 0.25 * second)
    idle = torch.full_like(two["model.layers.0.self_attn.q_proj.A"][1], torch.nan)
    two["model.layers.0.self_attn.q_proj.A"][1] = idle  # a model that nobody shares says nothing
    assert probe.of(regrouped(done.after, [0] * 4, two))["general.loss"].item() == pytest.approx(first)


def test_bytes_are_those_that_the_predicted_tokens_spell():
    tokenizer = byte_tokenizer()
    line = tokenizer("the team won", add_special_tokens=False)["input_ids"]
    first = len(tokenizer.decode(line[:1]))
    tokens = np.array([[*line, tokenizer.eos_token_id, tokenizer.pad_token_id]])
    keep = np.ones_like(tokens, dtype=bool)
    keep[0, -1] = False
    assert spelled_bytes(tokenizer, Blocks(tokens, keep)) == len("the team won") - first
    keep[0, len(line) - 1:] = False
    assert spelled_bytes(tokenizer, Blocks(tokens, keep)) == len(tokenizer.decode(line[1:-1]))


def test_without_such_text_nobody_looks():
    assert looks(SimpleNamespace(general=None)) == []
