"""Launch a federation over Flower: its commands, its app and its processes.

The app contains no code. It names the ServerApp and ClientApp of ``fedrift.flower`` and contains the experiment, because every
machine has fedrift installed. Flower's telemetry and its installation of dependencies at run time are switched off.
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
from ..engine.cache import ResourceCache, resolve_fingerprints
from ..engine.callbacks import Progress, ProgressCallback, last_value
from ..engine.run import check_stored_run, describe_finished_run, ensure_runs_dir
from ..storage import Run
from .config import ARITHMETIC_OPTIONS, FlowerConfig, read_dtype

CONNECTION_NAME = "fedrift"  # the name of the SuperLink in Flower's configuration
CERTIFICATE_FILES = ("ca.crt", "server.pem", "server.key")
ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0"}
PYPROJECT_TEMPLATE = """\
[project]
name = "fedrift-run"
version = "1.0.0"
description = "A fedrift experiment over Flower"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.38,<2"]

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
    """The certificate of a certificate authority, and the certificate and key of the SuperLink."""

    ca_certificate: Path
    server_certificate: Path
    server_key: Path


@dataclass(frozen=True)
class Command:
    """A command line and the machine on which it runs."""

    machine: str  # "server" or "client 0"
    args: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.args)


def write_app(folder: Path, experiment: Mapping[str, Any], config: Mapping[str, str | int | float | bool]) -> Path:
    """Write the Flower app, which is the folder that ``flwr run`` expects.

    Args:
        folder: The folder to write.
        experiment: The experiment as ``ExperimentConfig.to_dict`` returns it.
        config: Further entries of the run configuration, which server and clients read.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {"experiment": json.dumps(experiment), **config}
    lines = "\n".join(f"{key} = {to_toml(value)}" for key, value in entries.items())
    (folder / "pyproject.toml").write_text(PYPROJECT_TEMPLATE.format(config=lines), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return folder


def write_connection(flwr_home: Path, address: str, tls: TlsFiles | None = None) -> Path:
    """Write Flower's configuration, which names the address of the SuperLink, to ``FLWR_HOME``."""
    flwr_home.mkdir(parents=True, exist_ok=True)
    security = f"root-certificates = {to_toml(str(tls.ca_certificate))}" if tls else "insecure = true"
    path = flwr_home / "config.toml"
    path.write_text(
        f'[superlink]\ndefault = "{CONNECTION_NAME}"\n\n[superlink.{CONNECTION_NAME}]\naddress = {to_toml(address)}\n{security}\n',
        encoding="utf-8",
    )
    return path


def to_toml(value: str | int | float | bool) -> str:
    """Write a value as TOML, whose strings allow the escapes of JSON, but no surrogate pairs and no raw DEL character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def superlink_command(
    host: str, port: int, tls: TlsFiles | None = None, *, authenticate: bool = False, simulation: bool = False
) -> Command:
    """Return the command that starts the SuperLink on the server machine.

    Args:
        host: The host name or address to listen on.
        port: The port to listen on.
        tls: The certificates; None means no encryption.
        authenticate: Whether only registered nodes may join.
        simulation: Whether the SuperLink runs Flower's simulation.
    """
    security = (
        ("--ssl-ca-certfile", str(tls.ca_certificate), "--ssl-certfile", str(tls.server_certificate), "--ssl-keyfile", str(tls.server_key))
        if tls
        else ("--insecure",)
    )
    return Command(
        "server",
        (
            "flower-superlink",
            *security,
            "--host",
            host,
            "--port",
            str(port),
            "--disable-runtime-dependency-installation",
            *(("--enable-supernode-auth",) if authenticate else ()),
            *(("--simulation",) if simulation else ()),
        ),
    )


def supernode_command(client: int, address: str, port: int, tls: TlsFiles | None = None, *, data: str = "", key: str = "") -> Command:
    """Return the command that starts the SuperNode of a client on its machine.

    Args:
        client: The number of the client.
        address: The address of the SuperLink, HOST:PORT.
        port: The port of the SuperNode on its own machine.
        tls: The certificates; None means no encryption.
        data: The folder of the client's own documents; "" if it has none.
        key: The path of the client's private key; "" if nodes are not authenticated.
    """
    node_config = {"client": str(client), **({"data": to_toml(data)} if data else {})}
    security = ("--root-certificates", str(tls.ca_certificate)) if tls else ("--insecure",)
    return Command(
        f"client {client}",
        (
            "flower-supernode",
            *security,
            "--superlink",
            address,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *(("--auth-supernode-private-key", key) if key else ()),
            "--node-config",
            " ".join(f"{k}={v}" for k, v in node_config.items()),
        ),
    )


def load_certificates(folder: Path) -> TlsFiles:
    """Return the paths of the certificates in a folder.

    Raises:
        UserError: If a file is missing.
    """
    tls = TlsFiles(*(folder.resolve() / name for name in CERTIFICATE_FILES))
    missing = [path.name for path in (tls.ca_certificate, tls.server_certificate, tls.server_key) if not path.is_file()]
    if missing:
        raise UserError(
            f"--certificates {folder} must contain {', '.join(CERTIFICATE_FILES)}; missing: {', '.join(missing)}. "
            "docs/beyond-one-machine.md shows how to create them"
        )
    return tls


def private_key_path(keys: Path | None, client: int) -> str:
    """Return the path of a client's private key, or "" if nodes are not authenticated."""
    return str(keys.resolve() / f"client-{client}") if keys else ""


