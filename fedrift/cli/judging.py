"""Commands that judge implementations: conform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Json, print_json

if TYPE_CHECKING:
    from ..conform import Verdict
    from ..conform.outcome import Outcome

What = Annotated[Literal["scoreboard", "quick", "published", "native"], typer.Argument(
    help="`scoreboard`: every algorithm here against the papers' equations, and the planted bugs (seconds). "
         "`quick`: published results with closed forms (seconds). `published`: these, and FedProx's and SCAFFOLD's on "
         "synthetic data (minutes). `native`: the synthetic data with its sizes as drawn (long).")]
Subjects = Annotated[list[str] | None, typer.Option(
    "--subject", metavar="MODULE:NAME", help="Judge this instead: `fedrift.conform.peers.flower:FLOWER`, or your own "
                                             "`mine.py:SUBJECT`. May be said more than once.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown, for documents.")]


def conform(what: What = "scoreboard", subject: Subjects = None, markdown: Markdown = False, as_json: Json = False) -> None:
    """Judge federated algorithms, ours or others', by the papers' equations and results; exit code 1 if one fails."""
    from ..conform import judge, outcome
    from ..conform.subjects import subjects
    from ..conform.suite import OURS, RESULTS, bugs_table, planted

    if subject or what == "scoreboard":
        if what != "scoreboard":
            raise typer.BadParameter(f"{what} judges fedrift's own algorithms; leave it out with --subject")
        asked = [each for where in subject for each in subjects(where)] if subject else OURS
        verdicts, seen = judge.scoreboard(asked), [] if subject else planted()
        if as_json:
            bugs = [{"algorithm": bug.algorithm, "bug": bug.name, "seen_by": [v.problem for v in found]} for bug, found in seen]
            print_json({"verdicts": [vars(v) for v in verdicts], "planted": bugs})
        elif markdown:
            typer.echo("\n\n".join([judge.table(verdicts), *([bugs_table(seen)] if seen else [])]))
        else:
            on_screen(verdicts)
            if seen:
                typer.echo(f"{sum(bool(found) for _, found in seen)} of {len(seen)} planted bugs were seen.")
        fails = any(v.holds is False for v in verdicts) or not all(found for _, found in seen)
    else:
        outcomes = list(RESULTS[what](lambda said: typer.echo(said, err=True)))
        if as_json:
            print_json([vars(o) for o in outcomes])
        elif markdown:
            typer.echo(outcome.table(outcomes))
        else:
            expected_and_found(outcomes)
        fails = not all(o.holds for o in outcomes)
    if fails:
        raise typer.Exit(1)


def on_screen(verdicts: list[Verdict]) -> None:
    """The scoreboard, a line a problem."""
    sign = {True: "right", False: "WRONG", None: "not asked"}
    drawn("implementation", "algorithm", "problem", "verdict", "expected", "found", "what was said", rows=[
        (f"{v.subject} {v.version}", v.algorithm, v.problem, sign[v.holds], f"{v.expected:.6g}", f"{v.found:.6g}", v.said)
        for v in verdicts])
    asked = [v for v in verdicts if v.holds is not None]
    typer.echo(f"{sum(bool(v.holds) for v in asked)} of {len(asked)} verdicts are right.")


def expected_and_found(outcomes: list[Outcome]) -> None:
    from ..conform.outcome import sign

    drawn("test", "what", "expected", "found", "", rows=[
        (o.test, o.what, o.expected, o.found, sign(o)) for o in outcomes])


def drawn(*columns: str, rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


COMMANDS = [conform]
