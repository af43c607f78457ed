"""Test that the paper of the study states what the verdicts allow, and nothing about studies that were not run."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pandas as pd
import pytest
from scipy import stats
from tokenizers import Tokenizer

from fedrift.config.schema import parse_config
from fedrift.core.records import Record, Trajectory
from fedrift.data.dataset import load_corpus
from fedrift.diagnosis.finding import load_thresholds
from fedrift.engine.build import TEST
from fedrift.probes.held_out import order_documents
from fedrift.report import study_setup
from fedrift.report.document import LegendKey
from fedrift.report.study_data import Condition, StudyData
from fedrift.report.study_outcomes import find_outcome
from fedrift.studies import load_study
from scripts import study_markdown, study_paper, study_sections, study_values
from tests.report.stored_study import make_study

ROOT = Path(__file__).parents[2]
HYPOTHESES = [
    {
        "type": "Greater",
        "name": name,
        "claim": "The skew costs loss",
        "metric": "loss",
        "contrast": "iid_baseline",
        "family": name,
        "group": {"algorithm": "FedAvg", "partition.severity": 1.0},
    }
    for name in ("P1 style", "P1 sandbox")
]


def write_paper(root: Path, effect: float) -> str:
    """Write the paper of a study ``recency`` in which FedAvg's loss rises by ``effect``, and return its Markdown."""
    make_study(root / "runs", "recency", hypotheses=HYPOTHESES, effect=effect)
    study_paper.main(["--runs-dir", str(root / "runs"), "--output", str(root / "paper")])
    return (root / "paper" / "paper.md").read_text()


def test_the_conclusion_follows_the_verdicts_and_every_effect_is_that_of_the_runs(tmp_path):
    text = write_paper(tmp_path, effect=0.3)
    assert "With one client in a round the loss ends farther above the IID baseline" in text
    effects = re.findall(r"by ([+-][\d.]+) nats \(([+-][\d.]+) to ([+-][\d.]+)\)", text)
    data = study_paper.load_studies([tmp_path / "runs"])["recency"]
    assert [float(effect) for effect, _, _ in effects[:1]] == pytest.approx([data.verdicts[0].effect], abs=0.0006)
    assert all(0 < float(low) < float(effect) < float(high) <= 0.3 for effect, low, high in effects)
    assert "real styles, under" not in text  # that study was not run
    assert "`drift`" in text and "There is no answer yet" in text
    assert "- The study `drift`: no finished results of it are stored." in text


def test_without_an_effect_the_paper_concludes_nothing(tmp_path):
    text = write_paper(tmp_path, effect=0.0)
    assert "the loss ends farther above the IID baseline" not in text
    assert "0 are supported" in text


def test_a_hypothesis_with_missing_runs_has_no_verdict_yet(tmp_path):
    """All runs of the last seed are unfinished, so nothing that depends on them is shown."""
    make_study(tmp_path / "runs", "recency", hypotheses=HYPOTHESES, ended=lambda place: place < 5 * 6)
    study_paper.main(["--runs-dir", str(tmp_path / "runs"), "--output", str(tmp_path / "paper")])
    text = (tmp_path / "paper" / "paper.md").read_text()
    assert "0 are supported, 0 refuted, 0 inconclusive" in text and "because runs are missing: P1 style, P1 sandbox" in text
    assert "| recency |" not in text and "0 conditions have finished runs" in text


def test_a_repeated_build_gives_the_same_paper_byte_for_byte(tmp_path):
    write_paper(tmp_path, effect=0.3)
    files = sorted(path for path in (tmp_path / "paper").rglob("*") if path.is_file())
    before = [path.read_bytes() for path in files]
    assert {path.suffix for path in files} == {".md", ".pdf", ".svg"}
    study_paper.main(["--runs-dir", str(tmp_path / "runs"), "--output", str(tmp_path / "paper")])
    assert [path.read_bytes() for path in files] == before


