"""Test docs/speed.md: every table is on the page, and whether a target is met depends on the measured value only."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from shutil import copy

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO_ROOT / "benchmarks"))
    yield import_module("speed_page")
    for name in ("speed_page", "targets"):
        sys.modules.pop(name, None)


def row_cells(path: Path, quantity: str) -> list[str]:
    """Return the cells of the table row that begins with a quantity."""
    (row,) = [row for row in path.read_text().splitlines() if row.startswith(f"| {quantity}")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_every_table_is_on_the_page(page):
    text = (REPO_ROOT / "docs" / "speed.md").read_text()
    for mark in ("targets", *page.TABLE_COLUMNS):
        assert text.count(f"<!-- {mark} -->\n") == text.count(f"<!-- /{mark} -->") == 1
    for *_, command, section in import_module("targets").TARGETS:
        assert f"make {command}" in text
        assert f"\n## {section.split('#')[1].rstrip(')').replace('-', ' ')}\n" in text.lower()


def test_a_target_is_met_by_its_measured_value(page, tmp_path):
    copied = tmp_path / "speed.md"
    copy(REPO_ROOT / "docs" / "speed.md", copied)
    arguments = ["--out", str(tmp_path), "--page", str(copied)]
    assert page.main(arguments) == 0
    assert row_cells(copied, "`pocket`: speedup over the loop, 10 clients x 8")[2:4] == ["not measured", ""]
    machine = {"device": "cpu", "threads": 1, "packages": {"torch": "2"}, "peak_gflops": 1}
    row = {"clients": 10, "sequences": 8, "tokens": 64, "ratio_lowest": 1.0, "ratio_highest": 2.0}
    for day, ratio, verdict in (("2026-01-02", 1.9, "met"), ("2026-01-03", 1.7, "missed"), ("2026-01-01", 2.0, "missed")):
        path = tmp_path / f"loop-pocket-{'aarch64' if ratio == 1.9 else 'x86_64'}.json"
        if day > "2026-01-01":  # an older result of another machine has no effect
            path.write_text(json.dumps({**machine, "date": day, "rows": [{**row, "ratio": ratio}]}))
        assert page.main(arguments) == 0
        assert row_cells(copied, "`pocket`: speedup over the loop, 10 clients x 8")[3] == verdict
    assert "1.70x (1.00 to 2.00)" in copied.read_text() and "2026-01-03" in copied.read_text()
