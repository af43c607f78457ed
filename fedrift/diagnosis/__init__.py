"""From findings to verdicts: a run beside its IID baseline, and runs of several seeds beside theirs."""

from .across_seeds import Diagnosis, diagnose
from .verdict import MIN_EVALUATIONS, Verdict, judge_run

__all__ = ["MIN_EVALUATIONS", "Diagnosis", "Verdict", "diagnose", "judge_run"]
