"""A cache of limited size."""

from __future__ import annotations

from fedrift.core.cache import BoundedCache


def test_a_value_is_created_once_and_the_oldest_are_dropped_first():
    cache, created = BoundedCache(max_size=10), []

    def get(key: str, size: int = 4) -> str:
        return cache.get_or_create(key, lambda: created.append(key) or key, lambda value: size)

    assert [get("a"), get("b"), get("a")] == ["a", "b", "a"] and created == ["a", "b"]
    get("c")  # drops b, which was not used for longer than a
    assert len(cache) == 2
    get("a")
    get("b")
    assert created == ["a", "b", "c", "b"]
    assert get("large", size=11) == get("large", size=11) == "large"
    assert created[-2:] == ["large", "large"] and len(cache) == 2
