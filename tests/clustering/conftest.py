"""Fixture that all tests of clustering share."""

from __future__ import annotations

import pytest

from tests.small_experiment import make_cache


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The resources of the small experiment, loaded once; each test stores its runs in its own folder."""
    return make_cache(tmp_path_factory.mktemp("world"))
