"""One worker a run, also over several machines on a shared folder: leases with a heartbeat, and how a dead one passes on.

A lease is a file of the run's folder, ``lease.<generation>``, made by exclusive creation, which even network folders do
at most once. Its age is its modification time against that of a file just written beside it, so that clocks of different
machines need not agree. Whoever finds the highest generation too old, or knows that its process is gone, may create the
next one: of many that try, one can. A holder that slept too long finds the higher generation and stops.
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

HEARTBEAT_S = 5.0  # seconds between signs of life
EXPIRY_S = 60.0  # seconds without one after which a run may be taken over


class LeaseLost(Exception):
    """The run was taken over by another worker while this one was not heard of."""


@dataclass(frozen=True)
class Lease:
    """A held lease. ``check`` raises where another has taken over."""

    folder: Path
    generation: int
    stop_event: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def path(self) -> Path:
        return self.folder / f"lease.{self.generation}"

    def ensure_held(self) -> None:
        if self.generation != max(list_generations(self.folder), default=-1):
            raise LeaseLost(f"{self.folder.name} was taken over by another worker")


def acquire_lease(folder: Path, expiry_s: float = EXPIRY_S) -> Lease | None:
    """Take a run's folder; None where somebody alive has it."""
    folder.mkdir(parents=True, exist_ok=True)
    held = max(list_generations(folder), default=-1)
    if held >= 0 and is_alive(folder / f"lease.{held}", expiry_s):
        return None
    mine = Lease(folder, held + 1)
    said = json.dumps({"host": get_host_id(), "pid": os.getpid(), "started_at": psutil.Process().create_time()})
    try:
        with open(mine.path, "x") as file:
            file.write(said)
    except FileExistsError:  # another was quicker
        return None
    return mine


@contextmanager
def keep_alive(lease: Lease, heartbeat_s: float = HEARTBEAT_S) -> Iterator[Lease]:
    """Keep a lease alive while the block runs, and give it back after."""
    heart = threading.Thread(target=_send_heartbeats, args=(lease, heartbeat_s), daemon=True)
    heart.start()
    try:
        yield lease
    finally:
        lease.stop_event.set()
        heart.join()
        release_lease(lease)


def release_lease(lease: Lease) -> None:
    """Give a lease back, unless it was lost; older ones first, so that none of them looks like the latest."""
    there = sorted(list_generations(lease.folder))
    if there and there[-1] == lease.generation:
        for generation in there:
            with suppress(OSError):
                (lease.folder / f"lease.{generation}").unlink()


def list_generations(folder: Path) -> list[int]:
    """The generations of leases there are: each above the lowest is a worker that died."""
    return [int(path.suffix[1:]) for path in folder.glob("lease.*") if path.suffix[1:].isdigit()]


def is_alive(path: Path, expiry_s: float = EXPIRY_S) -> bool:
    """Whether the holder of a lease is to be counted on."""
    try:
        text = path.read_text()
        said = json.loads(text) if text else {}
        if said.get("host") == get_host_id() and not _is_process_running(said["pid"], said["started_at"]):
            return False
        return get_age_s(path) < expiry_s
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):  # being written, or not by fedrift
        return get_age_s(path) < expiry_s


def get_age_s(path: Path) -> float:
    """Seconds since a sign of life, by the clock of the folder itself."""
    now = path.with_name(f".now.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        with suppress(OSError):
            now.unlink()


def get_host_id() -> str:
    """The machine, and the set of processes in which a process number means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')} {boot}"
    except OSError:  # no Linux
        return platform.node()


def _is_process_running(pid: int, started_at: float) -> bool:
    try:
        there = psutil.Process(pid)
        return abs(there.create_time() - started_at) < 1 and there.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send_heartbeats(lease: Lease, heartbeat_s: float) -> None:
    while not lease.stop_event.wait(heartbeat_s):
        with suppress(OSError):
            if lease.path.exists():
                os.utime(lease.path)
