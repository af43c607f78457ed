"""All problems."""

from .own_problems import OWN_PROBLEMS
from .shared_problems import SHARED_PROBLEMS

PROBLEMS = SHARED_PROBLEMS + OWN_PROBLEMS

__all__ = ["PROBLEMS"]
