"""Runs as a page: tables, curves, partitions and the whole experiment. No torch."""

from .exhibit import Exhibit
from .figures import save_figure
from .page import write_report

__all__ = ["Exhibit", "save_figure", "write_report"]
