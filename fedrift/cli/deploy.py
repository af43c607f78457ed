"""The command ``deploy``, and the override ``backend=flower`` of ``run``: federated training over Flower."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import DEFAULT_RUNS_DIR, DataDir, Device, ExperimentFile, Overrides, RunsDir, Threads, make_runtime

if TYPE_CHECKING:
    from ..flower.config import FlowerConfig

BACKENDS = ("simulated", "flower")
Address = Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="The address of the SuperLink on the server machine.")]
ClientFolders = Annotated[
    list[str] | None,
    typer.Option(
        "--client-data",
        metavar="CLIENT=FOLDER",
        help="The folder with a client's own documents, on that client's machine. The option may be repeated.",
    ),
]
Certificates = Annotated[
    Path | None,
    typer.Option("--certificates", help="A folder with ca.crt, server.pem and server.key, to use TLS. Without it, nothing is encrypted."),
]
Keys = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        help="A folder with client-0, client-0.pub and so on. Only nodes with a registered key may then join. Requires --certificates.",
    ),
]
DeployOutput = Annotated[Path, typer.Option("--output", help="The folder for the Flower app, Flower's configuration and the logs.")]
PrintOnly = Annotated[
    bool, typer.Option("--print", help="Print the commands for each machine instead of running everything on this machine.")
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
    """Run an experiment over Flower with one process per client, or print the commands for several machines.

    `fedrift deploy my.yaml` starts the server and all clients on this machine over loopback.

    `fedrift deploy my.yaml --print --address 10.0.0.5:9191 --client-data 0=/home/ann/texts --client-data 1=/home/bob/texts` prints the
    commands to type on each machine. Clients 0 and 1 then train on the documents in their own folders.

    The command writes the Flower app, Flower's configuration and one log per process to the `--output` folder. The run is stored
    in the runs directory like any other run. Settings of the network are overrides such as `backend.min_results=2` and
    `backend.round_timeout_s=600`; they do not change the run's id.
    """
    from ..api import load_config
    from ..engine.cache import ResourceCache, resolve_fingerprints
    from ..flower import require_flower

    require_flower()
    experiment_overrides, _, flower_config = split_backend_override(overrides)
    from ..flower import launch as flower
    from ..flower.launch import deploy as deploy_locally
    from ..flower.launch import make_run_config

    host, port = parse_address(address)
    runtime = make_runtime(runs_dir, data_dir, device, threads)
    cache = ResourceCache(runtime)
    experiment = load_config(file, experiment_overrides)
    clients = range(experiment.partition.num_clients)
    folders = parse_client_folders(client_folders, len(clients))
    tls = flower.load_certificates(certificates) if certificates else None
    keys = flower.check_keys(keys, len(clients), tls) if keys else None
    if not print_only:
        from .console import RunProgressBar, print_summary
        from .run_list import find_stored_baseline

        with RunProgressBar(experiment.training.num_rounds) as bar:
            run = deploy_locally(experiment, cache, flower_config, output_dir, bar.callback_for(experiment.name), folders, tls, keys)
        print_summary(run, find_stored_baseline(run))
        return
    experiment = resolve_fingerprints(experiment, cache)
    run_config = {key: value for key, value in make_run_config(runtime, flower_config).items() if key != "cwd"}
    app = flower.write_app(output_dir.resolve() / "app", experiment.to_dict(), run_config)
    flower.write_connection(output_dir.resolve() / "flwr", address, tls)
    exports = "export " + " ".join(f"{name}={value}" for name, value in flower.ENVIRONMENT.items())
    lines = [
        "# In every terminal on every machine:",
        exports,
        "",
        "# In every terminal on the server machine:",
        f"export FLWR_HOME={output_dir.resolve() / 'flwr'}",
        "",
        "# In a separate terminal on the server machine:",
        str(flower.superlink_command(host, port, tls, authenticate=bool(keys))),
    ]
    if keys:
        lines += [
            "",
            "# On the server machine, after the SuperLink has started:",
            *(str(flower.register_command(flower.private_key_path(keys, client) + ".pub")) for client in clients),
        ]
    for client in clients:
        lines += [
            "",
            f"# In a separate terminal on the machine of client {client}:",
            str(
                flower.supernode_command(
                    client, address, 9194 + client, tls, data=folders.get(client, ""), key=flower.private_key_path(keys, client)
                )
            ),
        ]
    lines += [
        "",
        "# On the server machine, after all clients have connected:",
        f"{flower.submit_command(app)} --stream",
        "",
        "# Show the result:",
        f"fedrift show {experiment.id[:6]} --runs-dir {runs_dir.resolve()}",
    ]
    typer.echo("\n".join(lines))


def parse_address(address: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` into its two parts.

    Raises:
        UserError: If the text is not HOST:PORT with a port from 1 to 65535.
    """
    from ..core.errors import UserError, quote_value

    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.:\[\]%-]+", host) or parse_whole_number(port, 65_535) < 1:
        raise UserError(
            f"--address must be HOST:PORT with a port from 1 to 65535, got {quote_value(address)}: write e.g. --address 10.0.0.5:9191"
        )
    return host, int(port)


