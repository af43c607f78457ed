"""The page on forks: every command of it is one that a recorded run accepts."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from fedrift.diagnosis.fork import make_fork_config
from fedrift.engine.run import run_experiment
from fedrift.storage import Run
from fedrift.storage.fork import ForkedRun
from tests.worlds import experiment, make_cache

FORK_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fork.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_is_accepted(tmp_path):
    there = make_cache(tmp_path)
    there = replace(there, runtime=replace(there.runtime, save_updates=True))
    small = "training.num_rounds=9", "partition.num_clients=5", "evaluation.probes=[]", "evaluation.final_blocks_per_domain=0"
    origin = run_experiment(experiment(tmp_path, *small), there)
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^fedrift fork .*", FORK_PAGE, re.MULTILINE)]
    assert len(commands) == 8
    for _, _, _, flag, round, *words in commands:
        assert flag == "--from-round"
        asked = make_fork_config(origin, int(round), words)
        parting = ForkedRun.from_config(Run(origin.root, asked.id), asked)
        assert (parting.description == "with nothing changed") == (not words)
        assert parting.can_reuse_updates == (not any(word.startswith("training.") for word in words))
