"""Write the paper of the study: ``docs/study/paper.md`` with its figures, ``paper.pdf`` and the findings of the README.

``python -m scripts.study_paper --runs-dir RUNS`` reads the registered studies that are stored under RUNS (`make study-report` imports
them from ``studies/results``). Every number comes from the stored runs. Every sentence that interprets a number is chosen by the verdicts
of the hypotheses that it rests on, so that other results give other sentences. ``study_paper.yaml`` holds the questions, the sentences,
the related work and the limits. What was not run is listed as not run.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from fedrift import __version__
from fedrift.report import charts, study_outcomes, study_results, study_setup
from fedrift.report.document import Document, Figure, LegendKey, MissingSection, Panel, Section, Table
from fedrift.report.format import DASH, format_interval, format_p_value, format_signed, pluralize
from fedrift.report.study_data import StudyData, load_study_data
from fedrift.report.study_report import render_pdf
from fedrift.stats import HypothesisVerdict
from fedrift.stats.hypotheses import Equivalent, Hypothesis, Less, MatchedDifference
from fedrift.stats.selection import format_selection
from fedrift.stats.significance import format_p, holm
from fedrift.storage.files import write_atomically
from fedrift.studies import StudyManifest, load_study
from scripts.study_markdown import draw_legends, to_markdown
from scripts.study_sections import (
    describe_evaluation,
    describe_windows,
    failure_section,
    main_effects_section,
    outcome_section,
    question_figures,
    rate_map,
    summarize_broken,
    tuning_section,
)
from scripts.study_values import Difference, is_in_nats, matched_progress, mean_of_condition, read_difference, value_cell

ROOT = Path(__file__).resolve().parents[1]


STUDIES = (
    *(
        "recency",
        "recency_text",
        "recency_controls",
        "recency_average",
        "recency_separation",
        "recency_remedies",
        "drift",
        "drift_wide",
        "dose",
        "repair",
        "repair_controls",
        "real_styles",
    ),
    *("real_styles_long", "grid", "grid_titles", "induced", "recency_smollm2"),
)


# The studies that were registered after results of `recency` were known, on new questions and not as second versions.
LATER = (
    *("recency_text", "recency_controls", "recency_average", "recency_separation", "recency_remedies", "repair_controls", "induced"),
    "recency_smollm2",
)


# The array over clients, participation, epochs, regimes and algorithms, in two versions.
GRIDS = {"grid": "The grid: main effects", "grid_titles": "The grid on titles of questions: main effects"}


TITLE = "When federated fine-tuning of language models breaks under heterogeneity, and what repairs it"


ENDS: dict[str, study_outcomes.End] = {" (last)": "last", " (final)": "final"}


README_MARKERS = ("<!-- findings -->", "<!-- end of findings -->")


Key = tuple[str, str]  # study, hypothesis


@dataclass(frozen=True)
class Lead:
    """State a conclusion that holds only for certain verdicts.

    Attributes:
        needs: The verdicts that the conclusion rests on: for each hypothesis, the verdict that it must have. A name that ends in
            `` (last)`` or `` (final)`` is the hypothesis by the last or by the final evaluation (`sensitivity_section`).
        rising: Groups of means, as ``study/stage/level, level/metric``; the conclusion needs that each group rises from left to right.
        text: The conclusion. ``{study/hypothesis}`` stands for the effect of that hypothesis with its interval.
        short: The same in fewer words, for the abstract and the README. Only the leads of answers have it.
    """

    needs: Mapping[Key, str]
    text: str
    rising: Sequence[Sequence[str]] = ()
    short: str = ""


@dataclass(frozen=True)
class Question:
    """Group the hypotheses that answer one question.

    Attributes:
        key: Key of the section.
        title: Title of the section.
        hypotheses: The hypotheses, in the order of the text.
        leads: Conclusions, the strongest first; the first one whose verdicts hold is printed.
        otherwise: The sentence if none of the leads holds and all hypotheses have been run.
        notes: Paragraphs on exploratory numbers; each is printed once the studies that it names are finished.
        sentences: For a hypothesis, the sentence that its verdict asks for; ``any`` stands for the verdicts that are not named, but not
            for void.
        versions: The hypothesis of a second version of a study, for that of the first.
        sections: Of an answer, the keys of the questions that it draws on. Its hypotheses and versions are theirs.
    """

    key: str
    title: str
    hypotheses: tuple[Key, ...]
    leads: tuple[Lead, ...]
    otherwise: str
    notes: tuple[str, ...] = ()
    sentences: Mapping[Key, Mapping[str, str]] = field(default_factory=dict)
    versions: Mapping[Key, Key] = field(default_factory=dict)
    sections: tuple[str, ...] = ()


def parse_key(text: str) -> Key:
    """Split ``study/hypothesis``."""
    study, _, name = text.partition("/")
    return study, name


def read_questions(entries: Sequence[Mapping[str, Any]]) -> tuple[Question, ...]:
    """Return the questions of ``study_paper.yaml``."""
    return tuple(
        Question(
            entry["key"],
            entry["title"],
            tuple(parse_key(key) for key in entry.get("hypotheses", ())),
            tuple(
                Lead(
                    {parse_key(key): verdict for key, verdict in conclusion["needs"].items()},
                    conclusion["text"],
                    conclusion.get("rising", ()),
                    conclusion.get("short", ""),
                )
                for conclusion in entry["conclusions"]
            ),
            entry["otherwise"],
            tuple(entry.get("notes", ())),
            {parse_key(key): texts for key, texts in entry.get("sentences", {}).items()},
            {parse_key(first): parse_key(second) for first, second in entry.get("versions", {}).items()},
            tuple(entry.get("sections", ())),
        )
        for entry in entries
    )


CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


QUESTIONS = read_questions(CONTENT["questions"])


# The four questions of the plan. An answer has the hypotheses and the second versions of the sections that it draws on.
ANSWERS = tuple(
    replace(
        answer,
        hypotheses=tuple(key for question in QUESTIONS if question.key in answer.sections for key in question.hypotheses),
        versions={
            first: second for question in QUESTIONS if question.key in answer.sections for first, second in question.versions.items()
        },
    )
    for answer in read_questions(CONTENT["answers"])
)


RELATED_WORK = tuple(CONTENT["related_work"])


LIMITS = tuple(CONTENT["limits"])


TABLES = tuple(CONTENT["tables"])


METHODS = tuple(CONTENT["methods"])


def load_studies(runs_dirs: Sequence[Path], on_progress: Callable[[str], None] = lambda message: None) -> dict[str, StudyData]:
    """Load the registered studies by name, each from the first folder that has it."""
    studies = {}
    for name in STUDIES:
        manifest = next((each for each in (StudyManifest(folder, name) for folder in runs_dirs) if each.exists), None)
        if manifest:
            on_progress(f"reading {name}")
            studies[name] = load_study_data(manifest)
    return studies


def read_verdicts(studies: Mapping[str, StudyData]) -> dict[Key, HypothesisVerdict]:
    """Return the verdicts by study and hypothesis. A hypothesis of which runs are missing has none yet."""
    return {
        (name, verdict.name): verdict
        for name, data in studies.items()
        for verdict in data.verdicts
        if (verdict.seeds or verdict.verdict == "void")
        and (is_complete(data) or verdict.seeds + verdict.both_diverged >= len(registered_seeds(data)))
    }


def registered_seeds(study_data: StudyData) -> Sequence[int]:
    """Return the seeds of a study."""
    seeds = study_data.study_config["seeds"]
    return range(seeds) if isinstance(seeds, int) else seeds


def registered_hypotheses() -> set[Key]:
    """Return the names of all registered hypotheses, from the study files."""
    return {(name, hypothesis.name) for name in STUDIES for hypothesis in load_study(ROOT / "studies" / f"{name}.yaml").hypotheses}


def effect_of(verdict: HypothesisVerdict) -> Difference:
    """Return the effect of a hypothesis with its interval."""
    is_loss = verdict.unit == "difference" and is_in_nats(verdict.metric)
    return Difference(verdict.effect, verdict.low, verdict.high, verdict.confidence_level, is_loss)


def format_effect(verdict: HypothesisVerdict) -> str:
    """Format an effect with its interval: ``+0.213 nats (+0.180 to +0.246)``, with the level of the interval if it is not 95 %."""
    return effect_of(verdict).format()


def describe_unjudged(question: Question, verdicts: Mapping[Key, HypothesisVerdict]) -> tuple[str, ...]:
    """Name the hypotheses of a question that have no verdict, or a void one; an empty tuple if there are none."""
    count = Counter(name for _, name in question.hypotheses)

    def label(key: Key) -> str:
        return f"{key[1]} (`{key[0]}`)" if count[key[1]] > 1 else key[1]

    missing = [label(key) for key in question.hypotheses if key not in verdicts]
    void = [label(key) for key in question.hypotheses if key in verdicts and verdicts[key].verdict == "void"]
    return (
        *((f"Without a verdict, because runs are missing: {', '.join(missing)}.",) if missing else ()),
        *((f"Void, because an IID baseline gained less than the gate requires: {', '.join(void)}.",) if void else ()),
    )


def lead_holds(lead: Lead, verdicts: Mapping[Key, HypothesisVerdict], studies: Mapping[str, StudyData]) -> bool:
    """Return whether the verdicts and the means are those that a conclusion needs."""
    if any(find_verdict(key, verdicts, studies) != verdict for key, verdict in lead.needs.items()):
        return False
    means = [[mean_of_condition(studies, address) for address in group] for group in lead.rising]
    return all(low < high for group in means for low, high in pairwise(group))


def find_verdict(key: Key, verdicts: Mapping[Key, HypothesisVerdict], studies: Mapping[str, StudyData]) -> str:
    """Return the verdict on a hypothesis, or with `` (last)`` or `` (final)`` that at another end of the run; empty if it has none."""
    study, name = key
    for suffix, end in ENDS.items():
        if name.endswith(suffix) and (study, name.removesuffix(suffix)) in verdicts:
            return next(
                each.verdict for each in study_outcomes.verdicts_at_end(studies[study], end) if each.name == name.removesuffix(suffix)
            )
    return verdicts[key].verdict if key in verdicts else ""


def describe_disagreement(question: Question, verdicts: Mapping[Key, HypothesisVerdict]) -> str:
    """Name the hypotheses on which two versions of a study disagree; empty if there are none.

    The rule was fixed before the second versions ran: both verdicts are reported, and the abstract draws no other conclusion.
    """
    found = [
        f"{first[1]} ({verdicts[first].verdict} in `{first[0]}`, {format_effect(verdicts[first])}; {verdicts[second].verdict} in"
        f" `{second[0]}`, {format_effect(verdicts[second])})"
        for first, second in question.versions.items()
        if first in verdicts and second in verdicts and verdicts[first].verdict != verdicts[second].verdict
    ]
    return f"The two versions of the study disagree, so that these are not established: {'; '.join(found)}." if found else ""


def state_each(question: Question, verdicts: Mapping[Key, HypothesisVerdict], studies: Mapping[str, StudyData]) -> str:
    """Return the sentences that the verdicts of single hypotheses ask for."""
    texts = [
        chosen
        for key, by_verdict in question.sentences.items()
        if key in verdicts
        and (chosen := by_verdict.get(verdicts[key].verdict, "" if verdicts[key].verdict == "void" else by_verdict.get("any", "")))
    ]
    return " ".join(fill_text(text, verdicts, studies) for text in texts)


def choose_lead(
    question: Question, verdicts: Mapping[Key, HypothesisVerdict], studies: Mapping[str, StudyData], is_short: bool = False
) -> str:
    """Return the strongest conclusion that the verdicts allow; a question with missing studies says so.

    Where two versions of a study disagree, the short form is that they do.
    """
    if is_short and (disagreement := describe_disagreement(question, verdicts)):
        return disagreement
    for lead in question.leads:
        if lead_holds(lead, verdicts, studies):
            return fill_text((is_short and lead.short) or lead.text, verdicts, studies)
    missing = sorted({study for study, name in question.hypotheses if (study, name) not in verdicts})
    if missing:
        return f"There is no answer yet, because runs are missing: {', '.join(f'`{name}`' for name in missing)}."
    return question.otherwise


def fill_text(text: str, verdicts: Mapping[Key, HypothesisVerdict], studies: Mapping[str, StudyData]) -> str:
    """Replace the placeholders of a text by numbers.

    ``{study/hypothesis}`` is the effect of a hypothesis. ``{=ADDRESS}`` is the mean of an outcome over the seeds of a condition, and
    ``{%ADDRESS}`` the same in percent. ``{~ADDRESS - ADDRESS}`` is the difference of two conditions, paired in the seed, with its 95 %
    t-interval, and ``{~ADDRESS}`` a mean with its interval; both are exploratory. ``{>study/hypothesis}`` and ``{>~ADDRESS - ADDRESS}``
    state a difference in words: ``0.116 nats (0.100 to 0.133) below``. See `read_values` for an address.
    """

    def replacement(match: re.Match[str]) -> str:
        words = " ".join(match[1].split())
        if words[0] == ">":
            found = read_difference(studies, words[2:]) if words[1] == "~" else effect_of(verdicts[parse_key(words[1:])])
            return found.describe()
        if words[0] == "=":
            return f"{mean_of_condition(studies, words[1:]):.3f}"
        if words[0] == "%":
            return f"{100 * mean_of_condition(studies, words[1:]):.1f} %"
        return read_difference(studies, words[1:]).format() if words[0] == "~" else format_effect(verdicts[parse_key(words)])

    return re.sub(r"\{([^}]+)\}", replacement, text)


def list_placeholders(text: str) -> tuple[set[Key], set[tuple[str, str]]]:
    """Return the hypotheses that the placeholders of a text name, and the stages, as study and stage."""
    hypotheses, stages = set(), set()
    for words in (" ".join(match.split()).removeprefix(">") for match in re.findall(r"\{([^}]+)\}", text)):
        if words[0] in "=%~":
            stages |= {parse_key(address.rpartition("/")[0].rpartition("/")[0]) for address in words[1:].split(" - ")}
        else:
            hypotheses.add(parse_key(words))
    return hypotheses, stages


def finished_stages(studies: Mapping[str, StudyData]) -> set[tuple[str, str]]:
    """Return the stages of the finished studies, as study and stage; ``*`` stands for all stages of a study."""
    finished = [(name, data) for name, data in studies.items() if is_complete(data)]
    return {(name, stage) for name, data in finished for stage in ("*", *(each.name for each in data.stages))}


def result_sections(studies: Mapping[str, StudyData], verdicts: Mapping[Key, HypothesisVerdict]) -> list[Section]:
    """Return one section per question, with its conclusion, its hypotheses and its figures."""
    sections, corrections = [], correct_all(verdicts)
    for question in QUESTIONS:
        keys = question.hypotheses
        judged = [(find_hypothesis(key), replace(verdicts[key], name=label_hypothesis(question, key))) for key in keys if key in verdicts]
        blocks: list[Figure | Table] = []
        if judged:
            corrected = [corrections[key] for key in keys if key in verdicts]
            table = add_margins(
                study_results.verdicts_table(tuple(verdict for _, verdict in judged)), [each for each, _ in judged], corrected
            )
            caption = f"{question.title}: the hypotheses. The methods explain the columns."
            table = replace(table, key=f"{question.key}-verdicts", caption=caption, note="")
            blocks = [*forest_figures(question, judged), table]
        text = (
            choose_lead(question, verdicts, studies),
            *filter(None, (state_each(question, verdicts, studies), describe_disagreement(question, verdicts))),
            *describe_unjudged(question, verdicts),
            *fill_finished(question.notes, verdicts, studies),
        )
        if question.key == "remedy" and ("recency", "remedies") in finished_stages(studies):
            text = (*text, matched_progress(studies))
        if question.key == "induced" and "induced" in studies and (found := rate_map(studies["induced"])):
            text, blocks = (*text, found[0]), [*blocks, found[1]]
        tables = value_tables(question.key, studies)
        text = tuple(filter(None, text))
        sections.append(Section(question.key, question.title, text, (*blocks, *tables, *question_figures(question.key, studies))))
    return sections


def answers_section(studies: Mapping[str, StudyData], verdicts: Mapping[Key, HypothesisVerdict]) -> Section:
    """Answer the four questions of the plan, each in a paragraph that names the sections with the evidence."""
    titles = {question.key: question.title for question in QUESTIONS}
    text = []
    for answer in ANSWERS:
        parts = (choose_lead(answer, verdicts, studies), describe_disagreement(answer, verdicts))
        text.append(f"{answer.title} {' '.join(filter(None, parts))} Sections: {'; '.join(titles[key] for key in answer.sections)}.")
    return Section("answers", "The four questions", (*text, count_verdicts(verdicts)))


def find_hypothesis(key: Key) -> Hypothesis:
    """Return a registered hypothesis from the file of its study."""
    return next(each for each in load_study(ROOT / "studies" / f"{key[0]}.yaml").hypotheses if each.name == key[1])


def label_hypothesis(question: Question, key: Key) -> str:
    """Return the name of a hypothesis, with its study where the question has another one of that name."""
    is_repeated = sum(name == key[1] for _, name in question.hypotheses) > 1
    return f"{key[1]} ({key[0]})" if is_repeated else key[1]


def correct_all(verdicts: Mapping[Key, HypothesisVerdict]) -> dict[Key, float]:
    """Return the p-value of every hypothesis after Holm's correction over all hypotheses of the paper."""
    bounded = [max(verdict.p, verdict.min_attainable_p) if math.isfinite(verdict.p) else math.nan for verdict in verdicts.values()]
    return dict(zip(verdicts, map(float, holm(bounded)), strict=True))


