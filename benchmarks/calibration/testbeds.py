"""Complete runs of language models with injected failures, and the experiments (testbeds) that they modify.

The runs use the real models, round loop and probes, but no run directory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fedrift
from benchmarks.calibration.tiny_model import make_tiny_model
from fedrift.config.schema import ExperimentConfig, edit_config, parse_config
from fedrift.core.random import torch_stream
from fedrift.core.records import Record, Trajectory
from fedrift.core.tree import Tree
from fedrift.core.types import ClientSampler, CohortUpdate, FederatedState
from fedrift.data import DatasetConfig
from fedrift.data.synthetic import SyntheticConfig, generate_document, get_language
from fedrift.diagnosis.finding import RunEvidence, RunInfo
from fedrift.engine.build import build_run
from fedrift.engine.cache import ResourceCache
from fedrift.engine.loop import run_rounds
from fedrift.engine.run import evaluate_round
from fedrift.models.export import save_model
from fedrift.models.trainable import find_blocks
from fedrift.probes import MetricHistory, to_records
from fedrift.simulation import ClientPool, ClientSimulator
from fedrift.simulation.simulator import Batches, ClientAlgorithm
from fedrift.storage.files import write_atomically


@dataclass(frozen=True)
class RunRequest:
    """An experiment and the failure that is injected into it.

    Attributes:
        config: The experiment.
        client_sampler: Selects the cohort of each round; None samples at random.
        nan_clients: Clients whose losses are NaN.
        collapse_strength: How far the states of the last block are projected onto one direction in the last round. The
            projection starts in the middle of the run and grows linearly.
        has_flipped_signs: Whether every second client sends -B and -A, which is the same model but makes the factors cancel in
            the mean.
    """

    config: ExperimentConfig
    client_sampler: ClientSampler | None = None
    nan_clients: tuple[int, ...] = ()
    collapse_strength: float = 0.0
    has_flipped_signs: bool = False


@dataclass(frozen=True)
class AlternatingClients:
    """A sampler that selects one client per round, in turn."""

    def __call__(self, state: FederatedState, cohort_size: int, seed: int) -> Tensor:
        return torch.tensor([state.round % len(state.cluster_ids)])


@dataclass(frozen=True)
class SubsetClients:
    """A sampler that always selects the same clients."""

    clients: tuple[int, ...]

    def __call__(self, state: FederatedState, cohort_size: int, seed: int) -> Tensor:
        return torch.tensor(self.clients)


def run_request(request: RunRequest, resources: ResourceCache) -> tuple[Trajectory, RunInfo]:
    """Run an experiment with its injected failure; return the trajectory and the facts that detectors need."""
    config = request.config
    training = config.training
    run_context = build_run(config, resources)
    state, history, model = run_context.initial_state, MetricHistory(), run_context.model
    simulator = run_context.simulator
    if request.nan_clients:
        simulator = replace(simulator, batches=MarkedBatches(simulator.batches, request.nan_clients), loss_fn=NanLoss(simulator.loss_fn))
    position = RunPosition(training.num_rounds)
    pool: ClientPool = SignFlippedPool(simulator) if request.has_flipped_signs else simulator
    with collapse_last_block(model, request.collapse_strength, position) if request.collapse_strength else nullcontext():
        records = to_records(run_context.evaluation.probe_suite.evaluate_initial(state, history)[0], 0, [], simulator.size)
        history.add_records(records)
        for result in run_rounds(
            state,
            pool,
            config.algorithm,
            num_rounds=training.num_rounds,
            cohort_size=run_context.cohort_size,
            seed=config.seed,
            sample_clients=request.client_sampler or run_context.clustering.sample_cohort,
        ):
            position.round = result.after.round
            records += evaluate_round(result, run_context, history)[0]
    table = run_context.partition_table
    return Trajectory(tuple(records)), RunInfo(training.local_steps, tuple(table["domains"]), tuple(map(tuple, table["tokens"])))


@dataclass(frozen=True)
class MarkedBatches:
    """Batches with the additional entry ``is_nan`` [A], which marks the rows of clients whose loss becomes NaN."""

    batches: Batches
    clients: tuple[int, ...]

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        for batch in self.batches(round, cohort):
            row_clients = cohort[batch.get("rows", torch.arange(len(cohort)))]
            yield {**batch, "is_nan": torch.isin(row_clients, torch.tensor(self.clients))}


@dataclass(frozen=True)
class NanLoss:
    """A loss that is NaN for the marked rows."""

    objective: Any

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        is_nan = batch["is_nan"]
        loss: Tensor = self.objective(params, {name: leaf for name, leaf in batch.items() if name != "is_nan"})
        return torch.where(is_nan.to(loss.device), torch.nan, 1.0).to(loss) * loss


@dataclass(frozen=True)
class SignFlippedPool:
    """A client pool whose odd clients send their adapters B A as (-B)(-A)."""

    pool: ClientSimulator

    @property
    def size(self) -> int:
        """The number of clients."""
        return self.pool.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        """Train a cohort and flip the signs of the odd clients' adapters."""
        update = self.pool.train(state, algorithm, cohort)
        start, is_odd = state.server.params.take(state.cluster_ids[cohort]), cohort % 2 == 1
        return replace(update, delta=(start * -2.0 - update.delta).where(is_odd & ~update.failed, update.delta))


