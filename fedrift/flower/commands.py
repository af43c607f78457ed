"""What has to be typed where: the commands of a federation over Flower, and the folder of the app that they run.

The app is two lines that name ``fedrift.flower``, and the experiment: every machine has fedrift installed, so no code
but these two lines travels. Runtime installation of dependencies is off, and so is Flower's telemetry.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

CONNECTION = "fedrift"  # the name of the SuperLink in Flower's configuration
CERTIFICATES = ("ca.crt", "server.pem", "server.key")
ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0"}
PYPROJECT = """\
[project]
name = "fedrift-run"
version = "1.0.0"
description = "A fedrift experiment over Flower"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41,<2"]

[tool.flwr.app]
publisher = "fedrift"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "fedrift.flower.server:app"
clientapp = "fedrift.flower.node:app"

[tool.flwr.app.config]
{config}
"""


@dataclass(frozen=True)
class Tls:
    """Files of a certificate authority and of the SuperLink's certificate."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Command:
    """A command, and who types it."""

    where: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def write_app(folder: Path, experiment: Mapping[str, Any], config: Mapping[str, str | int | float | bool]) -> Path:
    """The folder that ``flwr run`` takes. ``experiment``: as ``Experiment.written`` gives it; ``config``: what server and nodes
    read."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"experiment": json.dumps(experiment), **config}
    lines = "\n".join(f"{key} = {toml(value)}" for key, value in said.items())
    (folder / "pyproject.toml").write_text(PYPROJECT.format(config=lines), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return folder


def write_connection(home: Path, address: str, tls: Tls | None = None) -> Path:
    """Flower's configuration in ``FLWR_HOME``: where the SuperLink is."""
    home.mkdir(parents=True, exist_ok=True)
    secured = f"root-certificates = {toml(str(tls.authority))}" if tls else "insecure = true"
    path = home / "config.toml"
    path.write_text(f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = {toml(address)}\n{secured}\n',
                    encoding="utf-8")
    return path


def toml(value: str | int | float | bool) -> str:
    """A value as TOML, which takes the escapes of JSON but no pairs of surrogates."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def superlink(host: str, port: int, tls: Tls | None = None, *, authenticate: bool = False, simulation: bool = False,
              database: Path | None = None) -> Command:
    """The server machine's meeting point."""
    secured = (("--ssl-ca-certfile", str(tls.authority), "--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key))
               if tls else ("--insecure",))
    return Command("server", (
        "flower-superlink", *secured, "--host", host, "--port", str(port), "--disable-runtime-dependency-installation",
        *(("--enable-supernode-auth",) if authenticate else ()), *(("--simulation",) if simulation else ()),
        *(("--database", str(database)) if database else ())))


def supernode(client: int, address: str, port: int, tls: Tls | None = None, *, data: str = "", keeps: str = "", key: str = "",
              more: Mapping[str, str] | None = None) -> Command:
    """A client's machine. ``data``: the folder of its documents; ``key``: its private key, where nodes are authenticated."""
    folders = {name: toml(value) for name, value in (("data", data), ("keeps", keeps)) if value}
    said = {"client": str(client), **folders, **(more or {})}
    secured = ("--root-certificates", str(tls.authority)) if tls else ("--insecure",)
    return Command(f"client {client}", (
        "flower-supernode", *secured, "--superlink", address, "--host", "127.0.0.1", "--port", str(port),
        *(("--auth-supernode-private-key", key) if key else ()), "--node-config", " ".join(f"{k}={v}" for k, v in said.items())))


def certified(folder: Path) -> Tls:
    """The certificates in a folder."""
    tls = Tls(*(folder.resolve() / name for name in CERTIFICATES))
    absent = [path.name for path in (tls.authority, tls.certificate, tls.key) if not path.is_file()]
    if absent:
        raise UserError(f"--certificates {folder}: wanted {', '.join(CERTIFICATES)}; not there: {', '.join(absent)}. "
                        "docs/beyond-one-machine.md says how to make them")
    return tls


def private(keys: Path | None, client: int) -> str:
    """The path of a client's private key, "" where nodes are not authenticated."""
    return str(keys.resolve() / f"client-{client}") if keys else ""


def keyed(keys: Path, clients: int, tls: Tls | None) -> Path:
    """The folder of the nodes' keys, looked through."""
    if tls is None:
        raise UserError("--keys: Flower authenticates nodes over TLS only; add --certificates FOLDER")
    absent = [name for k in range(clients) for name in (f"client-{k}", f"client-{k}.pub") if not (keys / name).is_file()]
    if absent:
        raise UserError(f"--keys {keys}: wanted client-0, client-0.pub ... client-{clients - 1}.pub; not there: "
                        f"{', '.join(absent)}. Make one with: ssh-keygen -t ecdsa -b 384 -N '' -f {keys}/{absent[0]}")
    return keys


def register(public: str) -> Command:
    """Let a node's key in, on the server machine."""
    return Command("server", ("flwr", "supernode", "register", public, CONNECTION))


def submit(app: Path, clients: int | None = None) -> Command:
    """Start the run; ``clients``: simulated nodes, one processor each."""
    simulated = f"num-supernodes={clients} client-resources-num-cpus=1 init-args-num-cpus=1"
    return Command("server", ("flwr", "run", str(app), CONNECTION, *(("--federation-config", simulated) if clients else ())))


__all__ = ["CONNECTION", "ENVIRONMENT", "Command", "Tls", "certified", "keyed", "private", "register", "submit", "superlink",
           "supernode", "write_app", "write_connection"]
