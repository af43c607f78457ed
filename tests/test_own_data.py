"""Test own data from the file to the run: training, weights and metrics on answers, random weights, labels, and `dataset show`."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from fedrift import load_config
from fedrift.cli.dataset import read_summary
from fedrift.cli.partition_data import parse_data_config, partition_dataset
from fedrift.cli.validation import check_experiment
from fedrift.config.schema import ADDED_KEYS, compute_id, diff_stored_configs, parse_config
from fedrift.core.errors import UserError
from fedrift.core.tree import Tree
from fedrift.data import DatasetConfig, load_corpus, pack_blocks, tokenize_corpus
from fedrift.engine.build import build_run
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.models.load import load_model
from fedrift.probes.classification import build_label_accuracy
from fedrift.probes.held_out import bytes_per_token, predicted_spans
from tests import small_experiment
from tests.cli.test_cli import run_command
from tests.data.chats import chat_tokenizer
from tests.small_experiment import WORDS

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT_IDS = {
    "bbc_dirichlet.yaml": "84658ccc4386",
    "bbc_topic_smollm2.yaml": "c37808784691",
    "bbc_topics.yaml": "7e85165fd047",
    "clustering.yaml": "b191adb44f85",
    "demo.yaml": "0c779203db35",
    "high_rate.yaml": "f9dc7a561150",
    "isolation.yaml": "87804fb98c53",
    "low_participation.yaml": "bd5957dbf008",
    "reddit_communities.yaml": "bc5ac76d6dfb",
}
QUESTIONS = {"sport": "who won the match", "tech": "which chip runs faster", "food": "what is in the soup"}


def chat_rows(per_topic=30, seed=0):
    """Return questions on a topic with answers of many lengths; long prompts make answers a small part of the tokens."""
    draw = np.random.default_rng(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": f"{question} {number}?"},
                {"role": "assistant", "content": " ".join(draw.choice(small_experiment.WORDS[topic], size=int(draw.integers(1, 9))))},
            ],
            "label": topic,
        }
        for topic, question in QUESTIONS.items()
        for number in range(per_topic)
    ]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def chats(tmp_path):
    return write(tmp_path / "chats.jsonl", chat_rows())


def chat_experiment(tmp_path, *overrides):
    return small_experiment.experiment(
        tmp_path,
        f"dataset={tmp_path / 'chats.jsonl'}",
        "training.num_rounds=1",
        "training.max_seq_length=64",
        "evaluation.final_blocks_per_domain=0",
        *overrides,
    )


ROLES = ("user", "assistant")


def test_ids_of_the_committed_experiments_are_unchanged_by_the_new_keys():
    assert {path.name: load_config(path).id for path in (ROOT / "experiments").glob("*.yaml")} == EXPERIMENT_IDS


def test_a_new_key_is_in_the_id_unless_it_has_its_default():
    base = parse_config({"dataset": "owner/name"})
    stored = base.to_stored_dict()
    for path, value in ADDED_KEYS.items():
        *parents, key = path.split(".")
        holder = stored[parents[0]] if parents else stored
        assert key not in holder
        with_key = json.loads(json.dumps(stored))
        (with_key[parents[0]] if parents else with_key)[key] = value
        assert compute_id(with_key) == base.id
        assert diff_stored_configs(with_key, stored) == []
    others = ["dataset.format=chat", "dataset.train_on=all", "dataset.chat_template=plain", "dataset.config=a", "dataset.revision=b"]
    others += ["dataset.split=train", "model_init=random", "evaluation.label_prompt=' {label}'", "evaluation.labeled_documents=2"]
    others += [f"dataset.source_fingerprint={'0' * 63}a", f"evaluation.fingerprint={'0' * 63}a", "evaluation.max_blocks_per_document=1"]
    assert len({parse_config({"dataset": "owner/name"}, [other]).id for other in others} | {base.id}) == len(others) + 1
    assert len(others) == len(ADDED_KEYS)


def test_training_loss_and_weights_use_answers_only(tmp_path, chats):
    experiment, resources = chat_experiment(tmp_path), small_experiment.make_cache(tmp_path)
    context = build_run(experiment, resources)
    batch = next(iter(context.simulator.batches(0, torch.arange(3))))
    model = resources.get_stacked_model(experiment.model, experiment.trainable)
    losses = model(model.init_params(0).map(lambda leaf: leaf.expand(3, *leaf.shape[1:])), batch)
    network = load_model(experiment.model, cache_dir=tmp_path).network
    for client in range(3):
        labels = torch.where(batch["loss_mask"][client], batch["tokens"][client], -100)
        expected = network(input_ids=batch["tokens"][client], labels=labels).loss
        torch.testing.assert_close(losses[client], expected.detach(), atol=2e-5, rtol=2e-5)
        assert batch["weight"][client] == (labels[:, 1:] != -100).sum()
    assert 0 < float(batch["loss_mask"].float().mean()) < 0.6
    corpus = resources.get_corpus(experiment.dataset, experiment.model)
    tokens = resources.get_tokens(corpus, experiment.model, experiment.trainable)
    assert np.sum(context.partition_table["tokens"]) == tokens.trained_lengths[corpus.split == 0].sum() < tokens.lengths.sum()


def test_answers_only_are_measured_and_all_tokens_on_request(tmp_path, chats):
    resources = small_experiment.make_cache(tmp_path)
    contexts = {key: build_run(chat_experiment(tmp_path, f"dataset.train_on={key}"), resources) for key in ("answer", "all")}
    masks = {key: context.evaluation.losses.held_out.blocks for key, context in contexts.items()}
    assert (masks["answer"].tokens == masks["all"].tokens).all()
    assert masks["answer"].mask.sum() < masks["all"].mask.sum() < masks["all"].is_token.sum()
    assert (masks["answer"].is_token == masks["all"].is_token).all()
    run = run_experiment(chat_experiment(tmp_path, "evaluation.probes=[language]"), resources)
    state = contexts["answer"].initial_state
    start = contexts["answer"].evaluation.losses.evaluate_state(state)["loss", ""]
    assert run.trajectory().curve("loss", "")[0] == pytest.approx(float(start))
    assert float(start) != pytest.approx(float(contexts["all"].evaluation.losses.evaluate_state(state)["loss", ""]))
    assert any("no chat template" in event["message"] for event in run.events())


def test_bytes_are_those_of_the_predicted_tokens(tmp_path, chats):
    context = build_run(chat_experiment(tmp_path), resources := small_experiment.make_cache(tmp_path))
    held_out = context.evaluation.losses.held_out
    tokenizer = resources.get_language_model(str(tmp_path / "model-llama"), chat_experiment(tmp_path).trainable).tokenizer
    count = size = 0
    for ids, mask in zip(held_out.blocks.tokens[held_out.domain_ids == 0], held_out.blocks.mask[held_out.domain_ids == 0], strict=True):
        for first, stop in predicted_spans(mask):
            size += len(tokenizer.decode(ids[first:stop], skip_special_tokens=True).encode())
            count += stop - first
    assert bytes_per_token(held_out, tokenizer)[0] == pytest.approx(size / count)


def test_too_long_examples_are_counted_and_refused_if_none_remains(tmp_path, chats):
    context = build_run(chat_experiment(tmp_path, "training.max_seq_length=48"), small_experiment.make_cache(tmp_path))
    assert any("are cut to it" in note for note in context.warnings)
    with pytest.raises(UserError, match=r"no example of dataset .* has an answer within 8 tokens"):
        build_run(chat_experiment(tmp_path, "training.max_seq_length=8"), small_experiment.make_cache(tmp_path))


def test_sizes_count_the_trained_tokens_of_the_blocks_and_not_those_that_are_cut_off(tmp_path):
    draw = np.random.default_rng(0)
    lengths = {"short": (3, 6), "long": (3, 60), "late": (12, 12)}  # words of the question and of the answer
    rows = [
        {
            "messages": [
                {"role": role, "content": " ".join(draw.choice(WORDS["food"], size))} for role, size in zip(ROLES, sizes, strict=True)
            ]
        }
        | {"label": name}
        for name, sizes in lengths.items()
        for _ in range(20)
    ]
    write(tmp_path / "chats.jsonl", rows)
    experiment, resources = chat_experiment(tmp_path, "training.max_seq_length=64"), small_experiment.make_cache(tmp_path)
    context = build_run(experiment, resources)
    trained = [int(blocks.mask[:, 1:].sum()) for blocks in context.simulator.batches.blocks]
    assert np.sum(context.partition_table["tokens"], 1).tolist() == trained
    corpus = resources.get_corpus(experiment.dataset, experiment.model)
    tokens = resources.get_tokens(corpus, experiment.model, experiment.trainable)
    assert sum(trained) < tokens.trained_lengths[corpus.split == 0].sum()
    shown = parse_data_config({"dataset": experiment.dataset.name, "model": experiment.model, "training": {"max_seq_length": 64}})
    assert partition_dataset(shown).corpus.size.sum() == sum(trained)
    for length, problem in ((32, "no test documents of domain late with tokens"), (26, "no token to train on")):
        for refuse in (build_run, lambda config, resources: check_experiment(config)):
            with pytest.raises(UserError, match=rf"{problem}.*training\.max_seq_length if it cuts off the answers"):
                refuse(chat_experiment(tmp_path, f"training.max_seq_length={length}"), resources)


def test_topics_of_conversations_are_partitioned_like_those_of_texts(tmp_path, chats):
    context = build_run(chat_experiment(tmp_path), small_experiment.make_cache(tmp_path))
    assert (np.asarray(context.partition_table["tokens"]) > 0).sum(1).tolist() == [1, 1, 1]


# Random weights


def test_random_weights_depend_on_the_seed_and_the_data_do_not(tmp_path):
    overrides = ("training.num_rounds=1", "evaluation.final_blocks_per_domain=0", "evaluation.probes=[]")
    pretrained, random, other = (
        small_experiment.experiment(tmp_path, *overrides, *more) for more in ([], ["model_init=random"], ["model_init=random", "seed=1"])
    )
    resources = small_experiment.make_cache(tmp_path)
    contexts = [build_run(experiment, resources) for experiment in (pretrained, random, other)]
    weights = [context.model.network.get_input_embeddings().weight for context in contexts]
    assert not any(torch.equal(weights[a], weights[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    again = build_run(random, small_experiment.make_cache(tmp_path)).model.network.state_dict()
    assert all(torch.equal(leaf, again[name]) for name, leaf in contexts[1].model.network.state_dict().items())
    for first, second in zip(contexts[0].simulator.batches.blocks, contexts[1].simulator.batches.blocks, strict=True):
        assert (first.tokens == second.tokens).all()
    assert (contexts[0].evaluation.losses.held_out.blocks.tokens == contexts[2].evaluation.losses.held_out.blocks.tokens).all()
    losses = [float(context.evaluation.losses.evaluate_state(context.initial_state)["loss", ""]) for context in contexts]
    assert len(set(losses)) == 3
    assert any("random weights" in warning for warning in contexts[1].warnings) and "random weights" in random.name


def test_random_weights_of_pocket_start_at_the_loss_of_uniform_guessing(tmp_path):
    state = torch.get_rng_state()
    network = load_model("pocket", cache_dir=tmp_path, random_seed=0).network
    assert torch.equal(state, torch.get_rng_state())
    tokens = torch.arange(4, 260)[None]
    assert float(network(input_ids=tokens, labels=tokens).loss) == pytest.approx(np.log(4096), abs=0.3)


def test_random_weights_are_not_quantized():
    with pytest.raises(UserError, match=r"model_init is 'random', but trainable\.quantization is 'int8'"):
        parse_config({"dataset": "bbc", "model_init": "random", "trainable": {"type": "Lora", "quantization": "int8"}})


# Labels by log-likelihood


class Favorite:
    """A model with a low loss for one token id and loss 1 for all others."""

    def __init__(self, token):
        self.token = token

    def sequence_losses(self, params, tokens, mask):
        losses = torch.where(tokens == self.token, 0.1, 1.0)[:, :, 1:] * mask[:, :, 1:]
        return losses.sum(2), mask[:, :, 1:].sum(2)


def labeled_corpus(tmp_path):
    file = tmp_path / "texts.jsonl"
    write(file, [{"text": f"the {n}", "label": ("cat", "mat mat mat")[n % 2]} for n in range(6)])
    return load_corpus(DatasetConfig(str(file), validation_fraction=0.0, test_fraction=0.0))


def test_accuracy_is_the_fraction_of_documents_whose_label_is_most_likely(tmp_path):
    corpus, tokenizer = labeled_corpus(tmp_path), chat_tokenizer()
    ids = tokenizer(" Topic: cat", add_special_tokens=False)["input_ids"]
    probe = build_label_accuracy(Favorite(ids[-1]), tokenizer, corpus, np.arange(6), " Topic: {label}", 64)
    scores = probe.score_domains(Tree(x=torch.zeros(1)))
    assert scores[:, 0].tolist() == [1.0, 0.0]
    likelihood = probe.log_likelihoods(Tree(x=torch.zeros(1)))
    lengths = [len(tokenizer(f" Topic: {name}", add_special_tokens=False)["input_ids"]) for name in corpus.domains]
    assert likelihood[0].tolist() == pytest.approx([-(lengths[0] - 0.9), -lengths[1]])
    assert scores[:, 1].tolist() == [
        float(likelihood[0, 0] / 11 > likelihood[0, 1] / 19),
        float(likelihood[0, 0] / 11 < likelihood[0, 1] / 19),
    ]
    for row in range(12):
        shown = tokenizer.decode(probe.tokens[row][probe.mask[row]])
        assert shown == f" Topic: {corpus.domains[row % 2]}"
        assert tokenizer.eos_token_id not in probe.tokens[row][: int(probe.mask[row].nonzero().max()) + 1]


def test_the_prompt_is_configurable_and_invalid_prompts_are_refused(tmp_path):
    corpus, tokenizer = labeled_corpus(tmp_path), chat_tokenizer()
    with pytest.raises(UserError, match="leaves no room for a document"):
        build_label_accuracy(Favorite(0), tokenizer, corpus, np.arange(6), " Topic: {label}", 8)
    with pytest.raises(UserError, match="needs held-out documents with at least two labels"):
        build_label_accuracy(Favorite(0), tokenizer, corpus, np.arange(0), " Topic: {label}", 64)
    with pytest.raises(UserError, match=r"label_prompt is ' Topic': it must contain \{label\}"):
        parse_config({"dataset": "bbc", "evaluation": {"label_prompt": " Topic"}})


def test_a_run_measures_the_accuracy_of_each_topic(tmp_path):
    experiment = small_experiment.experiment(
        tmp_path,
        "training.num_rounds=1",
        "evaluation.probes=[classification]",
        "evaluation.labeled_documents=3",
        "evaluation.expensive_interval=1",
        "evaluation.final_blocks_per_domain=0",
    )
    trajectory = run_experiment(experiment, small_experiment.make_cache(tmp_path)).trajectory()
    assert trajectory.domains_of("classification.accuracy") == ("food", "sport", "tech")
    values = [trajectory.curve("classification.accuracy", name)[-1] for name in ("food", "sport", "tech")]
    assert trajectory.curve("classification.accuracy", "")[-1] == pytest.approx(np.mean(values))
    assert all(value in (0, 1 / 3, 2 / 3, 1) or value == pytest.approx(1 / 3) or value == pytest.approx(2 / 3) for value in values)


# The hub, replaced by a local function


@pytest.fixture
def hub(monkeypatch):
    calls = []

    def load_dataset(name, config=None, **options):
        calls.append((name, config, options))
        part = datasets.Dataset.from_list([{"messages": row["messages"], "topic": row["label"]} for row in chat_rows(8)])
        return part if "split" in options else datasets.DatasetDict(train=part, validation=part.select([0]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_hub_dataset_is_read_by_configuration_revision_and_split(hub):
    keys = {"config": "sft", "revision": "v2", "split": "train[:24]", "label_column": "topic"}
    corpus = load_corpus(DatasetConfig("owner/name", **keys))
    assert hub == [("owner/name", "sft", {"revision": "v2", "split": "train[:24]"})]
    assert len(corpus) == 24 and len(corpus.test) and corpus.domains == ("food", "sport", "tech") and corpus.examples is not None
    assert corpus.source[0] == "owner/name:train[:24]"
    load_corpus(DatasetConfig("owner/name:sft", config="sft"))
    assert hub[-1] == ("owner/name", "sft", {})
    with pytest.raises(UserError, match=r"names the configuration 'sft', but dataset\.config is 'other'"):
        load_corpus(DatasetConfig("owner/name:sft", config="other"))


@pytest.mark.parametrize("name", ["bbc", "chats.jsonl", "synthetic"])
def test_keys_of_the_hub_are_refused_for_other_datasets(name, tmp_path, chats, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.revision and dataset\.split: only datasets of the Hugging Face hub"):
        load_corpus(DatasetConfig(name, revision="v1", split="train"))


# The command


def test_dataset_show_prints_what_was_read_and_the_input_of_the_model(tmp_path, chats, capsys, monkeypatch):
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    write(chats, [*chat_rows(4), {"messages": [{"role": "user", "content": "alone"}]}, chat_rows(1)[0]])
    code, printed, _ = run_command(capsys, monkeypatch, "dataset", "show", str(chats), "--json")
    assert code == 0
    told = json.loads(printed)
    assert (told["format"], told["rows"], told["files"], told["columns"]) == ("chat", 14, [str(chats)], ["messages", "label"])
    assert told["left_out"] == {"no answer": 1, "duplicate": 1} and told["topics"] == {"food": 4, "sport": 4, "tech": 4}
    counts = told["tokens"]["splits"]["train"]
    assert 0 < counts["trained_tokens"] < counts["tokens"]
    for example in told["examples"]:
        assert [part["trained"] for part in example["segments"]] == [False, True]
        assert example["segments"][0]["text"].startswith("User: ") and example["segments"][1]["text"].endswith("<|endoftext|>")
    code, printed, _ = run_command(capsys, monkeypatch, "dataset", "show", str(chats), "--examples", "1")
    assert code == 0
    assert "⟦ " in printed and "1 no answer" in printed and "format chat" in printed


def test_dataset_show_reads_an_experiment_and_its_model(tmp_path, chats, monkeypatch):
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    model = small_experiment.model_folder(tmp_path / "model")
    file = tmp_path / "e.yaml"
    file.write_text(json.dumps({"dataset": str(chats), "model": str(model), "training": {"max_seq_length": 48}, "model_init": "random"}))
    summary = read_summary(str(file), ["dataset.train_on=all"], 1, None)
    assert summary["model"] == str(model) and summary["tokens"]["max_seq_length"] == 48
    counts = summary["tokens"]["splits"]["train"]
    assert counts["trained_tokens"] == counts["tokens"] - summary["documents"]["train"]
    text = read_summary("synthetic", ["dataset.synthetic.num_documents=40"], 1, None)
    assert text["format"] == "text" and text["files"] == [] and text["rows"] == 40


def test_a_chat_template_is_part_of_a_local_models_identity(tmp_path, chats):
    experiment, resources = chat_experiment(tmp_path), small_experiment.make_cache(tmp_path)
    text = small_experiment.experiment(tmp_path)
    before = resolve_fingerprints(experiment, resources).model_fingerprint, resolve_fingerprints(text, resources).model_fingerprint
    (Path(experiment.model) / "chat_template.jinja").write_text("{{ messages }}")
    after = resolve_fingerprints(experiment, resources).model_fingerprint, resolve_fingerprints(text, resources).model_fingerprint
    assert before[0] != after[0] and before[1] == after[1]


def test_loss_masks_are_packed_with_their_tokens(tmp_path, chats):
    tokenizer = chat_tokenizer(bos=True)
    corpus = load_corpus(DatasetConfig(str(chats)))
    tokens = tokenize_corpus(corpus, tokenizer, cache_dir=None)
    blocks = pack_blocks(tokens, np.arange(len(corpus)), int(tokens.lengths.max()))
    assert blocks.mask.sum() == tokens.trained_lengths.sum() and blocks.is_token.sum() == tokens.lengths.sum()
