"""Whole runs of language models with something planted in them: the real setting, round loop and panel, and no run folder."""

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
    """An experiment, and what is planted in it.

    ``client_sampler``: who takes part, where it is not left to chance. ``nan_clients``: their losses are not numbers.
    ``collapse_strength``: how far the last block's states are drawn onto one direction in the last round, growing from
    half-way on. ``has_flipped_signs``: every second client sends -B and -A, the same model written otherwise, so that the mean
    of factors cancels.
    """

    config: ExperimentConfig
    client_sampler: ClientSampler | None = None
    nan_clients: tuple[int, ...] = ()
    collapse_strength: float = 0.0
    has_flipped_signs: bool = False


@dataclass(frozen=True)
class AlternatingClients:
    """One client a round, in turn: all others sit out."""

    def __call__(self, state: FederatedState, cohort_size: int, seed: int) -> Tensor:
        return torch.tensor([state.round % len(state.cluster_ids)])


@dataclass(frozen=True)
class SubsetClients:
    """These clients and nobody else."""

    clients: tuple[int, ...]

    def __call__(self, state: FederatedState, cohort_size: int, seed: int) -> Tensor:
        return torch.tensor(self.clients)


def run_request(request: RunRequest, resources: ResourceCache) -> tuple[Trajectory, RunInfo]:
    """The run, from round 0 to its end, and what is known of it."""
    experiment = request.config
    plan = experiment.training
    setting = build_run(experiment, resources)
    state, past, model = setting.initial_state, MetricHistory(), setting.model
    fleet = setting.simulator
    if request.nan_clients:
        fleet = replace(fleet, batches=MarkedBatches(fleet.batches, request.nan_clients), loss_fn=NanLoss(fleet.loss_fn))
    at = RunPosition(plan.num_rounds)
    working: ClientPool = SignFlippedPool(fleet) if request.has_flipped_signs else fleet
    with collapse_last_block(model, request.collapse_strength, at) if request.collapse_strength else nullcontext():
        rows = to_records(setting.probe_suite.evaluate_initial(state, past)[0], 0, [], fleet.size)
        past.add_records(rows)
        for done in run_rounds(
            state,
            working,
            experiment.algorithm,
            num_rounds=plan.num_rounds,
            cohort_size=setting.cohort_size,
            seed=experiment.seed,
            sample_clients=request.client_sampler or setting.clustering.sample_cohort,
        ):
            at.round = done.after.round
            rows += evaluate_round(done, setting, past)[0]
    table = setting.partition_table
    return Trajectory(tuple(rows)), RunInfo(plan.local_steps, tuple(table["domains"]), tuple(map(tuple, table["tokens"])))


@dataclass(frozen=True)
class MarkedBatches:
    """Batches that say whose loss is to be spoilt, ``spoilt [A]``."""

    batches: Batches
    clients: tuple[int, ...]

    def __call__(self, round: int, cohort: Tensor) -> Iterator[dict[str, Tensor]]:
        for batch in self.batches(round, cohort):
            who = cohort[batch.get("rows", torch.arange(len(cohort)))]
            yield {**batch, "spoilt": torch.isin(who, torch.tensor(self.clients))}


@dataclass(frozen=True)
class NanLoss:
    """A loss that is not a number for those who are marked."""

    objective: Any

    def __call__(self, params: Tree, batch: dict[str, Tensor]) -> Tensor:
        spoilt = batch["spoilt"]
        loss: Tensor = self.objective(params, {name: leaf for name, leaf in batch.items() if name != "spoilt"})
        return torch.where(spoilt.to(loss.device), torch.nan, 1.0).to(loss) * loss


@dataclass(frozen=True)
class SignFlippedPool:
    """A fleet whose odd clients write their adapters B A as (-B)(-A)."""

    pool: ClientSimulator

    @property
    def size(self) -> int:
        return self.pool.size

    def train(self, state: FederatedState, algorithm: ClientAlgorithm, cohort: Tensor) -> CohortUpdate:
        report = self.pool.train(state, algorithm, cohort)
        start, odd = state.server.params.take(state.cluster_ids[cohort]), cohort % 2 == 1
        return replace(report, delta=(start * -2.0 - report.delta).where(odd & ~report.failed, report.delta))


