"""docs/clustering.md and docs/clustering-tables.md, from benchmarks/results/clustering-*.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fedrift.stats import mean_ci, min_p, sign_flip_test

from .stores import ROOT, result, signed

CONTESTS = {
    "BBC News, 10": "bbc-10",
    "AG News, 10": "ag_news-10",
    "Reddit, 10": "reddit_topics-10",
    "BBC News, 20": "bbc-20",
    "AG News, 20": "ag_news-20",
    "Reddit, 20": "reddit_topics-20",
}
Row = Mapping[str, Any]


def contests() -> dict[str, dict[str, Any]]:
    return {name: result(f"clustering-{file}") for name, file in CONTESTS.items()}


def interval(row: Row | None, digits: int = 3, prefix: str = "") -> str:
    """``-0.013 (-0.020 to -0.006)``; empty without a row."""
    if row is None:
        return ""
    effect, low, high = (signed(row[f"{prefix}{end}"], digits) for end in ("effect", "low", "high"))
    return f"{effect} ({low} to {high})"


def p(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def contrast(contest: Row, condition: str, reference: str, metric: str) -> Row | None:
    return next((row for row in contest["contrasts"][reference][metric] if row["condition"] == condition), None)


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def tables() -> list[str]:
    """Every row of clustering-tables.md."""
    found = []
    for contest in contests().values():
        for row in contest["conditions"]:
            if row["condition"] == "ifca best" and len({run["number"] for run in contest["runs"] if run["condition"] == "ifca"}) == 1:
                continue  # of one start the best is the mean
            random, vanilla = (contrast(contest, row["condition"], reference, "own") for reference in ("random", "vanilla"))
            cells = [
                row["condition"],
                f"{row['own']:.4f}",
                interval(random),
                p(random["p"]) if random else "",
                interval(vanilla),
                p(vanilla["p"]) if vanilla else "",
                interval(contrast(contest, row["condition"], "vanilla", "worst")),
                interval(contrast(contest, row["condition"], "vanilla", "cross")),
                number(row["general"], "+.3f"),
                number(row["compute"], ".2f"),
                number(row["traffic"], ".1f"),
                number(row["models"], ".1f"),
                number(row["ari"], ".2f"),
            ]
            found.append("| " + " | ".join(cells) + " |")
    return found


def checked(contest: Row) -> None:
    """That the stored comparisons are those of the stored runs: paired by seed, repeats averaged."""
    runs = pd.DataFrame(contest["runs"])
    own = runs[runs["condition"] != "iid"].groupby(["condition", "seed"])["own"].mean().unstack("condition")
    for reference, metrics in contest["contrasts"].items():
        for row in metrics["own"]:
            d = mean_ci((own[row["condition"]] - own[reference]).to_numpy())
            assert np.allclose([d.estimate, d.low, d.high], [row["effect"], row["low"], row["high"]], atol=3e-6), (reference, row)
            assert row["p"] == sign_flip_test((own[row["condition"]] - own[reference]).to_numpy().round(9)).value or row["effect"] == 0
    assert {name for name, row in runs.groupby("condition")["seed"].nunique().items() if row != len(contest["seeds"])} == set()


def every_table() -> list[str]:
    """All that clustering-tables.md says."""
    every = contests()
    for contest in every.values():
        checked(contest)
    (seeds,) = {len(contest["seeds"]) for contest in every.values()}
    return [
        *tables(),
        *(f"## {name} clients" for name in CONTESTS),
        "95 % t-intervals",
        f"{p(min_p(seeds))} is the least that six seeds can give",
        "fedrift 0.1.0, torch 2.13.0+cpu",
    ]


def span(values: Iterable[float], form: str = "+.3f") -> str:
    """``+.030 to +.046``."""
    every = sorted(values)
    least, most = (format(value, form).replace("0.", ".", 1) for value in (every[0], every[-1]))
    return f"{least} to {most}"


def page() -> list[str]:
    """What clustering.md says of these results."""
    every, mapped, style = contests(), result("clustering-map"), result("clustering-bbc-style-10")
    base = yaml.safe_load((ROOT / "experiments" / "clustering.yaml").read_text())
    plan, estimated_k = base["training"], {row["severity"]: row["estimated_k"] for row in mapped["map"] if row["partition"] == "topic"}
    return [
        *main_table(every),
        *prose(every),
        *map_tables(mapped),
        *styles(style),
        f"On BBC News with {base['partition']['num_clients']} clients and `wordllama`, `TopicMix` at severity 0 is {estimated_k[0.0]:.0f} group, at"
        f" 0.5 and at 1 it is {estimated_k[0.5]:.0f}, as many as there are topics.",
        "`cluster.ari` is 1 at severity 0 too",
        f"LoRA of rank {base['trainable']['r']}, clients of one topic each (`TopicMix`, severity {base['partition']['severity']:g}),"
        f" {plan['num_rounds']} rounds of {plan['local_steps']} steps of {plan['batch_size']} x"
        f" {plan['max_seq_length']} tokens",
    ]


def main_table(every: Mapping[str, Row]) -> list[str]:
    found = []
    for name, contest in every.items():
        conditions = {row["condition"]: row for row in contest["conditions"]}
        cells = [
            name,
            *(
                interval(contrast(contest, condition, reference, metric))
                for condition, reference, metric in (
                    ("text", "random", "own"),
                    ("text", "vanilla", "own"),
                    ("text", "vanilla", "worst"),
                    ("text", "vanilla", "cross"),
                    ("oracle", "vanilla", "own"),
                    ("ifca", "vanilla", "own"),
                )
            ),
            f"{conditions['text']['ari']:.2f}",
        ]
        found.append("| " + " | ".join(cells) + " |")
    return found


def prose(every: Mapping[str, Row]) -> list[str]:
    conditions = {name: {row["condition"]: row for row in contest["conditions"]} for name, contest in every.items()}
    against = {
        name: {
            (condition, reference, metric): contrast(contest, condition, reference, metric)
            for condition in conditions[name]
            for reference in ("random", "vanilla")
            for metric in ("own", "cross", "worst")
        }
        for name, contest in every.items()
    }
    text_random = {name: rows["text", "random", "own"] for name, rows in against.items()}
    text_vanilla = {name: rows["text", "vanilla", "own"] for name, rows in against.items()}
    gains = [-row["effect"] for row in text_random.values()]
    percent = [-100 * math.expm1(-gain) for gain in gains]
    assert {name for name, row in text_random.items() if row["p"] > 0.05} == {"Reddit, 20"}
    assert {name for name, row in text_vanilla.items() if row["high"] < 0 or row["low"] > 0} == {"BBC News, 20"}
    rises = [rows["text"]["general"] / rows["vanilla"]["general"] for rows in conditions.values()]
    update = [entry for contest in every.values() for entry in contest["runs"] if entry["condition"] == "update"]
    assert all(entry["models"] == 1 for entry in update)
    ifca = [rows["ifca"] for rows in conditions.values()]
    (sent,) = {entry["bytes"] for contest in every.values() for entry in contest["clusters"]}
    for contest in every.values():
        assert all(entry["verdict"] == "stable" and entry["k"] == entry["estimated_k"] for entry in contest["clusters"])
    tens = [contest for name, contest in every.items() if name.endswith("10")]
    for contest in tens:
        row = next(row for row in contest["failures"] if row["failure"] == "forgetting of general text")
        assert {condition for condition, grade in row.items() if grade == "confirmed"} == {"local"}

    def own(rows: Row, condition: str) -> float:
        return rows[condition, "vanilla", "own"]["effect"]

    return [
        "10 clients all in every round, 20 clients ten at a time",
        "95 % t-intervals; below",
        f"six seeds can call is p = {p(min_p(6))} for",
        "adjusted Rand index 1, all bootstraps stable",
        f"for {sent:,} bytes a client",
        f"{span(gains, '.3f')} nats, {min(percent):.0f} to {max(percent):.1f} % of perplexity, p = {p(min_p(6))} but on Reddit with 20"
        f" clients (p = {p(text_random['Reddit, 20']['p'])})",
        f"Only on BBC News with 20 clients ({signed(text_vanilla['BBC News, 20']['effect']).replace('0.', '.')}, "
        f"p = {p(text_vanilla['BBC News, 20']['p'])})",
        f"Random clusters show the price alone: {span(own(rows, 'random') for rows in against.values())}.",
        f"{span(rows['text', 'vanilla', 'cross']['effect'] for rows in against.values())} on other topics' text, and the loss on general"
        f" text rises {min(rises):.1f} to {max(rises):.1f} times as much",
        f"gains on BBC News with 10 clients ({signed(against['BBC News, 10']['text', 'vanilla', 'worst']['effect']).replace('0.', '.')}) and"
        f" loses on Reddit with 10 ({signed(against['Reddit, 10']['text', 'vanilla', 'worst']['effect']).replace('0.', '.')}).",
        f"IFCA costs {min(row['compute'] for row in ifca):.1f} to {max(row['compute'] for row in ifca):.1f} times vanilla's compute a start,"
        f" ends with {min(row['models'] for row in ifca):.0f} to {max(row['models'] for row in ifca):.0f} models, agrees with the topics by"
        f" {span((row['ari'] for row in ifca), '.2f')} and is",
        f"on own text ({span(own(rows, 'pooled') for rows in against.values())} over vanilla)",
        "with 10 clients `forgetting of general text` is confirmed for `local` on every corpus",
    ]


def map_tables(mapped: Row) -> list[str]:
    rows = mapped["map"]
    assert {row["random.seeds"] for row in rows} == {3.0} and {row["random.min_attainable_p"] for row in rows} == {0.25}
    (chance,) = {row["chance"] for row in rows}
    return [
        "BBC News, 10 clients, four",
        f"identified ({chance:.2f}".replace("0.", ".") + " is chance)",
        *(
            f"| {row['partition']} | {row['severity']:g} | {interval(row, prefix='random.')} | {interval(row, prefix='vanilla.')} |"
            f" {signed(row['own'])} | {row['identification_rate']:.2f} | {row['estimated_k']:.0f} |"
            for row in rows
        ),
        *(f"| {row['k']} | {interval(row)} |" for row in mapped["cluster_size"]),
    ]


def styles(style: Row) -> list[str]:
    checked(style)
    conditions = {row["condition"]: row for row in style["conditions"]}
    rows = {
        (condition, reference, metric): contrast(style, condition, reference, metric)
        for condition in conditions
        for reference in ("random", "vanilla")
        for metric in ("own", "worst", "cross")
    }
    drops = [-100 * math.expm1(rows["text", reference, "own"]["effect"]) for reference in ("vanilla", "random")]
    seeds = style["seeds"]
    return [
        f"Style at severity 1 was run again over six seeds of its own ({seeds[0]} to {seeds[-1]})",
        *(
            f"| {reference} | {interval(rows['text', reference, 'own'])}, p = {p(rows['text', reference, 'own']['p'])} |"
            f" {interval(rows['text', reference, 'worst'])} | {interval(rows['text', reference, 'cross'])} |"
            for reference in ("random", "vanilla")
        ),
        f"by {drops[0]:.0f} % of perplexity over vanilla and {drops[1]:.0f} % over random",
        f"General text pays: {conditions['text']['general']:+.3f} nats against {conditions['vanilla']['general']:+.3f}.".replace(
            "+0.", "+."
        ),
        f"a little too ({signed(rows['random', 'vanilla', 'own']['effect'])} under vanilla)".replace("-0.", "-."),
    ]
