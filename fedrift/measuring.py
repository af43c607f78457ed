"""From an experiment to all that measures it: the held-out text, the losses, and the panel of probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .corpus import TEST, VALIDATION, Blocks, Corpus, Tokens, pack, tokenise
from .corpus.general import general_corpus
from .errors import UserError, unknown
from .experiment import Experiment
from .models.presets import PRESETS
from .models.stacked import StackedModel
from .models.tune import Lora
from .partition import Partition
from .partition.hands import hands, in_hand
from .probes import (
    GROUPS,
    After,
    Bench,
    HeldOut,
    Look,
    Losses,
    Panel,
    aggregation_error,
    beside,
    bytes_per_token,
    hold_out,
    local_training,
    period,
    token_table,
    update_geometry,
)
from .probes.held_out import predicted_tokens
from .probes.zero_shot import ZeroShot
from .stock import Stock
from .tree import Tree

SPLITS = {"validation": VALIDATION, "test": TEST}


@dataclass(frozen=True, eq=False)
class Measuring:
    """What looks at every round, the losses among it, and the larger evaluation of the end."""

    panel: Panel
    losses: Losses
    final: Losses | None
    caveats: list[str]


@dataclass(frozen=True, eq=False)
class Written:
    """The corpus as the clients of a deal write it, sized in tokens; the corpus itself where nobody rewrites."""

    corpus: Corpus
    partition: Partition


def measuring(experiment: Experiment, stock: Stock, corpus: Corpus, tokens: Tokens, written: Written, parts: list[np.ndarray],
              model: StackedModel, start: Tree, cohort: int, steps: int, deep: int | None = None, worn: bool = True) -> Measuring:
    """``parts``: the rows that each client trains on; ``start [1, ...]`` w_0; ``deep``: the period of an earlier start."""
    said, plan = experiment.evaluate, experiment.plan
    asked = SPLITS[said.split], plan.seq_len, max(said.blocks, said.final), experiment.corpus.split_seed
    held = hold_out(corpus, tokens, *asked, token_table(written.corpus, parts))
    if not len(held.blocks):
        raise UserError(f"corpus {corpus.name!r} has no {said.split} documents to measure on: "
                        f"raise corpus.{said.split} (the share held out)")
    wear = experiment.algorithm.wear if experiment.algorithm.personal and worn else None
    tokenizer, few = stock.language_model(experiment.model, experiment.tune).tokenizer, held.first(said.blocks)
    sizes = [bytes_per_token(blocks, tokenizer) if "language" in said.panel else None for blocks in (few, held)]
    own = as_clients_write(held, corpus, written, parts, tokenizer, *asked) if written.partition.rewrite else None
    unmeasured = check_held_out(own or held, said.split, corpus.name)
    judge = ZeroShot(model, start, (experiment.model, experiment.tune, *sorted(stock.engine.items())), stock.zero_shot)
    losses = Losses(judge, few, said.own, said.every, plan.rounds, wear, bytes=sizes[0], written=own and own.first(said.blocks),
                    vocabulary=len(model.head.weight))
    final = Losses(judge, held, said.final, wear=wear, prefix="final.", bytes=sizes[1], written=own) if said.final else None
    bench = Bench(model, tokenizer, start, held, losses, experiment.corpus.split_seed, cohort, corpus, tuple(parts),
                  experiment.algorithm, general_text(experiment, stock, corpus, tokenizer) if "general" in said.panel else None,
                  experiment.corpus.sandbox if experiment.corpus.name == "sandbox" else None, said.pairs)
    looks: list[Look | After] = [Look("training", local_training), Look("updates", update_geometry)]
    if isinstance(experiment.tune, Lora):
        looks.append(Look("adapters", aggregation_error))
    looks.append(Look("losses", losses, said.every, losses.forward(cohort)))
    for name in dict.fromkeys(said.panel):
        if name not in GROUPS:
            raise unknown("group of probes", name, GROUPS)
        looks += GROUPS[name](bench)
    trained = plan.batch * plan.seq_len * steps if plan.epochs is None else plan.epochs * held.mix.sum() / len(parts)
    deep = said.deep or deep or period(looks, cohort * float(trained), plan.rounds, said.budget)
    caveats = [] if bench.general or "general" not in said.panel else [
        "general text is not looked at, for there is none: name a corpus that no client trains on with evaluate.general, or "
        f"give a local copy of wikitext2 (the folder above it is named by FEDRIFT_DATA) for {experiment.model} to be asked about"]
    return Measuring(Panel(tuple(looks), plan.rounds, deep, said.budget), losses, final, caveats + unmeasured)


def check_held_out(held: HeldOut, split: str, corpus: str) -> list[str]:
    """Make sure that every client's loss can be measured.

    Returns:
        What a reader must know of domains that are trained on and have no held-out text.

    Raises:
        UserError: All domains of a client's data have none, so that its loss would be no number.
    """
    trained, there = held.mix > 0, predicted_tokens(held) > 0
    absent = [name for name, asked in zip(held.names, trained.any(0) & ~there, strict=True) if asked]
    blind = np.flatnonzero(trained.any(1) & ~(trained & there).any(1))
    if len(blind):
        raise UserError(
            f"no loss of {count_of(blind.tolist(), 'client')} can be measured: corpus {corpus!r} has no {split} documents of "
            f"{count_of(absent, 'domain')}. Raise corpus.{split} (the share held out), keep larger domains with corpus.domains, "
            "or take no labels with corpus.label=''")
    return [f"{count_of(absent, 'domain')} of corpus {corpus!r}: no {split} documents, so no loss is measured on what is trained "
            "there, and other losses leave it out"] if absent else []


def count_of(what: Sequence[object], kind: str) -> str:
    """``client 3``, ``domains a, b`` or, of many, the first few and their number."""
    first = ", ".join(str(one)[:40] for one in what[:5])
    return f"{kind}{'s' * (len(what) > 1)} {first}" + (f" and {len(what) - 5:,} more" if len(what) > 5 else "")


def as_clients_write(held: HeldOut, corpus: Corpus, written: Written, parts: list[np.ndarray], tokenizer: Any, split: int,
                     length: int, most: int, seed: int) -> HeldOut:
    """The held-out text as found and, behind it, as each hand of the deal writes it."""
    known = hands(written.partition)
    hand = np.append(known.client, 0)[written.partition.owner(len(corpus))]  # [D]; nobody's documents are as found
    mix = [token_table(written.corpus, [rows[hand[rows] == one] for rows in parts]) for one in range(len(known))]
    read = [lambda rows, way=way: tokenise(in_hand(corpus.take(rows), way), tokenizer, cache=None) for way in known.ways[1:]]
    return beside(held, corpus, split, length, most, seed, read, np.concatenate(mix, axis=1))


def general_text(experiment: Experiment, stock: Stock, corpus: Corpus, tokenizer: Any) -> Blocks | None:
    """Some text that is in no client's pool, in blocks as long as the held-out ones; None where there is none."""
    found = general_corpus(corpus, experiment.evaluate.general, pocket=experiment.model == PRESETS["pocket"].name,
                           data=stock.runtime.data)
    if found is None:
        return None
    length = experiment.plan.seq_len
    blocks = pack(tokenise(found, tokenizer, cache=stock.runtime.cache / "tokens"), np.arange(len(found)), length)
    most = max(1, experiment.evaluate.general_tokens // length)
    return Blocks(blocks.tokens[:most], blocks.keep[:most])
