"""Conformance: is an implementation of a federated algorithm the paper's? Closed problems, plain references, verdicts.

``score(subject)`` judges anything that answers ``Subject``: fedrift's algorithms, another framework's, yours.
"""

from .judge import Verdict, score, scoreboard, table
from .ours import OURS, Ours
from .planted import PLANTED
from .problem import Problem, Subject, Unsupported
from .problems import PROBLEMS

__all__ = ["OURS", "PLANTED", "PROBLEMS", "Ours", "Problem", "Subject", "Unsupported", "Verdict", "score", "scoreboard",
           "table"]
