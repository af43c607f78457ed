"""From an experiment to all that its rounds need: fleet, first state, probes. The one place where text meets algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from .algorithms import FedAvg
from .corpus import TRAIN, Blocks, Corpus, Tokens, pack, tokenise
from .corpus.encode import embed
from .errors import UserError
from .experiment import Experiment
from .fleet import SimulatedFleet
from .fleet.batches import TextBatches
from .fleet.choice import losses_of
from .fleet.micro import faster, micro_cohort
from .fleet.represent import mean_states
from .fleet.simulated import value_and_gradient
from .fleet.stragglers import StragglingBatches
from .measuring import Written, measuring
from .mitigation import Vanilla
from .mitigation.decision import Ground
from .mitigation.work import Work
from .models.canary import replay
from .models.export import check_adapters
from .models.presets import fingerprint
from .models.stacked import StackedModel
from .models.states import States
from .models.tune import Lora, Tune
from .partition import Partition
from .partition.hands import as_written, in_hand
from .partition.iid import deal_documents, deal_notes
from .probes import Look, Losses, Panel, Reading
from .probes.dissimilarity import dissimilarity, mean_gradient
from .probes.grouping import Grouping
from .runtime import ARITHMETIC, Runtime
from .seeds import numpy_stream
from .stock import Stock
from .tree import Tree
from .values import State


@dataclass(frozen=True, eq=False)
class Setting:
    """What the rounds of one experiment run on."""

    fleet: SimulatedFleet
    model: StackedModel
    state: State  # of round 0
    cohort: int
    panel: Panel
    losses: Losses
    final: Losses | None
    table: dict[str, Any]  # tokens of each client in each domain, for people
    caveats: list[str]
    engine: dict[str, Any]  # choices that must be the same for a run to resume as the same run
    work: Work  # the mitigation
    grouping: Grouping | None  # what sees who shares a model with whom, where that is not plain


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
    partition = deal_documents(experiment.partition, corpus.take(train), partial(numpy_stream, experiment.seed, "partition"))
    return replace(partition, rows=tuple(train[rows] for rows in partition.rows))


def prepare(experiment: Experiment, stock: Stock, engine: dict[str, Any] | None = None, worn: bool = True) -> Setting:
    """Everything loaded, dealt, packed and stacked. ``engine``: the choices of an earlier start, to be kept.
    ``worn``: whether what clients keep can be looked at here, so that models of their own are judged."""
    runtime, plan = stock.runtime, experiment.plan
    runtime.begin()
    made = experiment.model, experiment.tune
    words = stock.corpus(replace(experiment.corpus, content=""), experiment.model)
    language = stock.language_model(*made)
    if plan.seq_len > language.window:
        raise UserError(f"plan.seq_len: {plan.seq_len} tokens, but {experiment.model} takes {language.window} at most")
    tokens = stock.tokens(words, *made)
    corpus = words.sized(tokens.lengths)
    model = stock.stacked(*made)
    if isinstance(experiment.tune, Lora):
        check_adapters(model, experiment.tune)

    partition = dealt(experiment, corpus)
    parts, cohort, steps = experiment.algorithm.enroll(
        list(partition.rows), plan.cohort(experiment.partition.clients), plan.steps)
    told = as_written(corpus, partition)
    heard = tokenise(told, language.tokenizer, cache=runtime.cache / "tokens") if partition.rewrite else tokens
    written = Written(told.sized(heard.lengths), partition)
    blocks = client_blocks(experiment, heard, parts)
    template = model.template(experiment.seed).to(runtime.torch_device())
    mitigation = experiment.mitigation
    said = experiment.algorithm.refusals(plan.optimizer, plan.weighting, list(template))
    said += mitigation.refusals(experiment.algorithm, list(template))
    if mitigation != Vanilla() and len(parts) != len(partition.rows):
        said.append(f"{type(experiment.algorithm).__name__} has no clients to group: leave the mitigation out")
    if said:
        raise UserError("\n".join(said))

    batches = reading(experiment, blocks, steps, len(parts) == len(partition.rows), runtime)
    most = len(parts) if mitigation.everybody else cohort
    passes = 2 if experiment.algorithm.penalty() else 1  # of a step that are kept for its backward pass
    micro = runtime.micro or micro_cohort(model.network, most, plan.batch, plan.seq_len, runtime.torch_device(), passes)
    if runtime.micro == 0 and "micro" not in (engine or {}):
        first = next(iter(batches(0, torch.arange(len(parts)))), {})
        micro = faster(partial(one_step, getattr(model, "plain", model), template, first), micro)  # not at a meeting of runs
    kept = {name: choice for name, choice in (engine or {}).items() if name not in ARITHMETIC}
    engine = {"micro": micro, **kept, **stock.engine}
    if runtime.watched():
        listen(stock, made, template, next(iter(batches(0, torch.zeros(1, dtype=torch.long)))))
    fleet = SimulatedFleet(len(parts), model, batches, plan.optimizer, plan.clip, plan.weighting, plan.factor,
                           engine["micro"], partial(mean_states, model.hidden))
    seen = measuring(experiment, stock, corpus, tokens, written, parts, model, template, cohort, steps, engine.get("deep"),
                     worn)
    if any(look.when == "deep" for look in seen.panel.looks if isinstance(look, Look)):
        engine = {**engine, "deep": seen.panel.deep}
    held = seen.losses.held_out
    ground = ground_of(experiment, stock, corpus, partition, fleet, held.mix)
    work = Work(mitigation, ground, experiment.algorithm)
    return Setting(fleet, model, work.begin(template), cohort, seen.panel, seen.losses, seen.final,
                   {"domains": list(held.names), "tokens": held.mix.astype(int).tolist()},
                   known_caveats(experiment) + model.caveats + seen.caveats + list(words.notes),
                   engine, work, Grouping(ground.domain) if mitigation != Vanilla() else None)


def known_caveats(experiment: Experiment) -> list[str]:
    """What a reader of the results must know and that the experiment alone tells, before anything is loaded."""
    plan, algorithm, clients = experiment.plan, experiment.algorithm, experiment.partition.clients
    _, cohort, steps = algorithm.enroll([np.zeros(1, dtype=np.int64)] * clients, plan.cohort(clients), plan.steps)
    found = algorithm.caveats(plan.optimizer, plan.weighting) + algorithm.aggregate.thin(cohort)
    if cohort == 1 and steps and not algorithm.alone:
        found.append("one client per round: nothing is averaged, so update.divergence and gradient.norm.variance do not exist; "
                     "raise plan.participation for a cohort of two or more")
    return found + experiment.mitigation.caveats() + deal_notes(experiment.partition)


def ground_of(experiment: Experiment, stock: Stock, corpus: Corpus, partition: Partition, fleet: SimulatedFleet,
              mix: np.ndarray) -> Ground:
    """What a mitigation may look at: the clients' training documents as they have them, frozen encoders, losses."""
    def texts(client: int) -> list[str]:
        way = partition.rewrite[client] if partition.rewrite else None
        return list(in_hand(corpus.take(partition.rows[client]), way).text)

    def embedded(texts: Sequence[str], encoder: str) -> np.ndarray:
        if encoder != "states":
            return embed(texts, encoder, cache=stock.runtime.cache / "vectors")
        language = stock.language_model(experiment.model, experiment.tune)
        name = f"states {experiment.model} {fingerprint(experiment.model)} {stock.engine.get('dtype', 'float32')}"
        states = States(name, language.network, language.tokenizer, language.window)
        return embed(texts, states, cache=stock.runtime.cache / "vectors")

    domain = mix.argmax(axis=1) if corpus.domains else np.full(len(mix), -1)
    return Ground(fleet.size, experiment.seed, texts, embedded, partial(losses_of, fleet),
                  np.where((domain < len(corpus.domains)) & (mix.sum(axis=1) > 0), domain, -1))


