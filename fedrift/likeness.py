"""How alike two runs' final models see: hidden states of the one beside the other's, on the same text.

A federated run beside the pooled one of its seed (`algorithm=Centralised`) shows what federation makes of the representation,
beside its IID twin what the skew does. The measures are those of the probe ``hidden``, with the second run's model in the place
of the pretrained one.
"""

from __future__ import annotations

from dataclasses import replace

from .errors import UserError
from .experiment import Experiment, parse_stored
from .probes import Look
from .probes.hidden import HiddenStates
from .probes.worn import server_models
from .recording import restored
from .setting import prepare, resolve
from .stock import Stock
from .store import Run

MEASURES = ("cka", "cosine")
SAME = ("corpus", "model", "tune")  # of the experiments, or there is nothing to compare or no text to do it on


def likeness(one: Run, other: Run, stock: Stock) -> dict[str, dict[str, dict[str, float]]]:
    """``{layer: {"cka" | "cosine": {"both", "one", "other"}}}``: of the two models, and of each with the pretrained one.

    "" is the mean over the layers. Debiased linear CKA, and the mean cosine of a position's two states, on 1,024 held-out
    positions where there are as many. Of several models of ``one``'s server the mean over its fleet; ``other`` must have one.
    """
    asked = [asked_of(run) for run in (one, other)]
    for name in SAME:
        left, right = (getattr(each, name) for each in asked)
        if left != right:
            raise UserError(f"states are compared under one {name}, but {one.id[:6]} has {left} and {other.id[:6]} {right}")
    experiment = resolve(replace(asked[0], evaluate=replace(asked[0].evaluate, panel=("hidden",))), stock)
    setting = prepare(experiment, stock)
    probe = next((look.probe for look in setting.panel.looks if isinstance(look, Look) and look.name == "hidden"), None)
    if not isinstance(probe, HiddenStates):
        raise UserError("there is too little held-out text to compare states on: raise corpus.test or evaluate.blocks")
    first, second = (restored(run, setting.state) for run in (one, other))
    if first is None or second is None:
        raise UserError(f"run {(one if first is None else other).id[:6]} has no model yet: let it come to its end")
    if second.server.models > 1:
        raise UserError(f"run {other.id[:6]} has {second.server.models} models and would have to have one: name it first")
    against = {"both": (first, server_models(second)), "one": (first, probe.start), "other": (second, probe.start)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for pair, (state, beside) in against.items():
        said = replace(probe, start=beside, kept={}).of(state)
        for measure in MEASURES:
            metric = f"hidden.{measure}.pretrained"
            for key, value in said.items():
                name, layer = key if isinstance(key, tuple) else (key, "")
                if name == metric:
                    found.setdefault(layer, {}).setdefault(measure, {})[pair] = float(value)
    return found


def asked_of(run: Run) -> Experiment:
    """What a stored run was asked."""
    return parse_stored(run.experiment)
