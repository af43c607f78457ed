"""Storage of runs on disk. Reading a run does not need torch; ``tensors``, ``checkpoint`` and ``updates`` do."""

from .environment import check_environment, collect_environment
from .index import archive_run, find_run, find_runs, list_runs, list_unreadable, try_read_each
from .query import connect, query_frame, query_rows
from .run import Run

__all__ = [
    "Run",
    "archive_run",
    "check_environment",
    "collect_environment",
    "connect",
    "find_run",
    "find_runs",
    "list_runs",
    "list_unreadable",
    "query_frame",
    "query_rows",
    "try_read_each",
]
