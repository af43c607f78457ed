"""Tables with their words as Markdown and HTML; numbers as they are written there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import pandas as pd

from ..stats.significance import ALPHA, format_p
from .comparison_results import (
    COMPARISON_METRICS,
    CONTRAST_REFERENCES,
    CONTRASTED_METRICS,
    ComparisonResults,
    condition_title,
    grade_table,
    perplexity_change,
    undetected_failures,
)


class ReportPart(NamedTuple):
    """A heading, words, and perhaps a table under them."""

    heading: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def render_markdown(report: Sequence[ReportPart], command: str = "") -> str:
    lines = [f"`{command}`", ""] if command else []
    for place, part in enumerate(report):
        lines += [f"{'##' if place else '#'} {part.heading}", "", part.text, ""]
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
    """One file that needs no other."""
    body = [f"<p><code>{escape(command)}</code></p>"] if command else []
    for place, part in enumerate(report):
        level = "h2" if place else "h1"
        body.append(f"<{level}>{escape(part.heading)}</{level}><p>{escape(part.text)}</p>")
        if part.rows:
            head = "".join(f"<th scope=col>{escape(name)}</th>" for name in part.columns)
            rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
            body.append(f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(report[0].heading)}</title><style>{CSS}</style>{''.join(body)}</html>\n"
    )


def format_number(value: Any, digits: int, signed: bool = False) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{float(value):{'+' if signed else ''}.{digits}f}"


def format_p_value(p: float, attainable: float) -> str:
    """With so few seeds that no p can be below .05, the least there is is told instead."""
    if math.isnan(p):
        return ""
    return format_p(p) if attainable <= 0.05 else f"{format_p(p)}, least possible {format_p(attainable)}"


# What is told of a contest and of a map, table by table, and all of it as plain JSON.

DIGITS = {"own": 4, "worst": 4, "cross": 4, "next": 4, "general": 4, "syntax": 3, "compute": 2, "traffic": 2, "models": 1, "ari": 2}
LOSS_METRICS = ("own", "worst", "cross", "next")


def report_parts(results: ComparisonResults) -> list[ReportPart]:
    """Everything that is told, in its order. Rows bear the names that ``--conditions`` takes: titles would not fit a screen."""
    every = "; ".join(f"{name}: {condition_title(name)}" for name in results.conditions)
    columns = "; ".join(f"{name}: {words}" for name, words in COMPARISON_METRICS.values())
    return [
        ReportPart(results.name, f"{results.power_statement()} {summarize_results(results)}"),
        condition_table(results, "Losses", LOSS_METRICS, "Means over seeds, nats per token; perplexity in brackets."),
        condition_table(results, "Costs", [name for name in COMPARISON_METRICS if name not in LOSS_METRICS], "Means over seeds."),
        *contrast_tables(results),
        cluster_table(results),
        failure_table(results),
        ReportPart("What the conditions are", f"{every}."),
        ReportPart("What the columns are", f"{columns}."),
    ]


def condition_table(results: ComparisonResults, heading: str, metrics: Sequence[str], text: str) -> ReportPart:
    rows = []
    for row in results.means().to_dict("records"):
        cells = [row["condition"]]
        for metric in metrics:
            value = format_number(row[metric], DIGITS[metric], signed=metric in ("general", "syntax"))
            if metric in CONTRASTED_METRICS and math.isfinite(row[metric]):
                value += f" ({math.exp(row[metric]):.1f})"
            cells.append(value)
        rows.append(cells)
    return ReportPart(heading, text, ["condition", *(COMPARISON_METRICS[metric][0] for metric in metrics)], rows)


def contrast_tables(results: ComparisonResults) -> list[ReportPart]:
    made = []
    for reference in CONTRAST_REFERENCES:
        for metric in CONTRASTED_METRICS:
            table = results.contrasts(metric, reference)
            if not len(table):
                continue
            rows = [
                [
                    row["condition"],
                    format_number(row["effect"], 4, signed=True),
                    format_interval(row),
                    f"{perplexity_change(row['effect']):+.2f} %" if math.isfinite(row["effect"]) else "",
                    format_p_value(row["p"], row["attainable"]),
                    format_p_value(row["holm"], row["attainable"]),
                    str(row["seeds"]),
                    str(row["diverged"]),
                ]
                for row in table.to_dict("records")
            ]
            made.append(
                ReportPart(
                    f"{COMPARISON_METRICS[metric][0].capitalize()}, less {reference}",
                    "Below zero is better. Mean paired difference in nats per token, 95 % t-interval, the same as a change of "
                    "perplexity (PPL), exact sign-flip p, and the p corrected for all rows (Holm). Where runs diverged on one side "
                    "it is the median, its interval and signed ranks; seeds in which both sides diverged are left out.",
                    ["condition", "mean", "95 % interval", "PPL", "p", "Holm", "seeds", "diverged"],
                    rows,
                )
            )
    return made


def cluster_table(results: ComparisonResults) -> ReportPart:
    rows = [
        [
            str(said["seed"]),
            str(said.get("k")),
            format_cluster_sizes(said),
            format_number(said.get("p_value"), 2),
            format_number(said.get("silhouette"), 2),
            format_number(said.get("identified"), 2),
            format_number(said.get("stability"), 2),
            str(said.get("verdict", "")),
        ]
        for said in results.decisions
    ]
    words = str(results.decisions[0].get("privacy", "")) if results.decisions else "No run has text clusters."
    words += (
        (
            " p: of the permutation of documents; identified: documents that are nearest to their own client's mean; "
            "bootstraps: their mean pairwise adjusted Rand index."
        )
        if rows
        else ""
    )
    return ReportPart("The text clusters", words, ["seed", "k", "sizes", "p", "silhouette", "identified", "bootstraps", "verdict"], rows)


def map_report_parts(gains: pd.DataFrame, cluster_costs: pd.DataFrame) -> list[ReportPart]:
    """The tables of a map."""
    rows = [
        [
            str(row["regime"]),
            f"{row['severity']:g}",
            format_number(row.get("random.effect"), 4, signed=True),
            format_interval(row, "random."),
            format_p_value(row.get("random.p", math.nan), row.get("random.attainable", 1.0)),
            format_number(row.get("vanilla.effect"), 4, signed=True),
            format_number(row["own"], 4, signed=True),
            format_number(row["p"], 2),
            f"{row['identified']:.2f} ({row['chance']:.2f})",
            format_number(row["counted"], 0),
            format_number(row.get("random.seeds"), 0),
        ]
        for row in gains.to_dict("records")
    ]
    cost = [
        [
            str(row["k"]),
            format_number(row["effect"], 4, signed=True),
            format_interval(row),
            format_p_value(row["p"], row["attainable"]),
            str(row["seeds"]),
        ]
        for row in cluster_costs.to_dict("records")
    ]
    return [
        ReportPart(
            "Where text clusters help",
            "Loss of text clusters less that of random clusters of the same sizes, nats per token; "
            "below zero they help. Next text is what clients are about to train on; held-out own text is drawn by domain "
            "and knows no token skew. Beside it what the descriptors know: p of the permutation of documents, how often a "
            "document is nearest to its own client's mean (chance), and how many clusters would have been chosen. Each p is "
            "of its own row: none is corrected for the number of rows.",
            [
                "regime",
                "severity",
                "less random, next text",
                "95 % interval",
                "p",
                "less vanilla",
                "less random, own text",
                "p of the permutation",
                "identified (chance)",
                "k chosen",
                "seeds",
            ],
            rows,
        ),
        ReportPart(
            "What fewer clients to a model cost",
            "Random clusters on IID deals, less one model for all, on own text: nothing "
            "but the smaller pool differs. No p is corrected for the number of rows.",
            ["clusters", "difference", "95 % interval", "p", "seeds"],
            cost,
        ),
    ]


def format_interval(row: Mapping[Any, Any], prefix: str = "") -> str:
    low, high = row.get(f"{prefix}low", math.nan), row.get(f"{prefix}high", math.nan)
    return "" if math.isnan(low) else f"{low:+.4f} to {high:+.4f}"


def format_cluster_sizes(assignment: dict[str, Any]) -> str:
    held = pd.Series(assignment.get("group", [])).value_counts()
    return ", ".join(str(count) for count in sorted(held, reverse=True))


def failure_table(results: ComparisonResults) -> ReportPart:
    table = grade_table(results.diagnoses)
    rows = [[arm, *table[arm]] for arm in results.conditions if arm in table]
    words = "Before is vanilla, after each clustering; beside vanilla's IID baseline, the pooled run and everybody alone, first repeats."
    if results.diagnoses.get("vanilla"):
        none, missing = undetected_failures(results.diagnoses["vanilla"])
        words += f" In vanilla looked for and not found: {', '.join(none) or 'nothing'}; not measured: {', '.join(missing) or 'nothing'}."
    if not rows:
        words += " No condition shows a failure."
    stopped = f" Not finished, and not in any table: {'; '.join(results.stopped_runs)}." if results.stopped_runs else ""
    return ReportPart("Failures", words + stopped, ["condition", *table["failure"]] if rows else (), rows)


def summarize_results(results: ComparisonResults) -> str:
    """The answer in words: text clusters against random ones and against vanilla, and the share of the oracle's gain."""
    told = []
    for reference in CONTRAST_REFERENCES:
        table = results.contrasts("own", reference)
        mine = table[table["condition"] == "text"] if len(table) else table
        for row in mine.to_dict("records"):
            told.append(describe_contrast(row, reference))
    share = results.recovered_gain()
    if math.isfinite(share.estimate):
        if math.isfinite(share.high - share.low):
            told.append(f"They recover {share.estimate:.0%} of the oracle's gain over vanilla ({share.low:.0%} to {share.high:.0%}).")
        else:
            told.append("The oracle itself gains nothing over vanilla that so many seeds could show: there is no share of it to tell.")
    if results.decisions and all(said.get("k") == 1 for said in results.decisions):
        told.append("In every seed one cluster was chosen: text clusters are vanilla.")
    return " ".join(told)


