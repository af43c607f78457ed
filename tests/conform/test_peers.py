"""Peers' adapters: they run where the peer is installed, and what they share with the paper they get right."""

from __future__ import annotations

import pytest

from fedrift.conform import score

pytest.importorskip("flwr", reason="a peer, installed only to be judged")

from fedrift.conform.peers.flower import FLOWER


@pytest.mark.parametrize("subject", FLOWER, ids=lambda subject: subject.name)
def test_flowers_strategies_can_be_driven(subject):
    verdicts = score(subject)
    assert not any(verdict.said.startswith("raised") for verdict in verdicts)
    if subject.algorithm in ("fedavg", "median", "trimmed_mean", "krum"):
        assert all(verdict.holds for verdict in verdicts)
