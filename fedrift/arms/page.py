"""Tables with their words as Markdown and HTML; numbers as they are written there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from ..statistics.evidence import short


class Part(NamedTuple):
    """A heading, words, and perhaps a table under them."""

    heading: str
    words: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def markdown(told: Sequence[Part], command: str = "") -> str:
    lines = [f"`{command}`", ""] if command else []
    for place, part in enumerate(told):
        lines += [f"{'##' if place else '#'} {part.heading}", "", part.words, ""]
        if part.rows:
            lines += [f"| {' | '.join(part.columns)} |", "|" + "---|" * len(part.columns)]
            lines += [f"| {' | '.join(row)} |" for row in part.rows] + [""]
    return "\n".join(lines).rstrip() + "\n"


STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;margin:1rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.wide{overflow-x:auto}code{background:#f3f3f3;padding:.1rem .3rem}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}th,td{border-color:#333}code{background:#262626}}"""


def html(told: Sequence[Part], command: str = "") -> str:
    """One file that needs no other."""
    body = [f"<p><code>{escape(command)}</code></p>"] if command else []
    for place, part in enumerate(told):
        level = "h2" if place else "h1"
        body.append(f"<{level}>{escape(part.heading)}</{level}><p>{escape(part.words)}</p>")
        if part.rows:
            head = "".join(f"<th scope=col>{escape(name)}</th>" for name in part.columns)
            rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in part.rows)
            body.append(f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>")
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>{escape(told[0].heading)}</title><style>{STYLE}</style>{''.join(body)}</html>\n")


def number(value: Any, digits: int, plus: bool = False) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{float(value):{'+' if plus else ''}.{digits}f}"


def pvalue(p: float, attainable: float) -> str:
    """With so few seeds that no p can be below .05, the least there is is told instead."""
    if math.isnan(p):
        return ""
    return short(p) if attainable <= 0.05 else f"{short(p)}, least possible {short(attainable)}"


__all__ = ["Part", "html", "markdown", "number", "pvalue"]
