"""Judgements as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .seeds import Judgement


def plain(judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Everything that was found, the findings of every seed included; what is missing is null."""
    return [cleaned(asdict(judgement)) for judgement in judgements]


def cleaned(value: Any) -> Any:
    """The same with NaN as None, infinities as text, and tuples as lists: JSON has none of them."""
    if isinstance(value, dict):
        return {key: cleaned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
