"""Test the report of a study: every section follows from the stored runs, whatever state the study is in."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import duckdb
import pandas as pd
import pytest
import vl_convert

from fedrift.report import study_results
from fedrift.report.document import Figure, Section, escape_latex, latex_files, table_to_latex
from fedrift.report.study_data import THIN_SQL, load_study_data
from fedrift.report.study_figures import curve_figures
from fedrift.report.study_report import build_document, render_study, write_study_report
from fedrift.report.study_setup import distinct_partitions
from fedrift.stats import holm, sign_flip_test
from fedrift.studies import StudyManifest, export_study, import_study

from .stored_study import make_study
from .test_page import specs, visible_text

EVERYTHING = {"deep": True, "more": {"training.client_optimizer.lr": [0.5, 100.0]}, "seeds": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def document(whole):
    return build_document(load_study_data(whole))


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return build_document(load_study_data(make_study(tmp_path_factory.mktemp("deep"), **EVERYTHING)))


def section(document, key: str) -> Section:
    return next(section for section in document.sections if section.key == key)


def test_the_injected_effect_is_supported_and_stated_first(document, whole):
    assert [claim.verdict for claim in document.claims] == ["supported", "supported"]
    text = visible_text(render_study(document))
    order = [
        text.index(word)
        for word in ("Does skew cost loss?", "36 of 36 runs finished", "2 are supported", "Partitions", "Failure overview", "Provenance")
    ]
    assert order == sorted(order)


def test_a_study_without_effects_states_the_detectable_effect(tmp_path):
    document = build_document(
        load_study_data(
            make_study(
                tmp_path,
                effect=0.0,
                hypotheses=[
                    {"type": "Greater", "name": "H1", "metric": "loss", "contrast": "iid_baseline", "group": {"partition.severity": 1.0}}
                ],
            )
        )
    )
    assert [claim.verdict for claim in document.claims] == ["inconclusive"]
    assert "would have been detected with 80 % probability" in document.claims[0].sentence
    assert " 0 are confirmed" in section(document, "diagnoses").text[0]
    table = next(table for table in document.tables if table.key == "verdicts")
    smallest = table.rows[0][table.columns.index("detectable")]
    assert 0 < float(smallest) < 0.1


def test_every_number_of_the_results_follows_from_the_stored_runs(document, whole):
    frame = load_study_data(whole).frame
    of = frame[(frame.role == "run") & (frame.algorithm == "FedAvg") & (frame["partition.severity"] == 1.0)]
    row = next(row for row in section(document, "results").blocks[1].rows if row[0] == "FedAvg, severity 1")
    assert row[1].startswith(f"{of.loss.mean():.3f} ±") and row[3].startswith(f"{of.gap.mean():+.3f} ±")
    assert row[-2:] == ("6/6", "0")


def test_verdicts_use_the_exact_p_values(tmp_path):
    """The p-values of Scaffold minus FedAvg at two severities, with Holm's correction, are computed from the stored differences."""
    dossier, called = load_study_data(make_study(tmp_path, seeds=8)), 0
    frame = dossier.frame
    for contrast in ("loss", "gap"):
        wide = frame[frame.role == "run"].pivot_table(index="seed", columns=["partition.severity", "algorithm"], values=contrast)
        p = [sign_flip_test((wide[severity]["Scaffold"] - wide[severity]["FedAvg"]).to_numpy()).value for severity in (0.5, 1.0)]
        called += sum(holm(p) <= 0.05)
    assert f"Of 4 comparisons below {called} ha" in study_results.results_section(dossier).text[1] and called > 0


@pytest.mark.parametrize(("p", "attainable", "called"), [(0.05, 0.03, 1), (0.050001, 0.03, 0), (1e-9, 1e-9, 1), (0.01, 0.0625, 0)])
def test_significance_uses_the_number_and_not_its_printed_form(p, attainable, called, whole, monkeypatch):
    """The printed form 0.05 does not matter: .050001 is above the level, and a p-value that too few seeds cannot reach is not used."""
    row = {
        "partition.severity": 1.0,
        "algorithm": "Scaffold",
        "effect": 0.1,
        "low": 0.0,
        "high": 0.2,
        "g": 1.0,
        "p_holm": p,
        "min_attainable_p": attainable,
        "detectable": 0.1,
        "seeds": 6,
        "diverged": 0,
    }
    monkeypatch.setattr(study_results, "compare_to_reference", lambda *_, **__: pd.DataFrame([row]))
    assert f"Of 2 comparisons below {2 * called} ha" in study_results.results_section(load_study_data(whole)).text[1]


