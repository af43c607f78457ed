"""Load text corpora, assign documents to splits, tokenize them once and pack them into blocks.

This package does not import torch.
"""

from .catalog import is_in_pretraining_half
from .corpus import TEST, TRAIN, VALIDATION, Corpus
from .dataset import CatalogEntry, DatasetConfig, list_datasets, load_corpus
from .synthetic import SyntheticConfig
from .tokenization import Blocks, TokenizedCorpus, pack_blocks, tokenize_corpus

__all__ = [
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Blocks",
    "CatalogEntry",
    "Corpus",
    "DatasetConfig",
    "SyntheticConfig",
    "TokenizedCorpus",
    "is_in_pretraining_half",
    "list_datasets",
    "load_corpus",
    "pack_blocks",
    "tokenize_corpus",
]
