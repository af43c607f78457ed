"""Runs while they go on, seen from another process: on the terminal and in the browser. It reads only, and needs no torch."""

from .scene import Row, Scene, Seen
from .watcher import Watcher, target

__all__ = ["Row", "Scene", "Seen", "Watcher", "target"]