def find_margins(hypothesis: Hypothesis) -> list[float]:
    """Return the values to which the effect of a hypothesis is compared: one, or two for an equivalence; none for a trend."""
    margin = getattr(hypothesis, "margin", None)
    if margin is None:
        return []
    direction = getattr(hypothesis, "direction", "")
    if isinstance(hypothesis, Equivalent | MatchedDifference) or direction == "equivalent":
        return [-margin, margin]
    return [-margin if isinstance(hypothesis, Less) or direction == "less" else margin]


def forest_figures(question: Question, judged: Sequence[tuple[Hypothesis, HypothesisVerdict]]) -> list[Figure]:
    """Draw the effects of the hypotheses of a question on one scale, with one panel for each unit."""
    panels: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for hypothesis, verdict in judged:
        if not math.isfinite(verdict.effect):
            continue
        is_plain = verdict.unit == "difference" and is_in_nats(verdict.metric)
        unit = "nats per token" if is_plain else f"{verdict.metric}, {study_results.EFFECT_UNITS.get(verdict.unit, verdict.unit)}"
        rows, points, margins = panels.setdefault(unit, ([], [], []))
        common = {"condition": -1, "name": verdict.name, "color": study_results.VERDICT_COLORS[verdict.verdict]}
        low, high = (bound if math.isfinite(bound) else verdict.effect for bound in (verdict.low, verdict.high))
        rows.append({**common, "value": round(verdict.effect, 4), "low": round(low, 4), "high": round(high, 4)})
        points += [{**common, "seed": seed, "value": round(value, 4)} for seed, value in verdict.points if math.isfinite(value)]
        margins += [{"condition": -1, "name": verdict.name, "value": margin} for margin in find_margins(hypothesis)]
    if not panels:
        return []
    shown = dict.fromkeys(verdict.verdict for _, verdict in judged)
    figure = Figure(
        f"{question.key}-forest",
        f"{question.title}. Effect of every hypothesis on one scale: the diamond is the estimate with its interval, rings are seeds, black"
        " strokes are margins, and the gray rule marks no effect. The color is the verdict.",
        tuple(Panel("", charts.forests_chart(*parts, unit=unit)) for unit, parts in panels.items()),
        tuple(LegendKey(verdict, study_results.VERDICT_COLORS[verdict], "dot") for verdict in shown),
        columns=1,
    )
    return [figure]


