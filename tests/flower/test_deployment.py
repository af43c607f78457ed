"""A real SuperLink and real SuperNodes on loopback: the same run, whoever is killed, and no process left behind."""

from __future__ import annotations

import json
import signal
import time

import pytest

from fedrift.errors import UserError
from fedrift.flower.commands import submit, superlink, supernode, write_app, write_connection
from fedrift.flower.launch import configured, deploy, simulate
from fedrift.flower.processes import Processes, free_port, processes, wait_for
from fedrift.flower.terms import Terms
from fedrift.run import carry_out
from fedrift.setting import resolve
from fedrift.store import Run
from tests.worlds import experiment, stock

TWO = ("partition.clients=2", "plan.participation=1.0", "plan.weighting=uniform", "evaluate.panel=[]", "evaluate.final=0")


def asked(folder, *overrides: str):
    return experiment(folder, "algorithm=Scaffold", *TWO, *overrides)


def assert_same_curves(one: Run, two: Run, close: float = 1e-5) -> None:
    here, there = one.trajectory(), two.trajectory()
    assert here.rounds.tolist() == there.rounds.tolist()
    for metric in ("loss", "update.consensus"):
        assert here.curve(metric) == pytest.approx(there.curve(metric), rel=close, nan_ok=True)
    assert here.table("train.loss") == pytest.approx(there.table("train.loss"), rel=close, nan_ok=True)


def test_a_deployment_on_loopback_is_the_run_on_one_machine(tmp_path):
    """Two SuperNodes, SCAFFOLD, each node dealing its own part and keeping its own memory."""
    wanted = asked(tmp_path, "plan.rounds=2")
    here = carry_out(wanted, stock(tmp_path, micro=1))
    elsewhere = stock(tmp_path / "elsewhere", threads=1)
    over = deploy(wanted, elsewhere, Terms(least=2, patience=240, join=240), tmp_path / "deployment")
    assert over.status == "finished" and over.id == here.id
    assert_same_curves(over, here)
    assert over.trajectory().has_table("wire.up") and over.environment["engine"]["fleet"] == "flower"
    assert len(list((over.folder / "clients").rglob("client-*.safetensors"))) == 2
    assert not Processes((tmp_path / "deployment").resolve()).left()
    (over.folder / "finished.json").unlink()
    with pytest.raises(UserError, match="other engine choices"):  # half of what it remembers is on its clients
        carry_out(wanted, elsewhere)


@pytest.mark.slow
def test_over_flowers_simulation_it_is_the_same_run_too(tmp_path):
    wanted = asked(tmp_path, "plan.rounds=2")
    here = carry_out(wanted, stock(tmp_path, micro=1))
    over = simulate(wanted, stock(tmp_path / "elsewhere", threads=1), Terms(least=2, patience=240, join=240))
    assert_same_curves(over, here)


@pytest.mark.slow
def test_clients_and_server_that_are_killed_in_the_middle_of_a_round(tmp_path):
    """Client 1 dies and comes back; then the server dies, is started again, and goes on: c = mean c_k all the while."""
    lent = stock(tmp_path, threads=1)
    wanted = resolve(asked(tmp_path, "plan.rounds=6"), lent)
    run, folder = Run(lent.runtime.root, wanted.id), tmp_path / "federation"
    port = free_port()
    address = f"127.0.0.1:{port}"
    with processes(folder) as made:
        app = write_app(folder / "app", wanted.written(), {
            **configured(lent.runtime, Terms(least=1, patience=90, join=240)), "keeps": str(tmp_path / "kept")})
        write_connection(folder / "flwr", address)
        assert wait_for(port, made.start("superlink", superlink("127.0.0.1", port)))
        for client in (0, 1):
            made.start(f"client-{client}", supernode(client, address, free_port()))
        made.submit(submit(app))
        until(run, 1)
        made.kill("client-1")  # whatever it is doing
        until(run, 3)
        made.start("client-1", supernode(1, address, free_port()))
        until(run, 4)
        for one in made.left():
            if "flwr-serverapp" in " ".join(one.cmdline()):
                one.send_signal(signal.SIGKILL)
        made.submit(submit(app))
        until(run, 6)
        end = time.monotonic() + 60
        while not run.finished and time.monotonic() < end:
            time.sleep(0.5)
    assert run.finished and not made.left()
    failed = [event for event in run.events() if event["kind"] == "client failed"]
    assert failed and {event["client"] for event in failed} == {1} and all(event["message"] for event in failed)
    assert run.trajectory().rounds.tolist() == list(range(7))
    from fedrift.store.tensors import load_state
    state, _ = load_state(run.state_path)
    for name in (name.removeprefix("memory/") for name in state if name.startswith("memory/")):
        assert state[f"server.shared/{name}"][0].numpy() == pytest.approx(state[f"memory/{name}"].mean(0).numpy(), abs=1e-6)


def until(run: Run, round: int, seconds: float = 600) -> None:
    """Wait for a round of a run to be stored."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = run.folder / "records.jsonl"
        if path.exists() and any(json.loads(line)[0] >= round for line in path.read_text().splitlines() if line.endswith("]")):
            return
        time.sleep(0.5)
    raise AssertionError(f"round {round} did not come; {list(run.folder.glob('*'))}")
