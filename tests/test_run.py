"""Test whole runs of the small experiment: stored, resumed, reused when finished, and equal to a plain training loop."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fedrift.algorithms import FedAvg, FedProx, LocalOnly, Pretrained, Scaffold
from fedrift.cli.console import print_summary
from fedrift.config.schema import edit_config, iid_baseline
from fedrift.core.errors import UserError
from fedrift.data import dataset
from fedrift.diagnosis import judge_run
from fedrift.engine.build import build_run, config_warnings
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.callbacks import Callback
from fedrift.engine.run import run_experiment
from fedrift.storage import list_runs
from fedrift.storage.checkpoint import Checkpoint
from tests.pairs import PAIRS, TUNES, algorithm
from tests.small_experiment import Killed, corpus_file, documents, experiment, killed_at, make_cache, read_state


def records_and_state(run) -> tuple[bytes, dict]:
    """Return what must be equal in two equal runs: every record and the last state."""
    return (run.folder / "records.jsonl").read_bytes(), read_state(run)


def assert_equal(one, two) -> None:
    (records, state), (others, other) = records_and_state(one), records_and_state(two)
    assert records == others
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_run_stores_its_experiment_its_records_and_its_state(tmp_path):
    run = run_experiment(experiment(tmp_path), make_cache(tmp_path))
    assert run.status == "finished"
    assert run.config["training"]["max_grad_norm"] == 1.0  # the defaults are stored too
    assert torch.__version__.startswith(run.environment["packages"]["torch"].split("+")[0])
    trajectory = run.trajectory()
    assert trajectory.rounds.tolist() == [0, 1, 2, 3, 4]
    assert trajectory.curve("loss")[-1] < trajectory.curve("loss")[0]
    assert trajectory.domains_of("loss") == ("food", "sport", "tech")
    assert trajectory.client_table("loss").shape == (5, 3)
    assert trajectory.has_client_table("loss.before")
    assert math.isfinite(run.read_json("finished")["final_loss"])
    assert len(run.timings()) == 6  # the initial evaluation, four rounds and the final one
    assert trajectory.to_frame().groupby("metric").size()["update.norm"] == 8  # two of three clients in four rounds


@pytest.mark.sample(4)
@pytest.mark.parametrize("algorithm", [FedAvg(), FedProx(mu=0.1), Scaffold(), LocalOnly()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("tune", ["{type: Lora, r: 2}", "{type: LastBlocks, num_blocks: 1}", "All"])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, algorithm, tune):
    asked = edit_config(experiment(tmp_path, f"trainable={tune}"), {"algorithm": algorithm})
    unbroken = run_experiment(asked, replace_root(tmp_path, "unbroken"))
    for round in (0, 1, 3):
        with pytest.raises(Killed):
            run_experiment(asked, replace_root(tmp_path, "broken"), killed_at(round))
    broken = run_experiment(asked, replace_root(tmp_path, "broken"))
    assert_equal(unbroken, broken)
    assert broken.trajectory().curve("loss")[-1] < broken.trajectory().curve("loss")[0]


def replace_root(folder, name):
    there = make_cache(folder)
    return replace(there, runtime=replace(there.runtime, runs_dir=folder / name), _items={})


@pytest.mark.slow
def test_a_process_killed_by_the_system_resumes_bit_for_bit(tmp_path):
    said = "training.num_rounds=30", "algorithm=Scaffold"  # its state has two files
    asked = experiment(tmp_path, *said)
    code = (
        "import sys; from pathlib import Path; from tests.small_experiment import experiment, make_cache;"
        "from fedrift.engine.run import run_experiment; folder = Path(sys.argv[1]);"
        "run_experiment(experiment(folder, *sys.argv[2:]), make_cache(folder))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *said], env={**os.environ, "PYTHONPATH": os.getcwd()})
    there = make_cache(tmp_path)
    timings = there.runtime.runs_dir / resolve_fingerprints(asked, there).id / "timings.jsonl"
    deadline = time.time() + 120
    while not (timings.exists() and timings.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, "the run ended before the test could kill it"
        assert time.time() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    broken = run_experiment(asked, there)
    assert_equal(run_experiment(asked, replace_root(tmp_path, "unbroken")), broken)


def test_a_run_killed_between_its_rows_and_its_state_repeats_the_round(tmp_path, monkeypatch):
    asked = experiment(tmp_path)
    unbroken = run_experiment(asked, replace_root(tmp_path, "unbroken"))
    save = Checkpoint.save

    def killed(checkpoint, state):
        if state.round == 2:
            raise Killed
        save(checkpoint, state)

    with monkeypatch.context() as broken:
        broken.setattr(Checkpoint, "save", killed)
        with pytest.raises(Killed):
            run_experiment(asked, replace_root(tmp_path, "broken"))
    assert_equal(unbroken, run_experiment(asked, replace_root(tmp_path, "broken")))


def test_a_run_killed_at_its_very_end_resumes_bit_for_bit(tmp_path, monkeypatch):
    asked = experiment(tmp_path)
    unbroken = run_experiment(asked, replace_root(tmp_path, "unbroken"))

    def full_disk(*what):
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr("fedrift.models.export.save_model", full_disk)
        with pytest.raises(Killed):
            run_experiment(asked, replace_root(tmp_path, "broken"))
    assert_equal(unbroken, run_experiment(asked, replace_root(tmp_path, "broken")))


def test_a_run_with_missing_rows_or_a_changed_state_is_never_resumed(tmp_path):
    asked, there = experiment(tmp_path), make_cache(tmp_path)
    with pytest.raises(Killed):
        run_experiment(asked, there, killed_at(3))
    folder = there.runtime.runs_dir / resolve_fingerprints(asked, there).id
    for name, message in (("records.jsonl", "records.jsonl has"), ("state.safetensors", "state.safetensors is damaged")):
        whole = (folder / name).read_bytes()
        spoilt = whole[: 6 * len(whole) // 10] if name == "records.jsonl" else whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        (folder / name).write_bytes(spoilt)
        with pytest.raises(UserError, match=message):
            run_experiment(asked, there)
        (folder / name).write_bytes(whole)
    run = run_experiment(asked, there)
    assert run.is_finished and len(run.records()) and len(run.trajectory().rounds) == 5
    rows = folder / "records.jsonl"
    rows.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:-9]))
    os.utime(rows, ns=(2**62, 2**62))  # so that it is read instead of the older Parquet file
    with pytest.raises(UserError, match="has changed since the run finished"):
        run.trajectory()


def test_a_run_without_rounds_evaluates_the_pretrained_model(tmp_path):
    run = run_experiment(experiment(tmp_path, "training.num_rounds=0"), make_cache(tmp_path))
    assert run.trajectory().rounds.tolist() == [0]
    assert math.isfinite(run.read_json("finished")["final_loss"])


def test_a_finished_run_is_not_run_again(tmp_path):
    asked, there = experiment(tmp_path), make_cache(tmp_path)
    first = run_experiment(asked, there)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    again = run_experiment(asked, there, killed_at(0))
    assert again.folder == first.folder
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before


def test_a_changed_corpus_is_another_experiment(tmp_path):
    asked = experiment(tmp_path)
    before = resolve_fingerprints(asked, make_cache(tmp_path))
    corpus_file(tmp_path / "corpus.csv", per_topic=50)
    assert resolve_fingerprints(asked, make_cache(tmp_path)).id != before.id
    with pytest.raises(UserError, match="has changed"):
        resolve_fingerprints(before, make_cache(tmp_path))


def test_changed_sources_are_another_experiment_if_clients_depend_on_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mix.py").write_text("from fedrift.partition import TopicMix\n\nclass Mix(TopicMix):\n    pass\n")
    names = ["BySource", "{type: Calibrated, base: BySource}", "mix.py:Mix", "TopicMix", "{type: Calibrated, base: TopicMix}"]
    asked = [experiment(tmp_path, f"partition={name}", "partition.num_clients=2") for name in names]
    rows = [f"{text},{topic},s{{}}" for text, topic in documents(20)]

    def resolve(configs, period):
        lines = [row.format(number // period % 2) for number, row in enumerate(rows)]
        (tmp_path / "corpus.csv").write_text("\n".join(["text,label,source", *lines]))
        return [resolve_fingerprints(config, make_cache(tmp_path)) for config in configs]

    before, after = resolve(asked, 1), resolve(asked, 2)
    assert [one.id != other.id for one, other in zip(before, after, strict=True)] == [True, True, True, False, False]
    assert {one.dataset.fingerprint for one in before} == {one.dataset.fingerprint for one in after}
    assert iid_baseline(before[0]).dataset == before[0].dataset
    with pytest.raises(UserError, match=r"the sources of the dataset .* have changed"):
        resolve(before[:1], 2)
    assert resolve([replace(before[0], partition=before[3].partition)], 2)[0].dataset.source_fingerprint == ""


def test_a_changed_general_text_or_own_probe_is_another_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "general.csv").write_text("\n".join(["text", *(f"one text {number}" for number in range(20))]))
    for name in ("kept", "edited"):
        (tmp_path / f"{name}.py").write_text("def probes(context):\n    return []\n")
    general = "evaluation.general_dataset=general.csv"
    asked = [
        experiment(tmp_path, general, f"evaluation.probes=[{groups}]")
        for groups in ("general", "cost", "kept.py:probes", "edited.py:probes")
    ]
    before = [resolve_fingerprints(config, make_cache(tmp_path)) for config in asked]
    (tmp_path / "general.csv").write_text("\n".join(["text", *(f"another text {number}" for number in range(20))]))
    (tmp_path / "edited.py").write_text("def probes(context):\n    return list()\n")
    after = [resolve_fingerprints(config, make_cache(tmp_path)) for config in before]
    assert [one.id != other.id for one, other in zip(before, after, strict=True)] == [True, False, False, True]
    assert [bool(one.evaluation.fingerprint) for one in before] == [True, False, True, True]


def test_the_general_text_is_read_once(tmp_path, monkeypatch):
    file = tmp_path / "general.csv"
    file.write_text("\n".join(["text", *(f"one text {number}" for number in range(20))]))
    read, load = [], dataset.load_corpus
    monkeypatch.setattr(dataset, "load_corpus", lambda config, **options: (read.append(config.name), load(config, **options))[1])
    options = (f"evaluation.general_dataset={file}", "evaluation.probes=[general]", "evaluation.expensive_interval=1")
    run = run_experiment(experiment(tmp_path, *options, "training.num_rounds=1"), make_cache(tmp_path))
    assert read == [str(file)]
    assert "general." in (run.folder / "records.jsonl").read_text()


def test_clients_per_pass_changes_rounding_only(tmp_path):
    asked = experiment(tmp_path, "training.participation_rate=1.0")
    whole = run_experiment(asked, replace(replace_root(tmp_path, "whole"), runtime=make_cache(tmp_path, clients_per_pass=3).runtime))
    parts = run_experiment(asked, replace_root_and_clients_per_pass(tmp_path, 1))
    assert whole.environment["engine"] == {"clients_per_pass": 3}
    assert parts.trajectory().curve("loss") == pytest.approx(whole.trajectory().curve("loss"), abs=1e-5)


def test_a_resumed_run_keeps_the_measured_choice_of_clients_per_pass(tmp_path, monkeypatch):
    asked, tried = experiment(tmp_path, "training.num_rounds=3"), []
    monkeypatch.setattr("fedrift.engine.build.choose_faster", lambda step, micro: (step(1), step(micro), tried.append(micro), 1)[-1])
    with pytest.raises(Killed):
        run_experiment(asked, make_cache(tmp_path, clients_per_pass=0), killed_at(2))
    assert run_experiment(asked, make_cache(tmp_path, clients_per_pass=0)).environment["engine"] == {"clients_per_pass": 1}
    assert len(tried) == 1


def replace_root_and_clients_per_pass(folder, micro):
    there = make_cache(folder, clients_per_pass=micro)
    return replace(there, runtime=replace(there.runtime, runs_dir=folder / f"micro-{micro}"), _items={})


def test_a_resumed_run_keeps_its_clients_per_pass(tmp_path):
    asked = experiment(tmp_path)
    with pytest.raises(Killed):
        run_experiment(asked, make_cache(tmp_path, clients_per_pass=1), killed_at(2))
    assert run_experiment(asked, make_cache(tmp_path)).environment["engine"] == {"clients_per_pass": 1}


def test_a_run_resumed_on_another_processor_has_a_warning(tmp_path):
    asked = experiment(tmp_path, "training.num_rounds=2", "evaluation.final_blocks_per_domain=0")
    with pytest.raises(Killed):
        run_experiment(asked, make_cache(tmp_path), killed_at(1))
    (begun,) = list_runs(tmp_path / "runs")
    before = begun.environment
    before["processor"]["capability"] = "AMX"
    begun.write_json("environment", before)
    (event,) = [event for event in run_experiment(asked, make_cache(tmp_path)).events() if event["kind"] == "environment changed"]
    assert event["message"].startswith("processor capability was 'AMX' and is ") and event["round"] == 1


def test_a_diverging_run_finishes_and_records_the_failure(tmp_path):
    run = run_experiment(experiment(tmp_path, "training.client_optimizer.lr=1e30", "training.max_grad_norm=null"), make_cache(tmp_path))
    assert run.status == "finished"
    assert {event["kind"] for event in run.events()} & {"client failed", "update exploded"}  # rounding decides which of them occurs
    said = judge_run(run.trajectory())
    assert said.has_diverged and said.sentence.startswith("Training failed: ")


def test_a_dataset_without_the_probes_that_read_it_is_told(tmp_path):
    general = experiment(tmp_path, "evaluation.general_dataset=wikitext2", "evaluation.probes=[language]")
    assert any("evaluation.general_dataset has no effect" in warning for warning in config_warnings(general))
    assert not config_warnings(experiment(tmp_path, "evaluation.general_dataset=wikitext2", "evaluation.probes=[general]"))


def test_a_cohort_of_one_client_has_a_warning(tmp_path, capsys):
    said = {
        name: any(
            "one client per round" in warning
            for warning in config_warnings(experiment(tmp_path, f"algorithm={name}", "training.participation_rate=0.34"))
        )
        for name in ("FedAvg", "Scaffold", "LocalOnly", "Centralized", "Pretrained")
    }
    assert said == {"FedAvg": True, "Scaffold": True, "LocalOnly": False, "Centralized": False, "Pretrained": False}
    assert not any("one client" in warning for warning in config_warnings(experiment(tmp_path)))

    run = run_experiment(
        experiment(tmp_path, "training.participation_rate=0.34", "training.num_rounds=1", "evaluation.final_blocks_per_domain=0"),
        make_cache(tmp_path),
    )
    assert any("one client per round: nothing is averaged" in warning for warning in run.read_json("finished")["warnings"])
    assert not {"update.divergence", "gradient.norm.variance"} & set(run.trajectory().metrics)
    print_summary(run)
    printed = capsys.readouterr().out
    assert "Warning: one client per round: nothing is averaged" in printed
    assert "trained on" in printed and "nan" not in printed and "more held-out text" not in printed  # the experiment has none


def test_the_warning_of_scaffold_is_stored_in_the_run(tmp_path):
    run = run_experiment(edit_config(experiment(tmp_path), {"algorithm": Scaffold()}), make_cache(tmp_path))
    assert any(event["kind"] == "warning" and "uniform" in event["message"] for event in run.events())


def test_zero_shot_is_the_pretrained_model_in_every_round(tmp_path):
    run = run_experiment(edit_config(experiment(tmp_path), {"algorithm": Pretrained()}), make_cache(tmp_path))
    assert len(set(run.trajectory().curve("loss").tolist())) == 1


def test_severity_changes_the_partition_and_not_the_test_documents(tmp_path):
    there = make_cache(tmp_path)
    skewed, iid = (build_run(resolve_fingerprints(e, there), there) for e in (experiment(tmp_path), iid_baseline(experiment(tmp_path))))
    assert (skewed.evaluation.losses.held_out.blocks.tokens == iid.evaluation.losses.held_out.blocks.tokens).all()
    assert sum(map(sum, skewed.partition_table["tokens"])) == sum(map(sum, iid.partition_table["tokens"]))
    assert [sum(cell > 0 for cell in row) for row in skewed.partition_table["tokens"]] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_loads_the_stored_adapters_with_equal_logits(tmp_path, kind):
    asked, there = experiment(tmp_path, "trainable.target_modules=[all]", kind=kind), make_cache(tmp_path)
    run = run_experiment(asked, there)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / f"model-{kind}")
    theirs = PeftModel.from_pretrained(base, run.folder / "model").eval()
    setting = build_run(resolve_fingerprints(asked, there), there)
    tensors = read_state(run)
    params = type(setting.initial_state.server.params)(
        {name.removeprefix("server.params/"): leaf for name, leaf in tensors.items() if name.startswith("server.params/")}
    )
    tokens = torch.arange(2, 34).view(1, 2, 16)
    ours = setting.model.hidden_states(params, tokens)[0] @ setting.model.head.weight.T
    logits = theirs(input_ids=tokens[0]).logits
    assert torch.allclose(ours, logits, atol=1e-5)
    untrained = AutoModelForCausalLM.from_pretrained(tmp_path / f"model-{kind}")
    assert not torch.allclose(logits, untrained(tokens[0]).logits, atol=1e-4)


@pytest.mark.sample(2)
@pytest.mark.parametrize("tune", ["{type: LastBlocks, num_blocks: 1}", "All"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_transformers_loads_a_stored_network_with_equal_loss(tmp_path, tune, kind):
    asked, there = experiment(tmp_path, f"trainable={tune}", kind=kind), make_cache(tmp_path)
    run = run_experiment(asked, there)
    theirs = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    held = build_run(resolve_fingerprints(asked, there), there).evaluation.losses.held_out.blocks
    tokens, keep = torch.from_numpy(held.tokens), torch.from_numpy(held.mask)
    expected = run.trajectory().curve("loss.macro")[-1]
    per_domain = [
        theirs(input_ids=tokens[rows], labels=tokens[rows].masked_fill(~keep[rows], -100)).loss.item()
        for rows in torch.arange(9).view(3, 3)
    ]
    assert sum(per_domain) / 3 == pytest.approx(expected, abs=2e-4)


def plain_loop(folder, asked, there, optimizer, rounds: int):
    """Return the losses of every step and the final adapters of a loop with transformers and PEFT on the batches of our rounds."""
    setting = build_run(resolve_fingerprints(asked, there), there)
    base = AutoModelForCausalLM.from_pretrained(folder / "model-llama")
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    start = setting.model.init_params(asked.seed)
    set_peft_model_state_dict(
        model,
        {
            "base_model.model." + name.replace(".A", ".lora_A.weight").replace(".B", ".lora_B.weight"): leaf[0]
            for name, leaf in start.items()
        },
    )
    trained = [leaf for leaf in model.parameters() if leaf.requires_grad]
    stepper = optimizer(trained)
    losses, counts = [], []
    for round in range(rounds):
        for batch in setting.simulator.batches(round, torch.tensor([0])):
            tokens, keep = batch["tokens"][0], batch["loss_mask"][0]
            loss = model(input_ids=tokens, labels=tokens.masked_fill(~keep, -100)).loss
            stepper.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 0.5)
            stepper.step()
            losses.append(loss.item())
            counts.append(int(keep[:, 1:].sum()))
    return losses, counts, {name.replace(".default", ""): leaf for name, leaf in model.named_parameters() if "lora_" in name}


def adapters_of(run):
    return load_file(run.folder / "model" / "adapter_model.safetensors")


ALONE = ("partition.num_clients=1", "partition.severity=0", "training.participation_rate=1", "training.max_grad_norm=0.5")


def test_one_client_with_all_data_equals_a_plain_loop_in_every_step(tmp_path):
    """With one step per round every step's loss is a record; all agree to 1e-4."""
    asked, there = experiment(tmp_path, *ALONE, "training.num_rounds=25", "training.local_steps=1"), make_cache(tmp_path)
    run = run_experiment(asked, there)
    losses, _, theirs = plain_loop(tmp_path, asked, there, lambda leaves: torch.optim.SGD(leaves, lr=0.5), 25)
    assert run.trajectory().client_table("train.loss")[1:, 0] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0]
    read_state = adapters_of(run)
    assert read_state.keys() == theirs.keys()
    assert all(torch.allclose(read_state[name], theirs[name], atol=1e-5) for name in read_state)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("{type: Sgd, lr: 0.1, momentum: 0.9}", lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9)),
        ("{type: AdamW, lr: 0.01, weight_decay: 0.1}", lambda leaves: torch.optim.AdamW(leaves, lr=0.01, weight_decay=0.1)),
    ],
)
def test_client_optimizers_with_moments_equal_those_of_torch(tmp_path, ours, theirs):
    asked, there = (
        experiment(tmp_path, *ALONE, "training.num_rounds=1", "training.local_steps=20", f"training.client_optimizer={ours}"),
        make_cache(tmp_path),
    )
    run = run_experiment(asked, there)
    losses, counts, expected = plain_loop(tmp_path, asked, there, theirs, 1)
    mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    assert run.trajectory().client_table("train.loss")[1, 0] == pytest.approx(mean, abs=1e-4)
    read_state = adapters_of(run)
    assert all(torch.allclose(read_state[name], expected[name], atol=2e-5) for name in read_state)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_merged_base_is_in_the_stored_model(tmp_path, kind):
    asked, there = experiment(tmp_path, "algorithm.aggregator=FedEx", kind=kind), make_cache(tmp_path)
    run = run_experiment(asked, there)
    theirs = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    held = build_run(resolve_fingerprints(asked, there), there).evaluation.losses.held_out.blocks
    tokens, keep = torch.from_numpy(held.tokens), torch.from_numpy(held.mask)
    losses = [
        theirs(input_ids=tokens[rows], labels=tokens[rows].masked_fill(~keep[rows], -100)).loss.item()
        for rows in torch.arange(9).view(3, 3)
    ]
    assert sum(losses) / 3 == pytest.approx(run.trajectory().curve("loss.macro")[-1], abs=2e-4)


