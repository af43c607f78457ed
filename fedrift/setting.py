"""From an experiment to all that its rounds need: fleet, first state, probes. The one place where text meets algorithms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from .algorithms import FedAvg
from .corpus import TEST, TRAIN, VALIDATION, Blocks, Corpus, Tokens, pack, tokenise
from .errors import UserError
from .experiment import Experiment
from .fleet import SimulatedFleet
from .fleet.batches import TextBatches
from .fleet.micro import micro_cohort
from .fleet.represent import mean_states
from .fleet.stragglers import StragglingBatches
from .models.presets import fingerprint
from .models.stacked import StackedModel
from .models.tune import Lora
from .partition import Partition, Rewrite
from .probes import Losses, Probe, Reading, aggregation_error, hold_out, local_training, token_table, update_geometry
from .probes.dissimilarity import dissimilarity, mean_gradient
from .rounds import begin
from .runtime import Runtime
from .seeds import numpy_stream
from .stock import Stock
from .tree import Tree
from .values import State

SPLITS = {"validation": VALIDATION, "test": TEST}


@dataclass(frozen=True, eq=False)
class Setting:
    """What the rounds of one experiment run on."""

    fleet: SimulatedFleet
    state: State  # of round 0
    cohort: int
    probes: tuple[Probe, ...]
    losses: Losses
    final: Losses | None
    table: dict[str, Any]  # tokens of each client in each domain, for people
    caveats: list[str]
    engine: dict[str, Any]  # choices that must be the same for a run to resume as the same run


def resolve(experiment: Experiment, stock: Stock) -> Experiment:
    """The experiment with the contents of its corpus and model in it, so that changed files are another experiment."""
    corpus = stock.corpus(replace(experiment.corpus, content=""), experiment.model)
    if experiment.corpus.content not in ("", corpus.content):
        raise UserError(f"the corpus {experiment.corpus.name!r} has changed: the experiment was made with content "
                        f"{experiment.corpus.content[:12]}, here is {corpus.content[:12]}. Bring the old files back, or "
                        "leave corpus.content out to begin anew.")
    return replace(experiment, corpus=replace(experiment.corpus, content=corpus.content),
                   model_content=fingerprint(experiment.model))


def dealt(experiment: Experiment, corpus: Corpus) -> Partition:
    """The training documents dealt to the clients; rows index the whole corpus."""
    train = np.flatnonzero(corpus.split == TRAIN)
    partition = experiment.partition(corpus.take(train), numpy_stream(experiment.seed, "partition"))
    return replace(partition, rows=tuple(train[rows] for rows in partition.rows))


def prepare(experiment: Experiment, stock: Stock, engine: dict[str, Any] | None = None) -> Setting:
    """Everything loaded, dealt, packed and stacked. ``engine``: the choices of an earlier start, to be kept."""
    runtime, plan = stock.runtime, experiment.plan
    runtime.begin()
    words = stock.corpus(replace(experiment.corpus, content=""), experiment.model)
    language = stock.language_model(experiment.model, experiment.tune)
    if plan.seq_len > language.window:
        raise UserError(f"plan.seq_len: {plan.seq_len} tokens, but {experiment.model} takes {language.window} at most")
    tokens = stock.tokens(words, experiment.model, experiment.tune)
    corpus = words.sized(tokens.lengths)
    model = stock.stacked(experiment.model, experiment.tune)

    partition = dealt(experiment, corpus)
    parts, cohort, steps = experiment.algorithm.enroll(
        list(partition.rows), plan.cohort(experiment.partition.clients), plan.steps)
    blocks = client_blocks(experiment, corpus, tokens, partition, parts, language.tokenizer, runtime)
    template = model.template(experiment.seed).to(runtime.torch_device())
    said = experiment.algorithm.refusals(plan.optimizer, plan.weighting, list(template))
    if said:
        raise UserError("\n".join(said))

    batches = reading(experiment, blocks, steps, len(parts) == len(partition.rows), runtime)
    engine = engine or {"micro": runtime.micro or micro_cohort(
        model.network, cohort, plan.batch, plan.seq_len, runtime.torch_device())}
    fleet = SimulatedFleet(len(parts), model, batches, plan.optimizer, plan.clip, plan.weighting, plan.factor,
                           engine["micro"], partial(mean_states, model.hidden))
    probes, losses, final = measuring(experiment, corpus, tokens, parts, model)
    return Setting(fleet, begin(experiment.algorithm, template, fleet.size), cohort, probes, losses, final,
                   {"domains": list(losses.held_out.names), "tokens": losses.held_out.mix.astype(int).tolist()},
                   experiment.algorithm.caveats(plan.optimizer, plan.weighting), engine)


def reading(experiment: Experiment, blocks: tuple[Blocks, ...], steps: int, same: bool, runtime: Runtime) -> TextBatches:
    """What clients train on. Where an anchor enrolled others than the clients dealt, nobody straggles."""
    plan = experiment.plan
    every = (blocks, plan.batch, experiment.seed, steps, plan.epochs, runtime.torch_device())
    return StragglingBatches(*every, plan.stragglers, plan.late) if plan.stragglers and same else TextBatches(*every)


def measuring(experiment: Experiment, corpus: Corpus, tokens: Tokens, parts: list[np.ndarray],
              model: StackedModel) -> tuple[tuple[Probe, ...], Losses, Losses | None]:
    """The probes of every round, the losses among them, and the larger evaluation of the end."""
    said, plan = experiment.evaluate, experiment.plan
    held = hold_out(corpus, tokens, SPLITS[said.split], plan.seq_len, max(said.blocks, said.final),
                    experiment.corpus.split_seed, token_table(corpus, parts))
    if not len(held.blocks):
        raise UserError(f"corpus {corpus.name!r} has no {said.split} documents to measure on: "
                        f"raise corpus.{said.split} (the share held out)")
    wear = experiment.algorithm.wear if experiment.algorithm.personal else None
    losses = Losses(model, held.first(said.blocks), said.own, said.every, plan.rounds, wear)
    final = Losses(model, held, said.final, wear=wear, prefix="final.") if said.final else None
    adapters = (aggregation_error,) if isinstance(experiment.tune, Lora) else ()
    return (local_training, update_geometry, *adapters, losses), losses, final


def gradients(experiment: Experiment, stock: Stock, blocks: int = 32) -> Reading:
    """Dissimilarity of the clients' gradients at the first weights, over two halves of up to ``blocks`` / 2 blocks each.

    Clients of fewer than two blocks are left out. Whatever the algorithm, all begin at the same weights.
    """
    setting = prepare(replace(experiment, algorithm=FedAvg()), stock)
    batches: Any = setting.fleet.batches
    order = [numpy_stream(experiment.seed, "gradients", client).permutation(len(own))[:blocks // 2 * 2]
             for client, own in enumerate(batches.blocks)]
    there = [client for client, rows in enumerate(order) if len(rows) > 1]
    if not there:
        raise UserError("no client has two blocks of text: gradients cannot be compared; lower plan.seq_len or the "
                        "number of clients")
    halves = []
    for half in range(2):
        found = []
        for client in there:
            own = order[client][half:len(order[client]) // 2 * 2:2]
            probe = [batches.batch([(client, own[first:first + batches.size])], torch.zeros(1, dtype=torch.long))
                     for first in range(0, len(own), batches.size)]
            found.append(mean_gradient(setting.fleet.objective, setting.state.server.params, probe))
        halves.append(Tree({name: torch.cat([each[name] for each in found]) for name in found[0]}))
    share = torch.tensor(np.asarray(setting.table["tokens"], dtype=float).sum(axis=1)[there])
    return dissimilarity(halves[0], halves[1], share)


def client_blocks(experiment: Experiment, corpus: Corpus, tokens: Tokens, partition: Partition, parts: list[np.ndarray],
                  tokenizer: Any, runtime: Runtime) -> tuple[Blocks, ...]:
    """Each client's documents, in an order of its own, packed into blocks; rewritten first where the regime says so."""
    length, every = experiment.plan.seq_len, []
    same = len(parts) == len(partition.rows)  # an anchor may have enrolled others: nobody's rewrites then
    for client, rows in enumerate(parts):
        rows = numpy_stream(experiment.seed, "pack", client).permutation(rows)
        rewrite = partition.rewrite[client] if partition.rewrite and same else None
        if rewrite is None:
            every.append(pack(tokens, rows, length))
        else:
            own = tokenise(rewritten(corpus.take(rows), rewrite), tokenizer, cache=runtime.cache / "tokens")
            every.append(pack(own, np.arange(len(own)), length))
    return tuple(every)


def rewritten(corpus: Corpus, rewrite: Rewrite) -> Corpus:
    """The corpus with every text rewritten, by itself and the hash of what it was."""
    texts = np.empty(len(corpus), dtype=object)
    texts[:] = [rewrite(text, sha256(text.encode()).hexdigest()) for text in corpus.text]
    return replace(corpus, text=texts)
