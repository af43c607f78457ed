"""Runs of the small experiment with a clustering strategy."""

from __future__ import annotations

import json
from dataclasses import replace

from fedrift.config.schema import edit_config
from tests.small_experiment import experiment

SIX = ("partition.num_clients=6", "training.participation_rate=0.67", "evaluation.probes=[]", "evaluation.final_blocks_per_domain=3")


def with_runs_dir(cache, folder):
    return replace(cache, runtime=replace(cache.runtime, runs_dir=folder))


def make_config(cache, clustering, *overrides):
    return edit_config(experiment(cache.runtime.cache_dir.parent, *SIX, *overrides), {"clustering": clustering})


def outcome(run):
    return (
        (run.folder / "records.jsonl").read_bytes(),
        json.loads((run.folder / "clustering.json").read_bytes()),
        [event for event in run.events() if event["kind"] == "clustering"],
    )
