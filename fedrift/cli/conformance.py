"""The command ``conformance``, which tests implementations of federated algorithms."""

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
        help="`scoreboard`: check every algorithm of fedrift against the papers' equations (seconds). "
        "`quick`: reproduce published results that have closed forms (seconds). `published`: reproduce these and the FedProx and "
        "SCAFFOLD results on synthetic data (minutes). `native`: use the synthetic data with its client sizes as drawn (long)."
    ),
]
Subjects = Annotated[
    list[str] | None,
    typer.Option(
        "--subject",
        metavar="MODULE:NAME",
        help="Test this implementation instead, e.g. `benchmarks.peers.flower:FLOWER` or your own `mine.py:SUBJECT`. "
        "The option may be repeated.",
    ),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")]


def conformance(suite: Suite = "scoreboard", subject: Subjects = None, markdown: Markdown = False, as_json: Json = False) -> None:
    """Test implementations of federated algorithms against the equations and results of their papers.

    `fedrift conformance` checks every algorithm of fedrift. `fedrift conformance published` reproduces published results.

    `fedrift conformance --subject mine.py:SUBJECT` checks your own implementation.

    The command prints one verdict per problem and writes no files. The exit code is 1 if a verdict is wrong.
    """
    from ..conformance import judge
    from ..conformance.published import RESULT_SETS
    from ..conformance.subjects import FEDRIFT_SUBJECTS, load_subjects

    if subject or suite == "scoreboard":
        if suite != "scoreboard":
            raise typer.BadParameter(f"the suite {suite} tests only fedrift's own algorithms; leave it out or remove --subject")
        implementations = [each for reference in subject for each in load_subjects(reference)] if subject else FEDRIFT_SUBJECTS
        verdicts = judge.scoreboard(implementations)
        if as_json:
            print_json({"verdicts": [vars(v) for v in verdicts]})
        elif markdown:
            typer.echo(judge.verdict_table(verdicts))
        else:
            print_scoreboard(verdicts)
        has_failure = any(v.holds is False for v in verdicts)
    else:
        outcomes = list(RESULT_SETS[suite](lambda message: typer.echo(message, err=True)))
        if as_json:
            print_json([vars(o) for o in outcomes])
        elif markdown:
            typer.echo(judge.expectation_table(outcomes))
        else:
            print_outcomes(outcomes)
        has_failure = not all(o.holds for o in outcomes)
    if has_failure:
        raise typer.Exit(1)


def print_scoreboard(verdicts: list[Verdict]) -> None:
    """Print the scoreboard: one line per implementation and problem."""
    labels = {True: "right", False: "WRONG", None: "not tested"}
    print_verdict_table(
        "implementation",
        "algorithm",
        "problem",
        "verdict",
        "expected",
        "found",
        "message",
        rows=[
            (f"{v.subject} {v.version}", v.algorithm, v.problem, labels[v.holds], f"{v.expected:.6g}", f"{v.observed:.6g}", v.message)
            for v in verdicts
        ],
    )
    tested = [v for v in verdicts if v.holds is not None]
    typer.echo(f"{sum(bool(v.holds) for v in tested)} of {len(tested)} verdicts are right.")


def print_outcomes(outcomes: list[Expectation]) -> None:
    """Print the reproduced results beside the published ones."""
    from ..conformance.judge import holds_text

    print_verdict_table(
        "test",
        "description",
        "expected",
        "found",
        "",
        rows=[(o.test, o.description, o.expected, o.observed, holds_text(o)) for o in outcomes],
    )


def print_verdict_table(*columns: str, rows: list[tuple[str, ...]]) -> None:
    """Print rows as a table whose long cells wrap."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)
