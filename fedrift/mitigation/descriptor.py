"""What a client tells of its text so that others like it can be found: the mean embedding of some of its training documents.

mu_k = mean over n <= 200 training documents of phi(document), phi a frozen encoder with |phi| = 1. Sent once, it costs four
bytes a dimension. With a budget epsilon, Gaussian noise of sigma = 2 sqrt(2 ln(1.25 / delta)) / (n epsilon) is added:
replacing one document moves a mean of n unit vectors by 2 / n at most (Dwork & Roth, "The Algorithmic Foundations of
Differential Privacy", 2014, theorem A.1, proved for epsilon < 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

import numpy as np

from ..errors import UserError
from ..seeds import numpy_stream
from .decision import Ground


@dataclass(frozen=True, eq=False)
class Descriptors:
    """N clients' documents as vectors, and what is added to their means. The server sees ``means`` and nothing else."""

    vectors: tuple[np.ndarray, ...]  # N of [D, E], of length one
    sigma: np.ndarray  # [N] noise on each client's mean; 0: none
    noise: np.ndarray  # [N, E]

    @property
    def means(self) -> np.ndarray:
        """[N, E]; zeros, but for the noise, of a client without documents."""
        return means(self.vectors) + self.noise

    @property
    def bytes(self) -> int:
        """What each client sends, once: a float32 a dimension."""
        return 4 * self.noise.shape[1]


def means(vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of each client's vectors, [N, E]."""
    return np.stack([own.mean(axis=0) if len(own) else np.zeros(own.shape[1]) for own in vectors]).astype(np.float64)


def describe(ground: Ground, encoder: str, documents: int, epsilon: float | None = None, delta: float = 1e-5) -> Descriptors:
    """The descriptors of all clients, from at most ``documents`` of each."""
    texts = []
    for client in range(ground.size):
        own = list(ground.texts(client))
        picks = numpy_stream(ground.seed, "descriptor", client).permutation(len(own))[:documents]
        texts.append([own[pick] for pick in np.sort(picks)])
    if not any(texts):
        raise UserError("no client has a document: there is nothing to describe them by")
    all_of_them = np.asarray(ground.embed([text for own in texts for text in own], encoder), dtype=np.float64)
    vectors = tuple(np.split(all_of_them, np.cumsum([len(own) for own in texts])[:-1]))
    return noisy(vectors, ground.seed, epsilon, delta)


def noisy(vectors: tuple[np.ndarray, ...], seed: int, epsilon: float | None, delta: float = 1e-5) -> Descriptors:
    """The descriptors with the noise of a privacy budget, if there is one."""
    width = vectors[0].shape[1]
    sigma = np.array([sigma_of(len(own), epsilon, delta) if epsilon else 0.0 for own in vectors])
    noise = np.stack([spread * numpy_stream(seed, "descriptor noise", client).standard_normal(width)
                      for client, spread in enumerate(sigma)])
    return Descriptors(vectors, sigma, noise)


def identified(vectors: Sequence[np.ndarray], seed: int) -> float:
    """How often a document is nearest to its own client's mean, told from halves of the documents: each half's documents from
    the means of the other, every client counting the same. 1/N is chance; clients that are alike share what there is.

    NaN where no client has two documents.
    """
    halves = []
    for client, own in enumerate(vectors):
        mixed = numpy_stream(seed, "halves of documents", client).permutation(len(own))
        halves.append((own[mixed[:len(own) // 2]], own[mixed[len(own) // 2:]]))
    there = [client for client, (one, other) in enumerate(halves) if len(one) and len(other)]
    right = []
    for side in (0, 1) if there else ():
        centres = means([halves[client][1 - side] for client in there])
        for place, client in enumerate(there):
            apart = ((halves[client][side][:, None] - centres[None]) ** 2).sum(axis=-1)
            right.append(float((apart.argmin(axis=1) == place).mean()))
    return float(np.mean(right)) if right else float("nan")


def sigma_of(documents: int, epsilon: float, delta: float) -> float:
    """Standard deviation of the noise on each number of a mean of unit vectors."""
    return 2 * sqrt(2 * log(1.25 / delta)) / (max(documents, 1) * epsilon)


def statement(found: Descriptors, epsilon: float | None, delta: float) -> str:
    """What a descriptor gives away, in words."""
    count = [len(own) for own in found.vectors]
    if epsilon is None:
        return (f"Each client sends the mean embedding of {min(count)} to {max(count)} training documents, {found.bytes} bytes, "
                "once, without noise: it tells what the client writes about, and has no privacy guarantee.")
    proved = "" if epsilon < 1 else " The proof of this noise holds for epsilon < 1 only: read the number as the noise's scale."
    return (f"Each client's descriptor is ({epsilon:g}, {delta:g})-differentially private with respect to replacing one document "
            f"(Gaussian noise of sigma {found.sigma.min():.3g} to {found.sigma.max():.3g} on each of {found.noise.shape[1]} "
            "numbers), sent once. The choice of the number of groups and its stability are told from the documents, which "
            f"only a simulation sees, with the same noise on every resample; they are outside the guarantee.{proved}")


__all__ = ["Descriptors", "describe", "identified", "means", "noisy", "sigma_of", "statement"]