def test_the_table_of_verdicts_tells_the_metric_and_a_level_that_is_not_95_percent(whole):
    verdict = load_study_data(whole).verdicts[0]
    equivalence = replace(verdict, confidence_level=0.9, low=-0.01, high=0.02)
    contrast = replace(verdict, kind="LinearContrast", metric="gap", confidence_level=0.95, low=-0.01, high=0.02)
    table = study_results.verdicts_table((equivalence, contrast))
    level, metric = table.columns.index("interval"), table.columns.index("metric")
    assert table.rows[0][level] == "-0.010 to +0.020 (90 %)" and table.rows[0][metric] == verdict.metric
    assert table.rows[1][level] == "-0.010 to +0.020" and table.rows[1][metric] == "gap, weighted sum"


def test_a_condition_with_a_diverged_run_has_no_mean(tmp_path):
    """One of six seeds ended with NaN, which a mean over the other five would hide."""
    dossier = load_study_data(make_study(tmp_path))
    bad = dossier.conditions[0].runs[0]
    struck = dossier.frame["run"] == bad
    frame = dossier.frame.assign(diverged=dossier.frame["diverged"] | struck)
    frame.loc[struck, ["loss", "gap"]] = math.nan
    row = study_results.results_section(replace(dossier, frame=frame)).blocks[1].rows[0]
    assert row[1] == row[3] == "–" and row[-2:] == ("6/6", "1")
    fewer = dossier.frame.copy()
    fewer.loc[struck, "gap"] = math.nan
    assert study_results.results_section(replace(dossier, frame=fewer)).blocks[1].rows[0][3].endswith("(n = 5)")


def test_a_mean_over_rounds_excludes_round_0(tmp_path):
    """Figures use a subset of the rounds, but a mean uses all except round 0, which is before training."""
    dossier = load_study_data(make_study(tmp_path, seeds=2, rounds=40, algorithms=("FedAvg",), severities=(1.0,)))
    run = next(iter(dossier.conditions[0].runs.values()))
    seen = dossier.manifest.get_run(run).trajectory()
    assert dossier.metric_by_run("loss")[run] == pytest.approx(seen.curve("loss")[seen.rounds > 0].mean())
    assert dossier.metric_by_run("loss", last=True)[run] == pytest.approx(seen.curve("loss")[-1])


def test_the_drawn_gap_is_paired_by_seed(whole):
    dossier = load_study_data(whole)
    condition = next(condition for condition in dossier.conditions if condition.name.endswith("FedAvg, partition.severity=1.0"))
    frame = dossier.gap_curves("loss")
    drawn = frame[(frame["condition"] == condition.index) & (frame["domain"] == "") & (frame["round"] == 6)].iloc[0]
    pairs = [
        whole.get_run(run).trajectory().curve("loss")[-1] - whole.get_run(condition.baselines[seed]).trajectory().curve("loss")[-1]
        for seed, run in condition.runs.items()
    ]
    assert drawn["mean"] == pytest.approx(sum(pairs) / len(pairs)) and drawn["seeds"] == 6
    assert drawn["high"] - drawn["low"] < 0.1  # seeds differ by .2, paired differences by .01


def test_every_chart_draws_and_the_page_is_complete(deep):
    document = deep
    keys = {section.key for section in document.sections}
    assert keys >= {
        "verdicts",
        "partitions",
        "loss",
        "results",
        "dose",
        "stability",
        "drift",
        "layers",
        "forgetting",
        "diagnoses",
        "adapters",
        "cost",
        "methods",
        "provenance",
    }
    for figure in document.figures:
        for panel in figure.panels:
            assert vl_convert.vegalite_to_svg(panel.draw().to_dict()).startswith("<svg"), figure.key
    html = render_study(document)
    marked = re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)
    assert "<script src" not in html and "<link" not in html and not re.findall(r"""src\s*=""", marked)
    assert sorted(re.findall(r'class="chart" id="([^"]+)"', html)) == sorted(specs(html))
    assert html.count("window.vegaEmbed=") + html.count("window.vegaEmbed =") == 1


