"""Check where the numbers of the documentation come from.

A comment in a page states the source of all blocks that follow it, up to the next such comment:

- ``<!-- numbers: checked -->``: every number is part of a text that ``claims`` computes from the committed results;
- ``<!-- numbers: 7 settings -->``: seven numbers that were chosen and not measured: settings, limits, formulas, literature;
- ``<!-- numbers: 7 measured on 2026-11-24 with COMMAND -->``: numbers that were measured once, and whose results are not stored;
- ``<!-- numbers: 7 tested by tests/docs/test_speed.py -->``: numbers that another test computes again.

The counts reveal numbers that are added or removed. ``python -m tests.docs.numbers`` updates the counts and prints
how many numbers of each page no comment covers.
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
    ^```(?!text)(?=\w).*?^```$                # code; the output of commands is in ```text and counts
    | <!--.*?--> | `[^`\n]+` | \]\([^)\s]*\)   # comments, inline code, addresses
    | https?://\S+ | arXiv:\S+ | \d{4}-\d\d-\d\d
    | ^\d+\.(?=\s)                             # numbered lists
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.,])(?<!\w-)[+-]?(?:\d+(?:,\d{3})*(?:\.\d+)*|\.\d+)(?:e[+-]?\d+)?(?!\w*[A-Za-z]-?\d)")


@dataclass(frozen=True)
class Region:
    """The part of a page that one comment covers.

    Attributes:
        kind: "checked", "settings", "measured on ..." or "tested by ..."; "" before the first comment.
        count: The number of numbers that the comment states; 0 for "checked".
        at: The position in the page at which the region begins.
        end: The position at which it ends.
        mark: The positions of the comment.
    """

    kind: str
    count: int
    at: int
    end: int
    mark: tuple[int, int]


def mask_hidden(page: str) -> str:
    """Return the page with equal length, in which spaces replace the parts whose numbers do not count."""
    return HIDDEN.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), page)


def numbers(page: str) -> list[re.Match[str]]:
    """Return every number of a page that counts."""
    return list(NUMBER.finditer(mask_hidden(page)))


def regions(page: str) -> list[Region]:
    """Return the regions of a page; the first one has no comment."""
    marks = list(MARK.finditer(page))
    ends = [*(mark.start() for mark in marks), len(page)]
    result = [Region("", 0, 0, ends[0], (0, 0))]
    for mark, end in zip(marks, ends[1:], strict=True):
        result.append(Region(mark[1] or mark[3], int(mark[2] or 0), mark.end(), end, mark.span()))
    return result


def numbers_in(page: str, region: Region) -> list[re.Match[str]]:
    """Return the numbers of one region."""
    return [number for number in numbers(page) if region.at <= number.start() < region.end]


def spans(page: str, claim: str) -> list[tuple[int, int]]:
    """Return the positions at which a page contains the text of a claim, regardless of line breaks."""
    words = r"\s+".join(map(re.escape, claim.split()))
    return [match.span() for match in re.finditer(rf"(?<![\d.]){words}(?!\d|\.\d)", page)]


def uncovered(page: str, claims: list[str]) -> list[str]:
    """Return the numbers of the checked regions that no claim covers, each with its context."""
    covered = [span for claim in claims for span in spans(page, claim)]
    return [
        f"{number[0]!r} in {page[max(0, number.start() - 50) : number.end() + 30]!r}"
        for region in regions(page)
        if region.kind == "checked"
        for number in numbers_in(page, region)
        if not any(low <= number.start() and number.end() <= high for low, high in covered)
    ]


def update_counts(page: str) -> str:
    """Return the page with correct counts in its comments."""
    for region in reversed(regions(page)):
        if region.kind not in ("", "checked"):
            low, high = region.mark
            page = page[:low] + f"<!-- numbers: {len(numbers_in(page, region))} {region.kind} -->" + page[high:]
    return page


def main() -> int:
    """Update the counts of all pages, and print how many numbers no comment covers."""
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        path.write_text(update_counts(page), encoding="utf-8")
        without_comment = numbers_in(page, regions(page)[0])
        print(f"{path.relative_to(ROOT)}: {len(numbers(page))} numbers, {len(without_comment)} under no comment")
    return 0


if __name__ == "__main__":
    sys.exit(main())
