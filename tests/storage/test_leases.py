"""Claims: one worker a run, the dead give way to one successor, the slow find out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from fedrift.storage.leases import LeaseLost, acquire_lease, get_age_s, get_host_id, is_alive, keep_alive, list_generations


def old(path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def elsewhere(path) -> None:
    path.write_text(json.dumps({"host": "another machine", "pid": 1, "started_at": 0}))


def test_a_held_run_is_nobody_elses_until_it_is_given_back(tmp_path):
    mine = acquire_lease(tmp_path / "run")
    assert mine is not None
    with keep_alive(mine):
        assert acquire_lease(tmp_path / "run") is None
        mine.ensure_held()
    assert acquire_lease(tmp_path / "run") is not None


def test_of_many_that_want_a_run_one_gets_it(tmp_path):
    got, start = [], threading.Barrier(16)

    def want():
        start.wait()
        got.append(acquire_lease(tmp_path / "run"))

    threads = [threading.Thread(target=want) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each is not None for each in got) == 1


def test_of_many_that_find_a_dead_claim_one_takes_over_and_the_dead_learns_of_it(tmp_path):
    first = acquire_lease(tmp_path / "run")
    elsewhere(first.path)
    assert acquire_lease(tmp_path / "run") is None  # still fresh, and its process cannot be asked
    old(first.path, 100)
    got, start = [], threading.Barrier(8)

    def want():
        start.wait()
        got.append(acquire_lease(tmp_path / "run"))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    second = next(each for each in got if each is not None)
    assert sum(each is not None for each in got) == 1
    assert second.generation == 1  # as many workers died of this run
    with pytest.raises(LeaseLost):
        first.ensure_held()
    with keep_alive(first):  # it comes back to life, ends, and must not give away what it lost
        pass
    second.ensure_held()


def test_a_claim_whose_process_is_gone_is_taken_over_at_once(tmp_path):
    code = "import sys; from pathlib import Path; from fedrift.storage.leases import acquire_lease; assert acquire_lease(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    assert list_generations(tmp_path / "run") == [0]
    assert not is_alive(tmp_path / "run" / "lease.0")
    assert acquire_lease(tmp_path / "run").generation == 1


def test_the_heart_keeps_a_claim_young(tmp_path):
    mine = acquire_lease(tmp_path / "run")
    elsewhere(mine.path)
    old(mine.path, 100)
    with keep_alive(mine, heartbeat_s=0.02):
        time.sleep(0.3)
        assert get_age_s(mine.path) < 50
    assert not list_generations(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".now*"))


@pytest.mark.parametrize("text", ['{"whe', "[]", "3", "null", '{"host": "HERE"}', '{"host": "HERE", "pid": "x", "started_at": []}'])
def test_a_claim_cut_short_while_it_was_written_is_judged_by_its_age(tmp_path, text):
    (tmp_path / "lease.0").write_text(text.replace("HERE", get_host_id()))
    assert is_alive(tmp_path / "lease.0")
    old(tmp_path / "lease.0", 100)
    assert acquire_lease(tmp_path).generation == 1
    assert get_host_id() == get_host_id()
