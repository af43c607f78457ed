"""The data side of an experiment: which corpus is dealt how. Read from the same YAML, but without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import partition as regimes
from ..config import Rooms, override, read, write
from ..corpus import TRAIN, Corpus, Source, load_corpus
from ..errors import UserError, unknown
from ..models import pocket
from ..models.presets import PRESETS, Preset, locate
from ..partition import Partition, Partitioner, TopicMix
from ..seeds import numpy_stream

ROOMS = Rooms({Partitioner: regimes})
ELSEWHERE = ("tune", "algorithm", "plan", "evaluate", "model_content")  # keys of an experiment that deal nothing
BATCH = 1000


@dataclass(frozen=True)
class Deal:
    """What decides who holds what; the fields are those of an experiment. ``model`` for its tokenizer."""

    corpus: Source
    model: str = "pocket"
    partition: Partitioner = TopicMix()
    seed: int = 0

    def written(self) -> dict[str, Any]:
        """Everything that has a say, as plain YAML, defaults included."""
        said: dict[str, Any] = write(self, ROOMS)
        if self.corpus.name != "sandbox":
            del said["corpus"]["sandbox"]
        return said


@dataclass(frozen=True, eq=False)
class Dealt:
    """A deal carried out: ``corpus`` are the training documents, sized in ``unit``."""

    deal: Deal
    corpus: Corpus
    partition: Partition
    unit: str  # "tokens", or "words" where the model's tokenizer is not at hand
    note: str  # what to know of the unit; "" if nothing


def read_deal(path: Path, overrides: Iterable[str] = ()) -> Deal:
    """The data side of the experiment in a YAML file; other keys are left to ``fedrift validate``."""
    try:
        said = plain(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path} holds no experiment: wanted keys and values such as `corpus: bbc`")
    for text in overrides:
        place, sign, value = text.partition("=")
        if not sign or not place:
            raise UserError(f"{text!r}: an override is written path=value, e.g. partition.severity=0.5")
        said = override(said, place.strip(), plain(value, text))
    own = [field.name for field in fields(Deal)]
    for key in said:
        if key not in own and key not in ELSEWHERE:
            raise unknown("key of an experiment", str(key), [*own, *ELSEWHERE])
    deal: Deal = read(Deal, {key: value for key, value in said.items() if key in own}, ROOMS)
    return deal


def plain(text: str, where: str) -> Any:
    """YAML as plain values."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not YAML: {error}") from None


def carry_out(deal: Deal, data: Path | None = None) -> Dealt:
    """Load and deal the training documents, as a run of the experiment would."""
    half = "unseen" if deal.model == PRESETS["pocket"].name else "all"
    corpus = load_corpus(deal.corpus, data=data, half=half)
    corpus = corpus.take(np.flatnonzero(corpus.split == TRAIN))
    file, note = tokenizer_file(deal.model)
    if file is not None:
        corpus = corpus.sized(token_lengths(corpus, file))
    dealt = deal.partition(corpus, numpy_stream(deal.seed, "partition"))
    return Dealt(deal, corpus, dealt, "words" if file is None else "tokens", note)


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
