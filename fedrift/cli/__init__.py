"""Command-line interface of fedrift.

Each command imports its heavy dependencies (torch, transformers, pandas) inside the function, so that ``--help`` stays fast.
"""

from .app import main

__all__ = ["main"]