@dataclass
class RunPosition:
    """Where a run is."""

    num_rounds: int
    round: int = 0

    def strength(self, maximum: float) -> float:
        """Nothing in the first half, then growing evenly to ``maximum``."""
        return maximum * max(0.0, 2 * self.round / self.num_rounds - 1)


@contextmanager
def collapse_last_block(model: Any, maximum: float, position: RunPosition) -> Iterator[None]:
    """The last block's states h become h - s (h - v v'h), with one direction v: what later layers see is crowded together."""
    block = find_blocks(model.network)[1][-1]
    width = model.network.get_input_embeddings().weight.shape[1]
    way = torch.nn.functional.normalize(torch.randn(width, generator=torch_stream(0, "crowded")), dim=0)

    def draw(module: Any, args: Any, out: Any) -> Any:
        states, strength = out[0] if isinstance(out, tuple) else out, position.strength(maximum)
        v = way.to(states)
        states = states - strength * (states - (states @ v)[..., None] * v)
        return (states, *out[1:]) if isinstance(out, tuple) else states

    hook = block.register_forward_hook(draw)
    try:
        yield
    finally:
        hook.remove()


# Runs of a calibration, kept on disk: one that was stopped goes on where it was, and none is run twice.
#
# A run is kept under a hash of all that was asked and of the code that ran it: change either and it is another run. Detectors are
# not part of that code, so thresholds can be looked at without running anything again.

PACKAGE_DIR, CALIBRATION_DIR = Path(fedrift.__file__).parent, Path(__file__).parent
UNRELATED_PACKAGES = ("cli", "report", "diagnosis", "studies", "stats", "flower", "conformance")
ANALYSIS_FILES = ("__main__.py", "score.py")  # of this folder: what looks at runs


def load_or_run(cache_dir: Path | None, request: Any, run_fn: Callable[[], tuple[Trajectory, RunInfo]]) -> tuple[Trajectory, RunInfo]:
    """The run of ``request``, whose ``repr`` says all that it is; made if it is not in the folder."""
    if cache_dir is None:
        return run_fn()
    place = cache_dir / f"{sha256(f'{code_hash()} {request!r}'.encode()).hexdigest()[:24]}.json"
    if place.exists():
        said = json.loads(place.read_text())
        facts = RunInfo(said["steps"], tuple(said["domains"]), tuple(map(tuple, said["tokens"])))
        return Trajectory(tuple(Record(*row) for row in said["records"])), facts
    run, facts = run_fn()
    rows = {"steps": facts.local_steps, "domains": facts.domains, "tokens": facts.tokens, "records": run.records}
    write_atomically(place, json.dumps(rows).encode())
    return run, facts


@lru_cache(maxsize=1)
def code_hash() -> str:
    """A hash of every file that can change what a run records."""
    package = (path for path in sorted(PACKAGE_DIR.rglob("*.py")) if path.relative_to(PACKAGE_DIR).parts[0] not in UNRELATED_PACKAGES)
    ours = (path for path in sorted(CALIBRATION_DIR.glob("*.py")) if path.name not in ANALYSIS_FILES)
    return sha256(b"".join(path.read_bytes() for path in (*package, *ours))).hexdigest()


