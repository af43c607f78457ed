"""Mitigations beside each other: every arm of one experiment over paired seeds, and where clustering cannot help."""

from .arms import ARMS, DEFAULT, Asked
from .contest import Contest, contest

__all__ = ["ARMS", "DEFAULT", "Asked", "Contest", "contest"]
