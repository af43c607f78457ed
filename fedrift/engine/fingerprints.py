"""The hashes of datasets and local models, on which the id of a run depends. A finished run is found by them without torch."""

from __future__ import annotations

from dataclasses import replace

from ..config.schema import ExperimentConfig
from ..core.errors import UserError
from ..models.presets import fingerprint_model
from .cache import ResourceCache


def resolve_fingerprints(config: ExperimentConfig, resources: ResourceCache) -> ExperimentConfig:
    """Add the hashes of the dataset and of a local model to a configuration, so that changed files give another id.

    Raises:
        UserError: The configuration contains a hash of the dataset already, and the dataset has changed.
    """
    corpus = resources.get_corpus(replace(config.dataset, fingerprint=""), config.model)
    if config.dataset.fingerprint not in ("", corpus.fingerprint):
        raise UserError(
            f"the dataset {config.dataset.name!r} has changed: its hash is {corpus.fingerprint[:12]}, but the configuration "
            f"requires {config.dataset.fingerprint[:12]}. Restore the old files, or remove dataset.fingerprint for a new experiment"
        )
    return replace(
        config,
        dataset=replace(config.dataset, fingerprint=corpus.fingerprint),
        model_fingerprint=fingerprint_model(config.model, corpus.examples is not None),
    )
