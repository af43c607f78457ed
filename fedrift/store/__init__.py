"""Runs on disk. Reading needs no torch; tensors are in ``fedrift.store.tensors`` alone."""

from fedrift.store.environment import describe, settle
from fedrift.store.run import Run
from fedrift.store.shelf import find_run, list_runs

__all__ = ["Run", "describe", "find_run", "list_runs", "settle"]
