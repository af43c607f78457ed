"""Work that runs of one process share: it is done once, and every record stays the same."""

from __future__ import annotations

import pytest
import torch

from fedrift.core.cache import BoundedCache
from fedrift.data import tokenization
from fedrift.engine import cache as engine_cache
from fedrift.engine.run import run_experiment
from fedrift.models.stacked_model import StackedModel
from fedrift.partition import rewriting
from fedrift.partition.style_skew import StyleRewrite
from fedrift.storage import Run, checkpoint, environment, jsonl
from tests.small_experiment import experiment, make_cache


def count_calls(monkeypatch, owner, name: str) -> list[tuple]:
    """Return a list that grows by the arguments of each call of a function."""
    calls, original = [], getattr(owner, name)

    def counted(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


@pytest.mark.parametrize("partition", ["Style, num_clients: 3", "Style, num_clients: 3, homogeneous: true"])
def test_runs_with_equal_rewritten_texts_rewrite_and_tokenize_them_once(tmp_path, monkeypatch, partition):
    configs = [
        experiment(tmp_path, f"partition={{type: {partition}}}", "training.num_rounds=1", f"algorithm={algorithm}")
        for algorithm in ("FedAvg", "FedProx")
    ]
    monkeypatch.setattr(rewriting, "REWRITTEN_TEXTS", BoundedCache(0))  # the reference stores nothing
    alone = [run_experiment(config, make_cache(tmp_path / f"alone {number}")).records() for number, config in enumerate(configs)]
    monkeypatch.setattr(rewriting, "REWRITTEN_TEXTS", BoundedCache(10**6))
    rewritten, tokenized = count_calls(monkeypatch, StyleRewrite, "__call__"), count_calls(monkeypatch, engine_cache, "tokenize_corpus")
    shared, together, counts = make_cache(tmp_path / "shared"), [], []
    for config in configs:
        rewritten.clear(), tokenized.clear()
        together.append(run_experiment(config, shared).records())
        counts.append((len(rewritten), len(tokenized)))
    assert together == alone
    assert counts[0][0] > 100 and counts[0][1] > 1
    assert counts[1][0] <= 1 and counts[1][1] == 0  # one text at most, to check that the partition is not IID


def test_a_partition_with_another_seed_is_rewritten_anew(tmp_path):
    configs = [experiment(tmp_path, "partition={type: Style, num_clients: 3, severity: 0.5}", f"seed={seed}") for seed in (0, 1)]
    shared = make_cache(tmp_path / "shared")
    first, second = (run_experiment(config, shared).records() for config in configs)
    assert second == run_experiment(configs[1], make_cache(tmp_path / "alone")).records() != first


def test_runs_with_equal_models_evaluate_them_once(tmp_path, monkeypatch):
    """The models of FedAvg with fine-tuning are those of FedAvg until clients fine-tune them."""
    configs = [
        experiment(
            tmp_path,
            f"algorithm={algorithm}",
            "training.num_rounds=3",
            "evaluation.blocks_per_client=0",
            "evaluation.probes=[syntax]",
            "evaluation.minimal_pairs=2",
        )
        for algorithm in ("FedAvg", "FedAvgFineTuning")
    ]
    alone = [run_experiment(config, make_cache(tmp_path / f"alone {number}")).records() for number, config in enumerate(configs)]
    passes, plain = [], StackedModel.position_losses

    def counted(self, params, tokens, mask):
        if not torch.is_grad_enabled():
            passes.append(len(next(iter(params.values()))))
        return plain(self, params, tokens, mask)

    monkeypatch.setattr(StackedModel, "position_losses", counted)
    shared, together, counts = make_cache(tmp_path / "shared"), [], []
    for config in configs:
        passes.clear()
        together.append(run_experiment(config, shared).records())
        counts.append(len(passes))
    assert together == alone
    personal = 3 + 1 + 3  # own models of the cohort in three rounds, of all clients at the end, and of each client on all text
    assert counts[0] >= 4 and counts[1] <= personal


def test_the_records_of_a_run_are_parsed_once_at_its_end_and_once_when_it_resumes(tmp_path, monkeypatch):
    parsed, parse = [], jsonl.parse_lines

    def count_rows(lines, path, *more):
        rows = list(lines)
        parsed.extend([path.name] * len(rows))
        return parse(rows, path, *more)

    monkeypatch.setattr(jsonl, "parse_lines", count_rows)
    config = experiment(tmp_path, "training.num_rounds=4")
    reference = run_experiment(config, make_cache(tmp_path / "unbroken"))
    num_rows = len((reference.folder / "records.jsonl").read_text().splitlines())
    assert 0 < parsed.count("records.jsonl") <= num_rows

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.round == 2:
            raise Killed

    cache = make_cache(tmp_path / "resumed")
    with pytest.raises(Killed):
        run_experiment(config, cache, kill)
    (stored,) = (tmp_path / "resumed").rglob("records.jsonl")
    parsed.clear()
    num_stored = len(stored.read_text().splitlines())
    run = run_experiment(config, cache)
    assert num_rows < parsed.count("records.jsonl") <= num_rows + num_stored
    for name in ("records.jsonl", "records.parquet"):
        assert (run.folder / name).read_bytes() == (reference.folder / name).read_bytes()


@pytest.mark.parametrize("num_rounds", [2, 6])
def test_files_of_updates_are_not_listed_in_every_round(tmp_path, monkeypatch, num_rounds):
    listed = count_calls(monkeypatch, checkpoint, "list_recorded_rounds")
    run_experiment(experiment(tmp_path, f"training.num_rounds={num_rounds}"), make_cache(tmp_path, save_updates=True))
    assert len(listed) <= 2  # before the log exists, and after the first round


def test_restored_records_are_those_that_truncation_leaves(tmp_path):
    run = run_experiment(experiment(tmp_path, "training.num_rounds=3"), make_cache(tmp_path))
    content = (run.folder / "records.jsonl").read_bytes()
    other = Run(tmp_path, "other")
    other.folder.mkdir()
    (other.folder / "records.jsonl").write_bytes(content + b'[3, "lo')
    restored = other.restore_records(1)
    assert restored == other.records() == [record for record in run.records() if record.round <= 1]


def test_the_versions_of_packages_are_looked_up_once(tmp_path, monkeypatch):
    environment._get_version.cache_clear()
    looked_up = count_calls(monkeypatch, environment, "version")
    first, second = (environment.collect_environment("cpu", 1, {}) for _ in range(2))
    assert first == second and len(looked_up) == len(environment.PACKAGES)


def test_tokens_of_rewritten_texts_equal_those_without_a_cache(tmp_path):
    config, cache = experiment(tmp_path), make_cache(tmp_path)
    corpus = cache.get_corpus(config.dataset, config.model)
    model = config.model, config.trainable
    tokenizer = cache.get_language_model(*model).tokenizer
    upper = rewriting.with_texts(corpus, [text.upper() for text in corpus.text])
    for texts in (corpus, upper, corpus):
        found, expected = cache.get_rewritten_tokens(texts, *model), tokenization.tokenize_corpus(texts, tokenizer, cache_dir=None)
        assert (found.ids == expected.ids).all() and (found.offsets == expected.offsets).all()
    assert cache.get_rewritten_tokens(upper, *model) is cache.get_rewritten_tokens(upper, *model)
