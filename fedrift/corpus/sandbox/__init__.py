"""A made-up language with known truth: its entropy is exact, and what is grammatical is no matter of judgement."""

from .language import Language, language
from .pairs import PHENOMENA, Pair, minimal_pairs
from .settings import Sandbox
from .text import document, sandbox_rows
from .truth import Floor, conflict, corpus_nats, domain_floor, mixture_floor, nats

__all__ = [
    "PHENOMENA",
    "Floor",
    "Language",
    "Pair",
    "Sandbox",
    "conflict",
    "corpus_nats",
    "document",
    "domain_floor",
    "language",
    "minimal_pairs",
    "mixture_floor",
    "nats",
    "sandbox_rows",
]