@dataclass
class RunPosition:
    """The current round of a run."""

    num_rounds: int
    round: int = 0

    def strength(self, maximum: float) -> float:
        """Return a strength that is 0 in the first half of the run and then grows linearly to ``maximum``."""
        return maximum * max(0.0, 2 * self.round / self.num_rounds - 1)


@contextmanager
def collapse_last_block(model: Any, maximum: float, position: RunPosition) -> Iterator[None]:
    """Replace the states h of the last block by h - s (h - v v'h) with a fixed direction v, for the duration of a ``with`` block."""
    block = find_blocks(model.network)[1][-1]
    width = model.network.get_input_embeddings().weight.shape[1]
    direction = torch.nn.functional.normalize(torch.randn(width, generator=torch_stream(0, "crowded")), dim=0)

    def project(module: Any, args: Any, output: Any) -> Any:
        states, strength = output[0] if isinstance(output, tuple) else output, position.strength(maximum)
        v = direction.to(states)
        states = states - strength * (states - (states @ v)[..., None] * v)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    hook = block.register_forward_hook(project)
    try:
        yield
    finally:
        hook.remove()


# Cache of runs. The key is a hash of the request and of the code that runs it. Detectors are not part of that code, so thresholds can
# be changed without running anything again.

PACKAGE_DIR, CALIBRATION_DIR = Path(fedrift.__file__).parent, Path(__file__).parent
UNRELATED_PACKAGES = ("cli", "report", "diagnosis", "studies", "stats", "flower", "conformance")
ANALYSIS_FILES = ("__main__.py", "score.py")  # files of this folder that only analyze runs


