"""The failure atlas: every detector against every arm, graded over seeds beside the IID twins."""

from __future__ import annotations

from collections.abc import Iterable

from ....detectors.finding import GRADES
from ....diagnose import Judgement, diagnose
from ....diagnose.cases import Shelf
from ...rows import Row
from .. import charts, maps
from ..arms import Arm, named
from ..document import Figure, Key, Missing, Panel, Section, Table
from ..dossier import Dossier
from ..numbers import NONE, between, signed
from ..parts import full_name, staged

KEYS = tuple(Key(grade, colour, "dot") for grade, (colour, _) in charts.GRADES.items())


def section(dossier: Dossier) -> Section | Missing:
    found = judgements(dossier)
    if not found:
        return Missing("Failure atlas", "no run has ended yet")
    blocks: list[Figure | Table] = []
    for stage in dossier.stages:
        panels = []
        by_colour: dict[str, list[Arm]] = {}
        for arm in stage.arms:
            if arm.place in found:
                by_colour.setdefault(stage.shade(arm), []).append(arm)
        failures = worth_a_row([each for arm in stage.arms for each in found.get(arm.place, ())])
        across = stage.rest or ((stage.colour,) if stage.colour else ())
        if not stage.rest:  # one axis: its levels side by side in one panel
            by_colour = {"": [arm for arms in by_colour.values() for arm in arms]}
        for level, arms in by_colour.items():
            rows: list[Row] = [
                {
                    "arm": arm.place,
                    "x": named(arm, across) or "all",
                    "y": each.failure,
                    "grade": each.grade,
                    "said": each.sentence[:240],
                }
                for arm in arms
                for each in found[arm.place]
                if each.failure in failures
            ]
            if rows:
                panels.append(
                    Panel(
                        level if len(by_colour) > 1 else "",
                        maps.atlas(rows, x=list(dict.fromkeys(row["x"] for row in rows)), y=failures),
                    )
                )
        if panels:
            blocks.append(
                Figure(
                    f"atlas-{stage.name}",
                    staged(
                        dossier,
                        stage,
                        "What the detectors say of each arm over its seeds. Confirmed: in most of three "
                        "seeds or more, and not in their IID twins. Suspected: worth a look. None is no certificate.",
                    ),
                    tuple(panels),
                    KEYS,
                    columns=min(2, len(panels)),
                )
            )
    every = [(stage, arm, each) for stage in dossier.stages for arm in stage.arms for each in found.get(arm.place, ())]
    called = [(stage, arm, each) for stage, arm, each in every if each.grade in ("confirmed", "suspected")]
    called.sort(key=lambda item: (item[2].grade != "confirmed", item[1].place))
    if called:
        blocks.append(
            Table(
                "findings",
                "Everything that is confirmed or suspected. Excess: the detector's number above the twin's, with its "
                "paired interval.",
                ("arm", "failure", "grade", "since", "excess", "interval", "what"),
                tuple(
                    (
                        full_name(stage, arm),
                        each.failure,
                        each.grade,
                        NONE if each.since is None else str(each.since),
                        signed(each.excess),
                        between(each.low, each.high, sign=True),
                        each.sentence,
                    )
                    for stage, arm, each in called
                ),
                frozenset({3, 4, 5}),
                tuple(arm.place for _, arm, _ in called),
                long=len(called) > 10,
            )
        )
    confirmed, suspected = ([item for item in called if item[2].grade == grade] for grade in ("confirmed", "suspected"))
    silent = {each.failure for _, _, each in every if each.grade == "not measured"} - {
        each.failure for _, _, each in every if each.grade != "not measured"
    }
    text = [
        f"Of {len(every)} judgements ({len(found)} arms, {len({each.failure for _, _, each in every})} failures) {len(confirmed)}"
        f" are confirmed and {len(suspected)} suspected."
    ]
    if not called:
        text.append(
            "No failure was found in any arm. Each judgement names the smallest effect that it would have called; smaller ones"
            " may be there."
        )
    if silent:
        text.append(f"Not measured in any arm: {', '.join(sorted(silent))}.")
    return Section("atlas", "Failure atlas", tuple(text), tuple(blocks))


def judgements(dossier: Dossier) -> dict[int, list[Judgement]]:
    """What the detectors say of each arm with a run that has ended, by the arm's place."""
    wanted = {run for arm in dossier.arms for run in (*arm.runs.values(), *arm.twins.values())}
    shelf = Shelf.of(dossier.book.run(run) for run in sorted(wanted) if run in dossier.endings)
    found = {}
    for count, arm in enumerate(dossier.arms):
        cases = []
        for seed, run in sorted(arm.runs.items()):
            if run in dossier.endings:
                twin = arm.twins.get(seed, "")
                cases.append(shelf.case(dossier.book.run(run), dossier.book.run(twin) if twin in dossier.endings else None))
        if cases:
            found[arm.place] = diagnose(cases)
        dossier.say(f"judging arm {count + 1} of {len(dossier.arms)}")
    return found


def worth_a_row(every: Iterable[Judgement]) -> list[str]:
    """The failures that were measured in some arm, the gravest first."""
    worst: dict[str, int] = {}
    for each in every:
        worst[each.failure] = max(worst.get(each.failure, 0), GRADES.index(each.grade))
    return sorted((failure for failure, grade in worst.items() if grade > 0), key=lambda failure: -worst[failure])
