"""Test text embeddings by the middle states of a language model: padding has no effect, and common components are removed."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.models.introspection import HiddenStateEncoder, remove_common_component
from fedrift.models.load import load_model
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import Lora
from tests import small_experiment

TEXTS = ["the team won a match", "soup", "cook the onion with butter then add salt and serve warm bread with soup", ""]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def states(request, tmp_path_factory):
    folder = small_experiment.model_folder(tmp_path_factory.mktemp("m"), request.param)
    language = load_model(str(folder), cache_dir=folder)
    return HiddenStateEncoder("tiny", language.network, language.tokenizer, language.context_length)


def test_the_states_of_a_text_do_not_depend_on_longer_texts(states):
    together = states.encode_batch(TEXTS)
    alone = np.concatenate([states.encode_batch([text]) for text in TEXTS])
    assert np.allclose(together, alone, atol=1e-5) and np.isfinite(together).all() and not together[3].any()


def test_unused_adapters_change_nothing(states):
    plain = states.encode_batch(TEXTS)
    model = StackedModel(states.network, Lora(r=2))
    worn = HiddenStateEncoder("worn", model.network, states.tokenizer, states.context_length)
    assert np.allclose(plain, worn.encode_batch(TEXTS), atol=1e-6)


def test_the_mean_and_the_first_direction_of_all_texts_are_removed():
    draw = np.random.default_rng(0)
    common = draw.standard_normal(6)
    vectors = 100 + 50 * draw.standard_normal((40, 1)) * common + draw.standard_normal((40, 6))
    found = remove_common_component(vectors)
    assert np.allclose(found.mean(axis=0), 0) and np.abs(found @ common / np.linalg.norm(common)).max() < 0.5
    assert np.isfinite(remove_common_component(vectors[:1])).all()
