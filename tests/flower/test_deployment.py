"""Test a real SuperLink with real SuperNodes: the run equals a local one although processes are killed, and none remains."""

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

from fedrift.core.errors import UserError
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.flower.config import FlowerConfig
from fedrift.flower.launch import (
    ProcessGroup,
    check_keys,
    deploy,
    find_free_port,
    load_certificates,
    make_run_config,
    process_group,
    simulate,
    submit_command,
    superlink_command,
    supernode_command,
    wait_for_port,
    write_app,
    write_connection,
)
from fedrift.storage import Run
from fedrift.storage.checkpoint import Checkpoint
from fedrift.storage.tensors import load_tensors
from tests.small_experiment import experiment, make_cache

TWO = (
    "partition.num_clients=2",
    "training.participation_rate=1.0",
    "training.client_weighting=uniform",
    "evaluation.probes=[]",
    "evaluation.final_blocks_per_domain=0",
)


def make_config(folder, *overrides: str):
    return experiment(folder, "algorithm=Scaffold", *TWO, *overrides)


def assert_same_curves(one: Run, two: Run, close: float = 1e-5, upto: int | None = None) -> None:
    """Check that two runs have equal records up to a round."""
    here, there = one.trajectory(), two.trajectory()
    assert here.rounds.tolist() == there.rounds.tolist()
    some = slice(None if upto is None else upto + 1)
    for metric in ("loss", "update.consensus"):
        assert here.curve(metric)[some] == pytest.approx(there.curve(metric)[some], rel=close, nan_ok=True)
    assert here.client_table("train.loss")[some] == pytest.approx(there.client_table("train.loss")[some], rel=close, nan_ok=True)


@pytest.mark.slow
def test_a_deployment_equals_the_local_run_although_server_and_client_are_killed(tmp_path):
    """Run SCAFFOLD on two SuperNodes that partition the data and store their client states themselves. The server and a client are killed
    in round 2 and started again, and the run equals an uninterrupted one. Then client 1 is killed for good, and only the other client
    trains in round 3.
    """
    here = run_experiment(make_config(tmp_path, "training.num_rounds=3"), make_cache(tmp_path, clients_per_pass=1))
    lent = make_cache(tmp_path / "elsewhere", threads=1)
    wanted = resolve_fingerprints(make_config(tmp_path, "training.num_rounds=3"), lent)
    run, folder = Run(lent.runtime.runs_dir, wanted.id), (tmp_path / "federation").resolve()
    port = find_free_port()
    address = f"127.0.0.1:{port}"

    def app(**terms):
        return write_app(
            folder / "app",
            wanted.to_dict(),
            {**make_run_config(lent.runtime, FlowerConfig(join_timeout_s=240, **terms)), "state_dir": str(tmp_path / "kept")},
        )

    with process_group(folder) as made:
        write_connection(folder / "flwr", address)
        assert wait_for_port(port, made.start("superlink", superlink_command("127.0.0.1", port)))
        for client in (0, 1):
            made.start(f"client-{client}", supernode_command(client, address, find_free_port()))
        first = made.submit_run(submit_command(app(min_results=2, round_timeout_s=240)))
        wait_for_round(run, 1)
        made.kill("client-1")  # at any point of its work
        for one in made.remaining_processes():
            if "flwr-serverapp" in " ".join(one.cmdline()):
                one.send_signal(signal.SIGKILL)
        made.start("client-1", supernode_command(1, address, find_free_port()))
        took = max(row.get("train", 0.0) for row in run.timings())
        second = made.submit_run(submit_command(app(round_timeout_s=max(20.0, 3 * took))))
        assert first != second
        wait_for_round(run, 2)
        made.kill("client-1")
        wait_for_round(run, 3)
        wait_for_end(run)
    assert run.is_finished and not made.remaining_processes()
    assert run.trajectory().rounds.tolist() == [0, 1, 2, 3] and run.environment["engine"]["backend"] == "flower"
    assert_same_curves(run, here, upto=2)
    failed = [event for event in run.events() if event["kind"] == "client failed"]
    assert [(event["round"], event["client"]) for event in failed] == [(3, 1)] and failed[0]["message"]
    assert run.trajectory().has_client_table("wire.up")
    kept = list((tmp_path / "kept").rglob("client-*.safetensors"))
    assert len(kept) == 2
    for path in (*kept, run.state_path):
        load_tensors(path)  # raises if it is not safetensors
    invariant(run)
    (run.folder / "finished.json").unlink()
    with pytest.raises(UserError, match="other engine options"):  # some of its state is on its clients
        run_experiment(wanted, lent)


