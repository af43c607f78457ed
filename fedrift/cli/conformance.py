"""The command ``conformance``, which tests implementations of federated algorithms."""

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
        "Or a suite for fedrift's own algorithms. `scoreboard`: check every algorithm against the papers' equations (seconds). "
        "`quick`: reproduce published results that have closed forms (seconds). `published`: reproduce these and the FedProx and "
        "SCAFFOLD results on synthetic data (minutes). `native`: use the synthetic data with its client sizes as drawn (long). "
        "Default: `scoreboard`.",
    ),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")]


def conformance(targets: Targets = None, markdown: Markdown = False, as_json: Json = False) -> None:
    """Test implementations of federated algorithms against the equations and results of their papers.

    `fedrift conformance` checks every algorithm of fedrift. `fedrift conformance published` reproduces published results.

    `fedrift conformance my_app.strategy:MyStrategy` checks your own Flower strategy, and `fedrift conformance mine.py:SUBJECT` any other
    implementation.

    The command prints one verdict per problem and writes no files. The exit code is 1 if a verdict is wrong.
    """
    from ..conformance import judge
    from ..conformance.published import RESULT_SETS
    from ..conformance.subjects import FEDRIFT_SUBJECTS

    suite, subjects = split_targets(targets or [])
    if subjects or suite == "scoreboard":
        if suite != "scoreboard":
            raise typer.BadParameter(f"the suite {suite} tests only fedrift's own algorithms; leave it out or remove your implementation")
        implementations = [each for path in subjects for each in load_targets(path)] if subjects else FEDRIFT_SUBJECTS
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


def split_targets(targets: list[str]) -> tuple[str, list[str]]:
    """Return the suite and the import paths of the implementations to test."""
    suites = [each for each in targets if ":" not in each]
    if len(suites) > 1 or not set(suites) <= set(SUITES):
        odd = next((each for each in suites if each not in SUITES), " ".join(suites))
        raise typer.BadParameter(f"{odd!r} is neither MODULE:NAME nor one of the suites {', '.join(SUITES)}")
    return (suites or ["scoreboard"])[0], [each for each in targets if ":" in each]


def load_targets(path: str) -> list[Any]:
    """Return the subjects at an import path; a Flower strategy class is wrapped as one."""
    from importlib.util import find_spec

    from ..conformance.subjects import load_subjects
    from ..core.registry import import_object, is_import_path

    if is_import_path(path) and isinstance(found := import_object(path), type) and find_spec("flwr") is not None:
        from ..flower.conformance import is_strategy, make_subject

        if is_strategy(found):
            return [make_subject(found)]
    return load_subjects(path)


def print_scoreboard(verdicts: list[Verdict]) -> None:
    """Print the scoreboard: one line per implementation and problem."""
    from rich.console import Console

    from .tables import print_table

    labels = {True: "right", False: "WRONG", None: "not tested"}
    rows = [
        (f"{v.subject} {v.version}", v.algorithm, v.problem, labels[v.holds], f"{v.expected:.6g}", f"{v.observed:.6g}", v.message)
        for v in verdicts
    ]
    columns = ("implementation", "algorithm", "problem", "verdict", "expected", "found", "message")
    print_table(Console(highlight=False), columns, rows, num_key_columns=3)
    tested = [v for v in verdicts if v.holds is not None]
    typer.echo(f"{sum(bool(v.holds) for v in tested)} of {len(tested)} verdicts are right.")


def print_outcomes(outcomes: list[Expectation]) -> None:
    """Print the reproduced results beside the published ones."""
    from rich.console import Console

    from ..conformance.judge import holds_text
    from .tables import print_table

    rows = [(o.test, o.description, o.expected, o.observed, holds_text(o)) for o in outcomes]
    print_table(Console(highlight=False), ("test", "description", "expected", "found", ""), rows)
