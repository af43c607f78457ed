"""Messages out, first replies in: over any of Flower's grids, waiting no longer than was said."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid


def collect(grid: Grid, messages: dict[int, Message], patience: float, pause: float,
            enough: Callable[[], bool] = lambda: False) -> Iterator[tuple[int, Message]]:
    """Send, and yield each addressee's first reply as it comes; those after it, and replies to nothing, are not looked at.

    Nobody is waited for any longer once there is ``enough``.
    """
    order = list(messages)
    waiting: dict[str, int] = {}
    if order:
        ids = list(grid.push_messages([messages[key] for key in order]))
        waiting = {message: key for message, key in zip(ids, order, strict=False) if message}
    end = time.monotonic() + patience
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            key = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key is not None:
                yield key, reply
        if not waiting or enough() or time.monotonic() >= end:
            return
        time.sleep(pause)
