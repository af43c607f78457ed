"""Storage of runs on disk. Reading a run does not need torch; ``tensors``, ``checkpoint``, ``updates`` and ``fork`` do."""

from .index import find_run, find_runs, list_runs, list_unreadable, move_aside, read_each
from .query import connect, query_frame, query_rows
from .run import Run, check_environment, collect_environment

__all__ = [
    "Run",
    "check_environment",
    "collect_environment",
    "connect",
    "find_run",
    "find_runs",
    "list_runs",
    "list_unreadable",
    "move_aside",
    "query_frame",
    "query_rows",
    "read_each",
]
