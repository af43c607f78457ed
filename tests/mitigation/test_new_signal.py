"""A new signal is one file and one import line: the one of the docs, as it stands there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedrift import mitigation
from fedrift.experiment import parse
from fedrift.mitigation import Vanilla
from fedrift.mitigation.decision import Decision, Ground
from fedrift.setting import prepare, resolve

from .worlds import asked, at

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mitigation.md"


@pytest.fixture
def signal(monkeypatch):
    """The class of the docs, known to the package by one name."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "class ByLength" in block]
    names = {"dataclass": dataclass, "np": np, "Vanilla": Vanilla, "Decision": Decision, "Ground": Ground, "__name__": __name__}
    exec(code, names)
    monkeypatch.setattr(mitigation, "ByLength", names["ByLength"], raising=False)
    monkeypatch.setattr(mitigation, "__all__", [*mitigation.__all__, "ByLength"])
    return names["ByLength"]


def test_yaml_knows_it_a_run_groups_by_it_and_its_random_control_is_there(signal, world, tmp_path):
    experiment = parse({"corpus": "bbc", "mitigation": "ByLength"})
    assert experiment.mitigation == signal() and parse(experiment.written()) == experiment
    setting = prepare(resolve(asked(world, signal()), world), at(world, tmp_path))
    assert setting.state.server.models == 2 and setting.state.group.bincount().tolist() == [3, 3]
    control = parse({"corpus": "bbc", "mitigation": {"is": "AtRandom", "like": "ByLength"}}).mitigation
    ((_, decision),) = prepare(resolve(asked(world, control), world), at(world, tmp_path)).work.told
    assert sorted(np.bincount(decision.group)) == [3, 3]
