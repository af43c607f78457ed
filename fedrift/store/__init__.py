"""Runs on disk. Reading needs no torch; tensors are in ``fedrift.store.tensors`` alone."""

from .environment import describe, settle
from .run import Run
from .shelf import find_run, list_runs

__all__ = ["Run", "describe", "find_run", "list_runs", "settle"]
