"""Small corpora of every kind that a partitioner must support."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from hypothesis import strategies as st

from fedrift.data.corpus import Corpus
from fedrift.partition.words import normalize_words

SCRIPTS = ("plain words of it", "😀 🎉 emoji 👩‍👩‍👧", "日本語の文章です", "Привет мир", "שלום עולם", "مرحبا", "a", ".", "don't")


def split_into_words(text: str) -> list[str]:
    return normalize_words(text).decode().split()


def corpus(texts, label, domains=None, size=None) -> Corpus:
    """Return a corpus in canonical order, regardless of the order of the texts; sizes are words by default."""
    order = np.argsort([sha256(text.encode()).hexdigest() for text in texts], kind="stable")
    text, label = np.array(texts, dtype=object)[order], np.asarray(label, dtype=np.int64)[order]
    size = np.array([len(t.split()) for t in texts]) if size is None else np.asarray(size)
    domains = tuple(f"topic{i}" for i in range(label.max(initial=-1) + 1)) if domains is None else domains
    source = np.array([f"source{number % 2}" for number in range(len(text))], dtype=object)
    return Corpus("small", text, label, domains, source, np.zeros(len(text), np.int8), size[order].astype(np.int64))


def make_topic_corpus(documents=400, count=4, words=30, seed=0, spread=0.5) -> Corpus:
    """Return documents of equally frequent topics: half of the words belong to the topic, half are shared."""
    rng = np.random.default_rng(seed)
    label = np.arange(documents) % count
    texts = []
    for i, topic in enumerate(label):
        length = max(3, int(words * np.exp(rng.normal(0, spread))))
        own = rng.random(length) < 0.5
        rank = np.minimum(rng.zipf(1.4, length), 200)
        texts.append(f"n{i} " + " ".join(f"t{topic}w{r}" if o else f"common{r}" for o, r in zip(own, rank, strict=True)))
    return corpus(texts, label)


@st.composite
def corpora(draw, most=60, least=2) -> Corpus:
    """Draw corpora with one-document topics, empty and wordless texts, other scripts, one very long text, and equal or varying sizes."""
    documents = draw(st.integers(least, most))
    count = draw(st.integers(2, min(6, documents)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = np.concatenate([np.arange(count), rng.integers(0, draw(st.integers(1, count)), documents - count)])
    texts = [f"{rng.choice(SCRIPTS)} {i}" for i in range(documents)]
    texts[draw(st.integers(0, documents - 1))] = draw(st.sampled_from(["", "\u200b", "…", "same"]))
    size = {
        "one": np.ones(documents),
        "wild": np.exp(rng.normal(3, 1.5, documents)),
        "giant": np.where(np.arange(documents) == 0, 10_000, 5),
        "none": np.where(np.arange(documents) % 2, 0, 7),
    }[draw(st.sampled_from(["one", "wild", "giant", "none"]))]
    return corpus(texts, label, size=size.astype(np.int64))
