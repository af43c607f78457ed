"""Numbers of one run of a clustering comparison: losses on own and other text, compute, traffic, clusters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core.records import Trajectory
from ..storage import Run

NUM_NEXT_ROUNDS = 3  # number of last rounds over which the loss on the next batches is averaged
NUM_LAST_ROUNDS = 5  # number of last rounds whose mean training loss selects among IFCA's restarts
COMPARISON_METRICS = {  # column: (title, description with unit)
    "own": (
        "own text",
        "mean over clients of the loss on held-out text with the client's own mixture of domains and rewrites, nats per token",
    ),
    "worst": ("worst client", "largest of these losses over clients, nats per token"),
    "cross": ("other text", "mean over clients of the loss on held-out text of the domains that the client lacks, nats per token"),
    "next": (
        "next batch",
        "mean over clients of the loss of the received model on the client's next training batches, averaged over the last "
        "three rounds, nats per token",
    ),
    "general": ("general text", "change during training of the loss on text that no client holds, nats per token"),
    "syntax": ("syntax", "change during training of the share of minimal pairs whose correct sentence has the higher probability"),
    "compute": ("compute", "number of trained tokens, plus a third for each token that is only evaluated, relative to vanilla"),
    "traffic": ("traffic", "data sent to and from clients in the whole run, MB"),
    "models": ("models", "number of models that clients use at the end"),
    "ari": ("agreement", "adjusted Rand index of the clusters and the clients' main domains"),
}


def measure_run(run: Run, trajectory: Trajectory, vanilla: Run) -> dict[str, float]:
    """Measure all columns of ``COMPARISON_METRICS`` for one run.

    ``compute`` is the number of tokens and not yet relative to vanilla. The additional key ``train`` is the training loss that selects
    among IFCA's restarts.

    Args:
        run: The run.
        trajectory: Records of the run.
        vanilla: The run of the condition ``vanilla`` with the same seed.
    """
    config = run.config
    own_losses, cross_losses = client_losses(trajectory, vanilla)
    train_losses = (
        trajectory.client_table("train.loss")[1:][-NUM_LAST_ROUNDS:]
        if trajectory.has_client_table("train.loss")
        else np.full((1, 1), math.nan)
    )
    return {
        "own": mean_or_nan(own_losses),
        "worst": float(own_losses.max()) if len(own_losses) else math.nan,
        "cross": mean_or_nan(cross_losses),
        "next": next_batch_loss(trajectory),
        "general": net_change(trajectory, "general.loss"),
        "syntax": net_change(trajectory, "syntax.accuracy"),
        "compute": training_compute(run, trajectory, config),
        "traffic": communication_bytes(run, trajectory, config) / 1e6,
        "models": count_models(run, trajectory, config),
        "ari": last_value(trajectory, "cluster.ari"),
        "train": float(np.nanmean(train_losses)) if np.isfinite(train_losses).any() else math.nan,
    }


def client_losses(trajectory: Trajectory, vanilla: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return each client's loss on text like its own and on text of the domains that it lacks, [N] each, in nats per token.

    A centralized run has no clients. Its single model is evaluated on the domain mixtures of the clients of vanilla.

    Args:
        trajectory: Records of the run.
        vanilla: The run of the condition ``vanilla`` with the same seed.
    """
    domain_tokens = client_domain_tokens(vanilla)
    if not trajectory.has_client_table("final.loss.own"):
        return np.zeros(0), np.zeros(0)
    if len(trajectory.clients) == len(domain_tokens):
        return trajectory.client_table("final.loss.own")[-1], trajectory.client_table("final.loss.cross")[-1]
    domains = vanilla.config["partition_table"]["domains"]
    loss = np.array([last_value(trajectory, "final.loss", domain) for domain in domains])
    is_available = np.isfinite(loss) & (domain_tokens.sum(axis=0) > 0)
    own_share = domain_tokens * is_available / (domain_tokens * is_available).sum(axis=1, keepdims=True)
    missing_share = np.clip(1 - own_share, 0, None) * is_available
    loss = np.where(is_available, loss, 0.0)
    with np.errstate(invalid="ignore"):
        return own_share @ loss, missing_share @ loss / missing_share.sum(axis=1)


