"""Preparation of a run: from a configuration to the simulated clients, the initial state, and the probes.

This is the only module in which text data and federated algorithms meet. Axis letters: D documents, M models of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ..algorithms import FedAvg
from ..clustering import NoClustering
from ..clustering.base import ClientInfo
from ..config.runtime import NUMERIC_DEFAULTS, Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..core.random import numpy_stream, torch_stream
from ..core.tree import Tree
from ..core.types import FederatedState
from ..data import TEST, TRAIN, VALIDATION, Blocks, Corpus, TokenizedCorpus, pack_blocks, tokenize_corpus
from ..data.encoders import embed_texts
from ..data.tokenization import template_notes
from ..models.arithmetic import ARITHMETICS, Arithmetic, ArithmeticChoice, choose_arithmetic, compare_step
from ..models.export import check_peft_compatible
from ..models.introspection import HiddenStateEncoder
from ..models.presets import fingerprint_model
from ..models.stacked_model import StackedModel, mean_hidden_states, sample_tokens
from ..models.trainable import Lora, Trainable
from ..partition import Partition
from ..partition.base import partition_corpus, partition_notes
from ..partition.rewriting import apply_rewrites, rewrite_corpus, rewrite_groups
from ..probes import (
    BlockOptions,
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
from ..probes.held_out import count_predicted_tokens
from ..probes.losses import PretrainedLossCache
from ..probes.updates import gradient_dissimilarity, mean_gradient
from ..simulation import ClientSimulator
from ..simulation.batches import StragglingBatches, TextBatches, choose_clients_per_pass, choose_faster
from ..simulation.simulator import client_losses_per_model, value_and_gradient
from .cache import ResourceCache
from .checks import check_block_length, check_combination, check_context_length, check_measured_domains, no_held_out_error
from .clustering import ClusteringRuntime

SPLIT_CODES = {"validation": VALIDATION, "test": TEST}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluation of a run."""

    probe_suite: ProbeSuite  # all probes, including the losses
    losses: HeldOutLosses
    final_losses: HeldOutLosses | None  # the final evaluation after the last round, on more text; None: there is none


@dataclass(frozen=True, eq=False)
class RewrittenCorpus:
    """The corpus after the rewrites of the partition, with document sizes in tokens."""

    corpus: Corpus  # the original corpus if the partition rewrites nothing
    partition: Partition


@dataclass(frozen=True, eq=False)
class LoadedText:
    """The documents of a run before they are assigned to clients."""

    corpus: Corpus  # with document sizes in tokens
    tokens: TokenizedCorpus
    notes: list[str]  # facts about the text that a reader of the results must know


@dataclass(frozen=True, eq=False)
class ClientData:
    """The text of a run, and how clients take part in its rounds."""

    corpus: Corpus  # the original corpus
    tokens: TokenizedCorpus  # the tokens of the original corpus
    rewritten: RewrittenCorpus
    client_rows: list[np.ndarray]  # the document indices of each client
    blocks: tuple[Blocks, ...]  # the training blocks of each client
    cohort_size: int
    local_steps: int  # of each client per round


class Losses(NamedTuple):
    """The held-out text of a run and the losses on it."""

    held_out: HeldOut
    each_round: HeldOutLosses
    final: HeldOutLosses | None  # after the last round; None: there is no such evaluation
    warnings: list[str]


def build_evaluation(
    config: ExperimentConfig,
    resources: ResourceCache,
    data: ClientData,
    model: StackedModel,
    initial_params: Tree,
    expensive_interval: int | None = None,
    has_client_state: bool = True,
) -> tuple[Evaluation, list[str]]:
    """Create the held-out text, the losses and the probes of a run.

    Args:
        config: The configuration of the experiment.
        resources: Loaded models and data.
        data: The text of the run.
        model: The model for many clients.
        initial_params: The initial parameters w_0, ``[1, ...]``.
        expensive_interval: The interval of expensive probes that an earlier start of the run chose. None: choose it now.
        has_client_state: Whether the client states are available on this machine, which personalized models need.

    Returns:
        The evaluation, and the warnings about what it cannot measure.

    Raises:
        UserError: There is no held-out text, or none for the domains of some client.
    """
    losses = build_losses(config, resources, data, model, initial_params, has_client_state)
    suite, warnings = build_probe_suite(config, resources, data, model, initial_params, losses, expensive_interval)
    return Evaluation(suite, losses.each_round, losses.final), warnings + losses.warnings