def add_margins(table: Table, hypotheses: Sequence[Hypothesis], corrected: Sequence[float]) -> Table:
    """Add margins and the p-values after a correction over all hypotheses to the table of verdicts, and write sums as formulas."""
    place, after = table.columns.index("effect"), table.columns.index("Holm p") + 1
    rows = []
    for row, hypothesis, p in zip(table.rows, hypotheses, corrected, strict=True):
        terms = [f"{term.weight:+g} ({format_selection(term.select)})" for term in getattr(hypothesis, "terms", ())]
        margin = getattr(hypothesis, "margin", None)
        metric = f"{hypothesis.metric}: {' '.join(terms)}" if terms else row[place - 1]
        margin_cell = DASH if margin is None else f"{margin:g}"
        rows.append((*row[: place - 1], metric, margin_cell, *row[place:after], format_p_value(p, 0.0), *row[after:]))
    columns = (*table.columns[:place], "margin", *table.columns[place:after], "Holm p, all", *table.columns[after:])
    numbers = frozenset(range(place, len(columns)))
    return replace(table, columns=columns, rows=tuple(rows), numeric_columns=numbers)


def fill_finished(texts: Sequence[str], verdicts: Mapping[Key, HypothesisVerdict], studies: Mapping[str, StudyData]) -> tuple[str, ...]:
    """Return those texts, with their numbers, all of whose studies are finished."""
    finished, shown = finished_stages(studies), []
    for text in texts:
        hypotheses, stages = list_placeholders(text)
        if stages <= finished and hypotheses <= set(verdicts):
            shown.append(fill_text(text, verdicts, studies))
    return tuple(shown)


