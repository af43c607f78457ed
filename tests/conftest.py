"""Shared settings and fixtures of all tests.

Every test process uses one thread, because the tensors are tiny and many test processes may run at the same time.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but n cases of a test with ``@pytest.mark.sample(n)``; the n cases cover as many parameter values as possible."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in groups.values():
        chosen = choose_covering(cases, cases[0].get_closest_marker("sample").args[0])
        for case in cases:
            if case not in chosen:
                case.add_marker("slow")


def choose_covering(cases: list[pytest.Item], count: int) -> list[pytest.Item]:
    """Return cases, each of which has the most parameter values that no earlier case has; the first of equal ones."""
    values = {case: {(name, repr(value)) for name, value in case.callspec.params.items()} for case in cases}
    chosen: list[pytest.Item] = []
    while len(chosen) < min(count, len(cases)):
        covered = set().union(*(values[case] for case in chosen))
        chosen.append(max((case for case in cases if case not in chosen), key=lambda case: len(values[case] - covered)))
    return chosen


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real corpora beside the project; skip the test if it does not exist."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the test needs real corpora, but the folder ../shared/data does not exist beside the project")
    return folder.resolve()
