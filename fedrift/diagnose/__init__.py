"""From findings to verdicts: a run beside its IID twin, and runs of several seeds beside theirs."""

from .seeds import Judgement, diagnose
from .verdict import SHORTEST, Verdict, verdict

__all__ = ["SHORTEST", "Judgement", "Verdict", "diagnose", "verdict"]