def make_data(cells, stage: str = "map", metrics=("gain", "baseline.gain", "loss", "start", "gap")) -> SimpleNamespace:
    """Return the data of a study with a gate of .15. A cell is a pair of its levels and of the outcomes of a seed, as a function of it.

    The outcomes ``diverged`` and ``baseline diverged`` state whether the run and its IID baseline diverged.
    """
    conditions, rows = [], []
    for index, (levels, outcomes) in enumerate(cells):
        name = f"c{index}"
        conditions.append(Condition(index, stage, name, {key: str(level) for key, level in levels.items()}, levels,
                                    {seed: f"{name} {seed}" for seed in range(3)}, {}))  # fmt: skip
        for seed in range(3):
            values = outcomes(seed)
            run = {
                "run": f"{name} {seed}",
                "stage": stage,
                "condition": name,
                "seed": seed,
                "iid": False,
                "iid_baseline": f"{name} iid {seed}",
            }
            rows += [
                {**run, "diverged": values.get("diverged", False), **{metric: values.get(metric, math.nan) for metric in metrics}},
                {**run, "run": f"{name} iid {seed}", "iid": True, "iid_baseline": "", "diverged": values.get("baseline diverged", False)},
            ]
    data = SimpleNamespace(
        frame=pd.DataFrame(rows),
        conditions=conditions,
        stages=[SimpleNamespace(name=stage, conditions=conditions)],
        study_config={"metrics": list(metrics), "gate": {"min": 0.15}},
        manifest_values={"factors": list(cells[0][0]), "complete": True},
        finished={run: {} for condition in conditions for run in condition.runs.values()},
        experiments={},
    )
    data.outcome_by_run = lambda name: StudyData.outcome_by_run(data, name)
    return data


def lose(gain: float, baseline: float, diverged: int = 0, **more):
    """Return the outcomes of a cell whose first seeds diverged."""
    return lambda seed: {"gain": -math.inf if seed < diverged else gain, "baseline.gain": baseline, "diverged": seed < diverged, **more}


def test_the_map_names_the_cells_in_which_only_skewed_data_fail():
    cells = [
        lose(-0.1, 0.1),
        lose(0.1, 0.2),
        lose(-0.3, -0.1),
        lose(0.1, 0.3, diverged=3),
        lose(0.1, 0.3, diverged=1),
        lose(0.1, -math.inf, diverged=3, **{"baseline diverged": True}),
    ]
    data = make_data([({"lr": index}, cell) for index, cell in enumerate(cells)])
    sentence, table = study_paper.rate_map(data)
    assert [row[-2:] for row in table.rows] == [
        ("only skewed data fail", "void"),
        ("", ""),
        ("both fail", "void"),
        ("only skewed data fail", ""),
        ("only skewed data fail", ""),
        ("both fail", "void"),
    ]
    assert "in 3 of 6 cells. In 1 of these" in sentence
    assert table.rows[0][1:3] == ("-0.100", "+0.100") and table.rows[3][1:3] == ("-∞", "+0.300")
    assert study_paper.rate_map(make_data([({"lr": 0}, cells[0])], stage="rate")) is None


def test_a_condition_is_void_by_its_baseline_whether_or_not_a_run_diverged(monkeypatch):
    """The outcome table, the atlas and the main effects mark the conditions that the gate of the verdicts marks."""
    cells = [
        lose(0.1, 0.05),
        lose(0.1, 0.05, diverged=1),
        lose(0.1, 0.3, diverged=1, start=4.5),
        lose(0.1, -math.inf, **{"baseline diverged": True}),
    ]
    data = make_data([({"lr": index}, cell) for index, cell in enumerate(cells)])
    rows = study_paper.outcome_section({"induced": data}).blocks[0].rows
    assert [row[-1] for row in rows] == ["void", "void", "", "void"] and [row[-2] for row in rows] == ["0", "1", "1", "0"]
    assert rows[2][5] == "4.500"  # the untrained model does not depend on what the run did
    monkeypatch.setattr(study_setup, "methods_section", lambda data: None)
    assert study_paper.main_effects_section(data).text[0].startswith("1 condition of 4 count")
    finding = SimpleNamespace(failure="trouble", first_round=1, excess=0.1, sentence="It happened.", grade="confirmed")
    monkeypatch.setattr(study_paper.study_results, "diagnose_conditions", lambda data: {index: [finding] for index in range(4)})
    data.conditions = [replace(condition, baselines={0: "b"}) for condition in data.conditions]
    assert [row[1].endswith("(void)") for row in study_paper.failure_section({"induced": data}).blocks[0].rows] == [True, True, False, True]