def load_or_run(cache_dir: Path | None, request: Any, run_fn: Callable[[], tuple[Trajectory, RunInfo]]) -> tuple[Trajectory, RunInfo]:
    """Return the run of a request, from the cache if it is stored there.

    Args:
        cache_dir: The folder of stored runs; None runs without a cache.
        request: The request, whose ``repr`` must contain everything that determines the run.
        run_fn: Computes the run.
    """
    if cache_dir is None:
        return run_fn()
    path = cache_dir / f"{sha256(f'{code_hash()} {request!r}'.encode()).hexdigest()[:24]}.json"
    if path.exists():
        content = json.loads(path.read_text())
        info = RunInfo(content["steps"], tuple(content["domains"]), tuple(map(tuple, content["tokens"])))
        return Trajectory(tuple(Record(*row) for row in content["records"])), info
    run, info = run_fn()
    rows = {"steps": info.local_steps, "domains": info.domains, "tokens": info.tokens, "records": run.records}
    write_atomically(path, json.dumps(rows).encode())
    return run, info


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Return a hash of all source files that can change the records of a run."""
    package_files = (path for path in sorted(PACKAGE_DIR.rglob("*.py")) if path.relative_to(PACKAGE_DIR).parts[0] not in UNRELATED_PACKAGES)
    calibration_files = (path for path in sorted(CALIBRATION_DIR.glob("*.py")) if path.name not in ANALYSIS_FILES)
    return sha256(b"".join(path.read_bytes() for path in (*package_files, *calibration_files))).hexdigest()


# Testbeds. The model of the synthetic testbed is pretrained on documents that no client has, until it judges nine of ten minimal pairs
# correctly. Other documents that no client has are its general text.

SYNTHETIC_CORPUS = {
    "num_domains": 4,
    "num_documents": 1600,
    "overlap": 0.2,
    "concept_shift": 0.4,
    "words_per_class": 20,
    "mean_sentences": 4,
    "seed": 7,
}
PRETRAINING = {
    "local_steps": 350,
    "batch_size": 32,
    "max_seq_length": 32,
    "num_rounds": 1,
    "client_optimizer": {"type": "AdamW", "lr": 0.003},
}
PROBE_GROUPS = ["updates", "hidden", "adapters", "general", "syntax"]


@dataclass(frozen=True, eq=False)
class Testbed:
    """A healthy skewed experiment into which failures are injected.

    Attributes:
        name: The name of the testbed.
        base: The healthy experiment.
        resources: The cache of models and datasets.
        strong_lr: An AdamW learning rate with a visible effect after a few dozen steps.
        damaging_lr: An AdamW learning rate that damages what is not trained on.
        cache_dir: The folder that stores runs; None stores none.
        steps_factor: The number of steps for a visible effect, relative to the synthetic testbed.
    """

    name: str
    base: ExperimentConfig
    resources: ResourceCache
    strong_lr: float
    damaging_lr: float
    cache_dir: Path | None = None
    steps_factor: int = 1

    def run_with_baseline(
        self, run: RunRequest, baseline: RunRequest, seed: int, ladder: Iterable[RunRequest] = (), **anchors: RunRequest
    ) -> RunEvidence:
        """Run a request, its control and further reference runs with one seed.

        Args:
            run: The run with the injected failure.
            baseline: The control.
            seed: The seed of all runs.
            ladder: Runs with other numbers of local steps.
            anchors: Further reference runs, by their field in ``RunEvidence``.
        """
        trajectory, info = self.run_cached(run, seed)
        references = {field: self.run_cached(request, seed)[0] for field, request in {"iid_baseline": baseline, **anchors}.items()}
        local_steps_sweep = {request.config.training.local_steps: self.run_cached(request, seed)[0] for request in ladder}
        return RunEvidence(trajectory, **references, local_steps_sweep=local_steps_sweep, info=info, seed=seed)

    def run_cached(self, request: RunRequest, seed: int) -> Any:
        """Return the trajectory and the facts of a request with a seed, from the cache if possible."""
        seeded = replace(request, config=edit_config(request.config, {"seed": seed}))
        return load_or_run(self.cache_dir, (self.name, seeded), lambda: run_request(seeded, self.resources))

    def make_config(self, **changes: Any) -> ExperimentConfig:
        """Return the base experiment with changes; keys use ``__`` instead of dots."""
        changed: ExperimentConfig = edit_config(self.base, changes)
        return changed


def synthetic_testbed(resources: ResourceCache, cache_dir: Path | None = None) -> Testbed:
    """Return the synthetic testbed: four domains, four clients of one domain each, and a model pretrained on the language."""
    folder = resources.runtime.cache_dir / "calibration" / f"synthetic {code_hash()[:12]}"
    if not (folder / "model" / "config.json").exists():
        pretrain_model(folder, resources)
    return Testbed(
        "synthetic",
        parse_config(
            {
                "dataset": {"name": "synthetic", "synthetic": SYNTHETIC_CORPUS},
                "model": str(folder / "model"),
                "trainable": {"type": "Lora", "r": 4, "target_modules": ["all"]},
                "partition": {"type": "TopicMix", "num_clients": 4, "severity": 1.0},
                "training": {
                    "num_rounds": 10,
                    "local_steps": 4,
                    "batch_size": 4,
                    "max_seq_length": 32,
                    "client_optimizer": {"type": "Sgd", "lr": 0.3},
                    "max_grad_norm": None,
                    "client_weighting": "uniform",
                },
                "evaluation": {
                    "probes": PROBE_GROUPS,
                    "expensive_interval": 5,
                    "blocks_per_domain": 8,
                    "blocks_per_client": 0,
                    "final_blocks_per_domain": 0,
                    "general_dataset": str(folder / "general.csv"),
                },
            }
        ),
        resources,
        0.005,
        0.005,
        cache_dir,
    )


def news_testbed(resources: ResourceCache, cache_dir: Path | None = None) -> Testbed:
    """Return the news testbed: `pocket` and three clients with one topic of BBC News each; the other topics are the general text."""
    base = {"dataset": {"name": "bbc", "domains": ["entertainment", "sports", "tech"]}, "model": "pocket"}
    path = resources.runtime.cache_dir / "calibration" / "news.csv"
    if not path.exists():
        general = resources.get_corpus(DatasetConfig("bbc", domains=("business", "politics")), "pocket")
        write_corpus(path, [(text, "general") for text in general.text[:40]])
    return Testbed(
        "lm",
        parse_config(
            {
                **base,
                "trainable": {"type": "Lora", "r": 4},
                "partition": {"type": "TopicMix", "num_clients": 3, "severity": 1.0},
                "training": {
                    "num_rounds": 10,
                    "local_steps": 4,
                    "batch_size": 2,
                    "max_seq_length": 32,
                    "client_optimizer": {"type": "Sgd", "lr": 0.3},
                    "max_grad_norm": None,
                    "client_weighting": "uniform",
                },
                "evaluation": {
                    "probes": PROBE_GROUPS,
                    "expensive_interval": 5,
                    "blocks_per_domain": 6,
                    "blocks_per_client": 0,
                    "final_blocks_per_domain": 0,
                    "general_dataset": str(path),
                },
            }
        ),
        resources,
        0.003,
        0.015,
        cache_dir,
        steps_factor=2,
    )


def write_corpus(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write texts and labels as a dataset file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def pretrain_model(folder: Path, resources: ResourceCache) -> None:
    """Create a tiny model for the synthetic language and pretrain it on documents that no client has."""
    language_config = SyntheticConfig(**SYNTHETIC_CORPUS)  # type: ignore[arg-type]
    grammars = get_language(language_config).grammars
    words = {
        word
        for grammar in grammars
        for choices in grammar.rules.values()
        for _, symbols in choices
        for word in symbols
        if word not in grammar.rules
    }
    initial_model = make_tiny_model(folder / "seed", words)
    for name, first_document, count in (("raised", 100_000, 400), ("general", 200_000, 60)):
        write_corpus(
            folder / f"{name}.csv",
            [
                (generate_document(language_config, domain, first_document + offset), str(domain))
                for offset in range(count)
                for domain in range(language_config.num_domains)
            ],
        )
    experiment = parse_config(
        {
            "dataset": str(folder / "raised.csv"),
            "model": str(initial_model),
            "trainable": "All",
            "partition": {"type": "TopicMix", "num_clients": 1, "severity": 0.0},
            "training": PRETRAINING,
            "evaluation": {"probes": [], "blocks_per_client": 0, "final_blocks_per_domain": 0},
        }
    )
    run_context = build_run(experiment, resources)
    (result,) = run_rounds(run_context.initial_state, run_context.simulator, experiment.algorithm, num_rounds=1, cohort_size=1, seed=0)
    model = run_context.model
    resources.get_language_model(str(initial_model), experiment.trainable).tokenizer.save_pretrained(str(folder / "model"))
    save_model(folder / "model", model, experiment.trainable, str(initial_model), result.after.server)


TESTBEDS = {"synthetic": synthetic_testbed, "lm": news_testbed}
