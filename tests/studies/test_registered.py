"""Test that the registered studies are valid, use existing outcomes and levels only, and have other seeds than their tuning."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedrift.stats.verdicts import evaluate_gated, list_used_conditions
from fedrift.studies import load_study
from fedrift.studies.designs import find_aliases
from fedrift.studies.outcomes import list_hypothesis_metrics, parse_metric_name
from fedrift.studies.plan import plan_trials
from fedrift.studies.spec import expand_cells, list_factor_names, list_seeds

STUDIES = Path(__file__).parents[2] / "studies"
REGISTERED = [
    *("recency", "drift", "dose", "repair", "grid", "real_styles", "real_styles_long", "drift_wide", "induced"),
    *("recency_smollm2", "recency_text", "recency_controls", "recency_average", "recency_separation"),
    *("repair_controls", "grid_titles", "recency_remedies"),
]
# Those registered later have fresh seeds.
FIRST_SEEDS = {
    **{"real_styles_long": 110, "drift_wide": 110, "induced": 120, "recency_smollm2": 130},
    **{"recency_text": 140, "recency_controls": 150, "recency_average": 150, "recency_separation": 170},
    **{"grid_titles": 160, "recency_remedies": 180},
}
NUM_SEEDS = {"grid": 3, "grid_titles": 3, "recency_smollm2": 6}  # else 8


@pytest.mark.parametrize("name", REGISTERED)
def test_a_registered_study_compares_what_it_runs(name):
    study = load_study(STUDIES / f"{name}.yaml")
    seeds = list_seeds(study)
    first = FIRST_SEEDS.get(name, 100)
    assert seeds == tuple(range(first, first + NUM_SEEDS.get(name, 8)))
    assert min(study.tuning.seeds, default=1000) >= 1000 and study.gate is not None and study.gate.min == 0.15
    metrics = {*study.metrics, *(metric for each in study.hypotheses for metric in list_hypothesis_metrics(each))}
    assert all(parse_metric_name(metric) for metric in metrics)
    rows = [
        {
            "run": str(number), "stage": cell.stage, "condition": cell.condition, "seed": cell.seed, "iid": False, "iid_baseline": "",
            "diverged": False, **{factor: cell.factors.get(factor) for factor in list_factor_names(study)}, **dict.fromkeys(metrics, 1.0),
        }
        for number, cell in enumerate(expand_cells(study))
    ]  # fmt: skip
    runs = pd.DataFrame(rows)
    assert len(runs) == len(runs.drop_duplicates(["stage", "condition", "seed"]))
    assert all(list_used_conditions(each, runs) for each in study.hypotheses)
    found = evaluate_gated(study.hypotheses, runs, list_factor_names(study), study.gate)
    empty = [each.name for each in found if not each.seeds]
    assert not [each for each in empty if not each.startswith(("R", "I1"))], empty  # these need rows of the baselines
    groups = {(trial.condition, trial.seed) for trial in plan_trials(study)}
    assert len(plan_trials(study)) == study.tuning.trials * len(groups)


@pytest.mark.parametrize("name", ["grid", "grid_titles"])
def test_the_grid_is_an_orthogonal_array(name):
    study = load_study(STUDIES / f"{name}.yaml")
    cells = [cell.factors for cell in expand_cells(study) if cell.seed == list_seeds(study)[0]]
    tokens = ("stop words", "truncation", "substitution")
    plain = [{**cell, "regime": "tokens" if cell["regime"] in tokens else cell["regime"]} for cell in cells]
    assert len(plain) == 27
    for one in plain[0]:
        for other in plain[0]:
            if one != other:
                counts = pd.Series([(cell[one], cell[other]) for cell in plain]).value_counts()
                assert len(counts) == 9 and set(counts) == {3}
    assert {(alias["factor"], *sorted(alias["pair"])) for alias in find_aliases(plain)} == {
        ("regime", "algorithm", "clients"),
        ("algorithm", "clients", "regime"),
        ("clients", "algorithm", "regime"),
    }
    for kind in tokens:
        assert sum(cell["regime"] == kind for cell in cells) == 3
