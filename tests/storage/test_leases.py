"""Test leases: one worker holds a run, one successor replaces a dead worker, and a slow worker notices that it lost its lease."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from fedrift.storage.leases import LeaseLost, acquire_lease, get_age_s, get_host_id, is_alive, keep_alive, list_generations


def make_old(path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def set_other_host(path) -> None:
    path.write_text(json.dumps({"host": "another machine", "pid": 1, "started_at": 0}))


def test_a_leased_run_is_not_available_until_it_is_released(tmp_path):
    mine = acquire_lease(tmp_path / "run")
    assert mine is not None
    with keep_alive(mine):
        assert acquire_lease(tmp_path / "run") is None
        mine.ensure_held()
    assert acquire_lease(tmp_path / "run") is not None


def test_one_of_many_workers_gets_a_lease(tmp_path):
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


def test_one_of_many_workers_takes_over_an_expired_lease_and_the_old_holder_notices(tmp_path):
    first = acquire_lease(tmp_path / "run")
    set_other_host(first.path)
    assert acquire_lease(tmp_path / "run") is None  # not yet expired, and its process cannot be checked
    make_old(first.path, 100)
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
    assert second.generation == 1  # the number of workers that died with this run
    with pytest.raises(LeaseLost):
        first.ensure_held()
    with keep_alive(first):  # the old holder continues, ends, and must not release the lease that it lost
        pass
    second.ensure_held()


def test_a_lease_of_a_dead_process_is_taken_over_immediately(tmp_path):
    code = "import sys; from pathlib import Path; from fedrift.storage.leases import acquire_lease; assert acquire_lease(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    assert list_generations(tmp_path / "run") == [0]
    assert not is_alive(tmp_path / "run" / "lease.0")
    assert acquire_lease(tmp_path / "run").generation == 1


def test_the_heartbeat_renews_a_lease(tmp_path):
    mine = acquire_lease(tmp_path / "run")
    set_other_host(mine.path)
    make_old(mine.path, 100)
    with keep_alive(mine, heartbeat_s=0.02):
        time.sleep(0.3)
        assert get_age_s(mine.path) < 50
    assert not list_generations(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".now*"))


@pytest.mark.parametrize("text", ['{"whe', "[]", "3", "null", '{"host": "HERE"}', '{"host": "HERE", "pid": "x", "started_at": []}'])
def test_a_truncated_lease_expires_by_its_age(tmp_path, text):
    (tmp_path / "lease.0").write_text(text.replace("HERE", get_host_id()))
    assert is_alive(tmp_path / "lease.0")
    make_old(tmp_path / "lease.0", 100)
    assert acquire_lease(tmp_path).generation == 1
    assert get_host_id() == get_host_id()
