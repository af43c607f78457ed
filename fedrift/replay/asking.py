"""What is asked of a replay, in words: ``drop_client=3 plan.optimizer.lr=0.1``."""

from __future__ import annotations

from collections.abc import Iterable

from ..config import parse_yaml
from ..errors import UserError, quote
from ..experiment import STORED, Experiment, parse
from ..store import Run

OURS = ("drop_client", "drop_until")


def forked(origin: Run, round: int, words: Iterable[str] = ()) -> Experiment:
    """The experiment of a fork of a run from a round on. Whether it can be is asked when it begins."""
    words = list(words)
    said = {key: value for key, value in origin.experiment.items() if key not in (*STORED, "fork")}
    fork: dict[str, object] = {"run": origin.id, "round": round}
    rest = [text for text in words if text.partition("=")[0].strip() not in OURS]
    for text in words:
        key, sign, value = (part.strip() for part in text.partition("="))
        if key in OURS and not sign:
            raise UserError(f"{quote(text)}: wanted {key}=VALUE, e.g. drop_client=3")
        if key == "drop_client":
            fork[key] = [*fork.get(key, ()), *clients(value)]  # type: ignore[misc]
        elif key == "drop_until":
            fork[key] = whole(value, text)
    return parse({**said, "fork": fork}, rest)


def clients(value: str) -> list[int]:
    """``3``, ``3,4`` or ``[3, 4]``."""
    return [whole(one, f"drop_client={value}") for one in value.strip("[]").split(",")]


def whole(value: str, text: str) -> int:
    number = parse_yaml(value, f"the override {quote(text)}")
    if isinstance(number, bool) or not isinstance(number, int):
        raise UserError(f"{quote(text)}: wanted a whole number, or several for drop_client (drop_client=3,4); "
                        f"got {quote(value.strip())}")
    return number
