"""How alike two runs' final models see: hidden states of the one beside the other's, on the same text.

A federated run beside the pooled one of its seed (`algorithm=Centralized`) shows what federation makes of the representation,
beside its IID baseline what the skew does. The measures are those of the probe ``hidden``, with the second run's model in the place
of the pretrained one.
"""

from __future__ import annotations

from dataclasses import replace

from ..config.schema import ExperimentConfig, parse_stored_config
from ..core.errors import UserError
from ..probes import ScheduledProbe
from ..probes.context import server_models
from ..probes.representation import HiddenStates
from ..storage import Run
from ..storage.fork import load_checkpoint
from .build import build_run, resolve_fingerprints
from .cache import ResourceCache

SIMILARITY_MEASURES = ("cka", "cosine")
MATCHING_FIELDS = ("dataset", "model", "trainable")  # of the experiments, or there is nothing to compare or no text to do it on


def measure_similarity(first_run: Run, second_run: Run, resources: ResourceCache) -> dict[str, dict[str, dict[str, float]]]:
    """``{layer: {"cka" | "cosine": {"both", "one", "other"}}}``: of the two models, and of each with the pretrained one.

    "" is the mean over the layers. Debiased linear CKA, and the mean cosine of a position's two states, on 1,024 held-out
    positions where there are as many. Of several models of ``one``'s server the mean over its fleet; ``other`` must have one.
    """
    asked = [parse_run_config(run) for run in (first_run, second_run)]
    for name in MATCHING_FIELDS:
        left, right = (getattr(each, name) for each in asked)
        if left != right:
            raise UserError(f"states are compared under one {name}, but {first_run.id[:6]} has {left} and {second_run.id[:6]} {right}")
    experiment = resolve_fingerprints(replace(asked[0], evaluation=replace(asked[0].evaluation, probes=("hidden",))), resources)
    setting = build_run(experiment, resources)
    probe = next((look.probe for look in setting.probe_suite.probes if isinstance(look, ScheduledProbe) and look.name == "hidden"), None)
    if not isinstance(probe, HiddenStates):
        raise UserError(
            "there is too little held-out text to compare states on: raise dataset.test_fraction or evaluation.blocks_per_domain"
        )
    first, second = (load_checkpoint(run, setting.initial_state) for run in (first_run, second_run))
    if first is None or second is None:
        raise UserError(f"run {(first_run if first is None else second_run).id[:6]} has no model yet: let it come to its end")
    if second.server.num_models > 1:
        raise UserError(f"run {second_run.id[:6]} has {second.server.num_models} models and would have to have one: name it first")
    against = {"both": (first, server_models(second)), "one": (first, probe.initial_params), "other": (second, probe.initial_params)}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for pair, (state, beside) in against.items():
        said = replace(probe, initial_params=beside, pretrained_states={}).evaluate_state(state)
        for measure in SIMILARITY_MEASURES:
            metric = f"hidden.{measure}.pretrained"
            for key, value in said.items():
                name, layer = key if isinstance(key, tuple) else (key, "")
                if name == metric:
                    found.setdefault(layer, {}).setdefault(measure, {})[pair] = float(value)
    return found


def parse_run_config(run: Run) -> ExperimentConfig:
    """What a stored run was asked."""
    return parse_stored_config(run.config)
