"""A real SuperLink and real SuperNodes on loopback: the same run, whoever is killed, and no process left behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from fedrift.errors import UserError
from fedrift.flower.commands import certified, keyed, submit, superlink, supernode, write_app, write_connection
from fedrift.flower.launch import configured, deploy, simulate
from fedrift.flower.processes import Processes, free_port, processes, wait_for
from fedrift.flower.terms import Terms
from fedrift.recording import Checkpoint
from fedrift.run import carry_out
from fedrift.setting import resolve
from fedrift.store import Run
from fedrift.store.tensors import load_state
from tests.worlds import experiment, stock

TWO = ("partition.clients=2", "plan.participation=1.0", "plan.weighting=uniform", "evaluate.panel=[]", "evaluate.final=0")


def asked(folder, *overrides: str):
    return experiment(folder, "algorithm=Scaffold", *TWO, *overrides)


def assert_same_curves(one: Run, two: Run, close: float = 1e-5, upto: int | None = None) -> None:
    """The same numbers, up to a round."""
    here, there = one.trajectory(), two.trajectory()
    assert here.rounds.tolist() == there.rounds.tolist()
    some = slice(None if upto is None else upto + 1)
    for metric in ("loss", "update.consensus"):
        assert here.curve(metric)[some] == pytest.approx(there.curve(metric)[some], rel=close, nan_ok=True)
    assert here.table("train.loss")[some] == pytest.approx(there.table("train.loss")[some], rel=close, nan_ok=True)


@pytest.mark.slow
def test_a_deployment_is_the_run_on_one_machine_whoever_is_killed(tmp_path):
    """Two SuperNodes, SCAFFOLD, each node dealing its own part and keeping its own memory. In the middle of round 2 the server
    and a client are killed; both are started again, and the run is the unbroken one. After it client 1 dies for good: round 3
    is the other's alone."""
    here = carry_out(asked(tmp_path, "plan.rounds=3"), stock(tmp_path, micro=1))
    lent = stock(tmp_path / "elsewhere", threads=1)
    wanted = resolve(asked(tmp_path, "plan.rounds=3"), lent)
    run, folder = Run(lent.runtime.root, wanted.id), (tmp_path / "federation").resolve()
    port = free_port()
    address = f"127.0.0.1:{port}"

    def app(**terms):
        return write_app(folder / "app", wanted.written(), {
            **configured(lent.runtime, Terms(join=240, **terms)), "keeps": str(tmp_path / "kept")})

    with processes(folder) as made:
        write_connection(folder / "flwr", address)
        assert wait_for(port, made.start("superlink", superlink("127.0.0.1", port)))
        for client in (0, 1):
            made.start(f"client-{client}", supernode(client, address, free_port()))
        first = made.submit(submit(app(least=2, patience=240)))
        until(run, 1)
        made.kill("client-1")  # whatever it is doing
        for one in made.left():
            if "flwr-serverapp" in " ".join(one.cmdline()):
                one.send_signal(signal.SIGKILL)
        made.start("client-1", supernode(1, address, free_port()))
        took = max(row.get("train", 0.0) for row in run.timings())
        second = made.submit(submit(app(patience=max(20.0, 3 * took))))
        assert first != second
        until(run, 2)
        made.kill("client-1")
        until(run, 3)
        ended(run)
    assert run.finished and not made.left()
    assert run.trajectory().rounds.tolist() == [0, 1, 2, 3] and run.environment["engine"]["fleet"] == "flower"
    assert_same_curves(run, here, upto=2)
    failed = [event for event in run.events() if event["kind"] == "client failed"]
    assert [(event["round"], event["client"]) for event in failed] == [(3, 1)] and failed[0]["message"]
    assert run.trajectory().has_table("wire.up")
    kept = list((tmp_path / "kept").rglob("client-*.safetensors"))
    assert len(kept) == 2
    for path in (*kept, run.state_path):
        load_state(path)  # safetensors, or it is refused
    invariant(run)
    (run.folder / "finished.json").unlink()
    with pytest.raises(UserError, match="other engine choices"):  # half of what it remembers is on its clients
        carry_out(wanted, lent)


SIMULATED = [(), ("partition.clients=3", "mitigation={is: ByUpdate, clusters: 2}")]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SIMULATED, ids=["SCAFFOLD", "SCAFFOLD in groups"])
def test_over_flowers_simulation_it_is_the_same_run_too(overrides, tmp_path):
    wanted = asked(tmp_path, "plan.rounds=2", *overrides)
    here = carry_out(wanted, stock(tmp_path, micro=1))
    over = simulate(wanted, stock(tmp_path / "elsewhere", threads=1), Terms(least=2, patience=240, join=240))
    assert_same_curves(over, here)


@pytest.mark.slow
def test_under_tls_only_nodes_whose_key_was_registered_join(tmp_path):
    """The documentation's openssl and ssh-keygen lines, and the run that comes of them; a stranger's key is turned away."""
    for tool in ("openssl", "ssh-keygen"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    certificates, keys = tmp_path / "certificates", tmp_path / "keys"
    certificates.mkdir()
    keys.mkdir()
    text = (Path(__file__).parents[2] / "docs" / "beyond-one-machine.md").read_text()
    (lines,) = re.findall(r"```sh\n(openssl.*?)```", text, re.S)
    subprocess.run(["bash", "-ec", lines], cwd=certificates, check=True, capture_output=True)
    for name in ("client-0", "client-1", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", name], cwd=keys, check=True)
    tls, lent = certified(certificates), stock(tmp_path, threads=1)
    wanted, folder = asked(tmp_path, "plan.rounds=1"), tmp_path / "deployment"
    said = {}

    def watch(progress):
        """While it runs: whoever else would join, with a key that nobody registered, and without TLS."""
        if said:
            return
        address = tomllib.loads((folder / "flwr" / "config.toml").read_text())["superlink"]["fedrift"]["address"]
        for name, secured in (("stranger", tls), ("plain", None)):
            with processes(tmp_path / name) as made:
                key = str(keys / name) if secured else ""
                child = made.start(name, supernode(1, address, free_port(), secured, key=key))
                with suppress(subprocess.TimeoutExpired):
                    child.wait(60)
                said[name] = made.log(name, 50)

    over = deploy(wanted, lent, Terms(least=2, patience=240, join=240), folder, watch, tls=tls, keys=keyed(keys, 2, tls))
    assert over.status == "finished" and not Processes(folder.resolve()).left()
    assert "Failed to activate SuperNode" in said["stranger"], said
    assert "Connection attempt failed" in said["plain"], said


def invariant(run: Run) -> None:
    """c = mean c_k."""
    state, _, memory = Checkpoint(run).read()
    kept = memory.whole()
    assert kept
    for name, leaf in kept.items():
        assert state[f"server.shared/{name}"][0].numpy() == pytest.approx(leaf.mean(0).numpy(), abs=1e-6)


def ended(run: Run, seconds: float = 240) -> None:
    """Wait for the end of a run."""
    end = time.monotonic() + seconds
    while not run.finished and time.monotonic() < end:
        time.sleep(0.5)


def until(run: Run, round: int, seconds: float = 600) -> None:
    """Wait for a round of a run to be stored."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = run.folder / "records.jsonl"
        if path.exists() and any(json.loads(line)[0] >= round for line in path.read_text().splitlines() if line.endswith("]")):
            return
        time.sleep(0.5)
    raise AssertionError(f"round {round} did not come; {list(run.folder.glob('*'))}")
