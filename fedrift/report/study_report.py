"""The sections of a study's report, one file each; here is their order. One that has nothing to show says what it wants."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..storage.files import write_atomically
from ..studies import StudyManifest
from . import study_costs, study_dynamics, study_results, study_setup
from .document import Document, Figure, Filter, MissingSection, Panel, Section, Table, latex_files
from .format import pluralize, seed_mean_ci, to_yaml
from .page import vega_script
from .study_data import StudyData, assign_level_colors, load_study_data, merge_axes
from .study_figures import condition_name
from .study_results import build_claims

SECTIONS: tuple[Callable[[StudyData], Section | MissingSection], ...] = (
    study_results.verdicts_section,
    study_setup.partitions_section,
    study_dynamics.losses_section,
    study_results.results_section,
    study_results.dose_response_section,
    study_results.stability_section,
    study_dynamics.drift_section,
    study_dynamics.layers_section,
    study_dynamics.forgetting_section,
    study_results.failure_atlas_section,
    study_dynamics.lora_aggregation_section,
    study_results.clustering_section,
    study_setup.cost_section,
    study_costs.cost_protocols_section,
    study_setup.tuning_section,
    study_setup.methods_section,
    study_setup.provenance_section,
)


# From a study's store to the report as data.


def build_document(study_data: StudyData) -> Document:
    """Every section that has something to show; the others say what they want."""
    sections, missing = [], []
    for make in SECTIONS:
        made = make(study_data)
        study_data.on_progress(made.title)
        if isinstance(made, MissingSection):
            missing.append(made)
        else:
            sections.append(made)
    axes = merge_axes(study_data.stages)
    compared = {stage.color_axis.name: stage.colors for stage in study_data.stages if stage.color_axis}
    filters = tuple(Filter(axis.name, axis.levels, (compared.get(axis.name) and assign_level_colors(axis.levels)) or {}) for axis in axes)
    if len(study_data.stages) > 1:
        filters = (Filter("stage", tuple(stage.name for stage in study_data.stages), {}), *filters)
    arms = tuple({"stage": arm.stage, **arm.levels} for arm in study_data.conditions)
    source = to_yaml(study_data.study_config)
    return Document(
        study_data.manifest.name,
        study_data.study_config["question"],
        describe_progress(study_data),
        write_abstract(study_data),
        build_claims(study_data),
        tuple(sections),
        tuple(missing),
        filters,
        arms,
        __version__,
        source,
    )


def describe_progress(study_data: StudyData) -> str:
    """How far the study is: ``54 of 54 runs finished``."""
    ids = {entry.run: study_data.manifest.get_status(entry.run) for entry in study_data.manifest_values["runs"]}
    counts = Counter(ids.values())
    rest = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name != "finished" and count)
    more = "" if study_data.manifest_values.get("complete", True) else "; tuning is not over, so more will come"
    if not ids:
        return "no runs yet" + more
    return (
        f"{counts['finished']} of {pluralize(len(ids), 'run')} finished"
        + (f" ({rest.replace('missing', 'not begun')})" if rest else "")
        + more
    )


def write_abstract(study_data: StudyData) -> tuple[str, ...]:
    """What was done and what came of it, counted from the store."""
    arms = study_data.conditions
    seeds = sorted({seed for arm in arms for seed in arm.runs})
    twins = {run for arm in arms for run in arm.baselines.values()}
    trials = {entry.run for entry in study_data.manifest_values["runs"] if entry.role == "trial"}
    beside = f", each beside its IID baseline ({pluralize(len(twins), 'run')})" if twins else ""
    tuned = f", after {pluralize(len(trials), 'trial')} of tuning" if trials else ""
    over = f"{pluralize(len(arms), 'condition')} over {pluralize(len(seeds), 'paired seed')}{beside}{tuned}"
    said = [f"{over if arms else 'Nothing can be said yet'}: {describe_progress(study_data)}."]
    if not all(run in study_data.finished for arm in arms for run in arm.runs.values()):
        said.append("The study is not finished: everything below is of what is there, and may change.")
    frame = study_data.frame[study_data.frame["role"] == "run"]
    broke = int(frame["diverged"].sum())
    if broke:
        said.append(f"{broke} of {len(frame)} runs diverged; they are kept and count as the worst.")
    if study_data.verdicts:
        counts = Counter(one.verdict for one in study_data.verdicts)
        said.append(
            f"Of {pluralize(len(study_data.verdicts), 'hypothesis', 'hypotheses')} {counts['supported']} came out supported,"
            f" {counts['refuted']} refuted, {counts['inconclusive']} inconclusive."
        )
    if "gap" in frame and len(frame):
        gap = study_data.outcome_by_run("gap")
        gaps = [
            (seed_mean_ci(gap.get(run, math.nan) for run in arm.runs.values())[0], condition_name(stage, arm))
            for stage in study_data.stages
            for arm in stage.conditions
        ]
        gaps = sorted((value, name) for value, name in gaps if math.isfinite(value))
        if gaps:
            (low, least), (high, most) = gaps[0], gaps[-1]
            said.append(
                f"Against the IID baseline the final loss lies between {low:+.3f} ({least}) and {high:+.3f} nats ({most}), means"
                " over seeds."
            )
    return tuple(said)


# The report as one HTML file: figures that filters act on, tables, nothing fetched from anywhere.


def render_study(document: Document) -> str:
    """The page as text."""
    specs: dict[str, dict[str, Any]] = {}

    def place(panel: Panel, figure: Figure) -> str:
        name = f"{figure.key}-{len(specs)}"
        label = f"{panel.title}. {figure.caption}" if panel.title else figure.caption
        specs[name] = pack_rows({**panel_spec(panel), "description": label})
        return name

    return (
        _template_environment()
        .get_template("study.html")
        .render(
            document=document,
            place=place,
            specs=specs,
            bundle=vega_script(),
            figures=number_blocks(document.figures),
            tables=number_blocks(document.tables),
            ticked=mark_code,
            is_figure=lambda block: isinstance(block, Figure),
            conditions=[dict(levels) for levels in document.conditions],
        )
    )


def panel_spec(panel: Panel, width: Any = "container") -> dict[str, Any]:
    """A panel's chart as Vega-Lite; its schema is checked by the tests, not for every reader."""
    with alt.utils.schemapi.debug_mode(False):
        said: dict[str, Any] = panel.draw(width).to_dict(validate=False)
    return said