def test_training_breaks_where_it_ends_no_lower_than_the_untrained_model_or_diverges():
    """Only conditions whose IID baseline passes the gate are judged, and none with a model for each cluster or client."""
    cells = [
        lose(0.1, 0.2, start=4.5, loss=4.5),
        lose(0.1, 0.2, start=4.5, loss=4.4),
        lose(0.1, 0.05, start=4.5, loss=4.6),  # void
        lose(0.1, 0.3, diverged=1, start=4.5, loss=4.4),
        lose(0.1, 0.3, start=4.5, loss=4.6),  # clusters
        lose(0.1, 0.3, start=4.5, loss=4.6),  # local training
        lose(0.1, math.nan, start=4.5, loss=4.6),  # no IID baseline
    ]
    data = make_data([({"lr": index}, cell) for index, cell in enumerate(cells)])
    data.experiments = {"c4 0": {"clustering": {"type": "TextClustering"}}, "c5 0": {"algorithm": {"type": "LocalOnly"}}}
    judged = study_sections.judged_conditions({"induced": data})
    assert [each.name for each in judged if each.is_broken] == ["lr 0", "lr 3"] and len(judged) == 3
    assert study_sections.summarize_broken({"induced": data}) == (
        "Training ends no lower than the untrained model, or diverges, in 2 of the 3 shared-model conditions whose IID baseline learns"
        " enough."
    )
    text = study_sections.describe_broken({"induced": data})
    assert "in 2 of the 3 conditions with one shared model whose IID baseline passes the gate: lr 0 (`induced`); lr 3 (`induced`)." in text
    assert "The smallest mean gain among them is +0.000" in text
    assert "in 1 condition without an IID baseline, which nothing ties to heterogeneity: lr 6 (`induced`)." in text
    assert "In 1 of 1 void condition the skewed runs end above the untrained model or diverge while the IID baseline gains 0.050" in text
    data = make_data([({"lr": 0}, cells[1]), ({"lr": 1}, cells[1])])
    data.experiments = {}
    assert "in none of the 2 shared-model conditions" in study_sections.summarize_broken({"induced": data})


def square(outcomes):
    """Return the nine cells of a Latin square."""
    return [({"a": a, "b": b, "c": (a + b) % 3}, lambda seed, a=a, b=b: outcomes(seed, a, b)) for a in range(3) for b in range(3)]


@pytest.mark.parametrize("which", ["diverged", "missing", "none"])
def test_a_main_effect_does_not_leave_out_a_seed(monkeypatch, which):
    """Seed 0 has a loss that is higher by 1; without it the level that lost one of its runs would look better."""
    monkeypatch.setattr(study_setup, "methods_section", lambda data: None)

    def outcomes(seed, a, b):
        is_lost = which != "none" and (seed, a, b) == (0, 2, 0)
        loss = math.nan if is_lost else 4.0 + (seed == 0)
        return {"loss": loss, "baseline.gain": 0.3, "diverged": is_lost and which == "diverged"}

    section = study_paper.main_effects_section(make_data(square(outcomes), metrics=("loss", "baseline.gain")))
    means = {row[0]: row[2].split(" ")[0] for row in section.blocks[0].rows}
    lost = {"a: 2", "b: 0", "c: 2"} if which != "none" else set()
    assert means == {name: "–" if name in lost else "4.333" for name in means} and len(means) == 9


@pytest.mark.parametrize(("void", "is_said"), [(set(), False), ({(0, 2), (1, 0)}, True)])
def test_main_effects_that_are_not_balanced_are_named(monkeypatch, void, is_said):
    monkeypatch.setattr(study_setup, "methods_section", lambda data: None)
    cells = square(lambda seed, a, b: {"loss": 4.0 + b, "baseline.gain": 0.05 if (a, b) in void else 0.3})
    text = " ".join(study_paper.main_effects_section(make_data(cells, metrics=("loss", "baseline.gain"))).text)
    assert ("so that a difference between levels contains effects of other factors" in text) == is_said


@pytest.fixture
def stored(tmp_path):
    """The studies of a made store, and the two conditions of FedAvg at severity 1 and 0.5."""
    make_study(tmp_path / "runs", "recency", hypotheses=HYPOTHESES, effect=0.3)
    studies = study_paper.load_studies([tmp_path / "runs"])
    by_severity = {
        each.levels["partition.severity"]: each for each in studies["recency"].conditions if each.levels["algorithm"] == "FedAvg"
    }
    return studies, by_severity["1"], by_severity["0.5"]


def test_a_study_whose_conditions_are_all_void_is_described_without_the_gate(stored, monkeypatch):
    data = stored[0]["recency"]
    number = len(data.conditions)
    assert study_paper.main_effects_section(data).text[0].startswith(f"All {number} conditions pass the gate")
    monkeypatch.setattr(study_sections, "void_conditions", lambda data: {condition.index for condition in data.conditions})
    section = study_paper.main_effects_section(data)
    assert section.text[0].startswith(f"All {number} conditions are void: no IID baseline gains") and section.blocks[0].rows
    assert "as a description, not as a result" in section.text[0]
    effect = next(verdict.effect for verdict in data.verdicts if verdict.name == "P1 style")
    assert f"P1 style {effect:+.3f} (" in section.text[0]


