"""Test that every number of the documentation is computed from committed results, or marked as chosen, tested or measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from .claims import measured, mitigation
from .numbers import PAGES, ROOT, mask_hidden, numbers, numbers_in, regions, spans, uncovered, update_counts


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    """The claims that each page must contain, by the name of the page."""
    root = tmp_path_factory.mktemp("stores")
    return {
        "clustering.md": mitigation.page(),
        "clustering-tables.md": mitigation.every_table(),
        "speed.md": measured.speed(root),
        "models.md": measured.models(),
        "beyond-one-machine.md": measured.backends(),
        "detectors.md": measured.detectors(),
    }


def test_the_calibration_page_is_computed_from_its_results():
    assert (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8") == measured.calibration()


def test_every_number_of_every_page_has_a_source(claims):
    """Test all pages together, so that the stores are read only once, regardless of the number of test processes."""
    problems_by_page = {
        path.name: problems(path.read_text(encoding="utf-8"), claims.get(path.name, [])) for path in PAGES if path.name != "calibration.md"
    }
    assert not {name: found for name, found in problems_by_page.items() if found} and set(claims) <= set(problems_by_page)


def problems(page: str, claims: list[str]) -> list[str]:
    """Describe what is wrong with the numbers of a page."""
    found = [f"{number[0]} has no source: add a comment (tests/docs/numbers.py)" for number in numbers_in(page, regions(page)[0])]
    if update_counts(page) != page:
        found.append("a number was added or removed: check its source, then run python -m tests.docs.numbers")
    found += [
        f"the page does not contain this text, which is computed from the committed results: {claim}"
        for claim in claims
        if not spans(page, claim)
    ]
    return found + uncovered(page, claims)


def test_regions_tested_elsewhere_name_an_existing_test():
    for path in PAGES:
        for region in regions(path.read_text(encoding="utf-8")):
            if region.kind.startswith("tested by "):
                assert (ROOT / region.kind.removeprefix("tested by ")).is_file(), (path, region.kind)


PAGE = """# A page of 3 parts
<!-- numbers: checked -->
It ends at +0.048 nats (-0.008 to +0.105),
p = .047, see [12](#a-1), `--seeds 6`, GPT-2 and arXiv:1910.06378.
<!-- numbers: 2 settings -->
Of 5 clients, 1,000 documents.
"""


def test_a_number_without_a_claim_and_a_changed_number_are_detected():
    claim = "ends at +0.048 nats (-0.008 to +0.105), p = .047"
    assert not uncovered(PAGE, [claim, "see [12]"]) and update_counts(PAGE) == PAGE
    assert [description.split("'")[1] for description in uncovered(PAGE, ["+0.048 nats", "see [12]"])] == ["-0.008", "+0.105", ".047"]
    assert not spans(PAGE, claim.replace("+0.048", "+0.024")) and not spans(PAGE, "+0.04") and not spans(PAGE, "0.105), p = .04")
    assert [number[0] for number in numbers_in(PAGE, regions(PAGE)[0])] == ["3"]
    extended_page = PAGE.replace("1,000", "1,000 or 2,000")
    assert [problem[:8] for problem in problems(extended_page, [claim.replace("+0.048", "+0.024"), "see [12]"])] == [
        "3 has no",
        "a number",
        "the page",
        *["'+0.048'"[:8], "'-0.008'"[:8], "'+0.105'"[:8], "'.047' i"],
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4 x 64, 10 % and 1e-5, v 2.13.0, -.008", ["4", "64", "10", "1e-5", "2.13.0", "-.008"]),
        ("1,146 rows, 3.8 M; 0.47x, AT-1, H6, w_0, LoRA8 and 2026-11-24", ["1,146", "3.8", "0.47"]),
        ("`a 5` [6](x7) <!-- 8 --> https://a.b/9", ["6"]),
        ("```sh\nrun 5\n```\n```text\nends 6.5\n```", ["6.5"]),
    ],
)
def test_what_counts_as_a_number(text, expected):
    assert [number[0] for number in numbers(text)] == expected and len(mask_hidden(text)) == len(text)


def test_the_stores_are_committed():
    assert all(path.is_relative_to(ROOT) for path in PAGES) and Path(ROOT / "studies" / "results" / "drift.zip").exists()
