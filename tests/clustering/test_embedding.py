"""Test the client embeddings: which documents they use, how many bytes they take, and how much noise they get."""

from __future__ import annotations

from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrift.clustering import TextClustering
from fedrift.clustering.selection import (
    add_privacy_noise,
    document_identification_rate,
    embed_clients,
    gaussian_noise_std,
    mean_embeddings,
    privacy_statement,
)
from fedrift.core.errors import UserError
from fedrift.data import TRAIN
from fedrift.engine.build import build_run, client_info, partition_documents
from fedrift.engine.cache import resolve_fingerprints
from tests.small_experiment import experiment, make_cache

from .synthetic_clients import documents, make_client_info


def test_an_embedding_is_the_mean_of_some_documents_and_takes_four_bytes_per_number():
    vectors, _ = documents(3, 1.0, 0, each=50)
    whole = embed_clients(make_client_info(vectors), "any", 200)
    assert np.allclose(whole.means, [own.mean(axis=0) for own in vectors]) and whole.num_bytes == 4 * 32
    some = embed_clients(make_client_info(vectors), "any", 7)
    assert [len(own) for own in some.document_embeddings] == [7, 7, 7]
    assert np.array_equal(some.means, embed_clients(make_client_info(vectors), "any", 7).means)
    assert not np.array_equal(some.means, embed_clients(make_client_info(vectors, seed=1), "any", 7).means)


def test_the_noise_is_that_of_the_gaussian_mechanism():
    assert gaussian_noise_std(200, 1.0, 1e-5) == pytest.approx(2 * sqrt(2 * log(1.25e5)) / 200)
    assert gaussian_noise_std(200, 1.0, 1e-5) == pytest.approx(0.04845, abs=1e-5)
    made = add_privacy_noise(tuple(np.zeros((200, 500)) for _ in range(8)), 0, 1.0)
    assert made.means.std() == pytest.approx(0.04845, rel=0.05)
    assert len({row.tobytes() for row in made.noise}) == 8
    assert "no privacy guarantee" in privacy_statement(add_privacy_noise(made.document_embeddings, 0, None), None, 1e-5)
    assert "proved only for epsilon < 1" in privacy_statement(made, 1.0, 1e-5) and "only" not in privacy_statement(made, 0.5, 1e-5)[-60:]


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6))
def test_one_document_changes_a_mean_by_at_most_two_over_n(count, seed):
    draw = np.random.default_rng(seed)
    own = draw.standard_normal((count + 1, 5))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    moved = mean_embeddings([own[:count]]) - mean_embeddings([np.concatenate([own[1:count], own[count:]])])
    assert np.linalg.norm(moved) <= 2 / count + 1e-12


def test_embeddings_use_the_training_documents_as_the_client_rewrites_them(tmp_path):
    config, there = experiment(tmp_path, "partition={type: StopwordDrop, num_clients: 3}"), make_cache(tmp_path)
    config = resolve_fingerprints(replace(config, clustering=TextClustering(encoder="hashing")), there)
    corpus = there.get_corpus(replace(config.dataset, fingerprint=""), config.model)
    setting, partition = build_run(config, there), partition_documents(config, corpus)
    held = client_info(config, there, corpus, partition, setting.simulator, setting.evaluation.losses.held_out.client_domain_tokens)
    changed = 0
    for client, rows in enumerate(partition.rows):
        assert (corpus.split[rows] == TRAIN).all()
        texts = held.documents(client)
        assert len(texts) == len(rows)
        changed += sum(text != own for text, own in zip(texts, corpus.text[rows], strict=True))
    assert changed  # the partition rewrites texts


def test_clients_without_any_document_are_refused():
    with pytest.raises(UserError, match="no client has a document"):
        embed_clients(replace(make_client_info((np.ones((1, 2)),)), documents=lambda client: []), "any", 200)


def test_documents_identify_their_client_as_far_as_clients_differ():
    apart, _ = documents(4, 1.0, 0, noise=0.05)
    alike, _ = documents(8, 0.0, 0)
    assert document_identification_rate(apart, 0) == 1  # four clients with four domains
    assert document_identification_rate(alike, 0) == pytest.approx(1 / 8, abs=0.05)
    twice, _ = documents(8, 1.0, 0, noise=0.05)
    assert 0.35 < document_identification_rate(twice, 0) < 0.65  # two clients of one domain cannot be distinguished
    assert np.isnan(document_identification_rate((np.ones((1, 3)), np.ones((1, 3))), 0))
