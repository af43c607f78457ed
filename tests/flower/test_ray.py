"""A Flower app over Flower's simulation on Ray keeps its trajectory bit for bit with ``Diagnosed`` around its strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_an_app_on_ray_keeps_its_trajectory_and_is_recorded(tmp_path):
    pytest.importorskip("ray", reason="needs Flower's simulation: pip install 'fedrift[flower]'")
    patience = {"RAY_raylet_start_wait_time_s": "600", "RAY_agent_register_timeout_ms": "600000"}  # for a machine that does other work
    settings = {"FLWR_HOME": str(tmp_path / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", **patience}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    command = [sys.executable, "-m", "tests.flower.ray_app", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(set(found["plain"])) == 4 and found["wrapped"] == found["plain"]
    assert found["rounds"] == [0, 1, 2, 3] and found["train_loss"] == [1.0, 2.0, 3.0, 4.0] and found["failures"] > 0
    assert {"update.norm", "update.pairwise", "adapters.error", "wire.up"} <= set(found["metrics"])
