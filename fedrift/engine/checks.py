"""Checks of an experiment that need no torch: `build_run` makes them before a run, and ``fedrift validate`` without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..clustering import NoClustering
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..data import TRAIN, Corpus, TokenizedCorpus
from ..data.tokenization import count_trained

# Examples of instruction and chat data have no token that counts in the loss if their answers begin after the end of a block.
LONGER_BLOCKS = ", or training.max_seq_length if it cuts off the answers of conversations"


def no_held_out_error(corpus_name: str, split: str) -> UserError:
    """Return the error for a dataset without held-out text."""
    return UserError(
        f"dataset {corpus_name!r} has no {split} documents for the evaluation; increase dataset.{split}_fraction{LONGER_BLOCKS}"
    )


def check_context_length(config: ExperimentConfig, context_length: int) -> None:
    """Check that the model can read a block.

    Raises:
        UserError: A block has more tokens than the longest input of the model.
    """
    if config.training.max_seq_length > context_length:
        raise UserError(
            f"training.max_seq_length is {config.training.max_seq_length} tokens, but {config.model} takes {context_length} at most"
        )


def check_combination(config: ExperimentConfig, param_names: Sequence[str], num_trained_clients: int) -> None:
    """Check that the algorithm, the aggregator, the optimizer, the clustering and the trained parameters can be combined.

    Args:
        config: The configuration of the experiment.
        param_names: The names of the trained parameters; only their last parts matter.
        num_trained_clients: The number of clients that the algorithm trains, which is 1 for ``Centralized``.

    Raises:
        UserError: They cannot be combined; one line per reason.
    """
    algorithm, strategy = config.algorithm, config.clustering
    reasons = algorithm.incompatibilities(config.training.client_optimizer, config.training.client_weighting, param_names)
    reasons += strategy.incompatibilities(algorithm, param_names)
    period, num_rounds = getattr(getattr(algorithm, "server_optimizer", None), "period", 0), config.training.num_rounds
    if period > num_rounds:
        reasons.append(
            f"the server replaces its model by the mean of its last models every {period} rounds, and the run has only {num_rounds}; set "
            f"algorithm.server_optimizer.period={num_rounds} to end with this mean"
        )
    if strategy != NoClustering() and num_trained_clients != config.partition.num_clients:
        reasons.append(f"{type(algorithm).__name__} has no clients to group; remove the clustering")
    elif algorithm.one_client_per_model and type(strategy).init_assignment is not NoClustering.init_assignment:
        reasons.append(
            f"{type(algorithm).__name__} gives every client its own model, so {type(strategy).__name__} cannot cluster the clients. "
            "Remove the clustering from the configuration."
        )
    if reasons:
        raise UserError("\n".join(reasons))


def check_measured_domains(
    is_trained: np.ndarray, is_measured: np.ndarray, domains: Sequence[str], split: str, corpus_name: str
) -> list[str]:
    """Check that the loss of every client can be measured.

    Args:
        is_trained: Whether a client holds training text of a domain, [N, J].
        is_measured: Whether a domain has held-out text, [J].
        domains: The names of the domains, J.
        split: The name of the held-out split, for messages.
        corpus_name: The name of the dataset, for messages.

    Returns:
        A warning if some domains have training text but no held-out text.

    Raises:
        UserError: A client has no token to train on, or none of its domains has held-out text.
    """
    untrained = np.flatnonzero(~is_trained.any(1))
    if len(untrained):
        raise UserError(
            f"{format_names(untrained.tolist(), 'client')} of dataset {corpus_name!r} would have no token to train on: choose a milder "
            f"partition.severity or fewer clients{LONGER_BLOCKS.replace(' or', ' or increase')}"
        )
    missing = [name for name, is_missing in zip(domains, is_trained.any(0) & ~is_measured, strict=True) if is_missing]
    unmeasured_clients = np.flatnonzero(is_trained.any(1) & ~(is_trained & is_measured).any(1))
    if len(unmeasured_clients):
        raise UserError(
            f"no loss of {format_names(unmeasured_clients.tolist(), 'client')} can be measured: dataset {corpus_name!r} has no {split} "
            f"documents of {format_names(missing, 'domain')} with tokens that count in the loss. Increase dataset.{split}_fraction"
            f"{LONGER_BLOCKS}, find fewer topics with dataset.num_clusters, select larger domains with dataset.domains, or ignore the "
            "labels with dataset.label_column=''"
        )
    return (
        [
            f"{format_names(missing, 'domain')} of dataset {corpus_name!r}: no {split} documents with tokens that count in the loss, so "
            "clients train on text for which no loss is measured, and the losses over all domains do not include it"
        ]
        if missing
        else []
    )


def format_names(names: Sequence[object], noun: str) -> str:
    """List names after a noun: ``client 3``, ``domains a, b``, or the first five names and the number of the others."""
    listed = ", ".join(str(name)[:40] for name in names[:5])
    return f"{noun}{'s' * (len(names) > 1)} {listed}" + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def check_block_length(config: ExperimentConfig, corpus: Corpus, tokens: TokenizedCorpus) -> list[str]:
    """Check that blocks are long enough for instruction and chat data, whose examples are cut to the length of a block.

    Returns:
        Notes on the number of examples that are cut, or that have no answer within a block.

    Raises:
        UserError: No training example has an answer within a block.
    """
    if not tokens.keeps_whole:
        return []
    length, rows = config.training.max_seq_length, np.flatnonzero(corpus.split == TRAIN)
    num_trained = int((count_trained(tokens, rows, length) > 0).sum())
    median = f"the median of the training examples is {int(np.median(tokens.lengths[rows])):,} tokens"
    if not num_trained:
        raise UserError(
            f"training.max_seq_length is {length}, but no example of dataset {corpus.name!r} has an answer within {length} tokens "
            f"({median}): increase training.max_seq_length"
        )
    notes = []
    if num_cut := int((tokens.lengths[rows] > length).sum()):
        notes.append(
            f"{num_cut:,} of {len(rows):,} training examples are longer than training.max_seq_length {length} and are cut to it ({median})"
        )
    if num_trained < len(rows):
        notes.append(
            f"{len(rows) - num_trained:,} of {len(rows):,} training examples have no answer within {length} tokens and are not used"
        )
    return notes
