"""Test that the boundary search finds known boundaries, and reports if there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.calibration.analytic_failures import is_divergent
from fedrift.stats import find_boundaries, find_boundary, geometric_mean_ratio


@pytest.mark.parametrize("start", [0.001, 0.1, 0.37, 5.0])
def test_a_known_boundary_is_bracketed_from_every_start(start):
    tried = []
    found = find_boundary(lambda value: tried.append(value) or value > 0.3, start, tolerance=0.02)
    assert found.stable <= 0.3 < found.unstable <= found.stable * 1.02 and found.num_runs == len(tried) == len(set(tried))
    assert found.boundary == pytest.approx(0.3, rel=0.02)


def test_a_setting_that_never_or_always_breaks_has_no_boundary():
    calm, wild = find_boundary(lambda value: False, 0.5, maximum=1.0), find_boundary(lambda value: True, 0.5, minimum=0.01)
    assert (calm.stable, calm.unstable) == (1.0, math.inf) and (wild.stable, wild.unstable) == (0.0, 0.01)
    assert math.isnan(calm.boundary) and math.isnan(wild.boundary)
    assert find_boundary(lambda value: True, 0.5, max_runs=7).num_runs == 7


def test_each_search_starts_near_a_known_boundary_of_its_condition():
    true = {"IID": 0.4, "skewed": 0.2}
    first: dict[tuple[int, str], float] = {}
    tried = []

    def breaks(condition, seed, setting):
        first.setdefault((seed, condition), setting)
        tried.append(setting)
        return setting > true[condition] * (1 + seed / 100)

    found = list(find_boundaries(breaks, list(true), range(3), 10.0))
    assert [(seed, condition) for seed, condition, _ in found] == [(seed, condition) for seed in range(3) for condition in true]
    for seed, condition, bracket in found:
        assert bracket.boundary == pytest.approx(true[condition] * (1 + seed / 100), rel=0.025)
    at = {(seed, condition): bracket.boundary for seed, condition, bracket in found}
    assert first[0, "skewed"] == at[0, "IID"] and first[1, "IID"] == at[0, "IID"] and first[2, "skewed"] == at[1, "skewed"]
    assert [bracket.num_runs for *_, bracket in found[2:]] == [5] * 4 and len(tried) == sum(bracket.num_runs for *_, bracket in found)


def test_a_search_that_found_nothing_starts_no_other():
    found = list(find_boundaries(lambda condition, seed, at: condition == "IID" and at > 0.3, ["skewed", "IID"], [0, 1], 0.5, maximum=8.0))
    assert [math.isnan(bracket.boundary) for *_, bracket in found] == [True, False, True, False]
    assert found[1][2].boundary == pytest.approx(0.3, rel=0.025)


def test_the_search_requires_a_start_above_zero():
    with pytest.raises(ValueError, match="above 0"):
        find_boundary(lambda value: True, 0.0)


@pytest.mark.slow
def test_the_boundary_of_non_iid_curvatures_is_1_75_times_lower():
    """The boundary is 2 / 5.25 = .381 for IID data, and .2176 with one curvature per client and ten local steps."""
    found = [
        [
            find_boundary(lambda lr: is_divergent(skewed, seed, lr), 0.2, tolerance=0.04, factor=2.0).boundary  # noqa: B023
            for seed in range(2)
        ]
        for skewed in (False, True)
    ]
    assert found[0] == pytest.approx([2 / 5.25] * 2, rel=0.04) and found[1] == pytest.approx([0.2175868] * 2, rel=0.04)
    assert geometric_mean_ratio(*map(np.asarray, found)).estimate == pytest.approx(1.75, rel=0.05)
