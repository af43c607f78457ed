"""Reports of runs, partitions and studies as HTML pages, PDF and LaTeX tables. This package does not import torch."""

from .data import RunView
from .figures import save_figure
from .page import write_report

__all__ = ["RunView", "save_figure", "write_report"]
