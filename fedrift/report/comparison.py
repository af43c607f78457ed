"""Report of a comparison of clustering strategies: its tables with their captions as Markdown, HTML and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd

from ..core.records import perplexity_change_percent
from ..stats.significance import ALPHA, format_p
from ..studies.comparison_results import (
    COMPARISON_METRICS,
    CONTRAST_REFERENCES,
    CONTRASTED_METRICS,
    ComparisonResults,
    condition_title,
    grade_table,
    undetected_failures,
)
from .format import DASH, format_interval, format_number, format_p_value, format_signed


class ReportPart(NamedTuple):
    """A heading with a text and, unless ``rows`` is empty, a table below the text."""

    heading: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def render_markdown(report: Sequence[ReportPart], command: str = "") -> str:
    """Return the report as Markdown.

    Args:
        report: The parts; the first heading is the title.
        command: The command that produced the report, or "" for none.
    """
    lines = [f"`{command}`", ""] if command else []
    for index, part in enumerate(report):
        lines += [f"{'##' if index else '#'} {part.heading}", "", part.text, ""]
        if part.rows:
            lines += [f"| {' | '.join(part.columns)} |", "|" + "---|" * len(part.columns)]
            lines += [f"| {' | '.join(row)} |" for row in part.rows] + [""]
    return "\n".join(lines).rstrip() + "\n"


CSS = """body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:1rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.wide{overflow-x:auto}code{background:#f3f3f3;padding:.1rem .3rem}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}th,td{border-color:#333}code{background:#262626}}"""


def render_html(report: Sequence[ReportPart], command: str = "") -> str:
    """Return the report as a self-contained HTML file.

    Args:
        report: The parts; the first heading is the title.
        command: The command that produced the report, or "" for none.
    """
    body = [f"<p><code>{escape(command)}</code></p>"] if command else []
    for index, part in enumerate(report):
        level = "h2" if index else "h1"
        body.append(f"<{level}>{escape(part.heading)}</{level}><p>{escape(part.text)}</p>")
        if part.rows:
            head = "".join(f"<th scope=col>{escape(name)}</th>" for name in part.columns)
            rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
            body.append(f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(report[0].heading)}</title><style>{CSS}</style>{''.join(body)}</html>\n"
    )


DIGITS = {"own": 4, "worst": 4, "cross": 4, "next": 4, "general": 4, "syntax": 3, "compute": 2, "traffic": 2, "models": 1, "ari": 2}
LOSS_METRICS = ("own", "worst", "cross", "next")


def report_parts(results: ComparisonResults) -> list[ReportPart]:
    """Return all parts of the report in order.

    Rows are labeled with the condition names that ``--conditions`` accepts, because their titles would not fit on a screen.
    """
    conditions = "; ".join(f"{name}: {condition_title(name)}" for name in results.conditions)
    columns = "; ".join(f"{name}: {description}" for name, description in COMPARISON_METRICS.values())
    return [
        ReportPart(results.name, f"{results.power_statement()} {summarize_results(results)}"),
        condition_table(results, "Losses", LOSS_METRICS, "Means over seeds in nats per token, with the perplexity in parentheses."),
        condition_table(results, "Costs", [name for name in COMPARISON_METRICS if name not in LOSS_METRICS], "Means over seeds."),
        *contrast_tables(results),
        cluster_table(results),
        failure_table(results),
        ReportPart("Conditions", f"{conditions}."),
        ReportPart("Columns", f"{columns}."),
    ]


def condition_table(results: ComparisonResults, heading: str, metrics: Sequence[str], text: str) -> ReportPart:
    """Return a table of means with one row per condition.

    Args:
        results: The results.
        heading: Heading of the part.
        metrics: Columns of ``COMPARISON_METRICS`` to show.
        text: Text above the table.
    """
    rows = []
    for row in results.means().to_dict("records"):
        cells = [row["condition"]]
        for metric in metrics:
            value = (format_signed if metric in ("general", "syntax") else format_number)(row[metric], DIGITS[metric])
            if metric in CONTRASTED_METRICS and math.isfinite(row[metric]):
                value += f" ({math.exp(row[metric]):.1f})"
            cells.append(value)
        rows.append(cells)
    return ReportPart(heading, text, ["condition", *(COMPARISON_METRICS[metric][0] for metric in metrics)], rows)


