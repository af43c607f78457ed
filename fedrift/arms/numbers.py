"""What one run of a contest came to: fixed before it is run, all at the end of training, on the larger test set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..records import Trajectory
from ..store import Run

SOON = 3  # rounds of which the next batches are averaged
LAST = 5  # rounds whose mean training loss chooses among IFCA's starts
METRICS = {  # column: what it is, in words, and its unit
    "own": ("own text", "mean over the clients of the loss on text mixed as their own, nats per token"),
    "worst": ("worst client", "the highest of those losses"),
    "cross": ("other text", "mean over the clients of the loss on the domains that they lack, nats per token"),
    "next": ("next batch", "mean over the clients of the loss on the training text that comes next, under the model that they "
                           "receive, last three rounds, nats per token"),
    "general": ("general text", "loss on text that no client has, less what it was before training, nats per token"),
    "syntax": ("syntax", "share of minimal pairs whose right sentence is preferred, less what it was before training"),
    "compute": ("compute", "tokens trained on; reading alone counts a third; as a share of vanilla's"),
    "traffic": ("traffic", "MB sent to clients and from them, in the whole run"),
    "models": ("models", "that the server keeps"),
    "ari": ("agreement", "adjusted Rand index of the groups and the clients' main domains"),
}


def numbers(run: Run, vanilla: Run) -> dict[str, float]:
    """Every column of ``METRICS`` but that compute is in tokens, and ``train``, the loss that IFCA's starts are chosen by."""
    asked, seen = run.experiment, run.trajectory()
    own, cross = by_client(seen, vanilla)
    table = seen.table("train.loss")[1:][-LAST:] if seen.has_table("train.loss") else np.full((1, 1), math.nan)
    return {"own": mean(own), "worst": float(own.max()) if len(own) else math.nan, "cross": mean(cross), "next": ahead(seen),
            "general": rise(seen, "general.loss"), "syntax": rise(seen, "syntax.accuracy"), "compute": compute(run, seen, asked),
            "traffic": traffic(run, seen, asked) / 1e6, "models": models(run, seen, asked),
            "ari": last(seen, "cluster.ari"), "train": float(np.nanmean(table)) if np.isfinite(table).any() else math.nan}


def by_client(seen: Trajectory, vanilla: Run) -> tuple[np.ndarray, np.ndarray]:
    """Loss on own and on other text, ``[N]`` each. A pooled run has no clients: its one model is asked for vanilla's."""
    mix = tokens(vanilla)
    if not seen.has_table("final.loss.own"):
        return np.zeros(0), np.zeros(0)
    if len(seen.clients) == len(mix):
        return seen.table("final.loss.own")[-1], seen.table("final.loss.cross")[-1]
    domains = vanilla.experiment["partition_table"]["domains"]
    loss = np.array([last(seen, "final.loss", domain) for domain in domains])
    there = np.isfinite(loss) & (mix.sum(axis=0) > 0)
    q = mix * there / (mix * there).sum(axis=1, keepdims=True)
    lacks = np.clip(1 - q, 0, None) * there
    loss = np.where(there, loss, 0.0)
    with np.errstate(invalid="ignore"):
        return q @ loss, lacks @ loss / lacks.sum(axis=1)


def ahead(seen: Trajectory) -> float:
    """Loss on the batches that clients are about to train on: their own text, rewritten and tilted as it is. The arms of a seed
    read the same batches."""
    if not seen.has_table("train.loss.start"):
        return math.nan
    table = seen.table("train.loss.start")[-SOON:]
    return float(np.nanmean(table)) if np.isfinite(table).any() else math.nan


def tokens(run: Run) -> np.ndarray:
    """Training tokens of each client in each domain, ``[N, J]``."""
    return np.asarray(run.experiment["partition_table"]["tokens"], dtype=np.float64)


def mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def last(seen: Trajectory, metric: str, domain: str = "") -> float:
    """The latest written number; NaN where there is none."""
    if metric not in seen.metrics or not seen.has(metric, domain):
        return math.nan
    return float(seen.curve(metric, domain)[seen.seen(metric, domain)][-1])


def rise(seen: Trajectory, metric: str) -> float:
    """The end above the beginning."""
    if metric not in seen.metrics or not seen.has(metric):
        return math.nan
    values = seen.curve(metric)[seen.seen(metric)]
    return float(values[-1] - values[0]) if len(values) > 1 else math.nan


def compute(run: Run, seen: Trajectory, asked: dict[str, Any]) -> float:
    """Tokens trained on, and a third for each that is only read: IFCA's clients read batches with all models, every round."""
    trained = float(run.read_json("finished")["train_tokens"])
    mitigation = asked["mitigation"]
    if mitigation["is"] != "ByLoss":
        return trained
    plan = asked["plan"]
    looks = plan["rounds"] + (mitigation["breaking"] == "noise")
    read = mitigation["batches"] * plan["batch"] * (plan["seq_len"] - 1)
    return trained + looks * asked["partition"]["clients"] * mitigation["clusters"] * read / 3


def traffic(run: Run, seen: Trajectory, asked: dict[str, Any]) -> float:
    """Bytes between server and clients: every round's model and change, descriptors, and all of IFCA's models to everybody."""
    kind = asked["algorithm"]["is"]
    if kind == "LocalOnly":
        return 0.0
    if kind == "Centralised" or "cost.up" not in seen.metrics:
        return math.nan
    took = np.isfinite(seen.table("weight")).sum(axis=1)  # [rounds] clients that trained
    down, up = (np.nan_to_num(seen.curve(metric)) for metric in ("cost.down", "cost.up"))
    sent = float((took * (down + up)).sum())
    said = asked["mitigation"]
    if said["is"] == "ByLoss":
        model, clients = float(down.max()), asked["partition"]["clients"]
        sent += float(((took > 0) * (clients * said["clusters"] - took) * model).sum())
    return sent + asked["partition"]["clients"] * descriptor(run)


def descriptor(run: Run) -> float:
    """Bytes that each client sends once so that it can be grouped."""
    return float(first(run).get("bytes") or 0)


def first(run: Run) -> dict[str, Any]:
    """What the mitigation decided at first; empty where there is none."""
    if not (run.folder / "mitigation.json").exists():
        return {}
    said: list[dict[str, Any]] = run.read_json("mitigation")
    return said[0] if said else {}


def models(run: Run, seen: Trajectory, asked: dict[str, Any]) -> float:
    """Models that clients use at the end."""
    if asked["algorithm"]["is"] == "LocalOnly":
        return float(asked["partition"]["clients"])
    if seen.has_table("group"):
        return float(len(np.unique(seen.table("group")[-1])))
    return 1.0


__all__ = ["METRICS", "by_client", "first", "numbers", "tokens"]
