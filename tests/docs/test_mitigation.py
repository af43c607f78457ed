"""The page on mitigation: every snippet is an experiment, no signal is missing, and the new signal of the page works."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedrift import mitigation
from fedrift.algorithms import FedAvg
from fedrift.experiment import parse
from fedrift.mitigation import Vanilla
from fedrift.mitigation.decision import Decision, Ground
from fedrift.mitigation.work import Work
from fedrift.rounds import rounds
from tests.quadratics import clients, fleet_of, params

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "mitigation.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_is_an_experiment(snippet):
    said = yaml.safe_load(snippet)
    assert type(parse(said).mitigation).__name__ == said["mitigation"]["is"]


def test_every_signal_has_its_snippet():
    assert {yaml.safe_load(snippet)["mitigation"]["is"] for snippet in SNIPPETS} == set(mitigation.__all__) - {"Vanilla"}


def test_the_new_signal_of_the_page_works():
    names = {"dataclass": dataclass, "Vanilla": Vanilla, "Decision": Decision, "Ground": Ground, "np": np}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], names)
    texts = [["a long text"], ["short"], ["another long text"], ["no"]]
    fleet, algorithm = fleet_of(clients((1,) * 4, (5, -5, 4, -4))), FedAvg()
    work = Work(names["ByLength"](), Ground(4, 0, texts.__getitem__), algorithm)
    done = list(rounds(work.begin(params(0.0)), work.fleet(fleet), algorithm, until=30, cohort=2, seed=0, regroup=work.regroup,
                       draw=work.draw))
    assert done[-1].after.group.tolist() == [1, 0, 1, 0] and all(len(one.cohort) == 2 for one in done)
    assert done[-1].after.server.params["x"].flatten().sign().tolist() == [-1, 1]