def check_keys(keys: Path, clients: int, tls: TlsFiles | None) -> Path:
    """Check that a folder contains the key pairs of all clients, and return the folder.

    Raises:
        UserError: If a key is missing or TLS is not used.
    """
    if tls is None:
        raise UserError("--keys requires TLS, because Flower authenticates nodes over TLS only: add --certificates FOLDER")
    missing = [name for client in range(clients) for name in (f"client-{client}", f"client-{client}.pub") if not (keys / name).is_file()]
    if missing:
        raise UserError(
            f"--keys {keys} must contain client-0, client-0.pub ... client-{clients - 1}.pub; missing: "
            f"{', '.join(missing)}. Create a key with: ssh-keygen -t ecdsa -b 384 -N '' -f {keys}/{missing[0]}"
        )
    return keys


def register_command(public_key: str) -> Command:
    """Return the command that registers the public key of a node on the server machine."""
    return Command("server", ("flwr", "supernode", "register", public_key, CONNECTION_NAME))


def submit_command(app: Path, clients: int | None = None) -> Command:
    """Return the command that submits the app as a run.

    Args:
        app: The folder of the app.
        clients: The number of simulated nodes, each with one CPU; None if real nodes are used.
    """
    simulated = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus=1"
    return Command("server", ("flwr", "run", str(app), CONNECTION_NAME, *(("--federation-config", simulated) if clients else ())))


# Flower's processes on this machine.

ENVIRONMENT_MARK = "FEDRIFT_FEDERATION"  # an environment variable that marks every process of a group and its descendants


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """The processes of a federation on this machine."""

    folder: Path  # the folder for Flower's files and one log per process
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)  # the running processes by name

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables of the processes."""
        scripts = str(Path(sys.executable).parent)  # Flower's commands are installed next to this Python
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
        """Start a process in a new process group; its output goes to ``NAME.log``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command.args, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment, start_new_session=True
            )
        self.children[name] = child
        return child

    def run_command(self, command: Command, timeout_s: float = 180) -> str:
        """Run a command until it ends and return its output.

        Raises:
            UserError: If the command fails.
        """
        process = subprocess.run(command.args, env=self.environment, capture_output=True, text=True, timeout=timeout_s)
        if process.returncode:
            raise UserError(f"`{command}` failed:\n{(process.stderr or process.stdout).strip()[-2000:]}")
        return process.stdout

    def submit_run(self, command: Command) -> int:
        """Submit a run to Flower and return its number."""
        output = self.run_command(Command(command.machine, (*command.args, "--format", "json")))
        return int(parse_json_output(output)["run-id"])

    def run_status(self, run_id: int) -> str:
        """Return the status of a run, because ``flwr run`` returns 0 even if the run failed."""
        listing = parse_json_output(
            self.run_command(Command("server", ("flwr", "list", CONNECTION_NAME, "--run-id", str(run_id), "--format", "json")))
        )
        return str(listing["runs"][0]["status"])

    def log_tail(self, name: str, lines: int = 15) -> str:
        """Return the last lines of a process's log."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def kill(self, name: str, signal_number: signal.Signals = signal.SIGKILL) -> None:
        """Kill a process and its descendants."""
        child = self.children.pop(name)
        for process in process_tree(child.pid):
            send_signal_to(process, signal_number)
        child.wait(20)

    def stop(self) -> None:
        """Terminate all processes, and kill those that have not ended after five seconds."""
        for child in self.children.values():
            if child.poll() is None:
                child.terminate()
        for child in self.children.values():
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
        for process in self.remaining_processes():
            send_signal_to(process, signal.SIGKILL)
        for child in self.children.values():
            child.wait(5)
        psutil.wait_procs(self.remaining_processes(), timeout=5)

    def remaining_processes(self) -> list[psutil.Process]:
        """Return the running processes of this group and their descendants, including Ray's daemons."""
        remaining = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(ENVIRONMENT_MARK) == str(self.folder):
                    remaining.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return remaining


