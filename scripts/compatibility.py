"""Find the oldest and newest releases of torch, transformers, peft, datasets and flwr that fedrift works with.

    python scripts/compatibility.py WORK_FOLDER [--libraries peft flwr]     # or: make compatibility

Each release gets an environment of its own: an overlay over the environment of this Python, into which pip installs that release and
the packages that it needs in another version. ``compatibility_check.py`` runs in it, and the environment is removed. The search
starts at the lower bound of pyproject.toml and looks at the first release of each minor version. Once all libraries are searched, the
oldest releases of all of them are checked together, and the newest as well.

WORK_FOLDER/record.json keeps each result, so that an interrupted search continues. The results go to
benchmarks/results/compatibility.json and into the table of docs/compatibility.md. Other releases of torch than that of the
environment need up to 8 GB of disk while they are checked.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
CHECK = Path(__file__).with_name("compatibility_check.py")
RESULTS = ROOT / "benchmarks" / "results" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
FLOORS = {"torch": "2.6", "transformers": "4.56", "peft": "0.15", "datasets": "2.20", "flwr": "1.38"}
"""The search does not go below these releases, which limits the number of environments."""
LOSS_TOLERANCE = 1e-3  # nats; releases may sum in another order
Pins = Mapping[str, str]


@dataclass(frozen=True)
class Search:
    """What a search of one library found.

    Attributes:
        oldest: The oldest release that passed; None if no first release of a minor version did.
        newest: The newest release that passed.
        refused: The newest release below the oldest that was checked and failed; None if none was checked.
    """

    oldest: str | None
    newest: str
    refused: str | None


def declared_ranges() -> dict[str, Requirement]:
    """Return the requirement of each library in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["flower"]]
    requirements = {requirement.name: requirement for requirement in map(Requirement, lines)}
    return {name: requirements[name] for name in FLOORS}


def lower_bound(requirement: Requirement) -> Version:
    """Return the version after ``>=``."""
    return next(Version(each.version) for each in requirement.specifier if each.operator == ">=")


def released_versions(library: str) -> list[Version]:
    """Return all releases that pip offers for this Python, oldest first, without pre-releases and local versions."""
    command = [sys.executable, "-m", "pip", "index", "versions", library, "--disable-pip-version-check"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if line.startswith("Available versions:"))
    versions = {Version(word.strip()) for word in line.partition(":")[2].split(",")}
    return sorted({Version(each.public) for each in versions if not each.is_prerelease})


def first_of_each_minor(versions: Sequence[Version], floor: Version) -> list[str]:
    """Return the first release of each minor version from ``floor`` on, oldest first."""
    minors = groupby((each for each in sorted(versions) if each >= floor), key=lambda each: each.release[:2])
    return [str(next(group)) for _, group in minors]


def find_oldest(candidates: Sequence[str], bound: str, passes: Callable[[str], bool]) -> tuple[str | None, str | None]:
    """Find the oldest release that passes, if all newer ones pass too.

    Args:
        candidates: Releases, oldest first.
        bound: The release to start from: the first candidate that is not older.
        passes: Checks one release.

    Returns:
        The oldest release that passes (None: none does), and the newest older one that was checked and does not.
    """
    start = next((index for index, each in enumerate(candidates) if Version(each) >= Version(bound)), len(candidates) - 1)
    good, bad = len(candidates), -1  # all from `good` on pass, all up to `bad` fail
    if passes(candidates[start]):
        good = start
        if start > 0 and not passes(candidates[start - 1]):
            return candidates[start], candidates[start - 1]
        good = max(start - 1, 0)
    else:
        bad = start
    while good - bad > 1:
        middle = (good + bad) // 2
        if passes(candidates[middle]):
            good = middle
        else:
            bad = middle
    return candidates[good] if good < len(candidates) else None, candidates[bad] if bad >= 0 else None


