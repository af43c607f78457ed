"""Held-out text, the same for every run on a corpus: which blocks, of which domain, and whose.

Blocks are packed domain by domain from documents in canonical order drawn by the corpus's own split
seed, so that no partition, severity, algorithm or seed of the study changes what is measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..corpus.blocks import Blocks, pack
from ..corpus.corpus import Corpus
from ..corpus.tokens import Tokens
from ..seeds import numpy_stream

Read = Callable[[np.ndarray], Tokens]  # some documents of the corpus, as one hand writes them
FEW = 16  # documents to read at first


@dataclass(frozen=True, eq=False)
class HeldOut:
    """E blocks of held-out text of J domains, and how N clients' own data is mixed of the domains."""

    blocks: Blocks  # [E, T]
    domain: np.ndarray  # [E] index into names
    names: tuple[str, ...]  # J
    mix: np.ndarray  # [N, J] training tokens of each client in each domain

    def first(self, per_domain: int) -> HeldOut:
        """At most so many blocks of each domain."""
        rank = np.concatenate([np.arange(count) for count in np.bincount(self.domain, minlength=len(self.names))])
        rows = rank < per_domain
        return HeldOut(Blocks(self.blocks.tokens[rows], self.blocks.keep[rows]), self.domain[rows], self.names, self.mix)

    def own(self, client: int, count: int) -> np.ndarray:
        """About ``count`` blocks mixed as the client's own data is, of domains that have any; fixed for the client, ``[own]``."""
        mix = self.mix[client] * (predicted_tokens(self) > 0)
        share = mix / max(mix.sum(), 1)
        wanted = np.floor(share * count).astype(int)
        for domain in np.argsort(-(share * count - wanted), kind="stable")[:count - wanted.sum()]:
            wanted[domain] += 1  # largest remainders
        picks = []
        for domain, number in enumerate(wanted):
            rows = np.flatnonzero(self.domain == domain)
            picks.append(np.roll(rows, -client * int(number))[:number])  # other clients of the domain read on
        return np.sort(np.concatenate(picks))


def predicted_tokens(held: HeldOut) -> np.ndarray:
    """Tokens of each domain that a loss can be measured on, ``[J]``: the first of a block is context alone."""
    return np.bincount(held.domain, weights=held.blocks.keep[:, 1:].sum(1), minlength=len(held.names))


def hold_out(corpus: Corpus, tokens: Tokens, split: int, length: int, most: int, seed: int, mix: np.ndarray) -> HeldOut:
    """At most ``most`` blocks of ``length`` tokens of each domain, from the documents of one split.

    ``mix [N, J]`` has a column for every domain of the corpus and, if there are documents without a label, one more.
    """
    names = domain_names(corpus)
    parts, domain = [], []
    for number, name in enumerate(names):
        rows = order(corpus, split, seed, number, name)
        parts.append(filled(tokens, rows, length, most))
        domain.append(np.full(len(parts[-1].tokens), number))
    return HeldOut(joined(parts), np.concatenate(domain), names, mix)


def beside(held: HeldOut, corpus: Corpus, split: int, length: int, most: int, seed: int, hands: Sequence[Read],
           mix: np.ndarray) -> HeldOut:
    """Behind the held-out text as found, the same documents as each of H - 1 hands writes them: a domain more for each
    hand and domain. ``mix [N, H J]``: training tokens of each client, as found in the first J columns.

    Texts that grow or shrink fill the same number of blocks with fewer or more documents.
    """
    parts, domain = [held.blocks], [held.domain]
    for hand, read in enumerate(hands, 1):
        for number, name in enumerate(held.names):
            rows = order(corpus, split, seed, number, name)
            parts.append(first_blocks(read, rows, length, most))
            domain.append(np.full(len(parts[-1].tokens), hand * len(held.names) + number))
    names = tuple(f"{name}, hand {hand}" for hand in range(1, len(hands) + 1) for name in held.names)
    return HeldOut(joined(parts), np.concatenate(domain), (*held.names, *names), mix)


def order(corpus: Corpus, split: int, seed: int, number: int, name: str) -> np.ndarray:
    """The documents of a domain in one split, in the order in which they are held out."""
    label = np.where(corpus.label < 0, len(corpus.domains), corpus.label)
    rows = np.flatnonzero((corpus.split == split) & (label == number))
    return numpy_stream(seed, "held out", name).permutation(rows)


def first_blocks(read: Read, rows: np.ndarray, length: int, most: int) -> Blocks:
    """The first documents as written, no more of them than fill the blocks (about)."""
    few = FEW
    while (tokens := read(rows[:few])).lengths.sum() < most * length and few < len(rows):
        few *= 2
    return filled(tokens, np.arange(len(tokens)), length, most)


def filled(tokens: Tokens, rows: np.ndarray, length: int, most: int) -> Blocks:
    """At most ``most`` blocks of ``length`` tokens, from the first of the documents ``rows``."""
    enough = int(np.searchsorted(np.cumsum(tokens.lengths[rows]), most * length)) + 1
    blocks = pack(tokens, rows[:enough], length)
    return Blocks(blocks.tokens[:most], blocks.keep[:most])


def joined(parts: list[Blocks]) -> Blocks:
    return Blocks(np.concatenate([part.tokens for part in parts]), np.concatenate([part.keep for part in parts]))


def domain_names(corpus: Corpus) -> tuple[str, ...]:
    """The corpus's domains, and a last one for documents without a label, if there are any."""
    unlabelled = bool((corpus.label < 0).any())
    if not corpus.domains:
        return ("all",)
    return (*corpus.domains, "unlabelled") if unlabelled else corpus.domains


def token_table(corpus: Corpus, rows: list[np.ndarray]) -> np.ndarray:
    """Tokens that each client holds of each domain, ``[N, J]``; ``rows`` index the whole corpus."""
    width = len(domain_names(corpus))
    label = np.where(corpus.label < 0, len(corpus.domains), corpus.label)
    return np.stack([np.bincount(label[held], weights=corpus.size[held], minlength=width) for held in rows])
