"""Commands beyond one machine: deploy, and ``fleet=flower`` of ``run``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import ROOT, Data, Device, File, Overrides, Root, Threads, runtime

if TYPE_CHECKING:
    from ..flower.terms import Terms

FLEETS = ("simulated", "flower")
Address = Annotated[str, typer.Option("--address", metavar="HOST:PORT", help="Where the server machine's SuperLink listens.")]
Own = Annotated[list[str] | None, typer.Option(
    "--own", metavar="CLIENT=FOLDER", help="The folder of a client's own documents, on its machine. May be said more than once.")]
Certificates = Annotated[Path | None, typer.Option(
    "--certificates", help="A folder with ca.crt, server.pem and server.key: TLS. Nothing is encrypted without it.")]
Keys = Annotated[Path | None, typer.Option(
    "--keys", help="A folder with client-0, client-0.pub ...: only nodes that hold a registered key join. Needs --certificates.")]
Out = Annotated[Path, typer.Option("--out", help="Where the app, Flower's configuration and the logs go.")]
Run = Annotated[bool, typer.Option("--run", help="Run all of it on this machine, on loopback, to the end.")]


def deploy(file: File, overrides: Overrides = None, address: Address = "127.0.0.1:9191", own: Own = None,
           certificates: Certificates = None, keys: Keys = None, out: Out = Path("deployment"), run: Run = False,
           root: Root = ROOT, data: Data = None, device: Device = "auto", threads: Threads = None) -> None:
    """Say what to type on which machine to run an experiment over Flower, one client a machine; `--run`: do it here.

    `fedrift deploy my.yaml --address 10.0.0.5:9191 --own 0=/home/ann/texts --own 1=/home/bob/texts`
    """
    from ..experiment import load_experiment
    from ..flower import wanted
    from ..setting import resolve
    from ..stock import Stock

    wanted()
    rest, _, terms = apart(overrides)
    from ..flower import commands as flower
    from ..flower.launch import configured
    from ..flower.launch import deploy as here

    host, port = host_and_port(address)
    where = runtime(root, data, device, threads)
    stock = Stock(where)
    experiment = load_experiment(file, rest)
    clients = range(experiment.partition.clients)
    folders = owned(own, len(clients))
    tls = flower.certified(certificates) if certificates else None
    keys = flower.keyed(keys, len(clients), tls) if keys else None
    if run:
        from .screen import Bar, summary

        with Bar(experiment.plan.rounds) as bar:
            done = here(experiment, stock, terms, out, bar.of(experiment.name), folders, tls, keys)
        summary(done)
        return
    experiment = resolve(experiment, stock)
    config = {key: value for key, value in configured(where, terms).items() if key != "cwd"}
    app = flower.write_app(out.resolve() / "app", experiment.written(), config)
    flower.write_connection(out.resolve() / "flwr", address, tls)
    everywhere = "export " + " ".join(f"{name}={value}" for name, value in flower.ENVIRONMENT.items())
    said = ["# On every machine, in every terminal:", everywhere, "", "# On the server machine, in every terminal:",
            f"export FLWR_HOME={out.resolve() / 'flwr'}", "", "# On the server machine, in a terminal of its own:",
            str(flower.superlink(host, port, tls, authenticate=bool(keys)))]
    if keys:
        said += ["", "# On the server machine, once that is up:",
                 *(str(flower.register(flower.private(keys, client) + ".pub")) for client in clients)]
    for client in clients:
        said += ["", f"# On the machine of client {client}, in a terminal of its own:",
                 str(flower.supernode(client, address, 9194 + client, tls, data=folders.get(client, ""),
                                      key=flower.private(keys, client)))]
    said += ["", "# On the server machine, when the clients are there:", f"{flower.submit(app)} --stream", "",
             "# What comes of it:", f"fedrift show {experiment.id[:6]} --runs {root.resolve()}"]
    typer.echo("\n".join(said))


def host_and_port(address: str) -> tuple[str, int]:
    """``10.0.0.5:9191`` as its two parts."""
    from ..errors import UserError, quote

    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.:\[\]%-]+", host) or whole(port, 65_535) < 1:
        raise UserError(f"--address {quote(address)}: wanted HOST:PORT with a port from 1 to 65535, e.g. --address 10.0.0.5:9191")
    return host, int(port)


def owned(said: list[str] | None, clients: int) -> dict[int, str]:
    """``0=/folder`` as {0: "/folder"}, for clients that there are."""
    from ..errors import UserError, quote

    found: dict[int, str] = {}
    for text in said or ():
        client, _, folder = text.partition("=")
        if whole(client, clients - 1) < 0 or not folder:
            raise UserError(f"--own {quote(text)}: wanted CLIENT=FOLDER with a client from 0 to {clients - 1}, "
                            "e.g. --own 0=/home/ann/texts")
        if int(client) in found:
            raise UserError(f"--own {quote(text)}: client {int(client)} has two folders")
        found[int(client)] = folder
    return found


def whole(text: str, most: int) -> int:
    """The whole number from 0 to ``most`` that a text is; -1 if it is none."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    return number if number <= most else -1


def apart(overrides: list[str] | None) -> tuple[list[str], str, Terms]:
    """The overrides of the experiment, and apart from them the fleet and its terms: they are no part of the experiment.

    ``fleet=flower fleet.least=2 fleet.patience=600``
    """
    from ..config import Rooms, parse_yaml, read
    from ..errors import UserError, quote, unknown
    from ..flower.terms import Terms

    rest = [text for text in overrides or () if not text.startswith(("fleet=", "fleet."))]
    said = dict(text.partition("=")[::2] for text in overrides or () if text not in rest and "=" in text)
    wrong = [text for text in overrides or () if text not in rest and "=" not in text]
    if wrong:
        raise UserError(f"{quote(wrong[0])}: an override is written path=value, e.g. fleet.least=2")
    fleet = said.pop("fleet", "simulated").strip()
    if fleet not in FLEETS:
        raise unknown("fleet", fleet, FLEETS)
    asked = {key.removeprefix("fleet."): parse_yaml(value, f"the override {quote(key)}") for key, value in said.items()}
    terms: Terms = read(Terms, asked, Rooms({}), "fleet")
    return rest, fleet, terms


COMMANDS = [deploy]