def value_tables(section: str, studies: Mapping[str, StudyData]) -> list[Table]:
    """Return the tables of ``study_paper.yaml`` that belong to a section and whose studies are finished.

    A row is an address with ``@`` in place of the outcome. A column is an outcome, or ``outcome - address``: the difference to another
    condition, paired in the seed, with its 95 % t-interval. A dash: no run of the condition has the outcome.
    """
    finished = finished_stages(studies)
    tables = []
    for entry in TABLES:
        if entry["section"] != section or not {parse_key(address.rsplit("/", 2)[0]) for address in entry["rows"].values()} <= finished:
            continue
        rows = tuple(
            (label, *(value_cell(studies, row, column) for column in entry["columns"].values())) for label, row in entry["rows"].items()
        )
        tables.append(
            Table(entry["key"], entry["caption"], (entry["first"], *entry["columns"]), rows, frozenset(range(1, 1 + len(entry["columns"]))))
        )
    return tables


def sensitivity_section(studies: Mapping[str, StudyData], verdicts: Mapping[Key, HypothesisVerdict]) -> Section:
    """Tabulate the verdict on every hypothesis on a loss by the registered outcome, the last evaluation and the final evaluation."""
    rows, changed = [], []
    for name, data in studies.items():
        others = [{verdict.name: verdict for verdict in study_outcomes.verdicts_at_end(data, end)} for end in ("last", "final")]
        for registered in data.verdicts:
            if (name, registered.name) not in verdicts or registered.metric not in study_outcomes.LOSSES:
                continue
            found = [registered, *(other[registered.name] for other in others)]
            known = [verdict for verdict in found if math.isfinite(verdict.effect)]
            differs = len({verdict.verdict for verdict in known}) > 1
            rows.append((name, registered.name, registered.metric, *map(format_judged, found), "yes" if differs else ""))
            if differs:
                ends = [
                    f"{verdict} by the {' and the '.join(labels)} evaluation"
                    for verdict in ("supported", "refuted", "inconclusive")
                    if (labels := [label for label, each in zip(("last", "final"), found[1:], strict=True) if each.verdict == verdict])
                    and verdict != registered.verdict
                ]
                changed.append(f"{registered.name} (`{name}`) is {registered.verdict} by the registered outcome and {' and '.join(ends)}")
    text = (
        "A registered outcome is the mean over the last five evaluations, which cover a different share of a run in each study:"
        f" {'; '.join(f'`{name}` {describe_windows(data)}' for name, data in studies.items())}.",
        "The table repeats every hypothesis on a loss with the same test, margin, family and gate on two other outcomes: the last"
        " evaluation alone, and the final evaluation after the last round, which is on more text. It is exploratory: only the"
        " registered outcome decides, and the other two show what a verdict depends on. They have more noise than a mean of five"
        " evaluations, so that a verdict may be lost although the effect remains.",
        f"{len(rows) - len(changed)} of {len(rows)} verdicts are the same by all three."
        + (f" The others: {'; '.join(changed)}." if changed else ""),
        describe_correction(verdicts),
    )
    table = Table(
        "sensitivity",
        "Sensitivity of the verdicts to the outcome: effect with its interval (90 % for equivalence tests, otherwise 95 %) and verdict.",
        ("study", "hypothesis", "outcome", "registered", "last evaluation", "final evaluation", "differs"),
        tuple(rows),
        is_long=True,
    )
    return Section("sensitivity", "Sensitivity of the verdicts to the outcome", text, (table,) if rows else ())


