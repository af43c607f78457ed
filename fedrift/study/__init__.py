"""Studies: from one YAML of factors to runs and a tidy frame. What is exported here needs no torch; running one is in
``fedrift.study.conduct``."""

from .archive import pack, unpack
from .book import Book, Entry, find_study, studies
from .study import Study, Tuning, load_study, parse_study
from .table import table
from .verdicts import judged

__all__ = ["Book", "Entry", "Study", "Tuning", "find_study", "judged", "load_study", "pack", "parse_study", "studies", "table",
           "unpack"]