@contextmanager
def process_group(folder: Path) -> Iterator[ProcessGroup]:
    """Create a process group that is stopped at the end of a ``with`` block."""
    group = ProcessGroup(folder)
    try:
        yield group
    finally:
        group.stop()


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; the list is empty if the process has ended."""
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def send_signal_to(process: psutil.Process, signal_number: signal.Signals) -> None:
    """Send a signal to a process, if it still runs."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(signal_number)


def find_free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, child: subprocess.Popen[bytes], timeout_s: float = 120) -> bool:
    """Wait until a process listens on a port of this machine; return False if the time is over or ``child`` has ended."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and child.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.2)
    return False


def parse_json_output(text: str) -> Mapping[str, Any]:
    """Return the JSON object in the output of a Flower command, which may print other lines before it.

    Raises:
        UserError: If there is no JSON object.
    """
    start = text.find("{")
    if start < 0:
        raise UserError(f"Flower printed no JSON: {text.strip()[-500:]}")
    content: Mapping[str, Any] = json.JSONDecoder().raw_decode(text[start:])[0]
    return content


# A complete federation on this machine: Flower's simulation, or a SuperLink with one SuperNode per client on loopback.

POLL_INTERVAL_S = 1.0  # seconds between two reads of a run's records
STATUS_INTERVAL_S = 10.0  # seconds between two queries of the run's status


def simulate(
    config: ExperimentConfig, resources: ResourceCache, flower_config: FlowerConfig, on_progress: ProgressCallback = lambda progress: None
) -> Run:
    """Run an experiment over Flower's simulation, in which Ray trains one client at a time per CPU.

    Args:
        config: The experiment.
        resources: The cache of models and datasets.
        flower_config: The settings of the Flower backend.
        on_progress: Called after each round.

    Returns:
        The finished run.

    Raises:
        UserError: If Flower cannot be started or the run fails.
    """
    with tempfile.TemporaryDirectory(prefix="fedrift-flower-", ignore_cleanup_errors=True) as folder, process_group(Path(folder)) as group:
        return run_federation(config, resources, flower_config, on_progress, group)


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
    """Run an experiment over real SuperNodes on loopback.

    Args:
        config: The experiment.
        resources: The cache of models and datasets.
        flower_config: The settings of the Flower backend.
        folder: The folder for Flower's files and logs, which are kept.
        on_progress: Called after each round.
        data: Maps a client to the folder of its own documents.
        tls: The certificates; None means no encryption.
        keys: The folder of the nodes' keys, if only registered nodes may join.

    Returns:
        The finished run.

    Raises:
        UserError: If Flower cannot be started or the run fails.
    """
    with process_group(folder.resolve()) as group:
        return run_federation(config, resources, flower_config, on_progress, group, Nodes(data or {}, tls, keys))


@dataclass(frozen=True)
class Nodes:
    """What the SuperNodes of a federation need besides the experiment."""

    data: Mapping[int, str]  # maps a client to the folder of its own documents
    tls: TlsFiles | None = None  # the certificates; None means no encryption
    keys: Path | None = None  # the folder of the nodes' keys, if only registered nodes may join


def run_federation(
    config: ExperimentConfig,
    resources: ResourceCache,
    flower_config: FlowerConfig,
    on_progress: ProgressCallback,
    group: ProcessGroup,
    nodes: Nodes | None = None,
) -> Run:
    """Start the processes of a federation, submit the run and monitor it until it ends.

    Args:
        config: The experiment.
        resources: The cache of models and datasets.
        flower_config: The settings of the Flower backend.
        on_progress: Called after each round.
        group: The process group, which the caller stops.
        nodes: The SuperNodes, one per client. None uses Flower's simulation instead.

    Returns:
        The finished run. A run that was finished before is returned without running it again.

    Raises:
        UserError: If an option does not apply to Flower, Flower cannot be started or the run fails.
    """
    if resources.runtime.clients_per_pass is not None:
        raise UserError("--clients-per-pass cannot be used over Flower, where each client trains in its own process: remove the option")
    config = resolve_fingerprints(config, resources)
    run = Run(ensure_runs_dir(resources.runtime.runs_dir), config.id)
    check_stored_run(config, run, resources.runtime)
    if run.is_finished:
        resources.runtime.on_message(f"run {run.id[:6]}: {describe_finished_run(run)}; it is not computed again; --fresh repeats it")
        return run
    clients, tls = config.partition.num_clients, nodes.tls if nodes else None
    port, home = find_free_port(), group.folder / "flwr"
    address = f"127.0.0.1:{port}"
    app = write_app(
        group.folder / "app",
        config.to_dict(),
        {**make_run_config(resources.runtime, flower_config), "state_dir": str((run.folder / "clients").resolve())},
    )
    write_connection(home, address, tls)
    command = superlink_command("127.0.0.1", port, tls, authenticate=bool(nodes and nodes.keys), simulation=nodes is None)
    superlink = group.start("superlink", command)
    if not wait_for_port(port, superlink):
        raise UserError(f"Flower's SuperLink did not start:\n{group.log_tail('superlink')}")
    if nodes is not None:
        for client in range(clients):
            key = private_key_path(nodes.keys, client)
            if key:
                group.run_command(register_command(f"{key}.pub"))
            command = supernode_command(client, address, find_free_port(), tls, data=nodes.data.get(client, ""), key=key)
            group.start(f"client-{client}", command)
    number = group.submit_run(submit_command(app, clients if nodes is None else None))
    monitor_run(run, config.training.num_rounds, on_progress, group, number)
    return run


def make_run_config(runtime: Runtime, flower_config: FlowerConfig) -> dict[str, str | int | float | bool]:
    """Return the run configuration that server and clients read."""
    run_config: dict[str, str | int | float | bool] = {
        "runs_dir": str(runtime.runs_dir.resolve()),
        "cwd": os.getcwd(),
        "device": runtime.device,
        "dtype": read_dtype({"dtype": runtime.dtype}),
        **asdict(flower_config),
    }
    run_config |= {name: value for name in ARITHMETIC_OPTIONS if (value := getattr(runtime, name)) != getattr(Runtime(), name)}
    if runtime.threads:
        run_config["threads"] = runtime.threads
    if runtime.save_updates:
        run_config["save_updates"] = True
    if runtime.data_dir:
        run_config["data_dir"] = str(runtime.data_dir.resolve())
    return run_config


def monitor_run(run: Run, num_rounds: int, on_progress: ProgressCallback, group: ProcessGroup, flower_run_id: int) -> None:
    """Report the progress of a run until it ends.

    Raises:
        UserError: If the run fails; the message contains the end of Flower's log.
    """
    last_query, last_round = time.monotonic(), -1
    while not run.is_finished:
        time.sleep(POLL_INTERVAL_S)
        rows = run.records() if (run.folder / "records.jsonl").exists() else []
        round = max((row.round for row in rows), default=-1)
        if round > last_round:
            on_progress(Progress(run.id, round, num_rounds, last_value(rows, "loss")))
            last_round = round
        if time.monotonic() - last_query > STATUS_INTERVAL_S:
            status, last_query = group.run_status(flower_run_id), time.monotonic()
            if status.startswith("finished") and not run.is_finished:
                has_reason = (run.folder / "failed.json").exists()
                reason = run.read_json("failed")["message"] if has_reason else group.log_tail("superlink", 25)
                raise UserError(f"the run ended with status {status} before it was complete: {reason}")
    on_progress(Progress(run.id, num_rounds, num_rounds, last_value(run.records(), "loss")))