def describe_correction(verdicts: Mapping[Key, HypothesisVerdict]) -> str:
    """Say how many supported hypotheses a correction over all hypotheses leaves, and what the seeds allow."""
    corrected = correct_all(verdicts)
    supported = [key for key, verdict in verdicts.items() if verdict.verdict == "supported"]
    left = [f"{name} (`{study}`)" for study, name in supported if corrected[study, name] <= 0.05]
    least = min((verdict.min_attainable_p for verdict in verdicts.values() if verdict.test == "exact sign-flip"), default=math.nan)
    return (
        f"With Holm's correction over all {pluralize(len(verdicts), 'hypothesis', 'hypotheses')} at once, which was not registered,"
        f" {len(left)} of {len(supported)} supported hypotheses would keep a p-value of at most 0.05"
        + (f": {', '.join(left)}. " if left else ". ")
        + f"An exact sign-flip test cannot give a p-value below {format_p(least)} with these seeds, so that no hypothesis that it judges"
        " can pass a correction over that many."
    )


def format_judged(verdict: HypothesisVerdict) -> str:
    """Format an effect with its interval and its verdict."""
    if not math.isfinite(verdict.effect):
        return DASH
    return f"{format_signed(verdict.effect)} ({format_interval(verdict.low, verdict.high, is_signed=True)}), {verdict.verdict}"


