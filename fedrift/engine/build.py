"""From an experiment to all that measures it: the held-out text, the losses, and the panel of probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from ..algorithms import FedAvg
from ..clustering import NoClustering
from ..clustering.base import ClientInfo
from ..clustering.runtime import ClusteringRuntime
from ..config.runtime import NUMERIC_DEFAULTS, Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..core.random import numpy_stream
from ..core.tree import Tree
from ..core.types import FederatedState
from ..data import TEST, TRAIN, VALIDATION, Blocks, Corpus, TokenizedCorpus, pack_blocks, tokenize_corpus
from ..data.dataset import load_general_corpus
from ..data.encoders import embed_texts
from ..models.device_check import compare_step
from ..models.export import check_peft_compatible
from ..models.introspection import HiddenStateEncoder
from ..models.presets import PRESETS, fingerprint_model
from ..models.stacked_model import StackedModel, mean_hidden_states
from ..models.trainable import Lora, Trainable
from ..partition import Partition
from ..partition.base import partition_corpus, partition_notes
from ..partition.rewriting import apply_rewrites, rewrite_corpus, rewrite_groups
from ..probes import (
    DerivedMetric,
    HeldOut,
    HeldOutLosses,
    MetricValues,
    ProbeContext,
    ProbeSuite,
    ScheduledProbe,
    aggregation_error,
    append_rewritten,
    build_held_out,
    bytes_per_token,
    choose_interval,
    count_client_domain_tokens,
    find_probe_group,
    training_metrics,
    update_geometry,
)
from ..probes.federation import ClusterAgreement
from ..probes.held_out import count_predicted_tokens
from ..probes.losses import PretrainedLossCache
from ..probes.updates import gradient_dissimilarity, mean_gradient
from ..simulation import ClientSimulator
from ..simulation.batches import StragglingBatches, TextBatches, choose_clients_per_pass, choose_faster
from ..simulation.simulator import client_losses_per_model, value_and_gradient
from .cache import ResourceCache

SPLIT_CODES = {"validation": VALIDATION, "test": TEST}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What looks at every round, the losses among it, and the larger evaluation of the end."""

    probe_suite: ProbeSuite
    losses: HeldOutLosses
    final_losses: HeldOutLosses | None
    caveats: list[str]


@dataclass(frozen=True, eq=False)
class RewrittenCorpus:
    """The corpus as the clients of a deal write it, sized in tokens; the corpus itself where nobody rewrites."""

    corpus: Corpus
    partition: Partition


