"""Claims of docs/clustering.md and docs/clustering-tables.md, computed from benchmarks/results/clustering-*.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fedrift.stats import mean_ci, min_p, sign_flip_test

from .stores import ROOT, load_result, signed

COMPARISONS = {  # label in the tables: name of the results file
    "BBC News, 10": "bbc-10",
    "AG News, 10": "ag_news-10",
    "Reddit, 10": "reddit_topics-10",
    "BBC News, 20": "bbc-20",
    "AG News, 20": "ag_news-20",
    "Reddit, 20": "reddit_topics-20",
}
Row = Mapping[str, Any]


def load_comparisons() -> dict[str, dict[str, Any]]:
    """Return the results of all comparisons by their label."""
    return {label: load_result(f"clustering-{name}") for label, name in COMPARISONS.items()}


def interval(row: Row | None, digits: int = 3, prefix: str = "") -> str:
    """Format an effect with its interval, such as ``-0.013 (-0.020 to -0.006)``; empty without a row."""
    if row is None:
        return ""
    effect, low, high = (signed(row[f"{prefix}{bound}"], digits) for bound in ("effect", "low", "high"))
    return f"{effect} ({low} to {high})"


def p(value: float) -> str:
    """Format a p-value, such as ``0.031``."""
    return f"{value:.3f}"


def contrast(comparison: Row, condition: str, reference: str, metric: str) -> Row | None:
    """Return the stored contrast of a condition with a reference, or None if there is none."""
    return next((row for row in comparison["contrasts"][reference][metric] if row["condition"] == condition), None)


def number(value: float | None, form: str) -> str:
    """Format a number; empty for None."""
    return "" if value is None else format(value, form)


def table_rows() -> list[str]:
    """Return every row of clustering-tables.md."""
    lines = []
    for comparison in load_comparisons().values():
        for row in comparison["conditions"]:
            if row["condition"] == "ifca best" and len({run["number"] for run in comparison["runs"] if run["condition"] == "ifca"}) == 1:
                continue  # with a single start the best equals the mean
            random, unclustered = (contrast(comparison, row["condition"], reference, "own") for reference in ("random", "unclustered"))
            cells = [
                row["condition"],
                f"{row['own']:.4f}",
                interval(random),
                p(random["p"]) if random else "",
                interval(unclustered),
                p(unclustered["p"]) if unclustered else "",
                interval(contrast(comparison, row["condition"], "unclustered", "worst")),
                interval(contrast(comparison, row["condition"], "unclustered", "cross")),
                number(row["general"], "+.3f"),
                number(row["compute"], ".2f"),
                number(row["traffic"], ".1f"),
                number(row["models"], ".1f"),
                number(row["ari"], ".2f"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def check_contrasts(comparison: Row) -> None:
    """Check that the stored contrasts follow from the stored runs: paired by seed, with repeats averaged."""
    runs = pd.DataFrame(comparison["runs"])
    own = runs[runs["condition"] != "iid"].groupby(["condition", "seed"])["own"].mean().unstack("condition")
    for reference, metrics in comparison["contrasts"].items():
        for row in metrics["own"]:
            d = mean_ci((own[row["condition"]] - own[reference]).to_numpy())
            assert np.allclose([d.estimate, d.low, d.high], [row["effect"], row["low"], row["high"]], atol=3e-6), (reference, row)
            assert row["p"] == sign_flip_test((own[row["condition"]] - own[reference]).to_numpy().round(9)).value or row["effect"] == 0
    assert {name for name, row in runs.groupby("condition")["seed"].nunique().items() if row != len(comparison["seeds"])} == set()


def every_table() -> list[str]:
    """Return all claims of clustering-tables.md."""
    comparisons = load_comparisons()
    for comparison in comparisons.values():
        check_contrasts(comparison)
    (num_seeds,) = {len(comparison["seeds"]) for comparison in comparisons.values()}
    return [
        *table_rows(),
        *(f"## {label} clients" for label in COMPARISONS),
        "with 10 and with 20 clients",
        "95 % t-intervals",
        f"The value {p(min_p(num_seeds))} is the least that six seeds can give",
        "fedrift 0.1.0, torch 2.13.0+cpu",
    ]


def value_range(values: Iterable[float], form: str = "+.3f") -> str:
    """Format the smallest and the largest value, such as ``+0.030 to +0.046``."""
    ordered = sorted(values)
    return f"{format(ordered[0], form)} to {format(ordered[-1], form)}"


def page() -> list[str]:
    """Return the claims of clustering.md on these results."""
    comparisons, map_result, style = load_comparisons(), load_result("clustering-map"), load_result("clustering-bbc-style-10")
    base = yaml.safe_load((ROOT / "experiments" / "clustering.yaml").read_text())
    training, selected_k = (
        base["training"],
        {row["severity"]: row["estimated_k"] for row in map_result["map"] if row["partition"] == "topic"},
    )
    assert selected_k[0.5] == selected_k[1.0]
    return [
        *main_table(comparisons),
        *prose(comparisons),
        *map_tables(map_result),
        *style_claims(style),
        f"On BBC News with {base['partition']['num_clients']} clients and `wordllama`, `TopicMix` gives {selected_k[0.0]:.0f} cluster at"
        f" severity 0. It gives {selected_k[0.5]:.0f} clusters at severities 0.5 and 1, one per topic.",
        "`cluster.ari` is 1 at severity 0 too",
        f"LoRA of rank {base['trainable']['r']}. Each client has one topic (`TopicMix`, severity {base['partition']['severity']:g}).",
        f"Training takes {training['num_rounds']} rounds of {training['local_steps']} local steps with batches of {training['batch_size']} x"
        f" {training['max_seq_length']} tokens.",
    ]


def main_table(comparisons: Mapping[str, Row]) -> list[str]:
    """Return the rows of the page's first table."""
    lines = []
    for label, comparison in comparisons.items():
        conditions = {row["condition"]: row for row in comparison["conditions"]}
        cells = [
            label,
            *(
                interval(contrast(comparison, condition, reference, metric))
                for condition, reference, metric in (
                    ("text", "random", "own"),
                    ("text", "unclustered", "own"),
                    ("text", "unclustered", "worst"),
                    ("text", "unclustered", "cross"),
                    ("oracle", "unclustered", "own"),
                    ("ifca", "unclustered", "own"),
                )
            ),
            f"{conditions['text']['ari']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def prose(comparisons: Mapping[str, Row]) -> list[str]:
    """Return the sentences of the page on the comparisons."""
    conditions = {label: {row["condition"]: row for row in comparison["conditions"]} for label, comparison in comparisons.items()}
    contrasts = {
        label: {
            (condition, reference, metric): contrast(comparison, condition, reference, metric)
            for condition in conditions[label]
            for reference in ("random", "unclustered")
            for metric in ("own", "cross", "worst")
        }
        for label, comparison in comparisons.items()
    }
    text_random = {label: rows["text", "random", "own"] for label, rows in contrasts.items()}
    text_unclustered = {label: rows["text", "unclustered", "own"] for label, rows in contrasts.items()}
    gains = [-row["effect"] for row in text_random.values()]
    percent = [-100 * math.expm1(-gain) for gain in gains]
    assert {label for label, row in text_random.items() if row["p"] > 0.05} == {"Reddit, 20"}
    assert {label for label, row in text_unclustered.items() if row["high"] < 0 or row["low"] > 0} == {"BBC News, 20"}
    rises = [rows["text"]["general"] / rows["unclustered"]["general"] for rows in conditions.values()]
    update_runs = [run for comparison in comparisons.values() for run in comparison["runs"] if run["condition"] == "update"]
    assert all(run["models"] == 1 for run in update_runs)
    ifca = [rows["ifca"] for rows in conditions.values()]
    (num_bytes,) = {decision["bytes"] for comparison in comparisons.values() for decision in comparison["clusters"]}
    for comparison in comparisons.values():
        assert all(decision["verdict"] == "stable" and decision["k"] == decision["estimated_k"] for decision in comparison["clusters"])
    ten_client_comparisons = [comparison for label, comparison in comparisons.items() if label.endswith("10")]
    for comparison in ten_client_comparisons:
        row = next(row for row in comparison["failures"] if row["failure"] == "forgetting of general text")
        assert {condition for condition, grade in row.items() if grade == "confirmed"} == {"local-only"}

    def own(rows: Row, condition: str) -> float:
        return rows[condition, "unclustered", "own"]["effect"]

    return [
        "With 10 clients, all of them take part in every round. With 20 clients, 10 take part in each round.",
        "with 95 % t-intervals. Negative values are better.",
        f"With six seeds the smallest possible p-value is {p(min_p(6))} for a single comparison.",
        "the adjusted Rand index is 1 and all bootstraps are stable",
        f"it costs {num_bytes:,} bytes per client",
        f"The gain is {value_range(gains, '.3f')} nats, or {min(percent):.0f} to {max(percent):.1f} % of perplexity, with p = {p(min_p(6))}."
        f" The exception is Reddit with 20 clients (p = {p(text_random['Reddit, 20']['p'])}).",
        f"Only on BBC News with 20 clients is the difference significant ({signed(text_unclustered['BBC News, 20']['effect'])} nats, "
        f"p = {p(text_unclustered['BBC News, 20']['p'])}).",
        f"Random clusters show this cost alone: {value_range(own(rows, 'random') for rows in contrasts.values())} nats.",
        f"by {value_range(rows['text', 'unclustered', 'cross']['effect'] for rows in contrasts.values())} nats. The loss on general"
        f" text rises {min(rises):.1f} to {max(rises):.1f} times as much as under unclustered FedAvg.",
        f"gains on BBC News with 10 clients ({signed(contrasts['BBC News, 10']['text', 'unclustered', 'worst']['effect'])} nats) and"
        f" loses on Reddit with 10 clients ({signed(contrasts['Reddit, 10']['text', 'unclustered', 'worst']['effect'])} nats).",
        f"It costs {min(row['compute'] for row in ifca):.1f} to {max(row['compute'] for row in ifca):.1f} times the compute of unclustered FedAvg per start."
        f" It ends with {min(row['models'] for row in ifca):.0f} to {max(row['models'] for row in ifca):.0f} models, whose ARI with the"
        f" topics is {value_range((row['ari'] for row in ifca), '.2f')}.",
        f"on own text ({value_range(own(rows, 'centralized') for rows in contrasts.values())} nats over unclustered FedAvg)",
        "With 10 clients `forgetting of general text` is confirmed for `local-only` on every corpus",
    ]


def map_tables(map_result: Row) -> list[str]:
    """Return the rows of the map's two tables and the sentences about them."""
    rows = map_result["map"]
    assert {row["random.seeds"] for row in rows} == {3.0}
    (smallest_p,) = {row["random.min_attainable_p"] for row in rows}
    (chance,) = {row["chance"] for row in rows}
    return [
        "The data are BBC News with 10 clients",
        f"With three seeds the smallest possible p-value is {smallest_p:g}",
        f"identified (chance {chance:.2f})",
        *(
            f"| {row['partition']} | {row['severity']:g} | {interval(row, prefix='random.')} | {interval(row, prefix='unclustered.')} |"
            f" {signed(row['own'])} | {row['identification_rate']:.2f} | {row['estimated_k']:.0f} |"
            for row in rows
        ),
        *(f"| {row['k']} | {interval(row)} |" for row in map_result["cluster_size"]),
    ]


def style_claims(style: Row) -> list[str]:
    """Return the table and the sentences about the repeated comparison under style skew."""
    check_contrasts(style)
    conditions = {row["condition"]: row for row in style["conditions"]}
    rows = {
        (condition, reference, metric): contrast(style, condition, reference, metric)
        for condition in conditions
        for reference in ("random", "unclustered")
        for metric in ("own", "worst", "cross")
    }
    drops = [-100 * math.expm1(rows["text", reference, "own"]["effect"]) for reference in ("unclustered", "random")]
    seeds = style["seeds"]
    return [
        f"Style skew at severity 1 was run again with six other seeds ({seeds[0]} to {seeds[-1]})",
        *(
            f"| {reference} | {interval(rows['text', reference, 'own'])}, p = {p(rows['text', reference, 'own']['p'])} |"
            f" {interval(rows['text', reference, 'worst'])} | {interval(rows['text', reference, 'cross'])} |"
            for reference in ("random", "unclustered")
        ),
        f"by {drops[0]:.0f} % relative to unclustered FedAvg and by {drops[1]:.0f} % relative to random",
        f"clusters raise its loss by {conditions['text']['general']:.3f} nats, unclustered FedAvg by {conditions['unclustered']['general']:.3f} nats.",
        f"Random clusters help a little too ({signed(rows['random', 'unclustered', 'own']['effect'])} nats relative to unclustered FedAvg)",
    ]
