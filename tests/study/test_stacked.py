"""Runs whose training steps are made in one pass are the runs that they are alone, up to rounding."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from fedrift.fleet.simulated import value_and_gradient
from fedrift.models import gathered
from fedrift.models.gathered import Gathered, Meeting
from fedrift.models.stacked import StackedModel
from fedrift.models.tune import Full, LastK, Lora
from fedrift.run import carry_out
from fedrift.setting import resolve
from fedrift.stock import Stock
from fedrift.store import Run
from fedrift.study import Book, table
from fedrift.study.conduct import conduct
from fedrift.study.executors import Stacked
from tests.models.networks import batch, network
from tests.study.small import study
from tests.worlds import experiment, stock


@pytest.fixture
def meetings(monkeypatch):
    """The meetings that are held, to see what passes they made."""
    held, begin = [], Meeting.__init__

    def noted(self, *said):
        begin(self, *said)
        held.append(self)

    monkeypatch.setattr(Meeting, "__init__", noted)
    return held


def elsewhere(folder, name: str) -> Stock:
    return Stock(replace(stock(folder, micro=2).runtime, root=folder / name))


def assert_same(one: Run, other: Run, close: float = 2e-4) -> None:
    """Every record is there in both, and equal up to rounding."""
    ours, theirs = one.records(), other.records()
    assert [row[:4] for row in ours] == [row[:4] for row in theirs]
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.value == pytest.approx(yours.value, rel=close, abs=close, nan_ok=True), mine


VARIED = {
    "plain": (),
    "another seed": ("seed=3",),
    "scaffold": ("algorithm.is=Scaffold", "plan.weighting=uniform"),
    "twin": ("partition.severity=0",),
    "ragged": ("plan.epochs=0.3",),
    "longer, in other batches": ("plan.rounds=3", "plan.steps=3", "plan.batch=3"),
    "representations": ("algorithm.is=MOON",),
    "personal": ("algorithm.is=Ditto",),
    "merged under the adapters": ("algorithm.aggregate.is=FedEx",),
}


def asked(folder, names=tuple(VARIED)):
    return [experiment(folder, "plan.rounds=2", "evaluate.blocks=2", "evaluate.final=2", "plan.optimizer.lr=0.2",
                       *VARIED[name]) for name in names]


def together(every, there: Stock, **said) -> Book:
    book = Book(there.runtime.root, "study")
    Stacked(**said)(every, there, book, lambda run, round: None)
    return book


def test_runs_of_all_kinds_at_one_meeting_are_those_they_are_alone(tmp_path, meetings):
    every = [resolve(each, stock(tmp_path)) for each in asked(tmp_path)]
    book, alone = together(every, elsewhere(tmp_path, "together"), runs=len(every)), elsewhere(tmp_path, "alone")
    for each in every:
        assert not book.failure(each.id), book.failure(each.id)
        assert_same(book.run(each.id), carry_out(each, alone))
        assert book.run(each.id).environment["passes"] == "shared with other runs"
    assert max(meetings[0].passes) >= 10  # clients, of at least five runs: they were together


@pytest.mark.parametrize("tune", [Lora(rank=2, targets=("all",)), LastK(), Full()], ids=lambda tune: type(tune).__name__)
def test_a_meeting_gives_every_run_its_own_loss_and_gradient(tune):
    plain = StackedModel(network("llama"), tune)
    draw = torch.Generator().manual_seed(1)
    params, data, got = [], [], {}
    for clients in (2, 3, 1):
        rows = plain.template().rows(torch.zeros(clients, dtype=torch.long))
        params.append(rows.map(lambda leaf: leaf + 0.1 * torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)))
        data.append(batch(clients, seed=clients))
    frozen = frozenset({next(iter(params[0]))})  # FFA and its like train a part of the leaves
    meeting = Meeting(3, clients=5)

    def run(number: int) -> None:
        with meeting.seat():
            rows = torch.arange(len(data[number]["tokens"]))
            got[number] = value_and_gradient(Gathered(plain, meeting), params[number], data[number], rows, frozen)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(meeting.passes) in ([1, 5], [2, 4], [3, 3])  # no pass of more than five clients
    for number in range(3):
        loss, grad = value_and_gradient(plain, params[number], data[number], torch.arange(len(data[number]["tokens"])), frozen)
        assert torch.allclose(got[number][0], loss, rtol=1e-10)
        assert all(torch.allclose(got[number][1][name], leaf, rtol=1e-8, atol=1e-12) for name, leaf in grad.items())


def test_an_error_in_a_shared_pass_is_its_own_runs_only(tmp_path, monkeypatch):
    every = [resolve(each, stock(tmp_path)) for each in asked(tmp_path, ("plain", "another seed", "twin"))]
    real, seen = gathered.answer, []

    def narrow(alike):
        seen.append(len(alike))
        if len(alike) > 1 or len(seen) == 2:  # no room for two, nor for the first that is then alone
            raise MemoryError("no room")
        real(alike)

    monkeypatch.setattr(gathered, "answer", narrow)
    book = together(every, elsewhere(tmp_path, "together"))
    failed = [book.failure(each.id) for each in every if book.failure(each.id)]
    assert failed == ["MemoryError: no room"]
    assert sum(book.run(each.id).finished for each in every) == 2


@pytest.fixture
def interruptible():
    """Ctrl-C is heard even where the tests run in the background, for which a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_study_interrupted_while_runs_wait_for_each_other_goes_on_to_the_same_table(tmp_path, meetings, interruptible):
    wanted, there, told = study(tmp_path, seeds=1), elsewhere(tmp_path, "together"), []

    def begin(what, experiments):
        def tell(run, round):
            told.append(run)
            if len(told) == 3:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                while not meetings[0].stopped:  # the main thread has heard it
                    time.sleep(0.01)
        return tell

    with pytest.raises(KeyboardInterrupt):
        conduct(wanted, there, Stacked(runs=3), begin)
    begun = [Run(there.runtime.root, path.parent.name) for path in there.runtime.root.glob("*/experiment.json")]
    assert begun and not any(run.finished for run in begun)
    assert not any(run.status == "running" or list(run.folder.glob("claim.*")) for run in begun)  # nothing is held
    ours = table(conduct(wanted, there, Stacked(runs=3)))
    theirs = table(conduct(wanted, elsewhere(tmp_path, "alone")))
    assert (ours.status == "finished").all()
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, atol=1e-3)
