"""Similarity of the hidden states of the final models of two runs, on the same text.

The comparison of a federated run with the centralized run of its seed (``algorithm=Centralized``) shows the effect of federation on the
representation. The comparison with its IID baseline shows the effect of heterogeneity. The measures are those of the probe ``hidden``,
with the model of the second run instead of the pretrained model.
"""

from __future__ import annotations

from dataclasses import replace

from ..core.errors import UserError
from ..probes import ScheduledProbe
from ..probes.context import server_models
from ..probes.representation import HiddenStates
from ..storage import Run
from ..storage.checkpoint import load_checkpoint
from .build import build_run
from .cache import ResourceCache, resolve_fingerprints
from .fork import load_run_config

SIMILARITY_MEASURES = ("cka", "cosine")
MATCHING_FIELDS = ("dataset", "model", "trainable")  # keys of the configurations that must be equal


def measure_similarity(first_run: Run, second_run: Run, resources: ResourceCache) -> dict[str, dict[str, dict[str, float]]]:
    """Measure the similarity of the hidden states of two models, and of each model with the pretrained model.

    The measures are debiased linear CKA, and the mean cosine similarity of the two states of a position. They are computed on up to
    1,024 held-out positions.

    Args:
        first_run: The first run. If its server has several models, the similarity is the mean over its clients.
        second_run: The second run, whose server must have one model.
        resources: Loaded models and data.

    Returns:
        ``{layer: {"cka" | "cosine": {"between": .., "first": .., "second": ..}}}``. ``between`` compares the two models, ``first`` the
        first with the pretrained model, and ``second`` the second with the pretrained model. The layer "" is the mean over the layers.

    Raises:
        UserError: The runs have different datasets, models or trained parameters, a run has no model yet, or there is too little
            held-out text.
    """
    configs = [load_run_config(run) for run in (first_run, second_run)]
    for name in MATCHING_FIELDS:
        first_value, second_value = (getattr(config, name) for config in configs)
        if first_value != second_value:
            raise UserError(
                f"both runs must have the same {name}, but {first_run.id[:6]} has {first_value} and {second_run.id[:6]} has {second_value}"
            )
    config = resolve_fingerprints(replace(configs[0], evaluation=replace(configs[0].evaluation, probes=("hidden",))), resources)
    context = build_run(config, resources)
    probes = context.evaluation.probe_suite.probes
    probe = next((entry.probe for entry in probes if isinstance(entry, ScheduledProbe) and entry.name == "hidden"), None)
    if not isinstance(probe, HiddenStates):
        raise UserError(
            "there is too little held-out text to compare hidden states; increase dataset.test_fraction or evaluation.blocks_per_domain"
        )
    first, second = (load_checkpoint(run, context.initial_state) for run in (first_run, second_run))
    if first is None or second is None:
        raise UserError(f"run {(first_run if first is None else second_run).id[:6]} has no models yet; finish the run first")
    if second.server.num_models > 1:
        raise UserError(
            f"run {second_run.id[:6]} has {second.server.num_models} models, but the second run must have one; exchange the two runs"
        )
    pairs = {"between": (first, server_models(second)), "first": (first, probe.initial_params), "second": (second, probe.initial_params)}
    similarity: dict[str, dict[str, dict[str, float]]] = {}
    for pair, (state, reference_params) in pairs.items():
        values = replace(probe, initial_params=reference_params, pretrained_states={}).evaluate_state(state)
        for measure in SIMILARITY_MEASURES:
            metric = f"hidden.{measure}.pretrained"
            for key, value in values.items():
                name, layer = key if isinstance(key, tuple) else (key, "")
                if name == metric:
                    similarity.setdefault(layer, {}).setdefault(measure, {})[pair] = float(value)
    return similarity
