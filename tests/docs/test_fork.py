"""Test docs/fork.md: a recorded run accepts every command of the page."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from fedrift.engine.fork import ForkedRun
from fedrift.engine.run import run_experiment
from fedrift.storage import Run
from fedrift.studies.fork_report import make_fork_config
from tests.small_experiment import experiment, make_cache

FORK_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fork.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_is_accepted(tmp_path):
    resources = make_cache(tmp_path)
    resources = replace(resources, runtime=replace(resources.runtime, save_updates=True))
    overrides = "training.num_rounds=9", "partition.num_clients=5", "evaluation.probes=[]", "evaluation.final_blocks_per_domain=0"
    origin = run_experiment(experiment(tmp_path, *overrides), resources)
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^fedrift fork .*", FORK_PAGE, re.MULTILINE)]
    assert len(commands) == 9
    for _, _, _, option, round, *changes in commands:
        assert option == "--from-round"
        config = make_fork_config(origin, int(round), changes)
        forked_run = ForkedRun.from_config(Run(origin.root, config.id), config)
        assert (forked_run.description == "with nothing changed") == (not changes)
        assert forked_run.can_reuse_updates == (not any(change.startswith("training.") for change in changes))
