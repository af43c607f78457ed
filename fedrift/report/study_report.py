"""The report of a study: one HTML page, a PDF in the form of a paper, and LaTeX tables.

Each section is a function of the study's data. A section without data states what must be recorded or varied. This module does not
import torch.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from markupsafe import Markup

from .. import __version__
from ..storage.files import write_atomically
from ..studies import StudyManifest
from . import study_dynamics, study_results, study_setup
from .document import Document, Figure, Filter, MissingSection, Panel, Section, Table, latex_files
from .figures import assign_colors
from .format import pluralize, seed_mean_ci, to_yaml
from .page import page_path, template_environment, vega_script
from .study_data import StudyData, load_study_data, merge_axes
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
    study_results.failure_heatmap_section,
    study_dynamics.lora_aggregation_section,
    study_results.clustering_section,
    study_setup.cost_section,
    study_setup.cost_protocols_section,
    study_setup.tuning_section,
    study_setup.methods_section,
    study_setup.provenance_section,
)


def build_document(study_data: StudyData) -> Document:
    """Build the report of a study. Sections without data are listed with their requirements."""
    sections, missing = [], []
    for build_section in SECTIONS:
        section = build_section(study_data)
        study_data.on_progress(section.title)
        if isinstance(section, MissingSection):
            missing.append(section)
        else:
            sections.append(section)
    axes = merge_axes(study_data.stages)
    colors_by_factor = {stage.color_axis.name: stage.colors for stage in study_data.stages if stage.color_axis}
    filters = tuple(Filter(axis.name, axis.levels, (colors_by_factor.get(axis.name) and assign_colors(axis.levels)) or {}) for axis in axes)
    if len(study_data.stages) > 1:
        filters = (Filter("stage", tuple(stage.name for stage in study_data.stages), {}), *filters)
    conditions = tuple({"stage": condition.stage, **condition.levels} for condition in study_data.conditions)
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
        conditions,
        __version__,
        source,
    )


def describe_progress(study_data: StudyData) -> str:
    """Describe how many runs are finished: ``54 of 54 runs finished``."""
    statuses = {entry.run: study_data.manifest.get_status(entry.run) for entry in study_data.manifest_values["runs"]}
    counts = Counter(statuses.values())
    rest = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name != "finished" and count)
    suffix = "" if study_data.manifest_values.get("complete", True) else "; tuning is not finished, so more runs will follow"
    if not statuses:
        return "no runs yet" + suffix
    return (
        f"{counts['finished']} of {pluralize(len(statuses), 'run')} finished"
        + (f" ({rest.replace('missing', 'not started')})" if rest else "")
        + suffix
    )


def write_abstract(study_data: StudyData) -> tuple[str, ...]:
    """Summarize the design and the results of a study in a few sentences, all computed from its stored runs."""
    conditions = study_data.conditions
    seeds = sorted({seed for condition in conditions for seed in condition.runs})
    baselines = {run for condition in conditions for run in condition.baselines.values()}
    trials = {entry.run for entry in study_data.manifest_values["runs"] if entry.role == "trial"}
    baseline_part = f", each with its IID baseline ({pluralize(len(baselines), 'run')})" if baselines else ""
    tuning_part = f", after {pluralize(len(trials), 'tuning trial')}" if trials else ""
    design = f"{pluralize(len(conditions), 'condition')} over {pluralize(len(seeds), 'paired seed')}{baseline_part}{tuning_part}"
    sentences = [f"{design if conditions else 'No results are available yet'}: {describe_progress(study_data)}."]
    if not all(run in study_data.finished for condition in conditions for run in condition.runs.values()):
        sentences.append("The study is not finished: all results below are based on the runs so far and may change.")
    frame = study_data.frame[study_data.frame["role"] == "run"]
    num_diverged = int(frame["diverged"].sum())
    if num_diverged:
        sentences.append(f"{num_diverged} of {len(frame)} runs diverged; they are included and count as the worst outcome.")
    if study_data.verdicts:
        counts = Counter(verdict.verdict for verdict in study_data.verdicts)
        sentences.append(
            f"Of {pluralize(len(study_data.verdicts), 'hypothesis', 'hypotheses')} {counts['supported']} are supported,"
            f" {counts['refuted']} refuted, {counts['inconclusive']} inconclusive"
            + (f", {counts['void']} void because an IID baseline gained too little." if counts["void"] else ".")
        )
    if "gap" in frame and len(frame):
        gap = study_data.outcome_by_run("gap")
        gaps = [
            (seed_mean_ci(gap.get(run, math.nan) for run in condition.runs.values())[0], condition_name(stage, condition))
            for stage in study_data.stages
            for condition in stage.conditions
        ]
        gaps = sorted((value, name) for value, name in gaps if math.isfinite(value))
        if gaps:
            (low, lowest), (high, highest) = gaps[0], gaps[-1]
            sentences.append(
                f"The gap of the final loss to the IID baseline, as a mean over seeds, lies between {low:+.3f} ({lowest}) and"
                f" {high:+.3f} nats per token ({highest})."
            )
    return tuple(sentences)


LONG_CELL = 24  # characters; a longer cell of a table has a minimum width


def render_study(document: Document) -> str:
    """Return the HTML page of a report."""
    specs: dict[str, dict[str, Any]] = {}

    def add_chart(panel: Panel, figure: Figure) -> str:
        name = f"{figure.key}-{len(specs)}"
        label = f"{panel.title}. {figure.caption}" if panel.title else figure.caption
        specs[name] = pack_rows({**panel.spec, "description": label})
        return name

    return (
        template_environment()
        .get_template("study.html")
        .render(
            document=document,
            add_chart=add_chart,
            specs=specs,
            bundle=vega_script(),
            figures=number_blocks(document.figures),
            tables=number_blocks(document.tables),
            mark_code=mark_code,
            long_cell=LONG_CELL,
            is_figure=lambda block: isinstance(block, Figure),
            conditions=[dict(levels) for levels in document.conditions],
        )
    )


def mark_code(text: str) -> Markup:
    """Return text in which the parts between backticks are marked as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if index % 2 else part for index, part in enumerate(parts))


