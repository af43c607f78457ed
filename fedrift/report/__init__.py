"""Runs as a page: tables, curves, partitions and the whole experiment. No torch."""

from .data import RunView
from .figures import save_figure
from .page import write_report

__all__ = ["RunView", "save_figure", "write_report"]
