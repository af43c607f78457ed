"""`fedrift mitigate`: it teaches, lists before it runs, and goes on where it was killed."""

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


def test_the_command_teaches_and_lists_before_it_runs(asked, world, tmp_path):
    file, runner = tmp_path / "one.yaml", CliRunner()
    file.write_text(yaml.safe_dump(asked.said))
    assert "mitigation.yaml" in runner.invoke(app, ["mitigate", "--help"]).output
    shared = ["--seeds", "1", "--encoder", "hashing", "--arms", "text,random,oracle", "--runs", str(tmp_path / "runs")]
    listed = runner.invoke(app, ["mitigate", str(file), *shared, "--dry-run"])
    assert listed.exit_code == 0 and "5 runs, 0 of them done" in listed.output, listed.output
    said = runner.invoke(app, ["mitigate", str(file), *shared, "--json", "--out", str(tmp_path / "table.html")])
    assert said.exit_code == 0, said.output
    told = json.loads(said.stdout.strip().splitlines()[-1])
    assert [row["arm"] for row in told["arms"]] == ["vanilla", "text", "random", "oracle", "iid"] and told["seeds"] == [0]
    assert "<table>" in (tmp_path / "table.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_it_goes_on_and_ends_with_the_unbroken_table(asked, tmp_path, workers):
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(asked.said))

    def command(root):
        return [sys.executable, "-c", "from fedrift.cli import main; main()", "mitigate", str(file), "--seeds", "2", "--encoder",
                "hashing", "--arms", "text,random,oracle", "--workers", str(workers), "--threads", "1", "--json",
                "--runs", str(root)]

    def told(root):
        came = subprocess.run(command(root), capture_output=True, text=True, check=True)
        return json.loads(came.stdout.strip().splitlines()[-1])

    killed = subprocess.Popen(command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True)
    while killed.poll() is None and len(list((tmp_path / "killed").glob("*/finished.json"))) < 3:
        time.sleep(0.02)
    assert killed.poll() is None, "it ended before it could be killed"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 3 <= len(list((tmp_path / "killed").glob("*/finished.json"))) < 10
    again, unbroken = told(tmp_path / "killed"), told(tmp_path / "unbroken")
    assert {key: value for key, value in again.items() if key != "command"} == {
        key: value for key, value in unbroken.items() if key != "command"}
