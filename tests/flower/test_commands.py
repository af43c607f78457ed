"""What is to be typed, and the fleet's own words among an experiment's overrides."""

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
from fedrift.cli.deploying import apart, host_and_port, owned
from fedrift.errors import UserError
from fedrift.experiment import parse
from fedrift.flower import wanted
from fedrift.flower.commands import Tls, certified, keyed, superlink, supernode, write_app, write_connection
from fedrift.flower.launch import configured, simulate
from fedrift.flower.node import made
from fedrift.flower.terms import Terms, arithmetic, read_dtype, read_experiment, read_terms, read_threads, read_truth
from fedrift.runtime import Runtime
from fedrift.stock import Stock


def test_the_fleet_is_no_part_of_the_experiment():
    rest, fleet, terms = apart(["seed=3", "fleet=flower", "fleet.least=2", "fleet.patience=60", "algorithm=Scaffold"])
    assert (rest, fleet, terms.least, terms.patience) == (["seed=3", "algorithm=Scaffold"], "flower", 2, 60)
    assert apart(None)[1] == "simulated"


@pytest.mark.parametrize("said, why", [("fleet=flowers", "did you mean 'flower'"), ("fleet.leest=2", "did you mean 'least'"),
                                       ("fleet.least", "written path=value"), ("fleet.least=2.5", "got 2.5"),
                                       ("fleet.patience=.inf", "got .inf"), ("fleet.plain=yes", "wanted true or false"),
                                       ("fleet.least=[", "is not YAML that can be read"),
                                       ("fleet.least=0", "fleet.least: wanted a whole number from 1 to")])
def test_a_fleet_that_there_is_not_is_refused(said, why):
    with pytest.raises(UserError, match=why):
        apart([said])


QUOTED = 'a "quoted" \\ folder \U0001f600 caf\u00e9\x7f'


def test_the_app_is_toml_that_holds_the_experiment_and_names_fedrift(tmp_path):
    written = parse({"corpus": "bbc", "plan": {"rounds": 3}}).written()
    folder = write_app(tmp_path / "app", written, {"runs": QUOTED, "least": 2, "plain": False})
    said = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert parse(__import__("json").loads(said["config"]["experiment"])).plan.rounds == 3
    assert said["config"]["runs"] == QUOTED and said["config"]["plain"] is False
    assert said["components"] == {"serverapp": "fedrift.flower.server:app", "clientapp": "fedrift.flower.node:app"}
    tls = Tls(tmp_path / QUOTED, tmp_path, tmp_path)
    connection = tomllib.loads(write_connection(tmp_path / "home", "10.0.0.5:9191", tls).read_text())["superlink"]["fedrift"]
    assert connection == {"address": "10.0.0.5:9191", "root-certificates": str(tmp_path / QUOTED)}
    config = supernode(1, "h:9191", 9195, data=QUOTED).words[-1]
    assert tomllib.loads(config.replace("client=1 ", "client=1\n")) == {"client": 1, "data": QUOTED}


def test_tls_and_authentication_are_flowers_own_options(tmp_path):
    tls = Tls(tmp_path / "ca.crt", tmp_path / "server.pem", tmp_path / "server.key")
    link = superlink("0.0.0.0", 9191, tls, authenticate=True).words
    node = supernode(1, "h:9191", 9195, tls, key="k", data="/a b").words
    assert "--insecure" not in link + node and "--enable-supernode-auth" in link
    assert node[node.index("--root-certificates") + 1] == str(tls.authority)
    assert node[node.index("--node-config") + 1] == 'client=1 data="/a b"'
    assert shlex.split(str(supernode(1, "h:9191", 9195, data="/a b")))[-1] == 'client=1 data="/a b"'


def test_certificates_and_keys_that_are_not_there_are_named(tmp_path):
    (tmp_path / "ca.crt").touch()
    with pytest.raises(UserError, match=r"not there: server\.pem, server\.key"):
        certified(tmp_path)
    with pytest.raises(UserError, match="over TLS only"):
        keyed(tmp_path, 2, None)
    (tmp_path / "client-0").touch()
    with pytest.raises(UserError, match=r"not there: client-0\.pub, client-1, client-1\.pub.*ssh-keygen"):
        keyed(tmp_path, 2, Tls(tmp_path, tmp_path, tmp_path))


