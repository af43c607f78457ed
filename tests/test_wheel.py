"""Test that included experiments and studies are found from any folder, in a checkout and in an installed wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from fedrift import load_config
from fedrift.config.loader.yaml_text import find_ready, list_ready, ready_folder
from fedrift.core.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def test_a_name_finds_an_included_file_and_a_local_file_has_priority(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "demo" in list_ready("experiments") and "small" in list_ready("studies")
    assert (
        find_ready(Path("demo"), "experiments") == find_ready(Path("demo.yaml"), "experiments") == ready_folder("experiments") / "demo.yaml"
    )
    assert load_config("demo", ["seed=3"]).seed == 3
    (tmp_path / "demo").mkdir()  # a folder is not an experiment
    assert find_ready(Path("demo"), "experiments").is_file()
    (tmp_path / "demo.yaml").write_text("dataset: bbc\nseed: 5\n")
    assert load_config("demo.yaml").seed == 5
    assert find_ready(Path("x/demo"), "experiments") == Path("x/demo")


def test_an_unknown_name_is_refused_with_the_included_ones():
    from fedrift.cli.options import find_experiment_file

    with pytest.raises(UserError, match="did you mean 'demo'"):
        find_experiment_file(Path("dmo"))
    assert find_experiment_file(Path("none.yaml")) == Path("none.yaml")  # reading it reports that it does not exist


@pytest.mark.slow
def test_an_installed_wheel_finds_the_included_files(tmp_path):
    environment = {**{k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, "HF_HUB_OFFLINE": "1"}

    def call(*command: object, folder: Path = tmp_path) -> str:
        done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation" if has_hatchling() else "-q", "-w", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("fedrift-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "-q", "--no-deps", wheel)
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # the libraries of this environment, after those of the wheel
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert str(site) in call(python, "-c", "import fedrift; print(fedrift.__file__)", folder=elsewhere)
    fedrift = tmp_path / "venv" / "bin" / "fedrift"
    assert "severity: 1.0" in call(fedrift, "validate", "demo", folder=elsewhere)
    listed = call(fedrift, "study", "small", "--dry-run", "--no-measure", folder=elsewhere)
    assert "runs, 0 of them finished" in listed
    out = call(fedrift, "run", "demo", "training.num_rounds=1", "training.local_steps=1", "--device", "cpu", folder=elsewhere)
    assert "finished" in out and (elsewhere / "runs").is_dir()
    call(fedrift, "doctor", folder=elsewhere)


def has_hatchling() -> bool:
    """Return whether the build backend is installed, so that the wheel can be built without a download."""
    try:
        import hatchling  # noqa: F401
    except ImportError:
        return False
    return True