def missing_sections(studies: Mapping[str, StudyData]) -> tuple[MissingSection, ...]:
    """Return what was registered and not run, and what was never registered."""
    missing = []
    for name in STUDIES:
        if name not in studies:
            has_part = (ROOT / "studies" / "partial" / f"{name}.zip").is_file()
            reason = (
                "it is not finished: what there is of it is stored in `studies/partial`"
                if has_part
                else "no finished results of it are stored"
            )
            missing.append(MissingSection(f"The study `{name}`", reason))
            continue
        data = studies[name]
        entries = [entry for entry in data.manifest_values["runs"] if entry.role != "trial"]
        finished = sum(entry.run in data.finished for entry in entries)
        if not data.manifest_values.get("complete", True):
            missing.append(MissingSection(f"Most of the study `{name}`", "its tuning is not finished"))
        elif finished < len(entries):
            missing.append(MissingSection(f"A part of the study `{name}`", f"{finished} of {len(entries)} runs are finished"))
    missing += [
        MissingSection("Pretraining as a shield (P7) and the rank of the adapters (P9)", "not registered, for their cost"),
        MissingSection("DistilGPT2, Qwen-0.5B and TinyLlama", "no GPU and no model hub were at hand"),
    ]
    return tuple(missing)


def write_abstract(studies: Mapping[str, StudyData], verdicts: Mapping[Key, HypothesisVerdict]) -> str:
    """Return the abstract: one paragraph, every result in it chosen by a verdict."""
    num_runs, num_trials = count_runs(studies)
    num_later = sum(name in LATER for name in studies)
    later = f" ({num_later} registered after the first)" if num_later else ""
    sentences = [
        "When does federated fine-tuning of a small language model break under heterogeneity, and what repairs it?",
        f"We compare {num_runs:,} runs of"
        f" {pluralize(len(studies), 'preregistered study', 'preregistered studies')}{later}, tuned in {num_trials:,} trials."
        " A gap is the loss of a run minus that of its IID baseline, over the last five evaluations, in nats per"
        " token, with a 95 % interval over seeds.",
        summarize_broken(studies),
    ]
    for answer in ANSWERS:
        if any(lead_holds(lead, verdicts, studies) for lead in answer.leads):
            sentences.append(choose_lead(answer, verdicts, studies, is_short=True).replace(" nats (", " ("))
    return " ".join(sentences)


