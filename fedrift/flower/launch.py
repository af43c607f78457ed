"""What has to be typed where: the commands of a federation over Flower, and the folder of the app that they run.

The app is two lines that name ``fedrift.flower``, and the experiment: every machine has fedrift installed, so no code
but these two lines travels. Runtime installation of dependencies is off, and so is Flower's telemetry.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..config.runtime import Runtime
from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..engine.build import resolve_fingerprints
from ..engine.cache import ResourceCache
from ..engine.callbacks import Progress, ProgressCallback, last_value
from ..engine.run import check_stored_run, describe_finished_run, ensure_runs_dir
from ..storage import Run
from .config import ARITHMETIC_OPTIONS, FlowerConfig

CONNECTION_NAME = "fedrift"  # the name of the SuperLink in Flower's configuration
CERTIFICATE_FILES = ("ca.crt", "server.pem", "server.key")
ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0"}
PYPROJECT_TEMPLATE = """\
[project]
name = "fedrift-run"
version = "1.0.0"
description = "A fedrift experiment over Flower"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41,<2"]

[tool.flwr.app]
publisher = "fedrift"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "fedrift.flower.server:app"
clientapp = "fedrift.flower.client:app"

[tool.flwr.app.config]
{config}
"""


@dataclass(frozen=True)
class TlsFiles:
    """Files of a certificate authority and of the SuperLink's certificate."""

    ca_certificate: Path
    server_certificate: Path
    server_key: Path


@dataclass(frozen=True)
class Command:
    """A command, and who types it."""

    machine: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.args)


def write_app(folder: Path, experiment: Mapping[str, Any], config: Mapping[str, str | int | float | bool]) -> Path:
    """The folder that ``flwr run`` takes. ``experiment``: as ``ExperimentConfig.to_dict`` gives it; ``config``: what server and
    nodes read."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"experiment": json.dumps(experiment), **config}
    lines = "\n".join(f"{key} = {to_toml(value)}" for key, value in said.items())
    (folder / "pyproject.toml").write_text(PYPROJECT_TEMPLATE.format(config=lines), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return folder


def write_connection(flwr_home: Path, address: str, tls: TlsFiles | None = None) -> Path:
    """Flower's configuration in ``FLWR_HOME``: where the SuperLink is."""
    flwr_home.mkdir(parents=True, exist_ok=True)
    secured = f"root-certificates = {to_toml(str(tls.ca_certificate))}" if tls else "insecure = true"
    path = flwr_home / "config.toml"
    path.write_text(
        f'[superlink]\ndefault = "{CONNECTION_NAME}"\n\n[superlink.{CONNECTION_NAME}]\naddress = {to_toml(address)}\n{secured}\n',
        encoding="utf-8",
    )
    return path


def to_toml(value: str | int | float | bool) -> str:
    """A value as TOML, which takes the escapes of JSON but no pairs of surrogates."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def superlink_command(
    host: str, port: int, tls: TlsFiles | None = None, *, authenticate: bool = False, simulation: bool = False, database: Path | None = None
) -> Command:
    """The server machine's meeting point."""
    secured = (
        ("--ssl-ca-certfile", str(tls.ca_certificate), "--ssl-certfile", str(tls.server_certificate), "--ssl-keyfile", str(tls.server_key))
        if tls
        else ("--insecure",)
    )
    return Command(
        "server",
        (
            "flower-superlink",
            *secured,
            "--host",
            host,
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
            *(("--enable-supernode-auth",) if authenticate else ()),
            *(("--simulation",) if simulation else ()),
            *(("--database", str(database)) if database else ()),
        ),
    )


