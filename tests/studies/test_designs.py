"""Test the designs: balanced pairs of levels, separate main effects, and reported confounding."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrift.core.errors import UserError
from fedrift.studies.designs import (
    ARRAY_NAMES,
    ExplicitDesign,
    FullGrid,
    OneFactorAtATime,
    Orthogonal,
    build_array,
    compute_contrasts,
    compute_interaction,
    compute_overlap,
    find_aliases,
    find_dependent_pair,
)

SIZES = {"L4": (4, 3), "L8": (8, 7), "L16": (16, 15), "L9": (9, 4), "L18": (18, 8), "L27": (27, 13), "L81": (81, 40)}
SEVEN = {name: (0, 1, 2) for name in ("regime", "algorithm", "clients", "participation", "epochs", "severity", "lr")}


@pytest.mark.parametrize("name", ARRAY_NAMES)
def test_in_every_two_columns_all_pairs_of_levels_are_equally_frequent(name):
    table = build_array(name)
    assert table.shape == SIZES[name]
    for one, other in combinations(range(table.shape[1]), 2):
        pairs = Counter(zip(table[:, one].tolist(), table[:, other].tolist(), strict=True))
        assert len(pairs) == len(set(table[:, one])) * len(set(table[:, other]))
        assert len(set(pairs.values())) == 1


def test_the_interaction_of_two_columns_of_nine_rows_is_the_other_two_columns():
    table = build_array("L9")
    both = compute_interaction(table[:, 0], table[:, 1])
    assert both.shape == (9, 4)
    assert compute_overlap(compute_contrasts(table[:, 2]), both) == pytest.approx(1)
    assert compute_overlap(compute_contrasts(table[:, 3]), both) == pytest.approx(1)
    assert compute_overlap(compute_contrasts(table[:, 0]), both) == pytest.approx(0)


def test_a_full_grid_has_every_cell_once_and_no_confounding():
    cells = FullGrid()({"a": (1, 2), "b": ("x", "y", "z")})
    assert len(cells) == 6
    assert len({tuple(cell.items()) for cell in cells}) == 6
    assert find_aliases(cells) == []


def test_27_runs_separate_seven_main_effects_and_a_chosen_interaction():
    cells = Orthogonal("L27", (("regime", "algorithm"),))(SEVEN)
    assert len(cells) == 27
    for one, other in combinations(SEVEN, 2):
        assert set(Counter((cell[one], cell[other]) for cell in cells).values()) == {3}
    mixed = find_aliases(cells)
    assert mixed  # seven three-level factors in 27 runs always have some confounding
    assert not [alias for alias in mixed if set(alias["pair"]) == {"regime", "algorithm"}]
    assert {alias["share"] for alias in mixed} <= {0.5, 1.0}


def test_the_alias_table_predicts_the_confounding_of_an_interaction():
    """A response that consists of one interaction appears as a main effect exactly where the table states it."""
    levels = {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1, 2)}
    cells = Orthogonal("L9")(levels)
    assert {(alias["factor"], tuple(alias["pair"])) for alias in find_aliases(cells)} == {
        ("a", ("b", "c")),
        ("b", ("a", "c")),
        ("c", ("a", "b")),
    }
    a, b, c = (np.array([cell[name] for cell in cells]) for name in levels)
    response = compute_interaction(a, b) @ np.arange(1.0, 5.0)
    means = [response[c == level].mean() for level in range(3)]
    assert max(means) - min(means) > 0.1
    assert max(abs(response[a == level].mean()) for level in range(3)) < 1e-12


def test_a_factor_of_two_levels_uses_a_two_level_column_or_repeats_a_level():
    cells = Orthogonal("L18")({"two": ("x", "y"), "three": (0, 1, 2)})
    assert Counter(cell["two"] for cell in cells) == {"x": 9 if len(cells) == 18 else 3, "y": 9 if len(cells) == 18 else 3}
    dummy = Orthogonal("L9")({"two": ("x", "y"), "three": (0, 1, 2), "other": (0, 1, 2), "last": (0, 1, 2)})
    assert Counter(cell["two"] for cell in dummy) == {"x": 6, "y": 3}


@pytest.mark.parametrize(
    ("design", "levels", "message"),
    [
        (Orthogonal("L9"), {name: (0, 1, 2) for name in "abcde"}, "L9 has no column left for 'e'"),
        (Orthogonal("L9"), {"a": (0, 1, 2, 3)}, "4 levels"),
        (Orthogonal("L9", (("a", "z"),)), {"a": (0, 1, 2)}, "no factor 'z'"),
        (Orthogonal("L9", (("a", "b"),)), {name: (0, 1, 2) for name in "abc"}, "shorter design.clear"),
        (OneFactorAtATime({"a": 7}), {"a": (0, 1)}, "has no level 7; its levels are 0, 1"),
        (ExplicitDesign(({"a": 0},)), {"a": (0, 1), "b": (0, 1)}, "must have a level for b"),
        (ExplicitDesign(), {"a": (0, 1)}, "design.cells is empty"),
    ],
)
def test_an_impossible_design_is_refused(design, levels, message):
    with pytest.raises(UserError, match=message):
        design(levels)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_one_factor_at_a_time_changes_one_factor_of_the_center(counts):
    levels = {f"f{number}": tuple(range(count)) for number, count in enumerate(counts)}
    centre = {name: labels[-1] for name, labels in levels.items()}
    cells = OneFactorAtATime(centre)(levels)
    assert cells[0] == centre
    assert len(cells) == 1 + sum(count - 1 for count in counts)
    assert all(sum(cell[name] != centre[name] for name in cell) == 1 for cell in cells[1:])


@pytest.mark.parametrize(
    ("array", "sizes", "is_allowed"),
    [
        ("L9", (3, 2, 2), False),
        ("L27", (3, 2, 2, 2), False),
        ("L18", (2, 3, 2, 2), False),
        ("L9", (3, 3, 2, 2), True),
        ("L9", (2, 2), True),
        ("L4", (2, 1), True),
        ("L8", (2, 2, 2, 2), True),
    ],
)
def test_main_effects_are_not_confounded_with_each_other(array, sizes, is_allowed):
    """A loss that consists of the effects of the other factors does not change with the first one."""
    levels = {name: tuple(range(size)) for name, size in zip("abcd", sizes, strict=False)}
    if not is_allowed:
        with pytest.raises(UserError, match=f"{array} repeats cells"):
            Orthogonal(array)(levels)
        return
    cells = Orthogonal(array)(levels)
    assert find_dependent_pair(cells) is None
    loss = np.array([sum(cell[name] for name in levels if name != "a") for cell in cells], dtype=float)
    means = [loss[[cell["a"] == level for cell in cells]].mean() for level in levels["a"]]
    assert means == pytest.approx([means[0]] * len(means))