def mark_code(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts))


def number_blocks(blocks: Iterable[Figure | Table]) -> dict[str, int]:
    return {block.key: number for number, block in enumerate(blocks, 1)}


def pack_rows(spec: dict[str, Any]) -> dict[str, Any]:
    """The same with its rows as one list of names and lists of values: half the size. ``study.js`` unpacks it."""
    datasets = {}
    for name, rows in spec.get("datasets", {}).items():
        names = list(dict.fromkeys(key for row in rows for key in row))
        datasets[name] = {"names": names, "rows": [[row.get(key) for key in names] for row in rows]}
    return {**spec, "datasets": datasets}


@cache
def _template_environment() -> Environment:
    return Environment(
        loader=PackageLoader("fedrift.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


# A study as a report: a page, a paper, and tables for one. No torch.


def write_study_report(
    manifest: StudyManifest,
    output: Path,
    *,
    html: bool = True,
    pdf: bool = False,
    latex: bool = False,
    on_progress: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Write ``index.html``, ``report.pdf`` with its ``figures/`` and ``tables/*.tex`` under the folder ``out``, as asked.

    The study may be empty, unfinished or failed: the report then says so. ``out`` may be an .html file if only that is asked.
    """
    page = output if output.suffix.lower() in (".html", ".htm") else output / "index.html"
    document = build_document(load_study_data(manifest, on_progress))
    made: dict[Path, bytes] = {}
    if html:
        made[page] = render_study(document).encode()
    if pdf:
        from .paper import render_pdf

        content, drawings = render_pdf(document, on_progress)
        made[page.parent / "report.pdf"] = content
        made |= {page.parent / "figures" / name: drawing.encode() for name, drawing in drawings.items()}
    if latex:
        made |= {page.parent / "tables" / name: text.encode() for name, text in latex_files(document).items()}
    for path, content in made.items():
        write_atomically(path, content)
    return list(made)


__all__ = ["write_study_report"]