def supernode_command(
    client: int,
    address: str,
    port: int,
    tls: TlsFiles | None = None,
    *,
    data: str = "",
    state_dir: str = "",
    key: str = "",
    extra_config: Mapping[str, str] | None = None,
) -> Command:
    """A client's machine. ``data``: the folder of its documents; ``key``: its private key, where nodes are authenticated."""
    folders = {name: to_toml(value) for name, value in (("data", data), ("state_dir", state_dir)) if value}
    said = {"client": str(client), **folders, **(extra_config or {})}
    secured = ("--root-certificates", str(tls.ca_certificate)) if tls else ("--insecure",)
    return Command(
        f"client {client}",
        (
            "flower-supernode",
            *secured,
            "--superlink",
            address,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *(("--auth-supernode-private-key", key) if key else ()),
            "--node-config",
            " ".join(f"{k}={v}" for k, v in said.items()),
        ),
    )


def load_certificates(folder: Path) -> TlsFiles:
    """The certificates in a folder."""
    tls = TlsFiles(*(folder.resolve() / name for name in CERTIFICATE_FILES))
    absent = [path.name for path in (tls.ca_certificate, tls.server_certificate, tls.server_key) if not path.is_file()]
    if absent:
        raise UserError(
            f"--certificates {folder}: wanted {', '.join(CERTIFICATE_FILES)}; not there: {', '.join(absent)}. "
            "docs/beyond-one-machine.md says how to make them"
        )
    return tls


def private_key_path(keys: Path | None, client: int) -> str:
    """The path of a client's private key, "" where nodes are not authenticated."""
    return str(keys.resolve() / f"client-{client}") if keys else ""


def check_keys(keys: Path, clients: int, tls: TlsFiles | None) -> Path:
    """The folder of the nodes' keys, looked through."""
    if tls is None:
        raise UserError("--keys: Flower authenticates nodes over TLS only; add --certificates FOLDER")
    absent = [name for k in range(clients) for name in (f"client-{k}", f"client-{k}.pub") if not (keys / name).is_file()]
    if absent:
        raise UserError(
            f"--keys {keys}: wanted client-0, client-0.pub ... client-{clients - 1}.pub; not there: "
            f"{', '.join(absent)}. Make one with: ssh-keygen -t ecdsa -b 384 -N '' -f {keys}/{absent[0]}"
        )
    return keys


def register_command(public_key: str) -> Command:
    """Let a node's key in, on the server machine."""
    return Command("server", ("flwr", "supernode", "register", public_key, CONNECTION_NAME))


def submit_command(app: Path, clients: int | None = None) -> Command:
    """Start the run; ``clients``: simulated nodes, one processor each."""
    simulated = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus=1"
    return Command("server", ("flwr", "run", str(app), CONNECTION_NAME, *(("--federation-config", simulated) if clients else ())))


# Flower's processes on this machine: started, waited for, and every one of them gone at the end, whatever happened.

ENVIRONMENT_MARK = "FEDRIFT_FEDERATION"  # in the environment of every process that one of ours started
TERMINAL_STATUSES = ("finished:completed", "finished:failed", "finished:stopped")


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """A federation's processes; ``folder`` holds Flower's own files and a log each."""

    folder: Path
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)  # Flower's commands are beside this Python
        return {
            **os.environ,
            **ENVIRONMENT,
            "FLWR_HOME": str(self.folder / "flwr"),
            ENVIRONMENT_MARK: str(self.folder),
            "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "200000000",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
        }

    def start(self, name: str, command: Command) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command.args, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment, start_new_session=True
            )
        self.children[name] = child
        return child

    def run_command(self, command: Command, timeout_s: float = 180) -> str:
        """Run a command to its end; what it prints."""
        found = subprocess.run(command.args, env=self.environment, capture_output=True, text=True, timeout=timeout_s)
        if found.returncode:
            raise UserError(f"`{command}` failed:\n{(found.stderr or found.stdout).strip()[-2000:]}")
        return found.stdout

    def submit_run(self, command: Command) -> int:
        """Start a run; its number."""
        said = self.run_command(Command(command.machine, (*command.args, "--format", "json")))
        return int(parse_json_output(said)["run-id"])

    def run_status(self, run_id: int) -> str:
        """The status of a run. (``flwr run`` returns 0 even where the run failed.)"""
        found = parse_json_output(
            self.run_command(Command("server", ("flwr", "list", CONNECTION_NAME, "--run-id", str(run_id), "--format", "json")))
        )
        return str(found["runs"][0]["status"])

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The end of a process's log."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def kill(self, name: str, signal_number: signal.Signals = signal.SIGKILL) -> None:
        """End a process and all that it started."""
        child = self.children.pop(name)
        for one in process_tree(child.pid):
            send_signal_to(one, signal_number)
        child.wait(20)

    def stop(self) -> None:
        """End everything: politely, then not."""
        for child in self.children.values():
            if child.poll() is None:
                child.terminate()
        for child in self.children.values():
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
        for one in self.remaining_processes():
            send_signal_to(one, signal.SIGKILL)
        for child in self.children.values():
            child.wait(5)
        psutil.wait_procs(self.remaining_processes(), timeout=5)

    def remaining_processes(self) -> list[psutil.Process]:
        """What still runs of all that was started here, and by those in turn, Ray's daemons too."""
        found = []
        for one in psutil.process_iter():
            try:
                if one.pid != os.getpid() and one.environ().get(ENVIRONMENT_MARK) == str(self.folder):
                    found.append(one)
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found


