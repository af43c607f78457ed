"""The table of compatible releases: how it is made, that the bounds of pyproject.toml follow it, and (slow) that it still holds."""

from __future__ import annotations

import json
import subprocess

import pytest
from packaging.version import Version

from scripts import compatibility
from scripts.compatibility import (
    FLOORS,
    PAGE,
    RESULTS,
    Checker,
    declared_ranges,
    find_oldest,
    first_of_each_minor,
    last_line,
    lower_bound,
    make_overlay,
    released_versions,
    search,
    table_rows,
)

REFERENCE = {"passed": True, "message": "", "losses": [4.0, 3.0], "versions": {name: "2.0" for name in FLOORS}}


@pytest.mark.parametrize("oldest", range(8))
@pytest.mark.parametrize("bound", [0, 3, 7])
def test_the_oldest_release_that_passes_is_found_with_few_checks(oldest, bound):
    releases, tried = [f"1.{minor}.0" for minor in range(8)], []

    def passes(release):
        tried.append(release)
        return releases.index(release) >= oldest

    found, refused = find_oldest(releases, releases[bound], passes)
    assert found == releases[oldest] and refused == (releases[oldest - 1] if oldest else None)
    assert len(tried) == len(set(tried)) <= 5


def test_no_release_may_pass():
    assert find_oldest(["1.0", "1.1", "1.2"], "1.1", lambda release: False) == (None, "1.2")


def test_the_first_release_of_each_minor_version_is_tried():
    versions = [Version(each) for each in ("5.0.0", "4.9.1", "4.9.2", "4.8.0", "5.0.1", "5.1.2")]
    assert first_of_each_minor(versions, Version("4.9")) == ["4.9.1", "5.0.0", "5.1.2"]


def test_results_are_kept_and_a_changed_loss_fails(tmp_path, monkeypatch):
    runs = []

    def run(self, pins):
        runs.append(dict(pins))
        moved = {"1.0": 0.1, "1.5": 1e-6}.get(pins.get("peft"), 0.0)
        return {**REFERENCE, "losses": [4.0, 3.0 + moved], "versions": {**REFERENCE["versions"], **pins}}

    monkeypatch.setattr(Checker, "run", run)
    checker = Checker(tmp_path, 1, 10)
    assert checker.check({"peft": "1.5"})["passed"] and "differs by 0.1" in checker.check({"peft": "1.0"})["message"]
    assert checker.check({"peft": "2.0"}) == checker.check({})  # the release of this environment needs no other one
    again = Checker(tmp_path, 1, 0)
    assert not again.check({"peft": "1.0"})["passed"] and again.check({"peft": "1.5"})["loss_difference"] < 1e-5
    assert runs == [{}, {"peft": "1.5"}, {"peft": "1.0"}]
    with pytest.raises(SystemExit, match="run the command again"):
        again.check({"peft": "1.4"})


def test_a_search_names_oldest_newest_and_what_fails(tmp_path, monkeypatch):
    def run(self, pins):
        release = pins.get("peft", "2.0")
        is_good = Version("0.18") <= Version(release) < Version("2.2")
        return {**REFERENCE, "passed": is_good, "message": "" if is_good else "no such name", "versions": {**REFERENCE["versions"], **pins}}

    monkeypatch.setattr(Checker, "run", run)
    versions = [Version(each) for each in ("0.16.0", "0.17.0", "0.18.0", "0.18.1", "0.19.0", "2.0", "2.1.0", "2.2.0")]
    found = search(Checker(tmp_path, 1, 10), "peft", declared_ranges()["peft"], versions)
    assert (found.oldest, found.newest, found.refused) == ("0.18.0", "2.0", "0.17.0")


def test_the_message_is_the_error_of_a_traceback():
    text = "Traceback (most recent call last):\n  File 'x'\nModuleNotFoundError: No module named 'x'\n\n[notice] A new release of pip\n"
    assert last_line(text) == "ModuleNotFoundError: No module named 'x'" and last_line("") == "no message"
    path = "ImportError: cannot import name 'A' from 'b.c' (/home/me/b/c/__init__.py)"
    assert last_line(path) == "ImportError: cannot import name 'A' from 'b.c'"


def test_an_overlay_finds_its_own_packages_before_those_of_this_environment(tmp_path):
    python = make_overlay(tmp_path / "environment")
    (packages,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    (packages / "yaml.py").write_text("where = 'overlay'\n")
    code = "import yaml, filelock; print(yaml.where, filelock.__name__)"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["overlay", "filelock"]


def test_the_bounds_of_pyproject_follow_the_table():
    results, ranges = json.loads(RESULTS.read_text(encoding="utf-8")), declared_ranges()
    for library, found in results["libraries"].items():
        specifier = ranges[library].specifier
        assert found["required"] == str(specifier) and lower_bound(ranges[library]).release[:2] == Version(found["oldest"]).release[:2], (
            library
        )
        assert specifier.contains(found["newest"]) and not specifier.contains(found["refused"] or "0"), library
    assert all(row["passed"] for row in results["rows"].values() if len(row["pins"]) > 1)
    assert "\n".join(table_rows(results)) in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("library", FLOORS)
def test_the_oldest_and_newest_allowed_releases_still_pass(library, tmp_path):
    """Weekly: a new release appears without a change here. Torch needs a download of several GB."""
    try:
        versions = released_versions(library)
    except (subprocess.CalledProcessError, StopIteration):
        pytest.skip("no package registry is reached")
    requirement, checker = declared_ranges()[library], Checker(tmp_path, 30, 3)
    allowed = [str(each) for each in versions if requirement.specifier.contains(str(each))]
    for release in (first_of_each_minor(versions, lower_bound(requirement))[0], allowed[-1]):
        row = checker.check({library: release})
        assert row["passed"], f"{library} {release}: {row['message']}"


def test_the_scripts_search_the_libraries_that_pyproject_names():
    assert set(compatibility.declared_ranges()) == set(FLOORS)
