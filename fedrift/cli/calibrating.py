"""The command that judges the detectors: calibrate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .options import Json, Threads, print_json

if TYPE_CHECKING:
    from ..calibrate.plants import Plant
    from ..detectors.finding import Case

    Healthy = dict[str, Callable[[int], Case]]

Collection = Annotated[Literal["analytic", "sandbox", "lm"], typer.Option(
    "--collection", help="`analytic`: quadratics, adapters, drawn states (about three minutes). `sandbox`: a tiny language model "
                         "on a made-up language (about ten). `lm`: `pocket` on news (longer).")]
Out = Annotated[Path | None, typer.Option("--out", help="A folder for calibration-COLLECTION.json.")]
Page = Annotated[Path | None, typer.Option("--page", help="A Markdown file to be made of all calibrations in that folder.")]
Kept = Annotated[Path | None, typer.Option(
    "--keep", help="Where runs of language models are kept, so that a stopped calibration goes on; the cache if not said.")]


def calibrate(
    collection: Collection = "analytic",
    quick: Annotated[bool, typer.Option("--quick", help="Five seeds of healthy runs in place of twenty.")] = False,
    tune: Annotated[bool, typer.Option("--tune", help="Only false alarms, on the seeds that thresholds may be set by.")] = False,
    out: Out = None, page: Page = None, keep: Kept = None, threads: Threads = None, as_json: Json = False,
) -> None:
    """Are the detectors right? Runs healthy and planted collections: false alarms with their interval, recall, lead in rounds.

    Exits with 1 if a planted failure is missed, or something is confirmed that was not planted.

    `fedrift calibrate --collection sandbox --out results`
    """
    from ..calibrate.page import markdown, plain, recorded
    from ..calibrate.score import GROUP, REPORT, TUNE, false_alarms, recall
    from ..diagnose.telling import cleaned

    healthy, plants = chosen(collection, keep, threads)
    seeds = (TUNE if tune else REPORT)[:GROUP if quick else None]
    wanted = [] if tune else plants
    with told(len(healthy) * len(seeds) + len(wanted) * GROUP) as say:
        alarms = false_alarms(healthy, seeds, say)
        recalls = recall(wanted, say=say)
    numbers = plain(collection, alarms, recalls)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"calibration-{collection}.json").write_text(json.dumps(cleaned(numbers), indent=1) + "\n")
        if page is not None:
            page.write_text(markdown(recorded(out)))
    if as_json:
        print_json(numbers)
    else:
        typer.echo(markdown([cleaned(numbers)]))
    if any(each.grade != "confirmed" or each.off_target for each in recalls):
        raise typer.Exit(1)


def chosen(collection: str, keep: Path | None, threads: int | None) -> tuple[Healthy, tuple[Plant, ...]]:
    """The healthy and the planted cases of a collection."""
    if collection == "analytic":
        from ..calibrate.healthy import COLLECTIONS
        from ..calibrate.plants import PLANTS

        return COLLECTIONS, PLANTS
    from ..calibrate.grounds import GROUNDS
    from ..calibrate.grown import healthy, plants
    from ..runtime import Runtime
    from ..stock import Stock

    runtime = Runtime(device="cpu", threads=threads, say=lambda message: typer.echo(message, err=True))
    ground = GROUNDS[collection](Stock(runtime), keep or runtime.cache / "calibration" / "runs")
    return healthy(ground), plants(ground)


def told(cases: int) -> Any:
    """A bar that moves by one with every word."""
    from contextlib import contextmanager

    from .screen import Bar

    @contextmanager
    def moving() -> Any:
        with Bar(cases) as bar:
            def say(said: str) -> None:
                bar.of(said)
                bar.over(1)

            yield say

    return moving()


COMMANDS = [calibrate]
