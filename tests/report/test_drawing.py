"""What a report draws is the same with and without what makes it fast."""

from __future__ import annotations

import json

import altair as alt
import pytest
import vl_convert

from fedrift.report import charts, figures, page
from fedrift.report.figures import SharedRows

ROWS = [
    {"run": "a", "which": "run", "condition": 0, "level": "x", "domain": "", "round": round, "value": 4 - round, "low": 3.0, "high": 5.0}
    for round in range(3)
]


def test_copies_of_a_chart_share_their_rows():
    chart = alt.Chart(SharedRows(values=ROWS)).mark_line().encode(x="round:Q").transform_filter("true")
    assert chart.data.values is ROWS and isinstance(chart.data, alt.InlineData)


DRAWN = {
    "curves of a study": lambda: charts.curve_chart(ROWS, [], {"x": "#000"}, title="loss", zero=True)(),
    "lines of a run": lambda: figures.line_chart(ROWS, {"a": "#000"}),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_chart_equals_the_validated_one_whose_copies_have_rows_of_their_own(monkeypatch, draw):
    with figures.skip_validation():
        fast = draw().to_dict(validate=False)
    for module in (charts, figures):
        monkeypatch.setattr(module, "SharedRows", alt.InlineData)
    assert json.dumps(draw().to_dict()) == json.dumps(fast)


def test_the_script_is_built_once_and_again_where_its_copy_is_damaged(tmp_path, monkeypatch):
    built = []
    monkeypatch.setenv("FEDRIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda code: built.append(code) or "let a = '</script>é';\r\n")
    build = page.vega_script.__wrapped__
    first = build()
    assert first == build() == "let a = '<\\/script>é';\r\n" and len(built) == 1
    (stored,) = (tmp_path / "cache" / "report").iterdir()
    stored.write_bytes(stored.read_bytes()[:-1])
    assert build() == first and len(built) == 2
    monkeypatch.setenv("FEDRIFT_CACHE", str(stored))  # a file, in which nothing can be stored
    assert build() == first and len(built) == 3