def test_long_cells_have_a_minimum_width_and_the_first_column_stays_in_sight(document):
    html = render_study(document)
    rows = html[html.index('id="verdicts"') :]
    assert "<td>The skew costs loss</td>" in rows  # up to 24 characters the column may be narrow
    lengthy = replace(section(document, "verdicts").blocks[1], rows=(("a" * 25, "b" * 25, "1.0"),), numeric_columns=frozenset({2}))
    html = render_study(replace(document, sections=(Section("verdicts", "Verdicts", (), (lengthy,)),)))
    assert f'<th scope="row" class="long">{"a" * 25}</th><td class="long">{"b" * 25}</td><td class="number">1.0</td>' in html
    assert "position: sticky; left: 0" in re.search(r"\ntable.data tbody th {(.*?)}", html)[1]


def test_figures_that_can_only_show_one_value_are_left_out(whole):
    study_data = load_study_data(whole)
    curves = [curve_figures(study_data, "loss", "loss", "", title="", trivial=value) for value in (None, 1.0)]
    assert all(len(figures) == 1 for figures in curves)
    frame = study_data.mean_curves("loss").assign(mean=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(study_data), "mean_curves", lambda self, metric: frame)
        assert len(curve_figures(study_data, "loss", "loss", "", title="")) == 1
        assert not curve_figures(study_data, "loss", "loss", "", title="", trivial=1.0)


def test_different_partitions_of_one_name_also_name_their_stage(whole):
    study_data = load_study_data(whole)
    names = [name for name, *_ in distinct_partitions(study_data)]
    assert names == ["TopicMix 0.5", "TopicMix, IID"]  # this store has one table for both severities
    (stage,) = study_data.stages
    other = next(each for each in stage.conditions[1:] if each.levels["partition.severity"] == "0.5")
    one = next(iter(other.runs.values()))
    experiments = {**study_data.experiments, one: {**study_data.experiments[one], "partition_table": {"domains": ["a"], "tokens": [[7.0]]}}}
    conditions = tuple(replace(each, stage="central") if each == other else each for each in stage.conditions)
    stages = (replace(stage, conditions=conditions),)
    names = [name for name, *_ in distinct_partitions(replace(study_data, stages=stages, experiments=experiments))]
    assert names == ["TopicMix 0.5, main", "TopicMix, IID", "TopicMix 0.5, central"]


def test_diverged_runs_are_shown(deep):
    document = deep
    assert any("diverged" in sentence for sentence in document.abstract)
    broke = next(figure for figure in document.figures if figure.key == "stability-diverged-main")
    rows = [row for panel in broke.panels for row in panel.draw().to_dict()["datasets"].values()]
    assert {row["value"] for data in rows for row in data if row["x"] == "100"} == {1.0}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("ended", "said"),
    [(lambda place: place % 3 == 0, "The study is not finished"), (lambda place: False, "The study is not finished")],
    ids=["half", "none"],
)
def test_the_report_of_an_unfinished_study_states_this(tmp_path, ended, said):
    text = visible_text(render_study(build_document(load_study_data(make_study(tmp_path, ended=ended)))))
    assert said in text and "unfinished" in text


def test_the_report_of_an_empty_study_states_this(tmp_path):
    book = StudyManifest(tmp_path, "empty")
    told = make_study(tmp_path / "other").read()
    book.write({**told, "runs": [], "tuning_results": []})
    html = render_study(build_document(load_study_data(book)))
    text = visible_text(html)
    assert "No results are available yet: no runs yet" in text and "no run has been evaluated yet" in text and "inconclusive" in text
    assert not re.findall(r'class="chart"', html)


def test_the_report_of_a_failed_study_states_the_reason(tmp_path):
    book = make_study(tmp_path, ended=lambda place: False, seeds=1)
    for entry in book.read()["runs"]:
        book.record_failure(entry.run, "there is no memory left\nat all")
    text = visible_text(render_study(build_document(load_study_data(book))))
    assert "failed" in text and "there is no memory left" in text


def test_missing_metrics_are_named_with_the_probes_that_record_them(document):
    needs = {each.title: each.requirement for each in document.missing}
    assert "hidden" in needs["Layers: CKA and attention entropy"] and "clustering" in needs["Clustering"]