class Checker:
    """Check releases in environments of their own, and keep each result."""

    def __init__(self, folder: Path, minutes: float, max_environments: int) -> None:
        self.folder, self.minutes, self.environments_left = folder, minutes, max_environments
        self.path = folder / "record.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}

    def check(self, pins: Pins) -> dict[str, Any]:
        """Return the result of the check with these releases; it runs only if there is none yet."""
        here = {} if not pins else self.check({})["versions"]
        pins = {library: release for library, release in pins.items() if release != Version(here[library]).public}
        name = " ".join(f"{library}=={release}" for library, release in pins.items())
        if name not in self.rows:
            if self.environments_left <= 0:
                raise SystemExit("the number of environments is used up: run the command again to continue")
            self.environments_left -= 1
            print(f"{name or 'reference'}: ", end="", flush=True)
            row = self.run(pins)
            if name and row["passed"]:
                row |= self.compare_losses(row["losses"])
            self.rows[name] = {"pins": dict(pins), **row}
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.path)
            print("passed" if row["passed"] else row["message"], flush=True)
        return self.rows[name]

    def compare_losses(self, losses: Sequence[float]) -> dict[str, Any]:
        """Compare losses with those of the reference: the environment without changes."""
        reference = self.check({})["losses"]
        difference = max(abs(one - two) for one, two in zip(losses, reference, strict=True))
        if difference <= LOSS_TOLERANCE:
            return {"loss_difference": difference}
        return {"loss_difference": difference, "passed": False, "message": f"a loss differs by {difference:.2g} nats"}

    def run(self, pins: Pins) -> dict[str, Any]:
        """Make the environment, run the check in it and remove it."""
        environment = self.folder / "environment"
        shutil.rmtree(environment, ignore_errors=True)
        try:
            return self.run_in(environment, pins)
        except subprocess.TimeoutExpired:
            return {"passed": False, "message": f"not finished after {self.minutes:g} minutes"}
        finally:
            shutil.rmtree(environment, ignore_errors=True)

    def run_in(self, environment: Path, pins: Pins) -> dict[str, Any]:
        """Install the releases into a new environment and run the check there."""
        python = make_overlay(environment)
        if pins:
            install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-compile", "--disable-pip-version-check"]
            done = self.call([*install, *(f"{library}=={release}" for library, release in pins.items())])
            if done.returncode:
                return {"passed": False, "message": f"pip: {last_line(done.stderr)}"}
        has_simulation = "flwr" in pins
        done = self.call([str(python), str(CHECK), str(environment / "work"), *(["--simulation"] if has_simulation else [])])
        if done.returncode:
            return {"passed": False, "message": last_line(done.stderr)}
        numbers = json.loads(done.stdout.splitlines()[-1])
        wrong = {
            library: release
            for library, release in pins.items()
            if Version(Version(numbers["versions"][library]).public) != Version(release)
        }
        if wrong:
            return {"passed": False, "message": f"the check ran with {numbers['versions']} instead of {wrong}"}
        return {"passed": True, "message": "", **numbers}

    def call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command within the time limit."""
        variables = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HOME": str(self.folder / "hub"),
        }
        return subprocess.run(command, capture_output=True, text=True, env=variables, cwd=self.folder, timeout=60 * self.minutes)


def make_overlay(folder: Path) -> Path:
    """Make an environment that finds its own packages first, and those of this Python's environment after them; return its Python."""
    venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "base.pth").write_text("\n".join(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])) + "\n")
    return folder / "bin" / "python"


def last_line(text: str) -> str:
    """Return the last line that says something, without paths, at most 200 characters; of a traceback that is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("[notice]")]
    errors = [line for line in lines if re.match(r"(ERROR: |[\w.]*(Error|Exception)\b)", line)]
    return re.sub(r" \(/[^)]*\)", "", (errors or lines or ["no message"])[-1])[:200]


def search(checker: Checker, library: str, requirement: Requirement, versions: Sequence[Version]) -> Search:
    """Find the oldest release of a library that passes, and the newest one."""

    def passes(release: str) -> bool:
        return bool(checker.check({library: release})["passed"])

    candidates = first_of_each_minor(versions, Version(FLOORS[library]))
    passes(str(versions[-1]))
    oldest, refused = find_oldest(candidates, str(lower_bound(requirement)), passes)
    passed = [row["versions"][library] for row in checker.rows.values() if row["passed"] and set(row["pins"]) <= {library}]
    return Search(oldest, Version(max(passed, key=Version)).public, refused)


def table_rows(results: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table in the page."""
    lines = [
        "| library | required | oldest that passes | newest that passes | newest older one that fails | its message |",
        "|---|---|---|---|---|---|",
    ]
    for library, found in results["libraries"].items():
        message = results["rows"].get(f"{library}=={found['refused']}", {}).get("message", "").replace("|", "\\|")
        cells = (library, f"`{found['required']}`", found["oldest"], found["newest"], found["refused"] or "none was tried", message)
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def write_page(results: Mapping[str, Any]) -> None:
    """Replace the table between the markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, remainder = text.partition("<!-- compatibility -->\n")
    _, _, after = remainder.partition("<!-- /compatibility -->")
    PAGE.write_text(
        before + "<!-- compatibility -->\n" + "\n".join(table_rows(results)) + "\n<!-- /compatibility -->" + after, encoding="utf-8"
    )


def main() -> None:
    """Search all libraries, check the oldest and the newest together, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder for the environments and the record")
    parser.add_argument("--libraries", nargs="+", choices=list(FLOORS), default=list(FLOORS), help="search only these")
    parser.add_argument("--minutes", type=float, default=20, help="the time limit of one step in one environment")
    parser.add_argument("--max-environments", type=int, default=25, help="stop after this number of environments")
    args = parser.parse_args()
    checker, ranges = Checker(args.folder.resolve(), args.minutes, args.max_environments), declared_ranges()
    checker.check({})
    for library in args.libraries:
        found = search(checker, library, ranges[library], released_versions(library))
        write_results(checker, {library: {"required": str(ranges[library].specifier), **vars(found)}})
    libraries = json.loads(RESULTS.read_text(encoding="utf-8"))["libraries"]
    if set(libraries) == set(FLOORS):
        for key in ("oldest", "newest"):
            checker.check({library: each[key] for library, each in libraries.items()})
        write_results(checker, {})


def write_results(checker: Checker, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Add what was found to the results file, and write the table of the page again."""
    old = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"libraries": {}, "rows": {}}
    libraries = old["libraries"] | found
    results = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "python": platform.python_version(),
        "reference": checker.rows[""],
        "libraries": {library: libraries[library] for library in FLOORS if library in libraries},
        "rows": old["rows"] | {name: row for name, row in checker.rows.items() if name},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_page(results)


if __name__ == "__main__":
    main()