def test_a_text_can_state_the_mean_of_one_condition(stored):
    studies, condition, _ = stored
    losses = studies["recency"].outcome_by_run("loss")
    for metric, runs in (("loss", condition.runs), ("loss of the IID baseline", condition.baselines)):
        mean = sum(losses[run] for run in runs.values()) / len(runs)
        address = f"recency/{condition.stage}/FedAvg, 1/{metric}"
        assert study_paper.fill_text(f"ends at {{={address}}}.", {}, studies) == f"ends at {mean:.3f}."
        assert study_paper.fill_text(f"{{%{address}}}", {}, studies) == f"{100 * mean:.1f} %"
    for levels in ("FedAvg", "FedAvg, 7"):
        with pytest.raises(SystemExit, match="conditions of recency"):
            study_paper.fill_text(f"{{=recency/{condition.stage}/{levels}/loss}}", {}, studies)
    with pytest.raises(SystemExit, match="is not study/stage/levels/outcome"):
        study_paper.fill_text(f"{{=recency/{condition.stage}/loss}}", {}, studies)


@pytest.mark.parametrize("outcome", ["loss", "last.loss", "loss in round 3"])
def test_a_text_can_state_a_difference_of_two_conditions_paired_in_the_seed(stored, outcome):
    studies, condition, milder = stored
    values = find_outcome(studies["recency"], outcome)
    differences = [values[condition.runs[seed]] - values[milder.runs[seed]] for seed in condition.runs]
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    pair = " - ".join(f"recency/{condition.stage}/FedAvg, {severity}/{outcome}" for severity in ("1", "0.5"))
    expected = f"{sum(differences) / len(differences):+.3f} nats ({interval.low:+.3f} to {interval.high:+.3f})"
    assert study_paper.fill_text(f"{{~{pair}}}", {}, studies) == expected
    assert len(set(differences)) == len(condition.runs) > 1  # so that an unpaired difference has another interval


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_text_can_state_a_difference_in_words(stored, order):
    studies, condition, milder = stored
    losses = studies["recency"].outcome_by_run("loss")
    first, second = ((condition, milder)[place] for place in order)
    differences = [losses[first.runs[seed]] - losses[second.runs[seed]] for seed in first.runs]
    mean, interval = sum(differences) / len(differences), stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    low, high = (-interval.high, -interval.low) if mean < 0 else interval
    pair = " - ".join(f"recency/{each.stage}/FedAvg, {each.levels['partition.severity']}/loss" for each in (first, second))
    side = "below" if mean < 0 else "above"
    assert study_paper.fill_text(f"{{>~{pair}}}", {}, studies) == f"{abs(mean):.3f} nats ({low:.3f} to {high:.3f}) {side}"


@pytest.mark.parametrize(("study", "expected"), [("recency", 5), ("repair", 3), ("recency_text", 100)])
def test_the_limits_name_the_number_of_articles_of_the_held_out_text(study, expected):
    base = load_study(ROOT / "studies" / f"{study}.yaml").base
    topics = {"repair": {"domains": ["business", "sports", "tech"]}}.get(study, {})
    dataset = parse_config({**base, "dataset": {"name": "bbc", **topics}}).dataset
    corpus, tokenizer = load_corpus(dataset), Tokenizer.from_file(str(ROOT / "fedrift" / "models" / "pocket" / "tokenizer.json"))
    count = 0
    for number, topic in enumerate(corpus.domains):
        length = base["training"]["max_seq_length"]
        left, most = base["evaluation"]["blocks_per_domain"] * length, base["evaluation"].get("max_blocks_per_document", math.inf) * length
        for row in order_documents(corpus, TEST, dataset.split_seed, number, topic):
            count, left = count + 1, left - min(len(tokenizer.encode(corpus.text[row]).ids) + 1, most)  # documents end with one token
            if left <= 0:
                break
    assert count == expected


def test_several_levels_give_the_smallest_value_of_each_seed(stored):
    studies, condition, milder = stored
    losses = studies["recency"].outcome_by_run("loss")
    found = study_values.read_values(studies, f"recency/{condition.stage}/FedAvg, 1|0.5/loss")
    assert found == {seed: min(losses[condition.runs[seed]], losses[milder.runs[seed]]) for seed in condition.runs}


