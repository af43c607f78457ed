"""Test studies of known truth: only injected effects are found, up to five per cent of false verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fedrift.algorithms import FedAvg, FedProx, Scaffold
from fedrift.core.optimizers import Sgd
from fedrift.stats import evaluate_hypotheses
from fedrift.stats.hypotheses import Equivalent, Greater, Less, Trend
from fedrift.studies import build_study_table
from fedrift.studies.run import run_study
from tests.quadratics import Clients, clients, fixed_point, path, train
from tests.small_experiment import make_cache
from tests.studies.small import study

ALGORITHMS = {"FedAvg": FedAvg(), "FedProx": FedProx(mu=0.0), "Scaffold": Scaffold()}  # with mu = 0 FedProx equals FedAvg
NOISE = 0.004  # standard deviation of the measurement noise
A = (1.0, 4.0)


def group(severity: float) -> Clients:
    """Return two clients whose minima differ by ``severity``."""
    return clients(A, (0.0, severity), steps=10)


def excess(x: float, severity: float) -> float:
    """Return the mean loss above its minimum, which is at 0.8 severity."""
    return sum(A) / 4 * (x - A[1] / sum(A) * severity) ** 2


def run_quadratic_study(seeds: int = 8) -> pd.DataFrame:
    """Run federations on quadratics with their IID baselines, and add noise to the results, with one draw per seed."""
    draw, rows = np.random.default_rng(5), []
    for name, algorithm in ALGORITHMS.items():
        for severity in (0.0, 0.5, 1.0):
            ended = path(train(algorithm, group(severity), until=30, optimizer=Sgd(0.1), client_weighting="uniform"))[-1]
            for seed in range(seeds):
                rows.append(
                    {
                        "run": f"{name} {severity} {seed}",
                        "study": "planted",
                        "seed": seed,
                        "iid": severity == 0.0,
                        "diverged": False,
                        "iid_baseline": f"{name} 0.0 {seed}" if severity else "",
                        "algorithm": name,
                        "partition.severity": severity,
                        "loss": excess(ended, severity) + draw.normal(0, NOISE),
                    }
                )
    return pd.DataFrame(rows)


def test_injected_effects_are_found_with_their_sizes_and_no_others():
    """The bias of FedAvg's fixed point is quadratic in the distance of the minima, and SCAFFOLD has none."""
    bias = excess(fixed_point(FedAvg(), group(1.0), 0.1), 1.0)
    assert bias > 5 * NOISE
    hard = {"partition.severity": 1.0}
    there = [
        Greater(name="FedAvg", metric="loss", contrast="iid_baseline", group={"algorithm": "FedAvg", **hard}),
        Less(
            name="Scaffold",
            metric="loss",
            contrast="iid_baseline",
            group={"algorithm": "Scaffold"},
            reference={"algorithm": "FedAvg"},
            where=hard,
        ),
        Trend(name="dose", metric="loss", contrast="iid_baseline", predictor="partition.severity", where={"algorithm": "FedAvg"}),
        Equivalent(name="none", metric="loss", contrast="iid_baseline", margin=bias / 2, group={"algorithm": "Scaffold", **hard}),
    ]
    nothing = [
        Greater(name="Scaffold alone", metric="loss", contrast="iid_baseline", group={"algorithm": "Scaffold", **hard}),
        Less(name="FedProx", metric="loss", contrast="iid_baseline", group={"algorithm": "FedProx"}, reference={"algorithm": "FedAvg"}),
        Greater(name="IID", metric="loss", group={"algorithm": "FedAvg"}, reference={"algorithm": "Scaffold"}, where={"iid": True}),
        Trend(name="flat", metric="loss", contrast="iid_baseline", predictor="partition.severity", where={"algorithm": "Scaffold"}),
    ]
    said = [replace(one, family=family) for family, every in (("there", there), ("nothing", nothing)) for one in every]
    found = {one.name: one for one in evaluate_hypotheses(said, run_quadratic_study(), ["algorithm", "partition.severity"])}
    assert {name: one.verdict for name, one in found.items()} == {
        **{one.name: "supported" for one in there},
        **{one.name: "inconclusive" for one in nothing},
    }
    assert found["FedAvg"].low < bias < found["FedAvg"].high
    assert found["Scaffold"].low < -bias < found["Scaffold"].high


@pytest.fixture(scope="module")
def final_losses(tmp_path_factory):
    """The final losses of real IID runs that differ only in their seeds."""
    folder = tmp_path_factory.mktemp("null")
    plain = study(folder, name="null", seeds=16, factors={"partition.severity": [0.0]})
    return build_study_table(run_study(plain, make_cache(folder, threads=1)))["loss"].to_numpy()


@pytest.mark.slow
def test_iid_runs_with_arbitrary_names_give_verdicts_at_the_level_of_the_test(final_losses):
    """Eight pairs can give 12 / 256 = 4.7 % below .05, counting both directions."""
    assert len(np.unique(final_losses)) == 16
    draw, times, said = (
        np.random.default_rng(3),
        300,
        [Greater(name="null", metric="loss", group={"condition": "A"}, reference={"condition": "B"})],
    )
    called = 0
    for _ in range(times):
        values = draw.permutation(final_losses)
        rows = [
            {
                "run": f"{arm}{seed}",
                "study": "null",
                "condition": arm,
                "seed": seed,
                "iid": False,
                "iid_baseline": "",
                "diverged": False,
                "loss": values[2 * seed + place],
            }
            for seed in range(8)
            for place, arm in enumerate("AB")
        ]
        called += evaluate_hypotheses(said, pd.DataFrame(rows), ["condition"])[0].verdict != "inconclusive"
    size = 12 / 256
    assert called / times == pytest.approx(size, abs=4 * np.sqrt(size * (1 - size) / times))
