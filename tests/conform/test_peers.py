"""Peers' adapters: they run where the peer is installed, and what they share with the paper they get right."""

from __future__ import annotations

from importlib import import_module

import pytest

from fedrift.conform import score
from fedrift.conform.subjects import subjects
from fedrift.errors import UserError

SOUND = {  # peer -> its algorithms that were found right, as docs/conformance.md records
    "flwr": ("flower:FLOWER", {"fedavg", "median", "trimmed_mean", "krum"}),
    "pfl": ("pfl:PFL", {"fedavg", "fedprox", "fedavgm"}),
    "fluke": ("fluke:FLUKE", {"fedavg", "fedprox"}),
}


@pytest.mark.parametrize("peer", SOUND)
def test_a_peers_algorithms_can_be_driven(peer):
    pytest.importorskip(peer, reason="a peer, installed only to be judged")
    where, sound = SOUND[peer]
    for subject in subjects(f"fedrift.conform.peers.{where}"):
        verdicts = score(subject)
        assert not any(verdict.said.startswith("raised") for verdict in verdicts), subject.name
        if subject.algorithm in sound:
            assert not [verdict for verdict in verdicts if verdict.holds is False]


@pytest.mark.parametrize("peer", SOUND)
def test_a_peer_that_is_not_here_is_said_to_be_missing(peer):
    try:
        import_module(peer)
    except ImportError:
        with pytest.raises(UserError, match="where it is installed"):
            subjects(f"fedrift.conform.peers.{SOUND[peer][0]}")
