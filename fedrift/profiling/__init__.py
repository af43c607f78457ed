"""Profiling of an experiment: where the time and the memory of a run go."""

from __future__ import annotations

from .profiler import Profile, profile_run

__all__ = ["Profile", "profile_run"]