def test_a_note_and_a_table_are_printed_once_their_studies_are_finished(stored, monkeypatch):
    studies, condition, _ = stored
    row = f"recency/{condition.stage}/FedAvg, 1/@"
    columns = {"end": "loss", "less itself": f"loss - recency/{condition.stage}/FedAvg, 1/loss", "step": "step"}
    table = {"key": "t", "section": "recency", "first": "run", "caption": "C.", "columns": columns, "rows": {"FedAvg": row}}
    other = {**table, "rows": {"FedAvg": row, "other": "drift/main/FedAvg/@"}}
    monkeypatch.setattr(study_paper, "TABLES", (table, other))
    (shown,) = study_paper.value_tables("recency", studies)
    mean = sum(studies["recency"].outcome_by_run("loss")[run] for run in condition.runs.values()) / len(condition.runs)
    assert shown.columns == ("run", *columns)
    assert shown.rows == (("FedAvg", f"{mean:.3f}", "+0.000 (+0.000 to +0.000)", "–"),)
    texts = ["One {=" + row.replace("@", "loss") + "}.", "Two {=drift/main/FedAvg/loss}."]
    assert study_paper.fill_finished(texts, {}, studies) == (f"One {mean:.3f}.",)


def test_a_verdict_that_depends_on_the_outcome_is_named(stored, monkeypatch):
    studies, _, _ = stored
    data, verdicts = studies["recency"], study_paper.read_verdicts(studies)
    section = study_paper.sensitivity_section(studies, verdicts)
    assert section.text[-2] == "2 of 2 verdicts are the same by all three." and [row[-1] for row in section.blocks[0].rows] == ["", ""]
    others = [replace(verdict, verdict="refuted") if verdict.name == "P1 style" else verdict for verdict in data.verdicts]
    monkeypatch.setattr(study_paper.study_outcomes, "verdicts_at_end", lambda data, end: others)
    text = study_paper.sensitivity_section(studies, verdicts).text[-2]
    assert "1 of 2 verdicts are the same" in text
    assert "P1 style (`recency`) is supported by the registered outcome and refuted by the last and the final evaluation." in text


def test_every_conclusion_uses_registered_hypotheses_that_it_needs():
    registered = study_paper.registered_hypotheses()
    for question in (*study_paper.QUESTIONS, *study_paper.ANSWERS):
        assert set(question.hypotheses) <= registered
        assert bool(question.sections) == all(lead.short for lead in question.leads) or not question.leads
        for lead in question.leads:
            text = f"{lead.text} {lead.short}"
            named, stages = study_paper.list_placeholders(text)
            assert {study for study, _ in stages} <= {study for study, _ in lead.needs}
            needed = {(study, name.removesuffix(" (last)").removesuffix(" (final)")) for study, name in lead.needs}
            assert named <= needed <= registered and needed & set(question.hypotheses)
    judged = {key for question in study_paper.QUESTIONS for key in question.hypotheses}
    assert registered == judged