@contextmanager
def process_group(folder: Path) -> Iterator[ProcessGroup]:
    """A federation's processes, for the time of a block."""
    made = ProcessGroup(folder)
    try:
        yield made
    finally:
        made.stop()


def process_tree(pid: int) -> list[psutil.Process]:
    """A process and its descendants."""
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def send_signal_to(process: psutil.Process, signal_number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(signal_number)


def find_free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, child: subprocess.Popen[bytes], timeout_s: float = 120) -> bool:
    """Whether somebody listens on a port of this machine before the time is over, or the process is."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and child.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.2)
    return False


def parse_json_output(text: str) -> Mapping[str, Any]:
    """The JSON in what a Flower command printed, whatever stands before it."""
    start = text.find("{")
    if start < 0:
        raise UserError(f"Flower said: {text.strip()[-500:]}")
    found: Mapping[str, Any] = json.JSONDecoder().raw_decode(text[start:])[0]
    return found


# A whole federation on this machine: Flower's simulation, or a SuperLink with a SuperNode a client on loopback.

POLL_INTERVAL_S = 1.0  # seconds between two looks at a run's records
STATUS_INTERVAL_S = 10.0  # and between two questions to Flower how it stands


def simulate(
    config: ExperimentConfig, resources: ResourceCache, flower_config: FlowerConfig, on_progress: ProgressCallback = lambda progress: None
) -> Run:
    """Carry an experiment out over Flower's simulation (Ray), one client after the other on each processor."""
    with tempfile.TemporaryDirectory(prefix="fedrift-flower-", ignore_cleanup_errors=True) as folder, process_group(Path(folder)) as made:
        return run_federation(config, resources, flower_config, on_progress, made, simulation=True)


def deploy(
    config: ExperimentConfig,
    resources: ResourceCache,
    flower_config: FlowerConfig,
    folder: Path,
    on_progress: ProgressCallback = lambda progress: None,
    data: Mapping[int, str] | None = None,
    tls: TlsFiles | None = None,
    keys: Path | None = None,
) -> Run:
    """Carry an experiment out over real SuperNodes on loopback; Flower's files and logs are left in ``folder``.

    ``keys``: the folder of the nodes' keys, where only those may join."""
    with process_group(folder.resolve()) as made:
        return run_federation(config, resources, flower_config, on_progress, made, data=data or {}, tls=tls, keys=keys)


