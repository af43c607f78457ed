"""What a run is measured on where clients rewrite their texts."""

from __future__ import annotations

import numpy as np
import pytest

from fedrift.experiment import twin
from fedrift.partition.hands import hands, in_hand
from fedrift.run import carry_out
from fedrift.setting import dealt, prepare, resolve
from tests.worlds import experiment, stock


@pytest.mark.parametrize("everybody", [False, True])
def test_clients_that_rewrite_are_measured_on_held_out_text_in_their_own_hand(tmp_path, everybody):
    """Of the test documents alone, as the training deal writes them; what all arms share stays as it was found."""
    asked = experiment(tmp_path, f"partition={{is: StopwordDrop, clients: 3, everybody: {everybody}}}", "plan.rounds=1")
    there = stock(tmp_path)
    done, iid = (prepare(resolve(e, there), there) for e in (asked, twin(asked)))
    losses, corpus = done.losses, there.corpus(asked.corpus, asked.model)
    assert (losses.held_out.blocks.tokens == iid.losses.held_out.blocks.tokens).all() and iid.losses.written is None
    tokenizer = there.language_model(asked.model, asked.tune).tokenizer
    ways = hands(dealt(asked, corpus.sized(there.tokens(corpus, asked.model, asked.tune).lengths))).ways
    of = {hand: {f" {text} " for text in in_hand(corpus.test, way).text} for hand, way in enumerate(ways)}
    seen = set()
    for client in range(3):
        hand = 1 if everybody or client % 2 else 0
        rows = losses.whole.own(client, 4)
        assert set(losses.whole.domain[rows] // len(losses.held_out.names)) == {hand}
        for row in rows:
            pieces = tokenizer.decode(losses.whole.blocks.tokens[row]).replace("<pad>", "").split("<end>")
            assert all(any(piece in text for text in of[hand]) for piece in pieces)
            seen.add(hand)
    assert seen == ({1} if everybody else {0, 1}) and any("the " in text for text in of[0] - of[1])

    run = carry_out(asked, there)
    frame = run.trajectory().frame()
    for metric in ("loss", "loss.plain", "final.loss", "final.loss.plain"):
        assert len(frame[(frame.metric == metric) & (frame.client >= 0) & (frame["round"] == 1)]) == 3
    assert np.isfinite(run.trajectory().curve("loss.own")).all()


@pytest.mark.parametrize("algorithm", ["FedAvg", "Centralised"])
def test_clients_and_the_pool_of_all_data_train_on_text_as_its_owners_write_it(tmp_path, algorithm):
    there = stock(tmp_path)
    asked = experiment(tmp_path, "partition={is: StopwordDrop, clients: 3}", f"algorithm={algorithm}")
    setting, made = prepare(resolve(asked, there), there), (asked.model, asked.tune)
    corpus = there.corpus(asked.corpus, asked.model)
    partition, tokenizer = dealt(asked, corpus.sized(there.tokens(corpus, *made).lengths)), there.language_model(*made).tokenizer
    texts = [sorted(in_hand(corpus.take(rows), way).text) for rows, way in zip(partition.rows, partition.rewrite, strict=True)]
    read = [sorted(tokenizer.decode(one.tokens[one.keep]).split("<end>")[:-1]) for one in setting.fleet.batches.blocks]
    assert read == (texts if algorithm == "FedAvg" else [sorted(text for own in texts for text in own)])
    mix = setting.losses.whole.mix
    assert (mix[:, 3:].sum(axis=1) > 0).tolist() == ([False, True, False] if algorithm == "FedAvg" else [True])
    assert mix.sum() == setting.losses.held_out.mix.sum() == sum(map(sum, setting.table["tokens"]))
