"""The command line. Its commands import what they need when they are called, so that ``--help`` answers at once."""

from .app import main

__all__ = ["main"]