# The grounds that whole runs are planted on: the synthetic language with a model raised in seconds, and `pocket` on news.
#
# The sandbox's language is known exactly: its model is raised on documents that no client has, until it decides nine of ten
# minimal pairs rightly. Other documents that no client has are its general text.

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
    """Where plants grow: ``base`` is a healthy skewed experiment, ``cache_dir`` where runs are kept (None: nowhere)."""

    name: str
    base: ExperimentConfig
    resources: ResourceCache
    strong_lr: float  # AdamW's learning rate that leaves its mark in a few dozen steps
    damaging_lr: float  # that which costs what it was not trained on
    cache_dir: Path | None = None
    steps_factor: int = 1  # times the steps that leave their mark on the sandbox

    def run_with_baseline(
        self, run: RunRequest, baseline: RunRequest, seed: int, ladder: Iterable[RunRequest] = (), **anchors: RunRequest
    ) -> RunEvidence:
        """A run beside its control, and anchors by their field in ``RunEvidence``; all of one seed."""
        made, facts = self.run_cached(run, seed)
        others = {field: self.run_cached(asked, seed)[0] for field, asked in {"iid_baseline": baseline, **anchors}.items()}
        rungs = {asked.config.training.local_steps: self.run_cached(asked, seed)[0] for asked in ladder}
        return RunEvidence(made, **others, local_steps_sweep=rungs, info=facts, seed=seed)

    def run_cached(self, request: RunRequest, seed: int) -> Any:
        """One run and its facts."""
        seeded = replace(request, config=edit_config(request.config, {"seed": seed}))
        return load_or_run(self.cache_dir, (self.name, seeded), lambda: run_request(seeded, self.resources))

    def make_config(self, **changes: Any) -> ExperimentConfig:
        """The base with some changes, by path with ``__`` for dots."""
        changed: ExperimentConfig = edit_config(self.base, changes)
        return changed


def synthetic_testbed(resources: ResourceCache, cache_dir: Path | None = None) -> Testbed:
    """Four domains of a made-up language, four clients of one domain each, and a model that knows the language roughly."""
    place = resources.runtime.cache_dir / "calibration" / f"synthetic {code_hash()[:12]}"
    if not (place / "model" / "config.json").exists():
        pretrain_model(place, resources)
    return Testbed(
        "synthetic",
        parse_config(
            {
                "dataset": {"name": "synthetic", "synthetic": SYNTHETIC_CORPUS},
                "model": str(place / "model"),
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
                    "general_dataset": str(place / "general.csv"),
                },
            }
        ),
        resources,
        0.005,
        0.005,
        cache_dir,
    )


def news_testbed(resources: ResourceCache, cache_dir: Path | None = None) -> Testbed:
    """Three topics of BBC News, three clients of one topic each, and `pocket`; the other two topics are the general text."""
    base = {"dataset": {"name": "bbc", "domains": ["entertainment", "sports", "tech"]}, "model": "pocket"}
    place = resources.runtime.cache_dir / "calibration" / "news.csv"
    if not place.exists():
        others = resources.get_corpus(DatasetConfig("bbc", domains=("business", "politics")), "pocket")
        write_corpus(place, [(text, "general") for text in others.text[:40]])
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
                    "general_dataset": str(place),
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
    """Texts with their labels as a corpus file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def pretrain_model(folder: Path, resources: ResourceCache) -> None:
    """Plant a model that knows the sandbox's words and train it on documents that no client will have."""
    dials = SyntheticConfig(**SYNTHETIC_CORPUS)  # type: ignore[arg-type]
    grammar = get_language(dials).grammars
    words = {word for each in grammar for choices in each.rules.values() for _, said in choices for word in said if word not in each.rules}
    seed = make_tiny_model(folder / "seed", words)
    for name, first, count in (("raised", 100_000, 400), ("general", 200_000, 60)):
        write_corpus(
            folder / f"{name}.csv",
            [
                (generate_document(dials, domain, first + number), str(domain))
                for number in range(count)
                for domain in range(dials.num_domains)
            ],
        )
    experiment = parse_config(
        {
            "dataset": str(folder / "raised.csv"),
            "model": str(seed),
            "trainable": "All",
            "partition": {"type": "TopicMix", "num_clients": 1, "severity": 0.0},
            "training": PRETRAINING,
            "evaluation": {"probes": [], "blocks_per_client": 0, "final_blocks_per_domain": 0},
        }
    )
    setting = build_run(experiment, resources)
    (done,) = run_rounds(setting.initial_state, setting.simulator, experiment.algorithm, num_rounds=1, cohort_size=1, seed=0)
    model = setting.model
    resources.get_language_model(str(seed), experiment.trainable).tokenizer.save_pretrained(str(folder / "model"))
    save_model(folder / "model", model, experiment.trainable, str(seed), done.after.server)


TESTBEDS = {"synthetic": synthetic_testbed, "lm": news_testbed}
