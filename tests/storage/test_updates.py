"""Test the stored updates of a run: exact, complete after resuming, and without effect on the run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from fedrift.algorithms import Ditto, FedAvg, Scaffold, aggregators
from fedrift.clustering import UpdateClustering
from fedrift.config.schema import edit_config
from fedrift.core.errors import UserError
from fedrift.core.optimizers import Adam
from fedrift.core.types import CohortUpdate
from fedrift.engine.build import build_run
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.storage.checkpoint import flatten_state, load_checkpoint
from fedrift.storage.parquet import load_arrays, save_arrays
from fedrift.storage.updates import UpdateLog
from tests.small_experiment import Killed, experiment, killed_at
from tests.test_run import assert_equal, replace_root

CPU = torch.device("cpu")
ALGORITHMS = {
    "Scaffold": {"algorithm": Scaffold()},
    "FedAdam": {"algorithm": FedAvg(server_optimizer=Adam(0.05))},
    "FedEx": {"algorithm": FedAvg(aggregator=aggregators.FedEx())},
    "Ditto": {"algorithm": Ditto()},
    "groups": {"clustering": UpdateClustering(num_clusters=2, interval=2)},
}


def recording(folder, name, **options):
    there = replace_root(folder, name)
    return replace(there, runtime=replace(there.runtime, save_updates=True, **options), _items={})


@pytest.fixture
def config(tmp_path):
    return experiment(tmp_path, "evaluation.probes=[]", "evaluation.final_blocks_per_domain=0", "training.client_weighting=uniform")


def test_arrays_are_read_back_bit_for_bit_with_types_and_order(tmp_path):
    # NaN, -0, the smallest denormal, and the number after 1
    odd = np.array([0x7FC00001, 0x80000000, 0x00000001, 0x3F800001], dtype=np.uint32).view(np.float32)
    said = {
        "z": odd.reshape(2, 2),
        "a": np.array([np.nan, 1e-320, -0.0]),
        "n": np.array([[2**40, -1]]),
        "none": np.zeros((0, 3)),
        "b": np.array([True, False]),
        "one": np.array(3.5, dtype=np.float32),
    }
    save_arrays(tmp_path / "x.parquet", said, {"notes": ["", "ünusual"], "server_seed": 2**62 + 1})
    found, meta = load_arrays(tmp_path / "x.parquet")
    assert list(found) == list(said) and meta == {"notes": ["", "ünusual"], "server_seed": 2**62 + 1}
    assert all(found[name].dtype == said[name].dtype and found[name].shape == said[name].shape for name in said)
    assert all(found[name].tobytes() == said[name].tobytes() for name in said)
    assert list(load_arrays(tmp_path / "x.parquet", "n")[0]) == ["n", "none"]
    content = (tmp_path / "x.parquet").read_bytes()
    for bit in range(5, 8 * len(content), 97):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "y.parquet").write_bytes(changed)
        with suppress(UserError):
            back, also = load_arrays(tmp_path / "y.parquet")
            assert also == meta and all(back[name].tobytes() == said[name].tobytes() for name in said)
    (tmp_path / "y.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="not a file that fedrift wrote"):
        load_arrays(tmp_path / "y.parquet")


@pytest.mark.sample(3)
@pytest.mark.parametrize("way", ALGORITHMS, ids=str)
def test_every_update_and_state_is_stored_bit_for_bit_and_the_run_is_unchanged(tmp_path, config, way, monkeypatch):
    config, seen = edit_config(config, ALGORITHMS[way]), []
    add = UpdateLog.add_round
    monkeypatch.setattr(UpdateLog, "add_round", lambda self, done: (seen.append(done), add(self, done))[1])
    run = run_experiment(config, recording(tmp_path, "kept"))
    kept = UpdateLog(run)
    assert kept.rounds == [0, 1, 2, 3, 4] and run.read_json("finished")["updates"] == {"rounds": 4, "bytes": kept.num_bytes}
    for done in seen:
        cohort, update = kept.load_update(done.after.round, CPU)
        assert torch.equal(cohort, done.cohort)
        for f in fields(CohortUpdate):
            one, two = getattr(done.update, f.name), getattr(update, f.name)
            if isinstance(one, dict):
                assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one), f.name
            else:
                assert torch.equal(one, two) and one.dtype == two.dtype if isinstance(one, torch.Tensor) else one == two, f.name
        one, two = flatten_state(done.after), flatten_state(kept.load_state(done.after.round, CPU))
        assert list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)
    monkeypatch.undo()
    assert_equal(run, run_experiment(config, replace_root(tmp_path, "plain")))


def test_the_stored_updates_of_a_killed_run_equal_those_of_an_uninterrupted_one(tmp_path, config):
    config = edit_config(config, {"algorithm": Scaffold()})
    unbroken = run_experiment(config, recording(tmp_path, "unbroken"))
    for round in (0, 1, 3):
        with pytest.raises(Killed):
            run_experiment(config, recording(tmp_path, "broken", checkpoint_interval=2), killed_at(round))
    broken = run_experiment(config, replace_root(tmp_path, "broken"))
    assert UpdateLog(broken).rounds == UpdateLog(unbroken).rounds
    for round in UpdateLog(unbroken).rounds:
        assert UpdateLog(broken).path(round).read_bytes() == UpdateLog(unbroken).path(round).read_bytes()


def test_recording_can_start_late_and_the_first_round_is_stored(tmp_path, config):
    config = edit_config(config, {"algorithm": Scaffold()})
    with pytest.raises(Killed):
        run_experiment(config, replace_root(tmp_path, "late"), killed_at(2))
    there = recording(tmp_path, "late")
    run = run_experiment(config, there)
    assert UpdateLog(run).rounds == [2, 3, 4]
    last = load_checkpoint(run, build_run(resolve_fingerprints(config, there), there).initial_state)
    one, two = flatten_state(last), flatten_state(UpdateLog(run).load_state(4, CPU))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match="begins at round 2"):
        UpdateLog(run).load_state(1, CPU)
    with pytest.raises(UserError, match=r"of round 2; it has those of rounds \[3, 4\]"):
        UpdateLog(run).load_update(2, CPU)


def test_updates_are_stored_on_request_only(tmp_path, config):
    run = run_experiment(config, replace_root(tmp_path, "plain"))
    assert not UpdateLog(run).folder.exists() and "updates" not in run.read_json("finished")
    with pytest.raises(UserError, match="no updates at all"):
        UpdateLog(run).load_state(1, CPU)
