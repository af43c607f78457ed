"""Reports of runs, partitions and studies as HTML pages, PDF and LaTeX tables. This package does not import torch.

The functions are imported on first use, because the library of the figures takes a second and `RunView` does not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .data import RunView

if TYPE_CHECKING:
    from .figures import save_figure
    from .page import write_report

_MODULE_OF = {"save_figure": "figures", "write_report": "page"}
__all__ = ["RunView", "save_figure", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