def build_evaluation(
    config: ExperimentConfig,
    resources: ResourceCache,
    corpus: Corpus,
    tokens: TokenizedCorpus,
    rewritten: RewrittenCorpus,
    client_rows: list[np.ndarray],
    model: StackedModel,
    initial_params: Tree,
    cohort_size: int,
    local_steps: int,
    expensive_interval: int | None = None,
    has_client_state: bool = True,
) -> Evaluation:
    """``parts``: the rows that each client trains on; ``start [1, ...]`` w_0; ``deep``: the period of an earlier start."""
    said, plan = config.evaluation, config.training
    asked = (
        SPLIT_CODES[said.split],
        plan.max_seq_length,
        max(said.blocks_per_domain, said.final_blocks_per_domain),
        config.dataset.split_seed,
    )
    held = build_held_out(corpus, tokens, *asked, count_client_domain_tokens(rewritten.corpus, client_rows))
    if not len(held.blocks):
        raise UserError(
            f"corpus {corpus.name!r} has no {said.split} documents to measure on: raise dataset.{said.split}_fraction (the share held out)"
        )
    wear = config.algorithm.personalized_params if config.algorithm.is_personalized and has_client_state else None
    tokenizer, few = resources.get_language_model(config.model, config.trainable).tokenizer, held.head(said.blocks_per_domain)
    sizes = [bytes_per_token(blocks, tokenizer) if "language" in said.probes else None for blocks in (few, held)]
    own = held_out_as_rewritten(held, corpus, rewritten, client_rows, tokenizer, *asked) if rewritten.partition.rewrites else None
    unmeasured = check_held_out(own or held, said.split, corpus.name)
    judge = PretrainedLossCache(
        model, initial_params, (config.model, config.trainable, *sorted(resources.numeric_options.items())), resources.pretrained_losses
    )
    losses = HeldOutLosses(
        judge,
        few,
        said.blocks_per_client,
        said.interval,
        plan.num_rounds,
        wear,
        bytes_per_token=sizes[0],
        rewritten=own and own.head(said.blocks_per_domain),
        vocab_size=len(model.head.weight),
    )
    final = (
        HeldOutLosses(
            judge, held, said.final_blocks_per_domain, personalized_params=wear, prefix="final.", bytes_per_token=sizes[1], rewritten=own
        )
        if said.final_blocks_per_domain
        else None
    )
    bench = ProbeContext(
        model,
        tokenizer,
        initial_params,
        held,
        losses,
        config.dataset.split_seed,
        cohort_size,
        corpus,
        tuple(client_rows),
        config.algorithm,
        load_general_text(config, resources, corpus, tokenizer) if "general" in said.probes else None,
        config.dataset.synthetic if config.dataset.name == "synthetic" else None,
        said.minimal_pairs,
    )
    looks: list[ScheduledProbe | DerivedMetric] = [ScheduledProbe("training", training_metrics), ScheduledProbe("updates", update_geometry)]
    if isinstance(config.trainable, Lora):
        looks.append(ScheduledProbe("adapters", aggregation_error))
    looks.append(ScheduledProbe("losses", losses, said.interval, losses.forward_tokens(cohort_size)))
    for name in dict.fromkeys(said.probes):
        looks += find_probe_group(name)(bench)
    trained = (
        plan.batch_size * plan.max_seq_length * local_steps
        if plan.local_epochs is None
        else plan.local_epochs * held.client_domain_tokens.sum() / len(client_rows)
    )
    expensive_interval = (
        said.expensive_interval
        or expensive_interval
        or choose_interval(looks, cohort_size * float(trained), plan.num_rounds, said.max_overhead)
    )
    caveats = (
        []
        if bench.general_blocks or "general" not in said.probes
        else [
            "general text is not looked at, for there is none: name a corpus that no client trains on with evaluation.general_dataset, or "
            f"give a local copy of wikitext2 (the folder above it is named by FEDRIFT_DATA) for {config.model} to be asked about"
        ]
    )
    return Evaluation(ProbeSuite(tuple(looks), plan.num_rounds, expensive_interval, said.max_overhead), losses, final, caveats + unmeasured)


def check_held_out(held_out: HeldOut, split: str, corpus_name: str) -> list[str]:
    """Make sure that every client's loss can be measured.

    Returns:
        What a reader must know of domains that are trained on and have no held-out text.

    Raises:
        UserError: All domains of a client's data have none, so that its loss would be no number.
    """
    trained, there = held_out.client_domain_tokens > 0, count_predicted_tokens(held_out) > 0
    absent = [name for name, asked in zip(held_out.domains, trained.any(0) & ~there, strict=True) if asked]
    blind = np.flatnonzero(trained.any(1) & ~(trained & there).any(1))
    if len(blind):
        raise UserError(
            f"no loss of {format_names(blind.tolist(), 'client')} can be measured: corpus {corpus_name!r} has no {split} documents of "
            f"{format_names(absent, 'domain')}. Raise dataset.{split}_fraction (the share held out), keep larger domains with "
            f"dataset.domains, "
            "or take no labels with dataset.label_column=''"
        )
    return (
        [
            f"{format_names(absent, 'domain')} of corpus {corpus_name!r}: no {split} documents, so no loss is measured on what is trained "
            "there, and other losses leave it out"
        ]
        if absent
        else []
    )


def format_names(names: Sequence[object], noun: str) -> str:
    """``client 3``, ``domains a, b`` or, of many, the first few and their number."""
    first = ", ".join(str(one)[:40] for one in names[:5])
    return f"{noun}{'s' * (len(names) > 1)} {first}" + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def held_out_as_rewritten(
    held_out: HeldOut,
    corpus: Corpus,
    rewritten: RewrittenCorpus,
    client_rows: list[np.ndarray],
    tokenizer: Any,
    split: int,
    block_length: int,
    max_blocks: int,
    seed: int,
) -> HeldOut:
    """The held-out text as found and, behind it, as each hand of the deal writes it."""
    known = rewrite_groups(rewritten.partition)
    hand = np.append(known.client_group, 0)[rewritten.partition.document_owners(len(corpus))]  # [D]; nobody's documents are as found
    mix = [count_client_domain_tokens(rewritten.corpus, [rows[hand[rows] == one] for rows in client_rows]) for one in range(len(known))]
    read = [
        lambda rows, way=way: tokenize_corpus(rewrite_corpus(corpus.take(rows), way), tokenizer, cache_dir=None)
        for way in known.rewrites[1:]
    ]
    return append_rewritten(held_out, corpus, split, block_length, max_blocks, seed, read, np.concatenate(mix, axis=1))


