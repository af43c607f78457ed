"""Test what runs share, and on which documents a model may be trained."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pandas as pd
import pytest
import torch

from fedrift.core.optimizers import Sgd
from fedrift.data import TRAIN, DatasetConfig, is_in_pretraining_half
from fedrift.models.trainable import All, LastBlocks, Lora
from fedrift.simulation.simulator import value_and_gradient
from tests.small_experiment import make_cache, model_folder


@pytest.fixture
def data(tmp_path):
    """A local copy of a corpus of the pretraining of `pocket`."""
    folder = tmp_path / "data" / "dbpedia"
    folder.mkdir(parents=True)
    texts = [f"Document number {number} is about something of its own." for number in range(80)]
    pd.DataFrame({"text": texts, "label": "Village", "source": ""}).to_parquet(folder / "train.parquet")
    return tmp_path


def test_pocket_is_trained_on_documents_outside_its_pretraining(data):
    there = make_cache(data, data_dir=data / "data")
    source = DatasetConfig("dbpedia")
    seen = there.get_corpus(source, "pocket")
    assert len(seen) > 0
    assert not any(is_in_pretraining_half(text) for text in seen.text)
    other = there.get_corpus(source, "smollm2-135m")
    assert len(other) == 80
    assert any(is_in_pretraining_half(text) for text in other.text[other.split == TRAIN])


def test_a_corpus_is_loaded_once(data):
    there = make_cache(data, data_dir=data / "data")
    assert there.get_corpus(DatasetConfig("dbpedia"), "pocket") is there.get_corpus(DatasetConfig("dbpedia"), "pocket")


TUNES = [Lora(r=2), Lora(r=4, target_modules=("all",)), LastBlocks(1), All(), Lora(r=3)]


def trained(model) -> dict[str, torch.Tensor]:
    """Return the leaves of two clients after three steps on different tokens, and their last losses."""
    params = model.init_params(0).take(torch.zeros(2, dtype=torch.long))
    tokens = torch.arange(2, 66).view(2, 2, 16)
    for _ in range(3):
        loss, grad = value_and_gradient(
            model, params, {"tokens": tokens, "loss_mask": torch.ones_like(tokens, dtype=torch.bool)}, torch.arange(2)
        )
        params, _ = Sgd(0.5).step(params, grad, type(params)())
    return {**params, "loss": loss}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_frozen_weights_are_shared_and_unchanged_for_every_trainable(tmp_path, kind):
    folder, there = str(model_folder(tmp_path / "model", kind)), make_cache(tmp_path)
    models = {tune: there.get_stacked_model(folder, tune) for tune in TUNES}
    first = there.get_language_model(folder, TUNES[0]).network
    before = {name: leaf.clone() for name, leaf in first.named_parameters()}
    ends = {tune: trained(model) for tune, model in models.items()}
    for tune, model in reversed(models.items()):  # in any order of use
        assert all(torch.equal(leaf, ends[tune][name]) for name, leaf in trained(model).items())
    places = [sorted(leaf.data_ptr() for leaf in model.network.parameters()) for model in models.values()]
    assert all(each == places[0] for each in places)
    joined = [{part.fused[0].weight.data_ptr() for part in model.network.modules() if hasattr(part, "fused")} for model in models.values()]
    assert all(each <= joined[0] for each in joined) and bool(joined[0]) == (kind == "llama")
    held = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in first.parameters()}
    assert sum(held.values()) == sum(leaf.nbytes for leaf in first.parameters())
    assert all(torch.equal(leaf, before[name]) for name, leaf in first.named_parameters())
    for tune in TUNES:
        alone = trained(make_cache(tmp_path).get_stacked_model(folder, tune))  # loaded separately
        assert alone.keys() == ends[tune].keys() and all(torch.equal(alone[name], ends[tune][name]) for name in alone)


MEMORY_OF_A_RUN = """
import torch
from fedrift.config.runtime import configure_malloc


def resident_pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


configure_malloc()
before = resident_pages()
tensors, leaves_gaps = [], []
for _ in range(100):
    tensors.append(torch.ones(1 << 18))
    leaves_gaps.append(torch.ones(256))
used = resident_pages() - before
del tensors
assert resident_pages() - before > used / 2, "freed memory is kept for the next step of a run"
configure_malloc()
assert resident_pages() - before < used / 2, "the next run starts without the freed memory of this one"
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps freed memory as configured"
)
def test_the_next_run_does_not_keep_the_freed_memory_of_the_last():
    subprocess.run([sys.executable, "-c", MEMORY_OF_A_RUN], check=True)