def describe_contrast(row: Mapping[Any, Any], reference: str) -> str:
    """Better or worse only where a single comparison at .05 calls it: too few seeds can call nothing, whatever their interval."""
    lead = f"On their own text, text clusters are {{}} {condition_title(reference)}"
    if math.isnan(row["effect"]):
        return (
            f"Text clusters cannot be compared with {condition_title(reference)}: in {row['tied']} seeds runs of both diverged."
            if row["tied"]
            else f"Text clusters cannot be compared with {condition_title(reference)}: no seed has both."
        )
    called = max(row["p"], row["attainable"]) <= ALPHA
    verdict = "not told apart from" if not called else "better than" if row["effect"] < 0 else "worse than"
    size = [f"{row['effect']:+.4f} nats", format_interval(row), f"p = {format_p_value(row['p'], row['attainable'])}"]
    seen = f"; {row['detectable']:.3g} would have been seen with 80 % power" if math.isfinite(row["detectable"]) else ""
    return f"{lead.format(verdict)} ({', '.join(filter(None, size))}{seen})."


def results_to_json(results: ComparisonResults, command: str = "") -> dict[str, Any]:
    """Everything as JSON: every run, every comparison, what was decided and what was judged."""
    comparisons = {
        reference: {metric: frame_to_records(results.contrasts(metric, reference)) for metric in CONTRASTED_METRICS}
        for reference in CONTRAST_REFERENCES
    }
    share = results.recovered_gain()
    return {
        "study": results.name,
        "command": command,
        "seeds": list(results.seeds),
        "limits": results.power_statement(),
        "says": summarize_results(results),
        "metrics": {key: list(words) for key, words in COMPARISON_METRICS.items()},
        "conditions": frame_to_records(results.means()),
        "less": comparisons,
        "recovered": {end: to_json_number(getattr(share, end)) for end in ("estimate", "low", "high")},
        "clusters": [{key: value for key, value in said.items() if key not in ("documents", "privacy")} for said in results.decisions],
        "failures": frame_to_records(grade_table(results.diagnoses)),
        "stopped": list(results.stopped_runs),
        "runs": frame_to_records(results.rows),
    }


def frame_to_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): to_json_number(value) for key, value in row.items()} for row in frame.to_dict("records")]


def to_json_number(value: Any) -> Any:
    """A number of Python, with all its digits; NaN is None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


__all__ = [
    "ReportPart",
    "format_number",
    "format_p_value",
    "frame_to_records",
    "map_report_parts",
    "render_html",
    "render_markdown",
    "report_parts",
    "results_to_json",
    "summarize_results",
]
