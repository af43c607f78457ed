"""Runs under a mitigation in the tests' small world."""

from __future__ import annotations

import json
from dataclasses import replace

from fedrift.experiment import edit
from tests.worlds import experiment

SIX = ("partition.clients=6", "plan.participation=0.67", "evaluate.panel=[]", "evaluate.final=3")


class Killed(Exception):
    pass


def killed_at(round: int):
    def watch(progress):
        if progress.round == round:
            raise Killed
    return watch


def at(world, folder):
    return replace(world, runtime=replace(world.runtime, root=folder))


def asked(world, mitigation, *overrides):
    return edit(experiment(world.runtime.cache.parent, *SIX, *overrides), {"mitigation": mitigation})


def outcome(run):
    return (run.folder / "records.jsonl").read_bytes(), json.loads((run.folder / "mitigation.json").read_bytes()), [
        event for event in run.events() if event["kind"] == "mitigation"]
