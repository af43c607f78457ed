"""Test the laws of probes: they change nothing in a run, and a resumed run has the same values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedrift.config.schema import PROBE_GROUPS as KNOWN
from fedrift.config.schema import edit_config, parse_config
from fedrift.core.errors import UserError
from fedrift.engine.run import run_experiment
from fedrift.probes import PROBE_GROUPS
from tests.small_experiment import experiment, make_cache, read_state

ALL_GROUPS = tuple(PROBE_GROUPS)


def cache_with_runs_dir(folder, name: str):
    there = make_cache(folder)
    return replace(there, runtime=replace(there.runtime, runs_dir=folder / name), _items={})


def make_config(folder, panel, *overrides: str):
    plan = (
        "training.num_rounds=2",
        "training.client_weighting=uniform",
        "evaluation.expensive_interval=2",
        "evaluation.final_blocks_per_domain=0",
        *overrides,
    )
    return edit_config(experiment(folder, *plan), {"evaluation__probes": tuple(panel)})


def test_every_configurable_group_exists():
    assert set(KNOWN) == set(PROBE_GROUPS)


def test_an_unknown_group_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'hidden'"):
        parse_config({"dataset": "bbc", "evaluation": {"probes": ["hiden"]}})


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm=Scaffold",),
        ("algorithm=LocalOnly", "trainable={type: LastBlocks, num_blocks: 1}"),
        ("algorithm={type: FedAvg, server_optimizer: {type: Sgd, lr: 1.0, momentum: 0.9}}", "trainable=All"),
    ],
    ids=lambda overrides: overrides[0].split("=")[1],
)
def test_no_probe_changes_the_run(tmp_path, overrides):
    """The final state is equal bit for bit, and so is every value that the smallest set of probes also records."""
    least = run_experiment(make_config(tmp_path, (), *overrides), cache_with_runs_dir(tmp_path, "least"))
    most = run_experiment(make_config(tmp_path, ALL_GROUPS, *overrides), cache_with_runs_dir(tmp_path, "most"))
    one, other = (read_state(run) for run in (least, most))
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


@pytest.mark.slow
def test_a_resumed_run_records_the_same_values(tmp_path):
    unbroken = run_experiment(make_config(tmp_path, ALL_GROUPS, "algorithm=Scaffold"), cache_with_runs_dir(tmp_path, "unbroken"))
    with pytest.raises(Killed):
        run_experiment(make_config(tmp_path, ALL_GROUPS, "algorithm=Scaffold"), cache_with_runs_dir(tmp_path, "broken"), killed)
    broken = run_experiment(make_config(tmp_path, ALL_GROUPS, "algorithm=Scaffold"), cache_with_runs_dir(tmp_path, "broken"))
    assert (broken.folder / "records.jsonl").read_bytes() == (unbroken.folder / "records.jsonl").read_bytes()


def test_a_resumed_run_keeps_its_evaluation_interval(tmp_path):
    plan = edit_config(make_config(tmp_path, ("hidden",), "training.num_rounds=12"), {"evaluation__expensive_interval": None})
    run = run_experiment(plan, cache_with_runs_dir(tmp_path, "runs"))
    overhead = run.read_json("finished")["probe_overhead"]
    assert run.environment["engine"]["expensive_interval"] == overhead["expensive_interval"]
    rounds = {record.round for record in run.records() if record.metric == "hidden.cka.pretrained"}
    assert rounds - {0} == {now for now in range(1, 13) if now % overhead["expensive_interval"] == 0 or now == 12}
    assert overhead["seconds"]["hidden"] > 0
