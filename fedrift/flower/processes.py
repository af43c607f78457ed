"""Flower's processes on this machine: started, waited for, and every one of them gone at the end, whatever happened."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ..errors import UserError
from .commands import CONNECTION, ENVIRONMENT, Command

MARK = "FEDRIFT_FEDERATION"  # in the environment of every process that one of ours started
OVER = ("finished:completed", "finished:failed", "finished:stopped")


@dataclass(frozen=True, eq=False)
class Processes:
    """A federation's processes; ``folder`` holds Flower's own files and a log each."""

    folder: Path
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        scripts = str(Path(sys.executable).parent)  # Flower's commands are beside this Python
        return {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(self.folder / "flwr"), MARK: str(self.folder),
                "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "200000000", "RAY_USAGE_STATS_ENABLED": "0",
                "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}

    def start(self, name: str, command: Command) -> subprocess.Popen[bytes]:
        """Start a process in a group of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(command.words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self.environment,
                                     start_new_session=True)
        self.children[name] = child
        return child

    def ask(self, command: Command, seconds: float = 180) -> str:
        """Run a command to its end; what it prints."""
        found = subprocess.run(command.words, env=self.environment, capture_output=True, text=True, timeout=seconds)
        if found.returncode:
            raise UserError(f"`{command}` failed:\n{(found.stderr or found.stdout).strip()[-2000:]}")
        return found.stdout

    def submit(self, command: Command) -> int:
        """Start a run; its number."""
        said = self.ask(Command(command.where, (*command.words, "--format", "json")))
        return int(loaded(said)["run-id"])

    def status(self, run: int) -> str:
        """The status of a run. (``flwr run`` returns 0 even where the run failed.)"""
        found = loaded(self.ask(Command("server", ("flwr", "list", CONNECTION, "--run-id", str(run), "--format", "json"))))
        return str(found["runs"][0]["status"])

    def log(self, name: str, lines: int = 15) -> str:
        """The end of a process's log."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End a process and all that it started."""
        child = self.children.pop(name)
        for one in family(child.pid):
            signalled(one, how)
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
        for one in self.left():
            signalled(one, signal.SIGKILL)
        for child in self.children.values():
            child.wait(5)
        psutil.wait_procs(self.left(), timeout=5)

    def left(self) -> list[psutil.Process]:
        """What still runs of all that was started here, and by those in turn, Ray's daemons too."""
        found = []
        for one in psutil.process_iter():
            try:
                if one.pid != os.getpid() and one.environ().get(MARK) == str(self.folder):
                    found.append(one)
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """A federation's processes, for the time of a block."""
    made = Processes(folder)
    try:
        yield made
    finally:
        made.stop()


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants."""
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return []


def signalled(one: psutil.Process, how: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        one.send_signal(how)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, child: subprocess.Popen[bytes], seconds: float = 120) -> bool:
    """Whether somebody listens on a port of this machine before the time is over, or the process is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and child.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.2)
    return False


def loaded(text: str) -> Mapping[str, Any]:
    """The JSON in what a Flower command printed, whatever stands before it."""
    start = text.find("{")
    if start < 0:
        raise UserError(f"Flower said: {text.strip()[-500:]}")
    found: Mapping[str, Any] = json.JSONDecoder().raw_decode(text[start:])[0]
    return found


__all__ = ["OVER", "Processes", "free_port", "processes", "wait_for"]
