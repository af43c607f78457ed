"""Where a run's time and memory go: rounds of an experiment measured as they are, and one of them looked into."""

from __future__ import annotations

from .profiler import Profile, profile_run

__all__ = ["Profile", "profile_run"]
