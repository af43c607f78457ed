"""Test docs/models.md: its table of presets equals the presets of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrift.models.presets import PRESETS

MODELS_PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_is_on_the_page_with_its_numbers(preset):
    (row,) = [line for line in MODELS_PAGE.read_text().splitlines() if line.startswith(f"| `{preset.name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert preset.hub_id in cells[1]
    assert cells[2] == f"{preset.num_parameters / 1e6:,.1f} M"
    assert f"{preset.architecture['vocab_size']:,}" in cells[3]
    assert cells[4] == preset.license_id
    assert cells[6:] == [f"{preset.training_memory(weight_bytes=size) / 1e9:.2f} GB" for size in (4, 2)]
