"""Leases: at most one worker executes a run, also across machines that share a folder.

A lease is a file ``lease.<generation>`` in the folder of a run, created exclusively; even network file systems allow this at most once. Its
age is its modification time relative to that of a file just written beside it, so the clocks of different machines need not agree. A
worker that finds the highest generation expired, or knows that its process has ended, may create the next generation; only one of several
competing workers succeeds. A former holder that resumes later finds the higher generation and stops.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

HEARTBEAT_S = 5.0  # time between two heartbeats, in seconds
EXPIRY_S = 60.0  # time without a heartbeat after which a run may be taken over, in seconds


class LeaseLost(Exception):
    """Another worker took over the run because this worker sent no heartbeat."""


@dataclass(frozen=True)
class Lease:
    """A lease that this process holds on the run in ``folder``."""

    folder: Path
    generation: int
    stop_event: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def path(self) -> Path:
        """Return the path of the lease file."""
        return self.folder / f"lease.{self.generation}"

    def ensure_held(self) -> None:
        """Raise LeaseLost if another worker has taken over the run."""
        if self.generation != max(list_generations(self.folder), default=-1):
            raise LeaseLost(f"{self.folder.name} was taken over by another worker")


def acquire_lease(folder: Path, expiry_s: float = EXPIRY_S) -> Lease | None:
    """Acquire the lease of a run, or return None if a live worker holds it.

    Args:
        folder: The folder of the run, which is created if necessary.
        expiry_s: The age in seconds after which a lease without heartbeat is expired.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generation = max(list_generations(folder), default=-1)
    if generation >= 0 and is_alive(folder / f"lease.{generation}", expiry_s):
        return None
    lease = Lease(folder, generation + 1)
    owner = json.dumps({"host": get_host_id(), "pid": os.getpid(), "started_at": psutil.Process().create_time()})
    try:
        with open(lease.path, "x") as file:
            file.write(owner)
    except FileExistsError:  # another worker acquired it first
        return None
    return lease


@contextmanager
def keep_alive(lease: Lease, heartbeat_s: float = HEARTBEAT_S) -> Iterator[Lease]:
    """Send heartbeats for a lease during the block, and release it afterwards."""
    thread = threading.Thread(target=_send_heartbeats, args=(lease, heartbeat_s), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.stop_event.set()
        thread.join()
        release_lease(lease)


def release_lease(lease: Lease) -> None:
    """Release a lease unless it was lost; older files are removed first, so that none of them becomes the latest."""
    generations = sorted(list_generations(lease.folder))
    if generations and generations[-1] == lease.generation:
        for generation in generations:
            with suppress(OSError):
                (lease.folder / f"lease.{generation}").unlink()


def list_generations(folder: Path) -> list[int]:
    """List the generations of the lease files in a folder. Each generation above the lowest one means that a worker died."""
    return [int(path.suffix[1:]) for path in folder.glob("lease.*") if path.suffix[1:].isdigit()]


def is_alive(path: Path, expiry_s: float = EXPIRY_S) -> bool:
    """Return whether the holder of a lease is alive: its process exists, if it runs on this machine, and the lease is not expired."""
    try:
        text = path.read_text()
        owner = json.loads(text) if text else {}
        if owner.get("host") == get_host_id() and not _is_process_running(owner["pid"], owner["started_at"]):
            return False
        return get_age_s(path) < expiry_s
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):  # the file is being written, or is not from fedrift
        return get_age_s(path) < expiry_s


def get_age_s(path: Path) -> float:
    """Return the time since the last heartbeat in seconds, by the clock of the file system."""
    now = path.with_name(f".now.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        with suppress(OSError):
            now.unlink()


def get_host_id() -> str:
    """Return an identifier of the machine and of the process namespace, within which a process id is unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')} {boot}"
    except OSError:  # not on Linux
        return platform.node()


def _is_process_running(pid: int, started_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started_at) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send_heartbeats(lease: Lease, heartbeat_s: float) -> None:
    while not lease.stop_event.wait(heartbeat_s):
        with suppress(OSError):
            if lease.path.exists():
                os.utime(lease.path)