@pytest.mark.slow
def test_the_report_does_not_depend_on_the_folder(tmp_path, whole):
    there = import_study(export_study(whole, tmp_path / "made.zip"), tmp_path / "there")
    here = build_document(load_study_data(whole))
    again = build_document(load_study_data(there))
    assert latex_files(here) == latex_files(again) and render_study(here) == render_study(again)


def test_the_tables_are_valid_latex(document):
    for name, text in latex_files(document).items():
        if name != "all.tex":
            assert text.count("\\begin{") == text.count("\\end{") and "\\toprule" in text and "\\bottomrule" in text
    assert escape_latex("50% of a_b & {c} < d") == r"50\% of a\_b \& \{c\} $<$ d" and escape_latex("-0.1") == "$-0.1$"
    widths = {line.count(" & ") for line in table_to_latex(document.tables[0]).splitlines() if line.endswith(r"\\") and " & " in line}
    assert widths == {len(document.tables[0].columns) - 1}


@pytest.mark.slow
def test_a_paper_and_its_figures_are_written(tmp_path, whole):
    make_study = write_study_report(whole, tmp_path / "out", html=True, pdf=True, latex=True)
    pdf = (tmp_path / "out" / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
    assert {path.suffix for path in make_study} == {".html", ".pdf", ".svg", ".tex"}
    again = write_study_report(whole, tmp_path / "again", html=False, pdf=True)
    assert (tmp_path / "again" / "report.pdf").read_bytes() == pdf and again


def test_names_are_escaped(tmp_path):
    evil = "</script><script>alert(1)</script>"
    html = render_study(build_document(load_study_data(make_study(tmp_path, algorithms=(evil, "FedAvg"), seeds=1, hypotheses=[]))))
    assert "<script>alert" not in html


def test_rows_are_compressed_and_reduced(tmp_path):
    book = make_study(tmp_path, rounds=200, seeds=1, algorithms=("FedAvg",), severities=(1.0,), hypotheses=[])
    dossier = load_study_data(book)
    assert (
        dossier.is_thinned
        and set(dossier.mean_curves("loss")["round"]) >= {0, 200}
        and len(set(dossier.mean_curves("loss")["round"])) <= 60
    )
    found = specs(render_study(build_document(dossier)))
    assert all(set(data) == {"names", "rows"} for spec in found.values() for data in spec["datasets"].values())


@pytest.mark.slow
def test_the_report_needs_no_torch(whole, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom fedrift.studies import StudyManifest\nfrom fedrift.report.study_report import"
        f" write_study_report\nwrite_study_report(StudyManifest(Path({str(whole.root)!r}), 'made'), Path({str(tmp_path)!r}))\nassert"
        " 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_figures_contain_their_conditions_for_the_filters(document):
    for figure in document.figures:
        if figure.key.startswith(("loss", "gap", "results", "dose")):
            assert isinstance(figure, Figure)
            data = [row for panel in figure.panels for rows in panel.draw().to_dict()["datasets"].values() for row in rows]
            assert {row["condition"] for row in data} - {-1} <= set(range(len(document.conditions)))
            assert len({row["condition"] for row in data} - {-1}) == 4
    assert json.loads(json.dumps([dict(condition) for condition in document.conditions]))[0]["algorithm"] == "FedAvg"


@pytest.mark.parametrize("rounds", [12, 40])
def test_every_curve_keeps_its_own_last_round(rounds):
    """Runs of 10, 16 and 50 rounds share a limit on the rounds that are drawn; the end of each is its own."""
    lengths = {"short": 10, "middle": 16, "long": 50}
    rows = [(run, "forgetting", "sport", round, -1, float(round)) for run, length in lengths.items() for round in range(length + 1)]
    connection = duckdb.connect()
    connection.register("records", pd.DataFrame(rows, columns=["run", "metric", "domain", "round", "client", "value"]))
    connection.execute(THIN_SQL, {"rounds": rounds})
    found = connection.execute("SELECT run, max(round), count(*) FROM thin GROUP BY run").fetchall()
    assert {run: last for run, last, _ in found} == lengths
    assert max(count for *_, count in found) <= rounds + 1