def count_runs(studies: Mapping[str, StudyData]) -> tuple[int, int]:
    """Return the number of distinct finished runs, IID baselines included, and that of the tuning trials that are no such runs."""
    entries = [(entry.run, entry.role) for data in studies.values() for entry in data.manifest_values["runs"] if entry.run in data.finished]
    runs = {run for run, role in entries if role != "trial"}
    return len(runs), len({run for run, role in entries} - runs)


def build_paper(studies: Mapping[str, StudyData]) -> Document:
    """Build the paper from the stored studies."""
    verdicts = read_verdicts(studies)
    unknown = {key for question in QUESTIONS for key in question.hypotheses} - registered_hypotheses()
    if unknown:
        raise SystemExit(f"no study file has the hypotheses {sorted(unknown)}; correct scripts/study_paper.yaml")
    name, first = next(iter(studies.items()))
    methods = study_setup.methods_section(first)
    methods_text = (
        *METHODS,
        describe_evaluation(studies),
        f"Tables of hypotheses. {study_results.verdicts_table(()).caption.removeprefix('The hypotheses. ')} The margin belongs to the"
        " tested hypothesis; for an equivalence it is the limit on both sides. “Holm p, all” is corrected over all hypotheses of the"
        " paper at once, which was not registered.",
        *(
            (f"The base experiment, and first condition, of the study `{name}`: {methods.text[1]}", methods.text[2])
            if isinstance(methods, Section)
            else ()
        ),
    )
    sections = [
        answers_section(studies, verdicts),
        Section("related", "Related work", RELATED_WORK),
        Section("methods", "Methods", tuple(filter(None, methods_text))),
        *result_sections(studies, verdicts),
    ]
    limits = fill_finished(LIMITS, verdicts, studies)
    sections.append(sensitivity_section(studies, verdicts))
    missing = list(missing_sections(studies))
    for name, title in GRIDS.items():
        if name in studies and isinstance(grid := main_effects_section(studies[name], name, title), Section):
            sections.append(grid)
    atlas, tuned = failure_section(studies), tuning_section(studies)
    details = Section("details", "Appendix: diagnoses and trials", (), (*atlas.blocks[1:], *tuned.blocks[1:]))
    sections += [replace(atlas, blocks=atlas.blocks[:1]), outcome_section(studies), replace(tuned, blocks=tuned.blocks[:1])]
    sections += [Section("limits", "Limits", limits), *([details] if details.blocks else [])]
    runs = sum(len(data.finished) for data in studies.values())
    return Document(
        "fedrift study",
        TITLE,
        f"{runs} finished runs",
        (write_abstract(studies, verdicts),),
        (),
        tuple(sections),
        tuple(missing),
        (),
        (),
        __version__,
        "\n".join(f"studies/{name}.yaml" for name in STUDIES) + "\n",
    )


