"""Finding runs by a few letters."""

from __future__ import annotations

import os

import pytest

from fedrift.errors import UserError
from fedrift.store import Run, find_run, list_runs


@pytest.fixture
def root(tmp_path):
    for age, name in enumerate(["ab12", "ab99", "c0de"]):
        run = Run(tmp_path / "runs", name)
        run.write_json("experiment", {})
        os.utime(run.folder / "experiment.json", (1000 - age, 1000 - age))
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_runs_are_listed_from_the_oldest_and_other_folders_are_not_runs(root):
    assert [run.id for run in list_runs(root)] == ["c0de", "ab99", "ab12"]
    assert list_runs(root / "nowhere") == []


def test_a_run_is_found_by_the_beginning_of_its_id(root):
    assert find_run(root, "c") == Run(root, "c0de")
    assert find_run(root, "ab9") == Run(root, "ab99")


def test_a_run_is_found_by_its_folder(root, tmp_path):
    assert find_run(tmp_path, str(root / "ab12")) == Run(root, "ab12")


def test_a_whole_id_wins_over_longer_ones_that_begin_with_it(root):
    Run(root, "ab").write_json("experiment", {})
    assert find_run(root, "ab").id == "ab"


def test_letters_that_fit_several_runs_are_answered_with_all_of_them(root):
    with pytest.raises(UserError, match="names 2 runs: ab12, ab99"):
        find_run(root, "ab")


def test_letters_that_fit_none_are_answered_with_what_is_there(root):
    with pytest.raises(UserError, match=r"'ab13'.*did you mean 'ab12'.*ab12, ab99, c0de"):
        find_run(root, "ab13")
    with pytest.raises(UserError, match="c0de"):
        find_run(root, "")


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(UserError, match="holds none"):
        find_run(tmp_path, "ab")