def build_losses(
    config: ExperimentConfig, resources: ResourceCache, data: ClientData, model: StackedModel, initial_params: Tree, has_client_state: bool
) -> Losses:
    """Select the held-out text of a run, and create the losses on it. The arguments are those of `build_evaluation`.

    Raises:
        UserError: There is no held-out text, or none for the domains of some client.
    """
    evaluation, corpus, rewritten = config.evaluation, data.corpus, data.rewritten
    block_options = BlockOptions(
        SPLIT_CODES[evaluation.split],
        config.training.max_seq_length,
        max(evaluation.blocks_per_domain, evaluation.final_blocks_per_domain),
        config.dataset.split_seed,
        evaluation.max_blocks_per_document,
    )
    held_out = build_held_out(corpus, data.tokens, block_options, count_client_domain_tokens(rewritten.corpus, data.client_rows))
    if not len(held_out.blocks):
        raise no_held_out_error(corpus.name, evaluation.split)
    all_held_out = (
        held_out_as_rewritten(
            held_out,
            corpus,
            rewritten,
            data.client_rows,
            lambda texts: resources.get_rewritten_tokens(texts, *model_key_of(config), on_disk=False),
            block_options,
        )
        if rewritten.partition.rewrites
        else None
    )
    warnings = check_held_out(all_held_out or held_out, evaluation.split, corpus.name)
    personalized_params = config.algorithm.personalized_params if config.algorithm.is_personalized and has_client_state else None
    tokenizer = resources.get_language_model(*model_key_of(config)).tokenizer
    round_held_out = held_out.head(evaluation.blocks_per_domain)
    sizes = [bytes_per_token(blocks, tokenizer) if "language" in evaluation.probes else None for blocks in (round_held_out, held_out)]
    loss_cache = PretrainedLossCache(
        model,
        initial_params,
        (*model_key_of(config), *sorted(resources.numeric_options.items())),
        resources.pretrained_losses,
        resources.evaluated_losses,
    )
    losses = HeldOutLosses(
        loss_cache,
        round_held_out,
        evaluation.blocks_per_client,
        evaluation.interval,
        config.training.num_rounds,
        personalized_params,
        bytes_per_token=sizes[0],
        rewritten=all_held_out and all_held_out.head(evaluation.blocks_per_domain),
        vocab_size=len(model.head.weight),
    )
    final_losses = (
        HeldOutLosses(
            loss_cache,
            held_out,
            evaluation.final_blocks_per_domain,
            personalized_params=personalized_params,
            prefix="final.",
            bytes_per_token=sizes[1],
            rewritten=all_held_out,
        )
        if evaluation.final_blocks_per_domain
        else None
    )
    return Losses(held_out, losses, final_losses, warnings)