def one_step(model: StackedModel, params: Tree, batch: dict[str, torch.Tensor], clients: int) -> None:
    """A step of so many clients, each with the batch of the first."""
    if batch:
        rows = torch.zeros(clients, dtype=torch.long)
        value_and_gradient(model, params.rows(rows), {name: leaf[rows.to(leaf.device)] for name, leaf in batch.items()
                                                      if name != "rows"}, torch.arange(clients))


def listen(stock: Stock, made: tuple[str, Tune], params: Tree, batch: dict[str, torch.Tensor]) -> None:
    """Ask the canary whether this device computes a step of this model rightly."""
    plain = Stock(replace(stock.runtime, device="cpu", dtype="float32", compiled=False)).stacked(*made)
    batch = {name: leaf for name, leaf in batch.items() if name != "rows"}
    replay(stock.stacked(*made), plain, params, batch).check(
        stock.engine.get("dtype", "float32"), str(stock.runtime.torch_device()))


def reading(experiment: Experiment, blocks: tuple[Blocks, ...], steps: int, same: bool, runtime: Runtime) -> TextBatches:
    """What clients train on. Where an anchor enrolled others than the clients dealt, nobody straggles."""
    plan = experiment.plan
    every = (blocks, plan.batch, experiment.seed, steps, plan.epochs, runtime.torch_device())
    return StragglingBatches(*every, plan.stragglers, plan.late) if plan.stragglers and same else TextBatches(*every)


def gradients(experiment: Experiment, stock: Stock, blocks: int = 32, deal: int | None = None) -> Reading:
    """Dissimilarity of the clients' gradients at the first weights, over two halves of up to ``blocks`` / 2 blocks each.

    Clients of fewer than two blocks are left out. Whatever the algorithm, all begin at the same weights, those of the
    experiment's seed; ``deal`` is another seed to deal by.
    """
    dealt_by = replace(experiment, algorithm=FedAvg(), mitigation=Vanilla(), seed=experiment.seed if deal is None else deal)
    setting = prepare(dealt_by, stock)
    model = setting.model
    params = model.template(experiment.seed).to(stock.runtime.torch_device())
    batches: Any = setting.fleet.batches
    order = [numpy_stream(dealt_by.seed, "gradients", client).permutation(len(own))[:blocks // 2 * 2]
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
            found.append(mean_gradient(model, params, probe))
        halves.append(Tree({name: torch.cat([each[name] for each in found]) for name in found[0]}))
    share = torch.tensor(np.asarray(setting.table["tokens"], dtype=float).sum(axis=1)[there])
    return dissimilarity(halves[0], halves[1], share)


def client_blocks(experiment: Experiment, tokens: Tokens, parts: list[np.ndarray]) -> tuple[Blocks, ...]:
    """Each client's documents, in an order of its own, packed into blocks."""
    return tuple(pack(tokens, numpy_stream(experiment.seed, "pack", client).permutation(rows), experiment.plan.seq_len)
                 for client, rows in enumerate(parts))
