"""Diagnose failures of a run compared with its IID baseline, and of runs with several seeds compared with theirs."""

from .across_seeds import Diagnosis, diagnose
from .verdict import MIN_EVALUATIONS, Verdict, judge_run

__all__ = ["MIN_EVALUATIONS", "Diagnosis", "Verdict", "diagnose", "judge_run"]
