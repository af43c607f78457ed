"""Clients with known clusters: documents around T domains on the unit sphere, mixed by severity."""

from __future__ import annotations

import numpy as np

from fedrift.clustering.base import ClientInfo
from fedrift.clustering.selection import ClientEmbeddings, add_privacy_noise


def documents(
    size: int, severity: float, seed: int, *, domains: int = 4, width: int = 32, each: int = 100, noise: float = 0.25
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Return documents [D, E] of N clients and their true domains [N]. A share ``severity`` of a client's documents is from its own domain,
    and the rest from all domains.
    """
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((domains, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    truth = np.arange(size) % domains
    made = []
    for domain in truth:
        mix = np.full(domains, (1 - severity) / domains)
        mix[domain] += severity
        of = draw.choice(domains, size=each, p=mix)
        made.append(centres[of] + noise * draw.standard_normal((each, width)))
    return tuple(made), truth


def client_embeddings(size: int, severity: float, seed: int, **options) -> tuple[ClientEmbeddings, np.ndarray]:
    vectors, truth = documents(size, severity, seed, **options)
    return add_privacy_noise(vectors, seed, None), truth


def make_client_info(vectors: tuple[np.ndarray, ...], seed: int = 0, **options) -> ClientInfo:
    """Return clients whose texts are the numbers of their documents."""
    names = [[f"{client} {row}" for row in range(len(own))] for client, own in enumerate(vectors)]

    def embed(texts, encoder):
        return np.stack([vectors[int(client)][int(row)] for client, row in (text.split() for text in texts)])

    return ClientInfo(len(vectors), seed, lambda client: names[client], embed, **options)