def run_federation(
    config: ExperimentConfig,
    resources: ResourceCache,
    flower_config: FlowerConfig,
    on_progress: ProgressCallback,
    group: ProcessGroup,
    *,
    simulation: bool = False,
    data: Mapping[int, str] | None = None,
    tls: TlsFiles | None = None,
    keys: Path | None = None,
) -> Run:
    """Start everything, watch the run's records until it is over, and leave nothing behind."""
    if resources.runtime.clients_per_pass is not None:
        raise UserError("--clients-per-pass: over Flower every client trains in a process of its own, one in a pass; leave it out")
    config = resolve_fingerprints(config, resources)
    run = Run(ensure_runs_dir(resources.runtime.runs_dir), config.id)
    check_stored_run(config, run, resources.runtime)
    if run.is_finished:
        resources.runtime.on_message(f"run {run.id[:6]}: {describe_finished_run(run)}: not run again; --fresh runs it")
        return run
    clients = config.partition.num_clients
    port, home = find_free_port(), group.folder / "flwr"
    address = f"127.0.0.1:{port}"
    app = write_app(
        group.folder / "app",
        config.to_dict(),
        {**make_run_config(resources.runtime, flower_config), "state_dir": str((run.folder / "clients").resolve())},
    )
    write_connection(home, address, tls)
    link = group.start("superlink", superlink_command("127.0.0.1", port, tls, authenticate=bool(keys), simulation=simulation))
    if not wait_for_port(port, link):
        raise UserError(f"Flower's SuperLink did not start:\n{group.log_tail('superlink')}")
    if not simulation:
        for client in range(clients):
            key = private_key_path(keys, client)
            if key:
                group.run_command(register_command(f"{key}.pub"))
            group.start(
                f"client-{client}", supernode_command(client, address, find_free_port(), tls, data=(data or {}).get(client, ""), key=key)
            )
    number = group.submit_run(submit_command(app, clients if simulation else None))
    monitor_run(run, config.training.num_rounds, on_progress, group, number)
    return run


def make_run_config(runtime: Runtime, flower_config: FlowerConfig) -> dict[str, str | int | float | bool]:
    """What server and nodes read of the run's configuration."""
    said: dict[str, str | int | float | bool] = {
        "runs_dir": str(runtime.runs_dir.resolve()),
        "cwd": os.getcwd(),
        "device": runtime.device,
        "dtype": runtime.dtype,
        **asdict(flower_config),
    }
    said |= {name: value for name in ARITHMETIC_OPTIONS if (value := getattr(runtime, name)) != getattr(Runtime(), name)}
    if runtime.threads:
        said["threads"] = runtime.threads
    if runtime.save_updates:
        said["save_updates"] = True
    if runtime.data_dir:
        said["data_dir"] = str(runtime.data_dir.resolve())
    return said


def monitor_run(run: Run, num_rounds: int, on_progress: ProgressCallback, group: ProcessGroup, flower_run_id: int) -> None:
    """Tell how far the run is, until it is over; UserError with what Flower logged if it fails."""
    asked, told = time.monotonic(), -1
    while not run.is_finished:
        time.sleep(POLL_INTERVAL_S)
        rows = run.records() if (run.folder / "records.jsonl").exists() else []
        reached = max((row.round for row in rows), default=-1)
        if reached > told:
            on_progress(Progress(run.id, reached, num_rounds, last_value(rows, "loss")))
            told = reached
        if time.monotonic() - asked > STATUS_INTERVAL_S:
            status, asked = group.run_status(flower_run_id), time.monotonic()
            if status.startswith("finished") and not run.is_finished:
                known = (run.folder / "failed.json").exists()
                failed = run.read_json("failed")["message"] if known else group.log_tail("superlink", 25)
                raise UserError(f"the run ended as {status} before it was done: {failed}")
    on_progress(Progress(run.id, num_rounds, num_rounds, last_value(run.records(), "loss")))


__all__ = [
    "CONNECTION_NAME",
    "ENVIRONMENT",
    "TERMINAL_STATUSES",
    "Command",
    "ProcessGroup",
    "TlsFiles",
    "check_keys",
    "deploy",
    "find_free_port",
    "load_certificates",
    "private_key_path",
    "process_group",
    "register_command",
    "run_federation",
    "simulate",
    "submit_command",
    "superlink_command",
    "supernode_command",
    "wait_for_port",
    "write_app",
    "write_connection",
]
