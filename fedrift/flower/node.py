"""The client that a node is, made from the run's configuration and the node's own.

The run says the experiment; the node says which client it is and, where it has documents of its own, where they lie:
``flower-supernode --node-config 'client=0 data="/home/me/texts"'``. Without ``data`` it takes its part of the
experiment's corpus, dealt as on one machine.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from flwr.app import Context

from ..corpus import Blocks, Source, load_corpus, pack
from ..errors import UserError, quote
from ..experiment import Experiment
from ..fleet import SimulatedFleet
from ..fleet.batches import TextBatches
from ..fleet.represent import mean_states
from ..folders import cache_folder
from ..models.presets import fingerprint
from ..rounds import begin
from ..runtime import Runtime
from ..seeds import numpy_stream
from ..setting import prepare, resolve
from ..stock import Stock
from ..values import Server, State
from .client import Client, alone, client_app
from .terms import ARITHMETIC, arithmetic, read_dtype, read_experiment, read_threads


def made(context: Context) -> Client:
    """The client of this node; loaded once for a process."""
    run, node = context.run_config, context.node_config
    number = node.get("client", node.get("partition-id"))
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError("the node does not say which client it is: --node-config 'client=0'"
                        + ("" if number is None else f"; it says {quote(number)}"))
    names = ("data", "keeps", "device", "dtype", "threads", "corpora", "cwd", *ARITHMETIC)
    said = {name: str(node.get(name, run.get(name, ""))) for name in names}
    return of(str(run.get("experiment", "")), number, **said)


@lru_cache(maxsize=1)
def of(written: str, number: int, data: str = "", keeps: str = "", device: str = "", dtype: str = "", threads: str = "",
       corpora: str = "", cwd: str = "", **engine: str) -> Client:
    """Client ``number`` of a written experiment. ``corpora``: the folder of local corpora by name, as ``--data`` says it.
    ``engine``: of the arithmetic, what is not the default."""
    if cwd:
        os.chdir(cwd)
    experiment = read_experiment({"experiment": written})
    stock = Stock(Runtime(device=device or "auto", threads=read_threads({"threads": threads}), micro=1,
                          dtype=read_dtype({"dtype": dtype}),
                          data=Path(corpora).expanduser() if corpora else None, **arithmetic(engine)))
    size = experiment.partition.clients
    if not 0 <= number < size:
        raise UserError(f"this node says that it is client {number}; the experiment has clients 0 to {size - 1}")
    if data:
        fleet, state = own(experiment, stock, number, Path(data).expanduser())
    else:
        setting = prepare(resolve(experiment, stock), stock)
        fleet, state = setting.fleet, setting.state
    first, one = state.server, slice(0, 1)
    first = Server(first.params.rows(one), first.shared.rows(one), first.moments.zeros(), first.base.rows(one))
    folder = Path(keeps).expanduser() if keeps else cache_folder() / "clients"
    return Client(number, experiment.id, experiment.algorithm, alone(fleet, number), first, folder, bool(data))


def own(experiment: Experiment, stock: Stock, number: int, data: Path) -> tuple[SimulatedFleet, State]:
    """The fleet in which client ``number`` trains on the documents in ``data``, and the first state; nobody else has any."""
    runtime, plan = stock.runtime, experiment.plan
    runtime.begin()
    if fingerprint(experiment.model) != experiment.model_content:
        raise UserError(f"the model {experiment.model!r} on this node is not the server's: copy it anew")
    corpus = load_corpus(replace(Source(str(data)), text=experiment.corpus.text, label="", validation=0.0, test=0.0)).train
    tokens = stock.tokens(corpus, experiment.model, experiment.tune)
    size = experiment.partition.clients
    parts, _, steps = experiment.algorithm.enroll([np.arange(0)] * size, plan.cohort(size), plan.steps)
    if len(parts) != size:
        raise UserError(f"{type(experiment.algorithm).__name__} brings the documents of clients together; "
                        "these stay where they are")
    order = numpy_stream(experiment.seed, "pack", number).permutation(len(corpus))
    blocks, none = pack(tokens, order, plan.seq_len), pack(tokens, order[:0], plan.seq_len)
    every: tuple[Blocks, ...] = tuple(blocks if client == number else none for client in range(size))
    batches = TextBatches(every, plan.batch, experiment.seed, steps, plan.epochs, runtime.torch_device())
    model = stock.stacked(experiment.model, experiment.tune)
    fleet = SimulatedFleet(size, model, batches, plan.optimizer, plan.clip, plan.weighting, plan.factor, 1,
                           partial(mean_states, model.hidden))
    template = model.template(experiment.seed).to(runtime.torch_device())
    return fleet, begin(experiment.algorithm, template, size)


app = client_app(made)

__all__ = ["app", "made", "of"]
