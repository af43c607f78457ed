"""Test tables of conditions and the mixed model against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrift import stats as s
from fedrift.core.errors import UserError

from .frames import FACTORS, diverge, study


def truth(algorithm, severity, participation):
    return {"FedAvg": 0.2, "FedProx": 0.2, "Scaffold": 0.1}[algorithm] * severity


def test_every_level_is_compared_with_the_reference_with_holm_over_the_table():
    runs = study(truth, algorithms=("FedAvg", "FedProx", "Scaffold"), severities=(0.5, 1.0))
    found = s.compare_to_reference(runs, "loss", "algorithm", "FedAvg", FACTORS, by=["partition.severity"], contrast="iid_baseline")
    assert len(found) == 4 and (found["seeds"] == 10).all()
    rows = found.set_index(["partition.severity", "algorithm"])
    assert rows.loc[(1.0, "Scaffold"), "effect"] == pytest.approx(-0.1, abs=0.02)
    assert rows.loc[(1.0, "Scaffold"), "p_holm"] <= 0.05 < rows.loc[(1.0, "FedProx"), "p_holm"]
    assert found["p_holm"].tolist() == pytest.approx(s.holm(found["p"].to_numpy()))


def test_a_balanced_mixed_model_is_the_paired_comparison():
    """One balanced factor within seeds: the effect is the mean difference, and its standard error sd(d) / sqrt(n)."""
    runs = study(truth, algorithms=("FedAvg", "Scaffold"), severities=(1.0,), noise=0.05)
    runs = runs[~runs["iid"]]
    wide = runs.pivot(index="seed", columns="algorithm", values="loss")
    d = (wide["Scaffold"] - wide["FedAvg"]).to_numpy()
    found = s.fit_mixed_model(runs, "loss", ["algorithm"])
    row = found.table.set_index("term").loc["algorithm[T.Scaffold]"]
    assert row["estimate"] == pytest.approx(d.mean(), abs=1e-6)
    assert row["error"] == pytest.approx(d.std(ddof=1) / math.sqrt(10), rel=1e-3)
    assert (row["low"], row["high"]) == pytest.approx((s.mean_ci(d).low, s.mean_ci(d).high), abs=1e-4)
    assert found.sd_residual == pytest.approx(d.std(ddof=1) / math.sqrt(2), rel=1e-3) and (found.groups, found.runs) == (10, 20)


@pytest.mark.slow
def test_the_bootstrap_detects_only_existing_terms():
    runs = study(truth, algorithms=("FedAvg", "Scaffold"), severities=(0.5, 1.0), noise=0.02, seeds=6)
    terms = ["algorithm", "partition.severity"]
    there = s.bootstrap_term_p(runs[~runs["iid"]], "loss", terms, "partition.severity", num_resamples=19)
    assert there.value == there.min_attainable_p == 0.05
    noise = runs.assign(coin=np.random.default_rng(0).integers(0, 2, len(runs)))
    assert s.bootstrap_term_p(noise[~noise["iid"]], "loss", [*terms, "coin"], "coin", num_resamples=19).value > 0.05


def test_a_mixed_model_reports_excluded_runs_and_refuses_two_seeds():
    runs = study(truth, algorithms=("FedAvg", "Scaffold"), severities=(1.0,))
    found = s.fit_mixed_model(diverge(runs, runs["run"] == runs["run"].iloc[0]), "loss", ["algorithm:partition.severity", "algorithm"])
    assert found.num_excluded == 1 and "algorithm[Scaffold]:partition.severity" in " ".join(found.table["term"])
    with pytest.raises(UserError, match="at least 3 values"):
        s.fit_mixed_model(runs[runs["seed"] < 2], "loss", ["algorithm"])
