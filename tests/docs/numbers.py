"""Where the numbers of the docs come from.

A comment in a page says it of all blocks that follow it, up to the next such comment:

- ``<!-- numbers: checked -->``: each is part of a text that ``claims`` makes from the committed stores;
- ``<!-- numbers: 7 settings -->``: seven numbers that were chosen and not measured: settings, limits, formulas, literature;
- ``<!-- numbers: 7 measured on 2026-11-24 with COMMAND -->``: measured once; what the command wrote is not kept;
- ``<!-- numbers: 7 tested by tests/docs/test_speed.py -->``: another test makes them again.

The counts are there so that a number that is added, or taken away, does not go unseen. ``python -m tests.docs.numbers`` says what
each page lacks and counts anew.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]))
MARK = re.compile(r"<!-- numbers: (?:(checked)|(\d+) (settings|measured on \d{4}-\d\d-\d\d with .+?|tested by \S+)) -->")
HIDDEN = re.compile(
    r"""
    ^```(?!text).*?^```$                       # code; what a command printed stands in ```text
    | <!--.*?--> | `[^`\n]+` | \]\([^)\s]*\)   # comments, code in a line, addresses
    | https?://\S+ | arXiv:\S+ | \d{4}-\d\d-\d\d
    | ^\d+\.(?=\s)                             # numbered lists
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.,])(?<!\w-)[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)*|\.\d+)(?:e[+-]?\d+)?(?!\w*[A-Za-z]-?\d)")


@dataclass(frozen=True)
class Region:
    """Part of a page under one comment; ``at``: where it begins. ``kind`` "" has no comment."""

    kind: str
    count: int
    at: int
    end: int
    mark: tuple[int, int]


def hidden(page: str) -> str:
    """The page, as long as it is, with spaces for what holds no number that is told."""
    return HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), page)


def numbers(page: str) -> list[re.Match[str]]:
    """Every number that a page tells."""
    return list(NUMBER.finditer(hidden(page)))


def regions(page: str) -> list[Region]:
    """The parts of a page; the first has no comment."""
    marks = list(MARK.finditer(page))
    ends = [*(mark.start() for mark in marks), len(page)]
    found = [Region("", 0, 0, ends[0], (0, 0))]
    for mark, end in zip(marks, ends[1:], strict=True):
        found.append(Region(mark[1] or mark[3], int(mark[2] or 0), mark.end(), end, mark.span()))
    return found


def numbers_in(page: str, region: Region) -> list[re.Match[str]]:
    return [number for number in numbers(page) if region.at <= number.start() < region.end]


def spans(page: str, claim: str) -> list[tuple[int, int]]:
    """Where a page has the text of a claim, however its lines are broken."""
    words = r"\s+".join(map(re.escape, claim.split()))
    return [found.span() for found in re.finditer(rf"(?<![\d.]){words}(?!\d|\.\d)", page)]


def uncovered(page: str, claims: list[str]) -> list[str]:
    """The numbers of the checked regions, with what is around them, that no claim has."""
    covered = [span for claim in claims for span in spans(page, claim)]
    return [
        f"{number[0]!r} in {page[max(0, number.start() - 50) : number.end() + 30]!r}"
        for region in regions(page)
        if region.kind == "checked"
        for number in numbers_in(page, region)
        if not any(low <= number.start() and number.end() <= high for low, high in covered)
    ]


def counted(page: str) -> str:
    """The page with the counts of its comments made right."""
    for region in reversed(regions(page)):
        if region.kind not in ("", "checked"):
            low, high = region.mark
            page = page[:low] + f"<!-- numbers: {len(numbers_in(page, region))} {region.kind} -->" + page[high:]
    return page


def main() -> int:
    """Count anew, and list the numbers that stand under no comment."""
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        path.write_text(counted(page), encoding="utf-8")
        bare = numbers_in(page, regions(page)[0])
        print(f"{path.relative_to(ROOT)}: {len(numbers(page))} numbers, {len(bare)} under no comment")
    return 0


if __name__ == "__main__":
    sys.exit(main())
