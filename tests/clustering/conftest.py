"""What the tests of mitigations share."""

from __future__ import annotations

import pytest

from tests.small_experiment import make_cache


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """One small world, loaded once; runs of different tests lie apart."""
    return make_cache(tmp_path_factory.mktemp("world"))
