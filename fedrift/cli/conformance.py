"""Commands that judge implementations: conformance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, print_json

if TYPE_CHECKING:
    from ..conformance import Verdict
    from ..conformance.judge import Expectation

SUITES = ("scoreboard", "quick", "published", "native")
Targets = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODULE:NAME... | SUITE]",
        help="Your own implementation: a Flower strategy class (`my_app.strategy:MyStrategy`), or a subject (`mine.py:SUBJECT`). "
        "Or a suite of fedrift's own: `scoreboard`: every algorithm against the papers' equations (seconds). "
        "`quick`: published results with closed forms (seconds). `published`: these, and FedProx's and SCAFFOLD's on "
        "synthetic data (minutes). `native`: the synthetic data with its sizes as drawn (long). Default: `scoreboard`.",
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


def conformance(targets: Targets = None, subject: Subjects = None, markdown: Markdown = False, as_json: Json = False) -> None:
    """Judge federated algorithms, fedrift's or yours, by the papers' equations and results; exit code 1 if one fails.

    `fedrift conformance my_app.strategy:MyStrategy`
    """
    from ..conformance import judge
    from ..conformance.published import RESULT_SETS
    from ..conformance.subjects import FEDRIFT_SUBJECTS

    suite, subject = split_targets(targets or [], subject or [])
    if subject or suite == "scoreboard":
        if suite != "scoreboard":
            raise typer.BadParameter(f"{suite} judges fedrift's own algorithms; leave it out with --subject")
        asked = [each for where in subject for each in load_targets(where)] if subject else FEDRIFT_SUBJECTS
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


def split_targets(targets: list[str], subjects: list[str]) -> tuple[str, list[str]]:
    """The suite, and the import paths of what is to be judged."""
    suites = [each for each in targets if ":" not in each]
    if len(suites) > 1 or not set(suites) <= set(SUITES):
        odd = next((each for each in suites if each not in SUITES), " ".join(suites))
        raise typer.BadParameter(f"{odd!r} is neither MODULE:NAME nor one of the suites {', '.join(SUITES)}")
    return (suites or ["scoreboard"])[0], [*(each for each in targets if ":" in each), *subjects]


def load_targets(path: str) -> list[Any]:
    """The subjects at an import path; a Flower strategy class is made one."""
    from importlib.util import find_spec

    from ..conformance.subjects import load_subjects
    from ..core.registry import import_object, is_import_path

    if is_import_path(path) and isinstance(found := import_object(path), type) and find_spec("flwr") is not None:
        from ..flower.conformance import is_strategy, make_subject

        if is_strategy(found):
            return [make_subject(found)]
    return load_subjects(path)


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
