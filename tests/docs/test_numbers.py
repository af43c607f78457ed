"""Every number of the docs is made from the committed stores, or is said to be chosen, tested elsewhere, or measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from .claims import first_study, measured, mitigation
from .claims.stores import imported
from .numbers import PAGES, ROOT, counted, hidden, numbers, numbers_in, regions, spans, uncovered


@pytest.fixture(scope="module")
def claims(tmp_path_factory):
    """What each page must say, by its name."""
    root = tmp_path_factory.mktemp("stores")
    kept = {name: imported(root, name) for name in ("first", "failures", "smollm2")}
    return {
        "first-study.md": first_study.claims(**kept),
        "clustering.md": mitigation.page(),
        "clustering-tables.md": mitigation.every_table(),
        "speed.md": measured.speed(root),
        "models.md": measured.models(),
        "beyond-one-machine.md": measured.backends(),
        "detectors.md": measured.detectors(),
    }


def test_the_page_of_the_calibration_is_made_of_its_results():
    assert (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8") == measured.calibration()


def test_every_number_of_every_page_has_a_source(claims):
    """One test for all pages, so that the stores are read once, whatever the number of processes."""
    wrong = {
        path.name: problems(path.read_text(encoding="utf-8"), claims.get(path.name, [])) for path in PAGES if path.name != "calibration.md"
    }
    assert not {name: found for name, found in wrong.items() if found} and set(claims) <= set(wrong)


def problems(page: str, claims: list[str]) -> list[str]:
    """What is wrong with the numbers of a page, in words."""
    found = [f"say where {number[0]} comes from (tests/docs/numbers.py)" for number in numbers_in(page, regions(page)[0])]
    if counted(page) != page:
        found.append("a number came or went: python -m tests.docs.numbers counts anew, once its source is right")
    found += [f"the committed results say otherwise: {claim}" for claim in claims if not spans(page, claim)]
    return found + uncovered(page, claims)


def test_what_another_test_is_said_to_make_names_a_test():
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


def test_a_number_without_a_claim_and_a_changed_one_are_seen():
    whole = "ends at +0.048 nats (-0.008 to +0.105), p = .047"
    assert not uncovered(PAGE, [whole, "see [12]"]) and counted(PAGE) == PAGE
    assert [seen.split("'")[1] for seen in uncovered(PAGE, ["+0.048 nats", "see [12]"])] == ["-0.008", "+0.105", ".047"]
    assert not spans(PAGE, whole.replace("+0.048", "+0.024")) and not spans(PAGE, "+0.04") and not spans(PAGE, "0.105), p = .04")
    assert [number[0] for number in numbers_in(PAGE, regions(PAGE)[0])] == ["3"]
    more = PAGE.replace("1,000", "1,000 or 2,000")
    assert [said[:8] for said in problems(more, [whole.replace("+0.048", "+0.024"), "see [12]"])] == [
        "say wher",
        "a number",
        "the comm",
        *["'+0.048'"[:8], "'-0.008'"[:8], "'+0.105'"[:8], "'.047' i"],
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4 x 64, 10 % and 1e-5, v 2.13.0, -.008", ["4", "64", "10", "1e-5", "2.13.0", "-.008"]),
        ("1,146 rows, 3.8 M; 0.47x, AT-1, H6, w_0, LoRA8 and 2026-11-24", ["1,146", "3.8", "0.47"]),
        ("`a 5` [6](x7) <!-- 8 --> https://a.b/9", ["6"]),
        ("```sh\nrun 5\n```\n```text\nends 6.5\n```", ["6.5"]),
    ],
)
def test_what_counts_as_a_number(text, found):
    assert [number[0] for number in numbers(text)] == found and len(hidden(text)) == len(text)


def test_the_stores_are_not_the_working_copys_runs():
    assert all(path.is_relative_to(ROOT) for path in PAGES) and Path(ROOT / "studies" / "results" / "first.zip").exists()