def contrast_tables(results: ComparisonResults) -> list[ReportPart]:
    """Return one table of paired differences per reference condition and metric."""
    parts = []
    for reference in CONTRAST_REFERENCES:
        for metric in CONTRASTED_METRICS:
            table = results.contrasts(metric, reference)
            if not len(table):
                continue
            rows = [
                [
                    row["condition"],
                    format_signed(row["effect"], 4),
                    format_interval(row["low"], row["high"], is_signed=True, digits=4),
                    f"{perplexity_change_percent(row['effect']):+.2f} %" if math.isfinite(row["effect"]) else DASH,
                    format_p_value(row["p"], row["min_attainable_p"]),
                    format_p_value(row["p_holm"], row["min_attainable_p"]),
                    str(row["seeds"]),
                    str(row["diverged"]),
                ]
                for row in table.to_dict("records")
            ]
            parts.append(
                ReportPart(
                    f"{COMPARISON_METRICS[metric][0].capitalize()}: difference from {reference}",
                    "Negative values are better. The columns are the mean paired difference in nats per token, its 95 % t-interval, the "
                    "corresponding change of perplexity (PPL), the exact sign-flip p value and the p value corrected for all rows "
                    "(Holm). If runs of one side diverged, the row has the median, its interval and a signed-rank test instead. Seeds "
                    "in which both sides diverged are left out.",
                    ["condition", "mean", "95 % interval", "PPL", "p", "Holm", "seeds", "diverged"],
                    rows,
                )
            )
    return parts


def cluster_table(results: ComparisonResults) -> ReportPart:
    """Return the table of the text clustering's decisions, one row per seed."""
    rows = [
        [
            str(decision["seed"]),
            str(decision.get("k")),
            format_cluster_sizes(decision),
            format_number(decision.get("p_value"), 2),
            format_number(decision.get("silhouette"), 2),
            format_number(decision.get("identification_rate"), 2),
            format_number(decision.get("stability"), 2),
            str(decision.get("verdict", "")),
        ]
        for decision in results.decisions
    ]
    text = str(results.decisions[0].get("privacy", "")) if results.decisions else "No finished run has text clusters."
    text += (
        (
            " p is the p value of the permutation test of documents. identification is the share of documents that are closest to their "
            "own client's mean. bootstraps is the mean pairwise adjusted Rand index over bootstraps."
        )
        if rows
        else ""
    )
    return ReportPart("Text clusters", text, ["seed", "k", "sizes", "p", "silhouette", "identification", "bootstraps", "verdict"], rows)


def map_report_parts(gains: pd.DataFrame, cluster_costs: pd.DataFrame) -> list[ReportPart]:
    """Return the two tables of the map.

    Args:
        gains: First table of ``summarize_map``: the gain of text clusters by partition and severity.
        cluster_costs: Second table of ``summarize_map``: the cost of smaller clusters.
    """
    rows = [
        [
            str(row["partition"]),
            f"{row['severity']:g}",
            format_signed(row.get("random.effect"), 4),
            format_interval(row.get("random.low", math.nan), row.get("random.high", math.nan), is_signed=True, digits=4),
            format_p_value(row.get("random.p", math.nan), row.get("random.min_attainable_p", 1.0)),
            format_signed(row.get("unclustered.effect"), 4),
            format_signed(row["own"], 4),
            format_number(row["p"], 2),
            f"{row['identification_rate']:.2f} ({row['chance']:.2f})",
            format_number(row["estimated_k"], 0),
            format_number(row.get("random.seeds"), 0),
        ]
        for row in gains.to_dict("records")
    ]
    cost_rows = [
        [
            str(row["k"]),
            format_signed(row["effect"], 4),
            format_interval(row["low"], row["high"], is_signed=True, digits=4),
            format_p_value(row["p"], row["min_attainable_p"]),
            str(row["seeds"]),
        ]
        for row in cluster_costs.to_dict("records")
    ]
    return [
        ReportPart(
            "Where text clusters help",
            "Loss with text clusters minus loss with random clusters of the same sizes or with one model for all, in nats per token. "
            "Negative values mean that text clusters help. Next text is the text of the clients' next training batches. Own text is "
            "held-out text; it is drawn by domain and has no token skew. The other columns describe the clients' embeddings: the p "
            "value of the permutation test of documents, the rate at which documents are closest to their own client's mean (with its "
            "chance level), and the number of clusters that would have been selected. No p value is corrected for the number of rows.",
            [
                "partition",
                "severity",
                "minus random, next text",
                "95 % interval",
                "p",
                "minus unclustered, next text",
                "minus random, own text",
                "p of permutation test",
                "identification rate (chance)",
                "k selected",
                "seeds",
            ],
            rows,
        ),
        ReportPart(
            "Cost of fewer clients per model",
            "Loss on own text with random clusters of IID clients minus the loss with one model for all. Only the number of clients "
            "per model differs. No p value is corrected for the number of rows.",
            ["clusters", "difference", "95 % interval", "p", "seeds"],
            cost_rows,
        ),
    ]


def format_cluster_sizes(assignment: dict[str, Any]) -> str:
    """Return the cluster sizes of a decision in descending order, separated by commas."""
    sizes = pd.Series(assignment.get("cluster_ids", [])).value_counts()
    return ", ".join(str(count) for count in sorted(sizes, reverse=True))


