"""Test the docstrings of the public names: each has its sections and an example, and all examples run."""

from __future__ import annotations

import doctest
import inspect
import re
import sys
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

import fedrift
from fedrift.core import registry
from fedrift.partitioners import make_corpus
from tests.docs.test_site import load_script
from tests.small_experiment import documents

NAMES = [name for name in fedrift.__all__ if name != "__version__"]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Return what the examples use, as the docstring of the package describes it. Two runs of one round serve all of them."""
    folder = tmp_path_factory.mktemp("runs")
    config = fedrift.load_config(
        {
            "dataset": {"name": "bbc", "limit": 60},
            "partition": {"num_clients": 3},
            "training": {"num_rounds": 1, "local_steps": 1, "batch_size": 1, "max_seq_length": 16},
            "evaluation": {"blocks_per_domain": 1, "blocks_per_client": 1, "final_blocks_per_domain": 0, "probes": []},
        }
    )
    target = torch.tensor([[0.0], [1.0]])  # client k minimizes (x - target_k)^2 / 2
    simulator = fedrift.ClientSimulator(
        2,
        lambda params, batch: ((params["x"] - batch["target"]) ** 2).sum(1) / 2,
        lambda round, cohort: [{"target": target[cohort]}] * 2,
        fedrift.Sgd(0.5),
    )
    params = fedrift.Tree(x=torch.zeros(1, 1))
    state = fedrift.init_state(fedrift.FedAvg(), params, num_clients=2)
    texts, labels = zip(*documents(per_topic=20), strict=True)
    return {
        "fedrift": fedrift,
        "folder": folder,
        "config": config,
        "run": fedrift.run(config, runs_dir=folder),
        "baseline": fedrift.run(config.iid_baseline(), runs_dir=folder),
        "corpus": replace(make_corpus(texts, labels), source=np.resize(["daily", "weekly"], len(texts)), has_source=True),
        "params": params,
        "simulator": simulator,
        "result": next(fedrift.run_rounds(state, simulator, fedrift.FedAvg(), num_rounds=1, cohort_size=2, seed=0)),
    }


def test_every_public_name_has_examples_that_run(things, monkeypatch):
    runner, report = doctest.DocTestRunner(verbose=False), []
    for name in NAMES:
        thing = getattr(fedrift, name)
        names = {**vars(sys.modules[thing.__module__]), **things, "rng": np.random.default_rng(0)}
        text = inspect.getdoc(thing) or ""
        examples = doctest.DocTestParser().get_doctest(text, names, name, None, None)
        if not examples.examples or any(doctest.SKIP in example.options for example in examples.examples):
            report.append(f"the docstring of fedrift.{name} has no example that runs\n")
        with monkeypatch.context() as patch:  # what an example registers does not stay
            patch.setattr(registry, "_registered", {kind: dict(known) for kind, known in registry._registered.items()})
            runner.run(examples, out=report.append)
    assert not report, "".join(report)


def test_every_public_name_describes_its_arguments_result_and_errors():
    reference, missing = load_script("make_reference"), []
    for name in NAMES:
        thing = getattr(fedrift, name)
        sections = reference.split_docstring(thing)[1]
        if inspect.isclass(thing):
            described = reference.describe_fields(thing)
            names = [field.name for field in fields(thing) if field.init] if is_dataclass(thing) else list(getattr(thing, "_fields", ()))
            if "__init__" in vars(thing) and not is_dataclass(thing) and not getattr(thing, "_is_protocol", False):
                names = list(inspect.signature(thing).parameters)
            missing += [f"{name}: {each}" for each in names if not each.startswith("_") and each not in described]
        else:
            described = re.findall(r"^    ([*\w]+): ", sections.get("Args", ""), re.MULTILINE)
            missing += [f"{name}: {each}" for each in inspect.signature(thing).parameters if not {each, f"**{each}"} & set(described)]
            if not {"Returns", "Yields"} & set(sections):
                missing.append(f"{name}: Returns")
            if "raise " in inspect.getsource(thing) and "Raises" not in sections:
                missing.append(f"{name}: Raises")
    assert not missing, "\n".join(missing)
