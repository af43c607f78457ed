"""The page on replays: every command of it is one that a recorded run accepts."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

from fedrift.recording import Parting
from fedrift.replay import forked
from fedrift.run import carry_out
from fedrift.store import Run
from tests.worlds import experiment, stock

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "replay.md").read_text(encoding="utf-8")


def test_every_command_of_the_page_is_accepted(tmp_path):
    there = stock(tmp_path)
    there = replace(there, runtime=replace(there.runtime, keep_updates=True))
    small = "plan.rounds=9", "partition.clients=5", "evaluate.panel=[]", "evaluate.final=0"
    origin = carry_out(experiment(tmp_path, *small), there)
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^fedrift replay .*", PAGE, re.MULTILINE)]
    assert len(commands) == 8
    for _, _, _, flag, round, *words in commands:
        assert flag == "--from-round"
        asked = forked(origin, int(round), words)
        parting = Parting.of(Run(origin.root, asked.id), asked)
        assert (parting.said == "with nothing changed") == (not words)
        assert parting.reuses == (not any(word.startswith("plan.") for word in words))
