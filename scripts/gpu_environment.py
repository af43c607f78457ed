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

REPO_ROOT = Path(__file__).resolve().parents[1]
# Of what fedrift asks for, what neither training nor measuring touches: reports, figures, hub data sets, SQL, encoders of texts.
UNNEEDED_PACKAGES = {"datasets", "altair", "vl-convert-python", "jinja2", "typst", "duckdb", "wordllama", "sacrebleu", "rouge-score"}
LARGE_PACKAGES = {"torch", "numpy", "scipy", "pandas", "pyarrow", "scikit-learn", "triton"}  # too large to bring twice: an old one is tried
PROBE_SCRIPT = """import torch, fedrift.engine.run, fedrift.studies
print("torch", torch.__version__, "CUDA", torch.version.cuda, "GPUs", torch.cuda.device_count())"""


def required_packages() -> list[Requirement]:
    """What fedrift needs to train and measure."""
    dependencies = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [need for need in map(Requirement, dependencies) if canonicalize_name(need.name) not in UNNEEDED_PACKAGES]


def find_missing(requirements: Iterable[Requirement], installed: dict[str, Distribution]) -> dict[str, tuple[Requirement, bool]]:
    """Of the needs, and of what these need in turn: what is not there (True) or there in an unfit version (False)."""
    found: dict[str, tuple[Requirement, bool]] = {}
    queue, seen = list(requirements), set[str]()
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        if name in UNNEEDED_PACKAGES or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        have = installed.get(name)
        if have is None or not need.specifier.contains(have.version, prereleases=True):
            found.setdefault(name, (need, have is None))
        if have is not None and name not in seen:
            seen.add(name)
            queue += [Requirement(text) for text in have.requires or ()]
    return found


def find_installed(target_dir: Path) -> dict[str, Distribution]:
    """The packages of this Python, and over them those beside it."""
    there = {canonicalize_name(each.name): each for each in distributions() if each.name}
    return there | {canonicalize_name(each.name): each for each in map(PathDistribution, target_dir.glob("*.dist-info"))}


def install_package(requirement: Requirement, target_dir: Path, wheels_dir: Path) -> bool:
    """One package, without its needs."""
    source = ["--no-index", "--find-links", str(wheels_dir)] if any(wheels_dir.glob("*.whl")) else []
    text = f"{requirement.name}{requirement.specifier}"
    for pins in (["-c", str(REPO_ROOT / "constraints.txt")], []):  # as tested, or else whatever fits
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--no-compile",
                "--upgrade",
                "--no-input",
                "--disable-pip-version-check",
                "--target",
                str(target_dir),
                *source,
                *pins,
                text,
            ],
            check=False,
            capture_output=True,
            text=True,
        )
        if not done.returncode:
            return True
    return False


def install_missing(target_dir: Path, wheels_dir: Path) -> list[str]:
    """Fetch until nothing is lacking; what could not be had, in words."""
    given_up: dict[str, str] = {}
    while left := {
        name: lack for name, lack in find_missing(required_packages(), find_installed(target_dir)).items() if name not in given_up
    }:
        for name, (need, absent) in sorted(left.items()):
            if not absent and name in LARGE_PACKAGES:
                given_up[name] = f"{need.name}{need.specifier} is here in another version, and tried as it is"
            elif install_package(need, target_dir, wheels_dir):
                print(f"{need.name} is in {target_dir}", flush=True)
                if name in find_missing(required_packages(), find_installed(target_dir)):
                    given_up[name] = f"{need.name}: what could be had does not fit {need.specifier}"
            else:
                rest = "" if absent else "; the one here is tried as it is"
                given_up[name] = f"{need.name}{need.specifier} could not be had{rest}"
    return list(given_up.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=REPO_ROOT / ".gpu" / "site")
    parser.add_argument("--wheels", type=Path, default=REPO_ROOT / ".gpu" / "wheels")
    args = parser.parse_args()
    args.into.mkdir(parents=True, exist_ok=True)
    for message in install_missing(args.into, args.wheels):
        print(f"note: {message}", flush=True)
    path = f"{args.into.resolve()}{os.pathsep}{REPO_ROOT}"
    return subprocess.run([sys.executable, "-c", PROBE_SCRIPT], check=False, env={**os.environ, "PYTHONPATH": path}).returncode


if __name__ == "__main__":
    sys.exit(main())
