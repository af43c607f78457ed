"""Test that the page is complete, self-contained and readable for every kind of run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fedrift.core.records import Trajectory
from fedrift.report import page, write_report

from .runs import make_small_view, make_view, trajectory


def render_page(tmp_path, *exhibits) -> str:
    return write_report(list(exhibits), tmp_path).read_text()


def specs(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.DOTALL)
    assert found

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON, a browser would stop")

    return json.loads(found[1], parse_constant=refuse)


def visible_text(html: str) -> str:
    """Return the visible text, without scripts, style and tags."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL))


def test_the_page_needs_no_other_file(tmp_path):
    html = render_page(tmp_path, make_view())
    marked = re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)\s*=""", marked)
    assert "<script src" not in html
    assert "@import" not in html and "url(" not in re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_the_page_contains_the_drawing_script_once(tmp_path):
    one, three = render_page(tmp_path / "a", make_small_view()), render_page(tmp_path / "b", *(make_small_view(name) for name in "abc"))
    assert one.count("window.vegaEmbed =") + one.count("window.vegaEmbed=") == 1
    assert len(three) - len(one) < 200_000


def test_every_chart_has_one_place(tmp_path):
    html = render_page(tmp_path, make_view())
    places = re.findall(r'class="chart" id="([^"]+)"', html)
    charts = specs(html)
    assert places == list(charts)
    # 1 overall, 2 domains, 2 clients, 4 of updates, 1 partition
    assert len(charts) == 10


def test_the_page_starts_with_the_verdict_and_ends_with_the_experiment(tmp_path):
    text = visible_text(render_page(tmp_path, make_view()))
    words = (
        "Verdict",
        "suspected",
        "Loss by domain",
        "Clients before",
        "Updates",
        "Client data",
        "Experiments",
        "num_rounds: 8",
        "python:",
    )
    order = [text.index(word) for word in words]
    assert order == sorted(order)
    assert "partition_table" not in text


def test_headings_of_the_verdict_table_may_wrap():
    # in one line they made the table wider than the page on every screen; a value is never divided
    css = (Path(page.__file__).parent / "page.css").read_text()
    assert "nowrap" not in re.search(r"\nthead th {(.*?)}", css)[1] and ".verdict td[data-title] { white-space: nowrap; }" in css
    assert "white-space" not in re.search(r"  .verdict td\[data-title\] {(.*?)}", css)[1]


def test_a_run_and_its_baseline_have_one_color_and_different_dashes(tmp_path):
    chart = specs(render_page(tmp_path, make_view()))["chart-0"]
    encoding = chart["layer"][0]["encoding"]
    assert encoding["color"]["field"] == "run" and encoding["strokeDash"]["field"] == "which"
    rows = chart["datasets"][chart["data"]["name"]]
    assert {(row["run"], row["which"]) for row in rows} == {("FedAvg", "run"), ("FedAvg", "IID baseline")}


def test_the_page_of_an_empty_run_states_this(tmp_path):
    html = render_page(
        tmp_path, make_view(experiment={}, trajectory=Trajectory([]), iid_baseline=None, status="unfinished", environment={})
    )
    text = visible_text(html)
    assert "No loss has been recorded yet" in text and "nothing to judge" in text and "(not recorded)" in text
    assert "<script" not in html


def test_a_page_without_runs_states_this(tmp_path):
    assert "No run was given" in visible_text(render_page(tmp_path))


def test_the_page_of_an_unfinished_run_states_its_rounds(tmp_path):
    text = visible_text(render_page(tmp_path, make_view(trajectory=trajectory(rounds=3), iid_baseline=None, status="unfinished")))
    assert "unfinished, 2 of 8" in text and "Too early to judge" in text


def test_the_page_of_a_diverged_run_marks_the_round(tmp_path):
    html = render_page(tmp_path, make_view(trajectory=trajectory(bad=4)))
    text = visible_text(html)
    assert "diverged" in text and "not a finite number in round 4" in text
    assert "A cross at the upper edge" in text
    assert '"cross"' in json.dumps(specs(html)["chart-0"])
    assert "A cross at the upper edge" not in visible_text(render_page(tmp_path, make_small_view()))


def test_names_are_escaped(tmp_path):
    evil = "</script><script>alert(1)</script>"
    html = render_page(tmp_path, make_small_view(evil, environment={"note": evil}))
    assert "<script>alert" not in html
    assert specs(html)["chart-0"]


def test_runs_with_equal_names_are_distinguished(tmp_path):
    text = visible_text(render_page(tmp_path, make_small_view(), make_small_view()))
    assert "FedAvg (2)" in text


def test_runs_with_equal_partitions_share_one_figure(tmp_path):
    assert visible_text(render_page(tmp_path, make_small_view("a"), make_small_view("b"))).count("training tokens by client") == 1


def test_a_run_with_one_client_per_round_has_no_panel_of_a_consensus_that_is_always_one(tmp_path):
    one = Trajectory([record._replace(value=1.0) if record.metric == "update.consensus" else record for record in trajectory().records])
    titles = [
        "consensus: 1 if all updates are equal" in render_page(tmp_path, make_view(trajectory=each, iid_baseline=None))
        for each in (trajectory(), one)
    ]
    assert titles == [True, False]


def test_many_clients_are_drawn_as_one_band(tmp_path):
    text = visible_text(render_page(tmp_path, make_view(trajectory=trajectory(clients=13), iid_baseline=None)))
    assert "13 clients: median" in text and "client 12" not in text


@pytest.mark.parametrize(("out", "path"), [("folder", "folder/index.html"), ("a/page.html", "a/page.html")])
def test_the_page_is_written_to_a_folder_or_a_file(tmp_path, out, path):
    assert write_report([make_small_view()], tmp_path / out) == tmp_path / path
    assert (tmp_path / path).exists()


def test_a_plain_tuple_is_accepted_as_a_run(tmp_path):
    assert write_report([tuple(make_small_view())], tmp_path).exists()


def test_equal_runs_give_equal_pages(tmp_path):
    assert render_page(tmp_path / "a", make_small_view()) == render_page(tmp_path / "b", make_small_view())
