"""Shared settings and fixtures of all tests.

Every test process uses one thread, because the tensors are tiny and many test processes may run at the same time.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real corpora beside the project; skip the test if it does not exist."""
    folder = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the test needs real corpora, but the folder ../shared/data does not exist beside the project")
    return folder.resolve()
