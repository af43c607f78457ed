"""Check fedrift in this environment: a small run's numbers, the adapter round trip, a saved dataset and a run over Flower.

    python scripts/compatibility_check.py WORK_FOLDER [--simulation]

``compatibility.py`` runs it once per environment. The last line of the output is JSON: the losses of the run and the largest
differences. A part that does not work raises its error.

- The run: the demo on 150 documents, with two short rounds and the model ``pocket``.
- The adapters: those that fedrift saved give the same logits when PEFT loads them, and four equal ones have themselves as average.
- The dataset: what ``datasets`` saved or loads is read with the same texts and labels, and is partitioned.
- Flower: an app keeps its arrays bit for bit with ``Diagnosed`` around its strategy, on nodes in this process. With ``--simulation``
  the run is also repeated over Flower's simulation, with the same losses.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fedrift
from fedrift.config.loader import load_yaml
from fedrift.config.runtime import Runtime
from fedrift.config.schema import ExperimentConfig, parse_config
from fedrift.core.tree import Tree
from fedrift.engine.build import build_run
from fedrift.engine.cache import ResourceCache, resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.models.presets import pocket_folder
from fedrift.storage import Run
from fedrift.storage.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "peft", "datasets", "flwr")
OVERRIDES = (
    "dataset={name: bbc, limit: 150}",
    "training.num_rounds=2",
    "training.num_clients_per_round=2",
    "training.local_steps=3",
    "evaluation.interval=1",
    "evaluation.blocks_per_domain=2",
    "evaluation.final_blocks_per_domain=2",
    "evaluation.blocks_per_client=0",
)
LOGIT_TOLERANCE = 1e-4  # logits of pocket lie between -30 and 30 in float32
FLOWER_TOLERANCE = 1e-5  # of the loss in nats: clients in separate processes sum in another order


def demo_config(*overrides: str) -> ExperimentConfig:
    """Return the experiment of the demo with two short rounds."""
    return parse_config(load_yaml(ROOT / "experiments" / "demo.yaml"), [*OVERRIDES, *overrides])


def check_run(folder: Path) -> tuple[Run, ResourceCache, list[float]]:
    """Run the experiment; return the run, its resources and the held-out loss after each round, the untrained model first."""
    resources = ResourceCache(Runtime(runs_dir=folder / "runs", cache_dir=folder / "cache", device="cpu", threads=1))
    run = run_experiment(demo_config(), resources)
    losses = [float(loss) for loss in run.trajectory().curve("loss")]
    if len(losses) != 3 or losses[-1] == losses[0]:
        raise AssertionError(f"two rounds of training must give three losses that differ, not {losses}")
    return run, resources, losses


def check_adapters(run: Run, resources: ResourceCache) -> float:
    """Load the adapters that the run saved with PEFT; return the largest difference between PEFT's logits and fedrift's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, run.folder / "model").eval()
    setting = build_run(resolve_fingerprints(demo_config(), resources), resources)
    tensors, _, _ = Checkpoint(run).read()
    prefix = "server.params/"
    params = Tree({name.removeprefix(prefix): leaf for name, leaf in tensors.items() if name.startswith(prefix)})
    tokens = torch.arange(5, 69).view(1, 2, 32)
    with torch.no_grad():
        ours = setting.model.hidden_states(params, tokens)[0] @ setting.model.head.weight.T
        logits = theirs(input_ids=tokens[0]).logits
        with theirs.disable_adapter():
            untrained = theirs(input_ids=tokens[0]).logits
    difference = (ours - logits).abs().max().item()
    if not difference < LOGIT_TOLERANCE:
        raise AssertionError(f"PEFT's logits of the saved adapters differ from fedrift's by {difference:.2g}")
    if not (logits - untrained).abs().max().item() > 100 * LOGIT_TOLERANCE:
        raise AssertionError("the saved adapters do not change the logits")
    fedrift.aggregate_adapters([run.folder / "model"] * 4, "fedavg", output=run.folder / "mean")
    averaged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(pocket_folder(), dtype=torch.float32), run.folder / "mean")
    with torch.no_grad():
        apart = (averaged.eval()(input_ids=tokens[0]).logits - logits).abs().max().item()
    if not apart < LOGIT_TOLERANCE:
        raise AssertionError(f"the average of four equal adapters differs from that adapter by {apart:.2g}")
    return difference


