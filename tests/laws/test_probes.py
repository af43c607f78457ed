"""The laws of probes: looking changes nothing, whoever looks; and a run that resumes has seen the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrift.errors import UserError
from fedrift.experiment import GROUPS as KNOWN
from fedrift.experiment import edit, parse
from fedrift.probes import GROUPS
from fedrift.run import carry_out
from tests.worlds import experiment, stock, stored

EVERYTHING = tuple(GROUPS)


def at(folder, name: str):
    there = stock(folder)
    return replace(there, runtime=replace(there.runtime, root=folder / name), kept={})


def asked(folder, panel, *overrides: str):
    plan = ("plan.rounds=2", "plan.weighting=uniform", "evaluate.deep=2", "evaluate.final=0", *overrides)
    return edit(experiment(folder, *plan), {"evaluate__panel": tuple(panel)})


def test_every_group_that_may_be_asked_for_is_there():
    assert set(KNOWN) == set(GROUPS)


def test_a_group_that_is_not_there_is_refused_with_the_nearest_that_is():
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        parse({"corpus": "bbc", "evaluate": {"panel": ["hiden"]}})


@pytest.mark.parametrize("overrides", [("algorithm=Scaffold",), ("algorithm=LocalOnly", "tune={is: LastK, blocks: 1}"),
                                       ("algorithm={is: FedAvg, server: {is: Sgd, lr: 1.0, momentum: 0.9}}", "tune=Full")],
                         ids=lambda overrides: overrides[0].split("=")[1])
def test_no_probe_changes_the_run(tmp_path, overrides):
    """The state at the end, bit for bit, and every number that the smallest panel has too."""
    least = carry_out(asked(tmp_path, (), *overrides), at(tmp_path, "least"))
    most = carry_out(asked(tmp_path, EVERYTHING, *overrides), at(tmp_path, "most"))
    one, other = (stored(run) for run in (least, most))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    seen = {record[:4]: repr(record.value) for record in most.records()}
    assert all(seen[record[:4]] == repr(record.value) for record in least.records())
    assert len(seen) > len(least.records())


class Killed(Exception):
    pass


def killed(progress):
    if progress.round == 1:
        raise Killed


def test_a_run_that_resumes_has_seen_the_same(tmp_path):
    unbroken = carry_out(asked(tmp_path, EVERYTHING, "algorithm=Scaffold"), at(tmp_path, "unbroken"))
    with pytest.raises(Killed):
        carry_out(asked(tmp_path, EVERYTHING, "algorithm=Scaffold"), at(tmp_path, "broken"), killed)
    broken = carry_out(asked(tmp_path, EVERYTHING, "algorithm=Scaffold"), at(tmp_path, "broken"))
    assert (broken.folder / "records.jsonl").read_bytes() == (unbroken.folder / "records.jsonl").read_bytes()


def test_a_run_keeps_the_period_that_it_began_with(tmp_path):
    plan = edit(asked(tmp_path, ("hidden",), "plan.rounds=12"), {"evaluate__deep": None})
    run = carry_out(plan, at(tmp_path, "runs"))
    panel = run.read_json("finished")["panel"]
    assert run.environment["engine"]["deep"] == panel["deep"]
    rounds = {record.round for record in run.records() if record.metric == "hidden.cka.pretrained"}
    assert rounds - {0} == {now for now in range(1, 13) if now % panel["deep"] == 0 or now == 12}
    assert panel["seconds"]["hidden"] > 0
