"""``python -m fedrift.conform``: the scoreboard of fedrift's own algorithms, and of the planted bugs."""

from __future__ import annotations

from . import OURS, PLANTED, scoreboard, table

print(table(scoreboard(OURS)))
print()
print(table(verdict for verdict in scoreboard(PLANTED) if verdict.holds is False))
