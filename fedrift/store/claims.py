"""One worker a run, also over several machines on a shared folder: claims with a heartbeat, and how a dead one passes on.

A claim is a file of the run's folder, ``claim.<generation>``, made by exclusive creation, which even network folders do
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

BEAT = 5.0  # seconds between signs of life
DEAD = 60.0  # seconds without one after which a run may be taken over


class Lost(Exception):
    """The run was taken over by another worker while this one was not heard of."""


@dataclass(frozen=True)
class Claim:
    """A held claim. ``check`` raises where another has taken over."""

    folder: Path
    generation: int
    over: threading.Event = field(default_factory=threading.Event, compare=False)

    @property
    def path(self) -> Path:
        return self.folder / f"claim.{self.generation}"

    def check(self) -> None:
        if self.generation != max(generations(self.folder), default=-1):
            raise Lost(f"{self.folder.name} was taken over by another worker")


def claim(folder: Path, dead: float = DEAD) -> Claim | None:
    """Claim a run's folder; None where somebody alive has it."""
    folder.mkdir(parents=True, exist_ok=True)
    held = max(generations(folder), default=-1)
    if held >= 0 and alive(folder / f"claim.{held}", dead):
        return None
    mine = Claim(folder, held + 1)
    said = json.dumps({"where": here(), "process": os.getpid(), "born": psutil.Process().create_time()})
    try:
        with open(mine.path, "x") as file:
            file.write(said)
    except FileExistsError:  # another was quicker
        return None
    return mine


@contextmanager
def held(mine: Claim, beat: float = BEAT) -> Iterator[Claim]:
    """Keep a claim alive while the block runs, and give it back after."""
    heart = threading.Thread(target=_beat, args=(mine, beat), daemon=True)
    heart.start()
    try:
        yield mine
    finally:
        mine.over.set()
        heart.join()
        release(mine)


def release(mine: Claim) -> None:
    """Give a claim back, unless it was lost; older ones first, so that none of them looks like the latest."""
    there = sorted(generations(mine.folder))
    if there and there[-1] == mine.generation:
        for generation in there:
            with suppress(OSError):
                (mine.folder / f"claim.{generation}").unlink()


def generations(folder: Path) -> list[int]:
    """The generations of claims there are: each above the lowest is a worker that died."""
    return [int(path.suffix[1:]) for path in folder.glob("claim.*") if path.suffix[1:].isdigit()]


def alive(path: Path, dead: float = DEAD) -> bool:
    """Whether the holder of a claim is to be counted on."""
    try:
        text = path.read_text()
        said = json.loads(text) if text else {}
        if said.get("where") == here() and not _running(said["process"], said["born"]):
            return False
        return age(path) < dead
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):  # being written, or not by fedrift
        return age(path) < dead


def age(path: Path) -> float:
    """Seconds since a sign of life, by the clock of the folder itself."""
    now = path.with_name(f".now.{platform.node()}.{os.getpid()}.{threading.get_ident()}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        with suppress(OSError):
            now.unlink()


def here() -> str:
    """The machine, and the set of processes in which a process number means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')} {boot}"
    except OSError:  # no Linux
        return platform.node()


def _running(process: int, born: float) -> bool:
    try:
        there = psutil.Process(process)
        return abs(there.create_time() - born) < 1 and there.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _beat(mine: Claim, beat: float) -> None:
    while not mine.over.wait(beat):
        with suppress(OSError):
            if mine.path.exists():
                os.utime(mine.path)
