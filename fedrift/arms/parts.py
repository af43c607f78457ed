"""What is told of a contest and of a map, table by table, and all of it as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..statistics.evidence import ALPHA
from .numbers import METRICS
from .page import Part, number, pvalue
from .table import COMPARED, REFERENCES, Found, grades, percent, silent, title

DIGITS = {"own": 4, "worst": 4, "cross": 4, "next": 4, "general": 4, "syntax": 3, "compute": 2, "traffic": 2, "models": 1,
          "ari": 2}
LOSSES = ("own", "worst", "cross", "next")


def parts(found: Found) -> list[Part]:
    """Everything that is told, in its order. Rows bear the names that ``--arms`` takes: titles would not fit a screen."""
    every = "; ".join(f"{name}: {title(name)}" for name in found.arms)
    columns = "; ".join(f"{name}: {words}" for name, words in METRICS.values())
    return [Part(found.name, f"{found.limits()} {sentence(found)}"),
            arms(found, "Losses", LOSSES, "Means over seeds, nats per token; perplexity in brackets."),
            arms(found, "Costs", [name for name in METRICS if name not in LOSSES], "Means over seeds."), *compared(found),
            clusters(found), failures(found), Part("What the arms are", f"{every}."), Part("What the columns are", f"{columns}.")]


def arms(found: Found, heading: str, metrics: Sequence[str], words: str) -> Part:
    rows = []
    for row in found.means().to_dict("records"):
        cells = [row["arm"]]
        for metric in metrics:
            value = number(row[metric], DIGITS[metric], plus=metric in ("general", "syntax"))
            if metric in COMPARED and math.isfinite(row[metric]):
                value += f" ({math.exp(row[metric]):.1f})"
            cells.append(value)
        rows.append(cells)
    return Part(heading, words, ["arm", *(METRICS[metric][0] for metric in metrics)], rows)


def compared(found: Found) -> list[Part]:
    made = []
    for reference in REFERENCES:
        for metric in COMPARED:
            table = found.contrasts(metric, reference)
            if not len(table):
                continue
            rows = [[row["arm"], number(row["effect"], 4, plus=True), between(row),
                     f"{percent(row['effect']):+.2f} %" if math.isfinite(row["effect"]) else "",
                     pvalue(row["p"], row["attainable"]), pvalue(row["holm"], row["attainable"]), str(row["seeds"]),
                     str(row["diverged"])]
                    for row in table.to_dict("records")]
            made.append(Part(
                f"{METRICS[metric][0].capitalize()}, less {reference}",
                "Below zero is better. Mean paired difference in nats per token, 95 % t-interval, the same as a change of "
                "perplexity (PPL), exact sign-flip p, and the p corrected for all rows (Holm). Where runs diverged on one side "
                "it is the median, its interval and signed ranks; seeds in which both sides diverged are left out.",
                ["arm", "mean", "95 % interval", "PPL", "p", "Holm", "seeds", "diverged"], rows))
    return made


def clusters(found: Found) -> Part:
    rows = [[str(said["seed"]), str(said.get("k")), sizes(said), number(said.get("p_value"), 2),
             number(said.get("silhouette"), 2), number(said.get("identified"), 2), number(said.get("stability"), 2),
             str(said.get("verdict", ""))] for said in found.decisions]
    words = str(found.decisions[0].get("privacy", "")) if found.decisions else "No run has text clusters."
    words += (" p: of the permutation of documents; identified: documents that are nearest to their own client's mean; "
              "bootstraps: their mean pairwise adjusted Rand index.") if rows else ""
    return Part("The text clusters", words,
                ["seed", "k", "sizes", "p", "silhouette", "identified", "bootstraps", "verdict"], rows)


def map_parts(gains: pd.DataFrame, starved: pd.DataFrame) -> list[Part]:
    """The tables of a map."""
    rows = [[str(row["regime"]), f"{row['severity']:g}", number(row.get("random.effect"), 4, plus=True), between(row, "random."),
             pvalue(row.get("random.p", math.nan), row.get("random.attainable", 1.0)),
             number(row.get("vanilla.effect"), 4, plus=True), number(row["own"], 4, plus=True), number(row["p"], 2),
             f"{row['identified']:.2f} ({row['chance']:.2f})", number(row["counted"], 0), number(row.get("random.seeds"), 0)]
            for row in gains.to_dict("records")]
    cost = [[str(row["k"]), number(row["effect"], 4, plus=True), between(row), pvalue(row["p"], row["attainable"]),
             str(row["seeds"])] for row in starved.to_dict("records")]
    return [
        Part("Where text clusters help", "Loss of text clusters less that of random clusters of the same sizes, nats per token; "
             "below zero they help. Next text is what clients are about to train on; held-out own text is drawn by domain "
             "and knows no token skew. Beside it what the descriptors know: p of the permutation of documents, how often a "
             "document is nearest to its own client's mean (chance), and how many clusters would have been chosen. Each p is "
             "of its own row: none is corrected for the number of rows.",
             ["regime", "severity", "less random, next text", "95 % interval", "p", "less vanilla", "less random, own text",
              "p of the permutation", "identified (chance)", "k chosen", "seeds"], rows),
        Part("What fewer clients to a model cost", "Random clusters on IID deals, less one model for all, on own text: nothing "
             "but the smaller pool differs. No p is corrected for the number of rows.",
             ["clusters", "difference", "95 % interval", "p", "seeds"], cost)]


def between(row: Mapping[Any, Any], prefix: str = "") -> str:
    low, high = row.get(f"{prefix}low", math.nan), row.get(f"{prefix}high", math.nan)
    return "" if math.isnan(low) else f"{low:+.4f} to {high:+.4f}"


def sizes(said: dict[str, Any]) -> str:
    held = pd.Series(said.get("group", [])).value_counts()
    return ", ".join(str(count) for count in sorted(held, reverse=True))


def failures(found: Found) -> Part:
    table = grades(found.judgements)
    rows = [[arm, *table[arm]] for arm in found.arms if arm in table]
    words = ("Before is vanilla, after each mitigation; beside vanilla's IID twin, the pooled run and everybody alone, first "
             "repeats.")
    if found.judgements.get("vanilla"):
        none, missing = silent(found.judgements["vanilla"])
        words += (f" In vanilla looked for and not found: {', '.join(none) or 'nothing'}; not measured: "
                  f"{', '.join(missing) or 'nothing'}.")
    if not rows:
        words += " No arm shows a failure."
    stopped = f" Not finished, and not in any table: {'; '.join(found.failures)}." if found.failures else ""
    return Part("Failures", words + stopped, ["arm", *table["failure"]] if rows else (), rows)


def sentence(found: Found) -> str:
    """The answer in words: text clusters against random ones and against vanilla, and the share of the oracle's gain."""
    told = []
    for reference in REFERENCES:
        table = found.contrasts("own", reference)
        mine = table[table["arm"] == "text"] if len(table) else table
        for row in mine.to_dict("records"):
            told.append(against_in_words(row, reference))
    share = found.recovered()
    if math.isfinite(share.estimate):
        if math.isfinite(share.high - share.low):
            told.append(f"They recover {share.estimate:.0%} of the oracle's gain over vanilla ({share.low:.0%} to "
                        f"{share.high:.0%}).")
        else:
            told.append("The oracle itself gains nothing over vanilla that so many seeds could show: there is no share of it to "
                        "tell.")
    if found.decisions and all(said.get("k") == 1 for said in found.decisions):
        told.append("In every seed one cluster was chosen: text clusters are vanilla.")
    return " ".join(told)