def check_dataset(folder: Path) -> int:
    """Read a dataset that ``datasets`` saved, load Parquet files through it, partition it; return the number of documents."""
    from datasets import ClassLabel, Dataset, Features, Value

    from fedrift.data.dataset import DatasetConfig, load_corpus
    from fedrift.data.readers import download_dataset

    topics = ["food", "sport", "tech"]
    texts = [
        f"A sentence about {topics[number % 3]} with the number {number}, long enough to be a document of its own." for number in range(60)
    ]
    features = Features(text=Value("string"), label=ClassLabel(names=topics))
    dataset = Dataset.from_dict({"text": texts, "label": [number % 3 for number in range(60)]}, features=features)
    dataset.save_to_disk(str(folder / "saved"))
    (folder / "parquet").mkdir(exist_ok=True)
    dataset.to_parquet(str(folder / "parquet" / "train.parquet"))
    for name in ("saved", "parquet"):
        corpus = load_corpus(DatasetConfig(name=str(folder / name)))
        found = {text: corpus.domains[label] for text, label in zip(corpus.text, corpus.label, strict=True)}
        if found != {text: topics[number % 3] for number, text in enumerate(texts)}:
            raise AssertionError(f"the dataset of 60 rows is read from {name!r} with other texts or labels")
    loaded = download_dataset(str(folder / "parquet"), None)["train"]
    made = fedrift.partitioner(fedrift.TopicMix(num_clients=3, severity=1.0), loaded, label_column="label")
    parts = [made.load_partition(number) for number in range(3)]
    if sum(len(part) for part in parts) != 60 or any(part.features != dataset.features for part in parts):
        raise AssertionError("the partitions do not have the rows and columns of the dataset")
    return len(texts)


def check_flower(folder: Path) -> int:
    """Run a Flower app with its strategy plain and wrapped; return the number of recorded metrics."""
    import random

    from flwr.serverapp.strategy import FedAvg
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.flower_llm_app import AppConfig, adapter_state, make_model, run_app
    from fedrift.flower import Diagnosed

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = make_model(LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=16, **shape)))
    initial = adapter_state(model)
    config = AppConfig(tuple(torch.randint(40, (6, 12)) for _ in range(3)), {"all": torch.randint(40, (4, 12))}, local_steps=2)
    wrapped = Diagnosed(FedAvg(fraction_evaluate=0.0), runs_dir=folder / "app", name="app")
    results = []
    for strategy in (FedAvg(fraction_evaluate=0.0), wrapped):
        random.seed(0)  # Flower draws the nodes from the global generator
        result = run_app(strategy, config, model, initial, 2)
        results.append({name: array.data for name, array in result.arrays.items()})
    if results[0] != results[1]:
        raise AssertionError("Diagnosed changes the arrays of the app")
    metrics = wrapped.run.trajectory().metrics
    if not {"update.norm", "adapters.error", "wire.up"} <= set(metrics):
        raise AssertionError(f"the wrapped app recorded only {metrics}")
    return len(metrics)


def check_simulation(folder: Path, losses: list[float]) -> float:
    """Run the same experiment over Flower's simulation; return the largest difference of its losses."""
    from fedrift.flower.config import FlowerConfig
    from fedrift.flower.launch import simulate

    resources = ResourceCache(Runtime(runs_dir=folder / "flower", cache_dir=folder / "cache", device="cpu", threads=1))
    run = simulate(demo_config(), resources, FlowerConfig())
    over = [float(loss) for loss in run.trajectory().curve("loss")]
    difference = max(abs(one - two) for one, two in zip(over, losses, strict=True))
    if not difference < FLOWER_TOLERANCE:
        raise AssertionError(f"over Flower the losses are {over}, in one process {losses}")
    return difference


def main() -> None:
    """Run all checks and print their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder for the runs")
    parser.add_argument("--simulation", action="store_true", help="run the experiment over Flower's simulation too")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    run, resources, losses = check_run(args.folder)
    numbers: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "losses": losses,
        "adapter_logit_difference": check_adapters(run, resources),
        "dataset_rows": check_dataset(args.folder),
        "flower_metrics": check_flower(args.folder),
    }
    if args.simulation:
        numbers["simulation_loss_difference"] = check_simulation(args.folder, losses)
    print(json.dumps(numbers))


if __name__ == "__main__":
    sys.exit(main())
