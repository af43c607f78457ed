"""A small experiment for tests of whole runs: a tiny model with its own tokenizer, and a corpus of three topics.

Besides it, what tests of runs share: a command whose output is read, and the end of a run after some rounds.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fedrift.cli.app import main
from fedrift.config.runtime import Runtime
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.engine.cache import ResourceCache
from fedrift.models.load import quiet_transformers
from fedrift.storage import Run
from fedrift.storage.checkpoint import Checkpoint
from tests.models.tiny import random_model

WORDS = {
    "sport": "the team won a match and the coach praised every player after the late goal".split(),
    "tech": "the new chip runs software faster while engineers test code on every device".split(),
    "food": "cook the onion with butter then add salt and serve warm bread with soup".split(),
}

SHORT = (  # overrides for a run of a second
    "training.num_rounds=1",
    "training.local_steps=1",
    "evaluation.blocks_per_domain=1",
    "evaluation.blocks_per_client=0",
    "evaluation.final_blocks_per_domain=0",
    "evaluation.probes=[]",
)


def documents(per_topic: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """Return pairs of text and label, with sentences that only use the words of their topic."""
    draw = np.random.default_rng(seed)
    return [
        (" ".join(draw.choice(words, size=int(draw.integers(12, 40)))) + ".", topic)
        for topic, words in WORDS.items()
        for _ in range(per_topic)
    ]


def byte_tokenizer(vocabulary: int = 320) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [text for text, _ in documents(20)],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<end>", "<pad>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<end>", eos_token="<end>", pad_token="<pad>")


def model_folder(folder: Path, kind: str = "llama") -> Path:
    """Save a tiny random model in a folder, as local models are saved."""
    language = random_model(kind, byte_tokenizer())
    with quiet_transformers():
        language.network.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    return folder


def corpus_file(path: Path, per_topic: int = 60) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(documents(per_topic))
    return path


def experiment(folder: Path, *overrides: str, kind: str = "llama") -> ExperimentConfig:
    """Return an experiment with three clients of one topic each and four rounds of two steps; all its files are in ``folder``."""
    model, corpus = folder / f"model-{kind}", folder / "corpus.csv"
    if not model.exists():
        model_folder(model, kind)
    if not corpus.exists():
        corpus_file(corpus)
    raw = {
        "dataset": str(corpus),
        "model": str(model),
        "partition": {"type": "TopicMix", "num_clients": 3, "severity": 1.0},
        "training": {
            "num_rounds": 4,
            "participation_rate": 0.67,
            "local_steps": 2,
            "batch_size": 2,
            "max_seq_length": 16,
            "client_optimizer": {"type": "Sgd", "lr": 0.5},
        },
        "evaluation": {"blocks_per_domain": 3, "blocks_per_client": 2, "final_blocks_per_domain": 6},
    }
    return parse_config(raw, overrides)


def read_state(run: Run) -> dict[str, Tensor]:
    """Return all tensors of the last state of a run by name, including the client states."""
    tensors, _, client_states = Checkpoint(run).read()
    return {**tensors, **{f"client_states/{name}": leaf for name, leaf in client_states.gather_all().items()}}


def make_cache(folder: Path, **options) -> ResourceCache:
    return ResourceCache(Runtime(runs_dir=folder / "runs", cache_dir=folder / "cache", device="cpu", **options))


def run_command(capsys, monkeypatch, *words: str) -> tuple[int, str, str]:
    """Run a command; return its exit code, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["fedrift", *words])
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


class Killed(Exception):
    pass


def killed_at(round: int):
    def watch(progress):
        if progress.round == round:
            raise Killed

    return watch