@pytest.mark.parametrize("absent", ["flwr", "ray"])
def test_without_flower_or_ray_the_way_out_is_named(absent, monkeypatch):
    monkeypatch.setattr("fedrift.flower.find_spec", lambda name: None if name == absent else name)
    with pytest.raises(UserError, match=r"pip install 'fedrift\[flower\]'"):
        wanted(simulated=True)
    if absent == "ray":
        wanted()


def test_no_help_loads_flower_ray_or_torch():
    asked = "sys.argv = ['fedrift', {!r}, '--help']\ntry: main()\nexcept SystemExit: pass\n"
    after = "bad = {'flwr', 'ray', 'torch', 'submitit'} & set(sys.modules); assert not bad, bad"
    asked = "".join(asked.format(name) for name in ("deploy", "run", "study"))
    script = f"import sys\nfrom fedrift.cli import main\n{asked}{after}"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)


def test_own_folders_and_an_address_are_of_clients_and_ports_that_there_are():
    assert owned(["0=/a", "1=/b=c"], 2) == {0: "/a", 1: "/b=c"}
    for wrong in ("/a", "2=/a", "-1=/a", "\u00b2=/a", "1" * 5000 + "=/a", "0=", "=/a"):
        with pytest.raises(UserError, match="CLIENT=FOLDER with a client from 0 to 1"):
            owned([wrong], 2)
    with pytest.raises(UserError, match="two folders"):
        owned(["0=/a", "00=/b"], 2)
    assert host_and_port("[::1]:9191") == ("[::1]", 9191)
    for wrong in ("", "h", "h:", ":1", "h:0", "h:65536", "h:x", "h:\u0661", "a b:1", 'a"b:1', "a\n:1", "h:" + "1" * 5000):
        with pytest.raises(UserError, match="HOST:PORT"):
            host_and_port(wrong)


def test_a_flower_configuration_is_read_as_strictly_as_an_experiment():
    assert read_terms({"least": 2, "patience": 60, "runs": "x", "plain": False}) == Terms(2, 60.0)
    assert (read_threads({"threads": "2"}), read_threads({}), read_dtype({}), read_truth({"a": True}, "a")) == (
        2, None, "auto", True)
    experiment = parse({"corpus": "bbc"})
    assert read_experiment({"experiment": json.dumps(experiment.written())}) == experiment
    for reader, config, told in (
            (read_terms, {"least": True}, "fleet.least: wanted a whole number"),
            (read_terms, {"patience": "60"}, "fleet.patience"),
            (read_terms, {"patience": float("inf")}, "fleet.patience"), (read_terms, {"plain": "false"}, "fleet.plain"),
            (read_threads, {"threads": "two"}, "threads"), (read_threads, {"threads": 1.5}, "threads"),
            (read_threads, {"threads": "9" * 5000}, "threads"), (read_dtype, {"dtype": "float64"}, "dtype"),
            (arithmetic, {"tf32": "yes"}, "tf32: wanted true or false, got 'yes'"), (arithmetic, {"canary": 1}, "canary"),
            (read_experiment, {}, "as JSON"), (read_experiment, {"experiment": 3}, "as JSON"),
            (read_experiment, {"experiment": "[" * 100_000}, "as JSON"),
            (read_experiment, {"experiment": "1" * 5000}, "as JSON"),
            (read_experiment, {"experiment": '{"corpus": "bbc", "plan": {"clip": Infinity}}'}, "plan.clip"),
            (made, Context(1, 1, {"client": True}, RecordDict(), {}), "which client it is.*says true"),
            (made, Context(1, 1, {"client": "0"}, RecordDict(), {}), "which client it is"),
            (made, Context(1, 1, {"client": 0}, RecordDict(), {}), "as JSON")):
        with pytest.raises(UserError, match=told) as raised:
            reader(config)
        assert len(str(raised.value)) < 300


def test_deploy_says_what_it_does():
    said = CliRunner().invoke(app, ["deploy", "--help"])
    assert said.exit_code == 0 and "--run" in said.output


def test_the_arithmetic_that_was_asked_for_travels_and_micro_is_refused(tmp_path):
    asked = Runtime(root=tmp_path, canary=False, compiled=True, tf32=True)
    said = configured(asked, Terms())
    assert arithmetic(said) == arithmetic({name: str(value) for name, value in said.items()}) == {
        "compiled": True, "canary": False, "tf32": True}
    assert arithmetic(configured(Runtime(root=tmp_path), Terms())) == {}
    with pytest.raises(UserError, match="--micro: over Flower"):
        simulate(parse({"corpus": "bbc"}), Stock(Runtime(root=tmp_path, micro=2)), Terms())
