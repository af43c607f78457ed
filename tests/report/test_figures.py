"""Test that every chart is a valid specification of the recorded values."""

from __future__ import annotations

import re

import numpy as np
import pytest
import vl_convert

from fedrift.core.errors import UserError
from fedrift.core.records import Record, Trajectory
from fedrift.report import charts, figures, save_figure
from fedrift.report.data import band_rows, client_rows, curve_rows, loss_ceiling, mean_rows, split_off_scale

from .runs import make_view, trajectory


def test_a_saved_figure_is_an_image_with_the_names_of_the_runs(tmp_path):
    chart = figures.loss_figure([make_view("FedAvg, isolated")])
    svg = save_figure(chart, tmp_path / "loss.svg").read_text()
    assert svg.startswith("<svg")
    assert "FedAvg, isolated" in svg and "IID baseline" in svg and "nats per token" in svg
    assert save_figure(chart, tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_an_unsupported_file_type_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.svg or \.png, not as 'loss.gif'"):
        save_figure(figures.loss_figure([make_view()]), tmp_path / "loss.gif")


@pytest.mark.parametrize(
    "chart",
    [
        figures.line_chart(curve_rows([make_view()], "loss"), {"FedAvg": "#000"}, width=200),
        figures.line_chart(curve_rows([make_view(trajectory=trajectory(bad=2))], "loss"), {"FedAvg": "#000"}, width=99),
        figures.line_chart(mean_rows([make_view()], "update.norm"), {"FedAvg": "#000"}, loss=False, width=200),
        figures.before_after_chart(client_rows(trajectory(), 0), width=200),
        figures.client_band_chart(band_rows(trajectory(clients=20)), width=200),
        figures.partition_heatmap(["a", "b"], [[1, 0], [0, 2], [3, 3]], width=200),
    ],
    ids=["curves", "diverged", "updates", "stages", "spread", "heat map"],
)
def test_every_chart_can_be_drawn(chart):
    assert vl_convert.vegalite_to_svg(chart.to_dict()).startswith("<svg")


def test_a_chart_without_dashes_or_data_gives_no_warning_in_the_browser():
    # Vega writes a warning to the console for an encoding without a field, and for a mark whose rows are all filtered away
    spec = figures.before_after_chart(client_rows(trajectory(), 0), width=200).to_dict()
    assert not any("strokeDash" in layer["encoding"] for layer in spec["layer"])
    row = {
        "condition": 0,
        "level": "x",
        "which": "run",
        "domain": "",
        "round": 1,
        "x": 1.0,
        "value": 1.0,
        "low": None,
        "high": None,
        "seeds": 1,
    }
    bare = [row, {**row, "round": 2}]
    banded = [{**each, "low": 0.9, "high": 1.1} for each in bare]
    layers = [len(charts.curve_chart(rows, [], {"x": "#000"}, title="loss")().to_dict()["layer"]) for rows in (bare, banded)]
    assert layers == [2, 3]
    layers = [len(charts.parameter_chart(bare, rows, {"x": "#000"}, x="lr", y="loss")().to_dict()["layer"]) for rows in ([], bare, banded)]
    assert layers == [2, 4, 5]
    cells = [{"condition": 0, "x": "a", "y": "b", "value": value, "note": ""} for value in (1.0, None)]
    assert [len(charts.heatmap(cells[:n], x=["a"], y=["b"], value="loss")().to_dict()["layer"]) for n in (1, 2)] == [2, 3]


def test_long_names_of_a_heat_map_are_whole_and_narrow_cells_have_no_numbers():
    names = ["style, num clients per round 1", "style, num clients per round 5"]
    cells = [{"condition": 0, "x": "a", "y": name, "value": 1.0, "note": ""} for name in names]

    spec = charts.heatmap(cells, x=["a"], y=names, value="loss", style=charts.HeatmapStyle(number_format=".2f"))().to_dict()
    wide, narrow = (vl_convert.vegalite_to_svg({**spec, "width": width}) for width in (200, 20))
    assert all(f">{line}</tspan>" in narrow for line in ("style", "num clients per round 1", "num clients per round 5"))
    assert [re.findall(r'opacity="(\d)">1.00<', svg) for svg in (wide, narrow)] == [["1", "1"], ["0", "0"]]


def test_no_round_is_named_twice_on_a_short_axis():
    rows = [{"run": "a", "which": "run", "round": round, "value": 1.0 + round} for round in (1, 2, 3)]
    svg = vl_convert.vegalite_to_svg(figures.line_chart(rows, {"a": "#000"}, loss=False, width=200).to_dict())
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert labels[: labels.index("round")] == ["1", "2", "3"]


def test_the_axis_of_clients_names_them_also_where_there_is_one():
    svg = vl_convert.vegalite_to_svg(figures.partition_heatmap(["a"], [[1]], width=99).to_dict())
    assert "client 0" in svg


def test_rounds_without_an_evaluation_have_no_row():
    run = Trajectory([Record(0, "loss", "", -1, 5.0), Record(3, "update.consensus", "", -1, 0.5)])
    assert [row["round"] for row in curve_rows([make_view(trajectory=run, iid_baseline=None)], "loss")] == [0]


def test_the_mean_is_over_participating_clients():
    run = Trajectory([Record(1, "update.norm", "", 0, 1.0), Record(1, "update.norm", "", 1, 3.0), Record(2, "update.norm", "", 1, 5.0)])
    rows = mean_rows([make_view(trajectory=run, iid_baseline=None)], "update.norm")
    assert [row["value"] for row in rows] == [2.0, 5.0]


def test_a_band_reaches_from_the_lowest_to_the_highest_client():
    run = Trajectory([Record(0, "loss", "", client, value) for client, value in enumerate([1.0, 2.0, 9.0])])
    assert [(row["low"], row["value"], row["high"]) for row in band_rows(run)] == [(1.0, 2.0, 9.0)]


def test_a_loss_above_twice_the_highest_start_is_outside_the_scale_and_marked_once():
    rows = [{"run": "a", "which": "run", "round": round, "value": value} for round, value in enumerate([5.0, 4.0, 11.0, 1e30, None, 4.0])]
    assert loss_ceiling(rows) == 10.0
    inside, marks = split_off_scale(rows, 10.0)
    assert [row["value"] for row in inside] == [5.0, 4.0, None, None, None, 4.0]
    assert [row["round"] for row in marks] == [2]


def test_losses_within_the_scale_have_no_ceiling():
    assert loss_ceiling([{"run": "a", "which": "run", "round": 0, "value": 5.0}]) is None and loss_ceiling([]) is None


def test_exploding_updates_are_drawn_on_a_logarithmic_scale():
    rows = [{"run": "a", "which": "run", "round": round, "value": value} for round, value in enumerate([1.0, 1.0, 1.0, 1e6])]
    drawn = figures.line_chart(rows, {"a": "#000"}, loss=False).to_dict()
    assert drawn["layer"][0]["encoding"]["y"]["scale"]["type"] == "log"


def test_the_colors_are_distinguishable_with_color_blindness():
    """Distances in CIELAB by Viénot et al. (1999) for red and green blindness; 10 is clearly visible."""
    simulated = {
        "red": np.array([[0.1124, 0.8876, 0], [0.1124, 0.8876, 0], [0.0040, -0.0040, 1]]),
        "green": np.array([[0.2928, 0.7073, 0], [0.2928, 0.7073, 0], [-0.0223, 0.0223, 1]]),
    }
    colours = [np.array([int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for hue in figures.OKABE_ITO]
    for seen in simulated.values():
        points = [lab(seen @ linear(colour)) for colour in colours]
        distances = [np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]]
        assert min(distances) > 10


def linear(colour: np.ndarray) -> np.ndarray:
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = np.clip(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089], 1e-9, None)
    root = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def test_before_and_after_averaging_are_drawn_from_the_same_blocks():
    """``loss`` of a client is measured on other blocks than ``loss.before``, so a difference of the two has no meaning."""
    run = Trajectory([Record(1, "loss", "", 0, 9.0), Record(1, "loss.before", "", 0, 4.0), Record(1, "loss.after", "", 0, 5.0)])
    assert sorted(row["value"] for row in client_rows(run, 0)) == [4.0, 5.0]
