"""How far the clients' documents lie apart in the space of a frozen encoder."""

from __future__ import annotations

import numpy as np
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist, pdist

SAMPLE = 200  # documents of a client, and of the others, that are compared
LEAST = 10  # a client of fewer is not compared


def mmd2(one: np.ndarray, two: np.ndarray, width: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy of two samples [n, E], [m, E] under a Gaussian kernel.

    Gretton, Borgwardt, Rasch, Schölkopf & Smola, "A Kernel Two-Sample Test", JMLR 13, 2012, equation 3.
    ``width`` is the median distance within the pooled sample unless given. Below zero by chance where both
    are alike.
    """
    n, m = len(one), len(two)
    if min(n, m) < 2:
        return float("nan")
    width = float(np.median(pdist(np.concatenate([one, two])))) if width is None else width
    near = [
        np.exp(-cdist(a, b, "sqeuclidean") / (2 * max(width, 1e-12) ** 2))
        for a, b in ((one, one), (two, two), (one, two))
    ]
    within = (near[0].sum() - n) / (n * (n - 1)) + (near[1].sum() - m) / (m * (m - 1))
    return float(within - 2 * near[2].mean())


def mmd_p_value(one: np.ndarray, two: np.ndarray, rng: np.random.Generator, permutations: int = 500) -> float:
    """Share of random re-splits of the pooled sample whose MMD is at least that of the two samples."""
    pooled = np.concatenate([one, two])
    width = float(np.median(pdist(pooled)))
    found = mmd2(one, two, width)
    above = 0
    for _ in range(permutations):
        mixed = pooled[rng.permutation(len(pooled))]
        above += mmd2(mixed[: len(one)], mixed[len(one) :], width) >= found
    return (above + 1) / (permutations + 1)


def frechet(one: np.ndarray, two: np.ndarray) -> float:
    """|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)): squared Wasserstein-2 of two fitted Gaussians.

    Dowson & Landau, J. Multivariate Analysis 12, 1982; as a distance of embeddings Heusel et al., NeurIPS
    2017, arXiv:1706.08500. Needs at least five documents a dimension: reduce first (``principal``).
    """
    if min(len(one), len(two)) < 2:
        return float("nan")
    spread = [np.atleast_2d(np.cov(sample, rowvar=False)) for sample in (one, two)]
    cross = np.real(sqrtm(spread[0] @ spread[1]))
    apart = ((one.mean(axis=0) - two.mean(axis=0)) ** 2).sum()
    return float(max(apart + np.trace(spread[0] + spread[1] - 2 * cross), 0.0))


def principal(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """The vectors [D, E] in their first principal axes, [D, min(dimensions, E)]."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :dimensions]


def distances(
    vectors: np.ndarray, owner: np.ndarray, ask: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Mean over the clients of MMD^2 and Frechet distance between a client's documents and the others'.

    ``vectors`` [D, E] in principal axes, ``owner`` [D], ``ask`` [N] how many documents of each client to
    compare with as many others. Both distances depend on sample sizes, so compare only numbers of one
    ``ask``. Frechet looks at no more axes than a fifth of the smallest sample of ten documents or more;
    smaller clients are left out.
    """
    asked = np.flatnonzero(ask >= LEAST)
    found = np.full((len(asked), 2), np.nan)
    axes = min(32, int(ask[asked].min(initial=5 * 32)) // 5)
    for row, client in enumerate(asked):
        own, others = (np.flatnonzero((owner == client) == side) for side in (True, False))
        one, two = (vectors[rng.permutation(rows)[: ask[client]]] for rows in (own, others))
        found[row] = mmd2(one, two), frechet(one[:, :axes], two[:, :axes])
    known = np.isfinite(found).all(axis=1)
    mean = found[known].mean(axis=0) if known.any() else np.full(2, np.nan)
    return {"embedding.mmd2": float(mean[0]), "embedding.frechet": float(mean[1])}
