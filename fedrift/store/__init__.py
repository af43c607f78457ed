"""Runs on disk. Reading needs no torch; tensors are in ``fedrift.store.tensors`` alone."""

from .environment import describe, settle
from .query import connected, sql
from .run import Run
from .shelf import find_run, list_runs

__all__ = ["Run", "connected", "describe", "find_run", "list_runs", "settle", "sql"]
