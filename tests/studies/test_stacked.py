"""Test that runs which share forward passes equal single runs up to rounding."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.models import batched_model
from fedrift.models.batched_model import BatchCoordinator, BatchedModel
from fedrift.models.stacked_model import StackedModel
from fedrift.models.trainable import All, LastBlocks, Lora
from fedrift.simulation.simulator import value_and_gradient
from fedrift.storage import Run
from fedrift.studies import StudyManifest, build_study_table, executors
from fedrift.studies.executors import Stacked
from fedrift.studies.run import run_study
from tests.models.networks import batch, network
from tests.small_experiment import experiment, make_cache
from tests.studies.small import study


@pytest.fixture
def coordinators(monkeypatch):
    """The coordinators of shared passes, with the sizes of their passes."""
    held, begin = [], BatchCoordinator.__init__

    def noted(self, *said):
        begin(self, *said)
        held.append(self)

    monkeypatch.setattr(BatchCoordinator, "__init__", noted)
    return held


def cache_in(folder, name: str) -> ResourceCache:
    return ResourceCache(replace(make_cache(folder, clients_per_pass=2).runtime, runs_dir=folder / name))


def assert_same(one: Run, other: Run, close: float = 2e-4) -> None:
    """Check that both runs have all records, equal up to rounding."""
    ours, theirs = one.records(), other.records()
    assert [row[:4] for row in ours] == [row[:4] for row in theirs]
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.value == pytest.approx(yours.value, rel=close, abs=close, nan_ok=True), mine


CONFIGS = {
    "plain": (),
    "another seed": ("seed=3",),
    "scaffold": ("algorithm.type=Scaffold", "training.client_weighting=uniform"),
    "IID baseline": ("partition.severity=0",),
    "ragged": ("training.local_epochs=0.3",),
    "longer, in other batches": ("training.num_rounds=3", "training.local_steps=3", "training.batch_size=3"),
    "representations": ("algorithm.type=MOON",),
    "personal": ("algorithm.type=Ditto",),
    "merged under the adapters": ("algorithm.aggregator.type=FedEx",),
}


def make_configs(folder, names=tuple(CONFIGS)):
    return [
        experiment(
            folder,
            "training.num_rounds=2",
            "evaluation.blocks_per_domain=2",
            "evaluation.final_blocks_per_domain=2",
            "training.client_optimizer.lr=0.2",
            *CONFIGS[name],
        )
        for name in names
    ]


def run_together(every, there: ResourceCache, **said) -> StudyManifest:
    manifest = StudyManifest(there.runtime.runs_dir, "study")
    Stacked(**said)(every, there, manifest, lambda run, round: None)
    return manifest


@pytest.mark.slow
def test_different_runs_that_share_passes_equal_single_runs(tmp_path, coordinators):
    every = [resolve_fingerprints(each, make_cache(tmp_path)) for each in make_configs(tmp_path)]
    manifest, alone = run_together(every, cache_in(tmp_path, "together"), num_concurrent_runs=len(every)), cache_in(tmp_path, "alone")
    for each in every:
        assert not manifest.get_failure(each.id), manifest.get_failure(each.id)
        assert_same(manifest.get_run(each.id), run_experiment(each, alone))
        assert manifest.get_run(each.id).environment["passes"] == "shared with other runs"
    assert max(coordinators[0].pass_sizes) >= 10  # clients of at least five runs share a pass


@pytest.mark.parametrize("tune", [Lora(r=2, target_modules=("all",)), LastBlocks(), All()], ids=lambda tune: type(tune).__name__)
def test_every_run_gets_its_own_loss_and_gradient(tune):
    plain = StackedModel(network("llama"), tune)
    draw = torch.Generator().manual_seed(1)
    params, data, got = [], [], {}
    for clients in (2, 3, 1):
        rows = plain.init_params().take(torch.zeros(clients, dtype=torch.long))
        params.append(rows.map(lambda leaf: leaf + 0.1 * torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)))
        data.append(batch(clients, seed=clients))
    frozen = frozenset({next(iter(params[0]))})  # FFA-LoRA and others train some of the leaves only
    meeting = BatchCoordinator(3, max_clients=5)

    def run(number: int) -> None:
        with meeting.participant():
            rows = torch.arange(len(data[number]["tokens"]))
            got[number] = value_and_gradient(BatchedModel(plain, meeting), params[number], data[number], rows, frozen)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(meeting.pass_sizes) in ([1, 5], [2, 4], [3, 3])  # no pass has more than five clients
    for number in range(3):
        loss, grad = value_and_gradient(plain, params[number], data[number], torch.arange(len(data[number]["tokens"])), frozen)
        assert torch.allclose(got[number][0], loss, rtol=1e-10)
        assert all(torch.allclose(got[number][1][name], leaf, rtol=1e-8, atol=1e-12) for name, leaf in grad.items())


def test_an_error_in_a_shared_pass_affects_one_run_only(tmp_path, monkeypatch):
    every = [resolve_fingerprints(each, make_cache(tmp_path)) for each in make_configs(tmp_path, ("plain", "another seed", "IID baseline"))]
    real, seen = batched_model.compute_gradients, []

    def narrow(alike):
        seen.append(len(alike))
        if len(alike) > 1 or len(seen) == 2:  # memory is insufficient for two runs, and for the first run alone
            raise MemoryError("no room")
        real(alike)

    monkeypatch.setattr(batched_model, "compute_gradients", narrow)
    manifest = run_together(every, cache_in(tmp_path, "together"))
    failed = [manifest.get_failure(each.id) for each in every if manifest.get_failure(each.id)]
    assert failed == ["MemoryError: no room"]
    assert sum(manifest.get_run(each.id).is_finished for each in every) == 2


@pytest.fixture
def interruptible():
    """Enable Ctrl-C in tests that run in the background, where a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_study_waits_for_its_threads(tmp_path, coordinators, interruptible, monkeypatch):
    """An interrupted Thread.join treats a running thread as ended (CPython issue 90882), which then kept its lease."""
    ended = []

    def slow(*_):
        time.sleep(0.2)  # the main thread waits here
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        coordinators[0].condition.wait_for(lambda: coordinators[0].is_cancelled)  # as a run that waits for the others
        coordinators[0].condition.wait(0.5)  # the others continue first
        ended.append(True)
        return True

    monkeypatch.setattr(executors, "run_one", slow)
    with pytest.raises(KeyboardInterrupt):
        run_together([experiment(tmp_path)], cache_in(tmp_path, "together"), num_concurrent_runs=1)
    assert ended


def test_a_study_interrupted_during_a_shared_pass_resumes_to_the_same_table(tmp_path, coordinators, interruptible):
    expected, there, told = study(tmp_path, seeds=1), cache_in(tmp_path, "together"), []

    def begin(what, experiments):
        def tell(run, round):
            told.append(run)
            if len(told) == 3:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                while not coordinators[0].is_cancelled:  # the main thread has received the signal
                    time.sleep(0.01)

        return tell

    with pytest.raises(KeyboardInterrupt):
        run_study(expected, there, Stacked(num_concurrent_runs=3), begin)
    begun = [Run(there.runtime.runs_dir, path.parent.name) for path in there.runtime.runs_dir.glob("*/experiment.json")]
    assert begun and not any(run.is_finished for run in begun)
    assert not any(run.status == "running" or list(run.folder.glob("lease.*")) for run in begun)  # no lease remains
    ours = build_study_table(run_study(expected, there, Stacked(num_concurrent_runs=3)))
    theirs = build_study_table(run_study(expected, cache_in(tmp_path, "alone")))
    assert (ours.status == "finished").all()
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, atol=1e-3)