def build_probe_suite(
    config: ExperimentConfig,
    resources: ResourceCache,
    data: ClientData,
    model: StackedModel,
    initial_params: Tree,
    losses: Losses,
    expensive_interval: int | None,
) -> tuple[ProbeSuite, list[str]]:
    """Create the probes of a run, and choose the interval of the expensive ones. The arguments are those of `build_evaluation`.

    Returns:
        The probes, including the losses, and the warnings about probes that cannot run.
    """
    evaluation, training, cohort_size = config.evaluation, config.training, data.cohort_size
    tokenizer = resources.get_language_model(*model_key_of(config)).tokenizer
    probe_context = ProbeContext(
        model,
        tokenizer,
        initial_params,
        losses.held_out,
        losses.each_round,
        config.dataset.split_seed,
        cohort_size,
        data.corpus,
        tuple(data.client_rows),
        config.algorithm,
        load_general_text(config, resources, data.corpus, tokenizer) if "general" in evaluation.probes else None,
        config.dataset.synthetic if config.dataset.name == "synthetic" else None,
        evaluation.minimal_pairs,
        split=SPLIT_CODES[evaluation.split],
        label_prompt=evaluation.label_prompt,
        labeled_documents=evaluation.labeled_documents,
    )
    probes: list[ScheduledProbe | DerivedMetric] = [
        ScheduledProbe("training", training_metrics),
        ScheduledProbe("updates", update_geometry),
    ]
    if isinstance(config.trainable, Lora):
        probes.append(ScheduledProbe("adapters", aggregation_error))
    probes.append(ScheduledProbe("losses", losses.each_round, evaluation.interval, losses.each_round.forward_tokens(cohort_size)))
    for name in dict.fromkeys(evaluation.probes):
        probes += find_probe_group(name)(probe_context)
    tokens_per_client = (
        training.batch_size * training.max_seq_length * data.local_steps
        if training.local_epochs is None
        else training.local_epochs * losses.held_out.client_domain_tokens.sum() / len(data.client_rows)
    )
    interval = (
        evaluation.expensive_interval
        or expensive_interval
        or choose_interval(probes, cohort_size * float(tokens_per_client), training.num_rounds, evaluation.max_overhead)
    )
    warnings = (
        []
        if probe_context.general_blocks or "general" not in evaluation.probes
        else [
            "the probes of general text do not run, because no general text is available. Name a dataset that no client trains on with "
            f"evaluation.general_dataset, or, for {config.model}, put a local copy of wikitext2 into a folder and set FEDRIFT_DATA to "
            "that folder"
        ]
    )
    return ProbeSuite(tuple(probes), training.num_rounds, interval, evaluation.max_overhead), warnings


def check_held_out(held_out: HeldOut, split: str, corpus_name: str) -> list[str]:
    """Check that the loss of every client can be measured.

    Args:
        held_out: The held-out blocks of each domain, and the training tokens of each client in each domain.
        split: The name of the held-out split, for messages.
        corpus_name: The name of the dataset, for messages.

    Returns:
        A warning if some domains have training text but no held-out text.

    Raises:
        UserError: None of the domains of a client has held-out text.
    """
    return check_measured_domains(
        held_out.client_domain_tokens > 0, count_predicted_tokens(held_out) > 0, held_out.domains, split, corpus_name
    )


def held_out_as_rewritten(
    held_out: HeldOut,
    corpus: Corpus,
    rewritten: RewrittenCorpus,
    client_rows: list[np.ndarray],
    tokenize: Callable[[Corpus], TokenizedCorpus],
    block_options: BlockOptions,
) -> HeldOut:
    """Append rewritten held-out text to the original held-out text, for each distinct rewrite of the partition.

    Args:
        held_out: The original held-out text.
        corpus: The original corpus.
        rewritten: The corpus after the rewrites of the partition.
        client_rows: The document indices of each client.
        tokenize: Returns the tokens of rewritten documents.
        block_options: How held-out text is selected and cut.
    """
    groups = rewrite_groups(rewritten.partition)
    # [D] group of the rewrite of each document; documents without a client belong to group 0, which is not rewritten
    document_group = np.append(groups.client_group, 0)[rewritten.partition.document_owners(len(corpus))]
    domain_tokens = [
        count_client_domain_tokens(rewritten.corpus, [rows[document_group[rows] == group] for rows in client_rows])
        for group in range(len(groups))
    ]
    tokenize_rewritten = [
        lambda rows, rewrite=rewrite: tokenize(rewrite_corpus(corpus.take(rows), rewrite)) for rewrite in groups.rewrites[1:]
    ]
    return append_rewritten(held_out, corpus, block_options, tokenize_rewritten, np.concatenate(domain_tokens, axis=1))