def number_blocks(blocks: Iterable[Figure | Table]) -> dict[str, int]:
    """Return the number of each figure or table by its key."""
    return {block.key: number for number, block in enumerate(blocks, 1)}


def pack_rows(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the specification with each dataset as column names and lists of values, which halves its size.

    ``study.js`` unpacks it.
    """
    datasets = {}
    for name, rows in spec.get("datasets", {}).items():
        names = list(dict.fromkeys(key for row in rows for key in row))
        datasets[name] = {"names": names, "rows": [[row.get(key) for key in names] for row in rows]}
    return {**spec, "datasets": datasets}


def write_study_report(
    manifest: StudyManifest,
    output: Path,
    *,
    html: bool = True,
    pdf: bool = False,
    latex: bool = False,
    on_progress: Callable[[str], None] = lambda message: None,
) -> list[Path]:
    """Write the report of a study, which may be empty, unfinished or failed.

    Args:
        manifest: The study.
        output: The output directory. If only the page is requested, it may be an ``.html`` file.
        html: Whether to write ``index.html``.
        pdf: Whether to write ``report.pdf`` and its ``figures/``.
        latex: Whether to write ``tables/*.tex``.
        on_progress: Function that receives progress messages.

    Returns:
        The paths of the written files.
    """
    page = page_path(output)
    document = build_document(load_study_data(manifest, on_progress))
    files: dict[Path, bytes] = {}
    if html:
        files[page] = render_study(document).encode()
    if pdf:
        content, drawings = render_pdf(document, on_progress)
        files[page.parent / "report.pdf"] = content
        files |= {page.parent / "figures" / name: drawing.encode() for name, drawing in drawings.items()}
    if latex:
        files |= {page.parent / "tables" / name: text.encode() for name, text in latex_files(document).items()}
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


TEXT_WIDTH = 642  # pixels; 17 cm on paper
PANEL_GAP = 14  # pixels
VEGA_CONFIG = {
    "background": "white",
    "font": "Liberation Sans",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "#333",
        "titleColor": "#333",
        "gridColor": "#ddd",
        "domainColor": "#999",
        "tickColor": "#999",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    },
    "text": {"font": "Liberation Sans"},
}
MAX_PAPER_PANELS = 12  # panels per figure


def render_pdf(document: Document, on_progress: Callable[[str], None] = lambda message: None) -> tuple[bytes, dict[str, str]]:
    """Return the PDF and its figures.

    Args:
        document: The report.
        on_progress: Function that receives progress messages.

    Returns:
        The bytes of the PDF, and the SVG text of every figure panel by file name.
    """
    import typst

    drawings: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        content = {
            "name": document.name,
            "question": document.question,
            "state": document.progress,
            "abstract": document.abstract,
            "version": document.version,
            "claims": [vars(claim) for claim in document.claims],
            "missing": [vars(each) for each in document.missing],
            "source": document.source,
            "sections": [
                {
                    "key": section.key,
                    "title": section.title,
                    "text": section.text,
                    "blocks": [block_to_json(block, document, drawings, on_progress) for block in section.blocks],
                }
                for section in document.sections
            ],
        }
        for name, drawing in drawings.items():
            (root / name).write_text(drawing)
        (root / "document.json").write_text(json.dumps(content, default=list))
        (root / "study.typ").write_text((files("fedrift.report") / "study.typ").read_text())
        return bytes(typst.compile(root / "study.typ", root=root)), drawings


def block_to_json(
    block: Figure | Table, document: Document, drawings: dict[str, str], on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Convert a figure or table to the JSON that ``study.typ`` reads. The charts of a figure are added to ``drawings`` as SVG."""
    if isinstance(block, Table):
        return {
            "kind": "table",
            "caption": f"{block.caption} {block.note}".strip(),
            "columns": block.columns,
            "numbers": sorted(block.numeric_columns),
            "rows": block.rows,
            "long": block.is_long,
        }
    number = number_blocks(document.figures)[block.key]
    on_progress(f"drawing figure {number} of {len(document.figures)}")
    columns = min(block.columns, len(block.panels))
    panels = []
    for index, panel in enumerate(block.panels[:MAX_PAPER_PANELS]):
        name = f"figure-{number:02d}-{index + 1:02d}.svg"
        drawings[name] = panel_to_svg(panel, (TEXT_WIDTH - PANEL_GAP * (columns - 1)) // columns)
        panels.append({"title": panel.title, "file": name})
    omitted = f" {len(block.panels) - MAX_PAPER_PANELS} more panels are on the HTML page." if len(block.panels) > MAX_PAPER_PANELS else ""
    return {
        "kind": "figure",
        "caption": f"{block.caption} {block.note}".strip() + omitted,
        "columns": columns,
        "panels": panels,
        "legend": [vars(key) for key in block.legend],
    }


def panel_to_svg(panel: Panel, width: int) -> str:
    """Draw a panel as SVG. ``width`` is its total width in pixels, axes included."""
    spec = panel.spec | {"width": width, "autosize": {"type": "fit-x", "contains": "padding"}}
    return vl_convert.vegalite_to_svg(spec, config=VEGA_CONFIG)
