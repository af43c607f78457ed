"""Generate documents of a synthetic language whose entropy and grammaticality are known exactly."""

from .language import (
    LossFloor,
    SyntheticConfig,
    SyntheticLanguage,
    corpus_nats,
    document_nats,
    domain_floor,
    domain_information,
    generate_document,
    generate_rows,
    get_language,
    mixture_floor,
)
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
