"""Commands load only the libraries that they use, and workers load them once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from fedrift.cli import partition_data
from fedrift.config.loader.parsing import Parser
from fedrift.config.loader.parsing import _field_types as field_types
from fedrift.config.schema import REGISTRY
from fedrift.data import DatasetConfig, load_corpus
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.studies.executors import WORKER_MODULES, Processes, create_worker_context
from fedrift.studies.manifest import StudyManifest
from tests.small_experiment import byte_tokenizer, corpus_file, experiment, make_cache

CODE = """
import sys
from fedrift.cli.app import main

excluded = set(sys.argv[1].split(","))
sys.argv[1:2] = []
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
assert not excluded & set(sys.modules), excluded & set(sys.modules)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with an experiment and its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    asked = experiment(folder, "training.num_rounds=1")
    (folder / "e.yaml").write_text(yaml.safe_dump(asked.to_dict()))
    run_experiment(asked, make_cache(folder))
    return folder


def run_without(modules: str, folder: Path, *words: str) -> str:
    """Run a command in its own process, check that it has not loaded any of the modules, and return what it printed."""
    environment = {**os.environ, "FEDRIFT_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, modules, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_experiment_is_checked_without_torch(finished):
    assert "# valid" in run_without("torch,transformers,pandas,scipy.stats,sklearn", finished, "validate", "e.yaml")


@pytest.mark.parametrize("words", [("run", "e.yaml"), ("list",)])
def test_a_finished_run_is_shown_without_torch(finished, words):
    shown = run_without("torch,transformers,pandas,peft,altair,statsmodels,scipy.stats", finished, *words)
    assert "finished" in shown


def test_a_partition_is_shown_without_torch_and_models(finished):
    modules = "torch,transformers.modeling_utils,transformers.models.llama.modeling_llama,peft,statsmodels"
    assert "Distinctive words" in run_without(modules, finished, "partition", "show", "e.yaml")


def test_the_types_of_all_fields_are_known_without_torch():
    """A field of an unknown type would be accepted with any value."""
    for kind in REGISTRY.modules:
        for chosen in (REGISTRY.choices(kind) or {}).values():
            assert {field.name for field in fields(chosen)} <= field_types(chosen).keys(), chosen
    assert Parser(REGISTRY).errors == []


NOTING = """
import os
from dataclasses import dataclass
from pathlib import Path
from fedrift.algorithms import FedAvg

FILE = Path(__file__).with_name("processes.txt")


@dataclass(frozen=True)
class Noting(FedAvg):
    def configure_clients(self, *arguments):
        with FILE.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return super().configure_clients(*arguments)
"""


def test_a_worker_process_executes_many_runs_with_a_class_of_a_file_of_the_user(tmp_path):
    (tmp_path / "noting.py").write_text(NOTING)  # its folder is not on the path of imports
    resources = make_cache(tmp_path)
    algorithm = f"algorithm={{type: '{tmp_path / 'noting.py'}:Noting'}}"
    asked = [experiment(tmp_path, algorithm, "training.num_rounds=1", f"seed={seed}") for seed in range(6)]
    configs = [resolve_fingerprints(each, resources) for each in asked]
    Processes(2)(configs, resources, StudyManifest(resources.runtime.runs_dir, "s"), lambda run, round: None)
    processes = (tmp_path / "processes.txt").read_text().split()
    assert len(processes) >= len(configs)
    assert len(set(processes)) <= 2
    assert str(os.getpid()) not in processes


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no fork server")
def test_the_fork_server_loads_the_libraries_of_a_run_for_its_workers(tmp_path):
    code = f"import sys; open({str(tmp_path / 'loaded')!r}, 'w').write(' '.join(sys.modules))"
    worker = create_worker_context().Process(target=exec, args=(code,))
    worker.start()
    worker.join()
    assert {"torch", *WORKER_MODULES} <= set((tmp_path / "loaded").read_text().split())


def test_tokens_are_counted_once_for_equal_texts_and_a_damaged_count_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    corpus = load_corpus(DatasetConfig(str(corpus_file(tmp_path / "corpus.csv"))))
    byte_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    counted = partition_data.count_tokens(corpus, file)
    (cached,) = (tmp_path / "cache" / "tokens").glob("lengths-*.npy")
    with monkeypatch.context() as patched:
        patched.setattr(partition_data, "tokenize_lengths", lambda *_: pytest.fail("tokenized again"))
        assert (partition_data.count_tokens(corpus, file) == counted).all()
    cached.write_bytes(cached.read_bytes()[:100])
    assert (partition_data.count_tokens(corpus, file) == counted).all()
    shorter = corpus.take(range(3))
    assert (partition_data.count_tokens(shorter, file) == counted[:3]).all()
