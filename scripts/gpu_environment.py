"""What a machine with a GPU lacks, put beside what it has: its own torch stays.

    python scripts/gpu_environment.py [--into .gpu/site] [--wheels .gpu/wheels]

A machine with a GPU often has a torch built for its driver and no network. So nothing is installed over anything: the packages
that fedrift needs and this Python has not, or has too old, go into a folder that is put first on PYTHONPATH. They come from a
folder of wheels (``make gpu-wheels`` fills it where there is a network) or, without one, from the package index. Each package is
taken without its needs, and these are looked at next, until nothing is missing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PathDistribution, distributions
from pathlib import Path

try:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
except ImportError:
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    from pip._vendor.packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parents[1]
# Of what fedrift asks for, what neither training nor measuring touches: reports, figures, hub data sets, SQL, encoders of texts.
SPARED = {"datasets", "altair", "vl-convert-python", "jinja2", "typst", "duckdb", "wordllama", "sacrebleu", "rouge-score"}
KEPT = {"torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "triton"}  # too large to bring twice: an old one is tried
PROBE = """import torch, fedrift.run, fedrift.study
print("torch", torch.__version__, "CUDA", torch.version.cuda, "GPUs", torch.cuda.device_count())"""


def wanted() -> list[Requirement]:
    """What fedrift needs to train and measure."""
    said = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["dependencies"]
    return [need for need in map(Requirement, said) if canonicalize_name(need.name) not in SPARED]


def lacking(needs: Iterable[Requirement], there: dict[str, Distribution]) -> dict[str, tuple[Requirement, bool]]:
    """Of the needs, and of what these need in turn: what is not there (True) or there in an unfit version (False)."""
    found: dict[str, tuple[Requirement, bool]] = {}
    queue, seen = list(needs), set[str]()
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        if name in SPARED or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        have = there.get(name)
        if have is None or not need.specifier.contains(have.version, prereleases=True):
            found.setdefault(name, (need, have is None))
        if have is not None and name not in seen:
            seen.add(name)
            queue += [Requirement(text) for text in have.requires or ()]
    return found


def present(into: Path) -> dict[str, Distribution]:
    """The packages of this Python, and over them those beside it."""
    there = {canonicalize_name(each.name): each for each in distributions() if each.name}
    return there | {canonicalize_name(each.name): each for each in map(PathDistribution, into.glob("*.dist-info"))}


def fetch(need: Requirement, into: Path, wheels: Path) -> bool:
    """One package, without its needs."""
    source = ["--no-index", "--find-links", str(wheels)] if any(wheels.glob("*.whl")) else []
    text = f"{need.name}{need.specifier}"
    for pins in (["-c", str(HERE / "constraints.txt")], []):  # as tested, or else whatever fits
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--upgrade", "--no-input",
             "--disable-pip-version-check", "--target", str(into), *source, *pins, text],
            check=False, capture_output=True, text=True)
        if not done.returncode:
            return True
    return False


def complete(into: Path, wheels: Path) -> list[str]:
    """Fetch until nothing is lacking; what could not be had, in words."""
    given_up: dict[str, str] = {}
    while left := {name: lack for name, lack in lacking(wanted(), present(into)).items() if name not in given_up}:
        for name, (need, absent) in sorted(left.items()):
            if not absent and name in KEPT:
                given_up[name] = f"{need.name}{need.specifier} is here in another version, and tried as it is"
            elif fetch(need, into, wheels):
                print(f"{need.name} is in {into}", flush=True)
                if name in lacking(wanted(), present(into)):
                    given_up[name] = f"{need.name}: what could be had does not fit {need.specifier}"
            else:
                rest = "" if absent else "; the one here is tried as it is"
                given_up[name] = f"{need.name}{need.specifier} could not be had{rest}"
    return list(given_up.values())


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--into", type=Path, default=HERE / ".gpu" / "site")
    ask.add_argument("--wheels", type=Path, default=HERE / ".gpu" / "wheels")
    said = ask.parse_args()
    said.into.mkdir(parents=True, exist_ok=True)
    for told in complete(said.into, said.wheels):
        print(f"note: {told}", flush=True)
    path = f"{said.into.resolve()}{os.pathsep}{HERE}"
    return subprocess.run([sys.executable, "-c", PROBE], check=False, env={**os.environ, "PYTHONPATH": path}).returncode


if __name__ == "__main__":
    sys.exit(main())