SIMULATED = [(), ("partition.num_clients=3", "clustering={type: UpdateClustering, num_clusters: 2}")]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SIMULATED, ids=["SCAFFOLD", "SCAFFOLD in groups"])
def test_a_run_in_the_simulation_of_flower_equals_the_local_run(overrides, tmp_path):
    wanted = make_config(tmp_path, "training.num_rounds=2", *overrides)
    here = run_experiment(wanted, make_cache(tmp_path, clients_per_pass=1))
    over = simulate(
        wanted, make_cache(tmp_path / "elsewhere", threads=1), FlowerConfig(min_results=2, round_timeout_s=240, join_timeout_s=240)
    )
    assert_same_curves(over, here)


@pytest.mark.slow
def test_with_tls_only_nodes_with_a_registered_key_join(tmp_path):
    """Use the openssl and ssh-keygen commands of the documentation for a run; a node with another key is rejected."""
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
    tls, lent = load_certificates(certificates), make_cache(tmp_path, threads=1)
    wanted, folder = make_config(tmp_path, "training.num_rounds=1"), tmp_path / "deployment"
    said = {}

    def watch(progress):
        """Start nodes with an unregistered key and without TLS during the run."""
        if said:
            return
        address = tomllib.loads((folder / "flwr" / "config.toml").read_text())["superlink"]["fedrift"]["address"]
        for name, secured in (("stranger", tls), ("plain", None)):
            with process_group(tmp_path / name) as made:
                key = str(keys / name) if secured else ""
                child = made.start(name, supernode_command(1, address, find_free_port(), secured, key=key))
                with suppress(subprocess.TimeoutExpired):
                    child.wait(60)
                said[name] = made.log_tail(name, 50)

    over = deploy(
        wanted,
        lent,
        FlowerConfig(min_results=2, round_timeout_s=240, join_timeout_s=240),
        folder,
        watch,
        tls=tls,
        keys=check_keys(keys, 2, tls),
    )
    assert over.status == "finished" and not ProcessGroup(folder.resolve()).remaining_processes()
    assert "Failed to activate SuperNode" in said["stranger"], said
    assert "Connection attempt failed" in said["plain"], said


def invariant(run: Run) -> None:
    """Check that c = mean c_k."""
    state, _, memory = Checkpoint(run).read()
    kept = memory.gather_all()
    assert kept
    for name, leaf in kept.items():
        assert state[f"server.broadcast/{name}"][0].numpy() == pytest.approx(leaf.mean(0).numpy(), abs=1e-6)


def wait_for_end(run: Run, seconds: float = 240) -> None:
    """Wait for the end of a run."""
    end = time.monotonic() + seconds
    while not run.is_finished and time.monotonic() < end:
        time.sleep(0.5)


def wait_for_round(run: Run, round: int, seconds: float = 600) -> None:
    """Wait until a round of a run is stored."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = run.folder / "records.jsonl"
        if path.exists() and any(json.loads(line)[0] >= round for line in path.read_text().splitlines() if line.endswith("]")):
            return
        time.sleep(0.5)
    raise AssertionError(f"round {round} did not come; {list(run.folder.glob('*'))}")