def parse_client_folders(texts: list[str] | None, clients: int) -> dict[int, str]:
    """Parse ``CLIENT=FOLDER`` options: ``0=/folder`` becomes ``{0: "/folder"}``.

    Args:
        texts: The values of the option ``--client-data``.
        clients: The number of clients of the experiment.

    Raises:
        UserError: If a value is malformed, names an unknown client, or names a client twice.
    """
    from ..core.errors import UserError, quote_value

    folders: dict[int, str] = {}
    for text in texts or ():
        client, _, folder = text.partition("=")
        if parse_whole_number(client, clients - 1) < 0 or not folder:
            raise UserError(
                f"--client-data must be CLIENT=FOLDER with a client from 0 to {clients - 1}, got {quote_value(text)}: "
                "write e.g. --client-data 0=/home/ann/texts"
            )
        if int(client) in folders:
            raise UserError(f"--client-data {quote_value(text)}: client {int(client)} already has a folder; give each client one folder")
        folders[int(client)] = folder
    return folders


def parse_whole_number(text: str, max_value: int) -> int:
    """Parse a whole number from 0 to ``max_value``; return -1 if the text is anything else."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    return number if number <= max_value else -1


def split_backend_override(overrides: list[str] | None) -> tuple[list[str], str, FlowerConfig]:
    """Separate the overrides of the backend from those of the experiment, because the backend is not part of the experiment.

    Example of backend overrides: ``backend=flower backend.min_results=2 backend.round_timeout_s=600``.

    Returns:
        The overrides of the experiment, the name of the backend and the settings of Flower.

    Raises:
        UserError: If a backend override is malformed or out of range.
    """
    from ..config.loader import Registry, parse_value, parse_yaml
    from ..core.errors import UserError, quote_value, unknown_name_error
    from ..flower.config import FlowerConfig

    rest = [text for text in overrides or () if not text.startswith(("backend=", "backend."))]
    settings = dict(text.partition("=")[::2] for text in overrides or () if text not in rest and "=" in text)
    malformed = [text for text in overrides or () if text not in rest and "=" not in text]
    if malformed:
        raise UserError(f"{quote_value(malformed[0])} is not an override; an override is written path=value, e.g. backend.min_results=2")
    backend = settings.pop("backend", "simulated").strip()
    if backend not in BACKENDS:
        raise unknown_name_error("backend", backend, BACKENDS)
    values = {key.removeprefix("backend."): parse_yaml(value, f"the override {quote_value(key)}") for key, value in settings.items()}
    flower_config: FlowerConfig = parse_value(FlowerConfig, values, Registry({}), "backend")
    return rest, backend, flower_config
