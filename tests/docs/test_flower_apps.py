"""Test docs/flower-apps.md: its code runs, and its numbers on overhead are those of the benchmark."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from typer.testing import CliRunner

from benchmarks.flower_llm_app import InProcessGrid
from fedrift.cli.app import app as cli
from fedrift.storage import list_runs

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "flower-apps.md").read_text(encoding="utf-8")
APP, LOOP, STRATEGY = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
A, B = "model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj.lora_B.weight"


def overhead_sentence() -> str:
    """Return the sentence of the page on the overhead."""
    found = json.loads((ROOT / "benchmarks" / "results" / "flower-overhead.json").read_text(encoding="utf-8"))
    seconds = sorted(row["cpu_recording"] for row in found["seconds_per_round"])
    assert found["same_arrays"] and found["overhead_share"] < 0.05 and found["app_overhead"] < 0.05
    milliseconds = 1000 * seconds[len(seconds) // 2]
    shares = [row["cpu_with"] / row["cpu_without"] - 1 for row in found["seconds_per_round"]]
    return (
        f"With `{found['model']}`, LoRA of {found['adapter_parameters']:,} parameters, {found['clients_per_round']} clients per round and "
        f"{found['local_steps']} local steps, recording takes {100 * found['overhead_share']:.1f} % of a round's processor time "
        f"({milliseconds:.0f} ms; `python -m benchmarks.flower_overhead --rounds {found['rounds']} --repeats {len(shares)}`). It grows "
        f"with the size of what clients send, not with their training. This is measured inside the wrapper. Whole apps with the wrapper "
        f"take {100 * found['app_overhead']:.1f} % more processor time than without it, over {len(shares)} turns on an idle "
        f"machine, in both orders. Single turns lie between {100 * min(shares):+.1f} % and {100 * max(shares):+.1f} %"
    )


def test_the_overhead_on_the_page_is_that_of_the_benchmark():
    assert " ".join(overhead_sentence().split()) in " ".join(PAGE.split())


def client_app() -> ClientApp:
    """Return a client that changes the adapters a little, each client in its own direction."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        state = message.content["arrays"].to_torch_state_dict()
        draw = torch.Generator().manual_seed(client)
        moved = {name: leaf + 0.1 * torch.randn(leaf.shape, generator=draw) for name, leaf in state.items()}
        content = {"arrays": type(message.content["arrays"])(moved), "metrics": MetricRecord({"num-examples": 5, "train_loss": 2.0})}
        return Message(RecordDict(content), reply_to=message)

    return app


def test_the_server_app_of_the_page_records_a_pair(tmp_path):
    known = {
        "initial_adapters": lambda: {A: torch.ones(2, 4), B: torch.zeros(3, 2)},
        "evaluate": lambda number, arrays: MetricRecord({"loss": 4.0 - 0.1 * number, "loss@sport": 3.0}),
    }
    exec(APP, known)
    for severity in (1.0, 0.0):
        config = {"severity": severity, "num-server-rounds": 2, "runs-dir": str(tmp_path)}
        grid: Grid = InProcessGrid(client_app(), 3)
        known["app"](grid, Context(1, 1, {}, RecordDict(), config))
    runs = list_runs(tmp_path)
    assert sorted(run.id.rsplit("-", 1)[0] for run in runs) == ["my-app-iid-seed0", "my-app-skewed-seed0"]
    assert all(run.is_finished and run.trajectory().has_curve("adapters.error") for run in runs)
    for command in re.findall(r"^fedrift ((?:list|diagnose|report).*?)(?: +#.*)?$", PAGE, re.MULTILINE):
        words = [word if word != "page" else str(tmp_path / "page") for word in command.split()]
        done = CliRunner().invoke(cli, [*words, "--runs-dir", str(tmp_path)])
        assert done.exit_code == 0, (command, done.output, done.exception)


def test_the_loop_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = {
        "clients": [0, 1, 2],
        "server": {"w": torch.zeros(3)},
        "train": lambda server, client: ({"w": server["w"] + client}, 1.0, 10),
        "average": lambda updates: {"w": sum(params["w"] for params, _, _ in updates.values()) / len(updates)},
        "evaluate": lambda server: 3.0,
    }
    exec(LOOP, known)
    assert known["recorder"].run.is_finished and known["recorder"].run.trajectory().rounds.tolist() == [1, 2, 3]


def test_the_strategy_of_the_page_gets_the_stated_verdict(tmp_path, monkeypatch):
    (tmp_path / "my_flower_app").mkdir()
    (tmp_path / "my_flower_app" / "strategy.py").write_text(textwrap.dedent(STRATEGY))
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^fedrift (conformance .*)$", PAGE, re.MULTILINE)
    done = CliRunner().invoke(cli, [*command.replace("my_app", "my_flower_app").split(), "--json"])
    messages = [verdict["message"] for verdict in json.loads(done.output)["verdicts"]]
    assert done.exit_code == 1 and any(message.startswith("differs from the reference from round 5 on") for message in messages)
    assert "differs from the reference from round 5 on" in PAGE
