"""A cache of limited size for values that several runs of one process need."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class BoundedCache:
    """Values by key. The values that were not used for the longest time are dropped once the sum of all sizes exceeds a limit.

    Several threads may use a cache at once. Two threads that need a missing value at the same time both compute it.

    Args:
        max_size: The largest sum of sizes, in the unit of the sizes that ``get_or_create`` receives.

    Example:
        >>> cache = BoundedCache(max_size=10)
        >>> cache.get_or_create("a", lambda: "text", len), len(cache)
        ('text', 1)
    """

    def __init__(self, max_size: int) -> None:
        self.max_size = max_size
        self._items: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get_or_create(self, key: Hashable, create: Callable[[], Any], size_of: Callable[[Any], int]) -> Any:
        """Return the value of a key, and create it if it is missing.

        Args:
            key: The key.
            create: Creates a missing value.
            size_of: Returns the size of a value. A value that is larger than the limit is returned and not stored.
        """
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key][0]
        value = create()
        size = size_of(value)
        with self._lock:
            if key not in self._items and size <= self.max_size:
                self._items[key] = value, size
                self._total += size
                while self._total > self.max_size:
                    self._total -= self._items.popitem(last=False)[1][1]
        return value
