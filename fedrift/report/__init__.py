"""Runs as a page: tables, curves, partitions and the whole experiment. No torch."""

from fedrift.report.exhibit import Exhibit
from fedrift.report.figures import save_figure
from fedrift.report.page import write_report

__all__ = ["Exhibit", "save_figure", "write_report"]
