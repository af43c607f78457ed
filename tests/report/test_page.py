"""The page: whole, alone, and readable whatever the runs are like."""

from __future__ import annotations

import json
import re

import pytest

from fedrift.core.records import Trajectory
from fedrift.report import write_report

from .runs import exhibit, light, trajectory


def page(tmp_path, *exhibits) -> str:
    return write_report(list(exhibits), tmp_path).read_text()


def specs(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', html, re.DOTALL)
    assert found

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON, a browser would stop")

    return json.loads(found[1], parse_constant=refuse)


def prose(html: str) -> str:
    """What is read, without scripts, style and tags."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL))


def test_the_page_needs_nothing_beside_it(tmp_path):
    html = page(tmp_path, exhibit())
    marked = re.sub(r"<script\b.*?</script>", "", html, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)\s*=""", marked)
    assert "<script src" not in html
    assert "@import" not in html and "url(" not in re.search(r"<style>(.*?)</style>", html, re.S)[1]
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_the_drawing_script_stands_once_however_many_charts_there_are(tmp_path):
    one, three = page(tmp_path / "a", light()), page(tmp_path / "b", *(light(name) for name in "abc"))
    assert one.count("window.vegaEmbed =") + one.count("window.vegaEmbed=") == 1
    assert len(three) - len(one) < 200_000


def test_every_chart_has_its_place_and_every_place_its_chart(tmp_path):
    html = page(tmp_path, exhibit())
    places = re.findall(r'class="chart" id="([^"]+)"', html)
    charts = specs(html)
    assert places == list(charts)
    # 1 overall, 2 domains, 2 clients, 4 readings of the updates, 1 partition
    assert len(charts) == 10


def test_the_verdict_comes_first_and_the_experiment_last(tmp_path):
    text = prose(page(tmp_path, exhibit()))
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


def test_a_run_and_its_twin_share_a_colour_and_differ_by_dash(tmp_path):
    chart = specs(page(tmp_path, exhibit()))["chart-0"]
    encoding = chart["layer"][0]["encoding"]
    assert encoding["color"]["field"] == "run" and encoding["strokeDash"]["field"] == "which"
    rows = chart["datasets"][chart["data"]["name"]]
    assert {(row["run"], row["which"]) for row in rows} == {("FedAvg", "run"), ("FedAvg", "IID baseline")}


def test_an_empty_run_gives_a_page_that_says_so(tmp_path):
    html = page(tmp_path, exhibit(experiment={}, trajectory=Trajectory([]), iid_baseline=None, status="unfinished", environment={}))
    text = prose(html)
    assert "No loss has been recorded yet" in text and "nothing to judge" in text and "(not recorded)" in text
    assert "<script" not in html


def test_no_run_at_all_gives_a_page_that_says_so(tmp_path):
    assert "No run was given" in prose(page(tmp_path))


def test_an_unfinished_run_says_how_far_it_came(tmp_path):
    text = prose(page(tmp_path, exhibit(trajectory=trajectory(rounds=3), iid_baseline=None, status="unfinished")))
    assert "unfinished, 2 of 8" in text and "Too early to judge" in text


def test_a_diverged_run_gives_a_page_that_says_so_and_marks_where(tmp_path):
    html = page(tmp_path, exhibit(trajectory=trajectory(bad=4)))
    text = prose(html)
    assert "diverged" in text and "not a finite number in round 4" in text
    assert "A cross at the upper edge" in text
    assert '"cross"' in json.dumps(specs(html)["chart-0"])
    assert "A cross at the upper edge" not in prose(page(tmp_path, light()))


def test_names_from_outside_cannot_become_part_of_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>"
    html = page(tmp_path, light(evil, environment={"note": evil}))
    assert "<script>alert" not in html
    assert specs(html)["chart-0"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    text = prose(page(tmp_path, light(), light()))
    assert "FedAvg (2)" in text


def test_runs_that_were_dealt_the_same_share_one_partition_figure(tmp_path):
    assert prose(page(tmp_path, light("a"), light("b"))).count("training tokens by client") == 1


def test_many_clients_become_one_band(tmp_path):
    text = prose(page(tmp_path, exhibit(trajectory=trajectory(clients=13), iid_baseline=None)))
    assert "13 clients: median" in text and "client 12" not in text


@pytest.mark.parametrize(("out", "path"), [("folder", "folder/index.html"), ("a/page.html", "a/page.html")])
def test_the_page_goes_to_a_folder_or_a_file(tmp_path, out, path):
    assert write_report([light()], tmp_path / out) == tmp_path / path
    assert (tmp_path / path).exists()


def test_a_plain_tuple_is_as_good_as_an_exhibit(tmp_path):
    assert write_report([tuple(light())], tmp_path).exists()


def test_the_same_runs_give_the_same_page(tmp_path):
    assert page(tmp_path / "a", light()) == page(tmp_path / "b", light())
