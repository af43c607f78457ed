"""Test the evaluation by lm-evaluation-harness: its arguments, the stored results, and the real package if it is installed."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from fedrift.callbacks import LmEval
from fedrift.core.errors import UserError
from fedrift.engine.callbacks import model_arguments, model_folders
from fedrift.engine.run import run_experiment
from fedrift.models.presets import pocket_folder
from fedrift.storage import Run
from tests.small_experiment import experiment, make_cache


@pytest.fixture
def harness(monkeypatch):
    """A replacement of the package that records its calls."""
    calls = []

    def simple_evaluate(**options):
        calls.append(options)
        return {"results": {"hellaswag": {"acc,none": 0.25}}, "configs": {}}

    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=simple_evaluate))
    return calls


def test_the_final_adapters_are_evaluated_and_stored(tmp_path, harness):
    config = experiment(tmp_path, "training.num_rounds=1")
    run = run_experiment(config, make_cache(tmp_path), callbacks=[LmEval(["hellaswag"], limit=10)])
    (call,) = harness
    assert call["model"] == "hf" and call["tasks"] == ["hellaswag"] and call["limit"] == 10
    assert call["model_args"] == f"pretrained={tmp_path / 'model-llama'},peft={(run.folder / 'model').resolve()}"
    assert json.loads((run.folder / "lm_eval.json").read_text()) == {"model": {"hellaswag": {"acc,none": 0.25}}}
    assert LmEval(["hellaswag"]).evaluate(run)["model"]["hellaswag"]["acc,none"] == 0.25


def test_whole_models_several_models_and_presets_have_correct_arguments(tmp_path):
    run = Run(tmp_path, "a" * 12)
    for name in ("0", "1", "clients/0"):
        folder = run.folder / "model" / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    assert [folder.name for folder in model_folders(run)] == ["0", "1"]
    for model, base in (("pocket", str(pocket_folder())), ("owner/name", "owner/name"), ("distilgpt2", "distilbert/distilgpt2")):
        run.write_json("experiment", {"model": model})
        assert model_arguments(run, run.folder / "model" / "0").startswith(f"pretrained={base},peft=")
    (run.folder / "model" / "1" / "adapter_config.json").unlink()
    assert model_arguments(run, run.folder / "model" / "1") == f"pretrained={(run.folder / 'model' / '1').resolve()}"
    with pytest.raises(UserError, match="has no model"):
        model_folders(Run(tmp_path, "b" * 12))


def test_mistakes_are_refused_before_the_first_round(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="list of tasks"):
        LmEval("hellaswag")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="pip install 'lm-eval"):
        run_experiment(experiment(tmp_path, "training.num_rounds=1"), make_cache(tmp_path), callbacks=[LmEval(["hellaswag"])])


TASK = """\
task: local_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'fedrift[lm-eval]'")
def test_the_real_harness_evaluates_a_local_task(tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    run = run_experiment(experiment(tmp_path, "training.num_rounds=1"), make_cache(tmp_path))
    rows = [{"question": "the team won a", "choices": ["match", "onion"], "answer": 0} for _ in range(4)]
    (tmp_path / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "local.yaml").write_text(TASK.format(data=tmp_path / "data.json"))
    output = simple_evaluate(
        model="hf",
        model_args=model_arguments(run, run.folder / "model"),
        tasks=["local_words"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks")),
        device="cpu",
    )
    assert 0 <= output["results"]["local_words"]["acc,none"] <= 1