def next_batch_loss(trajectory: Trajectory) -> float:
    """Return the mean loss of the received model on the batches that clients train on next.

    These batches are the clients' own text, with all rewrites and token skew. All conditions of a seed have the same batches.
    """
    if not trajectory.has_client_table("train.loss.start"):
        return math.nan
    losses = trajectory.client_table("train.loss.start")[-NUM_NEXT_ROUNDS:]
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else math.nan


def client_domain_tokens(run: Run) -> np.ndarray:
    """Return the number of training tokens of each client in each domain, [N, J]."""
    return np.asarray(run.config["partition_table"]["tokens"], dtype=np.float64)


def mean_or_nan(values: np.ndarray) -> float:
    """Return the mean, or NaN if there are no values."""
    return float(values.mean()) if len(values) else math.nan


def last_value(trajectory: Trajectory, metric: str, domain: str = "") -> float:
    """Return the last recorded value of a metric, or NaN if there is none."""
    if metric not in trajectory.metrics or not trajectory.has_curve(metric, domain):
        return math.nan
    return float(trajectory.curve(metric, domain)[trajectory.observed_mask(metric, domain)][-1])


def net_change(trajectory: Trajectory, metric: str) -> float:
    """Return the last recorded value of a metric minus the first one, or NaN if there are fewer than two."""
    if metric not in trajectory.metrics or not trajectory.has_curve(metric):
        return math.nan
    values = trajectory.curve(metric)[trajectory.observed_mask(metric)]
    return float(values[-1] - values[0]) if len(values) > 1 else math.nan


def training_compute(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Return the number of trained tokens, plus a third for each token that is only evaluated.

    Only IFCA has such tokens: in every round all clients evaluate all models on their next batches.

    Args:
        run: The run.
        trajectory: Records of the run.
        config: Configuration of the run.
    """
    trained_tokens = float(run.read_json("finished")["train_tokens"])
    clustering = config["clustering"]
    if clustering["type"] != "IFCA":
        return trained_tokens
    training = config["training"]
    num_evaluations = training["num_rounds"] + (clustering["symmetry_breaking"] == "noise")
    tokens_per_model = clustering["num_batches"] * training["batch_size"] * (training["max_seq_length"] - 1)
    return trained_tokens + num_evaluations * config["partition"]["num_clients"] * clustering["num_clusters"] * tokens_per_model / 3


def communication_bytes(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Return the number of bytes between server and clients in the whole run.

    It includes the models and updates of every round, the embeddings, and all of IFCA's models for all clients.

    Args:
        run: The run.
        trajectory: Records of the run.
        config: Configuration of the run.
    """
    algorithm_type = config["algorithm"]["type"]
    if algorithm_type == "LocalOnly":
        return 0.0
    if algorithm_type == "Centralized" or "cost.up" not in trajectory.metrics:
        return math.nan
    num_trained = np.isfinite(trajectory.client_table("weight")).sum(axis=1)  # [rounds] number of clients that trained
    down, up = (np.nan_to_num(trajectory.curve(metric)) for metric in ("cost.down", "cost.up"))
    total = float((num_trained * (down + up)).sum())
    clustering = config["clustering"]
    if clustering["type"] == "IFCA":
        model_bytes, num_clients = float(down.max()), config["partition"]["num_clients"]
        total += float(((num_trained > 0) * (num_clients * clustering["num_clusters"] - num_trained) * model_bytes).sum())
    return total + config["partition"]["num_clients"] * embedding_bytes(run)


def embedding_bytes(run: Run) -> float:
    """Return the number of bytes that each client sends once for the clustering."""
    return float(first_assignment(run).get("bytes") or 0)


def first_assignment(run: Run) -> dict[str, Any]:
    """Return the first decision of the clustering as JSON; empty for a run without clustering."""
    entries = run.cluster_assignments()
    return entries[0] if entries else {}


def count_models(run: Run, trajectory: Trajectory, config: dict[str, Any]) -> float:
    """Return the number of models that clients use at the end of the run.

    Args:
        run: The run.
        trajectory: Records of the run.
        config: Configuration of the run.
    """
    if config["algorithm"]["type"] == "LocalOnly":
        return float(config["partition"]["num_clients"])
    if trajectory.has_client_table("cluster.id"):
        return float(len(np.unique(trajectory.client_table("cluster.id")[-1])))
    return 1.0