def load_general_text(config: ExperimentConfig, resources: ResourceCache, corpus: Corpus, tokenizer: Any) -> Blocks | None:
    """Load text that no client trains on, in blocks of the length of the held-out blocks.

    Returns:
        The blocks, with up to ``evaluation.general_tokens`` tokens in total; None if no such text is available.
    """
    general_corpus = resources.get_general_corpus(config, corpus)
    if general_corpus is None:
        return None
    length = config.training.max_seq_length
    tokens = tokenize_corpus(general_corpus, tokenizer, cache_dir=resources.runtime.cache_dir / "tokens")
    blocks = pack_blocks(tokens, np.arange(len(general_corpus)), length)
    max_blocks = max(1, config.evaluation.general_tokens // length)
    return blocks.take(slice(max_blocks))


@dataclass(frozen=True, eq=False)
class RunContext:
    """Everything that the rounds of one run need: what trains, what is measured, and what is stored with the results."""

    simulator: ClientSimulator
    model: StackedModel
    clustering: ClusteringRuntime
    initial_state: FederatedState  # before the first round
    cohort_size: int

    evaluation: Evaluation

    partition_table: dict[str, Any]  # names of the domains, and training tokens of each client in each domain
    warnings: list[str]
    resume_options: dict[str, Any]  # choices that must not change when an interrupted run continues
    arithmetic: ArithmeticChoice | None = None  # what ``--dtype fastest`` stands for; None without this option


def model_key_of(config: ExperimentConfig) -> tuple[str, Trainable, int | None]:
    """Return the arguments by which `ResourceCache` identifies the model of an experiment."""
    return config.model, config.trainable, config.random_weights_seed


def partition_documents(config: ExperimentConfig, corpus: Corpus) -> Partition:
    """Assign the training documents to the clients. The rows of the partition are indices of the whole corpus."""
    train = np.flatnonzero(corpus.split == TRAIN)
    partition = partition_corpus(config.partition, corpus.take(train), partial(numpy_stream, config.seed, "partition"))
    return replace(partition, rows=tuple(train[rows] for rows in partition.rows))


def build_run(
    config: ExperimentConfig, resources: ResourceCache, resume_options: dict[str, Any] | None = None, has_client_state: bool = True
) -> RunContext:
    """Load the resources of a run, assign the documents to clients, and create the simulator, the initial state and the probes.

    Args:
        config: The configuration of the experiment.
        resources: Loaded models and data, and the runtime options.
        resume_options: The choices of an earlier start of the run, which are used again. None: the run starts for the first time.
        has_client_state: Whether the client states are available on this machine, so that personalized models can be evaluated.

    Raises:
        UserError: The configuration cannot be run.
    """
    resources.runtime.configure_torch()
    arithmetic = resolve_arithmetic(config, resources, resume_options) if resources.runtime.dtype == "fastest" else None
    run_resources = resources if arithmetic is None else resources.with_dtype(arithmetic.dtype)
    text = load_text(config, run_resources)
    model = run_resources.get_stacked_model(*model_key_of(config))
    if isinstance(config.trainable, Lora):
        check_peft_compatible(model, config.trainable)
    data = assign_documents(config, run_resources, text)
    params = model.init_params(config.seed).to(run_resources.runtime.resolve_device())
    check_combination(config, list(params), len(data.client_rows))
    config.clustering.check_num_clients(config.partition.num_clients)

    simulator, pass_size = build_simulator(config, run_resources, data, model, params, resume_options)
    trial = {} if arithmetic is None or arithmetic.speedup is None else {"bf16_speedup": arithmetic.speedup}
    earlier_options = {name: value for name, value in (resume_options or {}).items() if name not in NUMERIC_DEFAULTS}
    options = {"clients_per_pass": pass_size, **trial, **earlier_options, **run_resources.numeric_options}
    evaluation, notes = build_evaluation(config, run_resources, data, model, params, options.get("expensive_interval"), has_client_state)
    if any(probe.schedule == "expensive" for probe in evaluation.probe_suite.probes if isinstance(probe, ScheduledProbe)):
        options["expensive_interval"] = evaluation.probe_suite.expensive_interval
    held_out = evaluation.losses.held_out
    info = client_info(config, run_resources, data.corpus, data.rewritten.partition, simulator, held_out.client_domain_tokens)
    clustering = ClusteringRuntime(config.clustering, info, config.algorithm)
    return RunContext(
        simulator,
        model,
        clustering,
        clustering.init_state(params),
        data.cohort_size,
        evaluation,
        {"domains": list(held_out.domains), "tokens": held_out.client_domain_tokens.astype(int).tolist()},
        config_warnings(config) + model.warnings + notes + text.notes,
        options,
        arithmetic,
    )


def load_text(config: ExperimentConfig, resources: ResourceCache) -> LoadedText:
    """Load the documents of a run and tokenize them.

    Raises:
        UserError: The dataset cannot be read, or its documents or the blocks do not fit the model.
    """
    model_key = model_key_of(config)
    corpus = resources.get_corpus(replace(config.dataset, fingerprint=""), config.model)
    language_model = resources.get_language_model(*model_key)
    check_context_length(config, language_model.context_length)
    tokens = resources.get_tokens(corpus, *model_key)
    sized_corpus = corpus.with_sizes(tokens.trained_sizes(config.training.max_seq_length))
    notes = check_block_length(config, sized_corpus, tokens)
    notes += template_notes(sized_corpus.examples, language_model.tokenizer, sized_corpus.chat_template)
    return LoadedText(sized_corpus, tokens, notes + list(corpus.notes))


def assign_documents(config: ExperimentConfig, resources: ResourceCache, text: LoadedText) -> ClientData:
    """Assign the documents to clients, rewrite them as the partition says, and pack the training blocks of each client.

    Raises:
        UserError: The partition does not fit the corpus.
    """
    training, partition = config.training, partition_documents(config, text.corpus)
    client_rows, cohort_size, local_steps = config.algorithm.configure_clients(
        list(partition.rows), training.cohort_size(config.partition.num_clients), training.local_steps
    )
    client_corpus = apply_rewrites(text.corpus, partition)
    client_tokens = resources.get_rewritten_tokens(client_corpus, *model_key_of(config)) if partition.rewrites else text.tokens
    rewritten = RewrittenCorpus(client_corpus.with_sizes(client_tokens.trained_sizes(training.max_seq_length)), partition)
    blocks = pack_client_blocks(config, client_tokens, client_rows)
    return ClientData(text.corpus, text.tokens, rewritten, client_rows, blocks, cohort_size, local_steps)


def build_simulator(
    config: ExperimentConfig,
    resources: ResourceCache,
    data: ClientData,
    model: StackedModel,
    params: Tree,
    resume_options: dict[str, Any] | None,
) -> tuple[ClientSimulator, int]:
    """Create the simulated clients.

    Args:
        config: The configuration of the experiment.
        resources: Loaded models and data, and the runtime options.
        data: The text of the run.
        model: The model for many clients.
        params: The initial parameters w_0, ``[1, ...]``.
        resume_options: The choices of an earlier start of the run. None: the run starts for the first time.

    Returns:
        The simulator and its number of clients per forward pass.

    Raises:
        UserError: The device computes a training step wrongly.
    """
    training, runtime, num_clients = config.training, resources.runtime, len(data.client_rows)
    batches = make_batches(config, data.blocks, data.local_steps, num_clients == len(data.rewritten.partition.rows), runtime)
    pass_size = (resume_options or {}).get("clients_per_pass") or runtime.clients_per_pass
    if not pass_size:
        max_clients = num_clients if config.clustering.has_full_participation_rounds else data.cohort_size
        num_passes = 2 if config.algorithm.local_regularizer() else 1  # forward passes whose activations are stored for the backward pass
        pass_size = choose_clients_per_pass(
            model.network, max_clients, training.batch_size, training.max_seq_length, runtime.resolve_device(), num_passes
        )
        if runtime.clients_per_pass == 0:
            first_batch = next(iter(batches(0, torch.arange(num_clients))), {})
            # A model that batches the passes of several runs would wait for the other runs, so the inner model is measured.
            pass_size = choose_faster(partial(timing_step, getattr(model, "inner", model), params, first_batch), pass_size)
    if runtime.should_check_device():
        check_device(resources, model_key_of(config), params, next(iter(batches(0, torch.zeros(1, dtype=torch.long)))))
    return create_simulator(config, model, batches, num_clients, pass_size), pass_size


def create_simulator(
    config: ExperimentConfig, model: StackedModel, batches: TextBatches, num_clients: int, pass_size: int
) -> ClientSimulator:
    """Create the simulator of the clients that train a model on some batches, ``pass_size`` of them in one forward pass."""
    training = config.training
    return ClientSimulator(
        num_clients,
        model,
        batches,
        training.client_optimizer,
        training.max_grad_norm,
        training.client_weighting,
        training.lr_factor,
        pass_size,
        partial(mean_hidden_states, model.hidden_states),
    )


def resolve_arithmetic(config: ExperimentConfig, resources: ResourceCache, resume_options: dict[str, Any] | None) -> ArithmeticChoice:
    """Return the arithmetic that ``--dtype fastest`` stands for.

    A run that continues keeps its arithmetic. A new run has that of the other runs of the same command or study; the first of them makes a
    trial.

    Args:
        config: The configuration of the experiment.
        resources: Loaded models and data, with the data type ``fastest``.
        resume_options: The choices of an earlier start of the run. None: the run starts for the first time.

    Raises:
        UserError: The blocks are to be compiled, which would take longer than a trial can save.
    """
    if resume_options is not None:
        stored = ArithmeticChoice(resume_options.get("dtype", "float32"), resume_options.get("bf16_speedup"))
        resources.share_arithmetic(lambda: replace(stored, speedup=None))
        return stored
    if resources.runtime.trial is not None:
        shared = ArithmeticChoice(*resources.runtime.trial)
        return resources.share_arithmetic(lambda: shared)
    if resources.runtime.compiled:
        raise UserError("--dtype fastest cannot be combined with --compile; use --dtype float32 or --dtype bfloat16")

    def choose() -> ArithmeticChoice:
        choice = try_arithmetics(config, resources)
        resources.runtime.on_message(choice.describe())
        return choice

    return resources.share_arithmetic(choose)


def try_arithmetics(config: ExperimentConfig, resources: ResourceCache) -> ArithmeticChoice:
    """Time training steps of an experiment in float32 and bfloat16 and return the choice; only the chosen networks stay loaded."""
    training, model_key, device = config.training, model_key_of(config), resources.runtime.resolve_device()
    models = {dtype: resources.with_dtype(dtype).get_stacked_model(*model_key) for dtype in ARITHMETICS}
    # A model that batches the passes of several runs would wait for the other runs, so the inner models are measured.
    models = {dtype: getattr(model, "inner", model) for dtype, model in models.items()}
    network, params = models["float32"].network, models["float32"].init_params(config.seed).to(device)
    length = min(training.max_seq_length, resources.with_dtype("float32").get_language_model(*model_key).context_length)
    max_clients = training.cohort_size(config.partition.num_clients)
    num_clients = resources.runtime.clients_per_pass or choose_clients_per_pass(network, max_clients, training.batch_size, length, device)
    max_sequences = min(num_clients, max_clients) * training.batch_size
    plain_ids, generator = sample_tokens(network).flatten(), torch_stream(config.seed, "arithmetic trial")
    # The same sequences in every step, so that the outputs of frozen blocks come from their cache, as in later rounds of a run.
    sequences = plain_ids[torch.randint(len(plain_ids), (max_sequences, length), generator=generator).to(plain_ids.device)]

    def step(dtype: Arithmetic, num_sequences: int) -> None:
        batch_size = min(training.batch_size, num_sequences)
        rows = torch.zeros(num_sequences // batch_size, dtype=torch.long)
        tokens = sequences[: len(rows) * batch_size].view(len(rows), batch_size, length)
        batch = {"tokens": tokens, "loss_mask": torch.ones_like(tokens, dtype=torch.bool)}
        loss, _ = value_and_gradient(models[dtype], params.take(rows), batch, torch.arange(len(rows)))
        loss.sum().item()  # waits until the device has finished

    choice = choose_arithmetic(step, max_sequences)
    for dtype in ARITHMETICS:
        if dtype != choice.dtype:
            resources.with_dtype(dtype).discard_models()
    return choice


def config_warnings(config: ExperimentConfig) -> list[str]:
    """Return the warnings about the results that follow from the configuration alone, before anything is loaded."""
    training, algorithm, num_clients = config.training, config.algorithm, config.partition.num_clients
    _, cohort_size, local_steps = algorithm.configure_clients(
        [np.zeros(1, dtype=np.int64)] * num_clients, training.cohort_size(num_clients), training.local_steps
    )
    warnings = algorithm.warnings(training.client_optimizer, training.client_weighting) + algorithm.aggregator.cohort_warnings(cohort_size)
    if cohort_size == 1 and local_steps and not algorithm.one_client_per_model:
        warnings.append(
            "one client per round: nothing is averaged, so update.divergence and gradient.norm.variance are not defined; "
            "increase training.participation_rate for a cohort of two or more clients"
        )
    if config.model_init == "random" and isinstance(config.trainable, Lora):
        warnings.append(
            "adapters are trained on random weights, which stay random and are not stored with the adapters; set trainable.type=All to "
            "train all weights from a random start"
        )
    if config.evaluation.general_dataset and "general" not in config.evaluation.probes:
        warnings.append("evaluation.general_dataset has no effect without the probe group general: add it to evaluation.probes")
    return warnings + config.clustering.warnings() + partition_notes(config.partition)


def client_info(
    config: ExperimentConfig,
    resources: ResourceCache,
    corpus: Corpus,
    partition: Partition,
    simulator: ClientSimulator,
    domain_tokens: np.ndarray,
) -> ClientInfo:
    """Create the information about clients that clustering strategies can use: their training documents, embeddings and losses.

    Args:
        config: The configuration of the experiment.
        resources: Loaded models and data.
        corpus: The original corpus.
        partition: The documents of each client and their rewrites.
        simulator: The simulated clients.
        domain_tokens: Training tokens of each client in each domain, ``[N, domains]``.
    """

    def load_texts(client: int) -> list[str]:
        rewrite = partition.rewrites[client] if partition.rewrites else None
        return list(rewrite_corpus(corpus.take(partition.rows[client]), rewrite).text)

    def embed(texts: Sequence[str], encoder: str) -> np.ndarray:
        if encoder != "states":
            return embed_texts(texts, encoder, cache_dir=resources.runtime.cache_dir / "vectors")
        language_model = resources.get_language_model(*model_key_of(config))
        model_name = config.model if config.random_weights_seed is None else f"{config.model} random {config.random_weights_seed}"
        name = f"states {model_name} {fingerprint_model(config.model)} {resources.numeric_options.get('dtype', 'float32')}"
        states = HiddenStateEncoder(name, language_model.network, language_model.tokenizer, language_model.context_length)
        return embed_texts(texts, states, cache_dir=resources.runtime.cache_dir / "vectors")

    domain = domain_tokens.argmax(axis=1) if corpus.domains else np.full(len(domain_tokens), -1)
    return ClientInfo(
        simulator.size,
        config.seed,
        load_texts,
        embed,
        partial(client_losses_per_model, simulator),
        np.where((domain < len(corpus.domains)) & (domain_tokens.sum(axis=1) > 0), domain, -1),
    )


def timing_step(model: StackedModel, params: Tree, batch: dict[str, torch.Tensor], num_clients: int) -> None:
    """Compute the loss and the gradient of ``num_clients`` clients in one pass, each with the batch of the first client."""
    if batch:
        rows = torch.zeros(num_clients, dtype=torch.long)
        value_and_gradient(
            model,
            params.take(rows),
            {name: leaf[rows.to(leaf.device)] for name, leaf in batch.items() if name != "rows"},
            torch.arange(num_clients),
        )


def check_device(
    resources: ResourceCache, model_key: tuple[str, Trainable, int | None], params: Tree, batch: dict[str, torch.Tensor]
) -> None:
    """Compare a training step on the device with the same step on the CPU in float32.

    Raises:
        UserError: The results differ by more than rounding.
    """
    reference = ResourceCache(replace(resources.runtime, device="cpu", dtype="float32", compiled=False)).get_stacked_model(*model_key)
    batch = {name: leaf for name, leaf in batch.items() if name != "rows"}
    compare_step(resources.get_stacked_model(*model_key), reference, params, batch).check(
        resources.numeric_options.get("dtype", "float32"), str(resources.runtime.resolve_device())
    )


def make_batches(
    config: ExperimentConfig, blocks: tuple[Blocks, ...], local_steps: int, allow_stragglers: bool, runtime: Runtime
) -> TextBatches:
    """Create the training batches of the clients.

    Args:
        config: The configuration of the experiment.
        blocks: The training blocks of each client.
        local_steps: Local steps of each client per round. With ``training.local_epochs`` their ratio to ``training.local_steps`` scales the
            epochs, so that a baseline with one client for all documents trains as many tokens as the cohort that it replaces.
        allow_stragglers: Whether clients can be stragglers; false for baselines that replace the clients of the partition.
        runtime: The runtime options.
    """
    training = config.training
    epochs = training.local_epochs
    if epochs and (local_steps, len(blocks)) != (training.local_steps, config.partition.num_clients):
        epochs *= local_steps / training.local_steps * len(blocks) / config.partition.num_clients
    options = (blocks, training.batch_size, config.seed, local_steps, epochs, runtime.resolve_device())
    return (
        StragglingBatches(*options, training.straggler_fraction, training.straggler_policy)
        if training.straggler_fraction and allow_stragglers
        else TextBatches(*options)
    )


def measure_gradient_dissimilarity(
    config: ExperimentConfig, resources: ResourceCache, max_blocks: int = 32, partition_seed: int | None = None
) -> MetricValues:
    """Measure the dissimilarity of the gradients of the clients at the initial weights.

    The gradient of each client is computed on two disjoint halves of its blocks. Clients with fewer than two blocks are not included.
    All clients start at the same weights, which depend on the seed of the experiment, regardless of the algorithm.

    Args:
        config: The configuration of the experiment.
        resources: Loaded models and data.
        max_blocks: Largest number of blocks per client.
        partition_seed: Another seed for the partition. None: the seed of the experiment.

    Raises:
        UserError: No client has two blocks.
    """
    plain_config = replace(
        config, algorithm=FedAvg(), clustering=NoClustering(), seed=config.seed if partition_seed is None else partition_seed
    )
    context = build_run(plain_config, resources)
    model = context.model
    params = model.init_params(config.seed).to(resources.runtime.resolve_device())
    batches: Any = context.simulator.batches
    block_order = [
        numpy_stream(plain_config.seed, "gradients", client).permutation(len(blocks))[: max_blocks // 2 * 2]
        for client, blocks in enumerate(batches.blocks)
    ]
    clients = [client for client, order in enumerate(block_order) if len(order) > 1]
    if not clients:
        raise UserError(
            "no client has two blocks of text, so gradients cannot be compared; decrease training.max_seq_length or the number of clients"
        )
    halves = []
    for half in range(2):
        gradients = []
        for client in clients:
            blocks = block_order[client][half : len(block_order[client]) // 2 * 2 : 2]
            client_batches = [
                batches.make_batch([(client, blocks[start : start + batches.batch_size])], torch.zeros(1, dtype=torch.long))
                for start in range(0, len(blocks), batches.batch_size)
            ]
            gradients.append(mean_gradient(model, params, client_batches))
        halves.append(Tree({name: torch.cat([gradient[name] for gradient in gradients]) for name in gradients[0]}))
    weight = torch.tensor(np.asarray(context.partition_table["tokens"], dtype=float).sum(axis=1)[clients])
    return gradient_dissimilarity(halves[0], halves[1], weight)


def pack_client_blocks(config: ExperimentConfig, tokens: TokenizedCorpus, client_rows: list[np.ndarray]) -> tuple[Blocks, ...]:
    """Pack the documents of each client into training blocks, in a random order that depends on the seed and the client."""
    return tuple(
        pack_blocks(tokens, numpy_stream(config.seed, "pack", client).permutation(rows), config.training.max_seq_length)
        for client, rows in enumerate(client_rows)
    )
