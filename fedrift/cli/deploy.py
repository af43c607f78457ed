"""Commands beyond one machine: deploy, and ``backend=flower`` of ``run``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DEFAULT_RUNS_DIR, DataDir, Device, ExperimentFile, Overrides, RunsDir, Threads, make_runtime

if TYPE_CHECKING:
    from ..flower.config import FlowerConfig

BACKENDS = ("simulated", "flower")
Address = Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Where the server machine's SuperLink listens.")]
ClientFolders = Annotated[
    list[str] | None,
    typer.Option(
        "--own", metavar="CLIENT=FOLDER", help="The folder of a client's own documents, on its machine. May be said more than once."
    ),
]
Certificates = Annotated[
    Path | None,
    typer.Option("--certificates", help="A folder with ca.crt, server.pem and server.key: TLS. Nothing is encrypted without it."),
]
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys", help="A folder with client-0, client-0.pub ...: only nodes that hold a registered key join. Needs --certificates."
    ),
]
DeployOutput = Annotated[Path, typer.Option("--output", help="Where the app, Flower's configuration and the logs go.")]
PrintOnly = Annotated[
    bool, typer.Option("--print", help="Print the commands for each machine instead of running everything on this one, on loopback.")
]


def deploy(
    file: ExperimentFile,
    overrides: Overrides = None,
    address: Address = "127.0.0.1:9191",
    client_folders: ClientFolders = None,
    certificates: Certificates = None,
    keys: Keys = None,
    output_dir: DeployOutput = Path("deployment"),
    print_only: PrintOnly = False,
    runs_dir: RunsDir = DEFAULT_RUNS_DIR,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Run an experiment over Flower on this machine, one process per client; `--print`: print the commands for several machines.

    `fedrift deploy my.yaml --print --address 10.0.0.5:9191 --own 0=/home/ann/texts --own 1=/home/bob/texts`
    """
    from ..config.schema import load_config
    from ..engine.build import resolve_fingerprints
    from ..engine.cache import ResourceCache
    from ..flower import require_flower

    require_flower()
    rest, _, terms = split_backend_override(overrides)
    from ..flower import launch as flower
    from ..flower.launch import deploy as here
    from ..flower.launch import make_run_config

    host, port = parse_address(address)
    where = make_runtime(runs_dir, data_dir, device, threads)
    stock = ResourceCache(where)
    experiment = load_config(file, rest)
    clients = range(experiment.partition.num_clients)
    folders = parse_client_folders(client_folders, len(clients))
    tls = flower.load_certificates(certificates) if certificates else None
    keys = flower.check_keys(keys, len(clients), tls) if keys else None
    if not print_only:
        from .console import RunProgressBar, print_summary

        with RunProgressBar(experiment.training.num_rounds) as bar:
            done = here(experiment, stock, terms, output_dir, bar.callback_for(experiment.name), folders, tls, keys)
        print_summary(done)
        return
    experiment = resolve_fingerprints(experiment, stock)
    config = {key: value for key, value in make_run_config(where, terms).items() if key != "cwd"}
    app = flower.write_app(output_dir.resolve() / "app", experiment.to_dict(), config)
    flower.write_connection(output_dir.resolve() / "flwr", address, tls)
    everywhere = "export " + " ".join(f"{name}={value}" for name, value in flower.ENVIRONMENT.items())
    said = [
        "# On every machine, in every terminal:",
        everywhere,
        "",
        "# On the server machine, in every terminal:",
        f"export FLWR_HOME={output_dir.resolve() / 'flwr'}",
        "",
        "# On the server machine, in a terminal of its own:",
        str(flower.superlink_command(host, port, tls, authenticate=bool(keys))),
    ]
    if keys:
        said += [
            "",
            "# On the server machine, once that is up:",
            *(str(flower.register_command(flower.private_key_path(keys, client) + ".pub")) for client in clients),
        ]
    for client in clients:
        said += [
            "",
            f"# On the machine of client {client}, in a terminal of its own:",
            str(
                flower.supernode_command(
                    client, address, 9194 + client, tls, data=folders.get(client, ""), key=flower.private_key_path(keys, client)
                )
            ),
        ]
    said += [
        "",
        "# On the server machine, when the clients are there:",
        f"{flower.submit_command(app)} --stream",
        "",
        "# What comes of it:",
        f"fedrift show {experiment.id[:6]} --runs-dir {runs_dir.resolve()}",
    ]
    typer.echo("\n".join(said))


def parse_address(address: str) -> tuple[str, int]:
    """``10.0.0.5:9191`` as its two parts."""
    from ..core.errors import UserError, quote_value

    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.:\[\]%-]+", host) or parse_whole_number(port, 65_535) < 1:
        raise UserError(f"--address {quote_value(address)}: wanted HOST:PORT with a port from 1 to 65535, e.g. --address 10.0.0.5:9191")
    return host, int(port)


def parse_client_folders(texts: list[str] | None, clients: int) -> dict[int, str]:
    """``0=/folder`` as {0: "/folder"}, for clients that there are."""
    from ..core.errors import UserError, quote_value

    found: dict[int, str] = {}
    for text in texts or ():
        client, _, folder = text.partition("=")
        if parse_whole_number(client, clients - 1) < 0 or not folder:
            raise UserError(
                f"--own {quote_value(text)}: wanted CLIENT=FOLDER with a client from 0 to {clients - 1}, e.g. --own 0=/home/ann/texts"
            )
        if int(client) in found:
            raise UserError(f"--own {quote_value(text)}: client {int(client)} has two folders")
        found[int(client)] = folder
    return found


def parse_whole_number(text: str, max_value: int) -> int:
    """The whole number from 0 to ``most`` that a text is; -1 if it is none."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    return number if number <= max_value else -1


def split_backend_override(overrides: list[str] | None) -> tuple[list[str], str, FlowerConfig]:
    """The overrides of the experiment, and apart from them the backend and its terms: they are no part of the experiment.

    ``backend=flower backend.min_results=2 backend.round_timeout_s=600``
    """
    from ..config.loader import Registry, parse_value, parse_yaml
    from ..core.errors import UserError, quote_value, unknown_name_error
    from ..flower.config import FlowerConfig

    rest = [text for text in overrides or () if not text.startswith(("backend=", "backend."))]
    said = dict(text.partition("=")[::2] for text in overrides or () if text not in rest and "=" in text)
    wrong = [text for text in overrides or () if text not in rest and "=" not in text]
    if wrong:
        raise UserError(f"{quote_value(wrong[0])}: an override is written path=value, e.g. backend.min_results=2")
    fleet = said.pop("backend", "simulated").strip()
    if fleet not in BACKENDS:
        raise unknown_name_error("backend", fleet, BACKENDS)
    asked = {key.removeprefix("backend."): parse_yaml(value, f"the override {quote_value(key)}") for key, value in said.items()}
    terms: FlowerConfig = parse_value(FlowerConfig, asked, Registry({}), "backend")
    return rest, fleet, terms
