"""The data side of an experiment: which corpus is dealt how. Read from the same YAML, but without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen

from .. import partition as regimes
from ..config import Rooms, load_yaml, overridden, read, write
from ..corpus import TRAIN, Corpus, Source, load_corpus
from ..corpus.encode import Encoder, embed
from ..corpus.files import local_path
from ..corpus.named import NAMED
from ..errors import unknown
from ..folders import cache_folder
from ..models import pocket
from ..models.presets import PRESETS, Preset, locate
from ..partition import Calibrated, Partition, Partitioner, TopicMix
from ..partition.iid import deal_documents, deal_notes
from ..partition.tallies import written
from ..report.sheet import Slope
from ..seeds import Seed, number, numpy_stream

ROOMS = Rooms({Partitioner: regimes})
ELSEWHERE = ("tune", "algorithm", "plan", "evaluate", "mitigation", "model_content", "fork")  # keys that deal nothing
BATCH = 1000
EMBEDDED = 5000  # documents whose embeddings are compared
CHANCE = 5  # IID deals behind the band of a gradient's number: each is a pass over every client's text


@dataclass(frozen=True)
class Deal:
    """What decides who holds what; the fields are those of an experiment. ``model`` for its tokenizer."""

    corpus: Source
    model: Annotated[str, MinLen(1)] = "pocket"
    partition: Partitioner = TopicMix()
    seed: Seed = 0

    def written(self) -> dict[str, Any]:
        """Everything that has a say, as plain YAML, defaults included."""
        return {**write(self, ROOMS), "corpus": self.corpus.written()}


@dataclass(frozen=True, eq=False)
class Dealt:
    """A deal carried out: ``corpus`` are the training documents, sized in ``unit``."""

    deal: Deal
    corpus: Corpus
    partition: Partition
    unit: str  # "tokens", or "words" where the model's tokenizer is not at hand
    note: str  # what to know of the unit and of how the corpus was read; "" if nothing


def read_deal(path: Path, overrides: Iterable[str] = ()) -> Deal:
    """The data side of the experiment in a YAML file; other keys are left to ``fedrift validate``."""
    said = overridden(load_yaml(path), overrides)
    own = [field.name for field in fields(Deal)]
    for key in said:
        if key not in own and key not in ELSEWHERE:
            raise unknown("key of an experiment", str(key), [*own, *ELSEWHERE])
    deal: Deal = read(Deal, {key: value for key, value in said.items() if key in own}, ROOMS)
    return deal


def carry_out(deal: Deal, data: Path | None = None) -> Dealt:
    """Load and deal the training documents, as a run of the experiment would."""
    corpus = load_corpus(deal.corpus, data=data, half=half_of(deal.model), cache=cache_folder() / "vectors")
    corpus = corpus.take(np.flatnonzero(corpus.split == TRAIN))
    file, note = tokenizer_file(deal.model)
    if file is not None:
        corpus = corpus.sized(token_lengths(corpus, file))
    dealt = deal_documents(deal.partition, corpus, partial(numpy_stream, deal.seed, "partition"))
    notes = "\n".join(filter(None, [note, *corpus.notes, *deal_notes(deal.partition)]))
    return Dealt(deal, corpus, dealt, "words" if file is None else "tokens", notes)


def check_file(source: Source, model: str, partition: Partitioner, seed: int) -> None:
    """Read and deal a corpus that is a local file, in words; UserError if that cannot be done. Any other is left alone."""
    path = local_path(source.name)
    if source.name in NAMED or not path or path.is_dir():
        return
    corpus = load_corpus(source, half=half_of(model), cache=cache_folder() / "vectors").train
    if not isinstance(partition, Calibrated):  # which measures tokens
        partition(corpus, numpy_stream(seed, "partition"))


def half_of(model: str) -> str:
    """Which half of a corpus that ``pocket`` was pretrained on a model trains on."""
    return "unseen" if model == PRESETS["pocket"].name else "all"


def vectors_of(done: Dealt, encoder: Encoder) -> np.ndarray:
    """The documents as their owners write them in the encoder's vectors, [D, E]; NaN beyond 5,000, chosen by chance."""
    owner = done.partition.owner(len(done.corpus))
    rows = numpy_stream(done.deal.seed, "heterogeneity", "embedded").permutation(np.flatnonzero(owner >= 0))[:EMBEDDED]
    rows = np.sort(rows)
    texts = written(done.corpus.take(rows), done.partition, owner[rows])
    found = embed(texts, encoder, cache=cache_folder() / "vectors")
    vectors = np.full((len(done.corpus), found.shape[1]), np.nan)
    vectors[rows] = found
    return vectors


def slopes_of(file: Path, overrides: Iterable[str], data: Path | None) -> tuple[Slope, ...]:
    """Gradient dissimilarity at the first weights, here and in five IID deals of the same documents: of what is trained
    and, where adapters that begin at zero are, of the last block's own weights too. The one part of a partition's report
    that loads the model.
    """
    from ..experiment import load_experiment, twin
    from ..models.tune import LastK, Lora
    from ..runtime import Runtime
    from ..setting import gradients
    from ..stock import Stock

    experiment, stock = load_experiment(file, overrides), Stock(Runtime(data=data))
    told = {"trained": experiment.tune, **({"last block": LastK()} if isinstance(experiment.tune, Lora) else {})}
    found: list[Slope] = []
    for parts, tune in told.items():
        asked, iid = replace(experiment, tune=tune), replace(twin(experiment), tune=tune)
        here = gradients(asked, stock)
        seeds = [number(experiment.seed, "gradients", "chance", deal) % 2**53 for deal in range(CHANCE)]  # a seed has 53 bits
        chance = [gradients(iid, stock, deal=seed) for seed in seeds]
        for name in here:
            null = np.array([float(one[name]) for one in chance])
            found.append(Slope(parts, str(name), float(here[name]), float(null.mean()), float(null.std(ddof=1))))
    return tuple(found)


def tokenizer_file(model: str) -> tuple[Path | None, str]:
    """The model's tokenizer.json if it is on this machine; else why budgets are counted in words."""
    found = locate(model)
    file = None
    if isinstance(found, Path):
        file = found / "tokenizer.json"
    elif isinstance(found, Preset) and found.origin == "package":
        file = Path(pocket.__file__).with_name("pocket") / "tokenizer.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(found.hub if isinstance(found, Preset) else found, "tokenizer.json")
        file = Path(cached) if isinstance(cached, str) else None
    if file is not None and file.is_file():
        return file, ""
    return None, (f"Budgets are counted in words, because the tokenizer of {model} cannot be read here without loading "
                  "the model. A run counts tokens, and may deal single documents otherwise.")


def token_lengths(corpus: Corpus, file: Path) -> np.ndarray:
    """Tokens of each document, [D], its end token included, as ``corpus.tokenise`` counts them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True  # text that spells a special token is text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths: list[int] = []
    for start in range(0, len(corpus), BATCH):
        found = tokenizer.encode_batch_fast(corpus.text[start:start + BATCH].tolist(), add_special_tokens=False)
        lengths += [len(one.ids) + 1 for one in found]
    return np.array(lengths, dtype=np.int64)