def test_the_readme_gets_the_findings_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- findings -->\nold\n<!-- end of findings -->\nafter\n")
    make_study(tmp_path / "runs", "recency", hypotheses=HYPOTHESES)
    study_paper.main(["--runs-dir", str(tmp_path / "runs"), "--output", str(tmp_path / "paper"), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "Of 2 finished hypotheses" in text and "Not finished: `recency_text`" in text


def test_a_folder_without_studies_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="holds none of the studies"):
        study_paper.main(["--runs-dir", str(tmp_path)])


def test_a_legend_is_valid_svg_whose_entries_do_not_overlap():
    keys = [
        LegendKey("FedAvg & co", "#0072B2"),
        LegendKey("IID baseline", "", "dash"),
        *(LegendKey(f"level {i}" * 3, "red", "dot") for i in range(9)),
    ]
    root = ElementTree.fromstring(study_markdown.draw_legend(keys))
    texts = [element for element in root if element.tag.endswith("text")]
    assert [element.text for element in texts] == [key.label for key in keys]
    places = [(int(element.get("y")), int(element.get("x"))) for element in texts]
    assert places == sorted(places)  # from left to right, line by line
    assert max(x for _, x in places) < study_markdown.LEGEND_WIDTH and max(y for y, _ in places) <= int(root.get("height"))
    for (y, x), (next_y, next_x), key in zip(places, places[1:], keys, strict=False):
        assert next_y > y or next_x - x >= 7 * len(key.label)


def test_the_cohort_of_a_stored_experiment_is_that_of_the_run():
    for training in ({"num_clients_per_round": 2}, {"participation_rate": 0.51}, {"participation_rate": 0.2}, {}):
        config = parse_config({"dataset": "bbc", "partition": {"type": "TopicMix", "num_clients": 5}, "training": training})
        assert study_setup.cohort_size(config.to_stored_dict()) == config.training.cohort_size(5)


def test_a_run_of_two_stages_keeps_the_outcome_that_one_of_them_has():
    frame = pd.DataFrame({"run": ["a", "a", "b", "b"], "gap": [0.1, math.nan, math.nan, 0.2], "diverged": False})
    assert StudyData.outcome_by_run(SimpleNamespace(frame=frame), "gap") == {"a": 0.1, "b": 0.2}


def test_a_conclusion_needs_that_its_means_rise(tmp_path):
    make_study(tmp_path / "runs", "recency", hypotheses=HYPOTHESES, effect=0.3)
    studies = study_paper.load_studies([tmp_path / "runs"])
    stage = studies["recency"].conditions[0].stage
    low, high = (f"recency/{stage}/FedAvg, {severity}/loss" for severity in ("0.5", "1"))
    for group, holds in (([low, high], True), ([high, low], False), ([low, low], False)):
        assert study_paper.lead_holds(study_paper.Lead({}, "", (group,)), {}, studies) == holds


def test_the_abstract_prints_the_short_form_of_a_conclusion_and_the_section_the_whole(tmp_path, monkeypatch):
    make_study(tmp_path / "runs", "recency", hypotheses=HYPOTHESES, effect=0.3)
    studies = study_paper.load_studies([tmp_path / "runs"])
    lead = study_paper.Lead({}, "The whole conclusion.", (), "The short one.")
    question = study_paper.Question("recency", "Title", (), (lead,), "None holds.")
    question = replace(question, title="Why?", sections=("recency",))
    monkeypatch.setattr(study_paper, "ANSWERS", (question, replace(question, leads=(replace(lead, short=""),))))
    abstract = study_paper.write_abstract(studies, {})
    assert "The short one. The whole conclusion." in abstract  # without a short form, the whole
    section = study_paper.answers_section(studies, {})
    assert section.text[0] == "Why? The whole conclusion. Sections: Recency: few clients in a round."


def test_every_verdict_on_a_second_version_has_a_sentence():
    """The sentences were written before the second versions ran, for each verdict that they may have."""
    for question in study_paper.QUESTIONS:
        for key, sentences in question.sentences.items():
            assert key in question.hypotheses
            assert {"any"} == set(sentences) or {"supported", "refuted", "inconclusive", "void"} == set(sentences)
            for text in sentences.values():
                assert study_paper.list_placeholders(text)[0] <= {key}
        later = (
            "drift_wide",
            "real_styles_long",
            "grid",
            "grid_titles",
            "recency_text",
            "recency_controls",
            "recency_average",
            "recency_separation",
            "recency_remedies",
            "repair_controls",
        )
        seconds = {key for key in question.hypotheses if key[0] in later}
        assert seconds == set(question.sentences)


def test_an_empty_verdict_is_needed_while_a_hypothesis_has_none(stored):
    studies, _, _ = stored
    verdicts = study_paper.read_verdicts(studies)
    key, lead = ("recency", "P1 style"), study_paper.Lead({("recency", "P1 style"): ""}, "")
    assert key in verdicts and not study_paper.lead_holds(lead, verdicts, studies)
    assert study_paper.lead_holds(lead, {}, studies)


def test_a_level_whose_name_has_a_comma_is_found_by_its_whole_name():
    conditions = [
        SimpleNamespace(stage="main", levels={"arm": name}, runs={0: name}, baselines={}) for name in ("style, SWA", "style", "SWA")
    ]
    frame = pd.DataFrame({"run": ["style, SWA", "style", "SWA"], "loss": [1.0, 2.0, 3.0]})
    data = SimpleNamespace(
        conditions=conditions, frame=frame, outcome_by_run=lambda name: dict(zip(frame["run"], frame[name], strict=True))
    )
    for name, loss in zip(frame["run"], frame["loss"], strict=True):
        assert study_values.read_values({"study": data}, f"study/main/{name}/loss") == {0: loss}


def test_a_sentence_follows_the_verdict_and_versions_that_disagree_are_named(stored):
    studies, _, _ = stored
    verdicts = study_paper.read_verdicts(studies)
    first, second = ("recency", "P1 style"), ("recency", "P1 sandbox")
    sentences = {first: {"supported": "It is.", "refuted": "It is not."}, second: {"any": "Whatever: {recency/P1 sandbox}."}}
    lead = study_paper.Lead({first: "supported"}, "The conclusion.", (), "Short.")
    question = study_paper.Question("recency", "T", (first, second), (lead,), "", (), sentences, {first: second})
    said = study_paper.state_each(question, verdicts, studies)
    assert said.startswith("It is. Whatever: +0.") and not study_paper.describe_disagreement(question, verdicts)
    assert study_paper.choose_lead(question, verdicts, studies, is_short=True) == "Short."
    verdicts = {**verdicts, second: replace(verdicts[second], verdict="void")}
    assert study_paper.state_each(question, verdicts, studies) == "It is."  # "any" is no sentence for a void hypothesis
    verdicts = {**verdicts, second: replace(verdicts[second], verdict="refuted")}
    disagreement = study_paper.describe_disagreement(question, verdicts)
    assert "P1 style (supported in `recency`" in disagreement and "refuted in `recency`" in disagreement
    assert study_paper.choose_lead(question, verdicts, studies, is_short=True) == disagreement


def test_a_conclusion_can_need_the_verdict_of_another_end_of_the_run(stored, monkeypatch):
    studies, _, _ = stored
    verdicts = study_paper.read_verdicts(studies)
    others = [replace(verdict, verdict="inconclusive") for verdict in studies["recency"].verdicts]
    monkeypatch.setattr(study_paper.study_outcomes, "verdicts_at_end", lambda data, end: others if end == "last" else data.verdicts)
    for name, holds in (("P1 style (last)", False), ("P1 style (final)", True), ("P1 style", True), ("P9 (last)", False)):
        assert study_paper.lead_holds(study_paper.Lead({("recency", name): "supported"}, ""), verdicts, studies) == holds


def test_the_table_of_hypotheses_has_the_margins_and_the_formula_of_a_sum():
    keys = [("recency", "P1 style"), ("recency", "P3 half style"), ("recency", "P1 trend style")]
    names = ("hypothesis", "metric", "effect", "Holm p", "seeds")
    table = study_paper.Table("t", "", names, tuple((key[1], "gap", "+0.1", "0.01", "8") for key in keys), frozenset({2, 3, 4}))
    hypotheses = [study_paper.find_hypothesis(key) for key in keys]
    table = study_paper.add_margins(table, hypotheses, [0.5, 0.25, math.nan])
    assert table.columns == ("hypothesis", "metric", "margin", "effect", "Holm p", "Holm p, all", "seeds")
    assert table.numeric_columns == {2, 3, 4, 5, 6} and [row[5] for row in table.rows] == ["0.50", "0.25", "–"]
    assert [study_paper.find_margins(each) for each in hypotheses] == [[0.03], [0], []]
    others = [("recency", "P3 FedProx style"), ("recency", "P4 style"), ("repair", "P10 topic"), ("recency", "R1 style")]
    found = [study_paper.find_margins(study_paper.find_hypothesis(key)) for key in others]
    assert found == [[0.01], [-0.02, 0.02], [-0.01, 0.01], [-0.01]]
    assert [row[2] for row in table.rows] == ["0.03", "0", "–"]
    assert table.rows[1][1] == "gap: +1 (method damped) -0.5 (stage participation, method FedAvg)" and table.rows[0][1] == "gap"


def test_hypotheses_with_the_same_values_are_one_contrast_and_trials_are_not_runs(stored):
    studies, _, _ = stored
    verdicts = study_paper.read_verdicts(studies)
    assert study_paper.count_verdicts(verdicts).startswith("Of 2 finished hypotheses on 1 distinct contrast, 2 are supported")
    runs = {entry.run for entry in studies["recency"].manifest_values["runs"]}
    assert study_paper.count_runs(studies) == (len(runs), 0)
    trial = replace(studies["recency"].manifest_values["runs"][0], run="trial", role="trial")
    data = replace(studies["recency"], manifest_values={"runs": [*studies["recency"].manifest_values["runs"], trial]})
    assert study_paper.count_runs({"recency": replace(data, finished={**data.finished, "trial": {}})}) == (len(runs), 1)


def test_a_correction_over_all_hypotheses_starts_at_the_smallest_p_that_the_seeds_allow(stored):
    verdicts = study_paper.read_verdicts(stored[0])
    assert study_paper.correct_all(verdicts) == pytest.approx(dict.fromkeys(verdicts, 2 * 2 / 2**6))
    assert "0 of 2 supported hypotheses would keep" in study_paper.describe_correction(verdicts)


def test_the_atlas_has_one_row_for_each_condition():
    rows = [
        ("a", "c", "loss gap", "3", "+0.1", "It."),
        ("a", "c", "divergence", "–", "+1", "It."),
        ("b", "c", "loss gap", "4", "+0.1", "It."),
    ]
    table = study_sections.failure_matrix(rows)
    assert table.columns == ("study", "condition", "loss gap", "divergence")
    assert table.rows == (("a", "c", "3", "yes"), ("b", "c", "4", ""))


def test_the_atlas_states_the_thresholds_of_the_failures_that_it_confirms():
    limits = load_thresholds()
    rules = study_sections.describe_rules(["loss gap", "domain oscillation"])
    assert f"more than {limits['gap']['all']:g} nats above that of the IID baseline" in rules and "domain gap" not in rules
    assert f"{limits['oscillation']['domain_floor']:g} nats and {limits['oscillation']['ratio']:g} times" in rules
    assert "other: see `docs/detectors.md`" in study_sections.describe_rules(["other"])
    assert not study_sections.describe_rules([])


def test_effects_of_one_unit_share_a_panel_and_its_rows_are_in_the_order_of_the_question(stored):
    verdicts = study_paper.read_verdicts(stored[0])
    question = study_paper.Question("recency", "T", tuple(verdicts), (), "")
    judged = [(study_paper.find_hypothesis(key), verdict) for key, verdict in verdicts.items()]
    sums = replace(judged[0][1], name="other", metric="oscillation")
    (figure,) = study_paper.forest_figures(question, [*judged, (judged[0][0], sums)])
    assert len(figure.panels) == 2 and [key.label for key in figure.legend] == ["supported"]
    assert [panel.spec["height"] for panel in figure.panels] == [48, 24]
    orders = [layer["encoding"]["y"]["sort"] for layer in figure.panels[0].spec["layer"] if "y" in layer["encoding"]]
    assert orders and all(order == ["P1 style", "P1 sandbox"] for order in orders)


def test_a_stage_is_split_by_the_levels_of_a_factor(stored):
    data = stored[0]["recency"]
    parts = dict(study_sections.split_stage(data, data.stages[0].name, "algorithm"))
    assert list(parts) == ["FedAvg", "Scaffold"]
    for level, part in parts.items():
        assert {condition.levels["algorithm"] for condition in part.conditions} == {level} and len(part.conditions) == 2
    assert study_sections.split_stage(data, data.stages[0].name, "regime") == []
    assert study_sections.name_stage("Stage main. Loss.") == "FedAvg. Loss." and study_sections.name_stage("Loss.") == "Loss."


def test_equal_progress_is_where_the_baselines_have_the_same_loss(monkeypatch):
    """The damped baseline ends at 4.5, which FedAvg's has halfway between rounds 1 and 2; there FedAvg's skewed loss is 5.25 + seed."""
    losses = {"damped": [6.0, 5.5, 5.0], "damped iid": [6.0, 5.0, 4.5], "FedAvg": [6.0, 5.0, 5.5], "FedAvg iid": [6.0, 5.0, 4.0]}
    stages = {"damped": "remedies", "FedAvg": "participation"}
    conditions, runs = [], {}
    for regime in ("style", "sandbox"):
        for method, stage in stages.items():
            levels = {"regime": regime, "method": method, "clients": "1"}
            ids = [{seed: f"{regime} {name} {seed}" for seed in range(3)} for name in (method, f"{method} iid")]
            conditions.append(Condition(len(conditions), stage, method, levels, levels, *ids))
            for seed in range(3):
                for name in (method, f"{method} iid"):
                    shift = 0.1 * seed if name == "FedAvg" else 0.0
                    records = [Record(number, "loss", "", -1, value + shift) for number, value in enumerate(losses[name])]
                    runs[f"{regime} {name} {seed}"] = Trajectory(records)
    monkeypatch.setattr(study_paper.study_outcomes, "trajectories", lambda data: runs)
    text = study_paper.matched_progress({"recency": SimpleNamespace(conditions=conditions)})
    assert "0.350 nats (0.102 to 0.598) below FedAvg under styles (round 1.5 of 2, 3 seeds)" in text
