"""Runs on disk. Reading needs no torch; tensors are in ``fedrift.store.tensors`` alone."""

from .environment import describe, settle
from .query import connected, query_rows, sql
from .run import Run
from .shelf import find_run, find_runs, list_runs, list_unreadable, move_aside, read_each

__all__ = ["Run", "connected", "describe", "find_run", "find_runs", "list_runs", "list_unreadable", "move_aside", "query_rows",
           "read_each", "settle", "sql"]
