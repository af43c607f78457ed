"""Test docs/partitioners.md: its code runs; tests/partition tests the part on flwr-datasets in a separate environment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from datasets import Dataset

from tests.small_experiment import documents

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "partitioners.md").read_text(encoding="utf-8")


def test_the_code_of_the_page_runs(capsys):
    rows = documents(20)
    known = {"dataset": Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})}
    first, report, flower = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(first, known)
    exec(report, known)
    assert len(known["client"]) == len(known["rows"][2]) and "FederatedDataset" in flower
    for number in known["by_rows"].measurements:
        same = known["by_data_sets"][number.name].value
        assert number.value == pytest.approx(same, nan_ok=True)
        assert f"`{number.name}`" in PAGE or f"`.{number.name.rpartition('.')[2]}`" in PAGE, number.name
    assert "token.jsd" in capsys.readouterr().out
