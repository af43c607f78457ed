"""Commands that judge implementations: conformance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Json, print_json

if TYPE_CHECKING:
    from ..conformance import Verdict
    from ..conformance.judge import Expectation

Suite = Annotated[
    Literal["scoreboard", "quick", "published", "native"],
    typer.Argument(
        help="`scoreboard`: every algorithm here against the papers' equations (seconds). "
        "`quick`: published results with closed forms (seconds). `published`: these, and FedProx's and SCAFFOLD's on "
        "synthetic data (minutes). `native`: the synthetic data with its sizes as drawn (long)."
    ),
]
Subjects = Annotated[
    list[str] | None,
    typer.Option(
        "--subject",
        metavar="MODULE:NAME",
        help="Judge this instead: `benchmarks.peers.flower:FLOWER`, or your own `mine.py:SUBJECT`. May be said more than once.",
    ),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown, for documents.")]


def conformance(suite: Suite = "scoreboard", subject: Subjects = None, markdown: Markdown = False, as_json: Json = False) -> None:
    """Judge federated algorithms, ours or others', by the papers' equations and results; exit code 1 if one fails."""
    from ..conformance import judge
    from ..conformance.published import RESULT_SETS
    from ..conformance.subjects import FEDRIFT_SUBJECTS, load_subjects

    if subject or suite == "scoreboard":
        if suite != "scoreboard":
            raise typer.BadParameter(f"{suite} judges fedrift's own algorithms; leave it out with --subject")
        asked = [each for where in subject for each in load_subjects(where)] if subject else FEDRIFT_SUBJECTS
        verdicts = judge.scoreboard(asked)
        if as_json:
            print_json({"verdicts": [vars(v) for v in verdicts]})
        elif markdown:
            typer.echo(judge.verdict_table(verdicts))
        else:
            print_scoreboard(verdicts)
        fails = any(v.holds is False for v in verdicts)
    else:
        outcomes = list(RESULT_SETS[suite](lambda said: typer.echo(said, err=True)))
        if as_json:
            print_json([vars(o) for o in outcomes])
        elif markdown:
            typer.echo(judge.expectation_table(outcomes))
        else:
            print_outcomes(outcomes)
        fails = not all(o.holds for o in outcomes)
    if fails:
        raise typer.Exit(1)


def print_scoreboard(verdicts: list[Verdict]) -> None:
    """The scoreboard, a line a problem."""
    sign = {True: "right", False: "WRONG", None: "not asked"}
    print_verdict_table(
        "implementation",
        "algorithm",
        "problem",
        "verdict",
        "expected",
        "found",
        "what was said",
        rows=[
            (f"{v.subject} {v.version}", v.algorithm, v.problem, sign[v.holds], f"{v.expected:.6g}", f"{v.observed:.6g}", v.message)
            for v in verdicts
        ],
    )
    asked = [v for v in verdicts if v.holds is not None]
    typer.echo(f"{sum(bool(v.holds) for v in asked)} of {len(asked)} verdicts are right.")


def print_outcomes(outcomes: list[Expectation]) -> None:
    from ..conformance.judge import holds_text

    print_verdict_table(
        "test", "what", "expected", "found", "", rows=[(o.test, o.description, o.expected, o.observed, holds_text(o)) for o in outcomes]
    )


def print_verdict_table(*columns: str, rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
