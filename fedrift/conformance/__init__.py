"""Conformance: is an implementation of a federated algorithm the paper's? Closed problems, plain references, verdicts.

``judge_subject(subject)`` judges anything that answers ``Subject``: fedrift's algorithms, another framework's, yours.
"""

from .judge import Verdict, judge_subject, scoreboard, verdict_table
from .problems import PROBLEMS, Problem, Subject, Unsupported
from .subjects import FEDRIFT_SUBJECTS, FedriftSubject

__all__ = [
    "FEDRIFT_SUBJECTS",
    "PROBLEMS",
    "FedriftSubject",
    "Problem",
    "Subject",
    "Unsupported",
    "Verdict",
    "judge_subject",
    "scoreboard",
    "verdict_table",
]