def load_general_text(config: ExperimentConfig, resources: ResourceCache, corpus: Corpus, tokenizer: Any) -> Blocks | None:
    """Some text that is in no client's pool, in blocks as long as the held-out ones; None where there is none."""
    found = load_general_corpus(
        corpus,
        config.evaluation.general_dataset,
        is_pocket_model=config.model == PRESETS["pocket"].name,
        data_dir=resources.runtime.data_dir,
    )
    if found is None:
        return None
    length = config.training.max_seq_length
    blocks = pack_blocks(tokenize_corpus(found, tokenizer, cache_dir=resources.runtime.cache_dir / "tokens"), np.arange(len(found)), length)
    most = max(1, config.evaluation.general_tokens // length)
    return Blocks(blocks.tokens[:most], blocks.mask[:most])


# From an experiment to all that its rounds need: fleet, first state, probes. The one place where text meets algorithms.


@dataclass(frozen=True, eq=False)
class RunContext:
    """What the rounds of one experiment run on."""

    simulator: ClientSimulator
    model: StackedModel
    initial_state: FederatedState  # of round 0
    cohort_size: int
    probe_suite: ProbeSuite
    losses: HeldOutLosses
    final_losses: HeldOutLosses | None
    partition_table: dict[str, Any]  # tokens of each client in each domain, for people
    caveats: list[str]
    resume_options: dict[str, Any]  # choices that must be the same for a run to resume as the same run
    clustering: ClusteringRuntime  # the mitigation
    cluster_probe: ClusterAgreement | None  # what sees who shares a model with whom, where that is not plain


def resolve_fingerprints(config: ExperimentConfig, resources: ResourceCache) -> ExperimentConfig:
    """The experiment with the contents of its corpus and model in it, so that changed files are another experiment."""
    corpus = resources.get_corpus(replace(config.dataset, fingerprint=""), config.model)
    if config.dataset.fingerprint not in ("", corpus.fingerprint):
        raise UserError(
            f"the corpus {config.dataset.name!r} has changed: the experiment was made with content "
            f"{config.dataset.fingerprint[:12]}, here is {corpus.fingerprint[:12]}. Bring the old files back, or "
            "leave dataset.fingerprint out to begin anew."
        )
    return replace(
        config, dataset=replace(config.dataset, fingerprint=corpus.fingerprint), model_fingerprint=fingerprint_model(config.model)
    )


def partition_documents(config: ExperimentConfig, corpus: Corpus) -> Partition:
    """The training documents dealt to the clients; rows index the whole corpus."""
    train = np.flatnonzero(corpus.split == TRAIN)
    partition = partition_corpus(config.partition, corpus.take(train), partial(numpy_stream, config.seed, "partition"))
    return replace(partition, rows=tuple(train[rows] for rows in partition.rows))


def build_run(
    config: ExperimentConfig, resources: ResourceCache, resume_options: dict[str, Any] | None = None, has_client_state: bool = True
) -> RunContext:
    """Everything loaded, dealt, packed and stacked. ``engine``: the choices of an earlier start, to be kept.
    ``worn``: whether what clients keep can be looked at here, so that models of their own are judged."""
    runtime, plan = resources.runtime, config.training
    runtime.configure_torch()
    made = config.model, config.trainable
    words = resources.get_corpus(replace(config.dataset, fingerprint=""), config.model)
    language = resources.get_language_model(*made)
    if plan.max_seq_length > language.context_length:
        raise UserError(
            f"training.max_seq_length: {plan.max_seq_length} tokens, but {config.model} takes {language.context_length} at most"
        )
    tokens = resources.get_tokens(words, *made)
    corpus = words.with_sizes(tokens.lengths)
    model = resources.get_stacked_model(*made)
    if isinstance(config.trainable, Lora):
        check_peft_compatible(model, config.trainable)

    partition = partition_documents(config, corpus)
    parts, cohort, steps = config.algorithm.configure_clients(
        list(partition.rows), plan.cohort_size(config.partition.num_clients), plan.local_steps
    )
    told = apply_rewrites(corpus, partition)
    heard = tokenize_corpus(told, language.tokenizer, cache_dir=runtime.cache_dir / "tokens") if partition.rewrites else tokens
    written = RewrittenCorpus(told.with_sizes(heard.lengths), partition)
    blocks = pack_client_blocks(config, heard, parts)
    template = model.init_params(config.seed).to(runtime.resolve_device())
    mitigation = config.clustering
    said = config.algorithm.incompatibilities(plan.client_optimizer, plan.client_weighting, list(template))
    said += mitigation.incompatibilities(config.algorithm, list(template))
    if mitigation != NoClustering() and len(parts) != len(partition.rows):
        said.append(f"{type(config.algorithm).__name__} has no clients to group: leave the clustering out")
    if said:
        raise UserError("\n".join(said))

    batches = make_batches(config, blocks, steps, len(parts) == len(partition.rows), runtime)
    most = len(parts) if mitigation.has_full_participation_rounds else cohort
    passes = 2 if config.algorithm.local_regularizer() else 1  # of a step that are kept for its backward pass
    micro = runtime.clients_per_pass or choose_clients_per_pass(
        model.network, most, plan.batch_size, plan.max_seq_length, runtime.resolve_device(), passes
    )
    if runtime.clients_per_pass == 0 and "clients_per_pass" not in (resume_options or {}):
        first = next(iter(batches(0, torch.arange(len(parts)))), {})
        # not of the model that batches the passes of several runs
        micro = choose_faster(partial(timing_step, getattr(model, "inner", model), template, first), micro)
    kept = {name: choice for name, choice in (resume_options or {}).items() if name not in NUMERIC_DEFAULTS}
    resume_options = {"clients_per_pass": micro, **kept, **resources.numeric_options}
    if runtime.should_check_device():
        check_device(resources, made, template, next(iter(batches(0, torch.zeros(1, dtype=torch.long)))))
    fleet = ClientSimulator(
        len(parts),
        model,
        batches,
        plan.client_optimizer,
        plan.max_grad_norm,
        plan.client_weighting,
        plan.lr_factor,
        resume_options["clients_per_pass"],
        partial(mean_hidden_states, model.hidden_states),
    )
    seen = build_evaluation(
        config,
        resources,
        corpus,
        tokens,
        written,
        parts,
        model,
        template,
        cohort,
        steps,
        resume_options.get("expensive_interval"),
        has_client_state,
    )
    if any(look.schedule == "expensive" for look in seen.probe_suite.probes if isinstance(look, ScheduledProbe)):
        resume_options = {**resume_options, "expensive_interval": seen.probe_suite.expensive_interval}
    held = seen.losses.held_out
    ground = client_info(config, resources, corpus, partition, fleet, held.client_domain_tokens)
    work = ClusteringRuntime(mitigation, ground, config.algorithm)
    return RunContext(
        fleet,
        model,
        work.init_state(template),
        cohort,
        seen.probe_suite,
        seen.losses,
        seen.final_losses,
        {"domains": list(held.domains), "tokens": held.client_domain_tokens.astype(int).tolist()},
        config_caveats(config) + model.caveats + seen.caveats + list(words.notes),
        resume_options,
        work,
        ClusterAgreement(ground.main_domains) if mitigation != NoClustering() else None,
    )


def config_caveats(config: ExperimentConfig) -> list[str]:
    """What a reader of the results must know and that the experiment alone tells, before anything is loaded."""
    plan, algorithm, clients = config.training, config.algorithm, config.partition.num_clients
    _, cohort, steps = algorithm.configure_clients([np.zeros(1, dtype=np.int64)] * clients, plan.cohort_size(clients), plan.local_steps)
    found = algorithm.warnings(plan.client_optimizer, plan.client_weighting) + algorithm.aggregator.cohort_warnings(cohort)
    if cohort == 1 and steps and not algorithm.one_client_per_model:
        found.append(
            "one client per round: nothing is averaged, so update.divergence and gradient.norm.variance do not exist; "
            "raise training.participation_rate for a cohort of two or more"
        )
    return found + config.clustering.warnings() + partition_notes(config.partition)


def client_info(
    config: ExperimentConfig,
    resources: ResourceCache,
    corpus: Corpus,
    partition: Partition,
    simulator: ClientSimulator,
    domain_tokens: np.ndarray,
) -> ClientInfo:
    """What a clustering may look at: the clients' training documents as they have them, frozen encoders, losses."""

    def texts(client: int) -> list[str]:
        way = partition.rewrites[client] if partition.rewrites else None
        return list(rewrite_corpus(corpus.take(partition.rows[client]), way).text)

    def embedded(texts: Sequence[str], encoder: str) -> np.ndarray:
        if encoder != "states":
            return embed_texts(texts, encoder, cache_dir=resources.runtime.cache_dir / "vectors")
        language = resources.get_language_model(config.model, config.trainable)
        name = f"states {config.model} {fingerprint_model(config.model)} {resources.numeric_options.get('dtype', 'float32')}"
        states = HiddenStateEncoder(name, language.network, language.tokenizer, language.context_length)
        return embed_texts(texts, states, cache_dir=resources.runtime.cache_dir / "vectors")

    domain = domain_tokens.argmax(axis=1) if corpus.domains else np.full(len(domain_tokens), -1)
    return ClientInfo(
        simulator.size,
        config.seed,
        texts,
        embedded,
        partial(client_losses_per_model, simulator),
        np.where((domain < len(corpus.domains)) & (domain_tokens.sum(axis=1) > 0), domain, -1),
    )


def timing_step(model: StackedModel, params: Tree, batch: dict[str, torch.Tensor], num_clients: int) -> None:
    """A step of so many clients, each with the batch of the first."""
    if batch:
        rows = torch.zeros(num_clients, dtype=torch.long)
        value_and_gradient(
            model,
            params.take(rows),
            {name: leaf[rows.to(leaf.device)] for name, leaf in batch.items() if name != "rows"},
            torch.arange(num_clients),
        )


def check_device(resources: ResourceCache, model_key: tuple[str, Trainable], params: Tree, batch: dict[str, torch.Tensor]) -> None:
    """Ask the canary whether this device computes a step of this model rightly."""
    plain = ResourceCache(replace(resources.runtime, device="cpu", dtype="float32", compiled=False)).get_stacked_model(*model_key)
    batch = {name: leaf for name, leaf in batch.items() if name != "rows"}
    compare_step(resources.get_stacked_model(*model_key), plain, params, batch).check(
        resources.numeric_options.get("dtype", "float32"), str(resources.runtime.resolve_device())
    )


def make_batches(
    config: ExperimentConfig, blocks: tuple[Blocks, ...], local_steps: int, allow_stragglers: bool, runtime: Runtime
) -> TextBatches:
    """What clients train on. Where an anchor enrolled others than the clients dealt, nobody straggles."""
    plan = config.training
    every = (blocks, plan.batch_size, config.seed, local_steps, plan.local_epochs, runtime.resolve_device())
    return (
        StragglingBatches(*every, plan.straggler_fraction, plan.straggler_policy)
        if plan.straggler_fraction and allow_stragglers
        else TextBatches(*every)
    )


def measure_gradient_dissimilarity(
    config: ExperimentConfig, resources: ResourceCache, max_blocks: int = 32, partition_seed: int | None = None
) -> MetricValues:
    """Dissimilarity of the clients' gradients at the first weights, over two halves of up to ``blocks`` / 2 blocks each.

    Clients of fewer than two blocks are left out. Whatever the algorithm, all begin at the same weights, those of the
    experiment's seed; ``deal`` is another seed to deal by.
    """
    dealt_by = replace(
        config, algorithm=FedAvg(), clustering=NoClustering(), seed=config.seed if partition_seed is None else partition_seed
    )
    setting = build_run(dealt_by, resources)
    model = setting.model
    params = model.init_params(config.seed).to(resources.runtime.resolve_device())
    batches: Any = setting.simulator.batches
    order = [
        numpy_stream(dealt_by.seed, "gradients", client).permutation(len(own))[: max_blocks // 2 * 2]
        for client, own in enumerate(batches.blocks)
    ]
    there = [client for client, rows in enumerate(order) if len(rows) > 1]
    if not there:
        raise UserError(
            "no client has two blocks of text: gradients cannot be compared; lower training.max_seq_length or the number of clients"
        )
    halves = []
    for half in range(2):
        found = []
        for client in there:
            own = order[client][half : len(order[client]) // 2 * 2 : 2]
            probe = [
                batches.make_batch([(client, own[first : first + batches.batch_size])], torch.zeros(1, dtype=torch.long))
                for first in range(0, len(own), batches.batch_size)
            ]
            found.append(mean_gradient(model, params, probe))
        halves.append(Tree({name: torch.cat([each[name] for each in found]) for name in found[0]}))
    share = torch.tensor(np.asarray(setting.partition_table["tokens"], dtype=float).sum(axis=1)[there])
    return gradient_dissimilarity(halves[0], halves[1], share)


def pack_client_blocks(config: ExperimentConfig, tokens: TokenizedCorpus, client_rows: list[np.ndarray]) -> tuple[Blocks, ...]:
    """Each client's documents, in an order of its own, packed into blocks."""
    return tuple(
        pack_blocks(tokens, numpy_stream(config.seed, "pack", client).permutation(rows), config.training.max_seq_length)
        for client, rows in enumerate(client_rows)
    )
