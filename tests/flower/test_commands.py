"""Test the printed Flower commands and the separation of backend options from the experiment's overrides."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib

import pytest
from flwr.app import Context, RecordDict
from typer.testing import CliRunner

from fedrift.cli.app import app
from fedrift.cli.deploy import parse_address, parse_client_folders, split_backend_override
from fedrift.config.runtime import Runtime
from fedrift.config.schema import parse_config
from fedrift.core.errors import UserError
from fedrift.engine.cache import ResourceCache
from fedrift.flower import require_flower
from fedrift.flower.client import make_client
from fedrift.flower.config import (
    FlowerConfig,
    arithmetic_options,
    read_bool,
    read_dtype,
    read_experiment_config,
    read_flower_config,
    read_threads,
)
from fedrift.flower.launch import (
    TlsFiles,
    check_keys,
    load_certificates,
    make_run_config,
    simulate,
    superlink_command,
    supernode_command,
    write_app,
    write_connection,
)


def test_backend_options_are_not_part_of_the_experiment():
    rest, simulator, terms = split_backend_override(
        ["seed=3", "backend=flower", "backend.min_results=2", "backend.round_timeout_s=60", "algorithm=Scaffold"]
    )
    assert (rest, simulator, terms.min_results, terms.round_timeout_s) == (["seed=3", "algorithm=Scaffold"], "flower", 2, 60)
    assert split_backend_override(None)[1] == "simulated"


@pytest.mark.parametrize(
    "said, why",
    [
        ("backend=flowers", "did you mean 'flower'"),
        ("backend.min_reults=2", "did you mean 'min_results'"),
        ("backend.min_results", "written path=value"),
        ("backend.min_results=2.5", "got 2.5"),
        ("backend.round_timeout_s=.inf", "got .inf"),
        ("backend.plain_clients=yes", "expected true or false"),
        ("backend.min_results=[", "is not valid YAML"),
        ("backend.min_results=0", "backend.min_results: expected a whole number from 1 to"),
    ],
)
def test_an_unknown_backend_is_refused(said, why):
    with pytest.raises(UserError, match=why):
        split_backend_override([said])


QUOTED = 'a "quoted" \\ folder \U0001f600 caf\u00e9\x7f'


def test_the_app_is_valid_toml_with_the_experiment(tmp_path):
    written = parse_config({"dataset": "bbc", "training": {"num_rounds": 3}}).to_dict()
    folder = write_app(tmp_path / "app", written, {"runs_dir": QUOTED, "min_results": 2, "plain_clients": False})
    said = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert parse_config(__import__("json").loads(said["config"]["experiment"])).training.num_rounds == 3
    assert said["config"]["runs_dir"] == QUOTED and said["config"]["plain_clients"] is False
    assert said["components"] == {"serverapp": "fedrift.flower.server:app", "clientapp": "fedrift.flower.client:app"}
    tls = TlsFiles(tmp_path / QUOTED, tmp_path, tmp_path)
    connection = tomllib.loads(write_connection(tmp_path / "home", "10.0.0.5:9191", tls).read_text())["superlink"]["fedrift"]
    assert connection == {"address": "10.0.0.5:9191", "root-certificates": str(tmp_path / QUOTED)}
    config = supernode_command(1, "h:9191", 9195, data=QUOTED).args[-1]
    assert tomllib.loads(config.replace("client=1 ", "client=1\n")) == {"client": 1, "data": QUOTED}


def test_tls_and_authentication_use_the_options_of_flower(tmp_path):
    tls = TlsFiles(tmp_path / "ca.crt", tmp_path / "server.pem", tmp_path / "server.key")
    link = superlink_command("0.0.0.0", 9191, tls, authenticate=True).args
    node = supernode_command(1, "h:9191", 9195, tls, key="k", data="/a b").args
    assert "--insecure" not in link + node and "--enable-supernode-auth" in link
    assert node[node.index("--root-certificates") + 1] == str(tls.ca_certificate)
    assert node[node.index("--node-config") + 1] == 'client=1 data="/a b"'
    assert shlex.split(str(supernode_command(1, "h:9191", 9195, data="/a b")))[-1] == 'client=1 data="/a b"'


def test_missing_certificates_and_keys_are_refused(tmp_path):
    (tmp_path / "ca.crt").touch()
    with pytest.raises(UserError, match=r"missing: server\.pem, server\.key"):
        load_certificates(tmp_path)
    with pytest.raises(UserError, match="over TLS only"):
        check_keys(tmp_path, 2, None)
    (tmp_path / "client-0").touch()
    with pytest.raises(UserError, match=r"missing: client-0\.pub, client-1, client-1\.pub.*ssh-keygen"):
        check_keys(tmp_path, 2, TlsFiles(tmp_path, tmp_path, tmp_path))


@pytest.mark.parametrize("absent", ["flwr", "ray"])
def test_missing_flower_or_ray_is_refused_with_the_way_to_install_it(absent, monkeypatch):
    monkeypatch.setattr("fedrift.flower.find_spec", lambda name: None if name == absent else name)
    with pytest.raises(UserError, match=r"pip install 'fedrift\[flower\]'"):
        require_flower(simulation=True)
    if absent == "ray":
        require_flower()


def test_help_does_not_load_flower_ray_or_torch():
    asked = "sys.argv = ['fedrift', {!r}, '--help']\ntry: main()\nexcept SystemExit: pass\n"
    after = "bad = {'flwr', 'ray', 'torch', 'submitit'} & set(sys.modules); assert not bad, bad"
    asked = "".join(asked.format(name) for name in ("deploy", "run", "study"))
    script = f"import sys\nfrom fedrift.cli import main\n{asked}{after}"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)


def test_folders_and_addresses_need_existing_clients_and_ports():
    assert parse_client_folders(["0=/a", "1=/b=c"], 2) == {0: "/a", 1: "/b=c"}
    for wrong in ("/a", "2=/a", "-1=/a", "\u00b2=/a", "1" * 5000 + "=/a", "0=", "=/a"):
        with pytest.raises(UserError, match="CLIENT=FOLDER with a client from 0 to 1"):
            parse_client_folders([wrong], 2)
    with pytest.raises(UserError, match="already has a folder"):
        parse_client_folders(["0=/a", "00=/b"], 2)
    assert parse_address("[::1]:9191") == ("[::1]", 9191)
    for wrong in ("", "h", "h:", ":1", "h:0", "h:65536", "h:x", "h:\u0661", "a b:1", 'a"b:1', "a\n:1", "h:" + "1" * 5000):
        with pytest.raises(UserError, match="HOST:PORT"):
            parse_address(wrong)


def test_a_flower_configuration_is_read_as_strictly_as_an_experiment():
    assert read_flower_config({"min_results": 2, "round_timeout_s": 60, "runs_dir": "x", "plain_clients": False}) == FlowerConfig(2, 60.0)
    assert (read_threads({"threads": "2"}), read_threads({}), read_dtype({}), read_bool({"a": True}, "a")) == (2, None, "auto", True)
    experiment = parse_config({"dataset": "bbc"})
    assert read_experiment_config({"experiment": json.dumps(experiment.to_dict())}) == experiment
    for reader, config, message in (
        (read_flower_config, {"min_results": True}, "backend.min_results: expected a whole number"),
        (read_flower_config, {"round_timeout_s": "60"}, "backend.round_timeout_s"),
        (read_flower_config, {"round_timeout_s": float("inf")}, "backend.round_timeout_s"),
        (read_flower_config, {"plain_clients": "false"}, "backend.plain_clients"),
        (read_threads, {"threads": "two"}, "threads"),
        (read_threads, {"threads": 1.5}, "threads"),
        (read_threads, {"threads": "9" * 5000}, "threads"),
        (read_dtype, {"dtype": "float64"}, "dtype"),
        (arithmetic_options, {"tf32": "yes"}, "tf32 must be true or false, got 'yes'"),
        (arithmetic_options, {"check_device": 1}, "check_device"),
        (read_experiment_config, {}, "as JSON"),
        (read_experiment_config, {"experiment": 3}, "as JSON"),
        (read_experiment_config, {"experiment": "[" * 100_000}, "as JSON"),
        (read_experiment_config, {"experiment": "1" * 5000}, "as JSON"),
        (read_experiment_config, {"experiment": '{"dataset": "bbc", "training": {"max_grad_norm": Infinity}}'}, "training.max_grad_norm"),
        (make_client, Context(1, 1, {"client": True}, RecordDict(), {}), "does not name a client.*client=true"),
        (make_client, Context(1, 1, {"client": "0"}, RecordDict(), {}), "does not name a client"),
        (make_client, Context(1, 1, {"client": 0}, RecordDict(), {}), "as JSON"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            reader(config)
        assert len(str(raised.value)) < 300


def test_deploy_prints_its_steps():
    said = CliRunner().invoke(app, ["deploy", "--help"])
    assert said.exit_code == 0 and "--print" in said.output


def test_the_precision_reaches_the_nodes_and_clients_per_pass_is_refused(tmp_path):
    asked = Runtime(runs_dir=tmp_path, check_device=False, compiled=True, tf32=True)
    said = make_run_config(asked, FlowerConfig())
    assert (
        arithmetic_options(said)
        == arithmetic_options({name: str(value) for name, value in said.items()})
        == {"compiled": True, "check_device": False, "tf32": True}
    )
    assert arithmetic_options(make_run_config(Runtime(runs_dir=tmp_path), FlowerConfig())) == {}
    with pytest.raises(UserError, match="--clients-per-pass cannot be used over Flower"):
        simulate(parse_config({"dataset": "bbc"}), ResourceCache(Runtime(runs_dir=tmp_path, clients_per_pass=2)), FlowerConfig())