def against_in_words(row: Mapping[Any, Any], reference: str) -> str:
    """Better or worse only where a single comparison at .05 calls it: too few seeds can call nothing, whatever their interval."""
    lead = f"On their own text, text clusters are {{}} {title(reference)}"
    if math.isnan(row["effect"]):
        return (f"Text clusters cannot be compared with {title(reference)}: in {row['tied']} seeds runs of both diverged."
                if row["tied"] else f"Text clusters cannot be compared with {title(reference)}: no seed has both.")
    called = max(row["p"], row["attainable"]) <= ALPHA
    verdict = "not told apart from" if not called else "better than" if row["effect"] < 0 else "worse than"
    size = [f"{row['effect']:+.4f} nats", between(row), f"p = {pvalue(row['p'], row['attainable'])}"]
    seen = f"; {row['detectable']:.3g} would have been seen with 80 % power" if math.isfinite(row["detectable"]) else ""
    return f"{lead.format(verdict)} ({', '.join(filter(None, size))}{seen})."


def plain(found: Found, command: str = "") -> dict[str, Any]:
    """Everything as JSON: every run, every comparison, what was decided and what was judged."""
    comparisons = {reference: {metric: records(found.contrasts(metric, reference)) for metric in COMPARED}
                   for reference in REFERENCES}
    share = found.recovered()
    return {"study": found.name, "command": command, "seeds": list(found.seeds), "limits": found.limits(),
            "says": sentence(found), "metrics": {key: list(words) for key, words in METRICS.items()},
            "arms": records(found.means()),
            "less": comparisons,
            "recovered": {end: finite(getattr(share, end)) for end in ("estimate", "low", "high")},
            "clusters": [{key: value for key, value in said.items() if key not in ("documents", "privacy")}
                         for said in found.decisions],
            "failures": records(grades(found.judgements)), "stopped": list(found.failures), "runs": records(found.rows)}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): finite(value) for key, value in row.items()} for row in frame.to_dict("records")]


def finite(value: Any) -> Any:
    """A number of Python, with all its digits; NaN is None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


__all__ = ["map_parts", "parts", "plain", "records", "sentence"]
