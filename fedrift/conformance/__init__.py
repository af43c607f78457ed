"""Conformance tests: check whether an implementation of a federated algorithm agrees with its paper.

``judge_subject`` runs an implementation on small problems with known solutions and returns verdicts. It accepts any object with the
interface of ``Subject``, whether it wraps fedrift, another framework or your own code.
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
