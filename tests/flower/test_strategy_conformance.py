"""Test the conformance check of a user's Flower strategy against the paper of its algorithm."""

from __future__ import annotations

import json
import textwrap

import pytest
from flwr.serverapp.strategy import Bulyan, FedAdam, FedAvg, FedAvgM, FedProx, FedXgbBagging, FedXgbCyclic, Krum, MultiKrum, Strategy
from typer.testing import CliRunner

from benchmarks.peers.flower_apps import FLOWER_APPS
from fedrift.cli.app import app
from fedrift.conformance import judge_subject
from fedrift.core.errors import UserError
from fedrift.flower.conformance import make_subject

STRATEGIES = """
    from flwr.serverapp.strategy import FedAvg

    class MyStrategy(FedAvg):
        '''FedAvg that logs nothing.'''

    class Decaying(FedAvg):
        '''The clients' learning rate is halved every fifth round, as in Flower's tutorial.'''

        def configure_train(self, server_round, arrays, config, grid):
            if server_round % 5 == 0:
                config["lr"] *= 0.5
            return super().configure_train(server_round, arrays, config, grid)

    class Uniform(FedAvg):
        '''A mean that forgets the weights.'''

        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            for reply in replies:
                reply.content["metrics"]["num-examples"] = 1
            return super().aggregate_train(server_round, replies)
"""


@pytest.fixture
def app_folder(tmp_path, monkeypatch):
    (tmp_path / "my_app").mkdir()
    (tmp_path / "my_app" / "strategy.py").write_text(textwrap.dedent(STRATEGIES))
    monkeypatch.chdir(tmp_path)


def run_conformance(*words):
    done = CliRunner().invoke(app, ["conformance", *words, "--json"])
    return done.exit_code, {verdict["problem"]: verdict for verdict in json.loads(done.output)["verdicts"]}


def test_a_subclass_without_changes_passes(app_folder):
    code, verdicts = run_conformance("my_app.strategy:MyStrategy")
    assert code == 0 and len(verdicts) == 4 and all(verdict["holds"] for verdict in verdicts.values())
    assert {verdict["subject"] for verdict in verdicts.values()} == {"MyStrategy"}
    assert run_conformance("my_app/strategy.py:MyStrategy")[0] == 0 and run_conformance("my_app.strategy:MyStrategy")[0] == 0


def test_a_changed_subclass_fails_with_the_round(app_folder):
    code, verdicts = run_conformance("my_app.strategy:Decaying")
    assert code == 1 and verdicts["two clients"]["message"].startswith("differs from the reference from round 5 on")
    assert verdicts["a client without data"]["holds"]  # after four rounds
    code, verdicts = run_conformance("my_app.strategy:Uniform")
    assert code == 1 and not verdicts["clients of unequal size"]["holds"] and verdicts["two clients"]["holds"]


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam, MultiKrum], ids=lambda strategy: strategy.__name__)
def test_strategies_of_flower_get_the_verdicts_of_the_scoreboard(strategy):
    """Except FedProx: the scoreboard uses the client of Flower's docstring, and this check the client of the paper."""
    subject = make_subject(strategy)
    known = next(each for each in FLOWER_APPS if each.algorithm == subject.algorithm)
    assert [verdict.holds for verdict in judge_subject(subject)] == [verdict.holds for verdict in judge_subject(known)]


def test_fedprox_with_the_client_of_the_paper_passes():
    assert all(verdict.holds for verdict in judge_subject(make_subject(FedProx)))


def test_the_strategy_keeps_its_keys_and_trains_the_cohort_of_the_problem():
    class Half(FedAvg):
        def __init__(self, fraction_train=0.5, **options):
            keys = {"arrayrecord_key": "model", "configrecord_key": "settings", "weighted_by_key": "num-tokens"}
            super().__init__(fraction_train=fraction_train, **keys, **options)

    assert [verdict.message for verdict in judge_subject(make_subject(Half)) if not verdict.holds] == []


@pytest.mark.parametrize("strategy", [Bulyan, FedXgbBagging, FedXgbCyclic], ids=lambda strategy: strategy.__name__)
def test_other_algorithms_that_extend_fedavg_are_refused(strategy):
    with pytest.raises(UserError, match=f"Mine is a {strategy.__name__}, and the conformance suite has no problem for that algorithm"):
        make_subject(type("Mine", (strategy,), {}))


def test_strategies_that_cannot_be_tested_are_reported(app_folder):
    class Fixed(FedAvgM):
        def __init__(self, min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1):
            super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)

    (verdict, *_) = judge_subject(make_subject(Fixed))
    assert verdict.holds is None and "does not take server_learning_rate, server_momentum" in verdict.message
    assert [verdict.holds for verdict in judge_subject(make_subject(Krum))] == [True, None]  # one client and three clients
    with pytest.raises(UserError, match="extends none of Flower's strategies with a known algorithm: FedProx"):
        make_subject(type("Other", (Strategy,), {}))
    done = CliRunner().invoke(app, ["conformance", "my_app.strategi"])
    assert done.exit_code == 2
