"""Claims: one worker a run, the dead give way to one successor, the slow find out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from fedrift.store.claims import Lost, age, alive, claim, generations, held, here


def old(path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def elsewhere(path) -> None:
    path.write_text(json.dumps({"where": "another machine", "process": 1, "born": 0}))


def test_a_held_run_is_nobody_elses_until_it_is_given_back(tmp_path):
    mine = claim(tmp_path / "run")
    assert mine is not None
    with held(mine):
        assert claim(tmp_path / "run") is None
        mine.check()
    assert claim(tmp_path / "run") is not None


def test_of_many_that_want_a_run_one_gets_it(tmp_path):
    got, start = [], threading.Barrier(16)

    def want():
        start.wait()
        got.append(claim(tmp_path / "run"))

    threads = [threading.Thread(target=want) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each is not None for each in got) == 1


def test_of_many_that_find_a_dead_claim_one_takes_over_and_the_dead_learns_of_it(tmp_path):
    first = claim(tmp_path / "run")
    elsewhere(first.path)
    assert claim(tmp_path / "run") is None  # still fresh, and its process cannot be asked
    old(first.path, 100)
    got, start = [], threading.Barrier(8)

    def want():
        start.wait()
        got.append(claim(tmp_path / "run"))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second = next(each for each in got if each is not None)
    assert sum(each is not None for each in got) == 1
    assert second.generation == 1  # as many workers died of this run
    with pytest.raises(Lost):
        first.check()
    with held(first):  # it comes back to life, ends, and must not give away what it lost
        pass
    second.check()


def test_a_claim_whose_process_is_gone_is_taken_over_at_once(tmp_path):
    code = "import sys; from pathlib import Path; from fedrift.store.claims import claim; assert claim(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    assert generations(tmp_path / "run") == [0]
    assert not alive(tmp_path / "run" / "claim.0")
    assert claim(tmp_path / "run").generation == 1


def test_the_heart_keeps_a_claim_young(tmp_path):
    mine = claim(tmp_path / "run")
    elsewhere(mine.path)
    old(mine.path, 100)
    with held(mine, beat=0.02):
        time.sleep(0.3)
        assert age(mine.path) < 50
    assert not generations(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".now*"))


@pytest.mark.parametrize("text", [
    '{"whe', "[]", "3", "null", '{"where": "HERE"}', '{"where": "HERE", "process": "x", "born": []}'])
def test_a_claim_cut_short_while_it_was_written_is_judged_by_its_age(tmp_path, text):
    (tmp_path / "claim.0").write_text(text.replace("HERE", here()))
    assert alive(tmp_path / "claim.0")
    old(tmp_path / "claim.0", 100)
    assert claim(tmp_path).generation == 1
    assert here() == here()