def failure_table(results: ComparisonResults) -> ReportPart:
    """Return the table of the failure detectors' grades by condition."""
    table = grade_table(results.diagnoses)
    rows = [[condition, *table[condition]] for condition in results.conditions if condition in table]
    text = (
        "Grades of the failure detectors for unclustered (before) and for the other conditions (after). The detectors compare the first "
        "repeat of each condition with its IID baseline, the centralized run and local training only."
    )
    if results.diagnoses.get("unclustered"):
        not_found, not_measured = undetected_failures(results.diagnoses["unclustered"])
        text += f" Not found in unclustered: {', '.join(not_found) or 'none'}."
        text += f" Not measured in unclustered: {', '.join(not_measured) or 'none'}."
    if not rows:
        text += " No condition shows a failure."
    stopped_note = f" Unfinished runs, which are in no table: {'; '.join(results.stopped_runs)}." if results.stopped_runs else ""
    return ReportPart("Failures", text + stopped_note, ["condition", *table["failure"]] if rows else (), rows)


def summarize_results(results: ComparisonResults) -> str:
    """Return the answer in words.

    It compares text clusters with random clusters and with one model for all, and states the recovered share of the oracle's gain.
    """
    sentences = []
    for reference in CONTRAST_REFERENCES:
        table = results.contrasts("own", reference)
        text_rows = table[table["condition"] == "text"] if len(table) else table
        for row in text_rows.to_dict("records"):
            sentences.append(describe_contrast(row, reference))
    share = results.recovered_gain()
    if math.isfinite(share.estimate):
        if math.isfinite(share.high - share.low):
            sentences.append(
                f"Text clusters recover {100 * share.estimate:.0f} % of the oracle's gain over one model for all "
                f"({100 * share.low:.0f} % to {100 * share.high:.0f} %)."
            )
        else:
            sentences.append(
                "The oracle's gain over one model for all cannot be distinguished from zero with these seeds, so its share is not reported."
            )
    if results.decisions and all(decision.get("k") == 1 for decision in results.decisions):
        sentences.append("One cluster was selected in every seed, so the text clusters are identical to one model for all.")
    return " ".join(sentences)


def describe_contrast(row: Mapping[Any, Any], reference: str) -> str:
    """Describe the comparison of text clusters with a reference in one sentence.

    It says better or worse only if a single test at 0.05 is significant and the number of seeds permits this, regardless of the interval.

    Args:
        row: Row of ``ComparisonResults.contrasts``.
        reference: Name of the reference condition.
    """
    sentence_start = f"On their own text, text clusters are {{}} {condition_title(reference)}"
    if math.isnan(row["effect"]):
        return (
            f"Text clusters cannot be compared with {condition_title(reference)}, because runs of both diverged in "
            f"{row['both_diverged']} seeds."
            if row["both_diverged"]
            else f"Text clusters cannot be compared with {condition_title(reference)}, because no seed has both."
        )
    is_significant = max(row["p"], row["min_attainable_p"]) <= ALPHA
    verdict = "not distinguishable from" if not is_significant else "better than" if row["effect"] < 0 else "worse than"
    numbers = [f"{row['effect']:+.4f} nats per token", f"p = {format_p(row['p'])}"]
    if not math.isnan(row["low"]):
        numbers.insert(1, format_interval(row["low"], row["high"], is_signed=True, digits=4))
    if row["min_attainable_p"] > ALPHA:
        numbers.append(f"smallest possible {format_p(row['min_attainable_p'])}")
    power_note = f"; 80 % power for a difference of {row['detectable']:.3g}" if math.isfinite(row["detectable"]) else ""
    return f"{sentence_start.format(verdict)} ({', '.join(numbers)}{power_note})."


def results_to_json(results: ComparisonResults, command: str = "") -> dict[str, Any]:
    """Return all results for ``storage.jsonl.to_json``: every run, every comparison, the clusterings and the diagnoses.

    Args:
        results: The results.
        command: The command that produced them, or "" for none.
    """
    comparisons = {
        reference: {metric: results.contrasts(metric, reference) for metric in CONTRASTED_METRICS} for reference in CONTRAST_REFERENCES
    }
    share = results.recovered_gain()
    return {
        "study": results.name,
        "command": command,
        "seeds": list(results.seeds),
        "power_statement": results.power_statement(),
        "summary": summarize_results(results),
        "metrics": {key: list(description) for key, description in COMPARISON_METRICS.items()},
        "conditions": results.means(),
        "contrasts": comparisons,
        "recovered_gain": {bound: getattr(share, bound) for bound in ("estimate", "low", "high")},
        "clusters": [
            {key: value for key, value in decision.items() if key not in ("documents", "privacy")} for decision in results.decisions
        ],
        "failures": grade_table(results.diagnoses),
        "stopped_runs": list(results.stopped_runs),
        "runs": results.rows,
    }
