"""Test that `fedrift compare-clustering` has a help text, lists its runs, and resumes after it was killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from fedrift.cli.app import app


def test_the_command_has_help_and_a_dry_run(comparison, cache, tmp_path):
    file, runner = tmp_path / "one.yaml", CliRunner()
    file.write_text(yaml.safe_dump(comparison.raw_config))
    assert "clustering.yaml" in runner.invoke(app, ["compare-clustering", "--help"]).output
    shared = ["--seeds", "1", "--encoder", "hashing", "--conditions", "text,random,oracle", "--runs-dir", str(tmp_path / "runs")]
    listed = runner.invoke(app, ["compare-clustering", str(file), *shared, "--dry-run"])
    assert listed.exit_code == 0 and "5 runs, 0 of them finished" in listed.output, listed.output
    said = runner.invoke(app, ["compare-clustering", str(file), *shared, "--json", "--output", str(tmp_path / "table.html")])
    assert said.exit_code == 0, said.output
    read_result = json.loads(said.stdout.strip().splitlines()[-1])
    assert [row["condition"] for row in read_result["conditions"]] == ["unclustered", "text", "random", "oracle", "iid"] and read_result[
        "seeds"
    ] == [0]
    assert "<table>" in (tmp_path / "table.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_comparison_resumes_to_the_same_table(comparison, tmp_path, workers):
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(comparison.raw_config))

    def command(root):
        return [
            sys.executable,
            "-c",
            "from fedrift.cli import main; main()",
            "compare-clustering",
            str(file),
            "--seeds",
            "2",
            "--encoder",
            "hashing",
            "--conditions",
            "text,random,oracle",
            "--workers",
            str(workers),
            "--threads",
            "1",
            "--json",
            "--runs-dir",
            str(root),
        ]

    def read_result(root):
        came = subprocess.run(command(root), capture_output=True, text=True, check=True)
        return json.loads(came.stdout.strip().splitlines()[-1])

    killed = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while killed.poll() is None and len(list((tmp_path / "killed").glob("*/finished.json"))) < 3:
        time.sleep(0.02)
    assert killed.poll() is None, "the comparison ended before the test could kill it"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 3 <= len(list((tmp_path / "killed").glob("*/finished.json"))) < 10
    again, unbroken = read_result(tmp_path / "killed"), read_result(tmp_path / "unbroken")
    assert {key: value for key, value in again.items() if key != "command"} == {
        key: value for key, value in unbroken.items() if key != "command"
    }
