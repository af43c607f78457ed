"""Corpora: real text with topics, split by document, tokenised once and packed into blocks. No torch here."""

from .blocks import Blocks, pack
from .corpus import TEST, TRAIN, VALIDATION, Corpus
from .halves import pretraining_half
from .listing import Listing, corpora
from .sandbox import Sandbox
from .source import Source, load_corpus
from .tokens import Tokens, tokenise

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Blocks",
    "Corpus",
    "Listing",
    "Sandbox",
    "Source",
    "Tokens",
    "corpora",
    "load_corpus",
    "pack",
    "pretraining_half",
    "tokenise",
]
