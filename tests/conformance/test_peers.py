"""Test that the adapters of other frameworks run if those are installed, and that their correct algorithms pass."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from fedrift.conformance import judge_subject
from fedrift.conformance.subjects import load_subjects
from fedrift.core.errors import UserError

SOUND = {  # subjects: the package, and its algorithms that pass according to docs/conformance.md
    "flower:FLOWER": ("flwr", {"fedavg", "median", "trimmed_mean", "krum"}),
    "flower_apps:FLOWER_APPS": ("flwr", {"fedavg", "fedyogi", "qfedavg", "median", "trimmed_mean", "krum"}),
    "pfl:PFL": ("pfl", {"fedavg", "fedprox", "fedavgm"}),
    "fluke:FLUKE": ("fluke", {"fedavg", "fedprox"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", SOUND)
def test_the_algorithms_of_another_framework_can_be_tested(where):
    peer, sound = SOUND[where]
    pytest.importorskip(peer, reason="the framework is optional and only needed for this test")
    for subject in load_subjects(f"benchmarks.peers.{where}"):
        verdicts = judge_subject(subject)
        assert not any(verdict.message.startswith("raised") for verdict in verdicts), subject.name
        if subject.algorithm in sound:
            assert not [verdict for verdict in verdicts if verdict.holds is False]


def test_a_subject_in_the_working_directory_is_found(tmp_path, monkeypatch):
    (tmp_path / "peers_of_mine").mkdir()
    (tmp_path / "peers_of_mine" / "first.py").write_text("from fedrift.conformance import FEDRIFT_SUBJECTS\nONE = FEDRIFT_SUBJECTS[0]\n")
    monkeypatch.chdir(tmp_path)
    assert [subject.algorithm for subject in load_subjects("peers_of_mine.first:ONE")] == ["fedavg"]
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("where", SOUND)
def test_a_missing_framework_is_reported(where):
    try:
        import_module(SOUND[where][0])
    except ImportError:
        with pytest.raises(UserError, match="Install it"):
            load_subjects(f"benchmarks.peers.{where}")
