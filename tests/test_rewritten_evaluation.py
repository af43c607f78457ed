"""Test on which texts a run is evaluated if its clients rewrite theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrift.config.schema import compute_id, edit_config, iid_baseline
from fedrift.core.errors import UserError
from fedrift.data.tokenization import Blocks
from fedrift.engine.build import build_run, check_held_out, partition_documents
from fedrift.engine.cache import resolve_fingerprints
from fedrift.engine.run import run_experiment
from fedrift.partition.rewriting import rewrite_corpus, rewrite_groups
from fedrift.probes import HeldOut
from tests.small_experiment import experiment, make_cache


def test_the_held_out_text_can_come_from_more_documents(tmp_path):
    """The option holds for original and rewritten text. Its default is not part of the id, as in runs from before it existed."""
    asked = experiment(tmp_path, "partition={type: StopwordDrop, num_clients: 3}", "training.max_seq_length=8")
    limited = edit_config(asked, {"evaluation__max_blocks_per_document": 1})
    assert "max_blocks_per_document" not in asked.to_stored_dict()["evaluation"]
    assert compute_id(asked.to_stored_dict()) != compute_id(limited.to_stored_dict())
    there = make_cache(tmp_path)
    tokens = there.get_tokens(there.get_corpus(asked.dataset, asked.model), asked.model, asked.trainable)
    starts = {tuple(tokens.document_ids(row)[:8].tolist()) for row in range(len(tokens))}
    whole, cut = (build_run(resolve_fingerprints(each, there), there).evaluation.losses for each in (asked, limited))
    of_whole, of_cut = (list(map(tuple, each.held_out.blocks.tokens.tolist())) for each in (whole, cut))
    assert set(of_cut) <= starts and len(of_cut) == len(of_whole) and not set(of_whole) <= starts
    rewritten = [each.all_text.blocks.tokens[len(each.held_out.blocks) :] for each in (whole, cut)]
    assert len(rewritten[0]) == len(rewritten[1]) > 0 and (rewritten[0] != rewritten[1]).any()


@pytest.mark.parametrize("homogeneous", [False, True])
def test_rewriting_clients_are_evaluated_on_held_out_text_that_they_rewrite(tmp_path, homogeneous):
    """Only the test documents are used, rewritten as by the training partition; text that all conditions share stays unchanged."""
    asked = experiment(tmp_path, f"partition={{type: StopwordDrop, num_clients: 3, homogeneous: {homogeneous}}}", "training.num_rounds=1")
    there = make_cache(tmp_path)
    done, iid = (build_run(resolve_fingerprints(e, there), there) for e in (asked, iid_baseline(asked)))
    losses, corpus = done.evaluation.losses, there.get_corpus(asked.dataset, asked.model)
    assert (losses.held_out.blocks.tokens == iid.evaluation.losses.held_out.blocks.tokens).all() and iid.evaluation.losses.rewritten is None
    tokenizer = there.get_language_model(asked.model, asked.trainable).tokenizer
    ways = rewrite_groups(
        partition_documents(asked, corpus.with_sizes(there.get_tokens(corpus, asked.model, asked.trainable).lengths))
    ).rewrites
    of = {hand: {f" {text} " for text in rewrite_corpus(corpus.test, way).text} for hand, way in enumerate(ways)}
    seen = set()
    for client in range(3):
        hand = 1 if homogeneous or client % 2 else 0
        rows = losses.all_text.client_blocks(client, 4)
        assert set(losses.all_text.domain_ids[rows] // len(losses.held_out.domains)) == {hand}
        for row in rows:
            pieces = tokenizer.decode(losses.all_text.blocks.tokens[row]).replace("<pad>", "").split("<end>")
            assert all(any(piece in text for text in of[hand]) for piece in pieces)
            seen.add(hand)
    assert seen == ({1} if homogeneous else {0, 1}) and any("the " in text for text in of[0] - of[1])

    run = run_experiment(asked, there)
    frame = run.trajectory().to_frame()
    for metric in ("loss", "loss.original_text", "final.loss", "final.loss.original_text"):
        assert len(frame[(frame.metric == metric) & (frame.client >= 0) & (frame["round"] == 1)]) == 3
    assert np.isfinite(run.trajectory().curve("loss.own")).all()


@pytest.mark.parametrize("algorithm", ["FedAvg", "Centralized"])
def test_clients_and_centralized_training_use_the_rewritten_text(tmp_path, algorithm):
    there = make_cache(tmp_path)
    asked = experiment(tmp_path, "partition={type: StopwordDrop, num_clients: 3}", f"algorithm={algorithm}")
    setting, made = build_run(resolve_fingerprints(asked, there), there), (asked.model, asked.trainable)
    corpus = there.get_corpus(asked.dataset, asked.model)
    partition, tokenizer = (
        partition_documents(asked, corpus.with_sizes(there.get_tokens(corpus, *made).lengths)),
        there.get_language_model(*made).tokenizer,
    )
    texts = [sorted(rewrite_corpus(corpus.take(rows), way).text) for rows, way in zip(partition.rows, partition.rewrites, strict=True)]
    read = [sorted(tokenizer.decode(one.tokens[one.mask]).split("<end>")[:-1]) for one in setting.simulator.batches.blocks]
    assert read == (texts if algorithm == "FedAvg" else [sorted(text for own in texts for text in own)])
    mix = setting.evaluation.losses.all_text.client_domain_tokens
    assert (mix[:, 3:].sum(axis=1) > 0).tolist() == ([False, True, False] if algorithm == "FedAvg" else [True])
    assert mix.sum() == setting.evaluation.losses.held_out.client_domain_tokens.sum() == sum(map(sum, setting.partition_table["tokens"]))


def held_out(mix, domain=(0, 0, 1), length=(4, 4, 4)) -> HeldOut:
    """Return blocks of three domains; the last domain has none unless ``domain`` includes it."""
    keep = np.arange(4) < np.array(length)[:, None]
    tokens = np.zeros(keep.shape, dtype=np.int64)
    return HeldOut(Blocks(tokens, keep), np.array(domain), ("a", "b", "c"), np.array(mix, dtype=float))


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (held_out([[5, 0, 0], [0, 0, 3], [1, 1, 1]]), "no loss of client 1 can be measured: .* no test documents of domain c"),
        # no token of a block of length one is predicted
        (held_out([[5, 0, 0], [0, 3, 0]], length=(4, 4, 1)), "no loss of client 1 .* domain b"),
        (held_out([[0, 2, 0], [0, 3, 0]], domain=(0, 0, 2)), "no loss of clients 0, 1 .* domain b"),
    ],
)
def test_a_client_without_held_out_text_is_refused_before_training(held, words):
    with pytest.raises(UserError, match=words) as caught:
        check_held_out(held, "test", "news")
    assert len(str(caught.value).splitlines()) == 1


def test_a_domain_without_held_out_text_has_a_warning_and_no_own_blocks():
    held = held_out([[1, 0, 9], [0, 1, 0]])
    assert "domain c of dataset 'news': no test documents" in check_held_out(held, "test", "news")[0]
    assert held.client_blocks(0, 2).tolist() == [0, 1]  # nine tenths of its text belong to c, and only a is measured
    assert check_held_out(held_out([[1, 2, 0]]), "test", "news") == []


def test_a_run_whose_clients_have_no_held_out_text_is_refused(tmp_path):
    asked = experiment(tmp_path)
    rows = (tmp_path / "corpus.csv").read_text().splitlines()
    topics = [row.rsplit(",", 1)[1] for row in rows]
    folder = tmp_path / "split"
    folder.mkdir()
    for name, expected in (("train", ("sport", "tech", "food")), ("test", ("sport", "tech"))):
        (folder / f"{name}.csv").write_text(
            "\n".join(
                [rows[0], *(row for row, topic in zip(rows[1:], topics[1:], strict=True) if topic in expected)][
                    :: 1 if name == "train" else 2
                ]
            )
        )
    there = make_cache(tmp_path)
    asked = replace(asked, dataset=replace(asked.dataset, name=str(folder), fingerprint=""))
    with pytest.raises(UserError, match=r"no loss of client .* no test documents of domain food"):
        build_run(resolve_fingerprints(asked, there), there)
    mixed = resolve_fingerprints(edit_config(asked, {"partition__severity": 0.0}), there)
    assert any("domain food" in warning for warning in build_run(mixed, there).warnings)
