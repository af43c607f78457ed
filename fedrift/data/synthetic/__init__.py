"""Generate documents of a synthetic language whose entropy and grammaticality are known exactly."""

from .entropy import LossFloor, corpus_nats, document_nats, domain_floor, domain_information, mixture_floor
from .language import SyntheticConfig, SyntheticLanguage, generate_document, generate_rows, get_language
from .minimal_pairs import PHENOMENA, MinimalPair, make_minimal_pairs

__all__ = [
    "PHENOMENA",
    "LossFloor",
    "MinimalPair",
    "SyntheticConfig",
    "SyntheticLanguage",
    "corpus_nats",
    "document_nats",
    "domain_floor",
    "domain_information",
    "generate_document",
    "generate_rows",
    "get_language",
    "make_minimal_pairs",
    "mixture_floor",
]
