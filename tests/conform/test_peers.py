"""Peers' adapters: they run where the peer is installed, and what they share with the paper they get right."""

from __future__ import annotations

from importlib import import_module

import pytest

from fedrift.conform import score
from fedrift.conform.subjects import subjects
from fedrift.errors import UserError

SOUND = {  # subjects -> the peer, and its algorithms that were found right, as docs/conformance.md records
    "flower:FLOWER": ("flwr", {"fedavg", "median", "trimmed_mean", "krum"}),
    "flower_apps:FLOWER_APPS": ("flwr", {"fedavg", "fedyogi", "qfedavg", "median", "trimmed_mean", "krum"}),
    "pfl:PFL": ("pfl", {"fedavg", "fedprox", "fedavgm"}),
    "fluke:FLUKE": ("fluke", {"fedavg", "fedprox"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", SOUND)
def test_a_peers_algorithms_can_be_driven(where):
    peer, sound = SOUND[where]
    pytest.importorskip(peer, reason="a peer, installed only to be judged")
    for subject in subjects(f"fedrift.conform.peers.{where}"):
        verdicts = score(subject)
        assert not any(verdict.said.startswith("raised") for verdict in verdicts), subject.name
        if subject.algorithm in sound:
            assert not [verdict for verdict in verdicts if verdict.holds is False]


@pytest.mark.parametrize("where", SOUND)
def test_a_peer_that_is_not_here_is_said_to_be_missing(where):
    try:
        import_module(SOUND[where][0])
    except ImportError:
        with pytest.raises(UserError, match="where it is installed"):
            subjects(f"fedrift.conform.peers.{where}")