def test_personalized_models_are_evaluated(tmp_path):
    run = run_experiment(experiment(tmp_path, "algorithm.type=Ditto"), make_cache(tmp_path))
    assert run.trajectory().has_client_table("loss.personalized")
    assert (run.trajectory().client_table("final.loss.personalized")[-1] > 0).all()


def make_pair(folder, name: str, tune: str, *more: str):
    """Return an experiment with an algorithm and a trainable."""
    asked = experiment(
        folder, f"trainable={TUNES[tune]}", "training.client_weighting=uniform", "evaluation.final_blocks_per_domain=0", *more
    )
    return edit_config(asked, {"algorithm": algorithm(name)})


def assert_learned(run, name: str) -> None:
    loss = run.trajectory().curve("loss")
    assert loss[-1] == loss[0] if name == "Pretrained" else loss[-1] < loss[0]


@pytest.mark.sample(13)
@pytest.mark.parametrize(("name", "tune"), PAIRS)
def test_every_algorithm_trains_with_every_trainable_and_resumes(tmp_path, name, tune):
    lr = 0.1 if name == "MOON" else 0.2  # its contrastive loss is steep, so one step of 0.2 can overshoot
    asked = make_pair(tmp_path, name, tune, "training.num_rounds=2", f"training.client_optimizer.lr={lr}")
    unbroken = run_experiment(asked, replace_root(tmp_path, "unbroken"))
    with pytest.raises(Killed):
        run_experiment(asked, replace_root(tmp_path, "broken"), killed_at(1))
    assert_equal(unbroken, run_experiment(asked, replace_root(tmp_path, "broken")))
    assert_learned(unbroken, name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tune"), PAIRS)
def test_every_algorithm_trains_the_pocket_model(tmp_path, name, tune):
    asked = make_pair(
        tmp_path, name, tune, "training.num_rounds=3", "model=pocket", "training.max_seq_length=32", "training.client_optimizer.lr=0.1"
    )
    with pytest.raises(Killed):
        run_experiment(asked, replace_root(tmp_path, "broken"), killed_at(2))
    unbroken, broken = (run_experiment(asked, replace_root(tmp_path, where)) for where in ("unbroken", "broken"))
    assert_equal(unbroken, broken)
    assert_learned(unbroken, name)


def test_the_work_of_stragglers_is_used_or_dropped(tmp_path):
    every = ("training.participation_rate=1", "training.local_steps=4", "training.num_rounds=3")
    half, all_of_them, drop = ("training.straggler_fraction=0.5", "training.straggler_fraction=1", "training.straggler_policy=drop")
    whole, kept, dropped, gone = (
        run_experiment(experiment(tmp_path, *every, *more), replace_root(tmp_path, f"{number}")).trajectory()
        for number, more in enumerate(((), (half,), (half, drop), (all_of_them, drop)))
    )
    steps = kept.client_table("train.steps")[1:]
    assert (whole.client_table("train.steps")[1:] == 4).all()
    assert set(steps.flatten()) <= {1, 2, 3, 4} and (steps < 4).any() and (steps == 4).any()
    assert ((dropped.client_table("train.steps")[1:] == 0) == (steps < 4)).all()
    assert len(set(gone.curve("loss").tolist())) == 1
    assert not any((run.client_table("failed") == 1).any() for run in (kept, dropped, gone))


@pytest.mark.slow
def test_a_resumed_run_has_the_same_stragglers(tmp_path):
    asked = experiment(
        tmp_path,
        "training.participation_rate=1",
        "training.local_epochs=1",
        "training.straggler_fraction=0.7",
        "algorithm.type=Scaffold",
        "training.client_weighting=uniform",
    )
    unbroken = run_experiment(asked, replace_root(tmp_path, "unbroken"))
    with pytest.raises(Killed):
        run_experiment(asked, replace_root(tmp_path, "broken"), killed_at(2))
    assert_equal(unbroken, run_experiment(asked, replace_root(tmp_path, "broken")))


def test_centralized_training_has_no_stragglers(tmp_path):
    asked = experiment(tmp_path, "algorithm.type=Centralized", "training.straggler_fraction=1", "training.num_rounds=2")
    # the steps of two clients with two each
    assert (run_experiment(asked, make_cache(tmp_path)).trajectory().client_table("train.steps")[1:, 0] == 4).all()


def test_baselines_train_as_many_tokens_as_the_cohort_under_epochs_too(tmp_path):
    epochs = ("training.local_epochs=2", "training.participation_rate=0.34", "training.num_rounds=3", "evaluation.probes=[]")
    runs = {
        name: run_experiment(experiment(tmp_path, f"algorithm.type={name}", *epochs), make_cache(tmp_path))
        for name in ("FedAvg", "Centralized", "Pretrained")
    }
    tokens = {name: run.read_json("finished")["train_tokens"] for name, run in runs.items()}
    assert tokens["Pretrained"] == 0 and 0.8 < tokens["Centralized"] / tokens["FedAvg"] < 1.25


def test_a_run_that_was_stopped_early_and_killed_does_not_train_on(tmp_path):
    class StopInRound2(Callback):
        def on_round_end(self, event):
            return event.round == 2

    class KilledAtTheEnd(StopInRound2):
        def on_run_end(self, run):
            (run.folder / "finished.json").unlink()  # as if the process had been killed before
            raise Killed

    asked = experiment(tmp_path)
    unbroken = run_experiment(asked, replace_root(tmp_path, "unbroken"), callbacks=[StopInRound2()])
    with pytest.raises(Killed):
        run_experiment(asked, replace_root(tmp_path, "broken"), callbacks=[KilledAtTheEnd()])
    broken = run_experiment(asked, replace_root(tmp_path, "broken"))
    assert broken.read_json("finished")["rounds"] == 2
    assert_equal(unbroken, broken)


def test_records_are_json_without_times(tmp_path):
    run = run_experiment(experiment(tmp_path), make_cache(tmp_path))
    rows = [json.loads(line) for line in (run.folder / "records.jsonl").read_text().splitlines()]
    assert all(len(row) == 5 for row in rows)
    assert not any(path.suffix in (".pt", ".pkl", ".bin") for path in run.folder.rglob("*"))