def readme_findings(studies: Mapping[str, StudyData]) -> str:
    """Return the README's findings: the four answers, with their commands, and the count of verdicts."""
    lines, verdicts = [], read_verdicts(studies)
    for answer in ANSWERS:
        held = [lead for lead in answer.leads if lead_holds(lead, verdicts, studies)]
        if held:
            names = sorted({key[0] for key, verdict in held[0].needs.items() if verdict})
            commands = ", ".join(f"`fedrift study studies/{name}.yaml`" for name in names)
            lines.append(f"- **{answer.title}** {choose_lead(answer, verdicts, studies, is_short=True)} ({commands})")
    incomplete = [f"`{name}`" for name in STUDIES if name not in studies or not is_complete(studies[name])]
    unfinished = f" Not finished: {', '.join(incomplete)}." if incomplete else ""
    lines.append(f"- {count_verdicts(verdicts)}{unfinished}")
    return "\n".join(lines) + "\n"


def count_verdicts(verdicts: Mapping[Key, HypothesisVerdict]) -> str:
    """Return the sentence that counts the verdicts."""
    counts = Counter(verdict.verdict for verdict in verdicts.values())
    # two hypotheses with the same values in each seed are one contrast, although their tests may differ
    contrasts = {(verdict.metric, tuple((seed, round(value, 9)) for seed, value in verdict.points)) for verdict in verdicts.values()}
    return (
        f"Of {pluralize(sum(counts.values()), 'finished hypothesis', 'finished hypotheses')} on"
        f" {pluralize(len(contrasts), 'distinct contrast')}, {counts['supported']} are supported, {counts['refuted']} refuted,"
        f" {counts['inconclusive']} inconclusive and {counts['void']} void, because an IID baseline learned too little."
    )


def is_complete(study_data: StudyData) -> bool:
    """Return whether all runs of a study are finished."""
    content = study_data.manifest_values
    entries = [entry for entry in content["runs"] if entry.role != "trial"]
    return content.get("complete", True) and all(entry.run in study_data.finished for entry in entries)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the paper, and the README's findings where the README has the markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs-dir", type=Path, nargs="+", required=True, help="folders with the stored studies; the first that has one counts"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "study", help="folder of paper.md, paper.pdf and paper/")
    parser.add_argument("--readme", type=Path, help="README whose findings are rewritten")
    options = parser.parse_args(arguments)
    studies = load_studies(options.runs_dir, print)
    if not studies:
        raise SystemExit(
            f"{', '.join(map(str, options.runs_dir))} holds none of the studies {', '.join(STUDIES)}; run `make study` or import their"
            " archives"
        )
    document = build_paper(studies)
    content, drawings = render_pdf(document, print)
    drawings |= draw_legends(document)
    options.output.mkdir(parents=True, exist_ok=True)
    for path in (options.output / "paper").glob("figure-*.svg"):
        if path.name not in drawings:
            path.unlink()
    for name, drawing in drawings.items():
        write_atomically(options.output / "paper" / name, drawing.encode())
    write_atomically(options.output / "paper.pdf", content)
    write_atomically(options.output / "paper.md", to_markdown(document, "paper").encode())
    if options.readme:
        text = options.readme.read_text(encoding="utf-8")
        start, end = README_MARKERS
        before, rest = text.split(start, 1)
        after = rest.split(end, 1)[1]
        write_atomically(options.readme, f"{before}{start}\n{readme_findings(studies)}{end}{after}".encode())


if __name__ == "__main__":
    main()
